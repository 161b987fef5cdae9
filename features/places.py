"""Find what is at an address of an analysed binary: code, an import, a text, a variable."""

import functools
import re

import numpy as np

from binary.analysis import SOURCES, Analysis
from binary.operands import OFFSET, PLACE, SLOT

IMPORT, CODE, DATA, INSIDE, UNKNOWN = range(5)  # what an operand refers to
CHARACTERS = rb"(?:[\t-\r -~]|[\xc2-\xf4][\x80-\xbf]{1,3})+"  # ASCII, or UTF-8
TEXT, GO_TEXT = re.compile(CHARACTERS + rb"\0"), re.compile(rb"(" + CHARACTERS + rb")\0*")
GO = SOURCES.index("Go's pclntab")
GAP = 64  # maximum number of padding bytes between an address of code and the block that it means


class Places:
    """Resolves the addresses in a binary's operands and data.

    Attributes
    ----------
    block, line : int32 (r,)
        Block and line of each of the r operands that refer to something. Sorted.
    address : int64 (r,)
        The address that each operand refers to.
    kind : int8 (r,)
        IMPORT, CODE (where a block begins), DATA, INSIDE (a block), UNKNOWN.
    target : int64 (r,)
        Index of the import in ``names``, a block, or the address.
    names : list of str
        The names of imports, sorted.
    """

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self._texts: dict[int, bytes | None] = {}
        # Go's texts follow each other without a NUL, so that each ends where the next one begins.
        self.terminated = not (analysis.start_source == GO).any()
        size, big, self.offset_table = analysis.pointers.tolist()
        self.word = np.dtype(f"{'>' if big else '<'}u{size}")
        self.steps = [np.dtype(f"{'>' if big else '<'}i{n}") for n in {4, size}]  # of distances
        self.start = analysis.data_address.astype(np.int64)
        self.end = self.start + analysis.data_size.astype(np.int64)
        self.names = sorted({*analysis.imported_name, *analysis.import_name})
        number = {name: i for i, name in enumerate(self.names)}
        self.imported = analysis.imported_address.astype(np.int64)
        self.imported_name = np.array([number[n] for n in analysis.imported_name], np.int64)
        n = analysis.code_blocks
        self.blocks = analysis.address[:n].astype(np.int64)
        sizes = np.array([len(code) for code in analysis.code[:n]], np.int64)
        self.block_end = (self.blocks & ~1) + sizes if len(sizes) == n else self.blocks + 1
        places = np.isin(analysis.operand_kind, (PLACE, SLOT, OFFSET))
        self.block, self.line = analysis.operand_block[places], analysis.operand_line[places]
        self.address = analysis.operand_value[places].astype(np.int64)
        self.kind, self.target = self.resolve(self.address)
        self.offsets = np.searchsorted(self.block, np.arange(n + 1))

    def resolve(self, address: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return kind and target of each address, see the attributes with these names."""
        kind = np.full(len(address), UNKNOWN, np.int8)
        target = address.copy()
        in_data = self.section_of(address) >= 0
        kind[in_data] = DATA
        for odd in (0, 1):  # addresses of Thumb code are odd
            at, found = _find(self.blocks, address | odd)
            kind[found], target[found] = CODE, at[found]
        inside = np.flatnonzero(kind == UNKNOWN)
        if len(inside) and len(self.blocks):
            before = np.searchsorted(self.blocks, address[inside], side="right") - 1
            after = np.minimum(before + 1, len(self.blocks) - 1)
            gap = (before < 0) | (address[inside] >= self.block_end[before])
            near = gap & (self.blocks[after] >= address[inside])
            near &= self.blocks[after] - address[inside] <= GAP
            kind[inside[near]], target[inside[near]] = CODE, after[near]
            kind[inside[~gap]] = INSIDE
        at, found = _find(self.imported, address)
        kind[found], target[found] = IMPORT, self.imported_name[at[found]]
        return kind, target

    def block_at(self, address: np.ndarray) -> np.ndarray:
        """Return the block that begins at each address, or -1."""
        found = np.full(len(address), -1)
        for odd in (0, 1):
            at, hit = _find(self.blocks, address | odd)
            found[hit] = at[hit]
        return found

    def section_of(self, address: np.ndarray) -> np.ndarray:
        """Return the data section that contains each address, or -1."""
        at = np.searchsorted(self.start, address, side="right") - 1
        if not len(self.start):
            return np.full(len(address), -1)
        # Include the end of the section: it may be the end address of an array.
        return np.where((at >= 0) & (address <= self.end[at]), at, -1)

    @functools.cached_property
    def boundaries(self) -> np.ndarray:
        """All data addresses that code or data refers to, sorted."""
        found = [self.address[self.kind == DATA], self.end]
        for start, content in zip(self.start.tolist(), self.analysis.data, strict=True):
            words = self.words(start, content)
            found.append(words[self.section_of(words) >= 0])
        return np.unique(np.concatenate(found))

    def _next_boundary(self, address: int) -> int:
        """Return the next address to which something refers, or this one if there is none."""
        at = int(np.searchsorted(self.boundaries, address, side="right"))
        return int(self.boundaries[at]) if at < len(self.boundaries) else address

    def words(self, start: int, content: bytes) -> np.ndarray:
        """Return the aligned words of the bytes ``content`` at the address ``start``, as int64."""
        size = self.word.itemsize
        skipped = min(-start % size, len(content))
        count = max(len(content) - skipped, 0) // size
        return np.frombuffer(content, self.word, count, skipped).astype(np.int64)

    def content(self, address: int) -> tuple[bytes, bool]:
        """Return the data from an address to the next referenced one, and whether it is constant.

        A text is always returned whole.
        """
        section = int(self.section_of(np.array([address]))[0])
        if section < 0:
            return b"", False
        end = self._next_boundary(address)
        data, begin = self.analysis.data[section], address - int(self.start[section])
        text = self.text(address)
        length = max(end - address, len(text) + self.terminated if text else 0)
        return data[begin : begin + length], bool(self.analysis.data_constant[section])

    def whole_text(self, address: int) -> bytes | None:
        """Return the text at an address if it begins there, i.e. after a NUL."""
        text = self.text(address)
        if text is None:
            return None
        section = int(self.section_of(np.array([address]))[0])
        begin = address - int(self.start[section])
        return text if self.analysis.data[section][max(begin - 1, 0)] == 0 or not begin else None

    def beginning(self, address: int) -> bytes:
        """Return the first bytes of constant data, or nothing if they may be an address."""
        section = int(self.section_of(np.array([address]))[0])
        if section < 0 or not self.analysis.data_constant[section]:
            return b""
        begin = address - int(self.start[section])
        data = self.analysis.data[section][begin : begin + self.word.itemsize]
        return b"" if self._holds_address(data) else data

    def text(self, address: int) -> bytes | None:
        """Return the text at an address of constant data without its NUL, or None."""
        if address not in self._texts:
            self._texts[address] = self._read_text(address)
        return self._texts[address]

    def _read_text(self, address: int) -> bytes | None:
        section = int(self.section_of(np.array([address]))[0])
        if section < 0 or not self.analysis.data_constant[section]:
            return None
        content, begin = self.analysis.data[section], address - int(self.start[section])
        if self._holds_address(content[begin : begin + self.word.itemsize]):
            return None
        if self.terminated:
            found = TEXT.match(content, begin)
            return found[0][:-1] if found else None
        end = begin + self._next_boundary(address) - address
        found = GO_TEXT.fullmatch(content, begin, end)
        return found[1] if found else None

    def _holds_address(self, content: bytes) -> bool:
        """Whether the content begins with an address in this binary."""
        if len(content) < self.word.itemsize:
            return False
        value = np.frombuffer(content, self.word, 1).astype(np.int64)
        return bool(self.resolve(value)[0][0] != UNKNOWN)


def _find(sorted_values: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the position of each value in the sorted ones, and whether it is one of them."""
    if not len(sorted_values):
        return np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    at = np.minimum(np.searchsorted(sorted_values, values), len(sorted_values) - 1)
    return at, sorted_values[at] == values
