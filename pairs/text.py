"""Write the walks of a pair as text: the sentences and documents of the corpus."""

import dataclasses
from collections import Counter
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from binary.analysis import load_analysis
from binary.tokens import Tokens, tokenise
from pairs.folder import PairInfo, analysis_files, read_info, remedy
from pairs.walks import load_walks
from tokenization import SPECIAL_TOKENS
from utils import UserError, atomic_file


@dataclasses.dataclass
class BinaryText:
    """An analysed binary as text, made once for all of its pairs.

    ``texts`` holds the bytes of each block (B,), empty if the block has no tokens.
    """

    texts: np.ndarray
    tokens: Tokens

    def count(self, visits: np.ndarray) -> Counter[str]:
        """Count tokens, given how often each block is visited: ``visits`` is int64 (B,)."""
        often = np.repeat(visits, np.diff(self.tokens.offsets))
        words = self.tokens.dictionary
        # bincount sums in float64, which is exact up to 2^53 tokens.
        counts = np.bincount(self.tokens.tokens, often, len(words)).astype(int).tolist()
        return Counter({word: n for word, n in zip(words, counts, strict=True) if n})


@dataclasses.dataclass
class Pair:
    """One pair folder, read and checked.

    ``blocks`` are the visited blocks (n,); ids of the second binary follow those of the first.
    Document d is ``blocks[start[d]:start[d + 1]]``.
    """

    info: PairInfo
    binaries: list[BinaryText]
    blocks: np.ndarray
    start: np.ndarray


def check_word(word: str) -> None:
    """Raise a ValueError if ``word`` would change the structure or the meaning of the corpus."""
    # Control characters, line separators and all blanks but " " are not printable.
    if not word or " " in word or not word.isprintable():
        raise ValueError(f"the token {word!r} is empty, or has a blank or control character in it")
    if word in SPECIAL_TOKENS or word.startswith("##"):
        raise ValueError(f"the token {word!r} has a meaning of its own in a vocabulary")


@lru_cache(maxsize=64)
def read_binary(file: Path) -> BinaryText:
    """Read an analysed binary and write its blocks as text.

    Raises
    ------
    UserError
        The file is damaged, its arrays do not fit together, or a token could be mistaken for a
        special token, or contains a blank or line end.
    """
    analysis = load_analysis(file, for_display=False)
    try:
        tokens = tokenise(analysis)
        for word in tokens.dictionary:
            check_word(word)
    except ValueError as error:
        raise UserError(
            f"{file} is damaged ({error}); delete it and run `python gendata.py` again"
        ) from error
    texts = np.empty(len(tokens.offsets) - 1, dtype=object)
    texts[:] = [
        "\t".join(map(" ".join, instructions)).encode() for instructions in tokens.instructions()
    ]
    return BinaryText(texts, tokens)


def read_pair(folder: Path, output_dir: str) -> Pair:
    """Read one pair folder and the two analyses that it refers to.

    Raises
    ------
    UserError
        A file is missing, damaged or of another format version, or the walks do not fit the
        analyses.
    """
    info = read_info(folder)
    binaries = [read_binary(file) for file in analysis_files(info, output_dir)]
    blocks, start = load_walks(folder / "walks.npz")
    size = sum(len(binary.texts) for binary in binaries)
    assert info.counts is not None  # checked by read_info
    if size != info.counts.blocks:
        raise UserError(
            f"{folder} was made from {info.counts.blocks} blocks, but the analyses have {size}; "
            f"{remedy(folder)}"
        )
    if blocks.size and not 0 <= blocks.min() <= blocks.max() < size:
        raise UserError(
            f"{folder}/walks.npz is damaged (a block is not in 0 to {size - 1}); {remedy(folder)}"
        )
    return Pair(info, binaries, blocks, start)


def render(pair: Pair) -> tuple[list[bytes], np.ndarray]:
    """Write a pair's walks as text, leaving out blocks without tokens.

    Returns
    -------
    documents : list of bytes
        Each is one line per sentence of ``walk_length`` blocks (the last may be shorter), and a
        blank line. Instructions are separated by tabs, the tokens of an instruction by blanks.
        Sentences and documents without tokens are left out.
    numbers : int64 (documents,)
        The index of each document's walk.
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

    # The text alternates between blocks and separators.
    separators = np.array([b"\t", b"\n", b"\n\n"], dtype=object)
    parts = np.empty(2 * len(blocks), dtype=object)
    parts[0::2] = texts[blocks]
    parts[1::2] = separators[ends_sentence.astype(int) + ends_document]
    text = parts.tolist()
    ends = 2 * np.flatnonzero(ends_document) + 2
    documents = [b"".join(text[a:b]) for a, b in pairwise([0, *ends.tolist()])]
    return documents, document[ends_document]


def write_text(folder: Path, output_dir: str) -> None:
    """Write a pair's walks to walks.txt in its folder, in the format of the corpus.

    Raises
    ------
    UserError
        See :func:`read_pair`.
    """
    documents, _ = render(read_pair(folder, output_dir))
    with atomic_file(folder / "walks.txt", "wb") as file:
        file.writelines(documents)
