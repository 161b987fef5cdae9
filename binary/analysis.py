"""The analysis of one binary: its tidied control-flow graph, and the file that caches it."""

# ruff: noqa: RUF009 - numbers() and texts() below are dataclasses.field() with another name

import dataclasses
import functools
import hashlib
import importlib.metadata
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import utils
from binary.architectures import ARCHITECTURES, Architecture
from files.arrays import Numbers, Texts, read_arrays, write_arrays

VERSION = 26  # of the analysis below; raise it to make cached analyses again
JUMP, CALL, STEP_OVER = 0, 1, 2  # kinds of edges: jump or fall-through, call, step over a call
# The sources of function starts in a file; if two give the same start, the first one is named.
SOURCES = (
    "part",  # of a function: code that the compiler moved elsewhere, such as sort.cold
    ".eh_frame",
    ".pdata",
    "LC_FUNCTION_STARTS",
    "__unwind_info",
    "Go's pclntab",
    ".opd",
    ".pdr",
    "symbols of the object file",
    "exported symbols",
    ".ARM.exidx",
    "init and fini arrays",
    "TLS callbacks",
    "control flow guard",
    "entry point",
)
PART = SOURCES.index("part")
WHAT = "cached analysis"  # in errors
REMEDY = "delete it and run gendata.py again"


def numbers(
    kind: str,
    *shape: str | int,
    display: bool = False,
    default: tuple[int, ...] = (),
    **limits: Any,
) -> Any:
    """Return a field of :class:`Analysis`: an array that :class:`files.arrays.Numbers` describes.

    Only comparisons and their pages read ``display`` fields; they may be left out.
    """
    schema = Numbers(kind, *shape, **limits)
    metadata = {"schema": schema, "display": display}
    if not display:
        return dataclasses.field(metadata=metadata)
    array = functools.partial(np.array, default, schema.dtypes[0])
    return dataclasses.field(metadata=metadata, default_factory=array)


def texts(length: str, raw: bool = False, display: bool = False) -> Any:
    """Return a field of :class:`Analysis`: a list of str, or of bytes if ``raw``."""
    default: dict[str, Any] = {"default_factory": list} if display else {}
    metadata = {"schema": Texts(length, raw), "display": display}
    return dataclasses.field(metadata=metadata, **default)


@dataclasses.dataclass
class Analysis:
    """The tidied control-flow graph of one binary, with B nodes and m edges.

    Tidied means: an imported function is one node, whichever stubs or simulated procedures angr has
    for it. Alignment padding, unresolvable targets, system calls and the lazy-binding halves of PLT
    entries are removed. Nodes are sorted: code by address, then imports by name.

    Attributes
    ----------
    address : uint64 (B,)
        Address of the block as angr maps the binary; 0 for imports.
    function : int32 (B,)
        Index into ``function_address``; each import is a function, after the others.
    edges : int32 (m, 2), kind : uint8 (m,)
        Sorted; kind is JUMP, CALL or STEP_OVER.
    returns : bool (B,)
        Whether control may go back to the caller: from a return, from a jump through a pointer that
        could not be followed (a tail call), or from an import that returns.
    function_address : uint64 (F,)
        Entry of each function, sorted; 0 for imports.
    function_name : list of str
        For display only: the symbol, or a name made from the address.
    import_name : list of str
        Import i is the node B - len(import_name) + i.
    string_block : int32 (r,), string : list of bytes
        Block string_block[i] refers to the literal string[i]; sorted, no duplicates.
    variable_block : int32 (v,), variable_address : uint64 (v,), variable_name : list of str
        Block variable_block[i] refers to data at variable_address[i] that is not a string literal;
        variable_name[i] is the import that a linker puts there, or "". Sorted, no duplicates.
        References through the GOT in position-independent code of 32-bit ARM are missing.
    taker_block : int32 (t,), taken_block : int32 (t,)
        Code in block taker_block[i] takes the address of block taken_block[i] without branching
        there: `main` for the C library, a comparator for qsort. Sorted, no duplicates.
    pointer_address : uint64 (p,), pointer_block : int32 (p,)
        The word of initialised data at pointer_address[i] is the address of pointer_block[i];
        sorted.
    label_pointer : int32 (l,), label : list of bytes
        Near pointer label_pointer[i] there is a pointer to the string literal label[i], which may
        be the function's name in a table.
    first_instruction : int64 (B + 1,)
        Block b has the instructions first_instruction[b] up to first_instruction[b + 1]; imports
        have none.
    instruction_form : int32 (n,), form : list of str
        Instruction i is form[instruction_form[i]]: its mnemonic and the classes of its operands,
        such as "mov reg8 ptr"; "str" is an operand that refers to a string literal. Sorted.
    operand_string : int32 (k,)
        For each operand "str", in order: the index of its literal in ``string``.
    instructions : list of bytes
        For display only: each block's disassembly, a line per instruction.
    code : list of bytes, instruction_size : uint8 (n,)
        For display only: each block's machine code, and the size in bytes of every instruction.
    reference_instruction : int32 (r,), reference_address : uint64 (r,)
        For display only: instruction reference_instruction[i], counted over all blocks, refers to
        code, a string literal or a variable at reference_address[i]. Sorted, no duplicates.
    literal_address : uint64 (k,), literal : list of bytes
        For display only: the string literals to which instructions refer. Sorted.
    operand_block, operand_line : int32 (o,), operand_number, operand_kind : uint8 (o,),
    operand_value : uint64 (o,)
        What a number in an instruction means if it is not just a number (see `binary.operands`):
        number operand_number[i] of line operand_line[i] of block operand_block[i]. Sorted.
    data_address, data_size : uint64 (s,), data_constant : bool (s,), data : list of bytes
        The sections of data: their addresses and sizes, whether they stay constant, and their
        content in the file (empty for .bss). Sorted.
    imported_address : uint64 (i,), imported_name : list of str
        At imported_address[i] is a stub of an imported function, or a word into which the dynamic
        linker puts the address of an import. Sorted.
    pointers : uint64 (3,)
        Size of a pointer in bytes; 1 if big-endian, else 0; the address from which offsets into the
        global offset table count, or 0.
    processor_number : uint8 (1,)
        Index into `binary.architectures.ARCHITECTURES`, see ``processor``.
    start_address : uint64 (s,), start_end : uint64 (s,), start_source : uint8 (s,)
        Where functions begin and end according to the file (end 0: the file does not say), and the
        table that says so, an index into SOURCES; sorted.
    """

    # B blocks, of which I are imports; F functions; N instructions.
    address: np.ndarray = numbers("u8", "B")
    function: np.ndarray = numbers("i4", "B", below="F")
    edges: np.ndarray = numbers("i4", "m", 2, below="B")
    kind: np.ndarray = numbers("u1", "m", below=3)
    returns: np.ndarray = numbers("?", "B")
    function_address: np.ndarray = numbers("u8", "F")
    import_name: list[str] = texts("I")
    string_block: np.ndarray = numbers("i4", "s", below="B - I")
    string: list[bytes] = texts("s", raw=True)
    variable_block: np.ndarray = numbers("i4", "v", below="B - I")
    variable_address: np.ndarray = numbers("u8", "v")
    variable_name: list[str] = texts("v")
    taker_block: np.ndarray = numbers("i4", "t", below="B - I")
    taken_block: np.ndarray = numbers("i4", "t", below="B - I")
    pointer_address: np.ndarray = numbers("u8", "p")
    pointer_block: np.ndarray = numbers("i4", "p", below="B - I")
    label_pointer: np.ndarray = numbers("i4", "l", below="p")
    label: list[bytes] = texts("l", raw=True)
    first_instruction: np.ndarray = numbers("i8", "B + 1", rises_to="N")
    instruction_form: np.ndarray = numbers("i4", "N", below="forms")
    form: list[str] = texts("forms")
    operand_string: np.ndarray = numbers("i4", "o", below="s")
    function_name: list[str] = texts("F", display=True)
    instructions: list[bytes] = texts("B", raw=True, display=True)
    code: list[bytes] = texts("B", raw=True, display=True)
    instruction_size: np.ndarray = numbers("u1", "n", display=True)
    reference_instruction: np.ndarray = numbers("i4", "r", below="n", display=True)
    reference_address: np.ndarray = numbers("u8", "r", display=True)
    literal_address: np.ndarray = numbers("u8", "k", display=True)
    literal: list[bytes] = texts("k", raw=True, display=True)
    operand_block: np.ndarray = numbers("i4", "operands", below="B - I", display=True)
    operand_line: np.ndarray = numbers("i4", "operands", display=True)
    operand_number: np.ndarray = numbers("u1", "operands", display=True)
    operand_kind: np.ndarray = numbers("u1", "operands", display=True)
    operand_value: np.ndarray = numbers("u8", "operands", display=True)
    data_address: np.ndarray = numbers("u8", "sections", display=True)
    data_size: np.ndarray = numbers("u8", "sections", display=True)
    data_constant: np.ndarray = numbers("?", "sections", display=True)
    data: list[bytes] = texts("sections", raw=True, display=True)
    imported_address: np.ndarray = numbers("u8", "stubs", display=True)
    imported_name: list[str] = texts("stubs", display=True)
    pointers: np.ndarray = numbers("u8", 3, display=True, default=(8, 0, 0))
    processor_number: np.ndarray = numbers(
        "u1", 1, below=len(ARCHITECTURES), display=True, default=(0,)
    )
    start_address: np.ndarray = numbers("u8", "starts", display=True)
    start_end: np.ndarray = numbers("u8", "starts", display=True)
    start_source: np.ndarray = numbers("u1", "starts", below=len(SOURCES), display=True)

    @property
    def processor(self) -> str:
        """LLVM's name of the processor."""
        return list(ARCHITECTURES)[self.processor_number[0]]

    def start_sources(self) -> dict[str, int]:
        """Return source -> number of functions whose start it gives."""
        source = dict(zip(self.start_address.tolist(), self.start_source.tolist(), strict=True))
        entries = self.function_address[: self.code_functions].tolist()
        found = Counter(source.get(address, PART) for address in entries)
        said = {SOURCES[n]: found[n] for n in sorted(found) if n != PART}
        return said | ({"the code itself": found[PART]} if found[PART] else {})

    @property
    def architecture(self) -> Architecture:
        """What differs between processors."""
        return ARCHITECTURES[self.processor]

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
        source, target = self.edges.T
        calls = (source < n_code) & (target >= n_code) & (self.kind != STEP_OVER)
        return [(block, self.import_name[to - n_code]) for block, to in self.edges[calls].tolist()]


@functools.cache
def analysis_settings() -> str:
    """Return what a cached analysis depends on, apart from the file's content."""
    return f"analysis {VERSION}, angr {importlib.metadata.version('angr')}"


def cache_file(output_dir: str | os.PathLike[str], sha256: str) -> Path:
    """Return the path of the cached analysis for a file with this content."""
    key = hashlib.sha256(f"{sha256}, {analysis_settings()}".encode()).hexdigest()
    return Path(output_dir) / f"{key}.npz"


def schema(for_display: bool = True) -> dict[str, Numbers | Texts]:
    """Return field -> schema of an analysis file, with or without the fields for display."""
    return {
        field.name: field.metadata["schema"]
        for field in dataclasses.fields(Analysis)
        if for_display or not field.metadata["display"]
    }


def save_analysis(analysis: Analysis, path: str | os.PathLike[str]) -> None:
    """Write an analysis as .npz, whole or not at all."""
    with utils.atomic_file(path, "wb") as file:
        write_arrays(file, vars(analysis), schema())


def count_imports(path: str | os.PathLike[str]) -> int:
    """Return the number of imports in an analysis file.

    Raises
    ------
    UserError
        The file is damaged.
    """
    only = {"import_name": schema()["import_name"]}
    return len(read_arrays(path, only, WHAT, REMEDY)["import_name"])


def load_analysis(path: str | os.PathLike[str], for_display: bool = True) -> Analysis:
    """Read what :func:`save_analysis` wrote; fields for display only with ``for_display``.

    Raises
    ------
    UserError
        The file is damaged.
    """
    analysis = Analysis(**read_arrays(path, schema(for_display), WHAT, REMEDY))
    n, functions = analysis.code_blocks, analysis.code_functions
    address, entry = analysis.address[:n], analysis.function_address[:functions]
    imports = np.arange(functions, len(analysis.function_address))
    size = np.diff(analysis.first_instruction)
    pointer_bytes, high_first, _ = analysis.pointers.tolist()
    calls = [block for block, _ in analysis.import_calls()]
    strings = np.array([form.split(" ")[1:].count("str") for form in analysis.form], np.int64)
    for fault, is_there in {
        "pointers of other sizes": pointer_bytes not in (2, 4, 8) or high_first > 1,
        "no code": for_display and not min(n, functions),
        "blocks that are not sorted": (address[1:] < address[:-1]).any(),
        "functions that are not sorted": (entry[1:] <= entry[:-1]).any(),
        "code in the function of an import": (analysis.function[:n] >= functions).any(),
        "calls without instructions": (size[calls] < 1).any(),
        "imports with instructions": (size[n:] > 0).any(),
        "other strings than operands have": (
            strings[analysis.instruction_form].sum() != len(analysis.operand_string)
        ),
        "imports that are not last": not np.array_equal(analysis.function[n:], imports),
    }.items():
        if is_there:
            raise utils.UserError(f"the {WHAT} {path} is damaged ({fault}); {REMEDY}")
    return analysis
