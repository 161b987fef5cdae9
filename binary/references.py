"""Find what instructions and data refer to: string literals, variables, code."""

import re
from typing import Any

import numpy as np

from binary.addresses import is_constant
from binary.architectures import architecture_of
from binary.instructions import CS_OP_MEM, CS_OP_REG, Instruction, Operand, in_detail

MAX_LITERAL = 4096  # bytes of a string literal
DATA_SECTIONS = {"SHT_PROGBITS", "SHT_NOBITS", "SHT_INIT_ARRAY", "SHT_FINI_ARRAY"}
UNWINDING = (".eh_frame", ".gcc_except_table")  # the compiler's tables, not the program's data
LABELS = 2  # how many words before and after a pointer to code may point to its name
PRINTABLE = re.compile(rb"[\t-\r -~]+")


def made_addresses(project: Any, node: Any, literals: dict[int, bytes]) -> dict[int, int]:
    """Return instruction -> address that it completes, in a block of 32-bit ARM code.

    ``movw r0, #1; movt r0, #2`` make an address of two halves. ``ldr r0, [pc, #8]`` loads an
    address from the pool after the function, or a distance to which a later ``add r0, pc`` adds
    ``pc``. angr does not follow all of these. New literals are added to ``literals``.
    """
    found: dict[int, int] = {}
    if not architecture_of(project.arch).pools:
        return found
    ahead = 3 if node.thumb else 8  # pc is 4 or 8 bytes ahead, and angr's Thumb addresses are odd
    loaded: dict[int, int | None] = {}  # register -> word
    for instruction in in_detail(project, node, node.addr, node.size):
        operands = instruction.operands if instruction.id else []  # .byte has no details
        pc = instruction.address + ahead
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
            loaded[registers[0]] = None  # it may overwrite the word
        if address is not None and address not in literals:
            literal = literal_at(project, address)
            if literal is not None:
                literals[address] = literal
        if address is not None:
            found[instruction.address] = address
    return found


def _word(project: Any, address: int) -> int | None:
    try:
        return project.loader.memory.unpack_word(address)
    except KeyError:  # not in the file
        return None


def _region(project: Any, address: int) -> Any:
    """Return the section of an address, or its segment if the file has no section headers."""
    binary = project.loader.main_object
    if len(binary.sections):
        return binary.find_section_containing(address)
    return binary.find_segment_containing(address)


def literal_at(project: Any, address: int) -> bytes | None:
    """Return the NUL-terminated printable text at an address in constant data, or None."""
    section = _region(project, address)
    if section is None or section.is_writable or section.is_executable:
        return None
    content = project.loader.memory.load(address, min(MAX_LITERAL, section.max_addr - address + 1))
    literal, end, _ = content.partition(b"\0")
    return literal if literal and end and PRINTABLE.fullmatch(literal) else None


def places(
    project: Any, instruction: Instruction, operands: list[Operand], loaded: dict[int, int]
) -> set[int]:
    """Return the addresses that an instruction contains or completes."""
    end = instruction.address + instruction.size
    named = {o.address + end * o.relative for o in operands if o.address is not None}
    if instruction.address in loaded:
        named.add(loaded[instruction.address])
    if architecture_of(project.arch).composes:
        references = project.kb.xrefs.get_xrefs_by_ins_addr(instruction.address)
        named |= {reference.dst for reference in references}
    return named


def is_variable(project: Any, address: int, literals: dict[int, bytes]) -> bool:
    """Whether there is data at the address that is not a text."""
    section = _region(project, address)
    if section is None or not _holds_data(section):
        return False
    return address not in literals and literal_at(project, address) is None


def _holds_data(section: Any) -> bool:
    """Whether a section contains the program's data, not code or symbols."""
    kind = getattr(section, "type", "SHT_PROGBITS")  # only ELF's have one
    mapped = getattr(section, "occupies_memory", True)
    name = getattr(section, "name", "")  # segments have none
    mapped = mapped and not name.startswith(UNWINDING)
    return mapped and not section.is_executable and kind in DATA_SECTIONS


def imported_data(project: Any) -> dict[int, str]:
    """Return address -> name of the symbol whose address or copy the dynamic linker puts there."""
    from cle.backends.elf.relocation.generic import GenericCopyReloc

    return {
        relocation.rebased_addr: relocation.symbol.name
        for relocation in project.loader.main_object.relocs
        if relocation.symbol is not None
        and relocation.symbol.name
        and (relocation.symbol.is_import or isinstance(relocation, GenericCopyReloc))
    }


def data_sections(
    project: Any, stubs: dict[int, str], pools: list[tuple[int, int]]
) -> dict[str, Any]:
    """Return the fields of an `Analysis` for sections of data and for imports.

    Parameters
    ----------
    pools : list of (int, int)
        (start, end) of each piece of data between code.
    stubs : dict
        Address of a stub or a simulated procedure -> name of its import.
    """
    image = project.loader.main_object
    regions = list(image.sections) or list(image.segments)
    held = []
    for region in sorted(regions, key=lambda region: region.vaddr):
        if not region.memsize or not region.vaddr or not _holds_data(region):
            continue
        constant = is_constant(region)
        content = b""
        if not getattr(region, "only_contains_uninitialized_data", False):  # segments lack it
            try:
                content = project.loader.memory.load(region.vaddr, region.memsize)
            except (KeyError, ValueError):  # not in the file
                content = b""
        held.append((region.vaddr, region.memsize, constant, content))
    for start, end in pools:
        held.append((start, end - start, True, project.loader.memory.load(start, end - start)))
    held.sort()
    names = {**stubs, **imported_data(project)}
    places = sorted(names)
    return dict(
        data_address=np.array([start for start, *_ in held], np.uint64),
        data_size=np.array([size for _, size, *_ in held], np.uint64),
        data_constant=np.array([constant for *_, constant, _ in held], bool),
        data=[content for *_, content in held],
        imported_address=np.array(places, np.uint64),
        imported_name=[names[place] for place in places],
    )


def code_pointers(
    project: Any, block_at: dict[int, int]
) -> tuple[list[tuple[int, int]], list[tuple[int, bytes]]]:
    """Return (address, code block) of each word of data that points to code, and their labels.

    A label is (index of the pointer, string literal to which a word near it points).
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
    ordered = sorted(pointers)
    labels = set()
    for pointer, (place, _) in enumerate(ordered):
        for step in range(-LABELS, LABELS + 1):
            value = _word(project, place + size * step) if step else None
            literal = None if value is None or value in block_at else literal_at(project, value)
            if literal is not None:
                labels.add((pointer, literal))
    return ordered, sorted(labels)
