"""Merge two control-flow graphs into one, at the imports and strings that they share."""

import dataclasses
from collections import Counter

import numpy as np

from binary.analysis import Analysis

MIN_JOINING_STRING = 6  # shorter literals are too common to identify a block


@dataclasses.dataclass
class MergedGraph:
    """The merged control-flow graphs of two binaries; the second's block ids follow the first's.

    Attributes
    ----------
    address : uint64 (B,), function : int32 (B,), binary : uint8 (B,)
        Function numbers of the second binary continue those of the first.
    edges : int32 (m, 2), kind : uint8 (m,)
        JUMP, CALL or STEP_OVER. Both ends of an edge are in the same binary.
    merged : int32 (k, 2)
        Pairs of a block of the first and one of the second that are one node; each block occurs at
        most once.
    returns : bool (B,)
        As in :class:`Analysis`.
    has_code : bool (B,)
        False for imports.
    """

    address: np.ndarray
    function: np.ndarray
    binary: np.ndarray
    edges: np.ndarray
    kind: np.ndarray
    merged: np.ndarray
    returns: np.ndarray
    has_code: np.ndarray


def merge(first: Analysis, second: Analysis) -> MergedGraph:
    """Merge two control-flow graphs at the blocks that are certainly the same.

    Two blocks become one node if they are the same import, or if both are the only block in their
    binary that refers to some string literal longer than 5 characters. If literals suggest
    different partners for a block, the partner with the most literals in common wins, then the one
    with the lower block ids: a node contains at most one block of each binary.
    """

    def both(field: str, shift: int = 0) -> np.ndarray:
        a, b = getattr(first, field), getattr(second, field)
        return np.concatenate([a, b + b.dtype.type(shift)] if shift else [a, b])

    merged = _same_imports(first, second) + _same_strings(first, second)
    pairs = np.array(sorted(merged), np.int32).reshape(-1, 2)
    pairs[:, 1] += first.blocks
    sizes = (first.blocks, second.blocks)
    return MergedGraph(
        address=both("address"),
        function=both("function", shift=len(first.function_address)),
        binary=np.repeat(np.array([0, 1], np.uint8), sizes),
        edges=both("edges", shift=first.blocks),
        kind=both("kind"),
        merged=pairs,
        returns=both("returns"),
        has_code=np.concatenate([np.arange(a.blocks) < a.code_blocks for a in (first, second)]),
    )


def _same_imports(first: Analysis, second: Analysis) -> list[tuple[int, int]]:
    block = {name: second.code_blocks + i for i, name in enumerate(second.import_name)}
    return [
        (first.code_blocks + i, block[name])
        for i, name in enumerate(first.import_name)
        if name in block
    ]


def _only_reference(analysis: Analysis) -> dict[bytes, int]:
    """Return literal -> block, for literals that only one block refers to."""
    times = Counter(analysis.string)
    return {
        literal: block
        for block, literal in zip(analysis.string_block.tolist(), analysis.string, strict=True)
        if len(literal) >= MIN_JOINING_STRING and times[literal] == 1
    }


def _same_strings(first: Analysis, second: Analysis) -> list[tuple[int, int]]:
    ours, theirs = _only_reference(first), _only_reference(second)
    votes = Counter((block, theirs[text]) for text, block in ours.items() if text in theirs)
    chosen: list[tuple[int, int]] = []
    taken: tuple[set[int], set[int]] = (set(), set())
    for a, b in sorted(votes, key=lambda pair: (-votes[pair], pair)):
        if a not in taken[0] and b not in taken[1]:
            chosen.append((a, b))
            taken[0].add(a)
            taken[1].add(b)
    return chosen
