"""Pseudo-code: of the functions that are asked for, kept, one that fails costs only itself."""

import dataclasses
import itertools
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

import binary.decompile
from binary.decompile import decompile, regions
from jobs.processes import LIMITS
from matching.changes import compare
from matching.exports.markdown import as_markdown
from matching.page.make import make_page
from matching.pseudo import PseudoDiff, line_diff, pseudo_code


@pytest.fixture(scope="module")
def pair(builds, codes, patched_file, patched, model):
    """Paths, features and diff of a program and its patched version."""
    paths = str(builds / "O1" / "shapes"), str(patched_file)
    return paths, (codes["O1"], patched), compare(codes["O1"], patched, model)


@pytest.fixture(scope="module")
def found(pair, tmp_path_factory):
    output = str(tmp_path_factory.mktemp("output"))
    return pseudo_code(*pair, 20, output, 2, LIMITS), output


def test_what_differs_is_what_was_edited(pair, found):
    ((sides, area),) = found[0].items()
    names = [code.analysis.function_name[f] for code, f in zip(pair[1], sides, strict=True)]
    assert names == ["area", "area"]
    assert area.reasons == ("", "")
    same = [(old, new) for sign, old, new in area.lines if sign == "same"]
    differing = [(old, new) for sign, old, new in area.lines if sign != "same"]
    assert any("while" in old for old, _ in same), "the loop is as it was"
    assert any("1234" in new for _, new in differing)
    assert any("100000" in new for _, new in differing)
    assert not any("1234" in old or "100000" in old for old, _ in differing)


def test_cached_pseudo_code_is_not_made_again(pair, found, monkeypatch):
    def none_left(function, jobs, total, *_):
        assert total == 0
        return []

    monkeypatch.setattr(binary.decompile, "in_processes", none_left)
    again = pseudo_code(*pair, 20, found[1], 2, LIMITS)
    assert again == found[0]
    pages = [make_page(pair[0], *pair[1:], pseudo=pseudo) for pseudo in (again, found[0])]
    assert pages[0] == pages[1]


def test_what_takes_too_long_costs_itself_only(pair, found, tmp_path):
    """A file that is gone, and a limit of time that nothing keeps; the rest has its pseudo-code."""
    (path, _), (code, _), _ = pair
    area = code.analysis.function_name.index("area")
    wanted = [(path, code.analysis, area)]
    (late,) = decompile(wanted, str(tmp_path), 1, (0.02, LIMITS[1]))
    assert not late.lines
    limits = "seconds of processor time", "waited for longer than"  # on a busy machine the second
    assert any(limit in late.reason for limit in limits)
    export = tmp_path / "x.BinExport"
    export.write_bytes(b"")
    one, other = decompile([(str(export), code.analysis, area), *wanted], found[1], 1, LIMITS)
    assert (one.lines, one.reason) == ((), "a BinExport file contains no code to decompile")
    assert other.lines


@pytest.mark.parametrize(
    ("kept", "reason"), [("[", "is not JSON"), ('{"a": 1}', "no lines"), ("[1]", "no lines")]
)
def test_damaged_cached_pseudo_code_is_made_again(pair, found, tmp_path, kept, reason):
    (path, _), (code, _), _ = pair
    shutil.copytree(found[1], tmp_path / "output")
    for file in tmp_path.glob("output/decompiled/*.json"):
        file.write_text(kept)
    area = code.analysis.function_name.index("area")
    (read,) = decompile([(path, code.analysis, area)], str(tmp_path / "output"), 1, LIMITS)
    assert not read.lines
    assert reason in read.reason
    assert "delete it and run again" in read.reason


def test_names_in_pseudo_code_are_escaped(pair, tmp_path):
    """Names of functions hold a terminal's commands."""
    (path, _), (code, _), _ = pair
    main = code.analysis.function_name.index("main")
    hostile = ["\x1b[2J\n<b>"] * len(code.analysis.function_name)
    analysis = dataclasses.replace(code.analysis, function_name=hostile)
    (found,) = decompile([(path, analysis, main)], str(tmp_path), 1, LIMITS)
    assert any(r"\x1b[2J\n<b>(" in line for line in found.lines)
    assert all(line.isprintable() for line in found.lines)


def test_regions_are_the_functions_blocks(analyses):
    analysis = analyses["O2"]
    for f in range(analysis.code_functions):
        inside = regions(analysis, f)
        blocks = analysis.address[: analysis.code_blocks][
            analysis.function[: analysis.code_blocks] == f
        ]
        assert all(any(a <= block < b for a, b in inside) for block in blocks.tolist())
        assert all(b < c for (_, b), (c, _) in itertools.pairwise(inside))


lines_of_code = st.lists(st.sampled_from(["a();", "b();", "v1 = 2;", "v2 = 2;", "}"]), max_size=8)


@given(lines_of_code, lines_of_code)
def test_each_line_is_there_once(old, new):
    found = line_diff(tuple(old), tuple(new))
    assert [one for sign, one, _ in found if sign != "new"] == old
    assert [other for sign, _, other in found if sign != "gone"] == new
    renumbered = [[re.sub(r"v\d", "v", line) for line in side] for side in (old, new)]
    assert all(sign == "same" for sign, *_ in found) == (renumbered[0] == renumbered[1])


def test_no_line_ends_the_code_block(pair):
    paths, _, diff = pair
    sides = diff.functions[0].sides
    lines = [("same", "x", "```"), ("gone", "````<b>", ""), ("new", "", "# title")]
    text = as_markdown(paths, diff, pseudo={sides: PseudoDiff(lines, ("", ""))})
    block = text[text.index("`````diff") :].splitlines()
    assert block == ["`````diff", "  ```", "- ````<b>", "+ # title", "`````"]
    why = as_markdown(paths, diff, pseudo={sides: PseudoDiff([], ("", "`bad`<b>"))})
    assert "No pseudo-code: <code>new&#58; &#96;bad&#96;&#60;b&#62;</code>" in why
