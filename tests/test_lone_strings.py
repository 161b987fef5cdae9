"""Strings that only one of two programs contains, however the compilers treat them."""

import dataclasses

import numpy as np
import pytest

from features.extract import extract_features
from features.places import DATA, GO
from matching.changes import compare
from matching.lone_strings import LoneStrings
from matching.result import IDENTICAL

TEXT = b"virtual memory exhausted\n"  # copy() prints it
OTHER = b"virtual memory is no more"  # of the same length


def edited(code, old=TEXT, new=OTHER):
    """The features of a program in whose data a text was replaced."""
    data = [section.replace(old, new) for section in code.analysis.data]
    assert data != code.analysis.data
    return dataclasses.replace(code, analysis=dataclasses.replace(code.analysis, data=data))


def lone(first, second):
    """Names of the functions with lone strings, in both programs."""
    found = LoneStrings((first, second), np.zeros((0, 2), np.int64)).lone
    return [
        {code.analysis.function_name[f]: strings for f, strings in enumerate(side) if strings}
        for code, side in zip((first, second), found, strict=True)
    ]


def test_optimisation_levels_add_no_lone_strings(codes):
    builds = sorted(set(codes) - {"O1-stripped"})
    for one in builds:
        for other in builds:
            assert lone(codes[one], codes[other]) == [{}, {}], (one, other)


def test_an_edited_string_is_found_between_levels(codes, model):
    old, new = codes["O0"], edited(codes["O1"])
    assert lone(old, new) == [{"copy": {TEXT}}, {"copy": {OTHER}}]
    plain = compare(old, codes["O1"], model).functions
    rows = compare(old, new, model).functions
    name = old.analysis.function_name
    (before,) = [row for row in plain if name[row.sides[0]] == "copy"]
    (after,) = [row for row in rows if name[row.sides[0]] == "copy"]
    assert not {"string added", "string removed"} & set(before.kinds)
    assert {"string added", "string removed"} <= set(after.kinds)
    assert after.rank > before.rank + 4
    assert rows[0] == after  # though nearly every function differs


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        (b"no virtual memory exhausted\n", False),  # the linker merges ends of strings
        (b"void virtual memory exhausted\n", False),
        (b"virtual memory exhausted\n?", True),
        (b"virtual memory", True),
    ],
)
def test_the_end_of_another_string_is_no_lone_string(codes, there, missing):
    code = codes["O1"]
    data = [section.replace(TEXT, there + b"\0" * len(TEXT)) for section in code.analysis.data]
    other = dataclasses.replace(code, analysis=dataclasses.replace(code.analysis, data=data))
    assert lone(code, other)[0] == ({"copy": {TEXT}} if missing else {})


@pytest.mark.parametrize(
    ("pieces", "missing"),
    [
        ((b"virtual ", b"memory e", b"xhausted"), False),
        ((b"virtual ", b"memory e", b"xhau", b"sted"), False),
        ((b"virtual ", b"memory e", b"xhau", b"hausted\n"), False),  # the last one overlaps
        ((b"virtual ", b"memory e"), True),
        ((b"virtual ", b"xhausted"), True),
    ],
)
def test_a_string_that_is_copied_in_pieces_is_no_lone_string(codes, pieces, missing):
    code = codes["O1"]
    other = edited(code, TEXT, OTHER)
    lines = b"".join(b"\nmovabs rax, 0x%x" % int.from_bytes(piece, "little") for piece in pieces)
    texts = [other.analysis.instructions[0] + lines, *other.analysis.instructions[1:]]
    analysis = dataclasses.replace(other.analysis, instructions=texts)
    assert lone(code, extract_features(analysis))[0] == ({"copy": {TEXT}} if missing else {})


def test_a_signature_is_the_function_that_it_names(codes):
    """assert() of clang names a function by its signature, that of gcc by its name."""
    code = codes["O1"]
    name, signature = b"check_area", b"int check_area(char *)"
    by_name = edited(code, TEXT, name.ljust(len(TEXT), b"\0"))
    by_signature = edited(code, TEXT, signature.ljust(len(TEXT), b"\0"))
    assert lone(by_name, by_signature) == [{}, {}]
    assert lone(by_name, edited(code))[0] == {"copy": {name}}


def test_lone_strings_count_less_where_many_functions_have_some(codes):
    """A lone string counts for less where others have some, too."""
    code = codes["O1"]
    pairs = np.stack([np.arange(code.functions)] * 2, 1)
    one, all_of_them = edited(code), code
    for text in {text for side in LoneStrings((code, code), pairs).strings[0] for text in side}:
        all_of_them = edited(all_of_them, text, text[::-1])
    copy = code.analysis.function_name.index("copy")
    few = LoneStrings((code, one), pairs).surprise((copy, copy))
    many = LoneStrings((code, all_of_them), pairs).surprise((copy, copy))
    assert few > many + 1 > 1
    assert LoneStrings((code, code), pairs).surprise((copy, copy)) == 0


def test_texts_of_go_end_where_the_next_one_begins(codes, model):
    """Go puts no NUL between texts, so an edit of one must not change the functions of others."""

    def go(code, without_nul):
        analysis = code.analysis
        marked = {
            "data": [section.replace(TEXT + b"\0", without_nul) for section in analysis.data],
            "start_source": np.full_like(analysis.start_source, GO),
        }
        return dataclasses.replace(code, analysis=dataclasses.replace(analysis, **marked))

    old, new = (go(codes["O1"], TEXT + end) for end in (b"!", b"?"))
    places = [code.places for code in (old, new)]
    texts = [{p.text(t) for t in p.target[p.kind == DATA].tolist()} for p in places]
    assert texts[0] ^ texts[1] == {TEXT + b"!", TEXT + b"?"}
    assert lone(old, new) == [{"copy": {TEXT + b"!"}}, {"copy": {TEXT + b"?"}}]
    name = old.analysis.function_name
    statuses = {name[row.sides[0]]: row.status for row in compare(old, new, model).functions}
    assert {f for f, status in statuses.items() if status != IDENTICAL} == {"copy"}
