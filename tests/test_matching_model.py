"""matching/model.py: files that are not the model that diff.py needs."""

import dataclasses
import shutil

import pytest

from encoder.encoder import DEFAULT as ENCODER
from matching.model import read_model, write_model
from utils import UserError


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x08\0\0\0\0\0\0\0{}      "])
def test_files_that_are_no_model_are_refused(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(UserError, match=r"no model that matching/train\.py wrote"):
        read_model(tmp_path / "m")


def test_a_model_with_other_measures_is_refused(tmp_path, model):
    """Such as one that an earlier matching/train.py wrote."""
    cut = dataclasses.replace(model.neighbours, w1=model.neighbours.w1[:, 1:])
    write_model(dataclasses.replace(model, neighbours=cut), tmp_path / "m", {})
    with pytest.raises(UserError, match=r"networks have \(33, 30\) inputs, not \(33, 31\)"):
        read_model(tmp_path / "m")


def test_a_model_for_another_encoder_is_refused(tmp_path, model):
    shutil.copy(ENCODER, tmp_path)
    write_model(model, tmp_path / "m", {})
    assert read_model(tmp_path / "m").encoder.identity == model.encoder.identity
    other = dataclasses.replace(model.encoder, identity="0123456789abcdef")
    write_model(dataclasses.replace(model, encoder=other), tmp_path / "m", {})
    with pytest.raises(UserError, match=rf"encoder \(0123456789abcdef\) than {tmp_path}"):
        read_model(tmp_path / "m")
    (tmp_path / "encoder.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot read the encoder .*/encoder\.safetensors"):
        read_model(tmp_path / "m")
