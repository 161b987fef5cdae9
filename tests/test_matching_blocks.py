"""matching/blocks.py: blocks of matched functions, and of inlined ones."""

import networkx
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from matching.blocks import _depths, _match, _within, match_blocks
from matching.functions import Matches, match_functions


def test_blocks_match_inside_matched_functions_or_where_they_were_inlined(codes, model):
    first, second = codes["O0"], codes["O2"]
    functions = match_functions(first, second, model)
    blocks = match_blocks(first, second, functions)
    partner = dict(zip(functions.a.tolist(), functions.b.tolist(), strict=True))
    back = {b: a for a, b in partner.items()}
    for a, b in zip(blocks.a, blocks.b, strict=True):
        f, g = int(first.analysis.function[a]), int(second.analysis.function[b])
        assert partner.get(f) == g or f not in partner or g not in back


def test_identical_blocks_match_where_no_function_does(codes):
    """Each at most once, and only blocks that are the only ones of their kind."""
    first, second = codes["O1"], codes["O1-stripped"]
    nothing = Matches(*(np.empty(0, kind) for kind in (np.int64, np.int64, np.float32)))
    blocks = match_blocks(first, second, nothing)
    forms = first.forms, second.forms
    assert len(blocks.a) > 10
    for a, b in zip(blocks.a, blocks.b, strict=True):
        assert forms[0][a] == forms[1][b]
        assert forms[0].count(forms[0][a]) == forms[1].count(forms[1][b]) == 1


@pytest.mark.parametrize("what", ["code", "surroundings"])
def test_blocks_with_equal_words_match_by(what):
    """Of the second binary, blocks 0 and 1 have changed places; block 2 branches to one of them."""
    words = [scipy.sparse.csr_matrix(np.array([[1.0, 0], [1, 0], [0, 1]]))] * 2
    forms = [np.array([0, 1, 2]), np.array([1, 0, 2])] if what == "code" else [np.zeros(3)] * 2
    flow = [np.zeros((3, 3)), np.zeros((3, 3))]
    if what == "surroundings":
        flow[0][2, 0] = flow[1][2, 1] = 1
    edges = [scipy.sparse.csr_matrix(m) for m in flow]
    blocks = np.arange(3)
    a, b, score = _match(blocks, blocks, words, forms, edges, 0.2)
    assert dict(zip(a.tolist(), b.tolist(), strict=True)) == {0: 1, 1: 0, 2: 2}
    assert np.all((score > 0.9) & (score <= 1))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.randoms(use_true_random=False))
def test_edges_within_some_blocks(n, random):
    dense = np.array([[random.choice((0, 0, 1, 2)) for _ in range(n)] for _ in range(n)])
    blocks = np.array(random.sample(range(n), random.randint(1, n)))
    found = _within(scipy.sparse.csr_matrix(dense), blocks)
    assert np.array_equal(found.toarray(), dense[blocks][:, blocks])


@given(st.integers(1, 7), st.randoms(use_true_random=False))
def test_depths_are_shortest_paths(n, random):
    edges = [(i, j) for i in range(n) for j in range(n) if random.random() < 0.25]
    graph = networkx.DiGraph(edges)
    graph.add_nodes_from(range(n))
    last = [i for i in range(n) if graph.out_degree(i) == 0] or [n - 1]
    behind = scipy.sparse.csr_matrix(networkx.to_numpy_array(graph, range(n)))
    depths = _depths(behind, behind.T.tocsr())
    for found, way, start in zip(depths, (graph, graph.reverse()), ([0], last), strict=True):
        distance = networkx.multi_source_dijkstra_path_length(way, start)
        furthest = max(distance.values())
        expected = [distance.get(i, furthest) / max(furthest, 1) for i in range(n)]
        assert found.tolist() == expected
