"""diff.py's command line."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
from conftest import ROOT, typed

import diff
from matching.result import STATUS
from utils import UsageError, UserError


def test_all_outputs_are_written_by_one_command(builds, tmp_path):
    run = subprocess.run(
        [
            *(sys.executable, str(ROOT / "diff.py")),
            *(str(builds / "O1" / "shapes"), str(builds / "O1-stripped" / "shapes")),
            *("--html", "r.html", "--json", "r.json", "--csv", "r.csv", "--ghidra", "g.py"),
            *("--ida", "i.py", "--workers", "1"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    written = json.loads((tmp_path / "r.json").read_text())
    statuses = Counter(row["status"] for row in written["functions"])
    for name in STATUS:
        assert re.search(rf"^ *{statuses[name]} functions? {name}$", run.stdout, re.M)
    assert statuses["identical"] > 5
    assert sum(1 for _ in (tmp_path / "r.csv").open()) == 1 + len(written["functions"])
    *_, wrote, seconds, verdict = run.stdout.splitlines()
    assert wrote == "wrote r.html, r.json, r.csv, g.py, i.py"
    assert seconds.endswith(" seconds")
    assert verdict.startswith("verdict: ")
    assert all((tmp_path / file).stat().st_size for file in ("r.html", "g.py", "i.py"))


@pytest.mark.parametrize("which", ["missing", "text"])
def test_mistakes_are_one_sentence(builds, tmp_path, monkeypatch, capsys, which):
    (tmp_path / "text").write_text("no program")
    monkeypatch.chdir(tmp_path)
    assert typed(diff.main, builds / "O1" / "shapes", which) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert which in err
    assert err.count("\n") == 1


def test_a_flag_that_would_be_ignored_is_refused(builds):
    file = str(builds / "O0" / "shapes")
    with pytest.raises(UsageError, match="--min_score is for --ghidra and --ida"):
        diff.main(file, file, min_score=0.9, csv="x.csv")


@pytest.mark.parametrize("flag", ["html", "json", "csv", "ghidra", "ida"])
def test_no_output_replaces_what_is_read(builds, tmp_path, flag):
    old, new = tmp_path / "old", builds / "O1" / "shapes"
    shutil.copy(builds / "O0" / "shapes", old)
    for path, reason in [
        (old, "would replace .*/old, which is an input"),
        (tmp_path, "is a folder"),
    ]:
        with pytest.raises(UserError, match=f"--{flag} .*{reason}"):
            diff.main(str(old), str(new), outputDir=str(tmp_path / "o"), **{flag: str(path)})
    export = tmp_path / "old.BinExport"
    shutil.copy(old, export)
    with pytest.raises(UserError, match=r"would replace .*old\.BinExport, which is an input"):
        diff.main(str(old), str(export), binexport=str(tmp_path), outputDir=str(tmp_path / "o"))
    assert old.read_bytes() == export.read_bytes() == (builds / "O0" / "shapes").read_bytes()
    assert not (tmp_path / "o").exists()


def test_starting_imports_nothing_large():
    """Of a second that comparing two small binaries takes, imports are the greater part."""
    code = "import sys, diff; print({'angr', 'torch', 'scipy.optimize'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
