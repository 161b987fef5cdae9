"""Rows of bench/retrieval.py: trained models that make vectors of functions.

A row is called with a binary's features and a cell, which says whether it may use names (strings,
imports) and context (the words of callees and callers). It returns vectors of length 1, float32
(F, D) or csr; rows of functions without any known feature are zero.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse
from neutral import without_operations
from word_table import OFFSET, TableConfig, WordVectors, train_encoder

import utils
from encoder.inputs import look_up
from features.extract import Features
from features.positions import read_positions
from features.tfidf import DIMENSIONS, normalise
from features.words import GROUPS, KINDS

BODY = tuple(kind for kind in KINDS if kind != "name")
# Cell -> whether names and context may be used, and the groups of words that remain.
CELLS = {
    "names and context": ((True, True), GROUPS),
    "names alone": ((True, False), KINDS),
    "body only": ((False, False), BODY),
}
TABLE = {"words": 65536, "dimensions": 128, "encoder_batch": 128, "encoder_lr": 0.005}
Programs = dict[str, list[Features]]


def identity_of(*arrays: np.ndarray) -> str:
    """Return 16 hexadecimal digits of a hash of the arrays."""
    content = hashlib.sha256()
    for array in arrays:
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()[:16]


class Tfidf:
    """TF-IDF of groups of words, with document frequencies from the training packages.

    Parameters
    ----------
    columns, found : int64 (V,)
        The words that occur, and the number of functions that contain each.
    functions : int64 ()
        Number of all functions.
    """

    def __init__(self, columns: np.ndarray, found: np.ndarray, functions: np.ndarray) -> None:
        times = np.zeros(len(GROUPS) * DIMENSIONS)
        times[columns] = found
        self.idf = (np.log((1 + functions) / (1 + times)) + 1).astype(np.float32)
        self.arrays = {"columns": columns, "found": found, "functions": functions}
        self.identity = identity_of(*self.arrays.values())

    @classmethod
    def train(cls, programs: Programs) -> "Tfidf":
        codes = [code for builds in programs.values() for code in builds]
        times = np.zeros(len(GROUPS) * DIMENSIONS, np.int64)
        for code in codes:
            for group in GROUPS:
                np.add.at(times, code.words[group].indices + OFFSET[group], 1)
        columns = np.flatnonzero(times)
        return cls(columns, times[columns], np.array(sum(code.functions for code in codes)))

    def __call__(self, code: Features, cell: str) -> scipy.sparse.csr_matrix:
        return self.weighed(code, CELLS[cell][1])

    def weighed(self, code: Features, groups: Sequence[str]) -> scipy.sparse.csr_matrix:
        parts = []
        for group in groups:
            m = code.words[group].copy()
            m.data = (1 + np.log(m.data)) * self.idf[m.indices + OFFSET[group]]
            parts.append(normalise(m))
        return normalise(scipy.sparse.hstack(parts, "csr", np.float32))


class TfidfOfTokens(Tfidf):
    """TF-IDF of mnemonics with their operands' classes, and of sequences of mnemonics."""

    def __call__(self, code: Features, cell: str) -> scipy.sparse.csr_matrix:
        return self.weighed(code, ("token", "gram"))


class Word2vec:
    """The IDF-weighted mean of the instructions' word2vec vectors.

    A word is an instruction's mnemonic with the classes of its operands, as BERT reads it; a
    sentence is a basic block.
    """

    def __init__(self, words: np.ndarray, vectors: np.ndarray, idf: np.ndarray) -> None:
        self.arrays = {"words": words, "vectors": vectors, "idf": idf}
        self.identity = identity_of(vectors, idf)
        self.row = {word: i for i, word in enumerate(words.tolist())}

    @classmethod
    def train(cls, programs: Programs, seed: int = 0) -> "Word2vec":
        from gensim.models import Word2Vec

        codes = [code for builds in programs.values() for code in builds]
        sentences = [text for code in codes for text in sentences_of(code)]
        found: Counter[str] = Counter()
        for code in codes:
            texts = sentences_of(code)
            for inside in code.blocks:
                found.update({form for block in inside.tolist() for form in texts[block]})
        trained = Word2Vec(
            sentences, vector_size=128, min_count=3, workers=1, seed=seed, epochs=5
        ).wv
        n = sum(code.functions for code in codes)
        idf = np.log([(1 + n) / (1 + found[word]) for word in trained.index_to_key]) + 1
        return cls(np.array(trained.index_to_key), trained.vectors, idf.astype(np.float32))

    def __call__(self, code: Features, cell: str) -> np.ndarray:
        vectors, idf = self.arrays["vectors"], self.arrays["idf"]
        found = np.zeros((code.functions, vectors.shape[1]), np.float32)
        texts = sentences_of(code)
        for f, inside in enumerate(code.blocks):
            rows = [self.row.get(form, -1) for block in inside.tolist() for form in texts[block]]
            known = np.array([row for row in rows if row >= 0], np.int64)
            found[f] = idf[known] @ vectors[known]
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


def sentences_of(code: Features) -> list[list[str]]:
    """Return the forms of each block's instructions."""
    analysis = code.analysis
    form, start = analysis.instruction_form.tolist(), analysis.first_instruction.tolist()
    blocks = range(analysis.code_blocks)
    return [[analysis.form[i] for i in form[start[b] : start[b + 1]]] for b in blocks]


class WordTable:
    """The word table; for the cells without names, a table trained without them."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays = arrays
        self.identity = identity_of(*arrays.values())
        fields = ("words", "idf", "table")
        self.encoder = WordVectors(*(arrays[name] for name in fields))
        self.body = WordVectors(*(arrays[f"body_{name}"] for name in fields))

    @classmethod
    def train(cls, programs: Programs, steps: int, seed: int = 0) -> "WordTable":
        cfg = TableConfig(seed=seed, encoder_steps=steps, **TABLE)
        bodies = {name: [only(code, BODY) for code in codes] for name, codes in programs.items()}
        arrays = {}
        for prefix, of in (("", programs), ("body_", bodies)):
            made = train_encoder(of, cfg, f"word table {prefix.rstrip('_')}")
            arrays |= {f"{prefix}{name}": value for name, value in dataclasses.asdict(made).items()}
        return cls(**arrays)

    def __call__(self, code: Features, cell: str) -> np.ndarray:
        encoder = self.body if cell == "body only" else self.encoder
        return encoder(only(code, CELLS[cell][1]))[0]


def only(code: Features, groups: Sequence[str]) -> Features:
    """Return the features with only some groups of words."""
    none = scipy.sparse.csr_matrix((code.functions, DIMENSIONS), dtype=np.float32)
    words = {group: m if group in groups else none for group, m in code.words.items()}
    return dataclasses.replace(code, words=words)


class OfEncoder:
    """The encoder, or a variant of it, from its model file."""

    def __init__(self, path: Path) -> None:
        from encoder.encoder import read_encoder

        self.encoder = read_encoder(path)
        self.identity = self.encoder.identity
        self.neutral = not path.stem.startswith("no-neutral")

    def __call__(self, code: Features, cell: str) -> np.ndarray:
        (names, context), _ = CELLS[cell]
        positions = read_positions(code)
        if not self.neutral:
            positions = without_operations(positions)
        return self.encoder.encode(look_up(positions, self.encoder.vocabulary), names, context)


class MinHash:
    """MCRIT's MinHash, as bench/minhash.py computes it; it knows only the files it has read.

    Parameters
    ----------
    sha256 : str (n,)
        The files.
    offsets : int64 (n + 1,)
        File i has the functions offsets[i] up to offsets[i + 1].
    address : uint64 (F,)
    signature : uint8 (F, 64)
    """

    def __init__(self, **arrays: np.ndarray) -> None:
        self.identity = identity_of(*arrays.values())
        self.arrays = arrays
        self.number = {sha256: i for i, sha256 in enumerate(arrays["sha256"].tolist())}

    def of_file(self, sha256: str, address: np.ndarray) -> scipy.sparse.csr_matrix:
        """Return vectors whose cosine is the share of equal values of two signatures.

        Parameters
        ----------
        sha256 : str
            The file.
        address : uint64 (F,)
            Its functions; those of which there is no signature get zeros.
        """
        number, offsets = self.number[sha256], self.arrays["offsets"]
        inside = slice(offsets[number], offsets[number + 1])
        known = {start: i for i, start in enumerate(self.arrays["address"][inside].tolist())}
        rows = [known.get(start, -1) for start in address.tolist()]
        found = np.flatnonzero(np.array(rows) >= 0)
        signature = self.arrays["signature"][inside][np.array(rows)[found]]
        width = signature.shape[1]
        column = signature + 256 * np.arange(width)
        data = np.full(column.size, width**-0.5, np.float32)
        places = np.repeat(found, width), column.ravel()
        return scipy.sparse.csr_matrix((data, places), (len(rows), 256 * width))


Row = Callable[[Features, str], np.ndarray | scipy.sparse.csr_matrix]
KINDS_OF_ROWS = {"tfidf": Tfidf, "tokens": TfidfOfTokens, "word2vec": Word2vec, "table": WordTable}
READ = {**KINDS_OF_ROWS, "minhash": MinHash}


def write_row(path: Path, row: Tfidf | Word2vec | WordTable) -> None:
    """Write a row's model."""
    with utils.atomic_file(path, "wb") as file:
        np.savez_compressed(file, **row.arrays)


def read_row(path: Path) -> Row | MinHash:
    """Read a row's model; the file's name begins with the kind of row."""
    if path.suffix == ".safetensors":
        return OfEncoder(path)
    kind = READ.get(path.stem.split("-")[0])
    if kind is None:
        raise utils.UserError(f"{path}: no row begins so, but {', '.join(READ)} do")
    with np.load(path, allow_pickle=False) as arrays:
        return kind(**dict(arrays))
