"""The corpus as token ids: tokenised once, then mapped from files."""

import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import sys
from array import array
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import IO, Annotated, Literal

import numpy as np
import pydantic

import utils
from files.arrays import Numbers, check_arrays
from terminal import progress
from tokenization import CorpusTokenizer
from utils import UserError

FORMAT = 2  # version of the files in corpus.ids/
BLOCK = 2**20  # bytes of text to encode at a time
CHECKED = 2**24  # tokens to check at a time
_tokenizer: CorpusTokenizer  # in a worker process
PARALLEL = 2**25  # for texts of at least so many bytes, starting processes pays off


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A corpus as token ids, mapped from files instead of read into memory.

    Attributes
    ----------
    tokens : uint16 or uint32 (tokens,)
    sentences : int64 (sentences + 1,)
        Start of each sentence in ``tokens``, and the end.
    documents : int64 (documents + 1,)
        Start of each document in ``sentences``, and the end.
    pairs : int64 (pairs + 1,)
        Start of each pair of binaries in ``documents``, and the end.
    programs : list of str, builds : list of (str, str)
        For each pair: the program's name, and the SHA-256 of both binaries. Empty for a corpus that
        was not made by dataprocess.py, which counts as one pair.
    splits : list of str
        For each pair: train, validation or test, as gendata.py split the programs.
    sha256 : str
        Hash of the text.
    starts : uint8 (tokens,), or None
        1 where a token starts an instruction; None if the corpus has no tabs between instructions.
    """

    tokens: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray
    pairs: np.ndarray
    programs: list[str]
    builds: list[tuple[str, str]]
    sha256: str
    splits: list[str] = dataclasses.field(default_factory=list)
    starts: np.ndarray | None = None

    @property
    def bounds(self) -> np.ndarray:
        """Start of each document in ``tokens``, and the end, int64 (documents + 1,)."""
        return self.sentences[self.documents]

    def count_tokens(self, chosen: np.ndarray, vocab_size: int) -> np.ndarray:
        """Count how often each token occurs in the ``chosen`` documents, int64 (vocab_size,)."""
        counts = np.zeros(vocab_size, np.int64)
        ranges = np.stack([self.bounds[:-1], self.bounds[1:]], 1)[chosen]
        for some in np.array_split(ranges, len(ranges) // 1000 + 1):
            text = np.concatenate([self.tokens[start:end] for start, end in some])
            counts += np.bincount(text, minlength=vocab_size)
        return counts


def read_corpus(
    data_file: Path, tokenizer: CorpusTokenizer, vocab_sha256: str, may_write: bool = True
) -> Corpus:
    """Map the corpus's ids, tokenising the text first unless ``<data_file>.ids`` is up to date.

    Raises
    ------
    UserError
        No corpus, an empty one, or one that does not match the .json beside it.
    """
    if not data_file.is_file():
        lacking = "is not a corpus file" if data_file.exists() else "does not exist"
        raise UserError(f"the corpus {data_file} {lacking}; make it: python dataprocess.py")
    sha256 = utils.sha256_of(data_file)
    key: dict[str, str | int]
    key = {"format": FORMAT, "corpus": sha256, "vocab": vocab_sha256, "tokenizer": tokenizer.name}
    dtype = np.uint16 if len(tokenizer.vocab) <= 2**16 else np.uint32
    folder = data_file.with_suffix(".ids")
    if may_write and not has(folder, key):
        with utils.atomic_folder(folder) as new:
            _tokenise(data_file, tokenizer, dtype, new)
            (new / "key.json").write_text(json.dumps(key))
    if not (folder / "tokens.bin").stat().st_size:
        raise UserError(f"the corpus {data_file} is empty; make it: python dataprocess.py")
    try:
        tokens = np.memmap(folder / "tokens.bin", dtype, "r")
        sentences = np.memmap(folder / "sentences.bin", np.int64, "r")
        documents = np.memmap(folder / "documents.bin", np.int64, "r")
        starts = _starts(folder / "starts.bin", len(tokens))
        _check_ids(tokens, sentences, documents, len(tokenizer.vocab))
    except ValueError as error:
        raise UserError(
            f"the token ids in {folder} are damaged ({error}); delete that folder and run again"
        ) from error
    programs, builds, splits, sizes = _pairs(data_file, sha256, len(documents) - 1)
    return Corpus(
        tokens=tokens,
        sentences=sentences,
        documents=documents,
        pairs=np.cumsum([0, *sizes]),
        programs=programs,
        builds=builds,
        sha256=sha256,
        splits=splits,
        starts=starts,
    )


def _check_ids(
    tokens: np.ndarray, sentences: np.ndarray, documents: np.ndarray, vocab_size: int
) -> None:
    """Raise a ValueError unless the arrays of a :class:`Corpus` and the vocabulary fit together."""
    of_tokens = {"tokens": Numbers("u2 u4", "tokens", below=vocab_size)}
    for start in range(0, len(tokens), CHECKED):  # which are mapped, and may be many
        check_arrays({"tokens": tokens[start : start + CHECKED]}, of_tokens)
    starts = {"sentences": sentences, "documents": documents}
    for (name, rises), end in zip(starts.items(), (len(tokens), len(sentences) - 1), strict=True):
        check_arrays({name: rises}, {name: Numbers("i8", name, rises_to=end)})


def _starts(file: Path, n_tokens: int) -> np.ndarray | None:
    """Map the starts of instructions; None if the file is empty, because the text has no tabs."""
    size = file.stat().st_size
    if size not in (0, n_tokens):
        raise ValueError(f"{file.name} has {size} bytes for {n_tokens} tokens")
    return np.memmap(file, np.uint8, "r") if size else None


def _tokenise(data_file: Path, tokenizer: CorpusTokenizer, dtype: type, folder: Path) -> None:
    """Write tokens.bin, sentences.bin and documents.bin into ``folder``, a few lines at a time."""
    n_tokens = n_sentences = 0
    bar = progress.bar(total=data_file.stat().st_size, unit="B", unit_scale=True)
    with (
        data_file.open("rb") as text,
        (folder / "tokens.bin").open("wb") as tokens,
        (folder / "sentences.bin").open("wb") as sentences,
        (folder / "documents.bin").open("wb") as documents,
        (folder / "starts.bin").open("wb") as starts,
        bar,
    ):
        ended = True  # the next line with text starts a document
        borders = False
        for ids, offsets, marks, size in _encoded(text, tokenizer, bar.total):
            sentence, document = array("q"), array("q")
            tokens.write(ids.astype(dtype).data)  # unlike tofile, this reports a full disk
            starts.write(marks.data)
            borders |= int(marks.sum()) > int(np.count_nonzero(np.diff(offsets)))
            for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
                if start == end:
                    ended = True
                    continue
                if ended:
                    document.append(n_sentences)
                    ended = False
                sentence.append(n_tokens + start)
                n_sentences += 1
            n_tokens += len(ids)
            sentence.tofile(sentences)
            document.tofile(documents)
            bar.update(size)
        if not borders:
            starts.truncate(0)
        array("q", [n_tokens]).tofile(sentences)
        array("q", [n_sentences]).tofile(documents)


def _encoded(
    text: IO[bytes], tokenizer: CorpusTokenizer, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, int]]:
    """Yield ids, offsets, starts (see `_encode_lines`) and bytes of some lines at a time.

    Large texts are encoded by a process per core. Their inputs and results are bounded, and so is
    memory.
    """
    blocks = iter(lambda: text.readlines(BLOCK), [])
    has_affinity = hasattr(os, "sched_getaffinity")
    workers = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    if size < PARALLEL or workers == 1:
        for lines in blocks:
            yield *_encode_lines(tokenizer, lines), sum(map(len, lines))
        return
    context = multiprocessing.get_context("spawn")  # a copy of a process with threads may hang
    pool = ProcessPoolExecutor(workers, context, _start_worker, (tokenizer,))
    try:
        futures = (pool.submit(_encode, lines) for lines in blocks)
        for future in utils.ahead(futures, 2 * workers):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(tokenizer: CorpusTokenizer) -> None:
    global _tokenizer
    _tokenizer = tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C


def _encode(lines: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    return *_encode_lines(_tokenizer, lines), sum(map(len, lines))


def _encode_lines(
    tokenizer: CorpusTokenizer, lines: list[bytes]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids and offsets of lines, and uint8 (ids,), 1 for the first id of an instruction."""
    parts = [line.split(b"\t") for line in lines]
    ids, at = tokenizer.encode_lines(itertools.chain.from_iterable(parts))
    offsets = at[np.cumsum([0, *map(len, parts)])]
    starts = np.zeros(len(ids) + 1, np.uint8)
    starts[at] = 1  # of an instruction without tokens, where the next one starts
    return ids, offsets, starts[:-1]


@pydantic.dataclasses.dataclass
class _Build:
    sha256: str


@pydantic.dataclasses.dataclass
class _Pair:
    program: str
    split: Literal["train", "validation", "test"]
    builds: Annotated[list[_Build], pydantic.Field(min_length=2, max_length=2)]
    documents: pydantic.NonNegativeInt


@pydantic.dataclasses.dataclass
class _About:
    """The keys of the .json beside a corpus that are needed here."""

    corpus_sha256: str
    pairs: list[_Pair]


def _pairs(
    data_file: Path, sha256: str, n_documents: int
) -> tuple[list[str], list[tuple[str, str]], list[str], list[int]]:
    """Return program, builds, split and size in documents of each pair, from the corpus's .json."""
    beside = data_file.with_suffix(".json")
    if not beside.exists():
        return [], [], [], [n_documents]
    about = utils.read_config(_About, beside)
    programs = [sys.intern(pair.program) for pair in about.pairs]
    builds = [(sys.intern(p.builds[0].sha256), sys.intern(p.builds[1].sha256)) for p in about.pairs]
    splits = [sys.intern(pair.split) for pair in about.pairs]
    sizes = [pair.documents for pair in about.pairs]
    if about.corpus_sha256 != sha256 or sum(sizes) != n_documents:
        raise UserError(
            f"{beside} does not match {data_file}, which has changed since; run "
            "python dataprocess.py again (or delete the .json, if the corpus is your own)"
        )
    return programs, builds, splits, sizes


def has(folder: Path, key: dict[str, str | int]) -> bool:
    try:
        return utils.read_json(folder / "key.json", "description of token ids") == key
    except UserError:
        return False
