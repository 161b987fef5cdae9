"""encoder/names.py: a name goes to one function of a binary, unless an indexed file repeats it."""

import dataclasses

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from encoder.calibration import Calibration
from encoder.index import Index, nearest
from encoder.names import NAMES, assign_names


def index_of(*functions):
    """Make an index of (file, name) pairs."""
    names = sorted({name for _, name in functions})
    files, n = [file for file, _ in functions], len(functions)
    return Index(
        binaries=[],
        binary=np.array(files, np.int32),
        address=np.zeros(n, np.uint64),
        name=np.array([names.index(name) for _, name in functions], np.int32),
        names=pa.array(names, pa.string()),
        blocks=np.full(n, 9, np.int32),
        vector=np.zeros((n, 1), np.float16),
    )


def assigned(index, chance, least=0.0, allowed=None):
    """Give names by a full table of chances, (functions, N)."""
    chance = np.array(chance, np.float32)
    found = np.argsort(-chance, axis=1, kind="stable")
    allowed = np.ones(len(index), bool) if allowed is None else allowed
    chance = np.take_along_axis(chance, found, 1)
    given = assign_names(index, found, chance, allowed, least)
    return {f: index.name_of(match) for f, (match, _) in given.items()}


def test_the_best_gets_the_name_and_the_others_their_next_best():
    index = index_of((0, "copy"), (0, "area"), (1, "copy"))
    chance = [[0.6, 0.1, 0.6], [0.9, 0.3, 0.9], [0.7, 0.2, 0.7]]
    assert assigned(index, chance) == {1: "copy", 2: "area"}
    assert assigned(index, chance, least=0.5) == {1: "copy"}


def test_a_name_is_given_as_often_as_one_file_has_it():
    index = index_of((0, "usage"), (1, "usage"), (1, "usage"))
    chance = [[0.5, 0.4, 0.4], [0.4, 0.6, 0.4], [0.3, 0.3, 0.3]]
    assert assigned(index, chance) == {0: "usage", 1: "usage"}
    first = np.array([True, False, False])
    assert assigned(index, chance, allowed=first) == {1: "usage"}


def test_many_builds_of_one_library_do_not_hide_the_next_best_name():
    """All builds of copy are nearer to both queries than any build of area."""
    index = index_of(*((file, name) for file in range(60) for name in ("copy", "area")))
    copy, area = [1, 0], [0.8, 0.6]
    vector = np.array([copy if index.name_of(i) == "copy" else area for i in range(len(index))])
    index = dataclasses.replace(index, vector=vector.astype(np.float16))
    queries = np.array([copy, [0.98, 0.199]], np.float32)
    how = Calibration(scale=5.0, none=0.0)
    found, _, chance = nearest(index, queries, NAMES, how, by_name=True)
    given = assign_names(index, found, chance, np.ones(len(index), bool), 0.0)
    assert {q: index.name_of(match) for q, (match, _) in given.items()} == {0: "copy", 1: "area"}


def test_names_made_from_addresses_are_not_limited():
    index = index_of((0, "sub_401000"))
    assert len(assigned(index, [[0.9], [0.8]])) == 2


def test_names_of_cpp_are_given_once():
    index = index_of((0, "ns::T::f(int) const"), (0, "area"))
    assert assigned(index, [[0.9, 0.1], [0.8, 0.1]]) == {0: "ns::T::f(int) const", 1: "area"}


def test_an_empty_index_gives_no_names():
    assert assigned(index_of(), np.zeros((2, 0))) == {}


@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), max_size=6))
def test_no_function_without_a_name_would_have_taken_a_free_one(chance):
    index = index_of((0, "a"), (0, "b"), (1, "b"), (1, "c"))
    names = assigned(index, np.array(chance).reshape(-1, 4))
    assert len(set(names.values())) == len(names)
    assert len(names) == min(len(chance), 3)
