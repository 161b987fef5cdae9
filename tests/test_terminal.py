"""Command lines as people type them: what is typed is what a function receives."""

from typing import Annotated, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field

from terminal.arguments import bind, call, names_of
from utils import UsageError

NAMES = [
    "9.1",
    "9.10",
    "build#1",
    "1e3",
    "0x10",
    "a,b",
    "None",
    "True",
    "[x]",
    "-",
    "'x'",
    "{a: 1}",
]
NAMES += [
    "(1, 2)",
    "x=1",
    "",
    " ",
    "a b",
    "\\",
    "None#",
    "1_000",
    "\udcff",
    "--",
    "-x",
    "--to",
    "-h",
]
words = st.sampled_from(NAMES) | st.text(st.characters(exclude_characters="\0"))


def many(*files: str, to: str = "t", list: str | list[str] = (), on: bool = False):
    return files, to, list, on


def two(old: str, new: str, count: Annotated[int, Field(ge=1)] = 2, share: float | None = None):
    return old, new, count, share


def received(function, *typed):
    return call(function, *bind(function, typed))


@given(st.lists(words))
@example(NAMES)
def test_values_after_dashes_arrive_as_typed(typed):
    assert received(many, "--", *typed)[0] == tuple(typed)


@given(st.lists(words.filter(lambda word: not word.startswith("-") or word == "-")))
def test_values_arrive_as_typed(typed):
    assert received(many, *typed)[0] == tuple(typed)
    assert received(many, "--on", "--to=x", *typed)[0] == tuple(typed) or typed[0].lower() == "true"


@given(words, words)
def test_flags_arrive_as_typed(to, old):
    assert received(many, f"--to={to}")[1] == to
    assert received(two, f"--old={old}", "--new", "b")[0] == old
    if not to.startswith("-") or to == "-":
        assert received(many, "--to", to, "x")[:2] == (("x",), to)
        assert received(many, "--list", to)[2] == to


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], "missing argument: old"),
        (["a"], "missing argument: new"),
        (["a", "b", "3"], "one value too many: 3"),  # a parameter with a default is a flag only
        (["--old", "a", "b", "c"], "one value too many: c"),
        (["a", "b", "--cuont", "1"], "no flag --cuont here; did you mean --count"),
        (["a", "b", "-c", "1"], "no flag -c here"),
        (["a", "b", "--count"], "--count needs a value"),
        (["a", "b", "--count", "--share", "1"], "--count needs a value"),
        (["a", "b", "--count", "1", "--count=2"], "--count is given twice"),
        (["a", "b", "--count", "1e3"], "--count 1e3: .*integer"),
        (["a", "b", "--count", "0x10"], "--count 0x10: .*integer"),
        (["a", "b", "--count", "0"], "--count 0: .*greater than or equal to 1"),
        (["a", "b", "--share", "nan"], "--share nan: .*finite"),
    ],
)
def test_wrong_usage(typed, message):
    with pytest.raises(UsageError, match=message):
        received(two, *typed)


@pytest.mark.parametrize(
    ("typed", "on"),
    [
        (["--on"], True),
        (["--on", "true"], True),
        (["--on", "False"], False),
        (["--on=False"], False),
        (["--noon"], False),
        ([], False),
    ],
)
def test_switches(typed, on):
    assert received(many, *typed, "x") == (("x",), "t", (), on)
    assert received(many, "x", *typed) == (("x",), "t", (), on)


def test_numbers_and_choices():
    def main(seed: int = 0, mode: Literal["train", "eval"] = "train"):
        return seed, mode

    assert received(main, "--seed", "-1", "--mode=eval") == (-1, "eval")
    with pytest.raises(UsageError, match=r"--mode predict: .*'train' or 'eval'"):
        received(main, "--mode", "predict")


def test_lists():
    assert names_of("chroot,9.10") == ["chroot", "9.10"]
    assert names_of(("a,b", "c")) == ["a,b", "c"]
