"""Candidates are found and measured the same in small and in large binaries; certain pairs."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse

from matching import candidates
from matching.anchors import pairs_by_texts


def random_rows(seed: int, n: int, words: int = 60) -> scipy.sparse.csr_matrix:
    random = np.random.default_rng(seed)
    dense = random.integers(1, 4, (n, words)) * (random.random((n, words)) < 0.1)
    return scipy.sparse.csr_matrix(dense.astype(np.float32))


@pytest.mark.parametrize("cost", [0, float("inf")])  # by pairs, and all products of some rows
def test_products_are_those_of_the_dense_rows(monkeypatch, cost):
    monkeypatch.setattr(candidates, "PAIR_COST", cost)
    monkeypatch.setattr(candidates, "PAIRS", 1000)
    a, b = random_rows(0, 700), random_rows(1, 300)
    rows, columns = np.divmod(np.sort(np.random.default_rng(2).choice(700 * 300, 2500)), 300)
    expected = (a.toarray() @ b.toarray().T)[rows, columns]
    assert np.array_equal(candidates._products(a, b, rows, columns), expected)


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_nearest_is_a_plain_sort_of_all_products(k):
    a, b = random_rows(3, 300), random_rows(4, 90)
    products = a.toarray() @ b.toarray().T
    found = set(zip(*(side.tolist() for side in candidates._nearest(a, b, k)), strict=True))
    expected = set()
    for matrix, swap in ((products, False), (products.T, True)):
        for i, row in enumerate(matrix):
            best = np.argsort(-row, kind="stable")[:k]
            expected |= {(j, i) if swap else (i, j) for j in best[row[best] > 0].tolist()}
    assert found == expected


def with_texts(*texts: tuple[int, str], calls: tuple[tuple[int, int], ...] = ()) -> SimpleNamespace:
    """A binary of six functions of a block each: (function, text that it uses)."""
    blocks, strings = zip(*texts, strict=True)
    analysis = SimpleNamespace(
        function=np.arange(6), string_block=np.array(blocks), string=list(strings)
    )
    called = np.zeros((6, 6), np.float32)
    called[tuple(np.array(calls, int).reshape(-1, 2).T)] = 1
    return SimpleNamespace(analysis=analysis, calls=scipy.sparse.csr_matrix(called))


def test_texts_of_inlined_code_determine_nothing():
    """The old build inlined handle_commands; most of the texts of arg_parse are from there."""
    arg_parse, caller, handle_commands = 0, 1, 2
    inside, own = ["--help", "--version", "--dump"], ["argparse.c"]
    old = with_texts(*((arg_parse, text) for text in inside + own))
    texts = [(handle_commands, text) for text in inside] + [(caller, text) for text in own]
    none = np.zeros((0, 2), np.int64)
    apart, whole = with_texts(*texts), with_texts(*texts, calls=((caller, handle_commands),))
    assert pairs_by_texts((old, apart), none).tolist() == [[arg_parse, handle_commands]]
    assert pairs_by_texts((old, whole), none).tolist() == []
    assert pairs_by_texts((whole, old), none).tolist() == []
    each_other = (caller, handle_commands), (handle_commands, caller)  # as copy_internal, copy_dir
    recursive = with_texts(*texts, calls=each_other)
    assert pairs_by_texts((old, recursive), none).tolist() == [[arg_parse, handle_commands]]


def test_texts_that_agree_determine_a_pair():
    old = with_texts(
        *((0, "cannot open"), (0, "cannot close")),  # both in function 3 of the other
        *((1, "usage: ninja"), (1, "shared"), (2, "shared")),  # one text only
        *((3, "depfile"), (3, "restat"), (3, "rspfile"), (3, "dyndep")),  # they disagree
        *((4, "a"), (4, "b"), (4, "c")),  # too short
    )
    new = with_texts(
        *((3, "cannot open"), (3, "cannot close"), (1, "usage: ninja"), (4, "shared")),
        *((0, "depfile"), (0, "restat"), (2, "rspfile"), (2, "dyndep")),
        *((4, "a"), (4, "b"), (4, "c")),
    )
    none = np.zeros((0, 2), np.int64)
    assert pairs_by_texts((old, new), none).tolist() == [[0, 3]]
    known = np.array([[2, 3]])  # what the user says wins
    assert pairs_by_texts((old, new), known).tolist() == [[2, 3]]
