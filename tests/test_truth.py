"""bench/truth.py against nm and addr2line; what bench/diff.py calls right."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import analyse
import features
import utils
from matching import Matches

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
import truth

BENCH = Path(truth.__file__).parent


@pytest.fixture(scope="module")
def of_o0(builds, tmp_path_factory):
    return truth.read_truth(builds / "O0" / "shapes", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def bench():
    """bench/diff.py, which shares its name with the root's."""
    spec = importlib.util.spec_from_file_location("bench_diff", BENCH / "diff.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    code = features.read_code(analysis)
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
    code = features.read_code(analysis)
    for name in ("area", "kind", "main"):
        inside = code.blocks[analysis.function_name.index(name)]
        found = set().union(*(lines[block] for block in inside))
        assert {function for function, _ in found} == {name}
        assert min(line for _, line in found) == 0


def test_blocks_are_counted_by_address(of_o0, analyses):
    analysis = analyses["O0"]
    code = features.read_code(analysis)
    counts = truth.block_counts(of_o0, analysis)
    for address, name in of_o0.name.items():
        f = analysis.function_name.index(name)
        assert counts[address] == len(code.blocks[f])


def test_functions_of_stripped_copies_are_known_by_name(bench, builds, tmp_path):
    binary = builds / "O2" / "shapes"
    copy = bench.stripped(binary, tmp_path)
    analyse.analyse_all(
        [{"path": str(copy), "sha256": utils.sha256_of(copy)}], str(tmp_path / "output"), 1
    )
    build = bench.Build(binary, tmp_path)
    assert {"area", "kind", "main"} <= build.functions.keys()
    assert "compare" not in build.functions, "it has one block"
    assert min(build.functions.values()) >= 0
    assert len(set(build.functions.values())) == len(build.functions)
    # angr's BinDiff speaks of angr's functions; each lies in one of these.
    assert set(build.functions.values()) <= set(build.of_angr.values())
    assert max(build.of_angr.values()) < build.code.functions


def test_renamings_count_neither_way(bench):
    def build(*names):
        return SimpleNamespace(
            code=SimpleNamespace(
                functions=len(names),
                analysis=SimpleNamespace(function_address=np.arange(len(names)) + 100),
            ),
            truth=SimpleNamespace(name={100 + f: name for f, name in enumerate(names)}),
            functions={name: f for f, name in enumerate(names)},
        )

    first, second = build("main", "same", "base_name"), build("main", "same", "last_component")
    a = np.arange(3)
    found = Matches(a, a, np.ones(3, np.float32))
    assert bench.judge(found, first, second, set(), sure=False).tolist() == [2, 3, 2]
    assert bench.judge(found, first, second, set(), sure=True).tolist() == [2, 2, 2]
    wrong = Matches(a, np.array([0, 2, 1]), np.ones(3, np.float32))
    assert bench.judge(wrong, first, second, set(), sure=True).tolist() == [1, 3, 2]
    assert bench.judge(found, first, second, {"same"}, sure=False).tolist() == [1, 2, 1]
