"""diff.py reports every edit of a small program as a change, and nothing else, by processor."""

from collections import Counter
from types import SimpleNamespace

import edits as bench
import numpy as np
import pytest
from conftest import SOURCE, compile_c
from hypothesis import given, settings
from hypothesis import strategies as st

from binary.disassemble import analyse
from binary.operands import IN_MEMORY, parse
from features.extract import extract_features
from matching.changes import compare
from matching.identical import identical_pairs
from matching.kinds import KINDS, kinds_of, rank

ALL = tuple(edit.number for edit in bench.edits())
FEW = (2, 4, 8)  # a callee, a table, another table: edits that only change addresses
BUILDS = {  # processor -> how it is linked, and which edits are tried
    "x86-64": ("position-independent", ALL),
    "i386": ("position-independent", FEW),
    "AArch64": ("position-independent", FEW),
    "ARM": ("position-independent", (2,)),
    "Thumb": ("position-independent", (2, 4)),
    "MIPS little": ("fixed", FEW),
    "PowerPC": ("position-independent", (4,)),
    "PowerPC64 little": ("position-independent", (*FEW, 5)),
    "RISC-V 64": ("position-independent", FEW),
    "s390x": ("position-independent", FEW),
}
EXPECTED = {  # number of the edit -> expected kind
    1: "constant changed",
    2: "call replaced",
    3: "comparison or branch turned",
    4: "data changed",
    5: "string changed",
    6: "field offset changed",
    8: "data changed",
    9: "data changed",
    11: "call replaced",
    12: "comparison or branch added",
}


@pytest.fixture(scope="module", params=BUILDS)
def programs(request, tmp_path_factory):
    """The programs of a processor and their features."""
    pytest.importorskip("ziglang", reason="brings the compiler; see requirements-dev.txt")
    folder = tmp_path_factory.mktemp("edits")
    kind, numbers = BUILDS[request.param]
    built = bench.build(folder / "programs", request.param, kind, numbers=numbers)
    return request.param, built, bench.analysed(built, folder / "output", workers=1)


def status_of(diff, codes) -> dict[tuple[str, str], str]:
    """Names in old and new -> status."""
    return {
        tuple(bench.names(c, f) for c, f in zip(codes, row.sides, strict=True)): row.status
        for row in diff.functions
    }


def test_every_edit_is_a_change_and_leads(programs, model):
    processor, built, codes = programs
    plain = codes[built.plain]
    for edit, file in built.edits.items():
        diff = compare(plain, codes[file], model)
        first = diff.functions[0]
        assert first.status == "changed", edit
        sides = zip((plain, codes[file]), first.sides, strict=True)
        assert [bench.names(c, f) for c, f in sides] == [edit.function] * 2, edit
        assert first.rank == max(row.rank for row in diff.functions)
        if processor == "x86-64" and edit.number in EXPECTED:
            assert EXPECTED[edit.number] in first.kinds, edit
            others = [row for row in diff.functions[1:] if row.status != "identical"]
            assert not others, edit


@pytest.mark.parametrize("copy", ["plain", "padded", "shuffled", "stripped"])
def test_the_same_objects_are_identical(programs, model, copy):
    _, built, codes = programs
    pair = codes[built.plain], codes[getattr(built, copy)]
    found = status_of(compare(*pair, model), pair)
    new = {("", name) for name in bench.NEW} if copy == "padded" else set()
    assert {names for names, status in found.items() if status != "identical"} == new
    if copy != "stripped":  # names in stripped copies are made up
        assert all(old == name for old, name in found.keys() - new)
    assert len(found) > 20


def test_what_the_linker_rewrites_is_no_change(programs, model):
    _, built, codes = programs
    pair = codes[built.plain], codes[built.relaxed]
    found = status_of(compare(*pair, model), pair)
    assert set(found.values()) <= {"identical", "compiled differently"}


COMPLAIN = """\
static void complain(const char *name, int code) {
    fprintf(stderr, "cannot open the file %s of shapes: code %d\\n", name, code * 37 + 5);
}
"""


def test_inlined_functions_are_named(tmp_path, model):
    """A static function that -O2 inlines; beside it, a program that has none."""
    called = SOURCE.replace(
        "if (argc < 2)", "if (argc > 9)\n        complain(argv[1], argc);\n    if (argc < 2)"
    )
    with_it = called.replace("static int compare", COMPLAIN + "static int compare")
    without = called.replace("complain(argv[1], argc)", "abort()")
    codes = [
        extract_features(analyse(compile_c(source, tmp_path / str(i), level)))
        for i, (source, level) in enumerate([(with_it, "-O0"), (with_it, "-O2"), (without, "-O2")])
    ]

    def inlined(old, new):
        rows = compare(old, new, model).functions
        (row,) = [m for m in rows if "complain" in (m.old and m.old.name, m.new and m.new.name)]
        assert "only in" in row.status
        return [function.name for function in row.inlined], row.explanation

    assert inlined(codes[0], codes[1]) == (["main"], "likely inlined into main")
    assert inlined(codes[1], codes[0]) == (["main"], "likely inlined in main")
    assert inlined(codes[0], codes[2]) == ([], ""), "it is gone altogether"


# ---------------------------------------------------------------------------------- the parts


def outline(code, uses):
    """An outline of functions of one table; uses: (user, used)."""
    n = len(code)
    made = SimpleNamespace(
        code=[(c,) for c in code],
        size=np.full(n, 9),
        uses=[[] for _ in range(n)],
        used=[[] for _ in range(n)],
        constants=[()] * n,
        tables=[[] for _ in range(n)],
        rows=[],
    )
    for f, g in sorted(uses):
        nth = len(made.uses[f])
        made.uses[f].append((nth, g))
        made.used[g].append((f, nth))
    return made


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=20),
)
def test_each_function_of_a_copy_finds_a_twin(code, uses):
    uses = {(f, g) for f, g in uses if f != g and max(f, g) < len(code)}
    one = outline(code, uses)
    pairs, alike = identical_pairs((one, outline(code, uses)), np.zeros((0, 2), np.int64))
    assert sorted(pairs[:, 0]) == sorted(pairs[:, 1]) == list(range(len(code)))
    for a, b in pairs.tolist():
        assert code[a] == code[b]
        assert alike[0][a] == alike[1][b]


def test_twins_are_told_apart_by_who_calls_them():
    """Functions 0 and 1 have the same code; in the other binary they are swapped."""
    first = outline("aaxy", {(2, 0), (3, 1)})
    second = outline("aaxy", {(2, 1), (3, 0)})
    pairs, _ = identical_pairs((first, second), np.zeros((0, 2), np.int64))
    assert dict(pairs.tolist()) == {0: 1, 1: 0, 2: 2, 3: 3}


@pytest.mark.parametrize(
    ("text", "base", "other", "offset", "position"),
    [
        ("eax, dword ptr [ebx + ecx*4 - 0x1f00]", "ebx", "ecx*4", -0x1F00, 0),
        ("dword ptr [0x804a010], 5", "", "", 0x804A010, 0),
        ("x1, [x0, #0x348]", "x0", "", 0x348, 0),
        ("x1, [x0]", "x0", "", 0, IN_MEMORY),
        ("r0, [r1, r2, lsl #2]", "r1", "r2", 0, IN_MEMORY),
        ("$v0, -0x7fe8($gp)", "$gp", "", -0x7FE8, 0),
        ("$v0, ($at)", "$at", "", 0, IN_MEMORY),
        ("%r0, 8(%r1, %r4)", "%r4", "%r1", 8, 0),
    ],
)
def test_memory_operands(text, base, other, offset, position):
    memory = parse(text).memory
    assert memory[:4] == (base, other, offset, position)


@pytest.mark.parametrize(
    ("gone", "come", "kind"),
    [
        ("strcpy", "strlcpy", "call replaced by a bounded one"),
        ("__sprintf_chk", "__snprintf_chk", "call replaced by a bounded one"),
        ("memcpy", "__memcpy_chk", "call replaced by a bounded one"),
        ("malloc", "calloc", "allocation or free changed"),
        ("puts", "_ZdlPvm", "allocation or free changed"),
        ("strncpy", "strcpy", ""),
        ("puts", "snprintf", ""),
    ],
)
def test_calls_that_patches_are_made_of_have_names(gone, come, kind):
    def traits(name):
        names = "texts", "data", "numbers", "fields", "conditions", "stack"
        others = {what: Counter() for what in names}
        return SimpleNamespace(calls=Counter({("import", name): 1}), **others)

    kinds = kinds_of(traits(gone), traits(come), (1, 1), (0, 0))
    assert kinds == ["call replaced"] + [kind] * bool(kind)


def test_changed_calls_rank_higher_than_changed_registers():
    assert rank(["call added"], 4) > rank(["instructions changed"], 4)
    assert rank(["call added"], 8) > rank(["call added"], 4)
    assert all(rank([kind], 2) > 0 for kind in KINDS)
