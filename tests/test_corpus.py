"""corpus/: ids on disk, and which documents are held out."""

import hashlib
import itertools
import json
import os
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.ids import Corpus, _tokenise, read_corpus
from corpus.ngram import five_gram_accuracy
from corpus.split import split_corpus, split_test
from tokenization import SPECIAL_TOKENS, CorpusTokenizer
from utils import UserError

WORDS = ["mov", "reg8", "imme", "__ctype_b_loc", "ca", "##ll"]


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *WORDS]) + "\n")
    return CorpusTokenizer(tmp_path / "vocab.txt")


def write(folder, text, pairs=None):
    data_file = folder / "corpus.txt"
    data_file.write_text(text)
    if pairs is not None:
        about = {
            "format_version": 1,
            "corpus_bytes": len(text),
            "corpus_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "pairs": [
                {
                    "pair": number,
                    "program": program,
                    "builds": [{"path": b, "build": b, "sha256": b} for b in builds],
                    "documents": documents,
                    "split": split[0] if split else "train",
                }
                for number, (program, builds, documents, *split) in enumerate(pairs)
            ],
        }
        data_file.with_suffix(".json").write_text(json.dumps(about))
    return data_file


def text_of(n_documents, n_sentences=3):
    return "\n".join(["mov reg8 imme\n" * n_sentences] * n_documents)


def test_blank_lines_divide_documents_and_lines_divide_sentences(tmp_path, tokenizer):
    data_file = write(tmp_path, "\nmov reg8\n__ctype_b_loc\n\n \n\ncall zzz\nmov\nimme reg8")
    corpus = read_corpus(data_file, tokenizer, "v")
    assert corpus.tokens.tolist() == [5, 6, 8, 9, 10, 1, 5, 7, 6]
    assert corpus.tokens.dtype == np.uint16
    assert corpus.sentences.tolist() == [0, 2, 3, 6, 7, 9]
    assert corpus.documents.tolist() == [0, 2, 5]
    assert corpus.pairs.tolist() == [0, 2]
    assert isinstance(corpus.tokens, np.memmap)
    assert corpus.count_tokens(np.array([False, True]), 11).tolist() == [
        *[0, 1, 0, 0, 0],
        *[1, 1, 1, 0, 1, 1],
    ]


def test_tabs_are_borders_of_instructions(tmp_path, tokenizer):
    """Ids are the same as with blanks; an instruction may be cut into pieces, or be empty."""
    text = "mov reg8 imme\tcall\t\tmov __ctype_b_loc\n\tcall mov\n\nmov\n"
    corpus = read_corpus(write(tmp_path, text), tokenizer, "v")
    blanks = tmp_path / "blanks"
    blanks.mkdir()
    plain = read_corpus(write(blanks, text.replace("\t", " ")), tokenizer, "v")
    for name in ("tokens", "sentences", "documents"):
        assert (getattr(corpus, name) == getattr(plain, name)).all()
    assert corpus.starts.tolist() == [1, 0, 0, 1, 0, 1, 0, 1, 0, 0, 1]
    assert plain.starts is None


@pytest.mark.parametrize("parallel", [False, True])
def test_many_chunks_are_one_text(tmp_path, tokenizer, monkeypatch, parallel):
    monkeypatch.setattr("corpus.ids.PARALLEL", 0 if parallel else 2**60)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS[:4], rng.integers(1, 9))) for _ in range(60_000)]
    for blank in range(7, 60_000, 13):
        lines[blank] = ""
    data_file = write(tmp_path, "\n".join(lines))
    assert data_file.stat().st_size > 2**20
    corpus = read_corpus(data_file, tokenizer, "v")
    words = [token for line in lines for token in line.split()]
    assert tokenizer.convert_ids_to_tokens(corpus.tokens) == words
    lengths = [len(line.split()) for line in lines if line]
    assert np.diff(corpus.sentences).tolist() == lengths
    documents = "\n".join(lines).split("\n\n")
    assert np.diff(corpus.documents).tolist() == [d.strip().count("\n") + 1 for d in documents]


def test_tokenised_once_until_text_or_vocabulary_changes(tmp_path, tokenizer, monkeypatch):
    calls = []
    real = _tokenise
    monkeypatch.setattr("corpus.ids._tokenise", lambda *a: (calls.append(a), real(*a)))
    data_file = write(tmp_path, "mov\nreg8\n")
    read_corpus(data_file, tokenizer, "v")
    read_corpus(data_file, tokenizer, "v")
    assert len(calls) == 1
    read_corpus(data_file, tokenizer, "w")
    assert len(calls) == 2
    data_file.write_text("reg8\nmov\n")  # the same size
    assert read_corpus(data_file, tokenizer, "w").tokens.tolist() == [6, 5]
    assert len(calls) == 3
    (tmp_path / "corpus.ids" / "key.json").write_text("{")
    read_corpus(data_file, tokenizer, "w")
    assert len(calls) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus.ids", "corpus.txt", "vocab.txt"]


@pytest.mark.parametrize("text", ["", "\n \n\n"])
def test_an_empty_corpus_is_refused(tmp_path, tokenizer, text):
    with pytest.raises(UserError, match=r"corpus\.txt is empty.*dataprocess\.py"):
        read_corpus(write(tmp_path, text), tokenizer, "v")


def test_a_missing_corpus_names_the_command_that_makes_it(tmp_path, tokenizer):
    for file, lacking in (("corpus.txt", "does not exist"), ("", "is not a corpus file")):
        with pytest.raises(UserError, match=rf"{lacking}; make it: python dataprocess\.py"):
            read_corpus(tmp_path / file, tokenizer, "v")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("text", "does not match .*run python dataprocess"),
        ("documents", "does not match .*run python dataprocess"),
        ("json", "is not JSON"),
        ("list", "must hold one JSON object"),
        ("split", r"'pairs\.0\.split' is \"training\""),
    ],
)
def test_a_description_that_disagrees_is_refused(tmp_path, tokenizer, change, message):
    pairs = [("ls", "ab", 2 if change != "documents" else 3)]
    if change == "split":
        pairs = [("ls", "ab", 2, "training")]
    data_file = write(tmp_path, text_of(2), pairs)
    if change == "text":
        data_file.write_text(text_of(2).replace("imme", "reg8"))
    if change in ("json", "list"):
        data_file.with_suffix(".json").write_text({"json": "{", "list": "[]"}[change])
    with pytest.raises(UserError, match=rf"corpus\.json:? {message}"):
        read_corpus(data_file, tokenizer, "v")


words = st.lists(st.sampled_from(WORDS[:5]), min_size=1, max_size=5)
documents = st.lists(st.lists(words, min_size=1, max_size=4), min_size=1, max_size=6)


@settings(deadline=None, max_examples=50)
@given(documents, st.integers(1, 60))
def test_ids_give_back_the_text(tmp_path_factory, documents, block):
    """corpus.txt -> ids -> tokens, in blocks of any size."""
    folder = tmp_path_factory.mktemp("round")
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *WORDS]) + "\n")
    tokenizer = CorpusTokenizer(folder / "vocab.txt")
    lines = [[" ".join(sentence) for sentence in document] for document in documents]
    text = "".join("".join(f"{line}\n" for line in document) + "\n" for document in lines)
    (folder / "corpus.txt").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("corpus.ids.BLOCK", block)
        corpus = read_corpus(folder / "corpus.txt", tokenizer, "v")
    names = list(tokenizer.vocab)
    found = [
        [
            " ".join(names[t] for t in corpus.tokens[corpus.sentences[k] : corpus.sentences[k + 1]])
            for k in range(start, end)
        ]
        for start, end in itertools.pairwise(corpus.documents.tolist())
    ]
    assert found == lines


def all_pairs(builds):
    return [(a, b) for i, a in enumerate(builds) for b in builds[i + 1 :]]


def documents_of(corpus, pair):
    return slice(corpus.pairs[pair], corpus.pairs[pair + 1])


def programs(tmp_path, tokenizer, split):
    # Each program has pairs of 4 builds, so that the rule for builds could be used, too.
    pairs = [
        (name, pair, 2, where)
        for name, where in split.items()
        for pair in all_pairs([f"{name}/{b}" for b in "abcd"])
    ]
    data_file = write(tmp_path, text_of(2 * len(pairs)), pairs)
    return pairs, read_corpus(data_file, tokenizer, "v")


def test_programs_are_held_out_as_described(tmp_path, tokenizer):
    where = {"p": "train", "q": "validation", "r": "test", "s": "train"}
    pairs, corpus = programs(tmp_path, tokenizer, where)
    split = split_corpus(corpus)
    for number, (_, _, _, part) in enumerate(pairs):
        assert (split.training[documents_of(corpus, number)] == (part == "train")).all()
        assert (split.heldout[documents_of(corpus, number)] == (part == "validation")).all()
    assert split.rule == "by program: 1 held out (q), 2 trained on, 1 left for a test"


def test_many_programs_are_not_all_named(tmp_path, tokenizer):
    where = {f"p{n}": "train" if n > 20 else "validation" for n in range(30)}
    _, corpus = programs(tmp_path, tokenizer, where)
    rule = split_corpus(corpus).rule
    assert rule.startswith("by program: 21 held out (p0, p1, p10, p11, p12 and others), 9 trained")


@pytest.mark.parametrize("builds", [4, 8])
def test_programs_for_the_test_are_never_read(tmp_path, tokenizer, builds):
    """Not even if the validation programs are too small, so that another rule is used."""
    inside = all_pairs([f"b{n}" for n in range(builds)])
    pairs = [("p", pair, 3, "train") for pair in inside]
    pairs += [("t", pair, 3, "test") for pair in all_pairs([f"t{n}" for n in range(8)])]
    pairs += [("q", ("x", "y"), 1, "validation")]
    data_file = write(tmp_path, text_of(3 * len(pairs) - 2), pairs)
    corpus = read_corpus(data_file, tokenizer, "v")
    split = split_corpus(corpus)
    assert split.rule.startswith("by build" if builds == 8 else "by document")
    for number, (_, _, _, part) in enumerate(pairs):
        if part == "test":
            assert not (split.training | split.heldout)[documents_of(corpus, number)].any()
    assert split.training.sum() >= 3
    assert split.heldout.sum() >= 2
    left, rule = split_test(corpus)
    assert rule == "for the test: t"
    for number, (_, _, _, part) in enumerate(pairs):
        assert set(left[documents_of(corpus, number)]) == {part == "test"}


def test_without_test_programs_a_test_is_refused(tmp_path, tokenizer):
    pairs = [("chroot", pair, 3, "train") for pair in all_pairs("abcd")]
    for described in (pairs, None):
        corpus = read_corpus(write(tmp_path, text_of(18), described), tokenizer, "v")
        with pytest.raises(UserError, match="the corpus has no test programs"):
            split_test(corpus)


@pytest.mark.parametrize(("n_builds", "n_out"), [(8, 2), (20, 5)])
def test_with_one_program_builds_are_held_out(tmp_path, tokenizer, n_builds, n_out):
    pairs = [("chroot", pair, 2) for pair in all_pairs([f"build{n}" for n in range(n_builds)])]
    data_file = write(tmp_path, text_of(2 * len(pairs)), pairs)
    corpus = read_corpus(data_file, tokenizer, "v")
    split = split_corpus(corpus)
    seen, held = set(), set()
    for number, (_, builds, _) in enumerate(pairs):
        seen |= set(builds) if split.training[documents_of(corpus, number)].all() else set()
        held |= set(builds) if split.heldout[documents_of(corpus, number)].all() else set()
    assert not seen & held
    assert (len(seen), len(held)) == (n_builds - n_out, n_out)
    in_rule = n_out * (n_builds - n_out)
    assert split.rule == (
        f"by build: {n_out} of {n_builds} builds held out, {n_out * (n_out - 1) // 2} pairs inside "
        f"them, {in_rule} mixed pairs dropped"
    )
    assert (~split.training & ~split.heldout).sum() == 2 * in_rule


def test_builds_are_told_apart_by_content(tmp_path, tokenizer):
    # Eight folders, but only four contents.
    pairs = [
        ("chroot", (a[0], b[0]), 3) for a, b in all_pairs([x + y for x in "abcd" for y in "12"])
    ]
    data_file = write(tmp_path, text_of(3 * len(pairs)), pairs)
    assert split_corpus(read_corpus(data_file, tokenizer, "v")).rule.startswith("by document")


@pytest.mark.parametrize("described", [True, False])
def test_with_few_builds_documents_are_held_out(tmp_path, tokenizer, described):
    pairs = [("chroot", pair, 10) for pair in all_pairs("abcd")]
    data_file = write(tmp_path, text_of(60), pairs if described else None)
    split = split_corpus(read_corpus(data_file, tokenizer, "v"))
    assert split.heldout.sum() == 6
    assert (split.heldout ^ split.training).all()
    assert "by document: 6 of 60 held out" in split.rule
    assert "flatter" in split.rule


def test_the_split_is_the_same_each_time(tmp_path, tokenizer):
    corpus = read_corpus(write(tmp_path, text_of(60)), tokenizer, "v")
    first, second = split_corpus(corpus), split_corpus(corpus)
    assert (first.heldout == second.heldout).all()


def test_a_rule_that_leaves_no_training_is_not_used(tmp_path, tokenizer):
    # All pairs contain build0. Holding it out leaves no training; training on it mixes all others.
    pairs = [("chroot", ("build0", f"build{n}"), 5) for n in range(1, 9)]
    split = split_corpus(read_corpus(write(tmp_path, text_of(40), pairs), tokenizer, "v"))
    assert split.rule.startswith("by document")


@pytest.mark.parametrize(("n_documents", "n_sentences"), [(1, 50), (3, 2), (50, 1)])
def test_a_corpus_too_small_to_split_is_refused(tmp_path, tokenizer, n_documents, n_sentences):
    data_file = write(tmp_path, text_of(n_documents, n_sentences))
    with pytest.raises(UserError, match="documents of two or more sentences"):
        split_corpus(read_corpus(data_file, tokenizer, "v"))


def brute_force(sequences, history, answer):
    """The token that most often followed the longest known context; the lower id of equals."""
    for n in range(min(len(history), 4), -1, -1):
        context = history[len(history) - n :]
        following = Counter(
            text[i] for text in sequences for i in range(n, len(text)) if text[i - n : i] == context
        )
        if following:
            return min(following, key=lambda token: (-following[token], token)) == answer
    raise AssertionError


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.integers(5, 7), min_size=1, max_size=14), min_size=1, max_size=5),
    st.lists(st.lists(st.integers(5, 8), min_size=1, max_size=9), min_size=1, max_size=4),
    st.integers(0, 99),
)
def test_the_five_gram_equals_plain_counting(training, asked, seed):
    ends = np.cumsum([0, *map(len, training)])
    corpus = Corpus(
        tokens=np.array(list(itertools.chain(*training)), np.uint16),
        sentences=ends,
        documents=np.arange(len(training) + 1),
        pairs=np.array([0, len(training)]),
        programs=[],
        builds=[],
        sha256="",
    )
    rng = np.random.default_rng(seed)
    ids = np.zeros((len(asked), 12), np.int64)  # [CLS] text [SEP], padded
    masked_pos = np.zeros((len(asked), 2), np.int64)
    right = 0
    for row, text in enumerate(asked):
        ids[row, : len(text) + 2] = [2, *text, 3]
        masked_pos[row, 0] = at = rng.integers(len(text))
        right += brute_force(training, text[:at], text[at])
    masked_pos[:, 0] += 1
    masked_ids = np.take_along_axis(ids, masked_pos, 1)
    np.put_along_axis(ids, masked_pos[:, :1], 4, 1)
    batch = {
        "input_ids": ids,
        "segment_ids": 0 * ids,
        "masked_pos": masked_pos,
        "masked_ids": masked_ids,
        "masked_weights": np.tile(np.float32([1, 0]), (len(asked), 1)),
    }
    every = np.ones(len(training), bool)
    found = five_gram_accuracy(corpus, every, [batch], np.arange(9) < 5)
    assert found == right / len(asked)
