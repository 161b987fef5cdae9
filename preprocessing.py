"""One binary -> control-flow graph with normalised tokens; two graphs -> one merged graph.

angr recovers the graph, capstone the instructions. The graph is tidied (see ``Analysis``) so that
what is left is the program's own basic blocks and one node per imported function.
"""

import dataclasses
import functools
import gc
import hashlib
import importlib.metadata
import itertools
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

import utils

for _name in ("angr", "archinfo", "cle", "pyvex", "claripy"):  # what they warn of, no user can mend
    logging.getLogger(_name).setLevel(logging.CRITICAL)

VERSION = 6  # of the analysis below; a change of it makes cached analyses stale
JUMP, CALL, STEP_OVER = 0, 1, 2  # kinds of edges: jump or fall-through, call, step over a call

MAX_STRING_WORDS = 16  # of a string literal that become tokens
MAX_TOKEN = 64  # characters of a word or a name: no binary can make a giant vocabulary entry
MIN_JOINING_STRING = 6  # a literal shorter than this says too little to make two blocks one

# An alignment block is made of these; whether it really does nothing, its VEX code tells.
PADDING_MNEMONICS = {"nop", "xchg", "lea", "mov", "hint", "endbr64", "endbr32", "int3"}
MOVING_MNEMONICS = {"xchg", "lea", "mov"}  # they do nothing only from a register to itself
TRAPS = {"hlt", "ud0", "ud1", "ud2", "udf", "int3", "brk", "bkpt"}
BRANCHES = ("call", "j", "loop", "b", "cb", "tb")  # how the mnemonics of all CPUs begin; bnd jmp
CS_OP_REG, CS_OP_MEM = (1,), (3, 0x80)  # operand types, the same for all of capstone's CPUs
CS_GRP_CALL, CS_GRP_INT = 2, 4
MAX_LITERAL = 4096  # bytes of a string literal
DATA_SECTIONS = {"SHT_PROGBITS", "SHT_NOBITS", "SHT_INIT_ARRAY", "SHT_FINI_ARRAY"}
LABELS = 2  # words to each side of a pointer in data that may point at its name
# Above these angr moves parts to disk, which is slower: a graph of so many takes two gigabytes.
# Version 10 has no limit of edges.
IN_MEMORY = {"functions": 20_000, "cfg_nodes": 50_000, "cfg_edges": 50_000}
PRINTABLE = re.compile(rb"[\t-\r -~]+")
ONE_NUMBER = re.compile(r"#?(0x[0-9a-f]+)")
SPECIAL_TOKENS = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}


class Instruction(NamedTuple):
    """One line of capstone's: ``operands`` is their text."""

    address: int
    size: int
    mnemonic: str
    operands: str


class Operand(NamedTuple):
    """What becomes of an operand.

    Attributes
    ----------
    token : str
        reg1, reg2, reg4, ..., ptr or imme.
    address : int or None
        What it names by itself: a number, or a place in memory.
    relative : bool
        The address counts from the end of the instruction.
    """

    token: str
    address: int | None = None
    relative: bool = False


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
    tokens : int32, offsets : int64 (B + 1,)
        Block b has the tokens ``dictionary[t] for t in tokens[offsets[b]:offsets[b + 1]]``.
    dictionary : list of str
        The distinct tokens, sorted.
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
    instructions : list of bytes
        For display only: each block's disassembly, a line per instruction.
    """

    address: np.ndarray
    function: np.ndarray
    tokens: np.ndarray
    offsets: np.ndarray
    dictionary: list[str]
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
    instructions: list[bytes]

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

    def words(self) -> list[list[str]]:
        """Return each block's tokens as texts."""
        words = [self.dictionary[t] for t in self.tokens.tolist()]
        return [words[start:end] for start, end in itertools.pairwise(self.offsets.tolist())]

    def import_calls(self) -> list[tuple[int, str]]:
        """Return (code block, import's name) for each block that calls an import or jumps to it."""
        n_code = self.code_blocks
        return [
            (source, self.import_name[target - n_code])
            for (source, target), kind in zip(self.edges.tolist(), self.kind.tolist(), strict=True)
            if source < n_code <= target and kind != STEP_OVER
        ]


# ---------------------------------------------------------------------------------- one binary


def analyse(
    path: str | os.PathLike[str], scratch: str | os.PathLike[str] | None = None
) -> Analysis:
    """Recover and tidy the control-flow graph of the executable ``path``. It is never run.

    Parameters
    ----------
    path : path-like
        ELF, PE or Mach-O of any architecture that angr reads.
    scratch : path-like
        A folder for what angr has no room for in memory; None: the system's temporary folder.

    Raises
    ------
    UserError
        The file cannot be read, is no such executable, or holds no code.
    """
    import angr  # takes seconds to import, so only where it is used
    import cle
    from angr.knowledge_plugins.rtdb import rtdb

    # Else angr writes beside the binary. Version 10 reads the variable, 9 at its import only.
    os.environ["RTDB_BASE"] = rtdb.RTDB_BASEDIR = str(scratch or tempfile.gettempdir())

    if os.path.isfile(path) and os.path.getsize(path) == 0:
        raise utils.UserError(f"{path} is empty")
    no_executable = utils.UserError(f"{path} is no executable that angr reads (ELF, PE, Mach-O)")
    try:
        known = {key: n for key, n in IN_MEMORY.items() if key in angr.project.CACHE_CONFIG_KEYS}
        project = angr.Project(str(path), auto_load_libs=False, cache_limits=known)
    except cle.CLECompatibilityError as error:
        raise no_executable from error
    except OSError as error:
        raise utils.UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # a broken header can fail anywhere inside the loader
        raise utils.UserError(f"{path} cannot be loaded: {_reason(error)}") from error
    if isinstance(project.loader.main_object, cle.Blob):
        raise no_executable
    with rare_collections():
        try:
            cfg = project.analyses.CFGFast(normalize=True)
        except Exception as error:
            raise utils.UserError(f"angr fails on the code of {path}: {_reason(error)}") from error
        return _tidy(project, cfg, path)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let Python look for unused cycles of objects less often.

    angr makes millions of objects and hardly a cycle; the looking takes an eighth of its time, a
    seventh of its import's, and half of that of `_tidy`.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


def _reason(error: Exception) -> str:
    first_line = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__


def _tidy(project, cfg, path) -> Analysis:
    """Turn angr's graph into an :class:`Analysis`."""
    graph, functions = cfg.model.graph, project.kb.functions
    plt_names = getattr(project.loader.main_object, "reverse_plt", {})
    literals = {
        data.addr: bytes(data.content)
        for data in cfg.model.memory_data.values()
        if data.content and str(data.sort) in ("string", "unicode")
    }
    pointed_at = {}  # instruction -> literal, for addresses that no single operand holds
    for address in literals:
        for reference in project.kb.xrefs.get_xrefs_by_dst(address):
            pointed_at[reference.ins_addr] = address

    code, imports, joined = {}, {}, set()
    for node in sorted(graph, key=lambda node: (node.addr, node.is_simprocedure)):
        name = _import_name(project, graph, functions, plt_names, node)
        if name is not None:
            imports[node] = name
        elif node.is_simprocedure or node.is_syscall:
            continue  # UnresolvableCallTarget and the like, system calls
        elif _in_plt(project, node):
            continue  # PLT0 and the halves that bind lazily: no code of the program
        else:
            instructions = _disassemble(project, node)
            if instructions and not _is_padding(project, node, instructions):
                code[node] = instructions
            else:
                joined.add(node)

    import_name = sorted(set(imports.values()))
    number = {node: i for i, node in enumerate(code)}
    by_name = {name: len(code) + i for i, name in enumerate(import_name)}
    number |= {node: by_name[name] for node, name in imports.items()}
    edges = sorted(_edges(graph, number, joined))
    if not code:
        raise utils.UserError(f"{path} holds no code that angr can find")

    called_import = {  # block -> the name that its last operand becomes
        source: import_name[target - len(code)]
        for source, target, kind in edges
        if kind != STEP_OVER and target >= len(code) and source < len(code)
    }
    sentences, string_refs, variable_refs, taken, text = [], set(), set(), set(), []
    block_at = {node.addr: block for block, node in enumerate(code)}
    imported = _imported_data(project)
    pointers, labels = _pointers(project, block_at)
    got = project.loader.main_object.sections_map.get(".got")
    offset_table = {place: block for place, block in pointers if got and got.contains_addr(place)}
    known: dict[tuple[str, str], list[Operand]] = {}
    for block, (node, instructions) in enumerate(code.items()):
        words: list[str] = []
        loaded = _made_addresses(project, node, literals)
        for instruction in instructions:
            operands = _operands(project, node, instruction, known)
            words += _tokens(
                instruction, operands, literals, pointed_at, loaded, block, string_refs
            )
            for address in _places(project, instruction, operands, loaded):
                target = offset_table.get(address, block_at.get(address))
                if target is not None:
                    if not instruction.mnemonic.startswith(BRANCHES):
                        taken.add((block, target))
                elif address in imported or _is_variable(project, address, literals):
                    variable_refs.add((block, address, imported.get(address, "")))
        if block in called_import and len(operands) == 1:  # the last instruction's
            words[-1] = clean_name(called_import[block])
        sentences.append(words)
        text.append("\n".join(f"{i.mnemonic} {i.operands}".strip() for i in instructions).encode())
    sentences += [[clean_name(name)] for name in import_name]
    text += [b""] * len(import_name)

    entries = sorted({node.function_address for node in code})
    index = {address: i for i, address in enumerate(entries)}
    names = [functions[a].name if a in functions else "" for a in entries]
    returning = {name: True for name in import_name}
    for node, name in imports.items():
        function = functions.get_by_addr(node.addr) if functions.contains_addr(node.addr) else None
        returning[name] &= not (node.no_ret or (function and function.returning is False))
    has_successor = np.zeros(len(code) + len(import_name), bool)
    has_successor[[source for source, _, _ in edges]] = True
    ends = [
        not has_successor[block] and _gives_back(project, node, instructions[-1])
        for block, (node, instructions) in enumerate(code.items())
    ]
    ends += [returning[name] and not has_successor[by_name[name]] for name in import_name]

    dictionary = sorted({word for words in sentences for word in words})
    ids = {word: i for i, word in enumerate(dictionary)}
    string_refs, variable_refs, taken = (sorted(s) for s in (string_refs, variable_refs, taken))
    pairs = np.array(edges, np.int64).reshape(-1, 3)
    return Analysis(
        address=np.array([node.addr for node in code] + [0] * len(import_name), np.uint64),
        function=np.array(
            [index[node.function_address] for node in code]
            + list(range(len(entries), len(entries) + len(import_name))),
            np.int32,
        ),
        tokens=np.array([ids[word] for words in sentences for word in words], np.int32),
        offsets=np.cumsum([0] + [len(words) for words in sentences], dtype=np.int64),
        dictionary=dictionary,
        edges=pairs[:, :2].astype(np.int32),
        kind=pairs[:, 2].astype(np.uint8),
        returns=np.array(ends, bool),
        function_address=np.array(entries + [0] * len(import_name), np.uint64),
        function_name=[_display(name) for name in names + import_name],
        import_name=import_name,
        string_block=np.array([block for block, _ in string_refs], np.int32),
        string=[literal for _, literal in string_refs],
        variable_block=np.array([block for block, _, _ in variable_refs], np.int32),
        variable_address=np.array([address for _, address, _ in variable_refs], np.uint64),
        variable_name=[_display(name) for _, _, name in variable_refs],
        taker_block=np.array([block for block, _ in taken], np.int32),
        taken_block=np.array([target for _, target in taken], np.int32),
        pointer_address=np.array([address for address, _ in pointers], np.uint64),
        pointer_block=np.array([block for _, block in pointers], np.int32),
        label_pointer=np.array([pointer for pointer, _ in labels], np.int32),
        label=[literal for _, literal in labels],
        instructions=text,
    )


def _import_name(project, graph, functions, plt_names, node) -> str | None:
    """Return the imported function that ``node`` stands for (stub or simulated), or None."""
    if node.is_simprocedure:
        symbolic = project.loader.find_object_containing(node.addr)
        if symbolic is not project.loader.extern_object or not node.name:
            return None  # angr's own helpers: unresolvable targets, path terminators
        return node.name
    targets = list(graph.successors(node)) if _is_pe(project) else []
    if len(targets) == 1 and targets[0].is_simprocedure and len(node.instruction_addrs) == 1:
        # The stub of an import: one jump through the import table. (In an ELF file that is what
        # -fno-plt makes of a function that only calls another.)
        return _import_name(project, graph, functions, plt_names, targets[0])
    if node.addr in plt_names:
        return plt_names[node.addr]
    if functions.contains_addr(node.addr) and functions.get_by_addr(node.addr).is_plt:
        return functions.get_by_addr(node.addr).name or None
    return None


def _is_pe(project) -> bool:
    import cle

    return isinstance(project.loader.main_object, cle.PE)


def _in_plt(project, node) -> bool:
    section = project.loader.find_section_containing(node.addr)
    return section is not None and section.name.startswith((".plt", ".iplt"))


def _disassemble(project, node) -> list[Instruction]:
    """Return the block's instructions; [] where capstone reads none."""
    lines = _capstone(project, node).disasm_lite(
        _bytes(project, node, node.addr, node.size), node.addr
    )
    return list(map(Instruction._make, lines))


def _in_detail(project, node, address: int, size: int) -> list:
    """Return capstone's objects, slow to make, for the instructions of a part of a block."""
    code = _bytes(project, node, address, size)
    return list(_capstone(project, node).disasm(code, address))


def _capstone(project, node):
    return project.arch.capstone_thumb if node.thumb else project.arch.capstone


def _bytes(project, node, address: int, size: int) -> bytes:
    # angr's addresses of Thumb code are odd
    return project.loader.memory.load(address - 1 if node.thumb else address, size)


def _is_padding(project, node, instructions) -> bool:
    """Whether the block does nothing: VEX code of instruction marks only."""
    if any(i.mnemonic.split(" ")[-1] not in PADDING_MNEMONICS for i in instructions):
        return False
    if all(i.mnemonic == "int3" for i in instructions):
        return True  # what PE files are padded with
    for i in instructions:
        target, _, source = i.operands.partition(", ")
        if i.mnemonic in MOVING_MNEMONICS and target not in source:
            return False  # VEX would say the same, later
    statements = project.factory.block(node.addr, size=node.size).vex.statements
    marks = ("Ist_IMark", "Ist_NoOp", "Ist_AbiHint")
    pc = project.arch.ip_offset
    return all(s.tag in marks or (s.tag == "Ist_Put" and s.offset == pc) for s in statements)


def _edges(graph, number, joined) -> set[tuple[int, int, int]]:
    """Return (source, target, kind); nodes in ``joined`` are stepped through."""
    kinds = {"Ijk_Call": CALL, "Ijk_FakeRet": STEP_OVER}
    edges = set()
    for node, successor, data in graph.edges(data=True):
        if node not in number:
            continue
        source, kind = number[node], kinds.get(data.get("jumpkind"), JUMP)
        seen, ahead = set(), [successor]
        while ahead:
            target = ahead.pop()
            if target in number:
                # The stub of an import leads to its simulated procedure: the same number. Of
                # a loop to itself, angr may show the node as another object, read from disk.
                if number[target] != source or target == node:
                    edges.add((source, number[target], kind))
            elif target in joined and target not in seen:
                seen.add(target)
                ahead += graph.successors(target)
    return edges


def _made_addresses(project, node, literals) -> dict[int, int]:
    """Return instruction -> address that it makes of several, in a block of 32-bit ARM.

    ``movw r0, #1; movt r0, #2`` make an address of two halves. Or it stands in the pool behind the
    function, from which ``ldr r0, [pc, #8]`` loads it, or the distance from the ``pc`` of a later
    ``add r0, pc``. angr does not follow all of these. Literals that it does not know are added to
    ``literals``.
    """
    found: dict[int, int] = {}
    if not project.arch.name.startswith("ARM"):  # of 32 bits; the other is AARCH64
        return found
    ahead = 3 if node.thumb else 8  # pc is 4 or 8 bytes ahead, and angr's Thumb addresses are odd
    loaded: dict[int, int | None] = {}  # register -> word
    for instruction in _in_detail(project, node, node.addr, node.size):
        operands, pc = instruction.operands, instruction.address + ahead
        registers = [operand.reg for operand in operands if operand.type in CS_OP_REG]
        reads_pc = [instruction.reg_name(register) == "pc" for register in registers]
        address = None
        if instruction.mnemonic.startswith("ldr") and operands[-1].type in CS_OP_MEM:
            where = operands[-1].mem
            if where.base and not where.index and instruction.reg_name(where.base) == "pc":
                address = _word(project, (pc & ~3) + where.disp)
            loaded[registers[0]] = address
        elif instruction.mnemonic == "add" and any(reads_pc) and len(registers) == len(operands):
            sources = registers[1:] if len(registers) > 2 else registers
            distance = [loaded.get(r) for r in sources if instruction.reg_name(r) != "pc"]
            if distance and distance[0] is not None:
                address = (pc + distance[0]) & 0xFFFFFFFF
            loaded[registers[0]] = None
        elif instruction.mnemonic == "movw":
            loaded[registers[0]] = operands[1].imm
        elif instruction.mnemonic == "movt":
            low = loaded.get(registers[0])
            address = None if low is None else operands[1].imm << 16 | low
            loaded[registers[0]] = address
        elif registers:
            loaded[registers[0]] = None  # whatever it does, the word may be gone
        if address is not None and address not in literals:
            literal = _literal_at(project, address)
            if literal is not None:
                literals[address] = literal
        if address is not None:
            found[instruction.address] = address
    return found


def _word(project, address: int) -> int | None:
    try:
        return project.loader.memory.unpack_word(address)
    except KeyError:  # not in the file
        return None


def _literal_at(project, address: int) -> bytes | None:
    """Return the printable text at an address of constant data up to its NUL, or None."""
    section = project.loader.find_section_containing(address)
    if section is None or section.is_writable or section.is_executable:
        return None
    content = project.loader.memory.load(address, min(MAX_LITERAL, section.max_addr - address + 1))
    literal, end, _ = content.partition(b"\0")
    return literal if literal and end and PRINTABLE.fullmatch(literal) else None


def _operands(project, node, instruction, known) -> list[Operand]:
    """Return the operands of an instruction by capstone's types; ``known`` holds them by text."""
    if number := ONE_NUMBER.fullmatch(instruction.operands):  # most jumps and calls
        return [Operand("imme", int(number[1], 16))]
    text = instruction.mnemonic, instruction.operands
    if text not in known:
        (detailed,) = _in_detail(project, node, instruction.address, instruction.size)
        known[text] = [_operand(project.arch, detailed, o) for o in detailed.operands]
    return known[text]


def _operand(arch, instruction, operand) -> Operand:
    if operand.type in CS_OP_REG:
        return Operand(f"reg{_register_bytes(arch, instruction, operand)}")
    if operand.type not in CS_OP_MEM:
        return Operand("imme", operand.imm if isinstance(operand.imm, int) else None)
    where = operand.mem
    if not where.index and not where.base:
        return Operand("ptr", where.disp)
    if not where.index and instruction.reg_name(where.base) in ("rip", "eip"):
        return Operand("ptr", where.disp, relative=True)
    return Operand("ptr")


def _register_bytes(arch, instruction, operand) -> int:
    size = getattr(operand, "size", 0)  # x86 says it
    if not size:
        _, size = arch.registers.get(instruction.reg_name(operand.reg), (0, arch.bytes))
    return size


def _tokens(instruction, operands, literals, pointed_at, loaded, block, string_refs) -> list[str]:
    """Return the tokens of one instruction; note (block, literal) in ``string_refs``."""
    words = [instruction.mnemonic.replace(" ", "_")]
    for position, operand in enumerate(operands):
        last = position == len(operands) - 1
        address = operand.address
        if operand.relative:
            address += instruction.address + instruction.size
        if last and loaded.get(instruction.address) in literals:
            address = loaded[instruction.address]
        elif last and operand.token == "imme" and address not in literals:
            # only the last operand can be what angr computed from several instructions
            address = pointed_at.get(instruction.address)
        if address in literals:
            words += ["str", *string_words(literals[address])]
            string_refs.add((block, literals[address]))
        else:
            words.append(operand.token)
    return words


def _places(project, instruction, operands, loaded) -> set[int]:
    """Return the addresses that an instruction names, or completes."""
    end = instruction.address + instruction.size
    named = {o.address + end * o.relative for o in operands if o.address is not None}
    if instruction.address in loaded:
        named.add(loaded[instruction.address])
    if project.arch.name != "AMD64":  # there, no address takes two instructions
        references = project.kb.xrefs.get_xrefs_by_ins_addr(instruction.address)
        named |= {reference.dst for reference in references}
    return named


def _is_variable(project, address: int, literals: dict[int, bytes]) -> bool:
    """Whether there is data at the address, and no text."""
    section = project.loader.main_object.find_section_containing(address)
    if section is None or not _holds_data(section):
        return False
    return address not in literals and _literal_at(project, address) is None


def _holds_data(section) -> bool:
    """Whether it is a section of the program's own data: no code, no symbols."""
    kind = getattr(section, "type", "SHT_PROGBITS")  # only ELF's have one
    mapped = getattr(section, "occupies_memory", True)
    return mapped and not section.is_executable and kind in DATA_SECTIONS


def _imported_data(project) -> dict[int, str]:
    """Return address -> name of what the dynamic linker puts there."""
    from cle.backends.elf.relocation.generic import GenericCopyReloc

    return {
        relocation.rebased_addr: relocation.symbol.name
        for relocation in project.loader.main_object.relocs
        if relocation.symbol is not None
        and relocation.symbol.name
        and (relocation.symbol.is_import or isinstance(relocation, GenericCopyReloc))
    }


def _pointers(
    project, block_at: dict[int, int]
) -> tuple[list[tuple[int, int]], list[tuple[int, bytes]]]:
    """Return (address, code block) of each word of data that points at code, and their labels.

    Labels are (index of the pointer, string literal that a word beside it points at).
    """
    size = project.arch.bytes
    word = np.dtype(f"{'<' if project.arch.memory_endness == 'Iend_LE' else '>'}u{size}")
    code = np.array(list(block_at), word)
    pointers = set()
    for section in project.loader.main_object.sections:
        if not _holds_data(section) or section.only_contains_uninitialized_data:
            continue
        start = -(-section.vaddr // size) * size
        try:
            content = project.loader.memory.load(start, section.vaddr + section.memsize - start)
        except (KeyError, ValueError):  # not mapped, or empty
            continue
        values = np.frombuffer(content[: len(content) // size * size], word)
        hits = np.flatnonzero(np.isin(values, code)).tolist()
        pointers |= {(start + size * i, block_at[int(values[i])]) for i in hits}
    pointers = sorted(pointers)
    labels = set()
    for pointer, (place, _) in enumerate(pointers):
        for step in range(-LABELS, LABELS + 1):
            value = _word(project, place + size * step) if step else None
            literal = None if value is None or value in block_at else _literal_at(project, value)
            if literal is not None:
                labels.add((pointer, literal))
    return pointers, sorted(labels)


def _gives_back(project, node, instruction) -> bool:
    """Whether a block without successors ends in a return or a jump, no trap and no call."""
    (last,) = _in_detail(project, node, instruction.address, instruction.size)
    return not (last.mnemonic in TRAPS or last.group(CS_GRP_CALL) or last.group(CS_GRP_INT))


def string_words(literal: bytes) -> list[str]:
    """Return the literal's words: runs of ASCII letters and digits, lower-cased, at most 16.

    No content of a binary can make a special token, a blank or a new line this way.
    """
    words = re.findall(rb"[A-Za-z0-9]+", literal.replace(b"\0", b""))[:MAX_STRING_WORDS]
    return [word[:MAX_TOKEN].decode("ascii").lower() for word in words]


def literal_words(literal: bytes) -> list[bytes | str]:
    """Return what a function is known by that has this literal: the text, and its words."""
    text = literal.replace(b"\0", b"")
    return [text, *string_words(text)]


def clean_name(name: str) -> str:
    """Return an import's name as a token: other characters than ``A-Za-z0-9_.@$?-`` become _."""
    return re.sub(r"[^A-Za-z0-9_.@$?-]", "_", name[:MAX_TOKEN]) or "_"


def _display(name: str) -> str:
    return name.encode("ascii", "backslashreplace").decode().replace("\n", "\\n")


# -------------------------------------------------------------------------------------- caching


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


def save(analysis: Analysis, path: str | os.PathLike[str]) -> None:
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


def load(path: str | os.PathLike[str], for_display: bool = True) -> Analysis:
    """Read what :func:`save` wrote; without ``for_display``, names and instructions stay empty.

    Raises
    ------
    UserError
        The file is damaged.
    """
    bytes_fields = ("string", "label", "instructions")
    values = {} if for_display else {"function_name": [], "instructions": []}
    with _damage(path), np.load(path) as arrays:
        for field in dataclasses.fields(Analysis):
            if field.name in values:
                continue
            values[field.name] = arrays[field.name]
            if f"{field.name}_offsets" in arrays:
                texts = _unpack(arrays[field.name], arrays[f"{field.name}_offsets"])
                if field.name not in bytes_fields:
                    texts = [text.decode() for text in texts]
                values[field.name] = texts
    return Analysis(**values)


# ---------------------------------------------------------------------------------- two binaries


@dataclasses.dataclass
class MergedGraph:
    """The control-flow graphs of two binaries, joined; block ids of the second follow the first's.

    Attributes
    ----------
    tokens : int32, offsets : int64 (B + 1,)
        Tokens of block b, as ids into ``dictionary``.
    dictionary : list of str
        The distinct tokens of both, sorted.
    address : uint64 (B,), function : int32 (B,), binary : uint8 (B,)
        The second binary's functions count on from the first's.
    edges : int32 (m, 2), kind : uint8 (m,)
        JUMP, CALL or STEP_OVER. Every edge joins blocks of one binary.
    merged : int32 (k, 2)
        Block of the first and block of the second that are one node; each block at most once.
    returns : bool (B,)
        As in :class:`Analysis`.
    has_code : bool (B,)
        False for imports.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    dictionary: list[str]
    address: np.ndarray
    function: np.ndarray
    binary: np.ndarray
    edges: np.ndarray
    kind: np.ndarray
    merged: np.ndarray
    returns: np.ndarray
    has_code: np.ndarray


def merge(first: Analysis, second: Analysis) -> MergedGraph:
    """Join two control-flow graphs where they surely are the same.

    Two nodes are one where both are the same import, or where both are the only block in their
    binary that refers to the same string literal longer than 5 characters. Where literals
    disagree about a block's partner, the partner with the most literals in common wins, then the
    lower block ids: a node is never more than one block of each binary.
    """
    dictionary = sorted(set(first.dictionary) | set(second.dictionary))
    ids = {word: i for i, word in enumerate(dictionary)}
    tokens = []
    for analysis in (first, second):
        new_ids = np.array([ids[word] for word in analysis.dictionary], np.int32)
        tokens.append(new_ids[analysis.tokens])

    def both(field: str, shift: int = 0) -> np.ndarray:
        a, b = getattr(first, field), getattr(second, field)
        return np.concatenate([a, b + b.dtype.type(shift)] if shift else [a, b])

    merged = _same_imports(first, second) + _same_strings(first, second)
    pairs = np.array(sorted(merged), np.int32).reshape(-1, 2)
    pairs[:, 1] += first.blocks
    sizes = (first.blocks, second.blocks)
    return MergedGraph(
        tokens=np.concatenate(tokens),
        offsets=np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
        dictionary=dictionary,
        address=both("address"),
        function=both("function", shift=len(first.function_address)),
        binary=np.repeat(np.array([0, 1], np.uint8), sizes),
        edges=both("edges", shift=first.blocks),
        kind=both("kind"),
        merged=pairs,
        returns=both("returns"),
        has_code=np.concatenate([np.arange(a.blocks) < a.code_blocks for a in (first, second)]),
    )


def _same_imports(first: Analysis, second: Analysis) -> list[tuple[int, int]]:
    block = {name: second.code_blocks + i for i, name in enumerate(second.import_name)}
    return [
        (first.code_blocks + i, block[name])
        for i, name in enumerate(first.import_name)
        if name in block
    ]


def _only_reference(analysis: Analysis) -> dict[bytes, int]:
    """Return literal -> block for literals that one block alone refers to."""
    found: dict[bytes, int] = {}
    several = set()
    for block, literal in zip(analysis.string_block.tolist(), analysis.string, strict=True):
        if len(literal) >= MIN_JOINING_STRING:
            if literal in found:
                several.add(literal)
            found[literal] = block
    return {literal: block for literal, block in found.items() if literal not in several}


def _same_strings(first: Analysis, second: Analysis) -> list[tuple[int, int]]:
    theirs = _only_reference(second)
    votes: dict[tuple[int, int], int] = {}
    for literal, block in _only_reference(first).items():
        if literal in theirs:
            pair = (block, theirs[literal])
            votes[pair] = votes.get(pair, 0) + 1
    chosen, taken = [], (set(), set())
    for a, b in sorted(votes, key=lambda pair: (-votes[pair], pair)):
        if a not in taken[0] and b not in taken[1]:
            chosen.append((a, b))
            taken[0].add(a)
            taken[1].add(b)
    return chosen
