"""Disassemble one binary: angr recovers its control-flow graph, which is tidied here."""

import bisect
import logging
import os
import re
import tempfile
import traceback
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from sortedcontainers import SortedKeyList

import utils
from binary import gp_tables, toc_tables
from binary.addresses import Finder
from binary.analysis import CALL, JUMP, PART, Analysis
from binary.angr_gaps import fill_gaps, loadable
from binary.architectures import ARCHITECTURES, Architecture, architecture_of, processor_of
from binary.binexport import SUFFIX, read_binexport
from binary.boundaries import mend_boundaries
from binary.formats import ELF, processors, refuse
from binary.imports import KINDS, calls_through_slots, is_stub, name_imports, slots
from binary.instructions import (
    Instruction,
    Operand,
    block_bytes,
    form_of,
    in_detail,
    read_instructions,
    read_operands,
)
from binary.jump_tables import cut_tables, table_resolver
from binary.listing import Listing
from binary.operands import PLACE, SLOT
from binary.references import (
    code_pointers,
    data_sections,
    imported_data,
    is_variable,
    literal_at,
    made_addresses,
    places,
)
from binary.relocations import MOST, unknown_relocations
from binary.starts import Start, go_functions, is_code, is_thumb, read_starts
from binary.symbols import ascii_name

for _name in ("angr", "archinfo", "cle", "pyvex", "claripy"):  # users cannot act on their warnings
    logging.getLogger(_name).setLevel(logging.CRITICAL)
CS_GRP_INT = 4
# ARM's markers of code and data, and labels within functions, are not names of functions.
NO_NAME = re.compile(r"\$[adtx](\.|$)|\.L|$")
LLD_FILLS, THUMB_NOP = b"\xd4\xd4", b"\x00\xbf"  # what lld fills gaps with, to trap; no operation
SVE = re.compile(r"\b[zp]\d+[./]")  # many numbers behind AArch64 code look like these instructions
NAME_OF_ARCH = re.compile(r"for architecture (?:em_)?(\w+)")  # in archinfo's message
CONSTANT = 16  # bytes, at most, that one instruction reads
Code = dict[Any, list[Instruction]]  # angr's node -> its instructions
OF_DATA = {"TYPE_OBJECT", "TYPE_SECTION", "TYPE_TLS_OBJECT"}


def analyse(
    path: str | os.PathLike[str], scratch: str | os.PathLike[str] | None = None
) -> Analysis:
    """Recover and tidy the control-flow graph of an executable, which is never run.

    Parameters
    ----------
    path : path-like
        An ELF, PE or Mach-O file for any of `ARCHITECTURES`, or a BinExport file.
    scratch : path-like
        A folder for what angr moves from memory to disk; None: the system's temporary folder.

    Raises
    ------
    UserError
        The file cannot be read, is not such an executable, or contains no code.
    """
    if str(path).lower().endswith(SUFFIX):
        return read_binexport(path)
    import angr  # here, because the import takes seconds
    import archinfo
    import cle
    from angr.knowledge_plugins.rtdb import rtdb

    # Otherwise angr writes beside the binary. Version 9 reads this variable only when imported.
    os.environ["RTDB_BASE"] = rtdb.RTDB_BASEDIR = str(scratch or tempfile.gettempdir())

    fill_gaps()
    no_executable = utils.UserError(
        f"{path} is not an executable that angr can read (ELF, PE, Mach-O)"
    )
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise utils.UserError(f"cannot read {path}: {error.strerror}") from error
    refuse(path, content)
    try:
        # By itself angr moves functions, blocks and edges of large files to disk and back. That is
        # far slower (for 320,000 blocks, twice the time in all) and saves hardly any memory.
        unlimited = dict.fromkeys(angr.project.CACHE_CONFIG_KEYS)
        file = loadable(str(path), content)
        project = angr.Project(file, auto_load_libs=False, cache_limits=unlimited)
    except cle.CLECompatibilityError as error:
        if processors(content):  # cle knows this kind of header, too
            raise utils.UserError(f"{path} cannot be loaded: {_reason(error)}") from error
        raise no_executable from error
    except archinfo.ArchNotFound as error:
        name = NAME_OF_ARCH.search(str(error))
        raise unsupported(path, name[1] if name else str(error)) from error
    except Exception as error:  # a broken header can fail anywhere inside the loader
        raise utils.UserError(f"{path} cannot be loaded: {_reason(error)}") from error
    if isinstance(project.loader.main_object, cle.Blob):
        raise no_executable
    if processor_of(project.arch) is None:
        raise unsupported(path, project.arch.name)
    if getattr(project.loader.main_object, "is_relocatable", False):
        _refuse_unlinked(path, content, project.arch.name)
    with utils.rare_collections():
        try:
            starts = read_starts(project, content)
            names, exported = _exchange_symbols(project, starts)
            cfg = _recover(project, starts)
            cut_tables(cfg)
        except Exception as error:
            raise utils.UserError(f"angr fails on the code of {path}: {_reason(error)}") from error
        found = _tidy(project, cfg, path, starts, names, exported)
        return mend_boundaries(found, {a: ascii_name(name) for a, name in names.items()})


def _refuse_unlinked(path: object, content: bytes, processor: str) -> None:
    """Refuse an object file if its calls and addresses would be missing."""
    if content[:4] != ELF:
        return
    try:
        kinds, share = unknown_relocations(content, processor)
    except Exception as error:  # broken tables
        raise utils.UserError(f"{path} cannot be loaded: {_reason(error)}") from error
    if share > MOST:
        names = ", ".join(kinds[:3])
        raise utils.UserError(f"{path} has relocations that angr does not know ({names}): link it")


def unsupported(path: object, processor: str) -> utils.UserError:
    """Return the error for a file for a processor that is not in the table."""
    return utils.UserError(
        f"{path} is for a processor that is not supported ({processor}); "
        f"supported are {', '.join(ARCHITECTURES)}"
    )


def _reason(error: Exception) -> str:
    """Return what an error says, or where it arose if it says nothing."""
    first_line = str(error).strip().split("\n")[0]
    if first_line:
        return f"{type(error).__name__}: {first_line}"
    place = traceback.extract_tb(error.__traceback__)[-1:]
    return type(error).__name__ + "".join(f" in {frame.name}" for frame in place)


def _exchange_symbols(project: Any, starts: list[Start]) -> tuple[dict[int, str], dict[str, int]]:
    """Give angr the starts instead of the symbols; return the names of code, and the exports.

    So a stripped copy gives the same analysis as the original, and angr never joins a function to
    the code before it. If an address has several names, the first global function's is taken.
    """
    binary = project.loader.main_object
    symbols = [s for s in binary.symbols if not s.is_import and not NO_NAME.match(s.name)]
    symbols = [s for s in symbols if s.type.name not in OF_DATA]
    symbols.sort(key=lambda s: (not s.is_function, getattr(s, "is_local", False), s.name))
    names: dict[int, str] = {}
    for symbol in symbols:
        names.setdefault(symbol.rebased_addr, symbol.name)
    for function in go_functions(project):  # strip does not remove these
        names.setdefault(function.address, function.name)
    imported = [symbol for symbol in binary.symbols if symbol.is_import]
    binary.symbols = SortedKeyList(imported, key=lambda symbol: symbol.relative_addr)
    _show_starts(project, [start.address for start in starts if start.source != PART])
    binary.function_hints = []  # cle does not relocate these starts
    exported = {s.name: s.rebased_addr for s in symbols if s.is_export and s.is_function}
    return names, exported


def _is_data(instructions: list[Instruction], architecture: Architecture) -> bool:
    """Whether code that nothing leads to is rather data, or a trap for stray jumps."""
    traps = all(architecture.trap.match(i.line) for i in instructions)
    return traps or SVE.search(instructions[0].operands) is not None


def _show_starts(project: Any, addresses: list[int]) -> None:
    import cle

    binary = project.loader.main_object
    for place in [address - binary.mapped_base for address in addresses]:
        kind = cle.SymbolType.TYPE_FUNCTION
        binary.symbols.add(cle.Symbol(binary, f"start_{place:x}", place, 0, kind))


def _recover(project: Any, starts: list[Start]) -> Any:
    """Return angr's graph; on 32-bit ARM once more, with the functions that only pools name."""
    import angr
    from angr.analyses.cfg.indirect_jump_resolvers import default_resolvers

    binary = project.loader.main_object
    segments = not len(binary.sections)  # where section headers are cut off
    resolvers = default_resolvers.default_indirect_jump_resolvers(binary, project)
    if project.arch.name == "PPC64":
        resolvers.insert(0, table_resolver(project, starts, toc_tables.find_table))
    elif project.arch.name.startswith("MIPS"):
        resolvers.insert(0, table_resolver(project, starts, gp_tables.find_table))
    cfg = project.analyses.CFGFast(
        normalize=True, force_segment=segments, indirect_jump_resolvers=resolvers
    )
    if not architecture_of(project.arch).pools:
        return cfg
    taken = _taken(project, cfg)
    missed = [address for address in sorted(taken) if _begins(project, address)]
    gaps = _filled_gaps(project, cfg.graph)
    if missed or gaps:
        for gap in gaps:
            project.loader.memory.store(gap, THUMB_NOP)
        _show_starts(project, missed)
        project.kb = angr.KnowledgeBase(project)
        cfg = project.analyses.CFGFast(normalize=True, force_segment=segments)
    _remove_constants(cfg.graph, taken)
    return cfg


def _taken(project: Any, cfg: Any) -> set[int]:
    """Return the addresses that code makes or reads from pools, other than those of blocks."""
    taken: set[int] = set()
    for node in cfg.graph:
        if not node.is_simprocedure and not node.is_syscall:
            taken.update(made_addresses(project, node, {}).values())
            ahead = 3 if node.thumb else 8  # see made_addresses
            for instruction in in_detail(project, node, node.addr, node.size):
                if instruction.mnemonic.startswith("adr") and len(instruction.operands) == 2:
                    taken.add((instruction.address + ahead & ~3) + instruction.operands[1].imm)
    return taken - {node.addr for node in cfg.graph}


def _filled_gaps(project: Any, graph: Any) -> list[int]:
    """Return where lld filled gaps before Thumb code, with branches into the code before."""

    def is_filled(address: int) -> bool:
        is_there = is_code(project.loader.main_object, address)
        return is_there and project.loader.memory.load(address, 2) == LLD_FILLS

    unreached = [node for node in graph if node.addr & 1 and not graph.in_degree(node)]
    behind = [node.addr + 2 for node in unreached if node.size == 2 and is_filled(node.addr - 1)]
    gaps = []
    for start in sorted({*project.kb.functions, *behind}):
        before = start - 3
        while start % 4 == 1 and is_filled(before):
            gaps.append(before)
            before -= 2
    return gaps


def _remove_constants(graph: Any, taken: set[int]) -> None:
    """Remove Thumb code that nothing leads to, and that code reads as constants of 16 bytes."""
    constants = np.array(sorted(taken), np.int64)
    for node in [node for node in graph if node.addr & 1 and not graph.in_degree(node)]:
        start = node.addr - 1
        low, high = np.searchsorted(constants, [start - CONSTANT + 1, start + (node.size or 0)])
        if low < high:
            graph.remove_node(node)


def _begins(project: Any, address: int) -> bool:
    """Whether a function in ARM or Thumb code may begin at an address."""
    if not is_code(project.loader.main_object, address):
        return False
    code = project.loader.memory.load(address & ~1, 16)
    return address & 1 == is_thumb(code) and (address & 1 == 1 or address % 4 == 0)


def _tidy(
    project: Any,
    cfg: Any,
    path: str | os.PathLike[str],
    starts: list[Start],
    names: dict[int, str],
    exported: dict[str, int],
) -> Analysis:
    """Turn angr's graph into an :class:`Analysis`."""
    architecture, processor = architecture_of(project.arch), processor_of(project.arch) or ""
    graph, functions = cfg.model.graph, project.kb.functions
    imported = imported_data(project)  # angr may mistake these for texts
    literals = {
        data.addr: bytes(data.content)
        for data in cfg.model.memory_data.values()
        if data.content and str(data.sort) in ("string", "unicode") and data.addr not in imported
    }
    pointed_at: dict[int, int] = {}  # instruction -> literal, if no single operand is its address
    for address in literals:
        for reference in project.kb.xrefs.get_xrefs_by_dst(address):
            pointed_at[reference.ins_addr] = address

    binary = project.loader.main_object
    own = {start.address for start in starts if start.source != PART}
    imports = name_imports(project, graph, own)

    def is_gap(node: Any) -> bool:
        """Whether a node lies outside of the file's function ranges and no edge leads to it."""
        at = bisect.bisect_right(starts, node.addr, key=lambda start: start.address) - 1
        inside = at >= 0 and (starts[at].address == node.addr or node.addr < starts[at].end)
        return not inside and not graph.in_degree(node)

    code, joined = {}, set()
    for node in sorted(graph, key=lambda node: (node.addr, node.is_simprocedure)):
        if node in imports:
            continue
        if node.is_simprocedure or node.is_syscall:
            continue  # UnresolvableCallTarget and the like, system calls
        elif is_stub(binary, node.addr):
            continue  # PLT0 and lazy-binding halves: not the program's code
        else:
            instructions = read_instructions(project, node)
            if all(architecture.idle.match(i.line) for i in instructions):
                joined.add(node)
            elif not (is_gap(node) and _is_data(instructions, architecture)):
                code[node] = instructions

    if not code:
        raise utils.UserError(f"{path} holds no code that angr can find")
    block_at = {node.addr: block for block, node in enumerate(code)}
    _go_on(graph, code, architecture)
    stubs = {node.addr: name for node, name in imports.items()}
    # If the file itself exports the function of a stub, the stub leads to that function.
    exported = {name: block_at[a] for name, a in exported.items() if a in block_at}
    own_blocks = {node: exported[name] for node, name in imports.items() if name in exported}
    own_blocks |= {node: block for block, node in enumerate(code)}
    imports = {node: name for node, name in imports.items() if name not in exported}
    import_name = sorted(set(imports.values()))
    edges, by_name = _numbered(graph, own_blocks, imports, joined, import_name)
    finder = Finder(project, code, edges)
    operands_found = finder.fields()
    made = _made(operands_found)
    through = calls_through_slots(project, code, made)
    if through:
        name_at = slots(project)
        named = {b: name_at[a] for b, a in through.items() if a in name_at}
        import_name = sorted({*import_name, *(n for n in named.values() if n not in exported)})
        edges, by_name = _numbered(graph, own_blocks, imports, joined, import_name)
        called = {b: block_at[a] for b, a in through.items() if a in block_at}
        called |= {b: (exported | by_name)[name] for b, name in named.items()}
        edges = sorted({*edges, *_through(code, called, architecture)})

    listing, machine_code = Listing(), []
    pointers, labels = code_pointers(project, block_at)
    got = binary.sections_map.get(".got")
    offset_table = {place: block for place, block in pointers if got and got.contains_addr(place)}
    known: dict[tuple[str, str], list[Operand]] = {}
    for block, (node, instructions) in enumerate(code.items()):
        loaded = {}
        for line, address in made[block].items() if architecture.composes else ():
            loaded[instructions[line].address] = address
            literal = literal_at(project, address)
            if literal is not None and len(literal) > 1:
                literals.setdefault(address, literal)
        machine_code.append(
            block_bytes(project, node, node.addr, sum(i.size for i in instructions))
        )
        for instruction in instructions:
            operands = read_operands(project, node, instruction, known)
            listing.add(
                block, instruction, *form_of(instruction, operands, literals, pointed_at, loaded)
            )
            if instruction.address in pointed_at:
                listing.refer(pointed_at[instruction.address])
            for address in places(project, instruction, operands, loaded):
                target = offset_table.get(address, block_at.get(address))
                if target is not None or address in literals:
                    listing.refer(address)
                if target is not None:
                    if not architecture.branch.match(instruction.mnemonic):
                        listing.taken.add((block, target))
                elif address in imported or is_variable(project, address, literals):
                    listing.variables.add((block, address, imported.get(address, "")))
                    listing.refer(address)
        listing.end_block(instructions)

    entries = sorted({node.function_address for node in code})
    index = {address: i for i, address in enumerate(entries)}
    shown = [names.get(address) or f"sub_{address:x}" for address in entries]
    returning = {name: True for name in import_name}
    for node, name in imports.items():
        function = functions.get_by_addr(node.addr) if functions.contains_addr(node.addr) else None
        returning[name] &= not (node.no_ret or (function and function.returning is False))
    has_successor = np.zeros(len(code) + len(import_name), bool)
    has_successor[[source for source, _, _ in edges]] = True
    ends = [
        not has_successor[block] and _gives_back(project, node, instructions)
        for block, (node, instructions) in enumerate(code.items())
    ]
    ends += [returning[name] and not has_successor[by_name[name]] for name in import_name]

    pairs = np.array(edges, np.int64).reshape(-1, 3)
    return Analysis(
        address=np.array([node.addr for node in code] + [0] * len(import_name), np.uint64),
        function=np.array(
            [index[node.function_address] for node in code]
            + list(range(len(entries), len(entries) + len(import_name))),
            np.int32,
        ),
        edges=pairs[:, :2].astype(np.int32),
        kind=pairs[:, 2].astype(np.uint8),
        returns=np.array(ends, bool),
        function_address=np.array(entries + [0] * len(import_name), np.uint64),
        function_name=[ascii_name(name) for name in shown + import_name],
        import_name=import_name,
        pointer_address=np.array([address for address, _ in pointers], np.uint64),
        pointer_block=np.array([block for _, block in pointers], np.int32),
        label_pointer=np.array([pointer for pointer, _ in labels], np.int32),
        label=[literal for _, literal in labels],
        code=machine_code + [b""] * len(import_name),
        **listing.fields(len(import_name), literals),
        **operands_found,
        **data_sections(project, stubs, finder.pools()),
        processor_number=np.array([[*ARCHITECTURES].index(processor)], np.uint8),
        start_address=np.array([start.address for start in starts], np.uint64),
        start_end=np.array([start.end for start in starts], np.uint64),
        start_source=np.array([start.source for start in starts], np.uint8),
    )


def _go_on(graph: Any, code: Code, architecture: Architecture) -> None:
    """Add the edges that angr's graph lacks: from conditional returns (Thumb) to what follows."""
    node_at = {node.addr: node for node in code}
    for node, instructions in code.items():
        if architecture.return_if.match(instructions[-1].line):
            following = node_at.get(node.addr + sum(i.size for i in instructions))
            if following is not None:
                graph.add_edge(node, following, jumpkind="Ijk_Boring")


def _made(fields: dict[str, np.ndarray]) -> dict[int, dict[int, int]]:
    """Return block -> line -> the address that it names or completes (the last, if several)."""
    made: dict[int, dict[int, int]] = defaultdict(dict)
    columns = (fields[f"operand_{name}"].tolist() for name in ("block", "line", "kind", "value"))
    for block, line, kind, value in zip(*columns, strict=True):
        if kind in (PLACE, SLOT):
            made[block][line] = value
    return made


def _numbered(
    graph: Any,
    own_blocks: dict[Any, int],
    imports: dict[Any, str],
    joined: set[Any],
    import_name: list[str],
) -> tuple[list[tuple[int, int, int]], dict[str, int]]:
    """Return the sorted edges, and the number of each import's node."""
    by_name = {name: len(set(own_blocks.values())) + i for i, name in enumerate(import_name)}
    number = own_blocks | {node: by_name[name] for node, name in imports.items()}
    return sorted(_edges(graph, number, joined)), by_name


def _through(
    code: Code, called: dict[int, int], architecture: Architecture
) -> set[tuple[int, int, int]]:
    """Return the edges of calls and jumps through a table of addresses."""
    instructions = list(code.values())
    edges = set()
    for block, target in called.items():
        line = architecture.branching([i.line for i in instructions[block]])
        edges.add((block, target, CALL if architecture.call.match(line) else JUMP))
    return edges


def _edges(graph: Any, number: dict[Any, int], joined: set[Any]) -> set[tuple[int, int, int]]:
    """Return (source, target, kind); nodes in ``joined`` are stepped through."""
    edges = set()
    for node, successor, data in graph.edges(data=True):
        if node not in number:
            continue
        source, kind = number[node], KINDS.get(data.get("jumpkind"), JUMP)
        seen, ahead = set(), [successor]
        while ahead:
            target = ahead.pop()
            if target in number:
                # The stub of an import leads to its simulated procedure, which has the same
                # number: no edge. A real loop may lead to an equal node that angr read from disk.
                if number[target] != source or target == node:
                    edges.add((source, number[target], kind))
            elif target in joined and target not in seen:
                seen.add(target)
                ahead += graph.successors(target)
    return edges


def _gives_back(project: Any, node: Any, instructions: list[Instruction]) -> bool:
    """Whether a block without successors ends in a return or a jump, not in a trap or a call."""
    architecture = architecture_of(project.arch)
    lines = [i.line for i in instructions]
    line = architecture.branching(lines)
    if architecture.trap.match(line) or architecture.call.match(line):
        return False
    instruction = instructions[-1 - lines[::-1].index(line)]
    (last,) = in_detail(project, node, instruction.address, instruction.size)
    return last.id != 0 and not last.group(CS_GRP_INT)
