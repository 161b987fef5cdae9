"""Extract the features by which functions and basic blocks are compared from an analysed binary.

Each block and each function is a bag of words of several kinds: mnemonics with the classes of their
operands, numbers, offsets of structure fields, names (string literals, imported functions and
variables). Because compilers inline, a function also has the words of the functions that it calls,
and of its callers. Symbols are not used.
"""

import bisect
import dataclasses
import functools
import re
from typing import NamedTuple

import numpy as np
import scipy.sparse

import utils
from binary.analysis import STEP_OVER, Analysis, load_analysis
from binary.architectures import Architecture
from binary.cache import analyse_files
from binary.instructions import literal_words
from binary.shared_data import Tables, pointer_labels, read_tables, shared_variables
from features.normalised import normal_forms
from features.outline import Outline
from features.places import Places
from features.tfidf import columns_of, counted, factorised, hashed
from features.words import KINDS, ranges
from jobs.processes import LIMITS, limited_memory

HUB = 1000  # a function that calls more than so many others is a hub
WORDY = 100  # a function with more words does not give them to more than HUB others
IMAGE = 1 << 24  # numbers up to this far above the first function may be addresses
# Operands as capstone writes them: qword ptr [rbx + rax*8 + 0x38], 0x2f
NUMBER = re.compile(rb"(?<![\w*#.])#?(-?0x[0-9a-f]+|-?\d+)\b(?![\](.])")
# Any number; not one that is part of a name, such as r8 or vmov.32.
LITERAL = re.compile(rb"(?<![\w.])(0x[0-9a-f]+|\d+)(?!\w)")
MASK = (1 << 64) - 1
BETWEEN_OPERANDS = re.compile(r", (?![^\[(]*[\])])")  # not the comma in [x0, #8]


class Form(NamedTuple):
    """What instructions have in common that differ only in their numbers.

    Attributes
    ----------
    mnemonic, token : str
        The mnemonic alone, and with the classes of the operands.
    literals : int
        How many numbers there are.
    fields, numbers : list of (int, bool)
        Which of them are offsets of structure fields, and which are operands, from 0; and whether
        there is a minus before.
    """

    mnemonic: str
    token: str
    literals: int
    fields: list[tuple[int, bool]]
    numbers: list[tuple[int, bool]]


@dataclasses.dataclass
class Lines:
    """The instructions of a binary's code blocks, n of them, L of which differ.

    Attributes
    ----------
    number : int32 (n,)
        Which of the L each is, block after block.
    offsets : int64 (B + 1,)
        Block b has the instructions offsets[b] up to offsets[b + 1].
    texts : list of bytes
        The L lines.
    form : int32 (L,)
        Which of the forms each line has.
    forms : list of bytes
        The different lines that remain if each number is replaced by 1 or 0x1.
    words : dict of str to csr float32 (L, DIMENSIONS)
        "token", "number" and "field": how often each line has each.
    """

    number: np.ndarray
    offsets: np.ndarray
    texts: list[bytes]
    form: np.ndarray
    forms: list[bytes]
    words: dict[str, scipy.sparse.csr_matrix]


@dataclasses.dataclass
class Features:
    """The features of a binary with F functions that hold code, and B code blocks.

    Attributes
    ----------
    analysis : binary.analysis.Analysis
    blocks : list of int arrays
        The blocks of each function, sorted by address.
    calls : csr float32 (F, F)
        1 where a function calls or jumps into another, or takes its address.
    block_words : dict of str to csr float32 (B, DIMENSIONS)
        Kind of words -> how often each word occurs in each block.
    words : dict of str to csr float32 (F, DIMENSIONS)
        Group of words -> how often each word occurs in each function.
    shared : csr float32 (F, F)
        How many variables functions share, see `binary.shared_data.shared_variables`.
    tables : Tables
        Tables of pointers to functions in the data.
    lines : Lines
        The instructions.
    """

    analysis: Analysis
    blocks: list[np.ndarray]
    calls: scipy.sparse.csr_matrix
    block_words: dict[str, scipy.sparse.csr_matrix]
    words: dict[str, scipy.sparse.csr_matrix]
    shared: scipy.sparse.csr_matrix
    tables: Tables
    lines: Lines

    @property
    def functions(self) -> int:
        """Number of functions that hold code; in the analysis, imports follow after them."""
        return len(self.blocks)

    @property
    def sizes(self) -> np.ndarray:
        """Number of blocks of each function, int64 (F,)."""
        return np.array([len(inside) for inside in self.blocks], np.int64)

    @functools.cached_property
    def forms(self) -> list[tuple]:
        """The normalised code of each block, see `normal_forms`."""
        return normal_forms(self.analysis, self.places)

    @functools.cached_property
    def outline(self) -> Outline:
        """The normalised code of the functions, and what they refer to."""
        return Outline(self)

    @functools.cached_property
    def flow(self) -> list[np.ndarray]:
        """The edges between blocks of each function, as row numbers of ``analysis.edges``."""
        ends = self.analysis.function[self.analysis.edges]
        within = np.flatnonzero((ends[:, 0] == ends[:, 1]) & (ends[:, 0] < self.functions))
        function = ends[within, 0]
        order = np.argsort(function, kind="stable")
        return np.split(within[order], np.searchsorted(function[order], range(1, self.functions)))

    @functools.cached_property
    def places(self) -> Places:
        """What the operands of instructions refer to."""
        return Places(self.analysis)


@utils.rare_collections()
def extract_features(analysis: Analysis) -> Features:
    """Extract the features of an analysed binary."""
    n_functions = analysis.code_functions
    function = analysis.function[: analysis.code_blocks]
    order = np.argsort(function, kind="stable")
    blocks = np.split(order, np.searchsorted(function[order], np.arange(1, n_functions)))
    calls = _calls(analysis, n_functions)
    lines, mnemonics = _read_lines(analysis)
    block_words = _block_words(analysis, lines, mnemonics)
    inside = scipy.sparse.csr_matrix(
        (np.ones(len(function), np.float32), (function, np.arange(len(function)))),
        (n_functions, len(function)),
    )
    words = {kind: inside @ block_words[kind] for kind in KINDS}
    words["name"] = words["name"] + hashed(pointer_labels(analysis))
    near = (calls + scipy.sparse.identity(n_functions, np.float32, "csr")).tocsr()
    far = _ones(near @ _without_hubs(near))
    up = calls.T.tocsr()
    numbers = words["number"] + words["field"]
    words |= {
        "name near": _collect(near, words["name"]),
        "name far": _collect(far, words["name"]),
        "name up": _collect(up, words["name"]),
        "number near": _collect(near, numbers),
        "number up": _collect(up, numbers),
    }
    words["size"] = _sizes(blocks, words, calls)
    for matrix in words.values():  # sums of floats depend on the order
        matrix.sort_indices()
    shared, tables = shared_variables(analysis), read_tables(analysis)
    return Features(analysis, blocks, calls, block_words, words, shared, tables, lines)


def _without_hubs(near: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    """Remove the calls of hubs, i.e. functions that call very many others.

    The functions that a hub calls say nothing about its callers. And if many functions call a hub,
    each would get the words of the whole program: memory would grow with the square of their
    number.
    """
    row = np.repeat(np.arange(near.shape[0]), np.diff(near.indptr))
    hub = np.diff(near.indptr) > HUB
    kept = ~hub[row] | (near.indices == row)
    return scipy.sparse.csr_matrix((near.data[kept], (row[kept], near.indices[kept])), near.shape)


def _collect(
    relation: scipy.sparse.csr_matrix, words: scipy.sparse.csr_matrix
) -> scipy.sparse.csr_matrix:
    """Return how many of the functions that each is related to have each word.

    If very many are related to a function of many words (a dispatcher calls them all, say), only
    that function itself gets its words: they tell the others nothing, and memory would grow with
    the square of the number of functions.
    """
    row = np.repeat(np.arange(relation.shape[0]), np.diff(relation.indptr))
    many = np.bincount(relation.indices, minlength=relation.shape[1]) > HUB
    many &= np.diff(words.indptr) > WORDY
    kept = ~many[relation.indices] | (relation.indices == row)
    relation = scipy.sparse.csr_matrix(
        (relation.data[kept], (row[kept], relation.indices[kept])), relation.shape
    )
    return relation @ _ones(words)


def _ones(matrix: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    matrix = matrix.copy()
    matrix.data[:] = 1
    return matrix


def _calls(analysis: Analysis, n_functions: int) -> scipy.sparse.csr_matrix:
    n_code = analysis.code_blocks
    source, target = analysis.edges.T
    used = (analysis.kind != STEP_OVER) & (source < n_code) & (target < n_code)
    entry = np.isin(analysis.address[analysis.taken_block], analysis.function_address)
    callers = np.append(source[used], analysis.taker_block[entry])
    called = np.append(target[used], analysis.taken_block[entry])
    ends = analysis.function[np.stack([callers, called], 1)]
    between = np.unique(ends[ends[:, 0] != ends[:, 1]], axis=0)
    ones = np.ones(len(between), np.float32)
    return scipy.sparse.csr_matrix((ones, tuple(between.T)), (n_functions, n_functions))


def _read_lines(analysis: Analysis) -> tuple[Lines, list[str]]:
    """Return the instructions, and the mnemonic of each form.

    Most instructions occur many times, and most others differ from one of these only in numbers. So
    each form is read once, and the numbers of each line are put in afterwards.
    """
    n_code = analysis.code_blocks
    blocks = analysis.instructions[:n_code]
    offsets = np.cumsum([0] + [text.count(b"\n") + 1 for text in blocks])
    line, texts = factorised(b"\n".join(blocks).split(b"\n"))
    form, forms, literals = split_forms(texts)
    read = [_read_form(analysis.architecture, text) for text in forms]
    words = _words_of_lines(int(analysis.function_address[0]), read, form, literals)
    lines = Lines(line.astype(np.int32), offsets, texts, form, forms, words)
    return lines, [of.mnemonic for of in read]


def split_forms(texts: list[bytes]) -> tuple[np.ndarray, list[bytes], list[bytes]]:
    """Return `Lines.form` and `Lines.forms` of L lines, and their numbers, line after line."""
    parts = LITERAL.split(b"\n".join(texts))
    literals = parts[1::2]
    parts[1::2] = [b"0x1" if b"x" in literal else b"1" for literal in literals]
    form, forms = factorised(b"".join(parts).split(b"\n"))
    return form.astype(np.int32), forms, literals


def _words_of_lines(
    first: int, forms: list[Form], form: np.ndarray, literals: list[bytes]
) -> dict[str, scipy.sparse.csr_matrix]:
    """Return `Lines.words`.

    Parameters
    ----------
    first : int
        Address of the first function.
    forms : list of Form
    form : int32 (L,)
        The form of each line.
    literals : list of bytes
        The numbers of all lines, one line after the other.
    """
    literal, texts = factorised(literals)
    value = np.array([_number(text) & MASK for text in texts], np.uint64)

    def written(used: list[list[tuple[int, bool]]]) -> tuple[np.ndarray, ...]:
        """Return line, number of the text, and whether it is negative, of all uses of literals."""
        count = np.array([of.literals for of in forms])[form]
        begin = np.cumsum(count) - count
        size = np.array([len(places) for places in used])
        place = np.array([place for places in used for place, _ in places], np.int64)
        negative = np.array([negative for places in used for _, negative in places], bool)
        at = ranges((np.cumsum(size) - size)[form], size[form])
        row = np.repeat(np.arange(len(form)), size[form])
        return row, literal[begin[row] + place[at]], negative[at]

    row, text, negative = written([of.fields for of in forms])
    near = value[text] < IMAGE
    offset, word = np.unique(2 * text[near] + negative[near], return_inverse=True)
    signed = [f"{'+-'[i % 2]}{texts[i // 2].decode()}" for i in offset.tolist()]
    fields = counted(row[near], columns_of(signed)[word], len(form))

    row, text, negative = written([of.numbers for of in forms])
    n = value[text]
    plain = negative | (n < first) | (n - np.uint64(first) >= IMAGE)
    n = np.where(negative, -n, n)[plain] & np.uint64(0xFFFFFFFF)
    found, word = np.unique(n, return_inverse=True)
    numbers = counted(row[plain], columns_of(found.tolist())[word], len(form))
    tokens = hashed((of.mnemonic, of.token) for of in forms)[form]
    return {"token": tokens, "field": fields, "number": numbers}


def _block_words(
    analysis: Analysis, lines: Lines, mnemonics: list[str]
) -> dict[str, scipy.sparse.csr_matrix]:
    n_code = analysis.code_blocks
    ones = np.ones(len(lines.number), np.float32)
    has = scipy.sparse.csr_matrix((ones, lines.number, lines.offsets), (n_code, len(lines.texts)))
    words = {kind: has @ of_line for kind, of_line in lines.words.items()}
    words["gram"] = _grams(lines, mnemonics)
    names: list[list] = [[] for _ in range(n_code)]
    for block, literal in zip(analysis.string_block.tolist(), analysis.string, strict=True):
        names[block] += literal_words(literal)
    imports = analysis.import_calls()
    imports += zip(analysis.variable_block.tolist(), analysis.variable_name, strict=True)
    for block, name in imports:
        if name:
            names[block].append(("import", name))
    words["name"] = hashed(names)
    for matrix in words.values():
        matrix.sort_indices()
    return words


@functools.lru_cache(1 << 16)  # files share many
def _read_form(architecture: Architecture, line: bytes) -> Form:
    mnemonic, _, operands = line.decode("ascii", "replace").partition(" ")
    text = line[len(mnemonic) + 1 :]
    classes = "".join(
        "m" if re.search(r"[\[(]", operand) else "n" if re.match(r"#?-?\d", operand) else "r"
        for operand in BETWEEN_OPERANDS.split(operands)
        if operand
    )
    starts = [found.start() - len(mnemonic) - 1 for found in LITERAL.finditer(line)]

    def place(end: int) -> int:
        return bisect.bisect_left(starts, end) - 1

    fields = [
        (place(found.end("offset")), found["sign"] == b"-")
        for found in architecture.field.finditer(text)
        if found["base"] not in architecture.frame
    ]
    branch = architecture.branch.match(f"{mnemonic} {operands}")
    numbers = [] if branch else [(place(m.end(1)), b"-" in m[1]) for m in NUMBER.finditer(text)]
    return Form(mnemonic, f"{mnemonic} {classes}", len(starts), fields, numbers)


def _grams(lines: Lines, mnemonics: list[str]) -> scipy.sparse.csr_matrix:
    """Count the sequences of two and of three mnemonics in each block.

    Parameters
    ----------
    lines : Lines
    mnemonics : list of str
        The mnemonic of each form.
    """
    names, of_form = np.unique(mnemonics, return_inverse=True)
    name, each = names.tolist(), of_form[lines.form[lines.number]]
    blocks = len(lines.offsets) - 1
    block = np.repeat(np.arange(blocks), np.diff(lines.offsets))
    two, pair = np.unique(each[:-1] * len(name) + each[1:], return_inverse=True)
    three, triple = np.unique(pair[:-1] * len(name) + each[2:], return_inverse=True)
    pairs = [(name[i // len(name)], name[i % len(name)]) for i in two.tolist()]
    triples = [(*pairs[i // len(name)], name[i % len(name)]) for i in three.tolist()]
    in_two, in_three = block[1:] == block[:-1], block[2:] == block[:-2]
    column = [columns_of(pairs)[pair[in_two]], columns_of(triples)[triple[in_three]]]
    row = [block[1:][in_two], block[2:][in_three]]
    return counted(np.concatenate(row), np.concatenate(column), blocks)


def _number(text: bytes) -> int:
    return int(text, 16 if b"x" in text else 10)


def _sizes(
    blocks: list[np.ndarray],
    words: dict[str, scipy.sparse.csr_matrix],
    calls: scipy.sparse.csr_matrix,
) -> scipy.sparse.csr_matrix:
    """Return sizes and degrees as words, such as "at least 2 ** (5 / 2) blocks"."""
    measures = {
        "blocks": [len(inside) for inside in blocks],
        "instructions": np.asarray(words["token"].sum(1)).ravel(),
        "names": np.diff(words["name"].indptr),
        "calls": np.diff(calls.indptr),
        "callers": np.diff(calls.T.tocsr().indptr),
    }
    rows, columns = [], []
    for what, values in measures.items():
        steps = (2 * np.log2(np.asarray(values) + 1)).astype(np.int64) + 1
        column = columns_of((what, step) for step in range(steps.max(initial=0)))
        rows.append(np.repeat(np.arange(len(steps)), steps))
        columns.append(column[ranges(np.zeros(len(steps), np.int64), steps)])
    return counted(np.concatenate(rows), np.concatenate(columns), len(blocks))


def read_binaries(
    paths: tuple[str, ...],
    output_dir: str,
    workers: int,
    limits: tuple[float, float] = LIMITS,
) -> tuple[Features, ...]:
    """Analyse binaries, or take their analyses from the cache, and extract their features.

    Raises
    ------
    UserError
        A file cannot be analysed; then the others are not analysed either.
    """
    found, _ = analyse_files(paths, output_dir, workers, limits, all_or_none=True)
    with limited_memory(limits[1], f"extracting the features of {' and '.join(paths)}"):
        return tuple(extract_features(load_analysis(found[path])) for path in paths)
