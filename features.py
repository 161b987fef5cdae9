"""One analysed binary -> what its functions and basic blocks are compared by.

Each block and each function is a bag of words in several kinds: mnemonics with their operands'
classes, numbers, offsets of structures' fields, names (string literals, imported functions and
variables). As a compiler inlines, a function also has the words of what it calls, and of its
callers. No symbol is looked at.
"""

import dataclasses
import functools
import itertools
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import scipy.sparse

import functions
import preprocessing
import variables
from variables import Tables

DIMENSIONS = 1 << 18  # words are hashed; of one binary's words few collide
IMAGE = 1 << 24  # a number less than this behind the first function may be an address

# Operands as capstone writes them: qword ptr [rbx + rax*8 + 0x38], 0x2f
MEMORY = re.compile(rb"\[(\w+)(?: \+ \w+(?:\*\d)?)? ([+-]) (0x[0-9a-f]+|\d+)\]")
NUMBER = re.compile(rb"(?<![\w*#])#?(-?0x[0-9a-f]+|-?\d+)\b(?!\])")
BRANCH = re.compile(rb"(call|j\w+|bl?)\b [^ \[]*$")
ADDRESS = re.compile(rb"\b(rip|eip) [+-] (?:0x[0-9a-f]+|\d+)|0x[0-9a-f]+")
# Instructions that compute nothing: alignment, and the landing pads of control-flow protection,
# which one distribution has compiled in and the other not. "notrack" belongs to these.
IDLE = {b"nop", b"endbr64", b"endbr32", b"bti", b"hint"}
# Offsets from these are places in a stack frame or in the image, which no two builds share.
FRAME = {b"rsp", b"rbp", b"esp", b"ebp", b"sp", b"fp", b"rip", b"eip", b"pc"}

KINDS = ("token", "gram", "number", "field", "name")  # of a block's words
# Of a function: its own words; `near`, with those of the functions called; `far`, with those that
# these call; `up`, of the callers.
GROUPS = (*KINDS, "size", "name near", "name far", "name up", "number near", "number up")


@dataclasses.dataclass
class Code:
    """What the comparison needs of one binary with F functions that hold code and B code blocks.

    Attributes
    ----------
    analysis : preprocessing.Analysis
    blocks : list of int arrays
        Of each function, by address.
    calls : csr float32 (F, F)
        1 where a function calls or jumps into another, or takes its address.
    block_words : dict of str to csr float32 (B, DIMENSIONS)
        Kind of word -> how often each block has each.
    words : dict of str to csr float32 (F, DIMENSIONS)
        Group -> how often each function has each.
    shared : csr float32 (F, F)
        How much functions have in common of variables, see `variables.shared`.
    tables : Tables
        Where data points at functions.
    """

    analysis: preprocessing.Analysis
    blocks: list[np.ndarray]
    calls: scipy.sparse.csr_matrix
    block_words: dict[str, scipy.sparse.csr_matrix]
    words: dict[str, scipy.sparse.csr_matrix]
    shared: scipy.sparse.csr_matrix
    tables: Tables

    @property
    def functions(self) -> int:
        """Number of functions that hold code; imports come behind them in the analysis."""
        return len(self.blocks)

    @property
    def sizes(self) -> np.ndarray:
        """Number of blocks of each function, int64 (F,)."""
        return np.array([len(inside) for inside in self.blocks], np.int64)

    @functools.cached_property
    def forms(self) -> list[tuple]:
        """What is left of each block without its addresses, see `normal_forms`."""
        return normal_forms(self)


def read_code(analysis: preprocessing.Analysis) -> Code:
    """Extract the features of an analysed binary."""
    analysis = functions.mend(analysis)
    n_functions = analysis.code_functions
    function = analysis.function[: analysis.code_blocks]
    order = np.argsort(function, kind="stable")
    blocks = np.split(order, np.searchsorted(function[order], np.arange(1, n_functions)))
    calls = _calls(analysis, n_functions)
    block_words = _block_words(analysis)
    inside = scipy.sparse.csr_matrix(
        (np.ones(len(function), np.float32), (function, np.arange(len(function)))),
        (n_functions, len(function)),
    )
    words = {kind: inside @ block_words[kind] for kind in KINDS}
    words["name"] = words["name"] + hashed(variables.labels(analysis))
    near = (calls + scipy.sparse.identity(n_functions, np.float32, "csr")).tocsr()
    far = _ones(near @ near)
    up = calls.T.tocsr()
    numbers = words["number"] + words["field"]
    words |= {
        "name near": near @ _ones(words["name"]),
        "name far": far @ _ones(words["name"]),
        "name up": up @ _ones(words["name"]),
        "number near": near @ _ones(numbers),
        "number up": up @ _ones(numbers),
    }
    words["size"] = _sizes(blocks, words, calls)
    for matrix in words.values():  # sums of floats depend on the order
        matrix.sort_indices()
    shared, tables = variables.shared(analysis), variables.read_tables(analysis)
    return Code(analysis, blocks, calls, block_words, words, shared, tables)


def _ones(matrix: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    matrix = matrix.copy()
    matrix.data[:] = 1
    return matrix


def _calls(analysis: preprocessing.Analysis, n_functions: int) -> scipy.sparse.csr_matrix:
    n_code = analysis.code_blocks
    source, target = analysis.edges.T
    used = (analysis.kind != preprocessing.STEP_OVER) & (source < n_code) & (target < n_code)
    entry = np.isin(analysis.address[analysis.taken_block], analysis.function_address)
    callers = np.append(source[used], analysis.taker_block[entry])
    called = np.append(target[used], analysis.taken_block[entry])
    ends = analysis.function[np.stack([callers, called], 1)]
    between = np.unique(ends[ends[:, 0] != ends[:, 1]], axis=0)
    ones = np.ones(len(between), np.float32)
    return scipy.sparse.csr_matrix((ones, tuple(between.T)), (n_functions, n_functions))


def _block_words(analysis: preprocessing.Analysis) -> dict[str, scipy.sparse.csr_matrix]:
    n_code = analysis.code_blocks
    first = int(analysis.function_address[0])
    texts = [text.split(b"\n") for text in analysis.instructions[:n_code]]
    # Most instructions occur many times: each is read once, and counted.
    number: dict[bytes, int] = {}
    line = [number.setdefault(line, len(number)) for text in texts for line in text]
    offsets = np.cumsum([0] + [len(text) for text in texts])
    has = scipy.sparse.csr_matrix(
        (np.ones(len(line), np.float32), line, offsets), (n_code, len(number))
    )
    mnemonics, tokens, fields, numbers = zip(*map(_read_instruction, number), strict=True)
    words = {
        "token": has @ hashed(zip(mnemonics, tokens, strict=True)),
        "field": has @ hashed(fields),
        "number": has
        @ hashed([n & 0xFFFFFFFF for n in ns if not 0 <= n - first < IMAGE] for ns in numbers),
    }
    sequences = [[mnemonics[number[line]] for line in text] for text in texts]
    words["gram"] = hashed(
        [*itertools.pairwise(m), *zip(m, m[1:], m[2:], strict=False)] for m in sequences
    )
    names: list[list] = [[] for _ in texts]
    for block, literal in zip(analysis.string_block.tolist(), analysis.string, strict=True):
        names[block] += preprocessing.literal_words(literal)
    imports = analysis.import_calls()
    imports += zip(analysis.variable_block.tolist(), analysis.variable_name, strict=True)
    for block, name in imports:
        if name:
            names[block].append(("import", name))
    words["name"] = hashed(names)
    for matrix in words.values():
        matrix.sort_indices()
    return words


def _read_instruction(line: bytes) -> tuple[str, str, list[str], list[int]]:
    """Return mnemonic, mnemonic with operands' classes, fields' offsets, numbers."""
    mnemonic, _, operands = line.decode("ascii", "replace").partition(" ")
    text = line[len(mnemonic) + 1 :]
    classes = "".join(
        "m" if "[" in operand else "n" if re.match(r"#?-?\d", operand) else "r"
        for operand in operands.split(", ")
        if operand
    )
    fields = [
        sign.decode() + number.decode()
        for base, sign, number in MEMORY.findall(text)
        if base not in FRAME and int(number, 0) < IMAGE
    ]
    branch = mnemonic.startswith(preprocessing.BRANCHES)
    numbers = [] if branch else [int(number, 0) for number in NUMBER.findall(text)]
    return mnemonic, f"{mnemonic} {classes}", fields, numbers


def _sizes(
    blocks: list[np.ndarray],
    words: dict[str, scipy.sparse.csr_matrix],
    calls: scipy.sparse.csr_matrix,
) -> scipy.sparse.csr_matrix:
    """Sizes and degrees as words, such as "at least 2 ** (5 / 2) blocks"."""
    measures = {
        "blocks": [len(inside) for inside in blocks],
        "instructions": np.asarray(words["token"].sum(1)).ravel(),
        "names": np.diff(words["name"].indptr),
        "calls": np.diff(calls.indptr),
        "callers": np.diff(calls.T.tocsr().indptr),
    }
    bags: list[list] = [[] for _ in blocks]
    for what, values in measures.items():
        for bag, value in zip(bags, values, strict=True):
            bag += [(what, step) for step in range(int(2 * np.log2(value + 1)) + 1)]
    return hashed(bags)


def hashed(bags: Iterable[Iterable[Any]]) -> scipy.sparse.csr_matrix:
    """Return how often n bags hold each word, csr float32 (n, DIMENSIONS)."""
    column = functools.cache(lambda word: zlib.crc32(repr(word).encode()) % DIMENSIONS)
    rows = [[column(word) for word in bag] for bag in bags]
    columns = np.array([column for row in rows for column in row], np.int32)
    offsets = np.cumsum([0] + [len(row) for row in rows])
    ones = np.ones(len(columns), np.float32)
    found = scipy.sparse.csr_matrix((ones, columns, offsets), (len(rows), DIMENSIONS))
    found.sum_duplicates()
    return found


def weigh(*counts: scipy.sparse.csr_matrix, lengths: bool = True) -> list[scipy.sparse.csr_matrix]:
    """Weigh words by TF-IDF, the rows of all matrices together being the documents.

    Parameters
    ----------
    counts : csr (n_i, words)
    lengths : bool
        Give each row length 1.

    Returns
    -------
    list of csr float32
        (1 + ln count) * idf, the smoothed idf of scikit-learn.
    """
    n = sum(m.shape[0] for m in counts)
    found = sum(np.bincount(m.indices, minlength=m.shape[1]) for m in counts)
    idf = (np.log((1 + n) / (1 + found)) + 1).astype(np.float32)
    weighed = []
    for m in counts:
        m = m.copy()
        m.data = (1 + np.log(m.data)) * idf[m.indices]
        weighed.append(normalise(m) if lengths else m)
    return weighed


def normalise(m: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    """Give each row length 1; empty rows stay empty."""
    rows = np.repeat(np.arange(m.shape[0]), np.diff(m.indptr))
    length = np.sqrt(np.bincount(rows, m.data**2, m.shape[0]))
    data = m.data / np.maximum(length, 1e-9)[rows].astype(np.float32)
    return scipy.sparse.csr_matrix((data, m.indices, m.indptr), m.shape)


def normal_forms(code: Code) -> list[tuple]:
    """Return of each code block what is left of it when addresses are taken away.

    Two blocks are the same code if these are equal: instructions that compute something, without
    targets of branches and places in the image; string literals; imports.
    """
    analysis = code.analysis
    first = int(analysis.function_address[0])
    texts = defaultdict(list)
    for block, literal in zip(analysis.string_block.tolist(), analysis.string, strict=True):
        texts[block].append(literal)
    names = defaultdict(list)
    for source, target in analysis.edges.tolist():
        if source < analysis.code_blocks <= target:
            names[source].append(analysis.import_name[target - analysis.code_blocks])
    form = functools.cache(lambda line: _normal_form(line, first))
    return [
        (*filter(None, map(form, text.split(b"\n"))), *texts[block], *names[block])
        for block, text in enumerate(analysis.instructions[: analysis.code_blocks])
    ]


def _normal_form(line: bytes, first: int) -> bytes:
    """Return an instruction without its addresses, nothing of one that computes nothing."""
    if line.partition(b" ")[0] in IDLE:
        return b""
    line = line.removeprefix(b"notrack ")
    if BRANCH.match(line):
        return line.partition(b" ")[0]

    def form(place: re.Match) -> bytes:
        if place[1]:
            return place[1]
        return b"@" if 0 <= int(place[0], 16) - first < IMAGE else place[0]

    return ADDRESS.sub(form, line)
