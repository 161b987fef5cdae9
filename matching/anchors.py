"""Pairs of functions that are known to correspond: by the user, by exported names, by texts."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import scipy.sparse

import utils
from binary.exports import Export, read_exports
from features.extract import Features
from matching.candidates import Candidates

SHOWN = 60  # characters of a line that a message shows
TEXT = 4  # characters of a text that hardly occurs by chance
TEXTS = 2  # that make a pair certain; one alone may have moved with code that was inlined
AGREE = 0.75  # of the texts that tell where either function's partner is


def anchored_pairs(candidates: Candidates, anchors: np.ndarray | None) -> np.ndarray:
    """Return which candidates are known pairs, bool (n,)."""
    keys = candidates.a * candidates.shape[1] + candidates.b
    if anchors is None or not len(anchors):
        return np.zeros(len(keys), bool)
    return np.isin(keys, anchors[:, 0] * candidates.shape[1] + anchors[:, 1])


def with_anchors(logit: np.ndarray, candidates: Candidates, anchored: np.ndarray) -> np.ndarray:
    """Make known pairs certain, and pairs that contradict them impossible."""
    a, b = candidates.a[anchored], candidates.b[anchored]
    against = (np.isin(candidates.a, a) | np.isin(candidates.b, b)) & ~anchored
    return np.where(anchored, 30, np.where(against, -30, logit)).astype(np.float32)


def known_pairs(
    files: Sequence[str], codes: tuple[Features, Features], anchors: np.ndarray | None = None
) -> np.ndarray:
    """Return the anchors, and the functions that both files export by the same name: int64 (k, 2).

    Parameters
    ----------
    anchors : int (k, 2), optional
        Pairs of functions that the user knows; they win.
    """
    old, new = (read_exports(file) for file in files)
    by_name = pairs_by_names((old, new), codes)
    given = np.zeros((0, 2), np.int64) if anchors is None else anchors
    free = ~np.isin(by_name[:, 0], given[:, 0]) & ~np.isin(by_name[:, 1], given[:, 1])
    return np.concatenate([given, by_name[free]])


def pairs_by_names(
    exports: tuple[list[Export], list[Export]], codes: tuple[Features, Features]
) -> np.ndarray:
    """Return the functions that both binaries export by the same name: int64 (k, 2), sorted.

    A name may have several versions (of ELF's symbols); then those of the same version correspond.
    A function may have several names; if these lead to different partners, it has none.
    """
    old, new = (_exported(*side) for side in zip(exports, codes, strict=True))
    votes = set()
    for name in old.keys() & new.keys():
        one, other = old[name], new[name]
        same = {version for version in one.keys() & other.keys() if version}
        if not same and len(set(one.values())) == len(set(other.values())) == 1:
            votes.add((min(one.values()), min(other.values())))
        votes |= {(one[version], other[version]) for version in same}
    times = [Counter(pair[side] for pair in votes) for side in (0, 1)]
    found = sorted((a, b) for a, b in votes if times[0][a] == times[1][b] == 1)
    return np.array(found, np.int64).reshape(-1, 2)


def _exported(exports: list[Export], code: Features) -> dict[tuple[str, bool], dict[str, int]]:
    """Return (name, whether it is a resolver's) -> version -> the function."""
    entries = code.analysis.function_address[: code.functions].tolist()
    number = {address: f for f, address in enumerate(entries)}
    found: dict[tuple[str, bool], dict[str, int]] = defaultdict(dict)
    for name, version, resolver, address in exports:
        if address in number:
            found[name, resolver].setdefault(version, number[address])
    return found


def pairs_by_texts(codes: tuple[Features, Features], anchors: np.ndarray) -> np.ndarray:
    """Return the anchors, and the pairs that texts determine: int64 (k, 2), sorted.

    If only one function of each binary uses a text, these two probably correspond. Several such
    texts that agree are certain. This is not left to the networks: they learned from C, and they
    gave up such pairs in C++, where inlining changes a function's surroundings. But if a function's
    texts are those of two functions, one of which calls the other, one build inlined the callee;
    then it may have taken along most of the texts, which decide nothing.

    Parameters
    ----------
    anchors : int (k, 2)
        Pairs of functions that are known otherwise, and win.
    """
    old, new = (_used_once(code) for code in codes)
    votes = Counter((old[text], new[text]) for text in old.keys() & new.keys())
    total: list[Counter[int]] = [Counter(), Counter()]
    for pair, count in votes.items():
        for side in (0, 1):
            total[side][pair[side]] += count
    known = [set(column) for column in anchors.T.tolist()]
    found = [tuple(pair) for pair in anchors.tolist()]
    inlined = set().union(
        *(_called_by_another(votes, code.calls, side) for side, code in enumerate(codes))
    )
    for (a, b), count in votes.items():
        agree = count >= max(TEXTS, AGREE * max(total[0][a], total[1][b]))
        if agree and a not in known[0] and b not in known[1] and (a, b) not in inlined:
            found.append((a, b))
    return np.array(sorted(found), np.int64).reshape(-1, 2)


def _called_by_another(
    votes: Iterable[tuple[int, int]], calls: scipy.sparse.csr_matrix, side: int
) -> set[tuple[int, int]]:
    """Return the pairs whose function of one side is called by another one of the same partner.

    If each calls the other, nothing says which one was inlined; then neither counts.
    """
    of = defaultdict(set)
    for pair in votes:
        of[pair[1 - side]].add(pair[side])
    found = set()
    for partner, functions in of.items():
        inside = {
            f: functions.intersection(calls.indices[calls.indptr[f] : calls.indptr[f + 1]].tolist())
            for f in functions
        }
        for f, callees in inside.items():
            for g in callees:
                if f not in inside[g]:
                    found.add((partner, g) if side else (g, partner))
    return found


def _used_once(code: Features) -> dict[bytes, int]:
    """Return text -> the function that alone uses it."""
    analysis = code.analysis
    users: dict[bytes, int] = {}
    functions = analysis.function[analysis.string_block].tolist()
    for text, f in zip(analysis.string, functions, strict=True):
        if len(text) >= TEXT:
            users[text] = f if users.get(text, f) == f else -1
    return {text: f for text, f in users.items() if f >= 0}


def read_anchors(path: str, codes: tuple[Features, ...]) -> np.ndarray:
    """Read known pairs of functions: int64 (k, 2), functions of OLD and NEW.

    Raises
    ------
    UserError
        A line that is not a pair, an address where no function begins, a function in two pairs.
    """
    starts = [
        {a: f for f, a in enumerate(c.analysis.function_address[: c.functions].tolist())}
        for c in codes
    ]
    pairs = []
    for number, line in enumerate(utils.read_text(path, "list of anchors").splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not all(re.fullmatch("0[xX][0-9a-fA-F]+", word) for word in words):
            raise utils.UserError(
                f"{path}, line {number}: {line.strip()[:SHOWN]!r} is not a pair of addresses like "
                "0x401000 0x401230"
            )
        for word, known, which in zip(words, starts, ("old", "new"), strict=True):
            if int(word, 16) not in known:
                raise utils.UserError(
                    f"{path}, line {number}: no function of the {which} binary begins at {word}"
                )
        pairs.append([known[int(word, 16)] for word, known in zip(words, starts, strict=True)])
    found = np.array(pairs, np.int64).reshape(-1, 2)
    for column in found.T:
        if len(np.unique(column)) < len(column):
            raise utils.UserError(f"{path}: a function is in two pairs; each has only one partner")
    return found
