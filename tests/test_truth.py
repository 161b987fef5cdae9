"""bench/truth.py against nm and addr2line; and which pairs bench/accuracy.py counts as right."""

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import accuracy as bench
import numpy as np
import pytest
import truth

import utils
from binary.cache import analyse_all
from features.extract import extract_features
from matching.functions import Matches


@pytest.fixture(scope="module")
def of_o0(builds, tmp_path_factory):
    return truth.read_truth(builds / "O0" / "shapes", tmp_path_factory.mktemp("cache"))


def output(*command):
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} (binutils)")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_names_are_those_of_nm(builds, of_o0):
    lines = output("nm", str(builds / "O0" / "shapes")).splitlines()
    parts = [line.split() for line in lines if len(line.split()) == 3]  # undefined ones have two
    symbols = {name: int(address, 16) for address, kind, name in parts if kind in "tT"}
    base = truth.PIE_BASE if min(symbols.values()) < truth.PIE_BASE else 0
    named = {name: address - base for address, name in of_o0.name.items()}
    assert {"main", "area", "usage", "kind", "copy", "compare"} <= named.keys()
    assert all(symbols[name] == address for name, address in named.items())
    assert "_start" not in named


def test_lines_are_those_of_addr2line(builds, of_o0, analyses):
    analysis = analyses["O0"]
    lines = truth.block_lines(of_o0, analysis, relative=False)
    code = extract_features(analysis)
    area = analysis.function_name.index("area")
    base = truth.PIE_BASE if min(of_o0.name) >= truth.PIE_BASE else 0
    binary = str(builds / "O0" / "shapes")
    if output("readelf", "-h", binary).count("EXEC (Executable file)"):
        base = 0
    for block in code.blocks[area].tolist():
        where = output("addr2line", "-e", binary, hex(int(analysis.address[block]) - base))
        file, line = where.split()[0].rsplit("/", 1)[-1].split(":")
        assert (file, int(line)) in lines[block]


def test_relative_lines_count_from_the_function(of_o0, analyses):
    analysis = analyses["O0"]
    lines = truth.block_lines(of_o0, analysis, relative=True)
    code = extract_features(analysis)
    for name in ("area", "kind", "main"):
        inside = code.blocks[analysis.function_name.index(name)]
        found = set().union(*(lines[block] for block in inside))
        assert {function for function, _ in found} == {name}
        assert min(line for _, line in found) == 0


def test_blocks_are_counted_by_address(of_o0, analyses):
    analysis = analyses["O0"]
    code = extract_features(analysis)
    counts = truth.block_counts(of_o0, analysis)
    for address, name in of_o0.name.items():
        f = analysis.function_name.index(name)
        assert counts[address] == len(code.blocks[f])


def test_functions_of_stripped_copies_are_known_by_name(builds, tmp_path):
    binary = builds / "O2" / "shapes"
    copy = bench.stripped(binary, tmp_path)
    analyse_all([{"path": str(copy), "sha256": utils.sha256_of(copy)}], str(tmp_path / "output"), 1)
    build = bench.Build(binary, tmp_path)
    assert {"area", "kind", "main"} <= build.functions.keys()
    assert "compare" not in build.functions, "it has one block"
    assert min(build.functions.values()) >= 0
    assert len(set(build.functions.values())) == len(build.functions)
    # angr's BinDiff uses angr's functions; each is inside one of these.
    assert set(build.functions.values()) <= set(build.of_angr.values())
    assert max(build.of_angr.values()) < build.code.functions


def build(*names):
    """Return a Build whose functions have 3 blocks and these names."""
    return SimpleNamespace(
        code=SimpleNamespace(
            functions=len(names),
            analysis=SimpleNamespace(function_address=np.arange(len(names)) + 100),
            sizes=np.full(len(names), 3),
        ),
        truth=SimpleNamespace(name={100 + f: name for f, name in enumerate(names)}),
        functions={name: f for f, name in enumerate(names)},
    )


def test_right_pairs_have_equal_names():
    first, second = build("main", "same", "base_name"), build("main", "same", "last_component")
    a = np.arange(3)
    found = Matches(a, a, np.ones(3, np.float32))
    names = bench.names_in_both(first, second)
    assert names == ["main", "same"]
    assert bench.judge(found, first, second, names, set()).tolist() == [2, 3, 2]
    assert bench.judge(found, first, second, names, {"same"}).tolist() == [1, 2, 1]
    wrong = Matches(a, np.array([0, 2, 1]), np.ones(3, np.float32))
    assert bench.judge(wrong, first, second, names, set()).tolist() == [1, 3, 2]
    missed = Matches(a[:1], a[:1], np.ones(1, np.float32))
    del second.functions["main"]  # it is too small there
    assert bench.judge(missed, first, second, ["same"], set()).tolist() == [0, 0, 1]


def test_what_counts_as_wrong_is_shown_by_name():
    first, second = build("main", "same", "base_name"), build("main", "same", "last_component")
    first.file = Path("stripped/9.10-gcc-O2/sort")
    found = Matches(np.arange(3), np.array([0, 2, 1]), np.ones(3, np.float32))
    lines = bench.said_wrong(found, first, second, {"same"})
    assert [line.strip() for line in lines] == [
        "wrong, seen   sort: same -> last_component, also there",
        "wrong, unseen sort: base_name -> same",
    ]


def test_equal_scores_share_the_middle_of_their_ranks():
    first, second = build("main", "insert"), build("main", "insert", "third")
    score = np.eye(3)[:2][:, [0, 2, 1]]
    assert bench.rank(score, first, second, ["main", "insert"]) == [1, 2.5]
    second.functions["main"] = -1  # missed by the disassembler
    assert bench.rank(score, first, second, ["main", "insert"]) == [np.inf, 2.5]
