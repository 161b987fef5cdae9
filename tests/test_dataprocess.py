"""The corpus and the vocabulary against a slow plain rendering; damaged and hostile folders."""

import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from conftest import NO_DATA, ROOT, typed
from hypothesis import given, settings
from hypothesis import strategies as st

import dataprocess
import samefunc
from binary.analysis import Analysis, save_analysis
from pairs.folder import FORMAT_VERSION, find_pairs
from pairs.text import read_binary
from pairs.walks import save_walks
from tokenization import SPECIAL_TOKENS, CorpusTokenizer, load_vocab
from utils import UserError

WALK_LENGTH = 2


@pytest.mark.parametrize("command", [dataprocess.main, samefunc.twins])
def test_no_pair_and_no_analysis_is_replaced(inside, command, capsys):
    write_pair(inside / "data" / "0", [["mov"], ["ret"]], [[0, 1]])
    before = {file: file.read_bytes() for file in inside.rglob("*") if file.is_file()}
    flags = ["--to"] if command is samefunc.twins else ["--vocab_file", "--corpus_file"]
    for flag in flags:
        for place in ("data/0/walks.npz", "./data/0/new.txt", "output/new.npz"):
            assert typed(command, flag, place) == 2
            assert f"{place} lies in" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in inside.rglob("*") if file.is_file()} == before


def write_analysis(file, blocks):
    """Write an analysed binary; only its tokens matter here.

    Instructions have two tokens; the last one of a block may have one.
    """
    n = len(blocks)
    made = [[" ".join(block[i : i + 2]) for i in range(0, len(block), 2)] for block in blocks]
    form = sorted({instruction for inside in made for instruction in inside})
    strings = sum(i.split(" ")[1:].count("str") for inside in made for i in inside)
    instructions = {
        "first_instruction": np.cumsum([0, *map(len, made)]).astype(np.int64),
        "instruction_form": np.array([form.index(i) for inside in made for i in inside], np.int32),
        "form": form,
        "operand_string": np.zeros(strings, np.int32),  # all of them name an empty literal
    }
    analysis = Analysis(
        address=np.arange(n, dtype=np.uint64),
        function=np.zeros(n, np.int32),
        edges=np.zeros((0, 2), np.int32),
        kind=np.zeros(0, np.uint8),
        returns=np.zeros(n, bool),
        function_address=np.zeros(1, np.uint64),
        function_name=["f"],
        import_name=[],
        string_block=np.zeros(min(n, 1), np.int32),
        string=[b""] * min(n, 1),
        **(NO_DATA | instructions),
        instructions=[b""] * n,
    )
    save_analysis(analysis, file)


def write_pair(folder, blocks, documents, **info):
    """Write a pair folder and, beside data/, its analyses.

    ``blocks`` are lists of tokens; the first half belongs to the first binary. ``documents`` are
    lists of block ids, which become sentences of two blocks.
    """
    folder.mkdir(parents=True)
    half = len(blocks) // 2
    analyses = []
    for side, part in enumerate((blocks[:half], blocks[half:])):
        analyses.append(f"{folder.name}-{side}.npz")
        write_analysis(folder.parent.parent / "output" / analyses[-1], part)
    save_walks(
        folder / "walks.npz",
        np.array([block for document in documents for block in document], np.int32),
        np.cumsum([0] + [len(document) for document in documents]),
    )
    builds = [{"path": f"b/O{i}/chroot", "build": f"O{i}", "sha256": str(i) * 64} for i in (0, 3)]
    counts = dict.fromkeys(("edges", "merged", "visits", "walks", "documents", "tokens"), 0)
    record = {
        "format_version": FORMAT_VERSION,
        "pair": int(folder.name),
        "program": "chroot",
        "split": "train",
        "binaries": builds,
        "analysis": "made up",
        "tokens": 1,
        "analyses": analyses,
        "settings": {"walk": "any", "num_walks": 2, "walk_length": WALK_LENGTH, "sentences": 9},
        "seed": 0,
        "counts": {
            **counts,
            "blocks": len(blocks),
            "documents_in_both": 0,
            "document_lengths": [],
        },
    }
    (folder / "pair.json").write_text(json.dumps({**record, **info}))


def plain_block(block):
    return "\t".join(" ".join(block[i : i + 2]) for i in range(0, len(block), 2))


def plain_documents(pairs):
    """Render the documents of each of ``[(blocks, documents), ...]`` in the simplest way."""
    seen = set()
    for blocks, documents in pairs:
        texts = []
        for document in documents:
            cuts = range(0, len(document), WALK_LENGTH)
            sentences = [document[cut : cut + WALK_LENGTH] for cut in cuts]
            texts_of = [[plain_block(blocks[b]) for b in sentence] for sentence in sentences]
            lines = ["\t".join(filter(None, inside)) for inside in texts_of]
            text = "".join(f"{line}\n" for line in lines if line)
            if text and text not in seen:
                seen.add(text)
                texts.append(text + "\n")
        yield texts


def plain_corpus(pairs):
    return "".join(text for texts in plain_documents(pairs) for text in texts)


def random_pair(rng, words, n_blocks=30, n_documents=8):
    blocks = [rng.choices(words, k=rng.choice([0, 1, 1, 3, 9])) for _ in range(n_blocks)]
    documents = [rng.choices(range(n_blocks), k=rng.randint(1, 9)) for _ in range(n_documents)]
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


def test_the_corpus_is_in_numeric_order_of_pairs(pairs, inside):
    dataprocess.main()  # pair 10 comes after pair 9, not after pair 1
    assert (inside / "data/corpus.txt").read_bytes() == plain_corpus(pairs).encode()


def test_the_vocabulary_is_ordered_by_frequency(pairs, inside):
    dataprocess.main()
    counts = Counter(plain_corpus(pairs).split())
    lines = (inside / "vocab/vocab.txt").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    n = len(SPECIAL_TOKENS)
    assert lines[:n] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ordered = sorted(counts, key=lambda word: [-counts[word], *map(ord, word)])
    assert lines[n : n + len(counts)] == ordered
    letters = set("".join(counts))
    assert "a" in letters  # a letter that is also a token occurs once
    assert set(lines[n + len(counts) :]) == (letters - set(counts)) | {f"##{c}" for c in letters}
    assert len(set(lines)) == len(lines)
    assert load_vocab(inside / "vocab/vocab.txt", SPECIAL_TOKENS)["[MASK]"] == 4


def test_vocabulary_ties_by_code_point(inside):
    words = ["b", "Z", "a", "_", "é", "a0"]
    write_pair(inside / "data/0", [words], [[0]])
    dataprocess.main()
    assert list(load_vocab("vocab/vocab.txt"))[5:11] == ["Z", "_", "a", "a0", "b", "é"]


def test_frequency_is_that_of_the_walks_not_of_the_blocks(inside):
    blocks = [["rare", "rare", "rare"], ["often"], ["never"]]
    write_pair(inside / "data/0", blocks, [[1, 1, 0, 1, 1]])
    dataprocess.main()
    assert list(load_vocab("vocab/vocab.txt"))[5:7] == ["often", "rare"]
    assert "never" not in load_vocab("vocab/vocab.txt")


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


def test_corpus_json_describes_the_corpus(pairs, inside):
    split = ("train", "validation", "test")
    for number in range(len(pairs)):
        file = inside / "data" / str(number) / "pair.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "split": split[number % 3]}))
    dataprocess.main()
    about = json.loads((inside / "data/corpus.json").read_text())
    text = plain_corpus(pairs)
    documents = [len(texts) for texts in plain_documents(pairs)]
    builds = [{"path": f"b/O{i}/chroot", "build": f"O{i}", "sha256": str(i) * 64} for i in (0, 3)]
    written = sum(len([1 for b in ds if any(bs[i] for i in b)]) for bs, ds in pairs)
    assert about == {
        "format_version": 3,
        "corpus_bytes": len(text.encode()),
        "corpus_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "documents": sum(documents),
        "repeated_documents": written - sum(documents),
        "sentences": len([line for line in text.split("\n") if line]),
        "tokens": len(text.split()),
        "pairs": [
            {
                "pair": i,
                "program": f"p{i}",
                "split": split[i % 3],
                "builds": builds,
                "documents": n,
                "sha256": dataprocess.hash_pair(inside / "data" / str(i)),
            }
            for i, n in enumerate(documents)
        ],
        "vocab_size": 32768,
        "vocab_sha256": hashlib.sha256((inside / "vocab/vocab.txt").read_bytes()).hexdigest(),
    }


def test_counts_are_printed(inside, capsys):
    write_pair(inside / "data/0", [["mov", "reg8"], ["call"]], [[0, 1, 1], [1], [1]])
    dataprocess.main()
    lines = capsys.readouterr().out.splitlines()
    facts = {line.split()[0]: line.split()[1:] for line in lines}
    assert (facts["documents"][0], facts["sentences"], facts["tokens"]) == ("2", ["3"], ["5"])
    assert facts["documents"][1] == "(1"  # copy
    assert facts["vocabulary"][0] == str(len(load_vocab("vocab/vocab.txt")))
    assert (facts["[UNK]"][0], facts["whole"][0]) == ("0.0000%", "100.0000%")
    assert lines[lines.index("most common tokens:") + 1].split() == ["3", "60.00%", "call"]


def test_share_of_whole_and_unknown_tokens_is_the_tokenizers():
    counts = Counter({"mov": 7, "ret": 2, "reg8": 5})
    vocab = [*SPECIAL_TOKENS, "mov", "r", "##e", "##t"]
    # ret is r ##e ##t; reg8 has letters that the vocabulary lacks
    assert dataprocess.count_pieces(vocab, counts) == (7 + 5, 7 + 3 * 2 + 5, 5)


# Repeated documents


def test_copies_are_left_out_wherever_they_stand(inside):
    blocks = [["mov", "reg8"], ["call"], ["mov", "reg8", "call"], []]
    # the same text from other blocks: 2 is 0 then 1
    pairs = [
        (blocks, [[0, 1], [2], [0], [1, 1, 0], [1, 1, 0]]),
        (blocks, [[2, 1], [3, 0, 3], [0, 1], [3]]),
        (blocks, [[1, 1, 0], [0, 1]]),
    ]
    for number, pair in enumerate(pairs):
        write_pair(inside / "data" / str(number), *pair)
    dataprocess.main(workers=2)
    text = (inside / "data/corpus.txt").read_text()
    assert text == plain_corpus(pairs)
    texts = ["mov reg8\tcall", "mov reg8", "call\tcall\nmov reg8", "mov reg8\tcall\tcall"]
    assert text == "".join(f"{document}\n\n" for document in texts)
    documents = text.split("\n\n")[:-1]
    assert len(set(documents)) == len(documents)
    about = json.loads((inside / "data/corpus.json").read_text())
    assert [pair["documents"] for pair in about["pairs"]] == [3, 1, 0]
    assert about["repeated_documents"] == 2 + 2 + 2
    # counted without the copies
    lines = load_vocab("vocab/vocab.txt")
    assert list(lines)[5:8] == ["call", "mov", "reg8"]


def test_any_number_of_workers_gives_the_same_files(pairs, inside):
    dataprocess.main(workers=1)
    first = outputs(inside)
    (inside / "data/corpus.json").unlink()
    dataprocess.main(workers=3)
    assert outputs(inside) == first


# The bound on the vocabulary


@pytest.mark.parametrize("spare", [0, 1, 3, 1000])
def test_rarest_tokens_are_spelt(pairs, inside, spare):
    counts = Counter(plain_corpus(pairs).split())
    letters = set("".join(counts))
    size = len(SPECIAL_TOKENS) + 2 * len(letters) + spare
    dataprocess.main(vocab_size=size)
    vocab = list(load_vocab("vocab/vocab.txt"))
    assert len(vocab) == min(size, len(set(vocab)))
    ordered = sorted(counts, key=lambda word: [-counts[word], *map(ord, word)])
    long = [word for word in ordered if word not in letters]
    assert [word for word in vocab if word in long] == long[:spare]
    assert set(letters) | {f"##{c}" for c in letters} <= set(vocab)
    tokenizer = CorpusTokenizer("vocab/vocab.txt")
    for word in counts:
        pieces = tokenizer.tokenize(word)
        assert (pieces == [word]) == (word in vocab)
        assert pieces[0] + "".join(piece[2:] for piece in pieces[1:]) == word


def test_another_size_makes_another_vocabulary(pairs, inside):
    dataprocess.main()
    before = outputs(inside)
    dataprocess.main(vocab_size=60)
    assert outputs(inside)[0] == before[0]
    assert len(load_vocab("vocab/vocab.txt")) == 60


def test_too_small_a_vocabulary_says_what_it_needs(pairs, inside):
    with pytest.raises(UserError, match=r"--vocab_size 7 is too small .* give (\d+)") as error:
        dataprocess.main(vocab_size=7)
    least = int(str(error.value).split()[-3])
    assert outputs(inside) == [None, None, None]
    dataprocess.main(vocab_size=least)
    assert len(load_vocab("vocab/vocab.txt")) == least


def test_counting_is_bounded_and_keeps_the_frequent(monkeypatch):
    monkeypatch.setattr(dataprocess, "COUNTED", 100)
    rng = random.Random(0)
    vocabulary = dataprocess.Vocabulary()
    true: Counter[str] = Counter()
    for part in range(300):
        words = [f"often{n}" for n in range(20)] * 3 + [f"rare{part}.{n}" for n in range(50)]
        counts = Counter(rng.sample(words, len(words)))
        true.update(counts)
        vocabulary.add(counts)
        assert len(vocabulary.counts) <= 100
    assert {w for w, _ in vocabulary.counts.most_common(20)} == {f"often{n}" for n in range(20)}
    assert all(vocabulary.counts[word] == 900 for word in (f"often{n}" for n in range(20)))
    assert vocabulary.alphabet == set("".join(true))  # so forgotten words can still be spelt


def test_second_run_makes_the_same_bytes(pairs, inside):
    dataprocess.main()
    first = outputs(inside)
    (inside / "data/corpus.json").unlink()  # or nothing is done
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
        return [(inside / file).stat().st_ino for file in files]  # changes if a file is replaced

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
    write_pair(inside / "data/10", [["nop"]], [[0]])
    dataprocess.main()
    assert outputs(inside)[0] == (plain_corpus(pairs[:10]) + "nop\n\n").encode()


# Damaged folders


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
        *("", "a\tb", "a\rb", "a\x00", "\x1b[0m", "\x7f"),
        *("a\x85b", "a\xa0b", "a\u2028b", "\u3000", "\u202e"),
    ],
)
def test_hostile_token_is_refused(pairs, inside, word):
    write_pair(inside / "data/50", [["mov", word]], [[0]])
    with pytest.raises(
        UserError, match=r"output/50-1\.npz is damaged .*delete it and run"
    ) as error:
        dataprocess.main()
    assert "\n" not in str(error.value)
    assert outputs(inside) == [None, None, None]


def test_token_with_a_line_end_cannot_shift_the_others(inside):
    write_pair(inside / "data/0", [["mov", "a\n[MASK]"]], [[0]])
    with pytest.raises(UserError, match="MASK"):
        dataprocess.main()


def change(file, **arrays):
    with np.load(file) as old:
        np.savez(file, **{**old, **arrays})


@pytest.mark.parametrize(
    ("file", "name", "values"),
    [
        ("output/0-1.npz", "instruction_form", [0, 1, 2]),  # there are two forms
        ("output/0-1.npz", "instruction_form", [0, -1]),
        ("output/0-1.npz", "instruction_form", [0.0, 1.0]),
        ("output/0-1.npz", "instruction_form", [[0, 1]]),
        ("output/0-1.npz", "operand_string", [0]),  # no operand is a string
        ("output/0-1.npz", "first_instruction", [0, 1, 4]),
        ("output/0-1.npz", "first_instruction", [1, 1, 2]),
        ("output/0-1.npz", "first_instruction", [0, 2, 1, 2]),
        ("output/0-1.npz", "first_instruction", []),
        ("output/0-1.npz", "first_instruction", [0, 2]),  # one block less than in the walks
        ("data/0/walks.npz", "step", [0, 1, 2]),  # there are three blocks
        ("data/0/walks.npz", "step", [-1, 1, 1]),
        ("data/0/walks.npz", "step", np.array([0, 1, 1], np.uint64)),
        ("data/0/walks.npz", "length", [2]),
        ("data/0/walks.npz", "length", [3, 0]),
        ("data/0/walks.npz", "length", [[3]]),
        ("data/0/walks.npz", "length", np.array([None, "x"], dtype=object)),
    ],
)
def test_inconsistent_arrays_are_refused(inside, file, name, values):
    write_pair(inside / "data/0", [["call"], ["mov", "reg8"], ["mov"]], [[0, 1, 2]])
    dataprocess.main()
    before = outputs(inside)
    change(file, **{name: np.array(values)})
    (inside / "data/corpus.json").unlink()  # a corpus is not made again for a changed analysis
    with pytest.raises(UserError, match=r"(0-1|walks)\.npz is .*delete (it|data/0) and run"):
        dataprocess.main()
    assert outputs(inside) == [before[0], None, before[2]]  # the old corpus is still complete


@pytest.mark.parametrize("file", ["output/0-0.npz", "output/0-1.npz", "data/0/walks.npz"])
def test_damaged_files_are_refused(inside, file):
    write_pair(inside / "data/0", [["mov", "reg8"], ["mov"]], [[0, 1], [1]])
    file = inside / file
    whole = file.read_bytes()
    array = inside / "array.npy"
    np.save(array, np.arange(3))
    half = len(whole) // 2
    for content in (whole[:-2], b"\xff\xfe", array.read_bytes(), b"", whole[:half], whole[10:]):
        file.write_bytes(content)
        with pytest.raises(UserError, match=rf"{file.name} is"):
            dataprocess.main()
    file.unlink()
    with pytest.raises(UserError, match=rf"{file.name}"):
        dataprocess.main()
    assert outputs(inside) == [None, None, None]


def test_missing_analyses_are_named_with_the_flag_for_their_folder(pairs, inside):
    (inside / "output").rename(inside / "elsewhere")
    with pytest.raises(UserError, match=r"output/0-0\.npz.*b/O0/chroot.*pair 0.*--outputDir") as e:
        dataprocess.main()
    assert "\n" not in str(e.value)
    assert outputs(inside) == [None, None, None]
    dataprocess.main(outputDir="elsewhere")
    assert (inside / "data/corpus.txt").read_bytes() == plain_corpus(pairs).encode()


def test_the_name_of_an_analysis_leads_nowhere_else(inside):
    write_pair(inside / "data/0", [["mov"], ["ret"]], [[0, 1]])
    (inside / "output/0-0.npz").rename(inside / "secret.npz")
    file = inside / "data/0/pair.json"
    file.write_text(file.read_text().replace("0-0.npz", "../secret.npz"))
    with pytest.raises(UserError, match=r"output/secret\.npz"):
        dataprocess.main()


@pytest.mark.parametrize(
    "info",
    [
        {"format_version": 1},
        {"program": None},
        {"split": "dev"},
        {"analyses": ["a.npz"]},
        {"settings": {"walk": "any", "num_walks": 1, "walk_length": 0, "sentences": 1}},
        {"counts": {}},
        {"counts": None},
        {"binaries": []},
        {"binaries": [{"path": "a", "build": "b"}] * 2},
    ],
)
def test_other_formats_are_refused(inside, info):
    write_pair(inside / "data/0", [["mov"]], [[0]], **info)
    with pytest.raises(UserError, match=rf"data/0/pair\.json.*{next(iter(info))}.*delete data/0"):
        dataprocess.main()


def test_three_outputs_need_three_names(pairs):
    for flags in ({"corpus_file": "data/corpus.json"}, {"vocab_file": "data/corpus.txt"}):
        with pytest.raises(UserError, match="three files"):
            dataprocess.main(**flags)


# Writing


def run_limited(limit, *flags):
    """Run the script with a limit of ``limit`` bytes per file."""
    return subprocess.run(
        [sys.executable, ROOT / "dataprocess.py", *flags],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=False,
    )


def test_failed_write_leaves_the_old_files(inside):
    write_pair(inside / "data/0", [["mov", "reg8"]], [[0]])
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
    # Now each token occurs once in the corpus, so the vocabulary is a little longer.
    names = [f"function_{i}" for i in range(3000)]
    write_pair(inside / "data/2", [names], [[0]])
    (inside / "data/1/pair.json").unlink()
    result = run_limited(len(before[0]) + len(plain_corpus([([names], [[0]])])) + 50)
    assert result.returncode == 1
    assert result.stderr.startswith("error: cannot write vocab/vocab.txt: ")
    assert outputs(inside) == before
    assert not list(inside.rglob("*.tmp"))
    assert run_limited(10_000_000).returncode == 0
    assert outputs(inside) != before


def test_memory_does_not_grow_with_the_number_of_pairs(inside):
    rng = random.Random(0)
    parts = [random_pair(rng, WORDS, n_blocks=200, n_documents=2000) for _ in range(41)]
    text = len(plain_corpus(parts[:1]))
    peaks = []
    for number in (1, 1, 41):  # the first run only warms up
        for new in range(number):
            if not (inside / "data" / str(new)).exists():
                write_pair(inside / "data" / str(new), *parts[new])
        folders, _ = find_pairs("data")
        assert len(folders) == number
        read_binary.cache_clear()
        tracemalloc.start()
        with open("corpus.txt", "wb") as corpus, open("corpus.json", "w") as about:
            texts = dataprocess.pair_texts(folders, "output", 1, inside)
            dataprocess.write_corpus(texts, corpus, about)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (inside / "corpus.txt").stat().st_size >= number * text / 2
    assert peaks[1] > text  # the measurement notices a text
    assert peaks[2] - peaks[1] < 20 * text  # some are in memory at a time, but not all 41


def test_seen_documents_take_disk_not_memory(tmp_path):
    seen = dataprocess.SeenDocuments(tmp_path)
    numbers = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 1000).tolist()
    assert seen.add(numbers).all()
    assert not seen.add(numbers[::7]).any()
    assert seen.add([1, numbers[0], 1, -(2**63)]).tolist() == [True, False, False, True]
    assert not list(tmp_path.iterdir())  # SQLite has deleted what it still writes to


def test_a_worker_that_dies_is_no_traceback(pairs, inside, monkeypatch):
    monkeypatch.setattr(dataprocess, "read_pair", lambda *_: os._exit(3))
    with pytest.raises(UserError, match="a process died"):
        dataprocess.main()
    assert outputs(inside) == [None, None, None]


# The whole pipeline

words = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1, max_size=5)
words = words.filter(str.isprintable)
words = words.filter(lambda word: not word.startswith("##") and word not in SPECIAL_TOKENS)


@st.composite
def any_pairs(draw):
    pairs = []
    for _ in range(draw(st.integers(1, 3))):
        blocks = draw(st.lists(st.lists(words, max_size=4), min_size=1, max_size=6))
        block = st.integers(0, len(blocks) - 1)
        pairs.append((blocks, draw(st.lists(st.lists(block, min_size=1, max_size=9)))))
    return pairs


@settings(max_examples=30, deadline=None)
@given(pairs=any_pairs())
def test_the_corpus_tokenises_back_into_the_walks(tmp_path_factory, pairs):
    inside = tmp_path_factory.mktemp("round")
    for number, pair in enumerate(pairs):
        write_pair(inside / "data" / str(number), *pair)
    files = {"vocab_file": str(inside / "v.txt"), "corpus_file": str(inside / "data/corpus.txt")}
    files |= {"outputDir": str(inside / "output"), "workers": 1}
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
    assert "".join(f"{line}\n" for line in lines) == text.replace("\t", " ")


def test_dataprocess_imports_neither_angr_nor_torch():
    code = "import sys, dataprocess; print({'torch', 'angr', 'tensorflow'} & set(sys.modules))"
    result = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
    assert result == "set()\n"


def test_the_next_command_fits_the_paths(tmp_path, monkeypatch):
    """The printed command finds the files when it is pasted into a shell in the same folder."""
    monkeypatch.chdir(ROOT)
    assert dataprocess.train_command("data/corpus.txt", "vocab/vocab.txt") == "sh train.sh"
    assert (
        dataprocess.train_command("x y/c.txt", "vocab/vocab.txt")
        == "data_file='x y/c.txt' sh train.sh"
    )
    assert dataprocess.train_command("c.txt", "v.txt") == "data_file=c.txt vocab=v.txt sh train.sh"
    monkeypatch.chdir(tmp_path)
    line = dataprocess.train_command("c.txt", "v.txt")
    assert line == f"data_file={tmp_path}/c.txt vocab={tmp_path}/v.txt sh {ROOT}/train.sh"
