"""Random walks on control-flow graphs: paths that an execution could take, and plain DeepWalk.

The path walk is written as loops, compiled by numba: it needs a call stack, and knows only after
each path which blocks are still uncovered. With whole arrays, NumPy would do more work and be
harder to read.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit

import utils
from binary.analysis import CALL, STEP_OVER
from files.arrays import Numbers, read_arrays
from pairs.folder import remedy
from pairs.merge import MergedGraph

RETURN = -1  # a choice: return to the site on the stack, or to any caller if the stack is empty
NOTHING = -2  # pushed by a step that is not a call
NOWHERE = -1  # pushed by a call without a return site: a return from there ends the path
WALKS_FILE = {"step": Numbers("i2 i4", "n"), "length": Numbers("i4", "paths", above=0)}
MAX_BACKWARD = 32  # maximum number of blocks before the block that a path has to cover


class WalkGraph(NamedTuple):
    """The possible steps from each of the B blocks of a merged graph, in CSR form.

    The rows of block b are ``start[b]:start[b + 1]``. Both blocks of a merged node have the same
    steps.

    Attributes
    ----------
    forward_start : int64 (B + 1,), forward : int32, forward_push : int32
        The next block, or RETURN; and the return site that the step pushes, or NOTHING.
    backward_start, backward_own : int64 (B + 1,), (B,)
        ``backward_start[b]:backward_own[b]`` are the rows of b itself, without its partner's.
    backward, backward_into, backward_push : int32
        The previous block; the block of this node that it leads to; what that step pushes.
    caller_start : int64 (B + 1,), caller : int32
        Return sites of all calls of the function; only blocks that return have rows.
    """

    forward_start: np.ndarray
    forward: np.ndarray
    forward_push: np.ndarray
    backward_start: np.ndarray
    backward_own: np.ndarray
    backward: np.ndarray
    backward_into: np.ndarray
    backward_push: np.ndarray
    caller_start: np.ndarray
    caller: np.ndarray


def walk_graph(
    edges: np.ndarray,
    kind: np.ndarray,
    merged: np.ndarray,
    function: np.ndarray,
    returns: np.ndarray,
) -> WalkGraph:
    """Find the possible steps from every block: forwards, backwards, and returns to callers.

    Parameters
    ----------
    edges : int32 (m, 2), kind : uint8 (m,), merged : int32 (k, 2)
        As in `MergedGraph`: source and target; JUMP, CALL or STEP_OVER; pairs that are one node.
    function : int32 (B,), returns : bool (B,)
        Each block's function; whether the block returns to that function's caller.
    """
    blocks = len(function)
    source, target = edges[:, 0].astype(np.int64), edges[:, 1].astype(np.int64)
    partner = _partners(merged, blocks)
    return_site = np.full(blocks, NOWHERE)
    return_site[source[kind == STEP_OVER]] = target[kind == STEP_OVER]
    push = np.where(kind == CALL, return_site[source], NOTHING)

    # Forwards: successors that never return (abort, exit, what leads only there) are dropped if
    # there are others.
    living = _can_return(source, target, kind, returns)
    at, row = _offered_by(source, partner)
    leaving, _ = _offered_by(np.flatnonzero(returns), partner)
    at = np.concatenate([at, leaving])
    to = np.concatenate([target[row], np.full(len(leaving), RETURN)])
    pushed = np.concatenate([push[row], np.full(len(leaving), NOTHING)])
    good = np.concatenate([living[target[row]], np.ones(len(leaving), bool)])
    has_good = np.zeros(blocks, bool)
    has_good[at[good]] = True
    # A merged node offers only one return, even if both of its blocks return.
    doubled = np.concatenate([np.zeros(len(row), bool), _repeated(leaving)])
    keep = (good | ~has_good[at]) & ~doubled
    forward_start, order = _csr(at[keep], blocks)
    forward, forward_push = to[keep][order], pushed[keep][order]

    # Backwards; the stable order keeps a block's own rows before its partner's.
    at, row = _offered_by(target, partner)
    backward_start, order = _csr(at, blocks)
    backward_own = backward_start[:-1] + np.bincount(target, minlength=blocks)
    row = row[order]

    # Callers are found by function, so that calls into the middle of a function count, too.
    calls = np.flatnonzero((kind == CALL) & (return_site[source] != NOWHERE))
    callee_start, order = _csr(function[target[calls]], int(function.max(initial=-1)) + 1)
    sites = return_site[source[calls]][order]
    at, leaving_row = _offered_by(np.flatnonzero(returns), partner)
    callee = function[np.flatnonzero(returns)[leaving_row]]
    count = np.diff(callee_start)[callee]
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    caller_site = sites[np.repeat(callee_start[callee], count) + within]
    caller_start, order = _csr(np.repeat(at, count), blocks)

    return WalkGraph(
        forward_start=forward_start,
        forward=forward.astype(np.int32),
        forward_push=forward_push.astype(np.int32),
        backward_start=backward_start,
        backward_own=backward_own,
        backward=source[row].astype(np.int32),
        backward_into=target[row].astype(np.int32),
        backward_push=push[row].astype(np.int32),
        caller_start=caller_start,
        caller=caller_site[order].astype(np.int32),
    )


def _partners(merged: np.ndarray, blocks: int) -> np.ndarray:
    """Return the other block of each block's node, or -1."""
    partner = np.full(blocks, -1)
    partner[merged[:, 0]], partner[merged[:, 1]] = merged[:, 1], merged[:, 0]
    return partner


def _offered_by(block: np.ndarray, partner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (at, row): row i of ``block`` is offered at block[i] and at its partner, if any."""
    row = np.arange(len(block))
    doubled = row[partner[block] >= 0]
    return np.concatenate([block, partner[block[doubled]]]), np.concatenate([row, doubled])


def _repeated(block: np.ndarray) -> np.ndarray:
    """Return for each entry whether the same block occurred before it."""
    again = np.ones(len(block), bool)
    again[np.unique(block, return_index=True)[1]] = False
    return again


def _csr(row: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (start, order) such that ``order[start[r]:start[r + 1]]`` are the entries of row r."""
    start = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(row, minlength=rows), out=start[1:])
    return start, np.argsort(row, kind="stable")


def _can_return(
    source: np.ndarray, target: np.ndarray, kind: np.ndarray, returns: np.ndarray
) -> np.ndarray:
    """Mark the blocks from which the function can return, stepping over calls."""
    inside = kind != CALL
    start, order = _csr(target[inside], len(returns))
    living = returns.copy()
    _spread(living, start, source[inside][order])
    return living


@njit(cache=True)
def _spread(living: np.ndarray, start: np.ndarray, before: np.ndarray) -> None:
    stack = [b for b in range(len(living)) if living[b]]
    while len(stack) > 0:
        block = stack.pop()
        for i in range(start[block], start[block + 1]):
            if not living[before[i]]:
                living[before[i]] = True
                stack.append(before[i])


def control_flow_walks(
    graph: WalkGraph, has_code: np.ndarray, num_walks: int, max_blocks: int, seed: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Walk until every block that holds code was visited at least ``num_walks`` times.

    Each path goes through a block that still lacks visits. From this block it grows backwards over
    predecessors, at most 32 blocks, and then forwards over successors. A call pushes its return
    site on a stack and a return pops it; if the stack is empty, a return continues at the return
    site of any caller of the function. All choices are uniform. A successor that can never return
    is taken only if there is no other. From a merged node the path may continue in either binary;
    the node appears in the path as the block of the binary that the path came from.

    Parameters
    ----------
    graph : WalkGraph
    has_code : bool (B,)
        The blocks to cover.
    num_walks, max_blocks : int
        Minimum number of visits to each block; maximum length of a path.
    seed : list of int
        For ``numpy.random.default_rng``; equal seeds give equal walks.

    Returns
    -------
    blocks : int32 (n,)
        The paths, concatenated.
    start : int64 (paths + 1,)
        Path p is ``blocks[start[p]:start[p + 1]]``.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.flatnonzero(has_code))
    return _cover(graph, order, len(has_code), num_walks, max_blocks, rng)


@njit(cache=True)
def _cover(
    graph: WalkGraph,
    order: np.ndarray,
    block_count: int,
    num_walks: int,
    max_blocks: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    visits = np.zeros(block_count, np.int32)
    paths = np.empty(64 * max_blocks, np.int32)
    start = [0]
    past = np.empty(max_blocks, np.int32)  # the backward part, last block first
    past_push = np.empty(max_blocks, np.int32)
    stack = np.empty(max_blocks, np.int32)  # cannot overflow: a step pushes at most one site
    for wanted in order:
        while visits[wanted] < num_walks:
            past[0] = wanted
            length = 1
            while length < min(MAX_BACKWARD + 1, max_blocks):
                block = past[length - 1]
                low, high = graph.backward_start[block], graph.backward_start[block + 1]
                if length == 1:  # the path must contain the wanted block itself, not its partner
                    high = graph.backward_own[block]
                if low == high:
                    break
                row = rng.integers(low, high)
                past[length - 1] = graph.backward_into[row]
                past_push[length - 1] = graph.backward_push[row]
                past[length] = graph.backward[row]
                length += 1

            if start[-1] + max_blocks > len(paths):
                paths = np.concatenate((paths, np.empty(len(paths), np.int32)))
            path = paths[start[-1] : start[-1] + max_blocks]
            size = depth = 0
            block = past[length - 1]
            while block >= 0:
                path[size] = block
                visits[block] += 1
                size += 1
                if size == max_blocks:
                    break
                if size < length:
                    block, push = past[length - 1 - size], past_push[length - 1 - size]
                else:
                    low, high = graph.forward_start[block], graph.forward_start[block + 1]
                    if low == high:
                        break
                    row = rng.integers(low, high)
                    push = graph.forward_push[row]
                    if graph.forward[row] != RETURN:
                        block = graph.forward[row]
                    elif depth > 0:
                        depth -= 1
                        block = stack[depth]
                    else:
                        low, high = graph.caller_start[block], graph.caller_start[block + 1]
                        block = graph.caller[rng.integers(low, high)] if low < high else NOWHERE
                if push != NOTHING:
                    stack[depth] = push
                    depth += 1
            start.append(start[-1] + size)
    return paths[: start[-1]].copy(), np.array(start)


def save_walks(path: str | os.PathLike[str], blocks: np.ndarray, start: np.ndarray) -> None:
    """Write walks as a compressed .npz, at most about 1 byte per visited block (4 in memory).

    Parameters
    ----------
    path : path-like
    blocks : int32 (n,), start : int64 (paths + 1,)
        As returned by :func:`control_flow_walks`. In the file, ``step`` is the difference of each
        block id to the previous one, which is often small or repeated and so compresses well, and
        ``length`` is the number of blocks of each path.
    """
    step = np.diff(blocks, prepend=blocks.dtype.type(0))
    small = len(step) == 0 or max(step.max(), -step.min()) < 2**15
    np.savez_compressed(
        path, step=step.astype(np.int16 if small else np.int32), length=np.diff(start).astype("i4")
    )


def load_walks(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read what :func:`save_walks` wrote -> blocks int32 (n,), start int64 (paths + 1,).

    Raises
    ------
    UserError
        The file is damaged.
    """
    folder = Path(path).parent
    arrays = read_arrays(path, WALKS_FILE, "file of walks", remedy(folder))
    step, length = arrays["step"], arrays["length"]
    if length.sum() != len(step):
        raise utils.UserError(
            f"the file of walks {path} is damaged ('length' does not divide {len(step)} blocks "
            f"into walks); {remedy(folder)}"
        )
    start = np.concatenate([[0], np.cumsum(length, dtype=np.int64)])
    return np.cumsum(step, dtype=np.int32), start


def control_flow(
    graph: MergedGraph, num_walks: int, most: int, seed: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Walk along paths that an execution could take, see :func:`control_flow_walks`."""
    choices = walk_graph(graph.edges, graph.kind, graph.merged, graph.function, graph.returns)
    return control_flow_walks(choices, graph.has_code, num_walks, most, seed)


def deepwalk(
    graph: MergedGraph, num_walks: int, most: int, seed: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Start ``num_walks`` uniform random walks at every node, in shuffled order, like DeepWalk.

    A walk ends after ``most`` blocks, or at a block without successors. From a merged node it may
    continue in either binary.

    References
    ----------
    Perozzi, Al-Rfou, Skiena: DeepWalk, KDD 2014, algorithms 1 and 2.
    """
    rng = np.random.default_rng(seed)
    n = len(graph.address)
    partner = _partners(graph.merged, n)
    at, row = _offered_by(graph.edges[:, 0], partner)
    start, order = _csr(at, n)
    target = np.append(graph.edges[row, 1][order], -1)
    walks = np.full((n * num_walks, most), -1, np.int32)
    walks[:, 0] = rng.permutation(np.repeat(np.arange(n), num_walks))
    for step in range(1, most):
        last = walks[:, step - 1]
        degree = np.where(last >= 0, start[last + 1] - start[last], 0)
        pick = (rng.random(len(last)) * degree).astype(np.int64)
        walks[:, step] = target[np.where(degree > 0, start[last] + pick, -1)]
    lengths = (walks >= 0).sum(1)
    return walks[walks >= 0], np.concatenate([[0], np.cumsum(lengths)])


# Each takes the merged graph, num_walks, the maximum length of a path, and the seed; it returns
# the paths like control_flow_walks. To add another kind of walk, add a line here.
WALKS = {"control_flow": control_flow, "deepwalk": deepwalk}
