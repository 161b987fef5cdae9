"""matching/changes.py: which functions are identical, and which ones changed."""

import platform
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SOURCE, compile_c

from binary.disassemble import analyse
from features.extract import extract_features
from features.places import CODE, UNKNOWN
from matching.changes import compare
from matching.judge import Judge
from matching.kinds import KINDS
from matching.result import CHANGED, IDENTICAL, ORDER


def names_of(code, functions):
    return [code.analysis.function_name[f] for f in functions]


def test_a_stripped_copy_is_identical(codes, model):
    first, second = codes["O1"], codes["O1-stripped"]
    found = compare(first, second, model)
    # A function's own address may be that of the padding before it, where no symbol says better.
    begin = [
        {f: code.analysis.address[code.analysis.function == f].min() for f in range(code.functions)}
        for code in (first, second)
    ]
    for row in found.functions:
        if row.status == IDENTICAL:
            assert begin[0][row.sides[0]] == begin[1][row.sides[1]]
    names = {first.analysis.function_name[row.sides[0]]: row for row in found.functions}
    for name in ("area", "kind", "copy", "usage", "compare"):
        assert names[name].status == IDENTICAL
    # Without symbols, angr takes what the linker puts behind main for a part of it.
    assert begin[0][names["main"].sides[0]] == begin[1][names["main"].sides[1]]
    assert names["main"].change < 0.1
    address = [code.analysis.address for code in (first, second)]
    at = address[0][found.blocks.a] == address[1][found.blocks.b]
    assert at.mean() > 0.95
    assert found.same[at].all()


def test_the_patched_function_is_the_changed_one(codes, patched, model):
    found = compare(codes["O1"], patched, model)
    rows = [row for row in found.functions if row.status == CHANGED]
    assert names_of(codes["O1"], [row.sides[0] for row in rows]) == ["area"]
    assert names_of(patched, [row.sides[1] for row in rows]) == ["area"]
    assert found.functions[0] == rows[0], "changed ones come first"
    assert 0 < rows[0].change < 1


def test_the_likeliest_edits_come_first(codes, model):
    first, second = codes["O0"], codes["O2"]
    found = compare(first, second, model)
    function = first.analysis.function, second.analysis.function
    same = list(zip(found.blocks.a[found.same], found.blocks.b[found.same], strict=True))
    order = []
    for row in found.functions:
        a, b = row.sides
        total = (len(first.blocks[a]) if a >= 0 else 0) + (len(second.blocks[b]) if b >= 0 else 0)
        inside = sum(function[0][x] == a and function[1][y] == b for x, y in same)
        assert row.differing == total - 2 * inside
        assert row.change == pytest.approx(row.differing / total, abs=1e-4)
        order.append((ORDER.index(row.status), -row.rank))
        assert bool(row.kinds) == (row.status == CHANGED)
        assert set(row.kinds) <= set(KINDS)
    assert order == sorted(order)
    assert len({row.status for row in found.functions}) > 1


def test_landing_pads_leave_functions_identical(tmp_path, model):
    if platform.machine() != "x86_64":
        pytest.skip("-fcf-protection is of x86")
    codes = []
    for protection in ("none", "full"):
        flags = "-O2", "-fno-jump-tables", f"-fcf-protection={protection}"
        binary = compile_c(SOURCE, tmp_path / protection / "shapes", *flags)
        codes.append(extract_features(analyse(binary)))
    pads = [b"\n".join(code.analysis.instructions).count(b"endbr64") for code in codes]
    assert pads[1] >= pads[0] + 6  # those of the C runtime are in both
    found = compare(*codes, model)
    names = [code.analysis.function_name for code in codes]
    same = {
        tuple(name[f] for name, f in zip(names, row.sides, strict=True))
        for row in found.functions
        if row.status == IDENTICAL
    }
    ours = ("main", "area", "usage", "kind", "copy", "compare")
    assert {(name, name) for name in ours} <= same


def test_tables_of_distances_between_32_and_64_bits():
    """Distances of eight bytes are not compared with distances of four bytes."""
    judge = Judge.__new__(Judge)
    compared = []
    judge._same_steps = lambda x, y, steps: compared.append([len(s) for s in steps])
    wide, narrow = (
        SimpleNamespace(steps=[np.dtype(f"<i{n}") for n in sizes]) for sizes in ((8, 4), (4,))
    )
    for judge.places in ((wide, narrow), (narrow, wide), (wide, wide)):
        assert judge._same_distances(0, 0, bytes(64), bytes(64)) is None
    assert compared == [[16, 16], [16, 16], [8, 8], [16, 16]]


def test_tables_of_pointers_between_32_and_64_bits():
    """Each file's pointers are read in its own size; equal bytes are equal in any case."""
    judge = Judge.__new__(Judge)
    judge._same_code = lambda blocks, p, q: p == q
    wide, narrow = (
        SimpleNamespace(
            word=np.dtype(f"<u{size}"),
            steps=[],
            resolve=lambda words: (np.where(words > 9, CODE, UNKNOWN), words),
        )
        for size in (8, 4)
    )
    for same, other in (
        (True, [16, 17, 18, 3]),
        (False, [16, 19, 18, 3]),
        (False, [16, 17, 18, 4]),
    ):
        tables = [np.array([16, 17, 18, 3], "<u8").tobytes(), np.array(other, "<u4").tobytes()]
        judge.places = wide, narrow
        assert judge._only_pointers(0, 0, *tables, 0) is same
        judge.places = narrow, wide
        assert judge._only_pointers(0, 0, *tables[::-1], 0) is same
        assert judge._only_pointers(0, 0, tables[0], tables[0], 0)
