"""Correct where functions begin and end: use what the file says, and repair angr's graph elsewhere.

angr sometimes starts a new function at a block that is reached only from inside its own function,
and sometimes takes a function for a part of the only one that jumps to it. This module puts
functions together again from the blocks and edges of an analysis. It does not use symbols.
"""

import dataclasses

import numpy as np

from binary.analysis import CALL, PART, Analysis

ALIGNMENT = 16  # of functions in code that is optimised for speed


def mend_boundaries(analysis: Analysis, names: dict[int, str] | None = None) -> Analysis:
    """Return the analysis with corrected functions (``function``, ``function_address``, names).

    ``names`` are the names of code by address, for functions that angr did not find.

    A function begins wherever the file says so, and a range in the file is one function. The other
    code is cut into stretches where angr begins a function. A stretch belongs to the function that
    falls or branches into it, unless it is called or looks like the target of a tail call: a jump
    to its aligned beginning. In unaligned code that makes tail calls, any jump to a stretch counts.
    """
    architecture = analysis.architecture
    n, imports = analysis.code_blocks, len(analysis.import_name)
    address = analysis.address[:n].astype(np.int64)
    angr = analysis.function[:n]
    old = analysis.function_address[: analysis.code_functions].astype(np.int64)
    known_range = _ranges(analysis)
    # Blocks are sorted by address. angr's function may begin with padding, which is not a block.
    first = np.searchsorted(address, old)
    first = first[first < n]
    beginning = np.zeros(n, np.int64)
    beginning[first[known_range[first] < 0]] = 1
    beginning[0] = 1
    beginning[1:][known_range[1:] != known_range[:-1]] = 1
    is_start = analysis.start_source != PART
    certain = np.isin(address, analysis.start_address[is_start].astype(np.int64))
    # Code that only data points to is a function, for example an entry of a table of methods.
    source, target = analysis.edges.T
    pointed = np.zeros(n, bool)
    pointed[analysis.pointer_block] = True
    pointed[target[target < n]] = False
    pointed &= (known_range < 0) & (address % ALIGNMENT == 0)
    certain |= pointed | (_tail_called(analysis) & (known_range < 0))
    beginning[certain] = 1
    keys = np.stack([np.cumsum(beginning), np.where(known_range < 0, angr, -1)], 1)
    _, head, stretch = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    stretch = stretch.ravel()
    is_head = np.zeros(n, bool)
    is_head[head] = True

    inside = (source < n) & (target < n)
    called = np.zeros(n, bool)
    called[analysis.taken_block] = True
    called[target[inside & (analysis.kind == CALL)]] = True
    called &= known_range < 0  # calls do not split a range of the file
    called |= certain
    parent = np.arange(len(head))
    has_call = called[head]
    entered = np.zeros(len(head), bool)  # from another stretch of the same function

    def root(s: int) -> int:
        while parent[s] != s:
            s = parent[s]
        return s

    flow = np.flatnonzero(inside & (analysis.kind != CALL))
    # If functions are not aligned, the compiler made either no tail calls or some to any address.
    unaligned = 2 * np.sum(address[called] % ALIGNMENT == 0) < np.sum(called)
    anywhere = unaligned and any(
        architecture.jump.match(_branching_line(analysis, a))
        for a, b in analysis.edges[flow].tolist()
        if called[b] and angr[a] != angr[b]
    )
    # Near jumps first, because far ones are more often angr's mistakes.
    away = np.abs(keys[source[flow], 0] - keys[target[flow], 0])
    for a, b in analysis.edges[flow[np.argsort(away, kind="stable")]].tolist():
        s, t = stretch[a], stretch[b]
        if s == t or called[b]:
            continue
        if is_head[b] and known_range[b] < 0:
            last = _branching_line(analysis, a)
            # A call at the end of a function may never return: the next function is another one.
            aligned = address[b] % ALIGNMENT == 0 or anywhere
            if (aligned and architecture.jump.match(last)) or architecture.call.match(last):
                continue
        entered[t] |= is_head[b]
        s, t = root(s), root(t)
        if s != t and not (has_call[s] and has_call[t]):
            parent[t] = s
            has_call[s] |= has_call[t]

    roots = np.array([root(s) for s in range(len(head))])
    order = np.lexsort((address[head], entered, ~called[head], roots))
    best = order[np.unique(roots[order], return_index=True)[1]]  # where each function begins
    entry = np.sort(address[head[best]])
    where = np.empty(len(head), np.int64)
    where[roots[best]] = address[head[best]]
    function = np.searchsorted(entry, where[roots[stretch]])
    known = (names or {}) | dict(zip(old.tolist(), analysis.function_name, strict=False))
    return dataclasses.replace(
        analysis,
        function=np.append(function, np.arange(len(entry), len(entry) + imports)).astype(np.int32),
        function_address=np.append(entry, np.zeros(imports, np.int64)).astype(np.uint64),
        function_name=[known.get(a, f"sub_{a:x}") for a in entry.tolist()]
        + analysis.function_name[len(old) :],
    )


def _ranges(analysis: Analysis) -> np.ndarray:
    """Return which of the file's ranges each code block is in, or -1: int64 (n,)."""
    address = analysis.address[: analysis.code_blocks]
    has_end = analysis.start_end > 0
    if not has_end.any():
        return np.full(len(address), -1)
    begin, end = analysis.start_address[has_end], analysis.start_end[has_end]
    found = np.searchsorted(begin, address, "right") - 1
    return np.where((found >= 0) & (address < end[found]), found, -1)


def _tail_called(analysis: Analysis) -> np.ndarray:
    """Return what is only jumped to right after the return address is restored, bool (n,)."""
    architecture, n = analysis.architecture, analysis.code_blocks
    restore = architecture.restore
    if restore is None:
        return np.zeros(n, bool)
    gave_back = np.zeros(n, bool)
    for block, text in enumerate(analysis.instructions[:n]):
        lines = text.decode("ascii", "replace").rsplit("\n", 2)[-2:]
        gave_back[block] = (
            len(lines) == 2
            and restore.match(lines[0]) is not None
            and architecture.jump.match(lines[1]) is not None
        )
    source, target = analysis.edges[analysis.kind != CALL].T
    inside = (source < n) & (target < n)
    source, target = source[inside], target[inside]
    found = np.zeros(n, bool)
    found[target[gave_back[source]]] = True
    found[target[~gave_back[source]]] = False
    return found


def _branching_line(analysis: Analysis, block: int) -> str:
    lines = analysis.instructions[block].decode("ascii", "replace").split("\n")
    return analysis.architecture.branching(lines)
