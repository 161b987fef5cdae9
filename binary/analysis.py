"""What is known of one binary: its tidied control-flow graph, and the file that caches it."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import utils

VERSION = 8  # of the analysis below; a change of it makes cached analyses stale
JUMP, CALL, STEP_OVER = 0, 1, 2  # kinds of edges: jump or fall-through, call, step over a call


DISPLAY = {"function_name", "instructions", "code", "instruction_size", "reference_instruction"}
DISPLAY |= {"reference_address", "literal_address", "literal"}  # fields that nothing is matched by
# What only the comparison of two binaries reads, besides.
DISPLAY |= {"operand_block", "operand_line", "operand_number", "operand_kind", "operand_value"}
DISPLAY |= {"data_address", "data_size", "data_constant", "data"}
DISPLAY |= {"imported_address", "imported_name", "pointers"}


@dataclasses.dataclass
class Analysis:
    """The tidied control-flow graph of one binary, B nodes and m edges.

    Tidied means: an imported function is one node, whatever stub or simulated procedure angr shows
    for it; alignment padding, unresolvable targets, system calls and the lazy-binding halves of
    PLT entries are no nodes. Nodes are sorted: code by address, then imports by name.

    Attributes
    ----------
    address : uint64 (B,)
        Address of the block as angr maps the binary; 0 for imports.
    function : int32 (B,)
        Index into ``function_address``; imports are functions of their own, behind the others.
    edges : int32 (m, 2), kind : uint8 (m,)
        Sorted; kind is JUMP, CALL or STEP_OVER.
    returns : bool (B,)
        The block gives control back to the caller: a return, a jump through a pointer that nobody
        could follow (a tail call), an import that returns.
    function_address : uint64 (F,)
        Entry of each function, sorted; 0 for imports.
    function_name : list of str
        For display only: the symbol, or a name that angr makes from the address.
    import_name : list of str
        Import i is the node B - len(import_name) + i.
    string_block : int32 (r,), string : list of bytes
        Block string_block[i] refers to the literal string[i]; sorted, no duplicates.
    variable_block : int32 (v,), variable_address : uint64 (v,), variable_name : list of str
        Block variable_block[i] refers to data that is no string literal, at variable_address[i];
        variable_name[i] is the import that a linker puts there, or "". Sorted, no duplicates.
        What position-independent code of 32-bit ARM finds through its GOT is not followed.
    taker_block : int32 (t,), taken_block : int32 (t,)
        Code in block taker_block[i] takes the address of block taken_block[i], and does not branch
        there: `main` for the C library, a comparator for qsort. Sorted, no duplicates.
    pointer_address : uint64 (p,), pointer_block : int32 (p,)
        A word of initialised data, at pointer_address[i], holds the address of pointer_block[i];
        sorted.
    label_pointer : int32 (l,), label : list of bytes
        Near pointer label_pointer[i] lies one to the string literal label[i]: its name, perhaps.
    first_instruction : int64 (B + 1,)
        Block b has the instructions first_instruction[b] up to first_instruction[b + 1]; imports
        have none.
    instruction_form : int32 (n,), form : list of str
        Instruction i is form[instruction_form[i]]: its mnemonic and the classes of its operands,
        such as "mov reg8 ptr"; "str" for an operand that names a string literal. Sorted.
    operand_string : int32 (k,)
        For each operand "str", in their order: which row of ``string`` it names.
    instructions : list of bytes
        For display only: each block's disassembly, a line per instruction.
    code : list of bytes, instruction_size : uint8 (n,)
        For display only: each block's machine code, and the sizes in bytes of all its
        instructions, block after block.
    reference_instruction : int32 (r,), reference_address : uint64 (r,)
        For display only: instruction reference_instruction[i], counted over all blocks, names
        code, a string literal or a variable at reference_address[i]. Sorted, no duplicates.
    literal_address : uint64 (k,), literal : list of bytes
        For display only: where the string literals lie that instructions name. Sorted.
    operand_block, operand_line : int32 (o,), operand_number, operand_kind : uint8 (o,),
    operand_value : uint64 (o,)
        What the numbers in the instructions are that are no plain numbers, see `addresses`: number
        operand_number[i] of line operand_line[i] of block operand_block[i]. Sorted.
    data_address, data_size : uint64 (s,), data_constant : bool (s,), data : list of bytes
        The sections of data: where they lie, how long they are, whether the program may write to
        them, and what the file holds of them (nothing of .bss). Sorted.
    imported_address : uint64 (i,), imported_name : list of str
        At imported_address[i] lies a stub of an imported function, or the dynamic linker puts the
        address of an import there. Sorted.
    pointers : uint64 (3,)
        Bytes of a pointer; whether its first byte is the highest; the address that offsets into
        the global offset table count from, or 0.
    """

    address: np.ndarray
    function: np.ndarray
    edges: np.ndarray
    kind: np.ndarray
    returns: np.ndarray
    function_address: np.ndarray
    function_name: list[str]
    import_name: list[str]
    string_block: np.ndarray
    string: list[bytes]
    variable_block: np.ndarray
    variable_address: np.ndarray
    variable_name: list[str]
    taker_block: np.ndarray
    taken_block: np.ndarray
    pointer_address: np.ndarray
    pointer_block: np.ndarray
    label_pointer: np.ndarray
    label: list[bytes]
    first_instruction: np.ndarray
    instruction_form: np.ndarray
    form: list[str]
    operand_string: np.ndarray
    instructions: list[bytes]
    code: list[bytes] = dataclasses.field(default_factory=list)
    instruction_size: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.uint8))
    reference_instruction: np.ndarray = dataclasses.field(
        default_factory=lambda: np.empty(0, np.int32)
    )
    reference_address: np.ndarray = dataclasses.field(
        default_factory=lambda: np.empty(0, np.uint64)
    )
    literal_address: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.uint64))
    literal: list[bytes] = dataclasses.field(default_factory=list)
    operand_block: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int32))
    operand_line: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int32))
    operand_number: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.uint8))
    operand_kind: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.uint8))
    operand_value: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.uint64))
    data_address: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.uint64))
    data_size: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.uint64))
    data_constant: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, bool))
    data: list[bytes] = dataclasses.field(default_factory=list)
    imported_address: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.uint64))
    imported_name: list[str] = dataclasses.field(default_factory=list)
    pointers: np.ndarray = dataclasses.field(default_factory=lambda: np.array([8, 0, 0], np.uint64))

    @property
    def blocks(self) -> int:
        """Number of nodes, imports included."""
        return len(self.address)

    @property
    def code_blocks(self) -> int:
        """Number of nodes that hold code; they come first."""
        return self.blocks - len(self.import_name)

    @property
    def code_functions(self) -> int:
        """Number of functions that hold code; they come first."""
        return len(self.function_address) - len(self.import_name)

    def import_calls(self) -> list[tuple[int, str]]:
        """Return (code block, import's name) for each block that calls an import or jumps to it."""
        n_code = self.code_blocks
        return [
            (source, self.import_name[target - n_code])
            for (source, target), kind in zip(self.edges.tolist(), self.kind.tolist(), strict=True)
            if source < n_code <= target and kind != STEP_OVER
        ]


@functools.cache
def analysis_settings() -> str:
    """Return what a cached analysis depends on besides the file's content."""
    return f"analysis {VERSION}, angr {importlib.metadata.version('angr')}"


def cache_file(output_dir: str | os.PathLike[str], sha256: str) -> Path:
    """Return where the analysis of the file with this content is (to be) kept."""
    key = hashlib.sha256(f"{sha256}, {analysis_settings()}".encode()).hexdigest()
    return Path(output_dir) / f"{key}.npz"


def _pack(texts: list[str] | list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return texts as UTF-8 bytes uint8 (flat) and offsets int64: arrays need no pickle."""
    encoded = [text if isinstance(text, bytes) else text.encode() for text in texts]
    offsets = np.cumsum([0] + [len(text) for text in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


def _unpack(flat: np.ndarray, offsets: np.ndarray) -> list[bytes]:
    data = flat.tobytes()
    return [data[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)]


def save_analysis(analysis: Analysis, path: str | os.PathLike[str]) -> None:
    """Write an analysis as .npz, whole or not at all."""
    arrays = {}
    for field in dataclasses.fields(Analysis):
        value = getattr(analysis, field.name)
        if isinstance(value, list):
            arrays[field.name], arrays[f"{field.name}_offsets"] = _pack(value)
        else:
            arrays[field.name] = value
    with utils.atomic_file(path, "wb") as file:
        np.savez_compressed(file, **arrays)


@contextmanager
def _damage(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except utils.NPZ_ERRORS as error:
        raise utils.UserError(
            f"the cached analysis {path} is damaged ({error}); delete it and run gendata.py again"
        ) from error


def count_imports(path: str | os.PathLike[str]) -> int:
    """Return how many functions the binary imports whose analysis :func:`save` wrote.

    Raises
    ------
    UserError
        The file is damaged.
    """
    with _damage(path), np.load(path) as arrays:  # reads this one array only
        return len(arrays["import_name_offsets"]) - 1


def load_analysis(path: str | os.PathLike[str], for_display: bool = True) -> Analysis:
    """Read what :func:`save` wrote; without ``for_display``, fields in DISPLAY stay empty.

    Raises
    ------
    UserError
        The file is damaged.
    """
    bytes_fields = ("string", "label", "instructions", "code", "literal", "data")
    values = {} if for_display else {"function_name": [], "instructions": []}
    skipped = set() if for_display else DISPLAY
    with _damage(path), np.load(path) as arrays:
        for field in dataclasses.fields(Analysis):
            if field.name in skipped:
                continue
            values[field.name] = arrays[field.name]
            if f"{field.name}_offsets" in arrays:
                texts = _unpack(arrays[field.name], arrays[f"{field.name}_offsets"])
                if field.name not in bytes_fields:
                    texts = [text.decode() for text in texts]
                values[field.name] = texts
    return Analysis(**values)
