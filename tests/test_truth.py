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


def test_renamings_count_neither_way():
    first, second = build("main", "same", "base_name"), build("main", "same", "last_component")
    a = np.arange(3)
    found = Matches(a, a, np.ones(3, np.float32))
    partner = bench.partners(first, second, {})
    assert partner == {"main": "main", "same": "same"}
    assert bench.judge(found, first, second, partner, set(), sure=False).tolist() == [2, 3, 2]
    assert bench.judge(found, first, second, partner, set(), sure=True).tolist() == [2, 2, 2]
    wrong = Matches(a, np.array([0, 2, 1]), np.ones(3, np.float32))
    assert bench.judge(wrong, first, second, partner, set(), sure=True).tolist() == [1, 3, 2]
    assert bench.judge(found, first, second, partner, {"same"}, sure=False).tolist() == [1, 2, 1]


def test_what_counts_as_wrong_is_shown_by_name():
    first, second = build("main", "same", "base_name"), build("main", "same", "last_component")
    first.file = Path("stripped/9.10-gcc-O2/sort")
    found = Matches(np.arange(3), np.array([0, 2, 1]), np.ones(3, np.float32))
    partner = bench.partners(first, second, {})
    lines = bench.said_wrong(found, first, second, partner, {"same"})
    assert [line.strip() for line in lines] == [
        "wrong, seen   sort: same -> last_component, also there",
        "wrong, unseen sort: base_name -> same",
    ]


def test_variables_are_those_of_the_source(builds, tmp_path):
    found = truth.read_variables(builds / "O2" / "shapes", tmp_path)
    other = truth.read_variables(builds / "O0" / "shapes", tmp_path)
    assert {k: v for k, v in found.items() if v} == {k: v for k, v in other.items() if v}
    assert found == truth.read_variables(builds / "O2" / "shapes", tmp_path), "from the cache"
    assert {"argc", "argv"} <= set(found["main"])


def test_moved_code_is_known_by_its_variables():
    insert = ["table", "entry", "data", "bucket"]
    old = {"insert": insert, "base_name": ["name", "base", "p"], "size": ["n"], "same": ["a", "b"]}
    new = {
        "insert": ["table", "entry", "error"],  # calls what follows
        "insert_if_absent": [*insert, "matched"],
        "last_component": ["name", "base", "p", "slash"],
        "length": ["n"],  # one name in common says nothing
        "same": ["a", "b"],
    }
    expected = {"insert": "insert_if_absent", "base_name": "last_component"}
    assert truth.moved(old, new) == expected
    assert truth.moved(old, old) == {}
    assert truth.moved(old, new | {"copy": new["last_component"]}).keys() == {"insert"}, "two"
    assert truth.moved({}, new) == truth.moved(old, {}) == {}


def test_the_partner_is_where_the_code_moved():
    first, second = build("main", "insert"), build("main", "insert", "insert_if_absent")
    a = np.arange(2)
    found = Matches(a, np.array([0, 2]), np.ones(2, np.float32))
    same = bench.partners(first, second, {})
    moved = bench.partners(first, second, {"insert": "insert_if_absent", "tiny": "main"})
    assert same == {"main": "main", "insert": "insert"}
    assert moved == {"insert": "insert_if_absent"}, "tiny, which is too small, is main's partner"
    moved = bench.partners(first, second, {"insert": "insert_if_absent"})
    assert bench.judge(found, first, second, same, set(), sure=False).tolist() == [1, 2, 2]
    assert bench.judge(found, first, second, moved, set(), sure=False).tolist() == [2, 2, 2]
    right = bench.matches_of(moved, first, second)
    assert np.array_equal(right.a, found.a)
    assert np.array_equal(right.b, found.b)
    second.functions["main"] = -1  # missed by the disassembler
    assert bench.matches_of(moved, first, second).a.tolist() == [1]
    second.functions["main"] = 0
    score = np.eye(3)[:2][:, [0, 2, 1]]
    assert bench.rank(score, first, second, ["main", "insert"], same) == [1, 2.5]
    assert bench.rank(score, first, second, ["main", "insert"], moved) == [1, 1]
