"""Imports go one way, and neither angr's nor torch's side imports the other."""

import ast
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {"gendata", "dataprocess", "pretrain", "classify", "diff", "samefunc"}


def modules() -> dict[str, Path]:
    """Return module -> its file, of the root and of the folders that are packages."""
    files = [
        *ROOT.glob("*.py"),
        *(f for p in ROOT.glob("[a-z]*/**/__init__.py") for f in p.parent.glob("*.py")),
    ]
    names = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in files}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


def imported(file: Path, at_once: bool) -> set[str]:
    """Return the imports of a file: only at the top level (``at_once``), or also in functions."""
    tree = ast.parse(file.read_text())
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        or (isinstance(function, ast.If) and ast.unparse(function.test) == "TYPE_CHECKING")
        for node in ast.walk(function)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if at_once and node in inside:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module)}
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.fixture(scope="module")
def graphs():
    """Import graphs of our modules, angr and torch, without and with imports in functions."""
    files = modules()
    known = {*files, "angr", "torch"}
    both = []
    for at_once in (True, False):
        graph = networkx.DiGraph()
        graph.add_nodes_from(known)
        for name, file in files.items():
            graph.add_edges_from((name, to) for to in imported(file, at_once) & known if to != name)
        both.append(graph)
    return both


def test_there_is_no_circle(graphs):
    parts = networkx.strongly_connected_components(graphs[0])
    assert not [part for part in parts if len(part) > 1]


def test_nobody_imports_a_command(graphs):
    for command in COMMANDS:
        assert not list(graphs[1].predecessors(command)), command


def test_each_side_does_without_the_other(graphs):
    graph = graphs[1].copy()
    graph.remove_edge("utils", "torch")  # in functions called only by trainings
    of = {"angr": set(), "torch": set()}
    for side, users in of.items():
        users |= {name.split(".")[0] for name in networkx.ancestors(graph, side)}
    assert not {"corpus", "tasks", "formats", "models", "train", "pretrain", "optim"} & of["angr"]
    assert not {"binary", "jobs", "pairs", "features", "gendata", "dataprocess"} & of["torch"]
    assert of["angr"] & of["torch"] <= {"encoder", "matching", "diff", "search", "classify"}


def test_no_test_imports_another():
    for file in sorted((ROOT / "tests").glob("*.py")):
        tests = {name for name in imported(file, False) if name.startswith("test_")}
        assert not tests, file.name
