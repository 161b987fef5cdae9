"""Prepare a function for the encoder: one position per instruction, with the instruction's words.

The words are those of `extract`, but in order: an instruction's mnemonic with the classes of its
operands, its numbers and offsets of fields, and what it does in words that all processors share
(`operations`). The last instruction of a block also has the block's names: imports and the words of
string literals. Symbols are not used, so a stripped copy gives the same positions.

A function also has a bag of all its words and those of its callees and callers.
"""

import numpy as np
import scipy.sparse

import utils
from features.extract import Features
from features.operations import operations
from features.tfidf import DIMENSIONS, hashed
from features.words import BAG, LONGEST, WORD_KINDS, Positions

IDLE = ("nothing",)  # padding; it has no position


@utils.rare_collections()
def read_positions(code: Features) -> Positions:
    """Return the encoder's input for a binary's functions."""
    lines, n_blocks = code.lines, code.analysis.code_blocks
    does = [operations(*_split(form)) for form in lines.forms]
    kinds = {**lines.words, "operation": hashed(does)[lines.form]}
    of_line = _stack([kinds.get(kind) for kind in WORD_KINDS], len(lines.texts))
    idle = np.array([words == IDLE for words in does], bool)[lines.form]

    order = np.concatenate([np.arange(0), *code.blocks]).astype(np.int64)  # blocks by function
    start, size = lines.offsets[order], np.diff(lines.offsets)[order]
    begin = np.cumsum(size) - size
    place = np.repeat(start - begin, size) + np.arange(size.sum())  # of instructions
    block = np.repeat(order, size)
    function = code.analysis.function[block]
    kept = np.flatnonzero(~idle[lines.number[place]])
    rank = np.arange(len(kept)) - np.searchsorted(function[kept], function[kept])
    kept = kept[rank < LONGEST]
    line, block, function = lines.number[place[kept]], block[kept], function[kept]
    last = np.append(block[1:] != block[:-1], True)[: len(block)]
    at = np.flatnonzero(last)
    holds = scipy.sparse.csr_matrix(
        (np.ones(len(at), np.float32), (at, block[at])), (len(block), n_blocks)
    )
    named = holds @ code.block_words["name"]
    names = _stack([named if kind == "name" else None for kind in WORD_KINDS], len(block))

    inside = scipy.sparse.csr_matrix(
        (
            np.ones(len(lines.number), np.float32),
            (np.repeat(code.analysis.function[:n_blocks], np.diff(lines.offsets)), lines.number),
        ),
        (code.functions, len(lines.texts)),
    )
    bags = {**code.words, "operation": inside @ kinds["operation"]}
    return Positions(
        line=line,
        block=block.astype(np.int32),
        offsets=np.searchsorted(function, np.arange(code.functions + 1)),
        of_line=of_line,
        names=names,
        bags=_stack([bags[group] for group in BAG], code.functions),
    )


def _split(line: bytes) -> tuple[str, str]:
    mnemonic, _, operands = line.decode("ascii", "replace").partition(" ")
    return mnemonic, operands


def _stack(parts: list, rows: int) -> scipy.sparse.csr_matrix:
    """Put matrices of DIMENSIONS columns side by side; None is an empty one."""
    empty = scipy.sparse.csr_matrix((rows, DIMENSIONS), dtype=np.float32)
    stacked = scipy.sparse.hstack([empty if m is None else m for m in parts], "csr", np.float32)
    stacked.sort_indices()
    return stacked
