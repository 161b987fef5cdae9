"""bench/ablation.py: each row really leaves its part out, and every row is printed."""

import json
import shutil

import ablation
import numpy as np
import pytest
from conftest import ROOT

from encoder.encoder import read_encoder
from matching import blocks as matching_blocks
from matching.candidates import MEASURES
from matching.training_pairs import make_pair

SMALL = {"pairs": 2, "n_epochs": 2}


@pytest.fixture(scope="module")
def pair(codes):
    return make_pair(codes["O0"], codes["O2"], read_encoder())


def test_every_measure_but_sizes_is_left_out_somewhere():
    left_out = {MEASURES[i] for columns in ablation.LEFT_OUT.values() for i in columns}
    sizes = {name for name in MEASURES if name.startswith(("difference of", "smaller number of"))}
    assert len(sizes) == 8
    assert left_out == set(MEASURES) - sizes
    numbers = {MEASURES[i] for i in ablation.LEFT_OUT["no numbers, no fields"]}
    assert {"cosine of number", "cosine of number near and number"} <= numbers
    assert "cosine of name and name near" not in numbers


def test_leaving_out_does_not_change_the_original(pair):
    before = pair.candidates.measures.copy()
    left = ablation.leave_out(pair.candidates, [0, 3])
    assert np.array_equal(pair.candidates.measures, before)
    assert not left.measures[:, [0, 3]].any()
    assert np.array_equal(np.delete(left.measures, [0, 3], 1), np.delete(before, [0, 3], 1))


def test_evidence_that_is_left_out_is_zero_and_the_rest_is_as_before(pair):
    score = pair.candidates.measures[:, 0]
    whole = pair.evidence.columns(pair.candidates, score, score)
    for columns in ablation.NO_EVIDENCE.values():
        less = ablation.WithoutColumns(pair.evidence, columns)
        left = less.columns(pair.candidates, score, score)
        assert not left[:, columns].any()
        assert np.array_equal(np.delete(left, columns, 1), np.delete(whole, columns, 1))
    shared = whole[:, ablation.NO_EVIDENCE["no shared variables"]]
    both_have_some = [code.shared.getnnz(1) > 0 for code in pair.evidence.codes]
    a, b = pair.candidates.a, pair.candidates.b
    assert np.array_equal(shared[:, 1], both_have_some[0][a] & both_have_some[1][b])
    listed = whole[:, ablation.NO_EVIDENCE["no tables of pointers"]][:, 4]
    in_table = [np.isin(np.arange(c.functions), c.tables.function) for c in pair.evidence.codes]
    assert np.array_equal(listed, in_table[0][a] & in_table[1][b])


def test_each_row_of_the_table_is_printed_and_leaves_its_part_out(builds, paired, tmp_path, capsys):
    for build, copy in (("O0", "8.30-O0"), ("O1", "8.30-O1"), ("O2", "8.30-O2")):
        shutil.copytree(builds / build, tmp_path / f"coreutils-{copy}")
    settings = json.loads((ROOT / "config/contrast.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(settings | SMALL))
    ablation.main(
        train=str(paired / "data"),
        outputDir=str(paired / "output"),
        path=str(tmp_path),
        programs="shapes",
        kinds="O0-O1",
        train_cfg=str(tmp_path / "cfg.json"),
        work=str(tmp_path / "work"),
        workers=1,
    )
    rows = capsys.readouterr().out.splitlines()[2:]
    names = [row.split(";")[0] for row in rows]
    expected = [*ablation.LEFT_OUT, *ablation.NO_EVIDENCE, *ablation.QUARTERS]
    expected += ["no surroundings"]
    assert sorted(names) == sorted(expected)
    for row in rows:
        assert all(0 <= float(x) <= 1 for x in row.split()[-4:])


def test_each_row_changes_constants_for_its_time_only():
    before = dict(vars(matching_blocks))
    for changes in ablation.BLOCK_ROWS.values():
        with ablation.changed(changes):
            assert {name: getattr(matching_blocks, name) for name in changes} == changes
            assert all(before[name] != value for name, value in changes.items())
        assert vars(matching_blocks) == before
    with pytest.raises(AttributeError), ablation.changed({"NO_SUCH_PART": 1.0}):
        pass


def test_each_row_over_blocks_is_printed(builds, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(ablation.bench.KINDS, "O0-O2", [("O0", "O2")])
    ablation.blocks(
        path=str(builds), programs="shapes", kinds="O0-O2", work=str(tmp_path), workers=1
    )
    _, kinds, *rows = capsys.readouterr().out.splitlines()
    assert kinds.split() == ["O0-O2"]
    assert [row[:30].strip() for row in rows] == list(ablation.BLOCK_ROWS)
    scores = {row[:30].strip(): float(row[30:]) for row in rows}
    assert 0.3 < scores["all"] <= 1
    assert scores["no surroundings"] < scores["all"]
