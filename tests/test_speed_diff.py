"""bench/speed_diff.py: larger binaries made of several programs, and the tables."""

import numpy as np
import pytest
import speed_diff

from features.extract import extract_features


def test_joined_programs_are_what_they_were(analyses):
    parts = [analyses[build] for build in ("O2", "O0")]
    joined = extract_features(speed_diff.join(parts))
    alone = [extract_features(part) for part in parts]
    assert joined.functions == sum(code.functions for code in alone)
    assert joined.analysis.blocks == sum(part.blocks for part in parts)
    names = [name for code in alone for name in code.analysis.function_name[: code.functions]]
    assert joined.analysis.function_name[: joined.functions] == names
    assert (np.diff(joined.analysis.address[: joined.analysis.code_blocks].astype(float)) > 0).all()
    start = 0
    for code in alone:
        own = slice(start, start + code.functions)
        start += code.functions
        # Numbers that may be addresses are told by the first function's address.
        for group in ("token", "gram", "field", "name", "name near", "name up"):
            assert (joined.words[group][own] != code.words[group]).nnz == 0, group
        assert (joined.calls[own, own] != code.calls).nnz == 0
        assert ((joined.shared[own, own] > 0) != (code.shared > 0)).nnz == 0
    assert joined.shared.nnz == sum(code.shared.nnz for code in alone)
    steps = [np.diff(code.tables.place).tolist() for code in alone]
    assert np.diff(joined.tables.place).tolist() == [*steps[0], -sum(steps[0]), *steps[1]]


def test_growth_is_measured_on_more_and_more_programs(analyses, capsys):
    old, new = ([analyses[build]] * 8 for build in ("O1", "O2"))
    speed_diff.grow([old, new])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["programs", "blocks"]
    assert [int(row.split()[0]) for row in rows] == [1, 2, 4, 8]
    blocks = [int(row.split()[1].replace(",", "")) for row in rows]
    assert blocks == [n * blocks[0] for n in (1, 2, 4, 8)]


def test_a_cold_and_a_warm_run_are_timed(builds, tmp_path, capsys):
    old, new = (str(builds / build / "shapes") for build in ("O1", "O2"))
    speed_diff.main(old, new, outputDir=str(tmp_path), workers=1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == ["cold", "warm"]


def test_a_folder_without_programs_is_refused(builds, tmp_path):
    with pytest.raises(speed_diff.utils.UserError, match="no programs"):
        speed_diff.programs(tmp_path, str(tmp_path), 1)
