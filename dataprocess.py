"""All pairs in data/ -> the vocabulary and the corpus that BERT is pre-trained on.

    python dataprocess.py

Reads the pair folders of gendata.py in numeric order, and the analysed binaries that they refer to,
in parallel, a few at a time, so that memory does not grow with the corpus. Writes three files that
take their names together:

- data/corpus.txt: one sentence per line, tokens separated by one blank; a blank line ends a
  document. A document that stood in the corpus before is left out.
- vocab/vocab.txt: [PAD] [UNK] [CLS] [SEP] [MASK], the corpus's tokens by falling frequency (ties by
  code point), then every character of theirs, at the start of a word and inside it (``##c``);
  `vocab_size` lines at most. So every token is whole, except the rarest where they are too many:
  those, and any other word in this alphabet, WordPiece can spell.
- data/corpus.json: the corpus's size and hash, and which documents come from which pair of
  builds: the first pair's documents stand first.

Where all three are there and the pairs are the ones they were made from, nothing is done.

A folder without pair.json was not finished by gendata.py: it is skipped, and reported. A finished
one that is damaged stops the run, for a corpus should not lack a pair without anybody knowing.
"""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import re
import sqlite3
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
import pydantic
from tqdm import tqdm

from binary.analysis import load_analysis
from pairs.walks import load_walks
from tokenization import SPECIAL_TOKENS, CorpusTokenizer
from utils import (
    UserError,
    ahead,
    atomic_file,
    command_line,
    disk_errors,
    read_config,
    remove_leftovers,
    sha256_of,
)

# Settings; each is a flag, too: python dataprocess.py --data other/
data = "data"  # the pair folders that gendata.py made
outputDir = "output/"  # the analysed binaries, as for gendata.py
vocab_file = "vocab/vocab.txt"
corpus_file = "data/corpus.txt"
vocab_size = 32768  # lines of the vocabulary at most
workers = os.cpu_count() or 1  # processes

FORMAT_VERSION = 3  # of corpus.json
PAIR_FILES = ("pair.json", "walks.npz")
COUNTED = 2**20  # distinct tokens that are counted at a time
AHEAD = 4  # pairs under way, for each worker

Count = Annotated[int, pydantic.Field(ge=1)]


@pydantic.dataclasses.dataclass
class Build:
    """One of a pair's two binaries."""

    path: str
    build: str
    sha256: str


@pydantic.dataclasses.dataclass
class Counts:
    """What this script needs of pair.json's counts."""

    blocks: int


@pydantic.dataclasses.dataclass
class WalkSettings:
    """What this script needs of gendata.py's settings."""

    walk_length: Count


@pydantic.dataclasses.dataclass
class PairInfo:
    """What this script needs of pair.json; other keys are gendata.py's own."""

    format_version: Literal[2]
    program: str
    split: Literal["train", "validation", "test"]
    binaries: Annotated[list[Build], pydantic.Field(min_length=2, max_length=2)]
    analyses: Annotated[list[str], pydantic.Field(min_length=2, max_length=2)]
    settings: WalkSettings
    counts: Counts


@dataclasses.dataclass
class BinaryText:
    """An analysed binary, written as text once for all of its pairs.

    ``texts`` are its blocks as bytes (B,), "" where a block has no tokens; block b has the tokens
    ``words[t] for t in tokens[offsets[b]:offsets[b + 1]]``.
    """

    texts: np.ndarray
    words: list[str]
    tokens: np.ndarray
    offsets: np.ndarray

    def count(self, visits: np.ndarray) -> Counter[str]:
        """Count the tokens of blocks visited so often; ``visits`` is int64 (B,)."""
        often = np.repeat(visits, np.diff(self.offsets))
        # bincount weighs in float64, which is exact up to 2^53 tokens.
        counts = np.bincount(self.tokens, often, len(self.words)).astype(int).tolist()
        return Counter({word: n for word, n in zip(self.words, counts, strict=True) if n})


@dataclasses.dataclass
class Pair:
    """One pair folder, read and checked.

    ``blocks`` are the visited blocks (n,), those of the second binary counted on from the first's;
    document d is ``blocks[start[d]:start[d + 1]]``.
    """

    info: PairInfo
    binaries: list[BinaryText]
    blocks: np.ndarray
    start: np.ndarray


@dataclasses.dataclass
class PairText:
    """A pair's part of the corpus and what is in it."""

    info: PairInfo
    sha256: str  # of the folder
    text: bytes
    counts: Counter[str]  # how often each token stands in the text
    sentences: int


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
    about_file: Path, vocab_file: str, corpus_file: str, vocab_size: int, folders: list[Path]
) -> dict[str, Any] | None:
    """Return corpus.json's content, if all three files are what these pairs give, else None."""
    try:
        about = json.loads(about_file.read_text(encoding="utf-8"))
        is_current = (
            about["format_version"] == FORMAT_VERSION
            and about["vocab_size"] == vocab_size
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


@lru_cache(maxsize=64)
def read_binary(file: Path) -> BinaryText:
    """Read an analysed binary and write its blocks as text.

    Raises
    ------
    UserError
        The file is damaged, its arrays do not fit together, or a token could forge a special
        token, a blank or a line.
    """
    analysis = load_analysis(file, for_display=False)
    words, tokens, offsets = analysis.dictionary, analysis.tokens, analysis.offsets
    try:
        for word in words:
            check_word(word)
        if len(set(words)) < len(words):
            raise ValueError("a word stands in its dictionary twice")
        check_ids("tokens", tokens, len(words))
        check_offsets("offsets", offsets, len(tokens))
    except ValueError as error:
        raise UserError(
            f"{file} is damaged ({error}); delete it and run `python gendata.py` again"
        ) from error
    names = [words[i] for i in tokens.tolist()]
    texts = np.empty(len(offsets) - 1, dtype=object)
    texts[:] = [" ".join(names[a:b]).encode() for a, b in pairwise(offsets.tolist())]
    return BinaryText(texts, words, tokens, offsets)


def read_info(folder: Path, output_dir: str) -> tuple[PairInfo, list[Path]]:
    """Read what pair.json says of a pair, and where the analyses of its two binaries are.

    Raises
    ------
    UserError
        A file is missing, or pair.json is damaged or of another format version.
    """
    try:
        info = read_config(PairInfo, folder / "pair.json")
    except UserError as error:
        raise UserError(f"{error}; {remedy(folder)}") from error
    files = [Path(output_dir) / Path(name).name for name in info.analyses]
    for file, build in zip(files, info.binaries, strict=True):
        if not file.is_file():
            raise UserError(
                f"{file}, the analysis of {build.path} that {folder} refers to, is missing; "
                "name gendata.py's outputDir with --outputDir, or run `python gendata.py` again"
            )
    return info, files


def remedy(folder: Path) -> str:
    return f"delete {folder} and run `python gendata.py` again"


def read_pair(folder: Path, output_dir: str) -> Pair:
    """Read one pair folder and the two analyses that it refers to.

    Raises
    ------
    UserError
        A file is missing, damaged or of another format version, or the walks do not fit the
        analyses.
    """
    info, files = read_info(folder, output_dir)
    binaries = [read_binary(file) for file in files]
    file = folder / "walks.npz"
    try:
        blocks, start = load_walks(file)
        size = sum(len(binary.texts) for binary in binaries)
        check_ids("step", blocks, size)
        if size != info.counts.blocks:
            raise ValueError(f"it is of {info.counts.blocks} blocks, but the analyses hold {size}")
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"{file} is damaged ({error}); {remedy(folder)}") from error
    except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise UserError(f"{file} is no whole .npz file ({error}); {remedy(folder)}") from error
    return Pair(info, binaries, blocks, start)


def render(pair: Pair) -> tuple[list[bytes], np.ndarray]:
    """Write a pair's walks as text; blocks without tokens leave no trace in it.

    Returns
    -------
    documents : list of bytes
        Sentences of ``walk_length`` blocks (the last may be shorter), a line each, and a blank
        line. What no token is in is left out, be it a sentence or a document.
    numbers : int64 (documents,)
        Which of the pair's walks they are.
    """
    texts = np.concatenate([binary.texts for binary in pair.binaries])
    lengths = np.diff(pair.start)
    document = np.repeat(np.arange(len(lengths)), lengths)  # (visits,)
    within = np.arange(len(document)) - pair.start[document]
    sentence = within // pair.info.settings.walk_length  # of its document
    seen = texts[pair.blocks] != b""
    blocks, document, sentence = pair.blocks[seen], document[seen], sentence[seen]
    ends_document = np.diff(document, append=-1) != 0
    ends_sentence = (np.diff(sentence, append=-1) != 0) | ends_document

    # The text is blocks and separators taken in turn.
    separators = np.array([b" ", b"\n", b"\n\n"], dtype=object)
    parts = np.empty(2 * len(blocks), dtype=object)
    parts[0::2] = texts[blocks]
    parts[1::2] = separators[ends_sentence.astype(int) + ends_document]
    parts = parts.tolist()
    ends = 2 * np.flatnonzero(ends_document) + 2
    documents = [b"".join(parts[a:b]) for a, b in pairwise([0, *ends.tolist()])]
    return documents, document[ends_document]


def hash_documents(folder: Path, output_dir: str) -> list[int]:
    """Return a 64-bit hash of each of a pair's documents; runs in a worker."""
    documents, _ = render(read_pair(folder, output_dir))
    digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in documents)
    return np.frombuffer(digests, np.int64).tolist()


def write_documents(folder: Path, output_dir: str, is_new: np.ndarray) -> PairText:
    """Return the text of those of a pair's documents that are new; runs in a worker."""
    pair = read_pair(folder, output_dir)
    documents, numbers = render(pair)
    text = b"".join(documents[d] for d in np.flatnonzero(is_new))
    kept = np.zeros(len(pair.start) - 1, bool)
    kept[numbers[is_new]] = True
    first, second = pair.binaries
    visits = np.bincount(
        pair.blocks[np.repeat(kept, np.diff(pair.start))],
        minlength=len(first.texts) + len(second.texts),
    )
    counts = first.count(visits[: len(first.texts)])
    counts.update(second.count(visits[len(first.texts) :]))
    # Each line ends in one \n, and each document in one more.
    sentences = text.count(b"\n") - int(is_new.sum())
    return PairText(pair.info, hash_pair(folder), text, counts, sentences)


class SeenDocuments:
    """The hashes of all documents so far, in a temporary database: memory does not grow with them.

    Two different documents have equal hashes with odds of 1 in 2^64, so among n documents one is
    taken for another's copy with odds of n^2 / 2^65: 1 in 40,000 for 30 million (10 billion
    tokens).
    """

    def __init__(self, folder: Path):
        self.folder = folder
        # SQLite deletes the file as soon as it is open, so that nothing is ever left behind.
        os.environ["SQLITE_TMPDIR"] = str(folder)
        self.database = sqlite3.connect("", isolation_level=None)
        for line in ("PRAGMA journal_mode = OFF", "CREATE TABLE seen (hash INTEGER PRIMARY KEY)"):
            self.database.execute(line)

    def add(self, hashes: list[int]) -> np.ndarray:
        """Remember the hashes; return whether each was new, bool (hashes,)."""
        add = "INSERT OR IGNORE INTO seen VALUES (?)"
        try:
            self.database.execute("BEGIN")
            new = [self.database.execute(add, (number,)).rowcount for number in hashes]
            self.database.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise UserError(f"cannot write a temporary file in {self.folder}: {error}") from error
        return np.array(new, bool)


def forget_rarest(counts: Counter[str]) -> None:
    """Where more than COUNTED tokens are counted, forget all but the most frequent half of it.

    A forgotten token that comes again starts at 0, so that a count may be too small, by what was
    forgotten, but memory is bounded. The same pairs in the same order give the same counts.
    """
    if len(counts) > COUNTED:
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        for word in ordered[COUNTED // 2 :]:
            del counts[word]


@dataclasses.dataclass
class Vocabulary:
    """What goes into the vocabulary: tokens with their counts, and the characters of all tokens."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    alphabet: set[str] = dataclasses.field(default_factory=set)

    def add(self, counts: Counter[str]) -> None:
        self.counts.update(counts)
        self.alphabet.update("".join(counts))
        forget_rarest(self.counts)

    def lines(self, size: int) -> list[str]:
        """Return special tokens, tokens by falling frequency, word pieces: ``size`` at most.

        Raises
        ------
        UserError
            Not even the characters have room.
        """
        words = sorted(self.counts, key=lambda word: (-self.counts[word], word))
        alphabet = sorted(self.alphabet)
        inside = [f"##{char}" for char in alphabet]
        room = size - len(SPECIAL_TOKENS) - len(inside) - len(alphabet)
        if room < 0:
            raise UserError(
                f"--vocab_size {size} is too small for the {len(alphabet)} characters of the "
                f"corpus; give {size - room} or more"
            )
        # A one-letter token is its own piece, so it takes no room twice.
        whole: list[str] = []
        for word in words:
            if word in self.alphabet or room > 0:
                whole.append(word)
                room -= word not in self.alphabet
        kept = set(whole)
        return [*SPECIAL_TOKENS, *whole, *(c for c in alphabet if c not in kept), *inside]


def pair_texts(
    folders: list[Path], output_dir: str, workers: int, near: Path
) -> Iterator[tuple[Path, PairText, int]]:
    """Yield folder, text and number of repeated documents of each pair, in order, from a pool."""
    # Forked: what is imported already need not be again, and no thread runs here yet.
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, context)
    seen = SeenDocuments(near)
    try:
        hashed = ((f, pool.submit(hash_documents, f, output_dir)) for f in folders)

        def texts() -> Iterator[tuple[Path, Any, int]]:
            for folder, future in ahead(hashed, AHEAD * workers):
                is_new = seen.add(future.result())
                text = pool.submit(write_documents, folder, output_dir, is_new)
                yield folder, text, len(is_new) - int(is_new.sum())

        for folder, future, repeated in ahead(texts(), AHEAD * workers):
            yield folder, future.result(), repeated
    except BrokenProcessPool as error:
        raise UserError(
            "a process died, perhaps for lack of memory; try fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def write_corpus(
    texts: Iterator[tuple[Path, PairText, int]], corpus: IO[bytes], about: IO[str]
) -> tuple[Vocabulary, dict[str, Any]]:
    """Write all pairs' texts to ``corpus`` and, as corpus.json, what is in it to ``about``.

    Returns
    -------
    vocabulary : Vocabulary
        Of the corpus.
    facts : dict
        What corpus.json says besides the pairs; it is left open for more.
    """
    vocabulary = Vocabulary()
    digest = hashlib.sha256()
    total: Counter[str] = Counter()
    about.write('{\n "pairs": [')
    for folder, part, repeated in texts:
        corpus.write(part.text)
        digest.update(part.text)
        vocabulary.add(part.counts)
        documents = part.text.count(b"\n\n")
        entry = {
            "pair": int(folder.name),
            "program": part.info.program,
            "split": part.info.split,
            "builds": [dataclasses.asdict(build) for build in part.info.binaries],
            "documents": documents,
            "sha256": part.sha256,
        }
        # Written at once: the pairs of a large corpus would not fit into memory.
        about.write(f"{',' if total['pairs'] else ''}\n  {json.dumps(entry)}")
        total.update(
            pairs=1,
            documents=documents,
            repeated=repeated,
            sentences=part.sentences,
            tokens=part.counts.total(),
            bytes=len(part.text),
        )
    about.write("\n ]")
    facts = {
        "format_version": FORMAT_VERSION,
        "corpus_bytes": total["bytes"],
        "corpus_sha256": digest.hexdigest(),
        "documents": total["documents"],
        "repeated_documents": total["repeated"],
        "sentences": total["sentences"],
        "tokens": total["tokens"],
    }
    return vocabulary, facts


def count_pieces(vocab: list[str], counts: Counter[str]) -> tuple[int, int, int]:
    """Return how many of the counted tokens are whole, how many ids all make, how many are [UNK].

    Each distinct token goes through the tokenizer that reads the corpus.
    """
    tokenizer = CorpusTokenizer({token: number for number, token in enumerate(vocab)})
    whole = pieces = unknown = 0
    for word, count in counts.items():
        ids = tokenizer.encode(word)
        whole += count * (len(ids) == 1)
        pieces += count * len(ids)
        unknown += count * int((ids == tokenizer.vocab["[UNK]"]).sum())
    return whole, pieces, unknown


def main(
    data: str = data,
    outputDir: str = outputDir,
    vocab_file: str = vocab_file,
    corpus_file: str = corpus_file,
    vocab_size: Count = vocab_size,
    workers: Count = workers,
) -> None:
    """Make the vocabulary and the corpus of all pairs.

    Parameters
    ----------
    data : str
        The folder that gendata.py wrote: data/0, data/1, ...
    outputDir : str
        Where gendata.py keeps the analysed binaries.
    vocab_file : str
        The vocabulary to write, one token per line.
    corpus_file : str
        The corpus to write, one sentence per line; its facts go beside it, as .json.
    vocab_size : int
        Lines of the vocabulary at most; the rarest tokens are spelt by characters.
    workers : int
        Processes; any number of them gives the same files.
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

    about = read_current(about_file, vocab_file, corpus_file, vocab_size, folders)
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
        texts = pair_texts(folders, outputDir, workers, Path(corpus_file).parent)
        bar = tqdm(texts, total=len(folders), desc="pairs", unit="pair", disable=None)
        vocabulary, facts = write_corpus(bar, corpus_out, about_out)
        counts = vocabulary.counts
        if not counts:
            raise UserError(f"the pairs in {data} hold no walks; run `python gendata.py` again")
        vocab = vocabulary.lines(vocab_size)
        lines = "".join(f"{token}\n" for token in vocab)
        facts["vocab_size"] = vocab_size
        facts["vocab_sha256"] = hashlib.sha256(lines.encode()).hexdigest()
        with disk_errors(Path(vocab_file)):
            vocab_out.write(lines)
            vocab_out.flush()
        with disk_errors(about_file):
            about_out.write("," + json.dumps(facts, indent=1)[1:] + "\n")
            about_out.flush()
    seconds = time.perf_counter() - start

    whole, pieces, unknown = count_pieces(vocab, counts)
    size, total = facts["corpus_bytes"] / 1e6, counts.total()
    documents, repeated = facts["documents"], facts["repeated_documents"]
    print(f"pairs       {len(folders):>12,}  ({len(incomplete)} incomplete ones skipped)")
    print(f"documents   {documents:>12,}  ({repeated:,} exact copies of others left out)")
    print(f"sentences   {facts['sentences']:>12,}")
    print(f"tokens      {facts['tokens']:>12,}")
    print(f"vocabulary  {len(vocab):>12,}  (for {len(counts):,} different tokens of the corpus)")
    print(f"whole       {whole / total:>12.4%}  ({pieces:,} ids stand for {total:,} tokens)")
    print(f"[UNK]       {unknown / total:>12.4%}  ({unknown:,} of {total:,} tokens)")
    print(f"wrote {size:,.1f} MB in {seconds:.1f} s ({size / seconds:.1f} MB/s)")
    print("most common tokens:")
    for token, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:20]:
        print(f"  {count:>12,}  {count / total:6.2%}  {token}")
    print(f"{corpus_file}, {about_file} and {vocab_file} are ready; next: sh train.sh")


if __name__ == "__main__":
    command_line(main)
