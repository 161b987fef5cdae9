"""Text -> tokens -> ids, with one of two tokenizers.

``FullTokenizer`` is that of Google's BERT: it cleans the text, makes it lower-case, strips accents,
splits at punctuation, and cuts words into pieces from Google's vocabulary.
``CorpusTokenizer`` is for vocabularies made by dataprocess.py: words end only at blanks, so that
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

TokenizerName = Literal["corpus", "bert", "bert-cased"]  # as stored in model.json
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# Google's definition of a Chinese character: CJK ideographs, but not kana or Hangul.
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
        No such file, not UTF-8, an empty line, a blank inside a token, a token that occurs twice,
        or a token of ``needed`` that is missing.
    """
    lines = read_text(vocab_file, "vocabulary").split("\n")
    if lines[-1] == "":  # nothing follows the last line end
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
                f"{place}: the token {token!r} is already on line {vocab[token] + 1};"
                " a vocabulary contains every token once"
            )
        vocab[token] = number
    _check_needed(vocab, needed, f"the vocabulary {vocab_file}")
    return vocab


def _check_needed(vocab: Mapping[str, int], needed: Iterable[str], name: str) -> None:
    missing = [token for token in needed if token not in vocab]
    if missing:
        raise UserError(f"{name} lacks {' '.join(missing)}; add each on a line of its own")


def token_fault(token: str) -> str | None:
    """Say why a vocabulary cannot contain a token; None if it can."""
    if not token:
        return "is empty"
    # Only ASCII blanks: Google's own vocabularies hold a few tokens like U+3000.
    return "has a blank in it" if any(blank in token for blank in " \t\n\r\v\f") else None


def reading_of(vocab: Iterable[str], do_lower_case: bool | None = None) -> TokenizerName:
    """Return which of Google's tokenizers fits a vocabulary: "bert" or "bert-cased".

    Without ``do_lower_case``, a vocabulary that contains capital letters is cased: lower-cased text
    would never match such tokens.

    >>> reading_of(["[CLS]", "the", "##ed"]), reading_of(["[CLS]", "the", "The"])
    ('bert', 'bert-cased')
    """
    if do_lower_case is None:
        words = (token for token in vocab if not (token[:1] == "[" and token[-1:] == "]"))
        do_lower_case = all(word == word.lower() for word in words)
    return "bert" if do_lower_case else "bert-cased"


def convert_tokens_to_ids(vocab: Mapping[str, int], tokens: Iterable[str]) -> list[int]:
    """Look up every token in ``vocab``; raise a KeyError if one is missing."""
    return [vocab[token] for token in tokens]


def convert_ids_to_tokens(inv_vocab: Mapping[int, str], ids: Iterable[int]) -> list[str]:
    """Look up every id in ``inv_vocab`` (``{id: token}``); raise a KeyError if one is missing."""
    return [inv_vocab[int(i)] for i in ids]


def whitespace_tokenize(text: str) -> list[str]:
    """Split ``text`` at runs of Unicode white space."""
    return text.split()


class _CharacterMap(dict):
    """A table for ``str.translate``, filled by calling ``rule`` once for each new character."""

    def __init__(self, rule: Callable[[str], str]):
        super().__init__()
        self.rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = self.rule(chr(code))
        return self[code]


def _clean(char: str) -> str:
    """Drop control characters, turn white space into blanks, put blanks around Chinese ones."""
    category = unicodedata.category(char)
    if char in "\t\n\r" or category == "Zs":
        return " "
    # Like Google's code, keep unassigned (Cn) and private (Co) code points.
    if char == "\ufffd" or category in ("Cc", "Cf"):
        return ""
    if any(first <= ord(char) <= last for first, last in CHINESE):
        return f" {char} "
    return char


def _split_punctuation(char: str) -> str:
    """Put blanks around punctuation and all ASCII symbols (``$`` is not punctuation in Unicode)."""
    ascii_symbol = "!" <= char <= "~" and not char.isalnum()
    return f" {char} " if ascii_symbol or unicodedata.category(char)[0] == "P" else char


def _strip_accents(char: str) -> str:
    return "" if unicodedata.category(char) == "Mn" else _split_punctuation(char)


class BasicTokenizer:
    """Split text into words and punctuation as Google BERT does before WordPiece.

    Parameters
    ----------
    do_lower_case : bool
        Lower-case and remove accents, as Google's "uncased" models expect.
    """

    def __init__(self, do_lower_case: bool = True):
        self.do_lower_case = do_lower_case
        self._clean = _CharacterMap(_clean)
        self._split = _CharacterMap(_strip_accents if do_lower_case else _split_punctuation)

    def tokenize(self, text: str) -> list[str]:
        text = text.translate(self._clean)
        if self.do_lower_case:
            # Lower-case first, like Google. The whole text at once is fine: the lower case of a
            # sigma depends only on its own word.
            text = unicodedata.normalize("NFD", text.lower())
        return whitespace_tokenize(text.translate(self._split))


class WordpieceTokenizer:
    """Cut words into pieces from a vocabulary, always the longest that fits, from the left.

    Parameters
    ----------
    vocab : mapping or set of str
        The pieces; those that continue a word begin with ``##``.
    unk_token : str
        Replaces a word that cannot be cut into pieces.
    max_input_chars_per_word : int
        Longer words are replaced by ``unk_token``.
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
        Google's vocab.txt, which must contain ``[UNK]``; or the result of :func:`load_vocab`.
    do_lower_case : bool
        True if the vocabulary is "uncased". See `reading_of`.
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


MAX_WORDS = 2**20  # maximum number of words whose pieces are cached


class _Words(dict):
    """A cache ``{word: ids of its pieces}``: a corpus repeats few distinct words."""

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
    """Tokenizer of the corpus: split at white space, keep known words whole, cut all others.

    Any word of the vocabulary becomes one token: ``__ctype_b_loc``, but also ``[MASK]`` in a line
    that a user typed. (dataprocess.py keeps special tokens out of the corpus.)

    Parameters
    ----------
    vocab : path-like or dict
        The vocabulary file, or the result of :func:`load_vocab`; with all special tokens.
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
        """Return the ids of all words of ``text``; line ends count as white space.

        Returns
        -------
        ids : (n,) int32
        """
        return self.encode_lines([text])[0]

    def encode_lines(self, lines: Iterable[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Encode many lines at once, e.g. an open file; invalid UTF-8 becomes ``[UNK]``.

        Returns
        -------
        ids : (n,) int32
            The ids of all lines, concatenated.
        offsets : (lines + 1,) int64
            Line i is ``ids[offsets[i]:offsets[i + 1]]``, which is empty for a blank line.
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
    """Return the tokenizer with the name that model.json says.

    Parameters
    ----------
    name : {"corpus", "bert", "bert-cased"}
    vocab : path-like or dict
        The vocabulary file, or the result of :func:`load_vocab`.

    Raises
    ------
    UserError
        An unknown name; a vocabulary that lacks a special token.
    """
    classes = {
        "corpus": CorpusTokenizer,
        "bert": FullTokenizer,
        "bert-cased": partial(FullTokenizer, do_lower_case=False),
    }
    if name not in classes:
        raise UserError(f"there is no tokenizer {name!r}; choose from {', '.join(classes)}")
    if not isinstance(vocab, dict):
        return classes[name](load_vocab(vocab, needed=SPECIAL_TOKENS))
    _check_needed(vocab, SPECIAL_TOKENS, "the model's vocabulary")
    return classes[name](vocab)
