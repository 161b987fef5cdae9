"""Twins: functions that two builds of a program certainly share, found without symbols."""

from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

Word = TypeVar("Word")


def find_twins(first: Mapping[Word, int], second: Mapping[Word, int]) -> list[tuple[int, int]]:
    """Let the words that are unique in both builds vote for pairs of functions.

    Parameters
    ----------
    first, second : mapping of word to int
        Import or word of a string -> the only function of the build that uses it.

    Returns
    -------
    list of (int, int)
        The pairs, sorted, in which each function has its most votes in common with the other.
    """
    votes = Counter((first[word], second[word]) for word in first.keys() & second.keys())
    best: tuple[dict[int, int], dict[int, int]] = ({}, {})
    for i, j in sorted(votes, key=lambda pair: (-votes[pair], pair)):
        best[0].setdefault(i, j)
        best[1].setdefault(j, i)
    return sorted((i, j) for i, j in best[0].items() if best[1][j] == i)
