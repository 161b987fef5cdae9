"""Read instructions with capstone, and classify their operands."""

import re
from typing import Any, NamedTuple

from binary.architectures import architecture_of

MAX_STRING_WORDS = 16  # number of words of a string literal that become tokens
MAX_TOKEN = 64  # characters of a word or a name, so that no binary can make a giant token
# Types of operands, which are the same for all processors in capstone.
CS_OP_REG, CS_OP_IMM, CS_OP_MEM = (1,), 2, (3, 0x80)
ONE_NUMBER = re.compile(r"#?(0x[0-9a-f]+)")


class Instruction(NamedTuple):
    """One line of capstone's output; ``operands`` is the operands' text."""

    address: int
    size: int
    mnemonic: str
    operands: str

    @property
    def line(self) -> str:
        """The instruction as text."""
        return f"{self.mnemonic} {self.operands}".strip()


class Operand(NamedTuple):
    """The class of an operand, and its address.

    Attributes
    ----------
    token : str
        reg1, reg2, reg4, ... (the register's bytes), ptr or imme.
    address : int or None
        The number or the memory address that the operand contains whole.
    relative : bool
        The address is relative to the end of the instruction.
    """

    token: str
    address: int | None = None
    relative: bool = False


def read_instructions(project: Any, node: Any) -> list[Instruction]:
    """Return the block's instructions; .byte stands for what capstone cannot read."""
    lines = _capstone(project, node).disasm_lite(
        block_bytes(project, node, node.addr, node.size), node.addr
    )
    return list(map(Instruction._make, lines))


def in_detail(project: Any, node: Any, address: int, size: int) -> list:
    """Return capstone's detailed objects, slow to make, for some instructions of a block."""
    code = block_bytes(project, node, address, size)
    return list(_capstone(project, node).disasm(code, address))


def _capstone(project: Any, node: Any) -> Any:
    capstone = project.arch.capstone_thumb if node.thumb else project.arch.capstone
    capstone.skipdata = True  # unreadable bytes become .byte; by default capstone drops the rest
    return capstone


def block_bytes(project: Any, node: Any, address: int, size: int) -> bytes:
    # angr's addresses of Thumb code are odd
    return project.loader.memory.load(address - 1 if node.thumb else address, size)


def read_operands(
    project: Any, node: Any, instruction: Instruction, known: dict[tuple[str, str], list[Operand]]
) -> list[Operand]:
    """Return the operands of an instruction; ``known`` is a cache by mnemonic and text."""
    if number := ONE_NUMBER.fullmatch(instruction.operands):  # most jumps and calls
        return [Operand("imme", int(number[1], 16))]
    text = instruction.mnemonic, instruction.operands
    if text not in known:
        (detailed,) = in_detail(project, node, instruction.address, instruction.size)
        operands = detailed.operands if detailed.id else []  # .byte has no details
        known[text] = [_operand(project.arch, detailed, o) for o in operands]
    return known[text]


def _operand(arch: Any, instruction: Any, operand: Any) -> Operand:
    if operand.type in CS_OP_REG:
        return Operand(f"reg{_register_bytes(arch, instruction, operand)}")
    if operand.type not in CS_OP_MEM:
        return Operand("imme", operand.imm if operand.type == CS_OP_IMM else None)
    where = operand.mem
    index = getattr(where, "index", 0)  # MIPS, PowerPC and RISC-V have none
    if not index and not where.base:
        return Operand("ptr", where.disp)
    if not index and instruction.reg_name(where.base) in architecture_of(arch).pc:
        return Operand("ptr", where.disp, relative=True)
    return Operand("ptr")


def _register_bytes(arch: Any, instruction: Any, operand: Any) -> int:
    size = getattr(operand, "size", 0)  # only x86 has it
    if size:
        return size
    name = instruction.reg_name(operand.reg) or ""
    for pattern, size in architecture_of(arch).sizes:
        if pattern.fullmatch(name):
            return size
    return arch.registers.get(name, (0, arch.bytes))[1]


def form_of(
    instruction: Instruction,
    operands: list[Operand],
    literals: dict[int, bytes],
    pointed_at: dict[int, int],
    loaded: dict[int, int],
) -> tuple[str, list[bytes]]:
    """Return mnemonic and operand classes as text, and the literals of the operands "str"."""
    words: list[str] = [instruction.mnemonic.replace(" ", "_")]
    named: list[bytes] = []
    for position, operand in enumerate(operands):
        last = position == len(operands) - 1
        address = operand.address
        if operand.relative and address is not None:
            address += instruction.address + instruction.size
        if last and loaded.get(instruction.address) in literals:
            address = loaded[instruction.address]
        elif last and operand.token == "imme" and address not in literals:
            # only the last operand can be what angr computed from several instructions
            address = pointed_at.get(instruction.address)
        if address in literals:
            words.append("str")
            named.append(literals[address])
        else:
            words.append(operand.token)
    return " ".join(words), named


def string_words(literal: bytes) -> list[str]:
    """Return the literal's words: runs of ASCII letters and digits, lower-cased, at most 16.

    So a binary cannot produce a special token, a space or a new line.
    """
    words = re.findall(rb"[A-Za-z0-9]+", literal.replace(b"\0", b""))[:MAX_STRING_WORDS]
    return [word[:MAX_TOKEN].decode("ascii").lower() for word in words]


def literal_words(literal: bytes) -> list[bytes | str]:
    """Return the features of a function that uses this literal: the whole text, and its words."""
    text = literal.replace(b"\0", b"")
    return [text, *string_words(text)]


def clean_name(name: str) -> str:
    """Return an import's name as a token: characters other than ``A-Za-z0-9_.@$?-`` become _."""
    return re.sub(r"[^A-Za-z0-9_.@$?-]", "_", name[:MAX_TOKEN]) or "_"
