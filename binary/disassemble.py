"""Disassemble one binary: angr recovers its control-flow graph, which is tidied here."""

import gc
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

import utils
from binary.addresses import Finder
from binary.analysis import CALL, JUMP, STEP_OVER, Analysis
from binary.boundaries import mend_boundaries
from binary.instructions import (
    Operand,
    block_bytes,
    form_of,
    in_detail,
    read_instructions,
    read_operands,
)
from binary.references import (
    code_pointers,
    data_sections,
    imported_data,
    is_variable,
    made_addresses,
    places,
)

for _name in ("angr", "archinfo", "cle", "pyvex", "claripy"):  # what they warn of, no user can mend
    logging.getLogger(_name).setLevel(logging.CRITICAL)
# An alignment block is made of these; whether it really does nothing, its VEX code tells.
PADDING_MNEMONICS = {"nop", "xchg", "lea", "mov", "hint", "endbr64", "endbr32", "int3"}
MOVING_MNEMONICS = {"xchg", "lea", "mov"}  # they do nothing only from a register to itself
TRAPS = {"hlt", "ud0", "ud1", "ud2", "udf", "int3", "brk", "bkpt"}
BRANCHES = ("call", "j", "loop", "b", "cb", "tb")  # how the mnemonics of all CPUs begin; bnd jmp
CS_GRP_CALL, CS_GRP_INT = 2, 4
# Above these angr moves parts to disk, which is slower: a graph of so many takes two gigabytes.
# Version 10 has no limit of edges.
IN_MEMORY = {"functions": 20_000, "cfg_nodes": 50_000, "cfg_edges": 50_000}


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
        return mend_boundaries(_tidy(project, cfg, path))


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
            instructions = read_instructions(project, node)
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

    forms, strings, first_instruction = [], [], [0]
    variable_refs, taken, text = set(), set(), []
    machine_code, sizes, references = [], [], set()
    block_at = {node.addr: block for block, node in enumerate(code)}
    imported = imported_data(project)
    pointers, labels = code_pointers(project, block_at)
    got = project.loader.main_object.sections_map.get(".got")
    offset_table = {place: block for place, block in pointers if got and got.contains_addr(place)}
    known: dict[tuple[str, str], list[Operand]] = {}
    for block, (node, instructions) in enumerate(code.items()):
        loaded = made_addresses(project, node, literals)
        machine_code.append(
            block_bytes(project, node, node.addr, sum(i.size for i in instructions))
        )
        for instruction in instructions:
            operands = read_operands(project, node, instruction, known)
            form, found = form_of(instruction, operands, literals, pointed_at, loaded)
            forms.append(form)
            strings += [(block, literal) for literal in found]
            literal = pointed_at.get(instruction.address)
            if literal is not None:
                references.add((len(sizes), literal))
            for address in places(project, instruction, operands, loaded):
                target = offset_table.get(address, block_at.get(address))
                if target is not None or address in literals:
                    references.add((len(sizes), address))
                if target is not None:
                    if not instruction.mnemonic.startswith(BRANCHES):
                        taken.add((block, target))
                elif address in imported or is_variable(project, address, literals):
                    variable_refs.add((block, address, imported.get(address, "")))
                    references.add((len(sizes), address))
            sizes.append(instruction.size)
        first_instruction.append(len(forms))
        text.append("\n".join(f"{i.mnemonic} {i.operands}".strip() for i in instructions).encode())
    first_instruction += [len(forms)] * len(import_name)
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

    string_refs, variable_refs, taken = (sorted(s) for s in (set(strings), variable_refs, taken))
    row = {reference: i for i, reference in enumerate(string_refs)}
    distinct = sorted(set(forms))
    ids = {form: i for i, form in enumerate(distinct)}
    references = np.array(sorted(references), np.uint64).reshape(-1, 2)
    named = sorted(set(references[:, 1].tolist()) & literals.keys())
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
        first_instruction=np.array(first_instruction, np.int64),
        instruction_form=np.array([ids[form] for form in forms], np.int32),
        form=distinct,
        operand_string=np.array([row[reference] for reference in strings], np.int32),
        instructions=text,
        code=machine_code + [b""] * len(import_name),
        instruction_size=np.array(sizes, np.uint8),
        reference_instruction=references[:, 0].astype(np.int32),
        reference_address=references[:, 1],
        literal_address=np.array(named, np.uint64),
        literal=[literals[address] for address in named],
        **Finder(project, code, edges).fields(),
        **data_sections(project, {node.addr: name for node, name in imports.items()}),
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


def _gives_back(project, node, instruction) -> bool:
    """Whether a block without successors ends in a return or a jump, no trap and no call."""
    (last,) = in_detail(project, node, instruction.address, instruction.size)
    return not (last.mnemonic in TRAPS or last.group(CS_GRP_CALL) or last.group(CS_GRP_INT))


def _display(name: str) -> str:
    return name.encode("ascii", "backslashreplace").decode().replace("\n", "\\n")
