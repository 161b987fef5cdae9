"""checkpoint.py: .pt files are read safely, and into the right model only."""

import os
import pickle
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from checkpoint import load_model_file, load_pt, save_pt
from utils import UserError


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_round_trip(tmp_path):
    content = {"a": torch.arange(3), "b": {"c": [1, 2.5, "x", None, True]}}
    save_pt(content, tmp_path / "x.pt")
    loaded = load_pt(tmp_path / "x.pt")
    assert loaded["a"].tolist() == [0, 1, 2]
    assert loaded["b"] == content["b"]


def test_old_format_is_read(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert load_pt(tmp_path / "x.pt")["a"].tolist() == [1, 1]


@pytest.mark.parametrize("form", ["zip", "old", "pickle", "in a state dict"])
def test_nothing_is_run(tmp_path, form):
    path, target = tmp_path / "x.pt", tmp_path / "made"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Bomb(target)))
    else:
        content = {"w": Bomb(target)} if form == "in a state dict" else Bomb(target)
        torch.save(content, path, _use_new_zipfile_serialization=form != "old")
    with pytest.raises(UserError, match=r"x\.pt is damaged, or holds more than tensors"):
        load_pt(path)
    assert not target.exists()
    if form == "pickle":  # the bomb is live
        pickle.loads(path.read_bytes())
        assert target.exists()


def test_compressed_archive(tmp_path):
    save_pt({"a": torch.zeros(100_000)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as plain,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(UserError, match=r"y\.pt is a compressed archive"):
        load_pt(tmp_path / "y.pt")


def test_missing(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*x\.pt: No such file"):
        load_pt(tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        load_pt(tmp_path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_broken_files_are_user_errors(tmp_path, data):
    path = tmp_path / "x.pt"
    zipped = data.draw(st.booleans())
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    kind = data.draw(st.sampled_from(["cut", "foreign"]))
    if kind == "cut":
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) // 2))])
    else:
        path.write_bytes(data.draw(st.binary(max_size=200)))
    with pytest.raises(UserError, match=r"x\.pt is "):
        load_pt(path)


def test_model_round_trip(tmp_path):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save_pt(model.state_dict(), tmp_path / "x.pt")
    load_model_file(other, tmp_path / "x.pt")
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)


def test_keys_that_do_not_fit_are_named(tmp_path):
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    save_pt({"weight": torch.zeros(2, 4), "extra": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(UserError) as error:
        load_model_file(model, tmp_path / "x.pt")
    message = str(error.value)
    assert "x.pt does not fit the model" in message
    assert "lacks bias" in message
    assert "has unknown extra" in message
    assert "weight (2x4 instead of 2x3)" in message
    assert torch.equal(model.weight, before)


def test_many_keys_are_counted(tmp_path):
    save_pt({}, tmp_path / "x.pt")
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(5)])
    with pytest.raises(UserError, match=r"lacks 0\.weight, 0\.bias, 1\.weight and 7 more$"):
        load_model_file(model, tmp_path / "x.pt")


@pytest.mark.parametrize("content", [[1], {"a": 1}, {1: torch.zeros(1)}, torch.zeros(1)])
def test_no_state_dict(tmp_path, content):
    save_pt(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt is no state dict"):
        load_model_file(nn.Linear(1, 1), tmp_path / "x.pt")
