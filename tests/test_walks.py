"""pairs/walks.py: walks follow the rules, which are written again in slow, plain Python."""

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from binary.analysis import CALL, JUMP, STEP_OVER
from pairs.merge import merge
from pairs.walks import (
    MAX_BACKWARD,
    WALKS,
    control_flow_walks,
    load_walks,
    save_walks,
    walk_graph,
)
from utils import UserError

# --------------------------------------------------- the rules of a walk, in slow and plain Python


class Rules:
    """The rules of the path walk, written directly on the arrays of a merged graph."""

    def __init__(self, edges, kind, merged, function, returns):
        self.edges = [(*e, k) for e, k in zip(edges.tolist(), kind.tolist(), strict=True)]
        self.twin = {a: b for pair in merged.tolist() for a, b in (pair, pair[::-1])}
        self.function, self.returns = function.tolist(), returns.tolist()
        self.leaving: dict[int, list] = {}
        for source, target, how in self.edges:
            self.leaving.setdefault(source, []).append((target, how))
        self.return_site = {u: v for u, v, how in self.edges if how == STEP_OVER}
        inside = networkx.DiGraph()
        inside.add_nodes_from(range(len(function)))
        inside.add_edges_from((v, u) for u, v, how in self.edges if how != CALL)
        self.living = set()
        for block, does in enumerate(self.returns):
            if does:
                self.living |= {block} | networkx.descendants(inside, block)

    def node(self, block):
        return [block] + ([self.twin[block]] if block in self.twin else [])

    def callers(self, block):
        """Return sites of the callers of the function of ``block``."""
        return {
            self.return_site[u]
            for u, v, how in self.edges
            if how == CALL and self.function[v] == self.function[block] and u in self.return_site
        }

    def steps(self, block, stack):
        """Return all (next block, stack) after one step; a stack is a tuple of return sites."""
        node = self.node(block)
        edges = [(m, t, how) for m in node for t, how in self.leaving.get(m, [])]
        returning = [m for m in node if self.returns[m]]
        good = [e for e in edges if e[1] in self.living]
        if not good and not returning:
            good = edges
        for member, target, how in good:
            pushed = (self.return_site.get(member, -1),) if how == CALL else ()
            yield target, stack + pushed
        if returning and stack:
            if stack[-1] >= 0:
                yield stack[-1], stack[:-1]
        elif returning:
            for member in returning:
                for site in self.callers(member):
                    yield site, stack

    def backward_steps(self, block, stack):
        """Return all steps backwards along any edge, also from code that never returns."""
        for member in self.node(block):
            for target, how in self.leaving.get(member, []):
                yield target, stack + ((self.return_site.get(member, -1),) if how == CALL else ())

    def allows(self, path):
        """Whether the path consists of a backward part of at most 32 steps and a forward part."""
        states = {(path[0], (), False)}  # block, stack, whether the forward part has begun
        for i, block in enumerate(path[1:]):
            following = set()
            for here, stack, forward in states:
                if not forward and i < MAX_BACKWARD:
                    following |= {(*s, False) for s in self.backward_steps(here, stack)}
                following |= {(*s, True) for s in self.steps(here, stack)}
            states = {s for s in following if s[0] == block}
            if not states:
                return False
        return True


def check(rules, walks, start, has_code, num_walks, max_blocks):
    paths = [walks[a:b].tolist() for a, b in pairwise(start)]
    assert sum(map(len, paths)) == len(walks)
    for path in paths:
        assert 1 <= len(path) <= max_blocks
        assert rules.allows(path), path
    visits = Counter(walks.tolist())
    for block in np.flatnonzero(has_code).tolist():
        assert visits[block] >= num_walks
    return paths


# --------------------------------------------------------------------------------- made-up graphs


@st.composite
def graphs(draw):
    """Draw two small binaries with functions, calls, returns, imports and merged nodes."""
    edges, kind, function, returns, has_code = [], [], [], [], []
    sizes = []
    for _ in range(2):
        base = len(function)
        count = draw(st.integers(1, 3))
        entries = []
        for f in range(count):
            entries.append(len(function))
            n = draw(st.integers(1, 5))
            function += [len(sizes) * 10 + f] * n
        imports = draw(st.integers(0, 2))
        function += [len(sizes) * 10 + 5 + i for i in range(imports)]
        blocks = len(function) - base
        callees = entries + list(range(len(function) - imports, len(function)))
        for block in range(base, len(function)):
            if block >= len(function) - imports:
                returns.append(draw(st.booleans()))
                has_code.append(False)
                continue
            has_code.append(True)
            own = [b for b in range(base, len(function)) if function[b] == function[block]]
            ending = draw(st.sampled_from(["return", "jump", "branch", "call", "call!", "trap"]))
            if ending == "jump":
                edges.append((block, draw(st.sampled_from(own + callees))))
                kind.append(JUMP)
            elif ending == "branch":
                for target in draw(st.lists(st.sampled_from(own), min_size=2, max_size=3)):
                    edges.append((block, target))
                    kind.append(JUMP)
            elif ending.startswith("call"):
                edges.append((block, draw(st.sampled_from(callees))))
                kind.append(CALL)
                if ending == "call":
                    edges.append((block, draw(st.sampled_from(own))))
                    kind.append(STEP_OVER)
            returns.append(ending == "return")
        sizes.append(blocks)
    left = draw(st.permutations(range(sizes[0])))
    right = draw(st.permutations(range(sizes[0], sum(sizes))))
    k = draw(st.integers(0, min(sizes)))
    unique = sorted(set(zip(edges, kind, strict=True)))
    return {
        "edges": np.array([e for e, _ in unique], np.int32).reshape(-1, 2),
        "kind": np.array([k for _, k in unique], np.uint8),
        "merged": np.array(list(zip(left[:k], right[:k], strict=True)), np.int32).reshape(-1, 2),
        "function": np.array(function, np.int32),
        "returns": np.array(returns, bool),
    }, np.array(has_code, bool)


@given(graphs(), st.integers(1, 3), st.integers(1, 50), st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_walks_follow_the_rules_and_cover(graph_and_code, num_walks, max_blocks, seed):
    graph, has_code = graph_and_code
    prepared = walk_graph(**graph)
    walks, start = control_flow_walks(prepared, has_code, num_walks, max_blocks, [seed])
    check(Rules(**graph), walks, start, has_code, num_walks, max_blocks)
    again, _ = control_flow_walks(prepared, has_code, num_walks, max_blocks, [seed])
    assert np.array_equal(walks, again)


def simple(edges, kind, blocks, returns, function=None, merged=()):
    return {
        "edges": np.array(edges, np.int32).reshape(-1, 2),
        "kind": np.array(kind, np.uint8),
        "merged": np.array(merged, np.int32).reshape(-1, 2),
        "function": np.array(function or [0] * blocks, np.int32),
        "returns": np.array([b in returns for b in range(blocks)]),
    }


def paths_of(graph, has_code, num_walks=1, max_blocks=64, seed=0):
    prepared = walk_graph(**graph)
    walks, start = control_flow_walks(
        prepared, np.array(has_code, bool), num_walks, max_blocks, [seed]
    )
    return [walks[a:b].tolist() for a, b in pairwise(start)]


def test_the_checker_refuses_what_the_rules_forbid():
    # f: 0 calls g (2), goes on at 1, which returns; g: 2 returns; h: 3 calls g, goes on at 4
    graph = simple(
        [(0, 2), (0, 1), (3, 2), (3, 4)],
        [CALL, STEP_OVER, CALL, STEP_OVER],
        5,
        {1, 2, 4},
        [0, 0, 1, 2, 2],
    )
    rules = Rules(**graph)
    assert rules.allows([0, 2, 1])  # a matched return
    assert not rules.allows([0, 2, 4])  # back to a caller that did not call
    assert rules.allows([2, 4])  # with an empty stack, to any caller
    assert not rules.allows([0, 3])  # no edge


def test_returns_match_their_calls():
    graph = simple(
        [(0, 2), (0, 1), (3, 2), (3, 4)],
        [CALL, STEP_OVER, CALL, STEP_OVER],
        5,
        {1, 2, 4},
        [0, 0, 1, 2, 2],
    )
    for path in paths_of(graph, [1] * 5, num_walks=50):
        text = "".join(map(str, path))
        assert "024" not in text
        assert "321" not in text


def test_what_never_returns_is_taken_only_where_there_is_no_other():
    # 0 branches to 1, which returns, and to 2, which calls the import 3 that never returns
    graph = simple([(0, 1), (0, 2), (2, 3)], [JUMP, JUMP, CALL], 4, {1}, [0, 0, 0, 1])
    paths = paths_of(graph, [1, 0, 0, 0], num_walks=200)
    assert {tuple(p) for p in paths} == {(0, 1)}
    assert [0, 2, 3] in paths_of(graph, [0, 0, 1, 0])


def test_choices_are_uniform():
    graph = simple([(0, t) for t in (1, 2, 3, 4)], [JUMP] * 4, 5, {1, 2, 3, 4})
    paths = paths_of(graph, [1, 0, 0, 0, 0], num_walks=4000)
    counts = Counter(path[1] for path in paths)
    expected = len(paths) / 4
    chi_square = sum((counts[t] - expected) ** 2 / expected for t in (1, 2, 3, 4))
    assert chi_square < 16.3  # p = 0.001 with 3 degrees of freedom; the seed is fixed


def test_backward_part_is_at_most_32_blocks():
    chain = [(i, i + 1) for i in range(99)]
    graph = simple(chain, [JUMP] * 99, 100, {99})
    wanted = [b == 60 for b in range(100)]
    (path,) = paths_of(graph, wanted, max_blocks=64)
    assert path == list(range(28, 92))
    (path,) = paths_of(graph, wanted, max_blocks=20)
    assert path[-1] == 60
    assert len(path) == 20


def test_paths_cross_at_merged_nodes_and_carry_the_binary_they_came_from():
    # first binary 0 -> 1 -> 2, second 3 -> 4 -> 5; 1 and 4 are one node
    graph = simple(
        [(0, 1), (1, 2), (3, 4), (4, 5)], [JUMP] * 4, 6, {2, 5}, [0] * 3 + [1] * 3, [(1, 4)]
    )
    found = {tuple(p) for p in paths_of(graph, [1, 0, 0, 1, 0, 0], num_walks=100)}
    assert found == {(0, 1, 2), (0, 1, 5), (3, 4, 5), (3, 4, 2)}


def test_real_builds_follow_the_rules(analyses):
    for first, second in [("O0", "O2"), ("O1", "O3-noplt")]:
        merged = merge(analyses[first], analyses[second])
        graph = {
            name: getattr(merged, name)
            for name in ("edges", "kind", "merged", "function", "returns")
        }
        walks, start = control_flow_walks(walk_graph(**graph), merged.has_code, 2, 64, [0])
        paths = check(Rules(**graph), walks, start, merged.has_code, 2, 64)
        assert any(len({int(merged.binary[b]) for b in path}) == 2 for path in paths)


def test_hardly_more_paths_than_it_takes(analyses):
    merged = merge(analyses["O0"], analyses["O2"])
    graph = walk_graph(merged.edges, merged.kind, merged.merged, merged.function, merged.returns)
    walks, start = control_flow_walks(graph, merged.has_code, 2, 64, [0])
    # every path was necessary: when it began, one of its blocks lacked visits
    visits = Counter()
    for a, b in pairwise(start):
        path = walks[a:b].tolist()
        assert any(merged.has_code[block] and visits[block] < 2 for block in path)
        visits.update(path)


# -------------------------------------------------------------------------------- plain DeepWalk


@pytest.mark.parametrize("seed", range(3))
def test_deepwalk_takes_random_edges_from_every_block(seed):
    reference = networkx.gnp_random_graph(30, 0.08, seed=seed, directed=True)
    edges = np.array(reference.edges, np.int32)
    merged = np.array([(3, 20), (4, 21)], np.int32)
    node = dict(merged.tolist()) | dict(merged[:, ::-1].tolist())
    graph = SimpleNamespace(address=np.arange(30), edges=edges, merged=merged)
    blocks, start = WALKS["deepwalk"](graph, 20, 8, [seed])
    assert blocks.dtype == np.int32
    walks = [blocks[a:b].tolist() for a, b in pairwise(start)]
    assert Counter(walk[0] for walk in walks) == dict.fromkeys(range(30), 20)
    assert max(map(len, walks)) == 8
    out = {b: {t for m in {b, node.get(b, b)} for t in reference.successors(m)} for b in range(30)}
    for walk in walks:
        assert all(after in out[before] for before, after in pairwise(walk))
        assert len(walk) == 8 or not out[walk[-1]]
    taken = {step for walk in walks for step in pairwise(walk) if step[0] in (3, 4, 20, 21)}
    assert {(b, t) for b in node for t in out[b]} == taken  # all edges, of both binaries


# ------------------------------------------------------------------------------------- files


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5), max_size=5))
def test_walks_are_read_as_they_were_written(tmp_path_factory, paths):
    file = tmp_path_factory.mktemp("walks") / "walks.npz"
    blocks = np.array([block for path in paths for block in path], np.int32)
    start = np.cumsum([0] + [len(path) for path in paths])
    save_walks(file, blocks, start)
    read = load_walks(file)
    assert read[0].dtype == np.int32
    assert read[1].dtype == np.int64
    assert read[0].tolist() == blocks.tolist()
    assert read[1].tolist() == start.tolist()


def with_type(values):
    values = np.array(values)
    return values.astype(np.int32) if values.dtype.kind == "i" else values


@pytest.mark.parametrize(
    ("step", "length"),
    [
        ([1, 2, 3], [1, 1]),
        ([1, 2, 3], [4, -1]),
        ([1, 2, 3], [0, 3]),
        ([1.0, 2.0], [2]),
        ([[1, 2]], [2]),
        ([1, 2], 2),
    ],
)
def test_walks_that_do_not_fit_are_refused(tmp_path, step, length):
    np.savez(tmp_path / "walks.npz", step=with_type(step), length=with_type(length))
    with pytest.raises(UserError, match=r"walks\.npz is damaged \('(step|length)' "):
        load_walks(tmp_path / "walks.npz")
