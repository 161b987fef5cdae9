"""Symbols that are attacks, in everything that diff.py writes: page, scripts, CSV, terminal."""

import ast
import base64
import csv
import dataclasses
import io
import itertools
import json
import re
import sys
import zlib

import pytest

import diff
from matching.changes import compare
from matching.exports.records import as_csv
from matching.exports.scripts import PIE_BASE, naming_script
from matching.page.make import make_page
from matching.result import CHANGED, STATUS
from terminal.escape import Escaped

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "=cmd|' /C calc'!A0",
    '");os.system("',
    "\x1b[2J\x1b]0;title\x07\r\n=1+1;=2+2",
    "\u202e\u200b\x9b31m\udcff",
    "a\n\x85\u2028b",
    "x;=1+1",
    "\t@SUM(1)",
]


@pytest.fixture
def hostile(codes, model):
    """Two builds whose symbols are attacks, and their diff."""
    renamed = []
    for build in ("O0", "O1"):
        analysis = codes[build].analysis
        names = list(itertools.islice(itertools.cycle(HOSTILE), len(analysis.function_name)))
        analysis = dataclasses.replace(analysis, function_name=names)
        renamed.append(dataclasses.replace(codes[build], analysis=analysis))
    return tuple(renamed), compare(*renamed, model)


def test_no_name_ends_the_page_s_data(hostile):
    codes, found = hostile
    page = make_page(("</title><b>", "b"), codes, found)
    data = re.findall('<script type="text/plain" id="(.*?)">(.*?)</script>', page, re.S)
    assert all(re.fullmatch("[A-Za-z0-9+/=]+", packed) for _, packed in data)
    index = json.loads(zlib.decompress(base64.b64decode(dict(data)["index"])))
    assert index["functions"][0][0][1] == HOSTILE[0]
    assert index["paths"] == ["</title><b>", "b"]
    # All else is the page's own, whatever the binaries hold.
    empty = dataclasses.replace(found, functions=[])
    pages = page, make_page(("", ""), codes, empty)
    own, other = (re.sub(">[A-Za-z0-9+/=]+</script>", "", text) for text in pages)
    assert own == other


@pytest.mark.parametrize("tool", ["ghidra", "ida"])
def test_naming_scripts_hold_names_as_data(hostile, builds, tool):
    codes, found = hostile
    script = naming_script(tool, str(builds / "O1" / "shapes"), found)
    tree = ast.parse(script)
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
    }
    assert values["NAMES"]
    assert all(re.fullmatch("[A-Za-z0-9_.$]*", name) for _, name, _ in values["NAMES"])
    # a position-independent executable's places count from its beginning
    header = (builds / "O1" / "shapes").read_bytes()[16]
    assert values["RELATIVE"] == (header == 3)
    starts = set(codes[1].analysis.function_address.tolist())
    base = PIE_BASE if values["RELATIVE"] else 0
    assert {place + base for place, _, _ in values["NAMES"]} <= starts


def test_no_cell_is_a_formula(hostile):
    _, found = hostile
    lines = as_csv(found).splitlines()
    assert len(lines) == len(found.functions) + 1
    names = {row["old name"] for row in csv.DictReader(lines)}
    assert any("cmd" in name for name in names)
    for delimiter in ",;\t":
        for row in csv.reader(lines, delimiter=delimiter):
            assert not any(re.match(r"[\s\"]*[=+@-]", cell) for cell in row)


def test_no_name_acts_in_the_terminal(hostile, monkeypatch):
    codes, found = hostile
    monkeypatch.setattr(sys, "stdout", Escaped(io.StringIO(), strict=True))
    diff.summary(("\x1b[2J\nold", "n\x85ew"), codes, found, 100, ["\x1b[2Jr\n.json"], 0.1)
    shown = sys.stdout.raw.getvalue()
    assert re.sub("[\n\t]", "", shown).isprintable()
    assert r"\x1b[2J\nold" in shown
    changed = sum(row.status == CHANGED for row in found.functions)
    starts = shown.count("\n     function starts found in: ")
    assert starts <= 2
    assert shown.count("\n") == 2 + starts + len(STATUS) + 1 + bool(changed) + changed + 3
