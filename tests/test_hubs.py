"""If one function calls all others and is called by all, memory is linear in the functions."""

import numpy as np
import psutil
import pytest
import scipy.sparse
import speed_diff
from conftest import NO_DATA
from hypothesis import given
from hypothesis import strategies as st

from binary.analysis import CALL, JUMP, Analysis
from features.extract import HUB, _without_hubs, extract_features
from jobs.processes import limited_memory
from matching import blocks, evidence
from matching.changes import compare
from matching.functions import Matches
from matching.model import read_model

MANY = 20_000  # functions; a table of all pairs of them has 3 GiB


def memory(more):
    return limited_memory(psutil.Process().memory_info().rss / 2**30 + more, "the test")


def hub_program(n):
    """Function 0 has n + 1 blocks: each calls one other function, which calls function 0 back."""
    hub = np.arange(n)
    edges = np.concatenate(
        [
            np.stack([hub, n + 1 + hub], 1),
            np.stack([hub, hub + 1], 1),
            np.stack([n + 1 + hub, np.zeros(n, int)], 1),
        ]
    ).astype(np.int32)
    kind = np.repeat(np.array([CALL, JUMP, CALL], np.uint8), n)
    order = np.lexsort((edges[:, 1], edges[:, 0]))
    address = 0x401000 + 16 * np.arange(2 * n + 1, dtype=np.uint64)
    return Analysis(
        address=address,
        function=np.append(np.zeros(n + 1), np.arange(1, n + 1)).astype(np.int32),
        edges=edges[order],
        kind=kind[order],
        returns=np.ones(2 * n + 1, bool),
        function_address=np.append(address[:1], address[n + 1 :]),
        function_name=[f"f{i}" for i in range(n + 1)],
        import_name=[],
        string_block=(n + 1 + hub).astype(np.int32),
        string=[b"the words of f%d" % i for i in range(n)],
        **NO_DATA
        | {
            "first_instruction": np.arange(2 * n + 2),
            "instruction_form": np.zeros(2 * n + 1, np.int32),
            "form": ["call imme"],
        },
        instructions=[b"call 0x401000"] * (2 * n + 1),
    )


def test_features_of_a_hub_need_linear_memory():
    analysis = hub_program(MANY)
    with memory(1.0):
        features = extract_features(analysis)
    assert features.calls.nnz == 2 * MANY
    far = features.words["name far"]
    assert far[0].nnz > MANY / 2  # the hub itself still has the words of its callees
    assert far[1:].nnz < 10 * MANY


def test_words_of_a_hub_do_not_reach_its_callers():
    """Each of n functions is called by the hub and calls it, and the hub has n numbers."""
    n = 3 * HUB
    with memory(1.0):
        features = extract_features(speed_diff.hub_program(n, 1))
    numbers = features.words["number"]
    assert numbers[0].nnz > n / 2
    for group in ("number near", "number up", "name near", "name far", "name up"):
        assert features.words[group][1:].nnz < 20 * n, group
    assert features.words["number near"][0].nnz >= numbers[0].nnz
    few = extract_features(speed_diff.hub_program(HUB // 2, 1))  # no hub yet
    assert few.words["number up"][1].nnz == few.words["number"][0].nnz > HUB / 4


def test_inlined_functions_are_not_sought_in_a_hub(monkeypatch):
    """A function that only one binary has is not compared with functions of too many blocks."""
    compared = [0]

    def count(a, b, *others):
        compared[0] += len(a) * len(b)
        return a[:0], b[:0], np.zeros(0, np.float32)

    monkeypatch.setattr(blocks, "_match", count)
    codes = [extract_features(speed_diff.hub_program(400, seed)) for seed in (1, 2)]
    hubs = Matches(np.array([0]), np.array([0]), np.ones(1, np.float32))
    pairs = len(codes[0].blocks[0]) * len(codes[1].blocks[0])
    for most, expected in ((10**6, 5 * pairs), (300, pairs)):
        monkeypatch.setattr(blocks, "INLINED_AMONG", most)
        compared[0] = 0
        blocks.match_blocks(*codes, hubs)
        assert expected * 0.9 < compared[0] < expected * 1.1


@given(st.integers(1, 12), st.randoms(use_true_random=False))
def test_where_no_function_is_a_hub_nothing_changes(n, random):
    calls = np.array([[random.random() < 0.3 for _ in range(n)] for _ in range(n)], np.float32)
    near = scipy.sparse.csr_matrix(np.maximum(calls, np.eye(n, dtype=np.float32)))
    assert n <= HUB
    assert (_without_hubs(near) != near).nnz == 0


def test_evidence_through_a_hub_needs_linear_memory():
    """All call function 0: the full product has 400 million entries; one per function is needed."""
    ones = np.ones(MANY, np.float32)
    calls = scipy.sparse.csr_matrix((ones, (np.arange(MANY), np.zeros(MANY, int))), (MANY, MANY))
    share = np.linspace(0.1, 1, MANY, dtype=np.float32)
    pairs = scipy.sparse.diags(share, format="csr")
    a = np.arange(MANY)
    with memory(0.5):
        found = evidence._spread(calls, pairs, calls, a, a[::-1])
        assert np.allclose(found, share[0])
        called = calls.T.tocsr()
        found = evidence._spread(called, pairs, called, a, a)
    assert np.isclose(found[0], share.sum(), rtol=1e-4)
    assert not found[1:].any()


@pytest.mark.parametrize(("often", "entries"), [(10**9, 10**9), (10**9, 7), (2, 7), (0, 1)])
def test_evidence_is_the_product(monkeypatch, often, entries):
    monkeypatch.setattr(evidence, "OFTEN", often)
    monkeypatch.setattr(evidence, "PRODUCT", entries)
    rng = np.random.default_rng(0)
    for _ in range(30):
        f, g, n = rng.integers(1, 30, 3)
        x, y, pairs = (
            scipy.sparse.random(*shape, 0.3, "csr", np.float32, rng)
            for shape in ((f, f), (g, g), (f, g))
        )
        a, b = np.sort(rng.integers(f, size=n)), rng.integers(g, size=n)
        whole = (x @ pairs @ y.T).toarray()[a, b]
        found = evidence._spread(x, pairs, y, a, b)
        assert np.allclose(found, whole, atol=1e-5)
        if often == 10**9:  # to the last bit: only rows are taken apart
            assert np.array_equal(found, whole)
    assert not len(evidence._spread(x, pairs, y, a[:0], b[:0]))


def test_long_functions_are_matched_in_parts(monkeypatch):
    """All 100 blocks of a function find their partners in a copy with 10 more in front."""
    old, new = hub_program(100), hub_program(110)
    old.instructions = [b"add eax, 0x%x" % i for i in range(201)]
    new.instructions = [b"sub ebx, 0x%x" % i for i in range(10)] + [
        b"add eax, 0x%x" % i for i in range(211)
    ]
    old.string, new.string = [b""] * 100, [b""] * 110
    first, second = extract_features(old), extract_features(new)
    hubs = Matches(np.array([0]), np.array([0]), np.ones(1, np.float32))
    whole = blocks.match_blocks(first, second, hubs)
    monkeypatch.setattr(blocks, "CELLS", 1000)
    parts = blocks.match_blocks(first, second, hubs)
    for matches in (whole, parts):
        inside = matches.a <= 100
        assert (matches.b[inside] - matches.a[inside] == 10).sum() >= 95
    x = np.zeros(50, int)
    assert blocks._cut(x, x[:40]) == (25, 20)
    x = np.arange(50)
    assert blocks._cut(x, x[10:]) == (30, 20)


def test_programs_of_one_function_are_compared():
    """Functions before and behind one are evidence, but here there are none."""
    codes = [extract_features(speed_diff.hub_program(0, seed)) for seed in (1, 2)]
    assert [code.functions for code in codes] == [1, 1]
    [row] = compare(*codes, read_model()).functions
    assert row.sides == (0, 0)
    assert row.status == "identical"
