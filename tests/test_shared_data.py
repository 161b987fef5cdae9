"""Variables that functions share and tables that list them, against symbols and relocations."""

import dataclasses
import subprocess

import numpy as np
import pytest
from conftest import analysis_of, compile_c
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from hypothesis import given, settings
from hypothesis import strategies as st

from binary.disassemble import analyse
from binary.shared_data import Tables, pointer_labels, read_tables, shared_variables
from features.extract import extract_features
from features.tfidf import DIMENSIONS, hashed
from matching.evidence import FAINT, agreement
from matching.functions import match_functions
from matching.model import read_model

SOURCE = r"""
#include <stdio.h>
#define FUNCTION __attribute__((noinline, noclone, no_icf))

static int counter, depth, unused_elsewhere;
static FILE *out;

FUNCTION int add(int n) { return counter += n; }
FUNCTION int drop(int n) { return counter -= n; }
FUNCTION int down(int n) { return depth += n + counter; }
FUNCTION int alone(int n) { return unused_elsewhere += n; }
FUNCTION int flush(int n) { return fflush(stdout) + n; }

static const struct command { const char *name; int (*run)(int); } command[] = {
    {"sum up", add}, {"take away", drop}, {"deepen", down}, {"on its own", alone}, {"flush", flush},
};

int main(int argc, char **argv) {
    return command[argc % 5].run(argc) + command[argc % 3].run(7) + printf("%s\n", argv[0]);
}
"""
COMMANDS = {
    "add": b"sum up",
    "drop": b"take away",
    "down": b"deepen",
    "alone": b"on its own",
    "flush": b"flush",
}
FLAGS = {
    "O0": ["-O0"],
    "O2": ["-O2"],
    "O1-nopie": ["-O1", "-fno-pie", "-no-pie"],
    "O2-noplt": ["-O2", "-fno-plt"],
}

# Functions with the same code, which only their positions in the table distinguish; and their
# order in the code.
TWINS = r"""
#include <stdlib.h>
#include <string.h>
#define TWIN __attribute__((noinline, noclone, no_icf, no_reorder)) static int
#define BODY { \
    if (!n) return 3; \
    for (int i = 0; i < n; i++) if (strlen(s) > 9) n -= atoi(s); \
    return n; }
%s
static int (*const table[])(const char *, int) = {t0, t1, t2, t3, t4, t5, t6, t7};
int main(int argc, char **argv) { return table[argc %% 8](argv[0], argc); }
"""


@pytest.fixture(scope="module", params=FLAGS)
def built(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("variables")
    file = compile_c(SOURCE, folder / "commands", *FLAGS[request.param])
    subprocess.run(["strip", "-o", folder / "stripped", file], check=True)
    return file, analyse(folder / "stripped")


def symbols(file) -> tuple[dict[str, int], int, list[tuple[int, int]]]:
    """Return name -> address; where angr maps the file, 0: as it is; relocated (place, value)."""
    with open(file, "rb") as stream:
        elf = ELFFile(stream)
        base = 0x400000 if elf["e_type"] == "ET_DYN" else 0
        table = elf.get_section_by_name(".symtab")
        words = [
            (r["r_offset"] + base, r["r_addend"] + base)
            for section in elf.iter_sections()
            if isinstance(section, RelocationSection)
            for r in section.iter_relocations()
            if not r["r_info_sym"]
        ]
        return (
            {s.name.split("@")[0]: s["st_value"] + base for s in table.iter_symbols()},
            base,
            words,
        )


def functions_at(analysis) -> np.ndarray:
    return analysis.function_address[: analysis.code_functions]


def test_who_uses_a_variable(built):
    file, analysis = built
    address, _, _ = symbols(file)
    of = analysis.function_address[analysis.function[analysis.variable_block]]
    expected = {
        "counter": {"add", "drop", "down"},
        "depth": {"down"},
        "unused_elsewhere": {"alone"},
    }
    for name, users in expected.items():
        found = of[analysis.variable_address == address[name]].tolist()
        assert set(found) == {address[user] for user in users}, name


def test_imported_variables_have_names(built):
    file, analysis = built
    address, _, _ = symbols(file)
    of = analysis.function_address[analysis.function[analysis.variable_block]].tolist()
    named = {a for a, name in zip(of, analysis.variable_name, strict=True) if name == "stdout"}
    # The C runtime's start-up code names the beginning of .bss, where the copy lies.
    ours = {address[name] for name in COMMANDS}
    assert named & ours == {address["flush"]}
    code = extract_features(analysis)
    assert code.words["name"].shape == (code.functions, DIMENSIONS)
    word = hashed([[("import", "stdout")]]).indices[0]
    having = functions_at(code.analysis)[code.words["name"][:, [word]].toarray().ravel() > 0]
    assert ours & set(having.tolist()) == {address["flush"]}


def test_pointers_are_what_the_linker_relocates(built):
    file, analysis = built
    address, base, words = symbols(file)
    starts = {int(a): b for b, a in enumerate(analysis.address[: analysis.code_blocks])}
    found = dict(
        zip(analysis.pointer_address.tolist(), analysis.pointer_block.tolist(), strict=True)
    )
    if base:
        expected = {place: starts[value] for place, value in words if value in starts}
        assert found == expected
    for i, name in enumerate(COMMANDS):
        assert found[address["command"] + 16 * i + 8] == starts[address[name]]


def test_labels_are_the_strings_beside(built):
    file, analysis = built
    address, _, _ = symbols(file)
    pointed = analysis.address[analysis.pointer_block[analysis.label_pointer]].tolist()
    for name, literal in COMMANDS.items():
        labels = {t for a, t in zip(pointed, analysis.label, strict=True) if a == address[name]}
        assert literal in labels
    given_names = pointer_labels(analysis)
    entries = functions_at(analysis).tolist()
    assert {b"take away", "take", "away"} <= set(given_names[entries.index(address["drop"])])


def test_tables_keep_the_order_of_the_source(built):
    file, analysis = built
    address, _, _ = symbols(file)
    code = extract_features(analysis)
    entries = functions_at(code.analysis)
    tables = code.tables
    at = [int(np.flatnonzero(entries[tables.function] == address[name])[0]) for name in COMMANDS]
    assert len(set(tables.table[at].tolist())) == 1
    assert np.diff(tables.place[at]).tolist() == [2] * 4


def test_functions_share_what_few_use(built):
    file, analysis = built
    address, _, _ = symbols(file)
    shared = shared_variables(analysis)
    entries = functions_at(analysis).tolist()
    number = {name: entries.index(address[name]) for name in COMMANDS}
    assert (shared != shared.T).nnz == 0
    assert not shared.diagonal().any()
    assert shared[number["add"], number["drop"]] == shared[number["add"], number["down"]] > 0
    assert shared[number["alone"]].nnz == 0


def test_a_binary_without_data_has_no_variables_and_tables():
    analysis = analysis_of([(0x1000, 0x1000, "ret")], [])
    assert shared_variables(analysis).shape == (1, 1)
    tables = read_tables(analysis)
    assert len(tables.function) == len(tables.table) == len(tables.place) == 0
    pairs = np.zeros(1, np.int64), np.zeros(1, np.int64), (1, 1)
    found = agreement((tables, tables), pairs, np.ones(1, np.float32))
    assert [float(column[0]) for column in found] == [0, 0, 1, 1, 0, 0]


def test_tables_of_words_of_any_size_agree():
    """A structure of a text and a function, then one with nine words between its functions."""

    def tables(size):
        analysis = analysis_of([(0x1000, 0x1000, "ret"), (0x1010, 0x1010, "ret")], [])
        places = [0x4000 + size * word for word in (0, 2, 4, 13)]
        return read_tables(
            dataclasses.replace(
                analysis,
                pointer_address=np.array(places, np.uint64),
                pointer_block=np.array([0, 1, 0, 1], np.int32),
                pointers=np.array([size, 0, 0], np.uint64),
            )
        )

    for found in tables(4), tables(8):
        assert found.function.tolist() == [0, 1, 0, 1]
        assert found.table.tolist() == [0, 0, 0, 1]
        assert found.place.tolist() == [0, 2, 4, 0]


def slots(n: int):
    """Return tables as (function, table, place)."""
    slot = st.tuples(st.integers(0, n - 1), st.integers(0, 1), st.integers(0, 5))
    return st.lists(slot, max_size=8, unique_by=lambda slot: slot[1:]).map(sorted_tables)


def sorted_tables(found) -> Tables:
    found = sorted(found, key=lambda slot: slot[1:])
    columns = np.array(found, np.int64).reshape(-1, 3).T
    _, table = np.unique(columns[1], return_inverse=True)
    return Tables(columns[0], table.ravel(), columns[2])


@settings(max_examples=200, deadline=None)
@given(slots(4), slots(3), st.randoms(use_true_random=False))
def test_agreement_counts_entries_at_equal_places(first, second, random):
    shape = 4, 3
    pairs = [(a, b) for a in range(4) for b in range(3) if random.random() < 0.8]
    share = np.array([random.random() for _ in pairs], np.float32)
    a, b = np.array(pairs, np.int64).reshape(-1, 2).T
    part, total, to_a, to_b, both, one = agreement((first, second), (a, b, shape), share)
    sure = {
        pair: np.log1p(s / FAINT) / np.log1p(1 / FAINT)
        for pair, s in zip(pairs, share.tolist(), strict=True)
    }
    left, right = (
        list(zip(t.function.tolist(), t.table.tolist(), t.place.tolist(), strict=True))
        for t in (first, second)
    )
    sums = []
    for i, pair in enumerate(pairs):
        supports = [(0.0, 0.0)]
        for f, table, place in left:
            for g, other, where in right:
                if (f, g) != pair:
                    continue
                support = sum(
                    sure.get((x, y), 0)
                    for x, p, u in left
                    for y, q, v in right
                    if (p, q, u - v) == (table, other, place - where) and (x, u) != (f, place)
                )
                length = [sum(s[1] == t for s in ts) for ts, t in ((left, table), (right, other))]
                supports.append((support, support / max(np.sqrt(length[0] * length[1]) - 1, 1)))
        sums.append(max(s for s, _ in supports))
        assert part[i] == pytest.approx(max(p for _, p in supports), abs=1e-4)
        assert total[i] == pytest.approx(sums[i] / (1 + sums[i]), abs=1e-4)
        listed = pair[0] in first.function, pair[1] in second.function
        assert (bool(both[i]), bool(one[i])) == (all(listed), listed[0] != listed[1])
    for i, (x, y) in enumerate(pairs):
        best = [
            max(s for s, p in zip(sums, pairs, strict=True) if p[k] == z)
            for k, z in ((0, x), (1, y))
        ]
        assert to_a[i] == pytest.approx((sums[i] + 0.1) / (best[0] + 0.1), abs=1e-4)
        assert to_b[i] == pytest.approx((sums[i] + 0.1) / (best[1] + 0.1), abs=1e-4)


def test_twins_are_told_apart_by_their_places_in_a_table(tmp_path):
    found = []
    for name, order, flags in (("a", range(8), ["-O1"]), ("b", (5, 2, 7, 0, 3, 6, 1, 4), ["-O2"])):
        twins = "\n".join(f"TWIN t{i}(const char *s, int n) BODY" for i in order)
        file = compile_c(TWINS % twins, tmp_path / name, *flags)
        subprocess.run(["strip", "-o", tmp_path / f"{name}-stripped", file], check=True)
        address, _, _ = symbols(file)
        code = extract_features(analyse(tmp_path / f"{name}-stripped"))
        entries = functions_at(code.analysis).tolist()
        found.append((code, [entries.index(address[f"t{i}"]) for i in range(8)]))
    (first, twins), (second, others) = found
    matched = match_functions(first, second, read_model())
    partner = dict(zip(matched.a.tolist(), matched.b.tolist(), strict=True))
    assert [partner.get(f) for f in twins] == others
