"""matching/alignment.py: it says what difflib says, and hands it only short sequences."""

import difflib

from hypothesis import given, settings
from hypothesis import strategies as st

from matching import alignment
from matching.alignment import align

sequences = st.lists(st.sampled_from("aabcdefgh"), max_size=40)


@given(sequences, sequences)
def test_short_sequences_are_difflibs(old, new):
    expected = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    assert list(align(old, new)) == expected


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), max_size=40), st.lists(st.integers(0, 30), max_size=40))
def test_opcodes_make_one_of_the_other(old, new):
    with_short_parts = alignment.WHOLE
    try:
        alignment.WHOLE = 3
        made, at = [], (0, 0)
        for tag, a, b, c, d in align(old, new):
            assert (a, c) == at, "nothing is left out"
            assert (tag == "equal") == (old[a:b] == new[c:d])
            made += old[a:b] if tag == "equal" else new[c:d]
            at = b, d
        assert at == (len(old), len(new))
        assert made == new
    finally:
        alignment.WHOLE = with_short_parts


def test_lines_that_occur_once_in_both_align_long_texts():
    old = ["break;" if i % 2 else f"case {i}:" for i in range(2000)]
    new = ["x"] * 300 + old
    same = sum(b - a for tag, a, b, _, _ in align(old, new) if tag == "equal")
    assert same == len(old)


def test_repeated_lines_do_not_make_it_slow(monkeypatch):
    longest = 0

    class Watched(difflib.SequenceMatcher):
        def __init__(self, junk, a, b, **rest):
            nonlocal longest
            longest = max(longest, len(a), len(b))
            super().__init__(junk, a, b, **rest)

    monkeypatch.setattr(difflib, "SequenceMatcher", Watched)
    old, new = ["break;"] * 3000, ["break;"] * 2500 + ["return;"] * 900
    assert sum(b - a for tag, a, b, _, _ in align(old, new) if tag == "equal") == 2500
    assert longest <= alignment.WHOLE
