"""Where functions begin and end, mended where angr errs: for comparing binaries without symbols.

angr takes some blocks that only a branch of their own function reaches for functions, and code that
one function alone ends by jumping into for a part of it. Here functions are put together anew from
the blocks and edges of an analysis. No symbol is looked at.
"""

import dataclasses
import re

import numpy as np

from binary.analysis import CALL, Analysis

ALIGNMENT = 16  # of functions, where a compiler optimises for speed
PLAIN_JUMP = re.compile(rb"(bnd )?(jmp|b|b\.w) (#?0x[0-9a-f]+|\d+)$")
CALLS = re.compile(rb"((bnd|notrack) )*(call|bl|blx|blr)\b")


def mend_boundaries(analysis: Analysis) -> Analysis:
    """Return the analysis with other functions: ``function``, ``function_address``, their names.

    A stretch of code, from one of angr's functions' beginnings to the next, belongs to the function
    that falls or branches into it, unless it is called, or is jumped to as by a tail call: at its
    aligned beginning, or anywhere in unaligned code that jumps to what is called elsewhere.
    """
    n, names = analysis.code_blocks, len(analysis.import_name)
    address = analysis.address[:n].astype(np.int64)
    angr = analysis.function[:n]
    old = analysis.function_address[: analysis.code_functions].astype(np.int64)
    # Blocks are sorted by address. A function's beginning may be padding, which is no block.
    first = np.searchsorted(address, old)
    first = first[first < n]
    beginning = np.zeros(n, np.int64)
    beginning[first] = 1
    beginning[0] = 1
    keys = np.stack([np.cumsum(beginning), angr], 1)
    _, head, stretch = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    stretch = stretch.ravel()

    source, target = analysis.edges.T
    inside = (source < n) & (target < n)
    called = np.zeros(n, bool)
    called[analysis.taken_block] = True
    called[target[inside & (analysis.kind == CALL)]] = True
    parent = np.arange(len(head))
    has_call = called[head]
    entered = np.zeros(len(head), bool)  # from another stretch of the same function

    def root(s: int) -> int:
        while parent[s] != s:
            s = parent[s]
        return s

    is_head = np.zeros(n, bool)
    is_head[head] = True
    flow = np.flatnonzero(inside & (analysis.kind != CALL))
    # Compilers that do not align functions either make no tail calls, or make them anywhere.
    unaligned = 2 * np.sum(address[called] % ALIGNMENT == 0) < np.sum(called)
    anywhere = unaligned and any(
        PLAIN_JUMP.match(analysis.instructions[a].rsplit(b"\n", 1)[-1])
        for a, b in analysis.edges[flow].tolist()
        if called[b] and angr[a] != angr[b]
    )
    # What lies near first: far jumps are angr's mistakes more often.
    away = np.abs(keys[source[flow], 0] - keys[target[flow], 0])
    for a, b in analysis.edges[flow[np.argsort(away, kind="stable")]].tolist():
        s, t = stretch[a], stretch[b]
        if s == t or called[b]:
            continue
        if is_head[b]:
            last = analysis.instructions[a].rsplit(b"\n", 1)[-1]
            # What is called just before the next function may never return.
            tail_call = (address[b] % ALIGNMENT == 0 or anywhere) and PLAIN_JUMP.match(last)
            if tail_call or CALLS.match(last):
                continue
        entered[t] |= is_head[b]
        s, t = root(s), root(t)
        if s != t and not (has_call[s] and has_call[t]):
            parent[t] = s
            has_call[s] |= has_call[t]

    roots = np.array([root(s) for s in range(len(head))])
    order = np.lexsort((address[head], entered, ~called[head], roots))
    best = order[np.unique(roots[order], return_index=True)[1]]  # the stretch each begins with
    entry = np.sort(address[head[best]])
    where = np.empty(len(head), np.int64)
    where[roots[best]] = address[head[best]]
    function = np.searchsorted(entry, where[roots[stretch]])
    known = dict(zip(old.tolist(), analysis.function_name, strict=False))
    return dataclasses.replace(
        analysis,
        function=np.append(function, np.arange(len(entry), len(entry) + names)).astype(np.int32),
        function_address=np.append(entry, np.zeros(names, np.int64)).astype(np.uint64),
        function_name=[known.get(a, f"sub_{a:x}") for a in entry.tolist()]
        + analysis.function_name[len(old) :],
    )
