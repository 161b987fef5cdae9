"""Which registers, flags and memory each instruction reads and writes, on x86-64 and AArch64.

This is what capstone says, with its mistakes corrected to the safe side: a register that may keep
a part of its value counts as read, and an instruction with effects that capstone does not know is
opaque. tests/test_accesses.py compares this with the lifter of Valgrind (VEX).
"""

import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

import capstone

# x86: these write all of a 32-bit or wider register without reading it.
_X86_WRITES = re.compile(
    r"mov|movabs|mov[sz]xd?|movaps|movups|movapd|movupd|movdq[au]|movd|movq|lea|pop|v\w+"
)
# x86: these leave some of the flags as they were; shifts leave all of them if cl is 0.
_X86_SOME_FLAGS = re.compile(r"inc|dec|s[ah][lr]d?|rc[lr]|ro[lr]|bt[crs]?|cmc|stc|clc|sahf|bs[fr]")
# AArch64: these leave a part of their first register as it was.
_A64_KEEPS = re.compile(r"movk|bfi|bfxil|bfm|bfc|ins|fml[as]l?2?|ml[as]|tbx|sli|sri|\w+2|[su]\w+al")
_A64_READS_FIRST = re.compile(r"st\w*|cbn?z|tbn?z|bl?r?|bc?\.\w+|ret")
_A64_COMPARES = re.compile(r"f?c?cmp[ep]*|cmn|ccmn|tst")
# Their order, or effects beyond registers and memory, cannot be seen from the operands.
_X86_OPAQUE = re.compile(
    r".* .*|f\w+|\w*xchg\w*|xadd|(syscall|sysenter|int\w*|in|out|cpuid|rdtscp?|xgetbv|rdrand|rdseed"
    r"|[lsm]fence|vzero\w+|emms|ldmxcsr|stmxcsr|vldmxcsr|pushfq?|popfq?|cld|std|hlt|ud\d|enter"
    r"|(movs[bwq]?|(stos|lods|cmps|scas)[bwdq]?)|vgather\w+|v?maskmov\w+|xsave\w*|xrstor\w*)"
)
_A64_OPAQUE = re.compile(
    r"svc|hvc|smc|brk|hlt|udf|dmb|dsb|isb|msr|mrs|sys|sysl|at|dc|ic|tlbi|prfu?m|clrex|yield|wfe|wfi"
    r"|ld\w*a\w*r\w*|stll?u?r[bh]?|stlur\w*|st\w*x[rp]\w*|ld\w*x[rp]\w*|cas\w*|swp\w*|ld(add|clr|eor|set|smax"
    r"|smin|umax|umin)\w*|pac\w+|aut\w+|xpac\w+|bl?ra\w+|ret[ab]\w*|st(add|clr|eor|set)\w*"
)
_FLAGS = {"rflags", "eflags", "nzcv", "fpsw"}
STACK = {"rsp", "sp"}


class Access(NamedTuple):
    """What an instruction does.

    Attributes
    ----------
    reads, writes : frozenset of str
        Whole registers (rax for al, v0 for s0), and "flags".
    keeps_flags : bool
        Whether it leaves some of the flags as they were, or may do so.
    loads, stores : bool
        Whether it reads, writes memory.
    private : bool
        All of the memory that it touches is addressed by the stack pointer or the program counter.
    opaque : bool
        It has other effects; nothing may be said about it.
    """

    reads: frozenset[str]
    writes: frozenset[str]
    keeps_flags: bool
    loads: bool
    stores: bool
    private: bool
    opaque: bool


def whole_register(processor: str, register: str) -> str:
    """Return the full register of which this one is a part.

    >>> whole_register("x86_64", "r10d"), whole_register("x86_64", "ah")
    ('r10', 'rax')
    >>> whole_register("aarch64", "w3"), whole_register("aarch64", "s0")
    ('x3', 'v0')
    """
    if register in _FLAGS:
        return "flags"
    if processor == "aarch64":
        if found := re.fullmatch(r"([wxbhsdqv])(\d+)", register):
            return ("x" if found[1] in "wx" else "v") + found[2]
        return {"fp": "x29", "lr": "x30", "wsp": "sp", "wzr": "xzr"}.get(register, register)
    if processor != "x86_64":
        return register
    if found := re.fullmatch(r"(r\d+)[dwb]", register):
        return found[1]
    if found := re.fullmatch(r"[re]?([abcd])[xlh]", register):
        return f"r{found[1]}x"
    if found := re.fullmatch(r"[re]?(si|di|bp|sp)l?", register):
        return f"r{found[1]}"
    if found := re.fullmatch(r"[yz]mm(\d+)", register):
        return f"xmm{found[1]}"
    return register


def width(processor: str, register: str) -> str:
    """Return how much of the register is meant: "" for all 64 bits of a general one.

    >>> [width("x86_64", r) for r in ("rax", "eax", "ax", "al", "ah", "r9d", "xmm1", "ymm1")]
    ['', 'd', 'w', 'b', 'h', 'd', 'x', 'y']
    >>> [width("aarch64", r) for r in ("x1", "w1", "s1", "sp")]
    ['', 'w', 's', '']
    """
    if processor == "aarch64":
        found = re.fullmatch(r"([wbhsdqv])(\d+|zr|sp)", register)
        return found[1] if found else ""
    if processor != "x86_64":
        return ""
    if found := re.fullmatch(r"r\d+([dwb])", register):
        return found[1]
    if found := re.fullmatch(r"([xyz])mm\d+", register):
        return found[1]
    if re.fullmatch(r"e[a-d]x|e(si|di|bp|sp)", register):
        return "d"
    if re.fullmatch(r"[a-d]x|si|di|bp|sp", register):
        return "w"
    if re.fullmatch(r"[a-d]h", register):
        return "h"
    return "b" if re.fullmatch(r"[a-d]l|(si|di|bp|sp)l", register) else ""


@functools.cache
def disassembler(processor: str) -> capstone.Cs:
    """Return capstone for "x86_64" or "aarch64", with details of operands."""
    kinds = {
        "x86_64": (capstone.CS_ARCH_X86, capstone.CS_MODE_64),
        "aarch64": (capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM),
    }
    made = capstone.Cs(*kinds[processor])
    made.detail = made.skipdata = True
    return made


@functools.lru_cache(1 << 12)
def accesses(processor: str, code: bytes) -> tuple[Access, ...]:
    """Return what each instruction of a block of machine code does; "x86_64" or "aarch64" only."""
    of = _of_x86 if processor == "x86_64" else _of_aarch64
    return tuple(of(instruction) for instruction in disassembler(processor).disasm(code, 0))


OPAQUE = Access(frozenset(), frozenset(), True, True, True, False, True)


def _names(processor: str, instruction: capstone.CsInsn, registers: Iterable[int]) -> set[str]:
    names = (instruction.reg_name(r) for r in registers)
    return {whole_register(processor, name) for name in names if name}


def _of_x86(instruction: capstone.CsInsn) -> Access:
    mnemonic = instruction.mnemonic.removeprefix("notrack ")
    if not instruction.id or _X86_OPAQUE.fullmatch(mnemonic) or "{" in instruction.op_str:
        return OPAQUE
    reads, writes = (_names("x86_64", instruction, r) for r in instruction.regs_access())
    keeps_flags = bool(_X86_SOME_FLAGS.fullmatch(mnemonic))
    full = bool(_X86_WRITES.fullmatch(mnemonic))
    loads, stores, private = mnemonic == "pop", mnemonic == "push", True
    for operand in instruction.operands:
        if operand.type == capstone.x86.X86_OP_MEM and mnemonic not in ("lea", "nop"):
            loads |= operand.access != capstone.CS_AC_WRITE
            stores |= operand.access != capstone.CS_AC_READ
            base = instruction.reg_name(operand.mem.base) if operand.mem.base else ""
            private &= base in ("rsp", "rip") and not operand.mem.index and not operand.mem.segment
        elif operand.type == capstone.x86.X86_OP_REG and operand.access != capstone.CS_AC_READ:
            name = instruction.reg_name(operand.reg)
            keeps = width("x86_64", name) in ("w", "b", "h") or not full
            # movss, movsd and the like keep the upper half of their target.
            if keeps:
                reads.add(whole_register("x86_64", name))
            writes.add(whole_register("x86_64", name))
    return Access(
        frozenset(reads - {"rip"}), frozenset(writes), keeps_flags, loads, stores, private, False
    )


def _of_aarch64(instruction: capstone.CsInsn) -> Access:
    mnemonic = instruction.mnemonic
    if not instruction.id or _A64_OPAQUE.fullmatch(mnemonic):
        return OPAQUE
    reads, writes = (_names("aarch64", instruction, r) for r in instruction.regs_access())
    if _A64_COMPARES.fullmatch(mnemonic):
        reads, writes = reads | writes, {"flags"}
    elif not _A64_READS_FIRST.fullmatch(mnemonic) and instruction.operands:
        first = instruction.operands[0]
        if first.type == capstone.arm64.ARM64_OP_REG:  # capstone forgets that of adds w0, w0, #1
            writes |= _names("aarch64", instruction, [first.reg])
        logical = mnemonic in ("bic", "orr") and len(instruction.operands) == 2
        if _A64_KEEPS.fullmatch(mnemonic) or logical:
            reads |= writes
    elif mnemonic == "ret" and not instruction.operands:
        reads.add("x30")
    loads = stores = False
    private = True
    for operand in instruction.operands:
        if operand.type == capstone.arm64.ARM64_OP_MEM:
            stores |= mnemonic.startswith("st")
            loads |= not mnemonic.startswith("st")
            base = instruction.reg_name(operand.mem.base) if operand.mem.base else ""
            private &= base == "sp" and not operand.mem.index
    reads, writes = reads - {"xzr"}, writes - {"xzr"}
    return Access(frozenset(reads), frozenset(writes), False, loads, stores, private, False)
