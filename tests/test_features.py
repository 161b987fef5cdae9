"""features/: words of functions and blocks, their weights, and normalised code."""

import itertools
from collections import Counter

import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfTransformer

from binary.architectures import ARCHITECTURES
from binary.operands import IN_MEMORY
from features.extract import _read_form, _words_of_lines, split_forms
from features.normalised import normal_line
from features.tfidf import factorised, hashed, weigh

bags = st.lists(st.dictionaries(st.integers(0, 12), st.integers(1, 5)), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(bags, bags)
def test_weights_are_scikit_learns(one, other):
    first, second = (
        hashed(Counter(b).elements() for b in one),
        hashed(Counter(b).elements() for b in other),
    )
    a, b = weigh(first, second)
    expected = TfidfTransformer(sublinear_tf=True).fit_transform(
        scipy.sparse.vstack([first, second])
    )
    assert abs(scipy.sparse.vstack([a, b]) - expected).max() < 1e-5


def test_the_words_of_a_block_are_those_of_its_instructions(codes):
    code = codes["O2"]
    for block in range(0, code.analysis.code_blocks, 7):
        lines = code.analysis.instructions[block].decode().split("\n")
        mnemonics = [line.partition(" ")[0] for line in lines]
        assert code.block_words["token"][block].sum() == 2 * len(lines)
        for kind, words in (
            ("token", mnemonics),
            ("gram", [*itertools.pairwise(mnemonics)]),
        ):
            expected = hashed([words])
            part = code.block_words[kind][block].multiply(expected > 0)
            # Another word may have the same hash.
            assert (part - expected).min() >= 0
            assert part.sum() - expected.sum() <= 1


@given(st.lists(st.binary(max_size=2)))
def test_values_are_numbered_as_they_first_occur(values):
    number, different = factorised(iter(values))
    assert [different[i] for i in number] == values
    assert [values.index(value) for value in different] == sorted(map(values.index, set(values)))


def test_sizes_are_words_that_larger_functions_have_too(codes):
    """A function of n blocks has the words "at least 2 ** (step / 2)" for n + 1; others alike."""
    code = codes["O2"]
    measures = {
        "blocks": code.sizes,
        "instructions": code.words["token"].toarray().sum(1),
        "names": (code.words["name"].toarray() > 0).sum(1),
        "calls": (code.calls.toarray() > 0).sum(1),
        "callers": (code.calls.toarray() > 0).sum(0),
    }
    bags = [
        [
            (what, step)
            for what in measures
            for step in range(99)
            if 2**step <= (each[what] + 1) ** 2
        ]
        for each in (
            {what: int(n[f]) for what, n in measures.items()} for f in range(len(code.blocks))
        )
    ]
    assert not (code.words["size"] != hashed(bags)).nnz


def test_words_keep_what_token_classes_drop():
    lines = {
        b"cmp dword ptr [rbx + 0x38], 0x2f": ("cmp", "cmp mn", ["+0x38"], [0x2F]),
        b"cmp dword ptr [rbx + 0x40], 0x2e": ("cmp", "cmp mn", ["+0x40"], [0x2E]),
        b"cmp dword ptr [rbx - 0x40], -2": ("cmp", "cmp mn", ["-0x40"], [0xFFFFFFFE]),
        b"mov eax, dword ptr [rbp - 0x14]": ("mov", "mov rm", [], []),
        b"lea rax, [rdi + rcx*4 + 8]": ("lea", "lea rm", ["+8"], []),
        b"mov edi, 0x400123": ("mov", "mov rn", [], []),  # perhaps an address
        b"mov edi, 0x3fffff": ("mov", "mov rn", [], [0x3FFFFF]),
        b"mov qword ptr [rax + 0x1000000], r8": ("mov", "mov mr", [], []),  # too far for a field
        b"jmp 0x401000": ("jmp", "jmp n", [], []),
        b"ret": ("ret", "ret ", [], []),
    }
    form, forms, literals = split_forms(list(lines))
    assert form[0] == form[1] != form[2]
    read = [_read_form(ARCHITECTURES["x86_64"], text) for text in forms]
    words = _words_of_lines(0x400000, read, form, literals)
    expected = {
        "token": hashed([mnemonic, token] for mnemonic, token, _, _ in lines.values()),
        "field": hashed(fields for _, _, fields, _ in lines.values()),
        "number": hashed(numbers for _, _, _, numbers in lines.values()),
    }
    for kind, matrix in expected.items():
        assert not (words[kind] != matrix).nnz, kind


def test_instructions_that_compute_nothing_are_ignored():
    for line in ("endbr64", "nop", "nop word ptr cs:[rax + rax]", "bti c"):
        assert normal_line(line) == ""
    assert normal_line("notrack jmp rax") == normal_line("jmp rax")
    marks = ((0, "@"),)
    assert normal_line("notrack jmp qword ptr [rip + 0x20]", marks) == "jmp qword ptr [rip@]"


def test_addresses_are_ignored():
    marks = ((0, "@"),)
    assert normal_line("jne 0x401234", marks) == "jne @"
    assert normal_line("lea rdi, [rip + 0x2f31]", marks) == "lea rdi, [rip@]"
    assert normal_line("ldr x1, [x0, #0x348]", marks) == "ldr x1, [x0@]"
    assert normal_line("ldr x1, [x0]", ((IN_MEMORY, "@"),)) == "ldr x1, [x0@]"
    assert normal_line("lw $v0, ($at)", ((IN_MEMORY, "@"),)) == "lw $v0, @($at)"
    assert normal_line("lw $v0, -0x7fe8($gp)", marks) == "lw $v0, @($gp)"
    assert normal_line("mov edi, 0x409010", marks) == "mov edi, @"
    assert normal_line("mov edi, 0x10") == "mov edi, 0x10"
    assert normal_line("mov dword ptr [rax*4 + 0x409010], 0x10", marks).endswith("[rax*4@], 0x10")


def test_flow_is_the_edges_inside_each_function(codes):
    code = codes["O2"]
    edges = code.analysis.edges.tolist()
    assert len(code.flow) == code.functions
    for blocks, found in zip(code.blocks, code.flow, strict=True):
        inside = set(blocks.tolist())
        assert found.tolist() == [i for i, edge in enumerate(edges) if inside.issuperset(edge)]
    assert sum(map(len, code.flow)) > code.functions
