"""Exceeding a limit of memory or time ends in one sentence, and stops everything else."""

import multiprocessing
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

import dataprocess
import diff
import matching.train
import samefunc
import search
import utils
from binary import cache
from features.extract import read_binaries
from jobs.processes import limited_memory
from utils import UserError

ROOT = Path(__file__).resolve().parent.parent


def grown(more):
    """Return the present memory of this process plus ``more`` GiB."""
    return psutil.Process().memory_info().rss / 2**30 + more


@pytest.mark.parametrize("take", [np.ones, bytearray, torch.ones])
def test_exceeding_the_memory_limit_is_one_sentence(take):
    limit = grown(0.03)
    with limited_memory(limit, "the test"):
        assert len(take(2**20)) == 2**20
    message = rf"^the test takes more than {limit:g} GiB of memory; raise --memory_limit$"
    with pytest.raises(UserError, match=message), limited_memory(limit, "the test"):
        take(2**28)
    assert len(take(2**26)) == 2**26  # the limit ends with the block


def test_limits_leave_other_errors_alone():
    with pytest.raises(RuntimeError, match="ours"), limited_memory(99, "the test"):
        raise RuntimeError("ours")


def test_a_comparison_that_exceeds_its_memory_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(diff, "read_binaries", lambda *_: (None, None))
    monkeypatch.setattr(diff, "known_pairs", lambda *_: None)
    monkeypatch.setattr(diff, "compare", lambda *_: np.ones(2**28))
    with pytest.raises(UserError, match="comparing a with b takes more than"):
        diff.main("a", "b", json=str(tmp_path / "x.json"), memory_limit=grown(0.25))
    assert not list(tmp_path.iterdir())


def slow_or_bad(file, target):
    if file.endswith("bad"):
        raise UserError(f"{file} is not an executable")
    time.sleep(600)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_fails_stops_the_analysis_of_the_other(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(cache, "analyse_one", slow_or_bad)
    (tmp_path / "bad").write_bytes(b"smaller, but first, as it begins like no program")
    (tmp_path / "slow").write_bytes(b"\x7fELF" + bytes(1000))
    files = str(tmp_path / "slow"), str(tmp_path / "bad")
    before = multiprocessing.active_children()
    with pytest.raises(UserError, match=r"^[^;]*bad is not an executable$"):
        read_binaries(files, str(tmp_path / "output"), workers)
    assert multiprocessing.active_children() == before
    utils.remove_leftovers(tmp_path)


def test_a_file_that_is_missing_stops_all(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "analyse_one", slow_or_bad)
    (tmp_path / "slow").write_bytes(b"slow")
    with pytest.raises(UserError, match="none: No such file"):
        read_binaries((str(tmp_path / "slow"), str(tmp_path / "none")), str(tmp_path), 1)


@pytest.mark.parametrize(
    ("module", "inside", "command", "message"),
    [
        (
            matching.train,
            "find_builds",
            lambda: matching.train.main(data="a", to=str(ROOT / "model/new.safetensors")),
            "training on a",
        ),
        (samefunc, "binaries_of", lambda: samefunc.main(data="a"), "choosing pairs of functions"),
        (dataprocess, "binaries_of", lambda: dataprocess.functions("a"), "joining functions"),
        (search, "read_encoder", lambda: search.scan("a"), "searching index"),
    ],
)
def test_running_out_of_memory_in_the_main_process_is_one_sentence(
    tmp_path, monkeypatch, module, inside, command, message
):
    def too_much(*_, **__):
        raise MemoryError

    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").symlink_to(ROOT / "config")
    (tmp_path / "index").mkdir()
    monkeypatch.setattr(module, inside, too_much)
    pair = SimpleNamespace(split="train", binaries=[])
    for script in (dataprocess, samefunc):
        monkeypatch.setattr(script, "find_pairs", lambda data: ([Path("0")], []))
        monkeypatch.setattr(script, "read_pairs", lambda data, *splits: [pair])
    monkeypatch.setattr(search, "read_binaries", lambda *_: (None,))
    with pytest.raises(UserError, match=rf"^{message} takes more than .* GiB of memory; raise"):
        command()
