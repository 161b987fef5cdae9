"""Where in a function's stack frame each instruction reads and writes, on x86-64.

Offsets are relative to the stack pointer at the function's entry: the return address is at 0, saved
registers and local variables are below, arguments on the stack begin at 8. So they do not depend
on how much is pushed, nor on whether there is a frame pointer.
"""

from collections import deque
from typing import NamedTuple

import capstone
from capstone import x86

from binary.accesses import disassembler, whole_register

WORD = 8


class Use(NamedTuple):
    """What an instruction does with the frame.

    Attributes
    ----------
    what : str
        "slot": reads or writes it at a constant offset. "push", "pop". "address": computes an
        address in it. "indexed": reads or writes it at an offset that also depends on a register.
        "moves": only moves the stack pointer, or sets the frame pointer.
    offset, size : int
        In bytes.
    loads : bool
        Whether it reads the slot.
    register : str
        What is pushed or popped, set to an address, or loaded by ``mov``; "" for anything else.
    pointer : str
        The register from which the offset is counted.
    """

    what: str
    offset: int
    size: int = 0
    loads: bool = False
    register: str = ""
    pointer: str = ""


class Frame(NamedTuple):
    """What is known of a function's frame.

    Attributes
    ----------
    uses : dict of (int, int) to Use
        (block, line) -> what the instruction there does with it.
    lowest : int
        The lowest offset of the stack pointer, arguments of calls included.
    ends : dict of int to int
        The offset of the stack pointer at the end of each block.
    """

    uses: dict[tuple[int, int], Use]
    lowest: int
    ends: dict[int, int]


class _Unclear(Exception):
    """The stack pointer cannot be followed."""


def read_frame(code: dict[int, bytes], flow: dict[int, list[int]], entry: int) -> Frame | None:
    """Follow the stack pointer through a function; None if it is not always known.

    Parameters
    ----------
    code : dict of int to bytes
        The machine code of the function's blocks.
    flow : dict of int to list of int
        The successors of each block inside the function.
    entry : int
        The first block.
    """
    before: dict[int, tuple[int, int | None]] = {entry: (0, None)}
    waiting = deque([entry])
    uses: dict[tuple[int, int], Use] = {}
    ends: dict[int, int] = {}
    lowest = 0
    try:
        while waiting:
            block = waiting.popleft()
            stack, pointer = before[block]
            for line, instruction in enumerate(disassembler("x86_64").disasm(code[block], 0)):
                use, stack, pointer = _follow(instruction, stack, pointer)
                uses.pop((block, line), None)
                if use:
                    uses[block, line] = use
                lowest = min(lowest, stack)
            ends[block] = stack
            for target in flow.get(block, ()):
                known = before.get(target)
                if known and known[0] != stack:
                    return None
                merged = stack, pointer if not known or known[1] == pointer else None
                if known != merged:
                    before[target] = merged
                    waiting.append(target)
    except _Unclear:
        return None
    return Frame(uses, lowest, ends) if ends.keys() >= code.keys() else None


def _follow(
    instruction: capstone.CsInsn, stack: int, pointer: int | None
) -> tuple[Use | None, int, int | None]:
    """Return an instruction's use of the frame, and the two pointers after it."""
    if not instruction.id:
        raise _Unclear
    mnemonic = instruction.mnemonic.removeprefix("notrack ").removeprefix("bnd ")
    operands = instruction.operands
    names = [
        whole_register("x86_64", instruction.reg_name(o.reg)) if o.type == x86.X86_OP_REG else ""
        for o in operands
    ]
    if mnemonic == "push" and operands[0].type != x86.X86_OP_MEM and names[0] != "rsp":
        stack -= WORD
        return Use("push", stack, WORD, register=names[0]), stack, pointer
    if mnemonic == "pop" and names[0] not in ("", "rsp"):
        kept = None if names[0] == "rbp" else pointer
        return Use("pop", stack, WORD, True, names[0]), stack + WORD, kept
    if mnemonic == "leave" and pointer is not None:
        return Use("pop", pointer, WORD, True, "rbp"), pointer + WORD, None
    if names and names[0] == "rsp":
        return Use("moves", 0), _moved(instruction, mnemonic, names, stack, pointer), pointer
    if mnemonic == "mov" and names == ["rbp", "rsp"]:
        return Use("moves", 0, register="rbp"), stack, stack
    if mnemonic == "ret" and stack:
        raise _Unclear
    use = _use(instruction, mnemonic, names, {"rsp": stack, "rbp": pointer})
    written = {whole_register("x86_64", instruction.reg_name(r)) for r in _written(instruction)}
    if "rsp" in written and mnemonic not in ("call", "ret"):
        raise _Unclear
    if "rbp" in written and pointer is not None:
        raise _Unclear
    return use, stack, pointer


def _written(instruction: capstone.CsInsn) -> list[int]:
    return [register for register in instruction.regs_access()[1] if register]


def _moved(
    instruction: capstone.CsInsn, mnemonic: str, names: list[str], stack: int, pointer: int | None
) -> int:
    """Return the stack pointer after an instruction that names it as its target."""
    source = instruction.operands[-1]
    if mnemonic in ("add", "sub") and source.type == x86.X86_OP_IMM:
        return stack + (source.imm if mnemonic == "add" else -source.imm)
    if mnemonic == "mov" and names[-1] == "rbp" and pointer is not None:
        return pointer
    if mnemonic == "lea" and not source.mem.index:
        base = {"rsp": stack, "rbp": pointer}.get(instruction.reg_name(source.mem.base))
        if base is not None:
            return base + source.mem.disp
    raise _Unclear


def _use(
    instruction: capstone.CsInsn, mnemonic: str, names: list[str], pointers: dict[str, int | None]
) -> Use | None:
    """Return how an instruction uses the frame whose pointers it does not change."""
    frame = {name for name, offset in pointers.items() if offset is not None}
    if mnemonic == "mov" and names[0] and names[-1] in frame:
        return Use("address", pointers[names[-1]] or 0, 0, False, names[0], names[-1])
    if frame.intersection(names):
        raise _Unclear
    found = None
    for operand in instruction.operands:
        if operand.type != x86.X86_OP_MEM:
            continue
        memory = operand.mem
        base = instruction.reg_name(memory.base) if memory.base else ""
        index = instruction.reg_name(memory.index) if memory.index else ""
        if index in frame:
            raise _Unclear
        if base not in frame:
            continue
        offset = (pointers[base] or 0) + memory.disp
        if mnemonic == "lea":
            what = "indexed" if index else "address"
            found = Use(what, offset, 0, False, names[0], base)
        else:
            loads = operand.access != capstone.CS_AC_WRITE
            target = names[0] if mnemonic == "mov" else ""
            found = Use("indexed" if index else "slot", offset, operand.size, loads, target, base)
    return found
