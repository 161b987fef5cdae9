"""All pairs in data/ -> the vocabulary and the corpus that BERT is pre-trained on.

    python dataprocess.py
    python dataprocess.py functions    for the encoder of functions -> data/functions.npz

Reads the pair folders of gendata.py in numeric order, and the analysed binaries that they refer to,
in parallel, a few at a time, so that memory does not grow with the corpus. Writes three files that
take their names together:

- data/corpus.txt: one sentence per line, a tab between instructions, a blank between the tokens of
  one; an empty line ends a document. Exact copies of earlier documents are left out.
- vocab/vocab.txt: [PAD] [UNK] [CLS] [SEP] [MASK], the corpus's tokens by falling frequency (ties by
  code point), then each of their characters, at the start of a word and inside it (``##c``); at
  most `vocab_size` lines. If there are more tokens, the rarest ones are missing; WordPiece spells
  them, and any other word of these characters.
- data/corpus.json: the corpus's size and hash, and which documents come from which pair of
  builds, in the order of the pairs.

If all three files exist and were made from the same pairs, nothing is done.

`functions` writes the functions of all builds instead, with their words (features/positions.py) and
the walks that cross from one build to the other, in one file that training reads alone.

A folder without pair.json was not finished by gendata.py; it is skipped and reported. A finished
folder that is damaged stops the run, so that no pair is missing unnoticed.
"""

if __name__ == "__main__":
    from terminal.early import answer

    answer(__file__)  # --help and messages about wrong flags need not wait for the imports below

import dataclasses
import hashlib
import json
import multiprocessing
import os
import re
import shlex
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import pydantic

from binary.analysis import analysis_settings
from encoder import collect
from encoder.corpus import with_vocabulary, write_functions
from jobs.processes import MACHINE, TIME_LIMIT, Limit, limited_memory
from jobs.run import run_all
from pairs.binaries import binaries_of, read_pairs
from pairs.folder import PairInfo, find_pairs
from pairs.text import read_pair, render
from terminal import progress
from terminal.command_line import command_line
from tokenization import SPECIAL_TOKENS, CorpusTokenizer
from utils import (
    UsageError,
    UserError,
    ahead,
    atomic_file,
    check_outputs,
    disk_errors,
    one_writer,
    plural,
    read_json,
    remove_leftovers,
    sha256_of,
)

# Settings; each is a flag, too: python dataprocess.py --data other/
data = "data"  # the pair folders that gendata.py made
outputDir = "output/"  # the analysed binaries, as for gendata.py
vocab_file = "vocab/vocab.txt"
corpus_file = "data/corpus.txt"
functions_file = "data/functions.npz"
vocab_size = 32768  # maximum number of lines of the vocabulary
workers = os.cpu_count() or 1  # processes

FORMAT_VERSION = 3  # of corpus.json
PAIR_FILES = ("pair.json", "walks.npz")
COUNTED = 2**20  # maximum number of distinct tokens in the count
AHEAD = 4  # pairs in progress per worker

Count = Annotated[int, pydantic.Field(ge=1)]


@dataclasses.dataclass
class PairText:
    """A pair's part of the corpus, and its statistics."""

    info: PairInfo
    sha256: str  # of the folder
    text: bytes
    counts: Counter[str]  # how often each token occurs in the text
    sentences: int


def hash_pair(folder: Path) -> str:
    """Return a SHA-256 of everything that a pair's part of the corpus depends on."""
    digests = [sha256_of(folder / name) for name in PAIR_FILES]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def read_current(
    about_file: Path, vocab_file: str, corpus_file: str, vocab_size: int, folders: list[Path]
) -> dict[str, Any] | None:
    """Return the content of corpus.json if all three files are up to date, else None."""
    try:
        about = read_json(about_file, "description of the corpus")
        is_current = (
            about["format_version"] == FORMAT_VERSION
            and about["vocab_size"] == vocab_size
            and about["vocab_sha256"] == sha256_of(vocab_file)
            and about["corpus_sha256"] == sha256_of(corpus_file)
            and [(pair["pair"], pair["sha256"]) for pair in about["pairs"]]
            == [(int(folder.name), hash_pair(folder)) for folder in folders]
            and all(type(about[key]) is int for key in ("documents", "tokens"))
        )
    except (KeyError, TypeError, UserError):
        return None
    return about if is_current else None


def hash_documents(folder: Path, output_dir: str) -> list[int]:
    """Return a 64-bit hash of each of a pair's documents; runs in a worker."""
    documents, _ = render(read_pair(folder, output_dir))
    digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in documents)
    return np.frombuffer(digests, np.int64).tolist()


def write_documents(folder: Path, output_dir: str, is_new: np.ndarray) -> PairText:
    """Return the text of a pair's new documents; runs in a worker."""
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
    # Each line ends in \n, and each document in another \n.
    sentences = text.count(b"\n") - int(is_new.sum())
    return PairText(pair.info, hash_pair(folder), text, counts, sentences)


class SeenDocuments:
    """The hashes of all documents so far, in a temporary database so that memory does not grow.

    Two different documents have equal hashes with probability 2^-64. So among n documents, one is
    mistaken for a copy with probability n^2 / 2^65: 1 in 40,000 for 30 million documents (10
    billion tokens).
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
    """If there are more than COUNTED tokens, keep only the most frequent COUNTED / 2.

    This bounds memory. A forgotten token starts at 0 again, so its count may be too low. The same
    pairs in the same order give the same counts.
    """
    if len(counts) > COUNTED:
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        for word in ordered[COUNTED // 2 :]:
            del counts[word]


@dataclasses.dataclass
class Vocabulary:
    """The material of the vocabulary: tokens with counts, and the characters of all tokens."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    alphabet: set[str] = dataclasses.field(default_factory=set)

    def add(self, counts: Counter[str]) -> None:
        self.counts.update(counts)
        self.alphabet.update("".join(counts))
        forget_rarest(self.counts)

    def lines(self, size: int) -> list[str]:
        """Return at most ``size`` lines: special tokens, tokens by falling frequency, characters.

        Raises
        ------
        UserError
            There is not even room for the characters.
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
        # A token of one letter is also one of the characters and is listed only once.
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
    """Yield folder, text and number of repeated documents of each pair, in order; uses a pool."""
    # Forked, to inherit the imports; this is safe because no thread runs here yet.
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
            "a process died, perhaps from lack of memory; try fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def write_corpus(
    texts: Iterator[tuple[Path, PairText, int]], corpus: IO[bytes], about: IO[str]
) -> tuple[Vocabulary, dict[str, Any]]:
    """Write the texts of all pairs to ``corpus``, and the content of corpus.json to ``about``.

    Returns
    -------
    vocabulary : Vocabulary
        Of the corpus.
    facts : dict
        The fields of corpus.json besides the pairs; the caller adds them and closes the object.
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
        # Written one by one, because the pairs of a large corpus would not fit into memory.
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
    """Return how many tokens are in the vocabulary, the number of all ids, and that of [UNK].

    Each distinct token goes through the tokenizer that also reads the corpus.
    """
    tokenizer = CorpusTokenizer({token: number for number, token in enumerate(vocab)})
    whole = pieces = unknown = 0
    for word, count in counts.items():
        ids = tokenizer.encode(word)
        whole += count * (len(ids) == 1)
        pieces += count * len(ids)
        unknown += count * int((ids == tokenizer.vocab["[UNK]"]).sum())
    return whole, pieces, unknown


def train_command(corpus: str, vocab: str) -> str:
    """Return the command that trains on these files; train.sh works in its own folder."""
    given = {"data_file": (corpus, corpus_file), "vocab": (vocab, vocab_file)}
    here = Path(__file__).resolve().parent
    inside = Path.cwd() == here
    words = [
        f"{name}={shlex.quote(file if inside else os.path.abspath(file))}"
        for name, (file, default) in given.items()
        if not inside or file != default
    ]
    return " ".join([*words, "sh", "train.sh" if inside else shlex.quote(str(here / "train.sh"))])


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
        The corpus to write, one sentence per line; its description is written beside it as .json.
    vocab_size : int
        Maximum number of lines of the vocabulary; the rarest tokens are spelt by characters.
    workers : int
        Number of processes; the files do not depend on it.
    """
    start = time.perf_counter()
    about_file = Path(corpus_file).with_suffix(".json")
    if len({Path(vocab_file), Path(corpus_file), about_file}) < 3:
        raise UsageError(
            f"{vocab_file}, {corpus_file} and {about_file} must be three files;"
            " give --corpus_file a name like data/corpus.txt"
        )
    folders, incomplete = find_pairs(data)
    outputs = {"vocab_file": vocab_file, "corpus_file": corpus_file}
    check_outputs(outputs, whole=[*folders, outputDir])
    for folder in incomplete:
        print(f"skipped {folder}: it has no pair.json, so gendata.py did not finish it")
    if not folders:
        raise UserError(f"{data} contains no finished pair; run `python gendata.py` first")

    written = [Path(file).parent for file in (vocab_file, corpus_file)]
    with one_writer(data, *written):
        about = read_current(about_file, vocab_file, corpus_file, vocab_size, folders)
        if about:
            print(
                f"{corpus_file} and {vocab_file} are up to date: "
                f"{len(folders):,} {plural(len(folders), 'pair')}, "
                f"{about['documents']:,} documents, {about['tokens']:,} tokens; "
                f"next: {train_command(corpus_file, vocab_file)}"
            )
            return

        remove_leftovers(*written)
        # All three files are complete before any of them gets its name; on an error none does.
        with (
            atomic_file(about_file) as about_out,
            atomic_file(vocab_file) as vocab_out,
            atomic_file(corpus_file, "wb") as corpus_out,
        ):
            texts = pair_texts(folders, outputDir, workers, Path(corpus_file).parent)
            bar = progress.bar(texts, total=len(folders), desc="pairs", unit="pair")
            vocabulary, facts = write_corpus(bar, corpus_out, about_out)
            counts = vocabulary.counts
            if not counts:
                raise UserError(f"the pairs in {data} have no walks; run `python gendata.py` again")
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
    next_step = train_command(corpus_file, vocab_file)
    print(f"{corpus_file}, {about_file} and {vocab_file} are ready; next: {next_step}")


def functions(
    data: str = data,
    outputDir: str = outputDir,
    to: str = functions_file,
    words: Count = 12000,
    walks: Count = 500,
    part: str = "1/1",
    workers: Count = workers,
    time_limit: Limit = TIME_LIMIT,
    memory_limit: Limit = MACHINE,
) -> None:
    """Write what the encoder learns from, for `pretrain.py functions` and `classify.py functions`.

    Parameters
    ----------
    data : str
        The folder that gendata.py wrote. Pairs for the test are not read.
    outputDir : str
        Where gendata.py keeps the analysed binaries, and where the words of each are cached.
    to : str
        The file to write.
    words : int
        Maximum number of words with a vector of their own.
    walks : int
        Maximum number of walks of each pair.
    part : str
        1/2 takes every second package for training, 2/2 the others. matching/train.py needs
        encoders that have not learned from what its networks learn from.
    workers : int
        Number of processes; the file does not depend on it.
    time_limit : float
        Seconds of processor time for the words of one binary.
    memory_limit : float
        GiB of memory for the words of one binary, and for everything else.
    """
    if not re.fullmatch("[1-9]/[1-9]", part) or part[0] > part[2]:
        raise UsageError(f"--part {part}: give the number of the part and of all parts, like 1/2")
    of, parts = int(part[0]), int(part[2])
    folders, incomplete = find_pairs(data)
    check_outputs({"to": to}, whole=[*folders, outputDir])
    for folder in incomplete:
        print(f"skipped {folder}: it has no pair.json, so gendata.py did not finish it")
    pairs = read_pairs(data, "train", "validation")
    if not any(pair.split == "train" for pair in pairs):
        raise UserError(
            f"{data} holds no pair to train on; `python gendata.py` makes pairs of all builds of a "
            "program"
        )
    pairs = collect.take_part(pairs, of, parts)
    if not any(pair.split == "train" for pair in pairs):
        raise UserError(f"--part {part}: {data} has too few packages to train on for so many parts")
    with limited_memory(memory_limit, "joining functions"):
        remove_leftovers(Path(to).parent, Path(outputDir, "positions"))
        binaries = binaries_of(pairs, outputDir)
        files = [binary.analysis for binary in binaries]
        new = [file for file in files if not collect.part_file(file).exists()]
        jobs = ((str(file), (file,)) for file in new)
        limits = time_limit, memory_limit
        how = (workers, limits, None, analysis_settings)
        for file, error in run_all(collect.keep_part, jobs, len(new), "words", *how):
            if error is not None:
                raise UserError(f"{file}: {error}")
        corpus = collect.join(binaries, pairs, data, walks)
        made = with_vocabulary(corpus, words, pairs[0].analysis)
        write_functions(to, made)
    ours = [build for build in corpus.builds if build.split == "train"]
    named = sum(map(bool, corpus.name[: ours[-1].last]))
    n = len({build.package for build in ours})
    # Symbols teach more in the same time; pre-training is for where there are few.
    script = "classify.py" if 2 * named > ours[-1].last else "pretrain.py"
    next_step = ["python", script, "functions"]
    next_step += [] if to == functions_file else ["--data_file", to]
    print(
        f"{to}: {ours[-1].last:,} functions ({named:,} with a symbol) of {len(ours)} builds of "
        f"{n} {plural(n, 'package')} to learn from, and {len(corpus.walks):,} walks; "
        f"{len(corpus.builds) - len(ours)} builds for validation; "
        f"{len(made.vocabulary.words):,} words; next: {shlex.join(next_step)}"
    )


if __name__ == "__main__":
    command_line(main, functions=functions)
