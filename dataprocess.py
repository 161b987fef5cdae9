"""All pairs in data/ -> the vocabulary and the corpus that BERT is pre-trained on.

    python dataprocess.py

Reads the pair folders of gendata.py in numeric order, one at a time, so that memory does not grow
with the corpus, and writes three files that take their names together:

- vocab/vocab.txt: [PAD] [UNK] [CLS] [SEP] [MASK], the corpus's tokens by falling frequency (ties by
  code point), then every character of theirs, at the start of a word and inside it (``##c``).
  So every token of the corpus is whole, and WordPiece can spell any other word in its alphabet.
- data/corpus.txt: one sentence per line, tokens separated by one blank; a blank line ends a
  document.
- data/corpus.json: the corpus's size and hash, and which documents come from which pair of
  builds: the first pair's documents stand first.

Where all three are there and the pairs are the ones they were made from, nothing is done.

A folder without pair.json was not finished by gendata.py: it is skipped, and reported. A finished
one that is damaged stops the run, for a corpus should not lack a pair without anybody knowing.
"""

import dataclasses
import hashlib
import json
import re
import time
import zipfile
import zlib
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
import pydantic
from tqdm import tqdm

from tokenization import SPECIAL_TOKENS, CorpusTokenizer
from utils import (
    UserError,
    atomic_file,
    command_line,
    disk_errors,
    read_config,
    remove_leftovers,
    sha256_of,
)

# Settings; each is a flag, too: python dataprocess.py --data other/
data = "data"  # the pair folders that gendata.py made
vocab_file = "vocab/vocab.txt"
corpus_file = "data/corpus.txt"

FORMAT_VERSION = 2  # of corpus.json
PAIR_FILES = ("pair.json", "dictionary.txt", "blocks.npz", "walks.npz")  # those that are read here
CHUNK = 16 << 20  # bytes of the corpus that are tokenized at once


@pydantic.dataclasses.dataclass
class Build:
    """One of a pair's two binaries."""

    path: str
    build: str
    sha256: str


@pydantic.dataclasses.dataclass
class PairInfo:
    """What this script needs of pair.json; other keys are gendata.py's own."""

    format_version: Literal[1]
    program: str
    binaries: Annotated[list[Build], pydantic.Field(min_length=2, max_length=2)]


@dataclasses.dataclass
class Pair:
    """One pair folder, read and checked.

    ``tokens`` are line numbers of ``words``; block b is ``tokens[offsets[b]:offsets[b + 1]]``.
    ``blocks`` are the visited blocks, cut into sentences by ``sentence`` (offsets into
    ``blocks``), and those into documents by ``document`` (offsets into the sentences).
    """

    info: PairInfo
    words: list[str]
    tokens: np.ndarray
    offsets: np.ndarray
    blocks: np.ndarray
    sentence: np.ndarray
    document: np.ndarray


@dataclasses.dataclass
class PairText:
    """A pair's part of the corpus and what is in it."""

    text: bytes
    counts: Counter[str]  # how often each token stands in the text
    sentences: int
    documents: int


def pair_folders(data: str | Path) -> tuple[list[Path], list[Path]]:
    """Return the complete and the incomplete pair folders of ``data``, each in numeric order."""
    try:
        folders = [path for path in Path(data).iterdir() if re.fullmatch("[0-9]+", path.name)]
    except OSError as error:
        raise UserError(
            f"cannot read the folder {data}: {error.strerror}; run `python gendata.py` first"
        ) from error
    folders.sort(key=lambda path: (int(path.name), path.name))
    complete = [path for path in folders if (path / "pair.json").exists()]
    return complete, [path for path in folders if not (path / "pair.json").exists()]


def hash_pair(folder: Path) -> str:
    """Return one SHA-256 of all that a pair's part of the corpus depends on."""
    digests = [sha256_of(folder / name) for name in PAIR_FILES]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def read_current(
    about_file: Path, vocab_file: str, corpus_file: str, folders: list[Path]
) -> dict[str, Any] | None:
    """Return corpus.json's content, if all three files are what these pairs give, else None."""
    try:
        about = json.loads(about_file.read_text(encoding="utf-8"))
        is_current = (
            about["format_version"] == FORMAT_VERSION
            and about["vocab_sha256"] == sha256_of(vocab_file)
            and about["corpus_sha256"] == sha256_of(corpus_file)
            and [(pair["pair"], pair["sha256"]) for pair in about["pairs"]]
            == [(int(folder.name), hash_pair(folder)) for folder in folders]
            and all(type(about[key]) is int for key in ("documents", "tokens"))
        )
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None
    return about if is_current else None


def check_word(word: str) -> None:
    """Raise a ValueError where ``word`` could change the corpus's structure or its reading."""
    # What is not printable is a control character, a line separator or a blank other than " ".
    if not word or " " in word or not word.isprintable():
        raise ValueError(f"the token {word!r} is empty, or has a blank or control character in it")
    if word in SPECIAL_TOKENS or word.startswith("##"):
        raise ValueError(f"the token {word!r} has a meaning of its own in a vocabulary")


def check_ids(name: str, ids: np.ndarray, size: int) -> None:
    """Raise a ValueError unless ``ids`` are integers from 0 to ``size`` - 1."""
    if ids.ndim != 1 or ids.dtype.kind != "i":
        raise ValueError(f"'{name}' is no list of signed integers")
    if ids.size and not 0 <= ids.min() <= ids.max() < size:
        raise ValueError(f"'{name}' has a number that is not in 0 to {size - 1}")


def check_offsets(name: str, offsets: np.ndarray, size: int) -> None:
    """Raise a ValueError unless ``offsets`` rise from 0 to ``size``."""
    check_ids(name, offsets, size + 1)
    if not offsets.size or offsets[0] != 0 or offsets[-1] != size:
        raise ValueError(f"'{name}' does not lead from 0 to {size}")
    if (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"'{name}' falls")


def read_pair(folder: Path) -> Pair:
    """Read one pair folder.

    Raises
    ------
    UserError
        A file is missing, damaged or of another format version, the arrays do not fit together,
        or a token could forge a special token, a blank or a line.
    """
    remedy = f"delete {folder} and run `python gendata.py` again"
    try:
        info = read_config(PairInfo, folder / "pair.json")
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error
    file = folder / "dictionary.txt"
    try:
        *words, rest = file.read_bytes().decode("utf-8").split("\n")
        if rest:
            raise ValueError("its last line has no end")
        for word in words:
            check_word(word)
        file = folder / "blocks.npz"
        with np.load(file) as arrays:
            tokens, offsets = arrays["tokens"], arrays["offsets"]
        check_ids("tokens", tokens, len(words))
        check_offsets("offsets", offsets, len(tokens))
        file = folder / "walks.npz"
        with np.load(file) as arrays:
            blocks, sentence, document = (arrays[k] for k in ("blocks", "sentence", "document"))
        check_ids("blocks", blocks, len(offsets) - 1)
        check_offsets("sentence", sentence, len(blocks))
        check_offsets("document", document, len(sentence) - 1)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"{file} is damaged ({error}); {remedy}") from error
    except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise UserError(f"{file} is no whole .npz file ({error}); {remedy}") from error
    return Pair(info, words, tokens, offsets, blocks, sentence, document)


def render(pair: Pair) -> PairText:
    """Write a pair's walks as text; blocks without tokens leave no trace in it."""
    lengths = np.diff(pair.offsets)  # (blocks,) tokens of each block
    seen = lengths[pair.blocks] > 0
    blocks = pair.blocks[seen]  # (visits,)
    sentence = np.repeat(np.arange(len(pair.sentence) - 1), np.diff(pair.sentence))[seen]
    document = np.repeat(np.arange(len(pair.document) - 1), np.diff(pair.document))[sentence]
    ends_sentence = np.diff(sentence, append=-1) != 0  # (visits,)
    ends_document = np.diff(document, append=-1) != 0

    # Each block is written once; the text is blocks and separators taken in turn.
    names = [pair.words[i] for i in pair.tokens.tolist()]
    texts = np.empty(len(lengths), dtype=object)
    texts[:] = [" ".join(names[a:b]).encode() for a, b in pairwise(pair.offsets.tolist())]
    separators = np.array([b" ", b"\n", b"\n\n"], dtype=object)
    parts = np.empty(2 * len(blocks), dtype=object)
    parts[0::2] = texts[blocks]
    parts[1::2] = separators[ends_sentence.astype(int) + ends_document]

    visits = np.bincount(blocks, minlength=len(lengths))
    # bincount weighs in float64, which is exact up to 2^53 tokens.
    counted = np.bincount(pair.tokens, np.repeat(visits, lengths), len(pair.words)).astype(int)
    counts: Counter[str] = Counter()
    for word, count in zip(pair.words, counted.tolist(), strict=True):
        if count:
            counts[word] += count
    return PairText(
        b"".join(parts.tolist()), counts, int(ends_sentence.sum()), int(ends_document.sum())
    )


def write_corpus(folders: list[Path], corpus: IO[bytes]) -> tuple[Counter[str], dict[str, Any]]:
    """Write all pairs' texts to ``corpus``.

    Returns
    -------
    counts : Counter
        How often each token stands in the corpus.
    about : dict
        The content of corpus.json.
    """
    counts: Counter[str] = Counter()
    digest = hashlib.sha256()
    size = sentences = 0
    pairs = []
    for folder in tqdm(folders, desc="pairs", unit="pair", disable=None):
        pair = read_pair(folder)
        sha256 = hash_pair(folder)
        part = render(pair)
        corpus.write(part.text)
        digest.update(part.text)
        size += len(part.text)
        counts.update(part.counts)
        sentences += part.sentences
        pairs.append(
            {
                "pair": int(folder.name),
                "program": pair.info.program,
                "builds": [dataclasses.asdict(build) for build in pair.info.binaries],
                "documents": part.documents,
                "sha256": sha256,
            }
        )
    about = {
        "format_version": FORMAT_VERSION,
        "corpus_bytes": size,
        "corpus_sha256": digest.hexdigest(),
        "documents": sum(pair["documents"] for pair in pairs),
        "sentences": sentences,
        "tokens": counts.total(),
        "pairs": pairs,
    }
    return counts, about


def make_vocab(counts: Counter[str]) -> list[str]:
    """Return the vocabulary: special tokens, tokens by falling frequency, word pieces."""
    words = sorted(counts, key=lambda word: (-counts[word], word))
    alphabet = sorted(set("".join(words)))
    # A one-letter token is its own piece; no token begins with "##".
    pieces = [char for char in alphabet if char not in counts]
    return [*SPECIAL_TOKENS, *words, *pieces, *(f"##{char}" for char in alphabet)]


def count_unknown(vocab_file: str | Path, corpus_file: str | Path) -> tuple[int, int]:
    """Read the corpus with the vocabulary; return how many tokens are [UNK], and of how many."""
    tokenizer = CorpusTokenizer(vocab_file)
    unknown = total = 0
    with open(corpus_file, "rb") as corpus:
        while lines := corpus.readlines(CHUNK):
            ids, _ = tokenizer.encode_lines(lines)
            unknown += int((ids == tokenizer.vocab["[UNK]"]).sum())
            total += len(ids)
    return unknown, total


def main(data: str = data, vocab_file: str = vocab_file, corpus_file: str = corpus_file) -> None:
    """Make the vocabulary and the corpus of all pairs.

    Parameters
    ----------
    data : str
        The folder that gendata.py wrote: data/0, data/1, ...
    vocab_file : str
        The vocabulary to write, one token per line.
    corpus_file : str
        The corpus to write, one sentence per line; its facts go beside it, as .json.
    """
    start = time.perf_counter()
    about_file = Path(corpus_file).with_suffix(".json")
    if len({Path(vocab_file), Path(corpus_file), about_file}) < 3:
        raise UserError(
            f"{vocab_file}, {corpus_file} and {about_file} must be three files;"
            " give --corpus_file a name like data/corpus.txt"
        )
    folders, incomplete = pair_folders(data)
    for folder in incomplete:
        print(f"skipped {folder}: it has no pair.json, so gendata.py did not finish it")
    if not folders:
        raise UserError(f"{data} holds no finished pair; run `python gendata.py` first")

    about = read_current(about_file, vocab_file, corpus_file, folders)
    if about:
        print(
            f"{corpus_file} and {vocab_file} are up to date: {len(folders):,} pairs, "
            f"{about['documents']:,} documents, {about['tokens']:,} tokens; next: sh train.sh"
        )
        return

    remove_leftovers(*(Path(file).parent for file in (vocab_file, corpus_file)))
    # All three are written before any takes its name; on an error none does.
    with (
        atomic_file(about_file) as about_out,
        atomic_file(vocab_file) as vocab_out,
        atomic_file(corpus_file, "wb") as corpus_out,
    ):
        counts, about = write_corpus(folders, corpus_out)
        if not counts:
            raise UserError(f"the pairs in {data} hold no walks; run `python gendata.py` again")
        vocab = make_vocab(counts)
        lines = "".join(f"{token}\n" for token in vocab)
        about["vocab_sha256"] = hashlib.sha256(lines.encode()).hexdigest()
        with disk_errors(Path(vocab_file)):
            vocab_out.write(lines)
            vocab_out.flush()
        with disk_errors(about_file):
            json.dump(about, about_out, indent=1)
            about_out.write("\n")
            about_out.flush()
    written = time.perf_counter()

    unknown, total = count_unknown(vocab_file, corpus_file)
    read = time.perf_counter()
    size = about["corpus_bytes"] / 1e6
    pieces = len(vocab) - len(SPECIAL_TOKENS) - len(counts)
    print(f"pairs       {len(folders):>12,}  ({len(incomplete)} incomplete ones skipped)")
    print(f"documents   {about['documents']:>12,}")
    print(f"sentences   {about['sentences']:>12,}")
    print(f"tokens      {about['tokens']:>12,}")
    print(f"vocabulary  {len(vocab):>12,}  ({len(counts):,} tokens of the corpus, {pieces} pieces)")
    print(f"[UNK]       {unknown / total:>12.4%}  ({unknown:,} of {total:,} tokens)")
    print(f"wrote {size:,.1f} MB in {written - start:.1f} s ({size / (written - start):.1f} MB/s),")
    print(f"read them again in {read - written:.1f} s ({size / (read - written):.1f} MB/s)")
    print("most common tokens:")
    for token in vocab[len(SPECIAL_TOKENS) :][: min(20, len(counts))]:
        print(f"  {counts[token]:>12,}  {counts[token] / total:6.2%}  {token}")
    print(f"{corpus_file}, {about_file} and {vocab_file} are ready; next: sh train.sh")


if __name__ == "__main__":
    command_line(main)
