"""diff.py's output for other tools, and its result in Python."""

import ast
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from conftest import typed

import diff
from binary.demangle import brief, demangle
from matching.changes import compare
from matching.exports.markdown import as_markdown, verdict
from matching.exports.records import SCHEMA, as_json
from matching.exports.scripts import naming_script
from matching.model import read_model
from matching.result import STATUS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def codes(codes, patched):
    """The program before and after the patch."""
    return codes["O1"], patched


@pytest.fixture(scope="module")
def found(codes, model):
    return compare(*codes, model)


def renamed(code, names):
    """Give the functions the names in the list, in order."""
    count = len(code.analysis.function_name)
    names = (names * count)[:count]
    return dataclasses.replace(
        code, analysis=dataclasses.replace(code.analysis, function_name=names)
    )


def test_json_is_what_its_schema_says(codes, found):
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    written = json.loads(json.dumps(as_json(("a", "b"), codes, found)))
    jsonschema.validate(written, schema)
    for spoil in (
        lambda d: d.update(format=1),
        lambda d: d["functions"][0].update(status="unknown"),
        lambda d: d["functions"][0]["old"].update(address=4198400),
        lambda d: d["blocks"]["rows"][0].append(1),
    ):
        wrong = json.loads(json.dumps(written))
        spoil(wrong)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_python_gets_what_json_has(codes, found):
    rows = as_json(("a", "b"), codes, found)["functions"]
    for match, row in zip(found.functions, rows, strict=True):
        assert (match.status, match.score, match.change) == tuple(
            row[field] for field in ("status", "score", "change")
        )
        record = match.record()
        for side in ("old", "new"):
            if row[side]:
                assert record[f"{side}_name"] == row[side]["name"]
                assert hex(record[f"{side}_address"]) == row[side]["address"]
            else:
                assert record[f"{side}_name"] is None
    columns = {tuple(match.record()) for match in found.functions}
    assert len(columns) == 1, "all have the same columns"


def test_binaries_are_compared_from_python(builds, patched_file, tmp_path):
    before = str(builds / "O1" / "shapes")
    result = diff.compare_binaries(before, str(patched_file), outputDir=str(tmp_path))
    (area,) = [match for match in result.functions if match.status == "changed"]
    assert (area.old.name, area.new.name) == ("area", "area")
    assert result.verdict.endswith("identical")
    assert any(not block.identical for block in result.blocks)


@pytest.mark.parametrize(
    ("which", "fail_on", "code"),
    [
        ("same", "changed", 0),
        ("patched", "changed", 4),
        ("patched", "unmatched", 0),
        ("patched", None, 0),
    ],
)
def test_fail_on_sets_the_exit_code_and_the_verdict_comes_last(
    builds, patched_file, tmp_path_factory, capsys, which, fail_on, code
):
    old = builds / "O1" / "shapes"
    asked = ["--fail_on", fail_on] if fail_on else []
    folder = tmp_path_factory.getbasetemp() / "shared-output"
    written = folder.parent / "m.md"
    new = old if which == "same" else patched_file
    outputs = ["--outputDir", folder, "--markdown", written]
    assert typed(diff.main, old, new, *asked, *outputs) == code
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("verdict: identical" if which == "same" else "verdict: ")
    assert last.removeprefix("verdict: ") in written.read_text()


HOSTILE = ["a|b", "`code` <b>", "\\| x", "<script>alert(1)</script>", "x\n# title", "[a](http://b)"]


def test_no_name_is_markup_in_markdown(codes):
    hostile = renamed(codes[0], HOSTILE), renamed(codes[1], HOSTILE)
    text = as_markdown(("a|b`", "<i>"), compare(*hostile, read_model()), top=1000)
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("#")] == [lines[0], "## What changed most"]
    rows = [line for line in lines if line.startswith("|")]
    assert len({row.count("|") for row in rows if "score" in row or "0x" in row}) == 1
    for line in lines:
        outside = re.sub("`[^`]*`|<code>[^<>`|]*</code>", "", line)
        assert not re.search(r"[`<>\[\]\\]", outside), "outside of code there is our text only"


def test_markdown_says_what_json_says(codes, found):
    text = as_markdown(("old/a", "new/b"), found)
    assert text.startswith("# `a` → `b`")
    for status in STATUS:
        count = sum(match.status == status for match in found.functions)
        assert f"| {status} | {count:,} |" in text
    assert "| changed | `area` `0x" in text
    assert verdict(found) in text


MANGLED = [
    ("_ZN5shape4areaEi", "shape::area(int)"),
    ("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE", "core::fmt::Write::write_fmt"),
    ("_RNvCs1234_7mycrate3foo", "mycrate::foo"),
    ("?area@shape@@QEAAHH@Z", "public: int __cdecl shape::area(int)"),
    ("$s4main3fooyyF", "main.foo() -> ()"),
    ("main", "main"),
    ("_Zmain", "_Zmain"),
    ("__RNvCs1234_7mycrate3foo", "mycrate::foo"),  # as Mach-O has it
    ("_GLOBAL__sub_I__ZN5shape4areaEi", "global constructors keyed to shape::area(int)"),
    ("_GLOBAL__sub_I_main.cpp", "_GLOBAL__sub_I_main.cpp"),
]


def test_names_are_demangled():
    assert demangle([mangled for mangled, _ in MANGLED]) == [name for _, name in MANGLED]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("main", "main"),
        ("shape::Box::area(std::string const&) const", "shape::Box::area"),
        ("void f<int, g<char>>(h<int>) (.cold)", "f<…> (.cold)"),
        ("(anonymous namespace)::helper(int)", "{anonymous}::helper"),
        ("a::operator<(b const&)", "a::operator<(b const&)"),
        ("<core::fmt::Arguments as core::fmt::Debug>::fmt",) * 2,
        ("std::function<void ()>::swap(int)", "std::function<…>::swap"),
        ("f(int)::Local::g(char)", "f()::Local::g"),
        ("decltype(auto) f<int>(int)", "f<…>"),
        ("int (*f(char))(int)",) * 2,
        ("f<fn() -> i32>::g", "f<…>::g"),
        ("main.f(Swift.Int) -> ()", "main.f"),
        ("non-virtual thunk to f::g()", "non-virtual thunk to f::g"),
    ],
)
def test_brief_names_leave_out_parameters_and_templates(name, short):
    assert brief(name) == short


def test_a_name_that_would_fill_the_memory_stays_as_it_is():
    """Each level contains the one below twice, so 60 levels are 10 ** 18 characters."""
    bomb, last, digits = "_Z1f1AIiiE", "S0_", "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for level in range(60):
        bomb += f"1{chr(66 + level % 24)}I{last}{last}E"
        place = 2 * level + 2
        last = f"S{digits[place // 36] if place > 35 else ''}{digits[place % 36]}_"
    names = ["_ZN5shape4areaEi", bomb, "_ZN5shape4zoneEi"]
    assert demangle(names) == ["shape::area(int)", bomb, "shape::zone(int)"]


@pytest.mark.parametrize("tool", ["ghidra", "ida"])
def test_scripts_hold_sure_matches_with_comments(tool, builds, codes):
    old = renamed(codes[0], [name for name, _ in MANGLED[:5]])
    found = compare(old, codes[1], read_model())
    scores = sorted(row.score for row in found.functions if -1 not in row.sides)
    least = scores[len(scores) // 2]

    def names(min_score):
        script = naming_script(tool, str(builds / "O1" / "shapes"), found, min_score)
        tree = ast.parse(script)
        return ast.literal_eval(
            next(
                n.value
                for n in tree.body
                if isinstance(n, ast.Assign) and n.targets[0].id == "NAMES"
            )
        )

    every, sure = names(0), names(least)
    assert len(every) == len(scores)
    assert len(sure) == sum(score >= least for score in scores) < len(every)
    readable = dict(MANGLED)
    for _, name, comment in every:
        (symbol,) = [s for s in readable if re.sub("[^A-Za-z0-9_.$]", "_", s) == name]
        assert comment.startswith(readable[symbol] + " at 0x")
        assert "; was " in comment


def test_a_script_for_ghidra_runs(tmp_path, builds, codes, found):
    """With fake functions of Ghidra, the script sets the right labels and comments."""
    script = naming_script("ghidra", str(builds / "O1" / "shapes"), found)
    stub = """
import sys, types
module = types.ModuleType("ghidra.program.model.symbol")
module.SourceType = types.SimpleNamespace(ANALYSIS="ANALYSIS")
for name in ("ghidra", "ghidra.program", "ghidra.program.model"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["ghidra.program.model.symbol"] = module
class Base(int):
    def add(self, place): return int(self) + place
currentProgram = types.SimpleNamespace(getImageBase=lambda: Base(0x100000))
toAddr = int
createLabel = lambda at, name, primary, source: print("label", hex(at), name)
setPlateComment = lambda at, comment: print("comment", hex(at), comment)
"""
    done = subprocess.run(
        [sys.executable, "-c", stub + script], capture_output=True, text=True, check=True
    )
    area = codes[1].analysis.function_name.index("area")
    place = int(codes[1].analysis.function_address[area]) - 0x400000 + 0x100000
    assert f"label {place:#x} area\ncomment {place:#x} area at 0x" in done.stdout
