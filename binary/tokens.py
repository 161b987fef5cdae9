"""Make the tokens of each block from the instructions in an analysis.

This takes milliseconds and happens whenever an analysis is read. So a change of tokens needs no new
disassembly: change this file, raise VERSION, and run gendata.py again.
"""

import dataclasses
import itertools

import numpy as np

from binary.analysis import Analysis
from binary.instructions import clean_name, string_words

VERSION = 1  # of the tokens; raise it, and gendata.py makes its pairs again


@dataclasses.dataclass
class Tokens:
    """The tokens of all B blocks of a binary.

    Attributes
    ----------
    dictionary : list of str
        The distinct tokens, sorted.
    tokens : int32 (n,), offsets : int64 (B + 1,)
        Block b has the tokens ``dictionary[t] for t in tokens[offsets[b]:offsets[b + 1]]``.
    is_last : bool (n,)
        Whether a token is the last one of its instruction.
    """

    dictionary: list[str]
    tokens: np.ndarray
    offsets: np.ndarray
    is_last: np.ndarray

    def words(self) -> list[list[str]]:
        """Return each block's tokens."""
        words = [self.dictionary[t] for t in self.tokens.tolist()]
        return [words[start:end] for start, end in itertools.pairwise(self.offsets.tolist())]

    def instructions(self) -> list[list[list[str]]]:
        """Return each block's instructions, each as its tokens."""
        split = []
        last = self.is_last.tolist()
        for words, start in zip(self.words(), self.offsets.tolist(), strict=False):
            ends = [i + 1 for i in range(len(words)) if last[start + i]]
            split.append([words[a:b] for a, b in itertools.pairwise([0, *ends])])
        return split


def tokenise(analysis: Analysis) -> Tokens:
    """Make the tokens of all blocks.

    An instruction becomes its mnemonic and a token for each operand: reg1, reg2, reg4, ... (the
    register's bytes), ptr, imme, or str followed by the words of the string literal. In a call of
    an import, the operand becomes the import's name. An import's block is just its name.
    """
    number: dict[tuple[str, ...], int] = {}

    def numbered(words: list[str]) -> int:
        return number.setdefault(tuple(words), len(number))

    forms = [form.split(" ") for form in analysis.form]
    of_form = np.array([numbered(words) for words in forms], np.int64)
    sequence = of_form[analysis.instruction_form]  # the number of each instruction's tokens
    has_string = np.array(["str" in words[1:] for words in forms], bool)
    rows = iter(analysis.operand_string.tolist())
    for i in np.flatnonzero(has_string[analysis.instruction_form]).tolist():
        mnemonic, *operands = forms[analysis.instruction_form[i]]
        words = [mnemonic]
        for operand in operands:
            words.append(operand)
            if operand == "str":
                words += string_words(analysis.string[next(rows)])
        sequence[i] = numbered(words)
    for block, name in analysis.import_calls():
        last = analysis.first_instruction[block + 1] - 1
        mnemonic, *operands = forms[analysis.instruction_form[last]]
        if len(operands) == 1:
            sequence[last] = numbered([mnemonic, clean_name(name)])
    imports = [numbered([clean_name(name)]) for name in analysis.import_name]
    sequence = np.append(sequence, np.array(imports, np.int64))
    ends = analysis.first_instruction[1:].copy()
    ends[analysis.code_blocks :] += np.arange(1, len(imports) + 1)

    texts = list(number)
    used = [texts[i] for i in np.unique(sequence).tolist()]
    dictionary = sorted({word for words in used for word in words})
    ids = {word: i for i, word in enumerate(dictionary)}
    flat = np.array([ids.get(word, -1) for words in texts for word in words], np.int32)
    start = np.cumsum([0, *map(len, texts)])
    length = np.diff(start)[sequence]
    offsets = np.cumsum(np.append(0, length))
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], length)
    is_last = np.zeros(offsets[-1], bool)
    is_last[offsets[1:] - 1] = True
    return Tokens(
        dictionary=dictionary,
        tokens=flat[np.repeat(start[sequence], length) + within],
        offsets=offsets[np.append(0, ends)],
        is_last=is_last,
    )
