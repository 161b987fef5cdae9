"""The corpus and the vocabulary against a slow plain rendering; damaged and hostile folders."""

import hashlib
import json
import random
import resource
import shutil
import subprocess
import sys
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dataprocess
from tokenization import SPECIAL_TOKENS, CorpusTokenizer, load_vocab
from utils import UserError

ROOT = Path(__file__).parent.parent


def write_pair(folder, blocks, documents, words=None, **info):
    """Write a pair folder. ``blocks``: lists of tokens; ``documents``: lists of lists of ids."""
    folder.mkdir(parents=True)
    if words is None:
        words = sorted({word for block in blocks for word in block}, key=lambda w: (len(w), w))
    sentences = [sentence for document in documents for sentence in document]
    (folder / "dictionary.txt").write_bytes("".join(f"{word}\n" for word in words).encode())
    np.savez(
        folder / "blocks.npz",
        tokens=np.array([words.index(word) for block in blocks for word in block], np.int32),
        offsets=np.cumsum([0] + [len(block) for block in blocks]).astype(np.int64),
        address=np.arange(len(blocks), dtype=np.uint64),
        function=np.zeros(len(blocks), np.int32),
        binary=np.zeros(len(blocks), np.uint8),
    )
    np.savez(
        folder / "walks.npz",
        blocks=np.array([block for sentence in sentences for block in sentence], np.int32),
        sentence=np.cumsum([0] + [len(sentence) for sentence in sentences]).astype(np.int64),
        document=np.cumsum([0] + [len(document) for document in documents]).astype(np.int64),
    )
    builds = [{"path": f"b/O{i}/chroot", "build": f"O{i}", "sha256": str(i) * 64} for i in (0, 3)]
    record = {
        "format_version": 1,
        "pair": int(folder.name),
        "program": "chroot",
        "binaries": builds,
        "settings": {"num_walks": 2},
        "seed": 0,
        "counts": {"tokens": 0},
    }
    (folder / "pair.json").write_text(json.dumps({**record, **info}))


def plain_corpus(pairs):
    """Render ``[(blocks, documents), ...]`` in the slowest and plainest way."""
    text = ""
    for blocks, documents in pairs:
        for document in documents:
            lines = [
                " ".join(word for block in sentence for word in blocks[block])
                for sentence in document
            ]
            lines = [line for line in lines if line]
            if lines:
                text += "\n".join(lines) + "\n\n"
    return text


def random_pair(rng, words, n_blocks=30, n_documents=8):
    blocks = [rng.choices(words, k=rng.choice([0, 1, 1, 3, 9])) for _ in range(n_blocks)]
    documents = [
        [rng.choices(range(n_blocks), k=rng.randint(1, 4)) for _ in range(rng.randint(1, 5))]
        for _ in range(n_documents)
    ]
    return blocks, documents


WORDS = ["mov", "call", "reg8", "reg4", "ptr", "imme", "str", "a", "__ctype_b_loc", "f@@V.1", "é漢"]


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """Work in an empty folder, as a user does in the repository."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pairs(inside):
    rng = random.Random(0)
    pairs = [random_pair(rng, rng.sample(WORDS, 6)) for _ in range(12)]
    for number, (blocks, documents) in enumerate(pairs):
        write_pair(inside / "data" / str(number), blocks, documents, program=f"p{number}")
    return pairs


def outputs(inside):
    files = [inside / "data/corpus.txt", inside / "data/corpus.json", inside / "vocab/vocab.txt"]
    return [file.read_bytes() if file.exists() else None for file in files]


def test_corpus_is_the_plain_rendering_in_numeric_order(pairs, inside):
    dataprocess.main()  # pair 10 stands after pair 9, not after pair 1
    assert (inside / "data/corpus.txt").read_bytes() == plain_corpus(pairs).encode()


def test_vocabulary_order(pairs, inside):
    dataprocess.main()
    counts = Counter(plain_corpus(pairs).split())
    lines = (inside / "vocab/vocab.txt").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    n = len(SPECIAL_TOKENS)
    assert lines[:n] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ordered = sorted(counts, key=lambda word: [-counts[word], *map(ord, word)])
    assert lines[n : n + len(counts)] == ordered
    letters = set("".join(counts))
    assert "a" in letters  # a letter that is a token, too, stands once
    assert set(lines[n + len(counts) :]) == (letters - set(counts)) | {f"##{c}" for c in letters}
    assert len(set(lines)) == len(lines)
    assert load_vocab(inside / "vocab/vocab.txt", SPECIAL_TOKENS)["[MASK]"] == 4


def test_vocabulary_ties_by_code_point(inside):
    words = ["b", "Z", "a", "_", "é", "a0"]
    write_pair(inside / "data/0", [words], [[[0]]])
    dataprocess.main()
    assert list(load_vocab("vocab/vocab.txt"))[5:11] == ["Z", "_", "a", "a0", "b", "é"]


def test_frequency_is_that_of_the_walks_not_of_the_blocks(inside):
    blocks = [["rare", "rare", "rare"], ["often"], ["never"]]
    write_pair(inside / "data/0", blocks, [[[1, 1], [0, 1, 1]]])
    dataprocess.main()
    assert list(load_vocab("vocab/vocab.txt"))[5:7] == ["often", "rare"]
    assert "never" not in load_vocab("vocab/vocab.txt")


def test_token_with_two_numbers_is_counted_as_one(inside):
    write_pair(inside / "data/0", [["mov", "reg8"], ["call"]], [[[0, 0, 1, 1, 1]]])
    (inside / "data/0/dictionary.txt").write_text("call\nmov\nmov\n")
    change(inside / "data/0", "blocks.npz", tokens=np.array([1, 2, 0]))
    dataprocess.main()
    assert list(load_vocab("vocab/vocab.txt"))[5:7] == ["mov", "call"]  # 4 and 3
    assert json.loads((inside / "data/corpus.json").read_text())["tokens"] == 7


def test_any_word_of_the_alphabet_is_known(pairs, inside):
    dataprocess.main()
    tokenizer = CorpusTokenizer("vocab/vocab.txt")
    letters = sorted(set("".join(WORDS)))
    rng = random.Random(1)
    for _ in range(200):
        word = "".join(rng.choices(letters, k=rng.randint(1, 100)))
        tokens = tokenizer.tokenize(word)
        assert "[UNK]" not in tokens
        assert tokens[0] + "".join(token.removeprefix("##") for token in tokens[1:]) == word


def test_sidecar(pairs, inside):
    dataprocess.main()
    about = json.loads((inside / "data/corpus.json").read_text())
    text = plain_corpus(pairs)
    documents = [plain_corpus([pair]).count("\n\n") for pair in pairs]
    builds = [{"path": f"b/O{i}/chroot", "build": f"O{i}", "sha256": str(i) * 64} for i in (0, 3)]
    assert about == {
        "format_version": 2,
        "corpus_bytes": len(text.encode()),
        "corpus_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "documents": sum(documents),
        "sentences": len([line for line in text.split("\n") if line]),
        "tokens": len(text.split()),
        "pairs": [
            {
                "pair": i,
                "program": f"p{i}",
                "builds": builds,
                "documents": n,
                "sha256": dataprocess.hash_pair(inside / "data" / str(i)),
            }
            for i, n in enumerate(documents)
        ],
        "vocab_sha256": hashlib.sha256((inside / "vocab/vocab.txt").read_bytes()).hexdigest(),
    }


def test_report(inside, capsys):
    write_pair(inside / "data/0", [["mov", "reg8"], ["call"]], [[[0, 1], [1]], [[1]]])
    dataprocess.main()
    lines = capsys.readouterr().out.splitlines()
    facts = {line.split()[0]: line.split()[1] for line in lines}
    assert (facts["documents"], facts["sentences"], facts["tokens"]) == ("2", "3", "5")
    assert (facts["vocabulary"], facts["[UNK]"]) == (
        str(len(load_vocab("vocab/vocab.txt"))),
        "0.0000%",
    )
    assert lines[lines.index("most common tokens:") + 1].split() == ["3", "60.00%", "call"]


def test_unknown_share_is_really_read(inside):
    (inside / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, "mov"]))
    (inside / "corpus.txt").write_text("mov reg8\nmov\n\nreg4 mov\n\n")
    assert dataprocess.count_unknown("vocab.txt", "corpus.txt") == (2, 5)


def test_second_run_makes_the_same_bytes(pairs, inside):
    dataprocess.main()
    first = outputs(inside)
    (inside / "data/corpus.json").unlink()  # else nothing is done
    dataprocess.main()
    assert outputs(inside) == first
    assert None not in first
    environment = {"PYTHONHASHSEED": "7", "PATH": "/usr/bin:/bin"}
    script = [sys.executable, ROOT / "dataprocess.py", "--data", "data", "--vocab_file", "v.txt"]
    subprocess.run(script, check=True, env=environment, capture_output=True)
    assert (inside / "v.txt").read_bytes() == first[2]
    assert outputs(inside) == first


def test_nothing_is_done_where_nothing_changed(pairs, inside, capsys):
    def ages():
        files = ("data/corpus.txt", "data/corpus.json", "vocab/vocab.txt")
        return [(inside / file).stat().st_ino for file in files]  # a new file has another number

    dataprocess.main()
    right, first = outputs(inside), ages()
    capsys.readouterr()
    dataprocess.main()
    assert ages() == first
    assert capsys.readouterr().out.startswith(
        "data/corpus.txt and vocab/vocab.txt are up to date: 12 pairs, "
    )
    for file in ("data/corpus.txt", "data/corpus.json", "vocab/vocab.txt"):
        content = (inside / file).read_bytes()
        for other in (content[:-2], None):
            (inside / file).unlink()
            if other is not None:
                (inside / file).write_bytes(other)
            dataprocess.main()
            assert outputs(inside) == right
    (inside / "data/11/pair.json").unlink()
    dataprocess.main()
    assert outputs(inside)[0] == plain_corpus(pairs[:11]).encode()
    shutil.rmtree(inside / "data/10")
    write_pair(inside / "data/10", [["nop"]], [[[0]]])
    dataprocess.main()
    assert outputs(inside)[0] == (plain_corpus(pairs[:10]) + "nop\n\n").encode()


# Folders that are not as they should be


def test_incomplete_folders_are_skipped_and_reported(pairs, inside, capsys):
    (inside / "data/3/pair.json").unlink()
    (inside / "data/99").mkdir()
    (inside / "data/.4.tmp").mkdir()
    (inside / "data/notes").mkdir()
    dataprocess.main()
    out = capsys.readouterr().out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("skipped")] == [
        "data/3:",
        "data/99:",
    ]
    expected = plain_corpus(pairs[:3] + pairs[4:])
    assert (inside / "data/corpus.txt").read_text(encoding="utf-8") == expected


@pytest.mark.parametrize("make", ["nothing", "empty", "incomplete", "no walks"])
def test_nothing_to_read_names_gendata(inside, make):
    if make == "empty":
        (inside / "data").mkdir()
    if make == "incomplete":
        (inside / "data/0").mkdir(parents=True)
    if make == "no walks":
        write_pair(inside / "data/0", [["mov"]], [])
    with pytest.raises(UserError, match=r"python gendata\.py"):
        dataprocess.main()
    assert outputs(inside) == [None, None, None]
    assert not list(inside.rglob("*.tmp"))


@pytest.mark.parametrize(
    "word",
    [
        *(*SPECIAL_TOKENS, "##a", "##"),
        *("", "a b", "a\tb", "a\rb", "a\x00", "\x1b[0m", "\x7f"),
        *("a\x85b", "a\xa0b", "a\u2028b", "\u3000", "\u202e"),
    ],
)
def test_hostile_token_is_refused(pairs, inside, word):
    write_pair(inside / "data/50", [["mov", word]], [[[0]]])
    with pytest.raises(UserError, match=r"data/50/dictionary\.txt.*delete data/50") as error:
        dataprocess.main()
    assert "\n" not in str(error.value)
    assert outputs(inside) == [None, None, None]


def test_token_with_a_line_end_cannot_shift_the_others(inside):
    write_pair(inside / "data/0", [["mov", "a\n[MASK]"]], [[[0]]])
    with pytest.raises(UserError, match="MASK"):
        dataprocess.main()


def change(folder, file, **arrays):
    with np.load(folder / file) as old:
        np.savez(folder / file, **{**old, **arrays})


@pytest.mark.parametrize(
    ("file", "name", "values"),
    [
        ("blocks.npz", "tokens", [0, 1, 2]),  # the dictionary has two words
        ("blocks.npz", "tokens", [0, -1, 1]),
        ("blocks.npz", "tokens", [0.0, 1.0, 1.0]),
        ("blocks.npz", "tokens", [[0, 1, 1]]),
        ("blocks.npz", "offsets", [0, 2, 4]),
        ("blocks.npz", "offsets", [1, 2, 3]),
        ("blocks.npz", "offsets", [0, 3, 2, 3]),
        ("blocks.npz", "offsets", []),
        ("walks.npz", "blocks", [0, 1, 2]),  # there are two blocks
        ("walks.npz", "blocks", [-1, 1, 1]),
        ("walks.npz", "sentence", [0, 2]),
        ("walks.npz", "sentence", np.array([0, 1, 3], np.uint64)),
        ("walks.npz", "document", [0, 2, 3]),
        ("walks.npz", "document", np.array([None, "x"], dtype=object)),
    ],
)
def test_inconsistent_arrays_are_refused(inside, file, name, values):
    write_pair(inside / "data/0", [["mov", "reg8"], ["mov"]], [[[0, 1], [1]]])
    dataprocess.main()
    before = outputs(inside)
    change(inside / "data/0", file, **{name: np.array(values)})
    with pytest.raises(UserError, match=rf"data/0/{file}.*delete data/0 and run"):
        dataprocess.main()
    assert outputs(inside) == before  # the old corpus is still there, whole


@pytest.mark.parametrize("file", ["dictionary.txt", "blocks.npz", "walks.npz"])
def test_damaged_files_are_refused(inside, file):
    folder = inside / "data/0"
    write_pair(folder, [["mov", "reg8"], ["mov"]], [[[0, 1], [1]]])
    whole = (folder / file).read_bytes()
    array = inside / "array.npy"
    np.save(array, np.arange(3))
    contents = [whole[:-2], b"\xff\xfe", array.read_bytes()]
    if file != "dictionary.txt":  # an empty dictionary is one, and then blocks.npz is at fault
        contents += [b"", whole[: len(whole) // 2], whole[10:]]
    for content in contents:
        (folder / file).write_bytes(content)
        with pytest.raises(UserError, match=rf"data/0/{file}"):
            dataprocess.main()
    (folder / file).unlink()
    with pytest.raises(UserError, match=rf"data/0/{file}"):
        dataprocess.main()
    assert outputs(inside) == [None, None, None]


@pytest.mark.parametrize(
    "info",
    [
        {"format_version": 2},
        {"program": None},
        {"binaries": []},
        {"binaries": [{"path": "a", "build": "b"}] * 2},
    ],
)
def test_other_formats_are_refused(inside, info):
    write_pair(inside / "data/0", [["mov"]], [[[0]]], **info)
    with pytest.raises(UserError, match=rf"data/0/pair\.json.*{next(iter(info))}.*delete data/0"):
        dataprocess.main()


def test_three_outputs_need_three_names(pairs):
    for flags in ({"corpus_file": "data/corpus.json"}, {"vocab_file": "data/corpus.txt"}):
        with pytest.raises(UserError, match="three files"):
            dataprocess.main(**flags)


# Writing


def run_limited(limit, *flags):
    """Run the script where no file may grow past ``limit`` bytes."""
    return subprocess.run(
        [sys.executable, ROOT / "dataprocess.py", *flags],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )


def test_failed_write_leaves_the_old_files(inside):
    write_pair(inside / "data/0", [["mov", "reg8"]], [[[0]]])
    dataprocess.main()
    before = outputs(inside)
    rng = random.Random(0)
    long = random_pair(rng, WORDS, n_documents=3000)
    write_pair(inside / "data/1", *long)
    result = run_limited(20_000)  # the corpus is too long
    assert result.returncode == 1
    assert result.stderr.startswith("error: cannot write data/corpus.txt: ")
    assert result.stderr.count("\n") == 1
    assert outputs(inside) == before
    # Now each token stands in the corpus once, so the vocabulary is a little longer than it.
    names = [f"function_{i}" for i in range(3000)]
    write_pair(inside / "data/2", [names], [[[0]]])
    (inside / "data/1/pair.json").unlink()
    result = run_limited(len(before[0]) + len(plain_corpus([([names], [[[0]]])])) + 50)
    assert result.returncode == 1
    assert result.stderr.startswith("error: cannot write vocab/vocab.txt: ")
    assert outputs(inside) == before
    assert not list(inside.rglob("*.tmp"))
    assert run_limited(10_000_000).returncode == 0
    assert outputs(inside) != before


def test_memory_does_not_grow_with_the_number_of_pairs(inside):
    rng = random.Random(0)
    pair = random_pair(rng, WORDS, n_blocks=200, n_documents=2000)
    write_pair(inside / "data/0", *pair)
    text = len(plain_corpus([pair]))
    peaks = []
    for number in (1, 1, 41):  # the first run only warms up
        for new in range(1, number):
            (inside / "data" / str(new)).symlink_to(inside / "data/0")
        folders, _ = dataprocess.pair_folders("data")
        assert len(folders) == number
        tracemalloc.start()
        with open(inside / "corpus.txt", "wb") as corpus:
            dataprocess.write_corpus(folders, corpus)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (inside / "corpus.txt").stat().st_size >= number * text
    assert peaks[1] > text  # the measure sees texts
    assert peaks[2] < peaks[1] + 2 * text


def test_corpus_is_read_in_chunks(inside, monkeypatch):
    monkeypatch.setattr(dataprocess, "CHUNK", 100)
    write_pair(inside / "data/0", [["mov", "reg8"]], [[[0]] * 500])
    dataprocess.main()
    assert dataprocess.count_unknown("vocab/vocab.txt", "data/corpus.txt") == (0, 1000)


# The whole way

words = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1, max_size=5)
words = words.filter(str.isprintable)
words = words.filter(lambda word: not word.startswith("##") and word not in SPECIAL_TOKENS)


@st.composite
def any_pairs(draw):
    pairs = []
    for _ in range(draw(st.integers(1, 3))):
        blocks = draw(st.lists(st.lists(words, max_size=4), min_size=1, max_size=6))
        block = st.integers(0, len(blocks) - 1)
        pairs.append((blocks, draw(st.lists(st.lists(st.lists(block, max_size=4))))))
    return pairs


@settings(max_examples=60, deadline=None)
@given(pairs=any_pairs())
def test_round_trip(tmp_path_factory, pairs):
    inside = tmp_path_factory.mktemp("round")
    for number, pair in enumerate(pairs):
        write_pair(inside / "data" / str(number), *pair)
    files = {"vocab_file": str(inside / "v.txt"), "corpus_file": str(inside / "data/corpus.txt")}
    text = plain_corpus(pairs)
    if not text:
        with pytest.raises(UserError, match="no walks"):
            dataprocess.main(str(inside / "data"), **files)
        return
    dataprocess.main(str(inside / "data"), **files)
    assert (inside / "data/corpus.txt").read_bytes() == text.encode()
    tokenizer = CorpusTokenizer(inside / "v.txt")
    with open(inside / "data/corpus.txt", "rb") as corpus:
        ids, offsets = tokenizer.encode_lines(corpus)
    assert 1 not in ids  # [UNK]
    lines = [" ".join(tokenizer.convert_ids_to_tokens(ids[a:b])) for a, b in pairwise(offsets)]
    assert "".join(f"{line}\n" for line in lines) == text


def test_imports_neither_side():
    code = "import sys, dataprocess; print({'torch', 'angr', 'tensorflow'} & set(sys.modules))"
    result = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
    assert result == "set()\n"
