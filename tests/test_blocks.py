"""bench/blocks.py: each row leaves out what it says, and nothing stays left out."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
import blocks

from matching import blocks as matching_blocks


def test_each_row_changes_constants_for_its_time_only():
    before = dict(vars(matching_blocks))
    for changes in blocks.ROWS.values():
        with blocks.changed(changes):
            assert {name: getattr(matching_blocks, name) for name in changes} == changes
            assert all(before[name] != value for name, value in changes.items())
        assert vars(matching_blocks) == before
    with pytest.raises(AttributeError), blocks.changed({"NO_SUCH_PART": 1.0}):
        pass


def test_the_table(builds, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(blocks.bench.KINDS, "O0-O2", [("O0", "O2")])
    blocks.main(path=str(builds), programs="shapes", kinds="O0-O2", work=str(tmp_path), workers=1)
    _, kinds, *rows = capsys.readouterr().out.splitlines()
    assert kinds.split() == ["O0-O2"]
    assert [row[:30].strip() for row in rows] == list(blocks.ROWS)
    scores = {row[:30].strip(): float(row[30:]) for row in rows}
    assert 0.3 < scores["all"] <= 1
    assert scores["no surroundings"] < scores["all"]
