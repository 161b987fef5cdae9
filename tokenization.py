"""Text -> tokens -> ids, in two ways.

``FullTokenizer`` is Google BERT's: it cleans the text, makes it lower-case, strips accents, splits
at punctuation, and cuts words into the pieces of Google's vocabulary.
``CorpusTokenizer`` is for the vocabularies of dataprocess.py: words end at blanks only, so that
``__ctype_b_loc`` stays one token.

    tokenizer = get_tokenizer("corpus", "vocab/vocab.txt")
    ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("call __ctype_b_loc"))

References
----------
Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
2018. Wu et al., "Google's Neural Machine Translation System", 2016 (WordPiece).
"""

import os
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Literal

import numpy as np

from utils import UserError, read_text

TokenizerName = Literal["corpus", "bert", "bert-cased"]  # as a model's files say it
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# What Google calls a Chinese character: the CJK ideographs, not kana, not Hangul.
CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def load_vocab(vocab_file: str | os.PathLike[str], needed: Iterable[str] = ()) -> dict[str, int]:
    """Read a vocabulary, one token per line, as ``{token: line number from 0}`` in file order.

    Raises
    ------
    UserError
        No such file, no UTF-8, an empty line, a blank inside a token, a token that stands there
        twice, or a token of ``needed`` that does not stand there.
    """
    lines = read_text(vocab_file, "vocabulary").split("\n")
    if lines[-1] == "":  # what follows the last line end is no line
        lines.pop()
    vocab: dict[str, int] = {}
    for number, token in enumerate(lines):
        place = f"{vocab_file}, line {number + 1}"
        if not token:
            raise UserError(f"{place} is empty; a vocabulary has one token per line")
        fault = token_fault(token)
        if fault is not None:
            raise UserError(f"{place}: the token {token!r} {fault}; remove the blank")
        if token in vocab:
            raise UserError(
                f"{place}: the token {token!r} stands on line {vocab[token] + 1} already;"
                " every token may stand in a vocabulary once"
            )
        vocab[token] = number
    _check_needed(vocab, needed, f"the vocabulary {vocab_file}")
    return vocab


def _check_needed(vocab: Mapping[str, int], needed: Iterable[str], name: str) -> None:
    missing = [token for token in needed if token not in vocab]
    if missing:
        raise UserError(f"{name} lacks {' '.join(missing)}; add one a line")


def token_fault(token: str) -> str | None:
    """Say why a token cannot stand on a line of a vocabulary; None where it can."""
    if not token:
        return "is empty"
    # Only ASCII blanks: Google's own vocabularies hold a few tokens like U+3000.
    return "has a blank in it" if any(blank in token for blank in " \t\n\r\v\f") else None


def reading_of(vocab: Iterable[str], do_lower_case: bool | None = None) -> TokenizerName:
    """Return how Google's BERT reads text with a vocabulary: "bert" or "bert-cased".

    Where ``do_lower_case`` does not say it, capital letters do. No text that was made lower-case
    has any, so a vocabulary with some is for text that was not.

    >>> reading_of(["[CLS]", "the", "##ed"]), reading_of(["[CLS]", "the", "The"])
    ('bert', 'bert-cased')
    """
    if do_lower_case is None:
        words = (token for token in vocab if not (token[:1] == "[" and token[-1:] == "]"))
        do_lower_case = all(word == word.lower() for word in words)
    return "bert" if do_lower_case else "bert-cased"


def convert_tokens_to_ids(vocab: Mapping[str, int], tokens: Iterable[str]) -> list[int]:
    """Look every token up in ``vocab``; a token that is not there is a KeyError."""
    return [vocab[token] for token in tokens]


def convert_ids_to_tokens(inv_vocab: Mapping[int, str], ids: Iterable[int]) -> list[str]:
    """Look every id up in ``inv_vocab`` (``{id: token}``); an unknown id is a KeyError."""
    return [inv_vocab[int(i)] for i in ids]


def whitespace_tokenize(text: str) -> list[str]:
    """Split ``text`` at runs of Unicode white space; none of it remains."""
    return text.split()


class _CharacterMap(dict):
    """A table for ``str.translate`` that asks ``rule`` about a character on its first sight."""

    def __init__(self, rule: Callable[[str], str]):
        super().__init__()
        self.rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = self.rule(chr(code))
        return self[code]


def _clean(char: str) -> str:
    """Drop control characters, make every white space a blank, set Chinese characters apart."""
    category = unicodedata.category(char)
    if char in "\t\n\r" or category == "Zs":
        return " "
    # Unassigned (Cn) and private (Co) code points stay, as in Google's code; others drop them.
    if char == "\ufffd" or category in ("Cc", "Cf"):
        return ""
    if any(first <= ord(char) <= last for first, last in CHINESE):
        return f" {char} "
    return char


def _split_punctuation(char: str) -> str:
    """Set punctuation apart; all of ASCII's symbols count, although ``$`` is none in Unicode."""
    ascii_symbol = "!" <= char <= "~" and not char.isalnum()
    return f" {char} " if ascii_symbol or unicodedata.category(char)[0] == "P" else char


def _strip_accents(char: str) -> str:
    return "" if unicodedata.category(char) == "Mn" else _split_punctuation(char)


class BasicTokenizer:
    """Split text into words and punctuation as Google BERT does before WordPiece.

    Parameters
    ----------
    do_lower_case : bool
        Lower-case and remove accents; Google's "uncased" models want it.
    """

    def __init__(self, do_lower_case: bool = True):
        self.do_lower_case = do_lower_case
        self._clean = _CharacterMap(_clean)
        self._split = _CharacterMap(_strip_accents if do_lower_case else _split_punctuation)

    def tokenize(self, text: str) -> list[str]:
        text = text.translate(self._clean)
        if self.do_lower_case:
            # Google's order. All words at once: only a letter's word decides on a final sigma.
            text = unicodedata.normalize("NFD", text.lower())
        return whitespace_tokenize(text.translate(self._split))


class WordpieceTokenizer:
    """Cut words into the longest pieces that the vocabulary holds, from the left.

    Parameters
    ----------
    vocab : mapping or set of str
        The pieces; those that continue a word begin with ``##``.
    unk_token : str
        Stands for a word that cannot be cut.
    max_input_chars_per_word : int
        A longer word is ``unk_token``.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        unk_token: str = "[UNK]",
        max_input_chars_per_word: int = 100,
    ):
        self.vocab = vocab
        self.unk_token = unk_token
        self.max_input_chars_per_word = max_input_chars_per_word

    def tokenize(self, text: str) -> list[str]:
        """Return the pieces of all words of ``text``, whose words are separated by blanks."""
        return [piece for word in whitespace_tokenize(text) for piece in self.pieces(word)]

    def pieces(self, word: str) -> list[str]:
        if len(word) > self.max_input_chars_per_word:
            return [self.unk_token]
        pieces = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(len(word), start, -1):
                piece = prefix + word[start:end]
                if piece in self.vocab:
                    break
            else:
                return [self.unk_token]
            pieces.append(piece)
            start = end
        return pieces


class FullTokenizer:
    """Google BERT's tokenizer: ``BasicTokenizer``, then ``WordpieceTokenizer``.

    Parameters
    ----------
    vocab_file : path-like or dict
        Google's vocab.txt, which must hold ``[UNK]``; or what :func:`load_vocab` returned.
    do_lower_case : bool
        As the vocabulary was made: True for "uncased". See `reading_of`.
    """

    def __init__(
        self, vocab_file: str | os.PathLike[str] | dict[str, int], do_lower_case: bool = True
    ):
        if not isinstance(vocab_file, dict):
            vocab_file = load_vocab(vocab_file, needed=["[UNK]"])
        self.vocab = vocab_file
        self.inv_vocab = {number: token for token, number in self.vocab.items()}
        self.name = "bert" if do_lower_case else "bert-cased"
        self.basic_tokenizer = BasicTokenizer(do_lower_case)
        self.wordpiece_tokenizer = WordpieceTokenizer(self.vocab)

    def tokenize(self, text: str) -> list[str]:
        words = self.basic_tokenizer.tokenize(text)
        return [piece for word in words for piece in self.wordpiece_tokenizer.pieces(word)]

    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        return convert_tokens_to_ids(self.vocab, tokens)

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        return convert_ids_to_tokens(self.inv_vocab, ids)


MAX_WORDS = 2**20  # words whose pieces are remembered


class _Words(dict):
    """``{word: ids of its pieces}``, filled as words come: a corpus has few distinct ones."""

    def __init__(self, vocab: Mapping[str, int]):
        super().__init__((word, (number,)) for word, number in vocab.items())
        self.vocab = vocab
        self.wordpiece_tokenizer = WordpieceTokenizer(vocab)

    def __missing__(self, word: str) -> tuple[int, ...]:
        pieces = self.wordpiece_tokenizer.pieces(word)
        ids = tuple(convert_tokens_to_ids(self.vocab, pieces))
        if len(self) < MAX_WORDS:
            self[word] = ids
        return ids


class CorpusTokenizer:
    """Read the corpus: words end at white space, known words stay whole, others are cut.

    A token of the vocabulary is one token however it is written: ``__ctype_b_loc``, and also
    ``[MASK]`` in a user's line. (dataprocess.py keeps such words out of the corpus.)

    Parameters
    ----------
    vocab : path-like or dict
        The vocabulary file, or what :func:`load_vocab` returned. It must hold all special tokens.
    """

    name = "corpus"

    def __init__(self, vocab: str | os.PathLike[str] | dict[str, int]):
        if not isinstance(vocab, dict):
            vocab = load_vocab(vocab, needed=SPECIAL_TOKENS)
        self.vocab = vocab
        self.inv_vocab = {number: token for token, number in vocab.items()}
        self._words = _Words(vocab)

    def tokenize(self, text: str) -> list[str]:
        return self.convert_ids_to_tokens(self.encode(text))

    def encode(self, text: str | bytes) -> np.ndarray:
        """Return the ids of all words of ``text``; line ends are white space like any other.

        Returns
        -------
        ids : (n,) int32
        """
        return self.encode_lines([text])[0]

    def encode_lines(self, lines: Iterable[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Encode many lines at once, e.g. an open file; bytes are UTF-8, broken ones ``[UNK]``.

        Returns
        -------
        ids : (n,) int32
            The ids of all lines, one after the other.
        offsets : (lines + 1,) int64
            Line i is ``ids[offsets[i]:offsets[i + 1]]``; of a blank line nothing.
        """
        ids, offsets = array("i"), array("q", [0])
        for line in lines:
            if isinstance(line, bytes):
                line = line.decode("utf-8", errors="replace")
            words = whitespace_tokenize(line)
            ids.extend(chain.from_iterable(map(self._words.__getitem__, words)))
            offsets.append(len(ids))
        return np.array(ids, dtype=np.int32), np.array(offsets, dtype=np.int64)

    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        return convert_tokens_to_ids(self.vocab, tokens)

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        return convert_ids_to_tokens(self.inv_vocab, ids)


def get_tokenizer(
    name: TokenizerName, vocab: str | os.PathLike[str] | dict[str, int]
) -> FullTokenizer | CorpusTokenizer:
    """Return the tokenizer that a model was trained with, by the name stored with the model.

    Parameters
    ----------
    name : {"corpus", "bert", "bert-cased"}
    vocab : path-like or dict
        The vocabulary file, or what :func:`load_vocab` returned.

    Raises
    ------
    UserError
        No tokenizer of that name; a vocabulary without all special tokens.
    """
    classes = {
        "corpus": CorpusTokenizer,
        "bert": FullTokenizer,
        "bert-cased": partial(FullTokenizer, do_lower_case=False),
    }
    if name not in classes:
        raise UserError(f"no tokenizer is called {name!r}; there are {', '.join(classes)}")
    if not isinstance(vocab, dict):
        return classes[name](load_vocab(vocab, needed=SPECIAL_TOKENS))
    _check_needed(vocab, SPECIAL_TOKENS, "the model's vocabulary")
    return classes[name](vocab)
