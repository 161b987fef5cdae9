"""bench/libraries.py: how pairs are counted, and a row for each kind that has builds."""

import shutil

import libraries
import numpy as np
import pytest

from matching.functions import Matches
from utils import UserError


def test_pairs_are_judged_by_names():
    old, new = ["a", "b", "", "c", "d"], ["a", "x", "b", "d"]
    found = Matches(np.array([0, 1, 2, 3, 4]), np.array([0, 1, 2, 3, 0]), np.ones(5))
    # a is right, b has another partner, c has none; d does not count, nor what has no name.
    assert libraries.judge(found, old, new, {"a", "b", "c"}).tolist() == [1, 3, 2]


def test_an_interval_is_over_libraries():
    counts = np.array([[[8, 10, 10], [0, 1, 10]]] * 3, float)
    assert libraries.score(counts) == "0.800 [0.800 0.800]"
    counts[0, 0, 0] = 2
    assert libraries.score(counts) == "0.600 [0.200 0.800]"


def test_a_row_is_printed_for_each_kind_that_has_builds(builds, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(libraries, "TEST", ["shapes"])
    for build, ends in (
        ("O0", "bookworm-O0"),
        ("O2", "bookworm-O2"),
        ("O1-stripped", "bullseye-O2"),
    ):
        shutil.copytree(builds / build, tmp_path / f"shapes-{ends}")
    libraries.main(path=str(tmp_path), outputDir=str(tmp_path / "output"), workers=1)
    with pytest.raises(UserError, match="has no two builds of shapes"):
        libraries.main(path=str(builds), outputDir=str(tmp_path / "output"), workers=1)
    _, _, *rows = capsys.readouterr().out.splitlines()
    found = {row[:30].strip(): row[30:].split() for row in rows}
    assert found.keys() == {"O0-O2", "versions at O2", "versions, O2 to O0"}
    assert int(found["O0-O2"][0]) >= 5
    assert float(found["O0-O2"][6]) >= float(found["O0-O2"][10]) > 0.3
    assert found["versions at O2"][0] == "0"  # a stripped file has no names
