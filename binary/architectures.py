"""What this project must know about each processor; angr and capstone know the rest.

The patterns match lines of an analysis as capstone writes them: mnemonic, space, operands.
"""

import dataclasses
import re
from typing import Any


def _mnemonics(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:{pattern})(?= |$)")


def _jumps(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:{pattern}) #?(?:0x[0-9a-f]+|\d+)$")


_NEVER = re.compile(r"(?!)")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One family of processors.

    Attributes
    ----------
    branch, call, jump : patterns
        All instructions that branch or return; calls; unconditional jumps.
    indirect : pattern
        Jumps through a register or a word in memory.
    trap : pattern
        Instructions that end the program.
    idle : pattern
        Instructions that do nothing; compilers fill the gaps between functions with them.
    field : pattern
        A memory operand at a constant offset: groups base, sign, offset.
    pc : frozenset of str
        Registers that hold the address of the next instruction.
    frame : frozenset of str
        Registers that point into the stack or the image, ``pc`` included: offsets from them differ
        between builds.
    sizes : tuple of (pattern, int)
        Size in bytes of the registers that angr and capstone name differently.
    delay : int
        Number of instructions after a branch that are executed before it takes effect.
    composes : bool
        Whether several instructions may make up one address.
    pools : bool
        Whether code loads constants and addresses from pools between functions.
    return_if : pattern
        Conditional returns, if angr does not know that the code after them is reached.
    restore : pattern
        Instructions that restore the return address: a jump right after one is a tail call. None
        if they are not known.
    """

    branch: re.Pattern[str]
    call: re.Pattern[str]
    jump: re.Pattern[str]
    indirect: re.Pattern[str]
    trap: re.Pattern[str]
    idle: re.Pattern[str]
    field: re.Pattern[bytes]
    frame: frozenset[bytes]
    pc: frozenset[str] = frozenset()
    sizes: tuple[tuple[re.Pattern[str], int], ...] = ()
    delay: int = 0
    composes: bool = True
    pools: bool = False
    return_if: re.Pattern[str] = _NEVER
    restore: re.Pattern[str] | None = None

    def branching(self, lines: list[str]) -> str:
        """Return the line at which a block may branch: the last, or the one before a delay slot."""
        if self.delay and len(lines) > 1 and self.branch.match(lines[-2]):
            return lines[-2]
        return lines[-1]


# [rbx + rax*8 + 0x38]; [x0, #8]; -0x7fd8($v0), 0xa0(%r15), 8(r1)
_X86_FIELD = re.compile(
    rb"\[(?P<base>\w+)(?: \+ \w+(?:\*\d)?)? (?P<sign>[+-]) (?P<offset>0x[0-9a-f]+|\d+)\]"
)
_ARM_FIELD = re.compile(rb"\[(?P<base>\w+), #(?P<sign>-?)(?P<offset>0x[0-9a-f]+|\d+)\]")
_RISC_FIELD = re.compile(
    rb"(?P<sign>-?)\b(?P<offset>0x[0-9a-f]+|\d+)\((?:%\w+, )?[$%]?(?P<base>\w+)\)"
)
_IF = "(?:eq|ne|cs|hs|cc|lo|mi|pl|vs|vc|hi|ls|ge|lt|gt|le)"
_CONDITION = rf"(?:{_IF}|al)"
_VECTORS = ((re.compile(r"f\d+"), 8), (re.compile(r"(?:v|w|vs)\d+"), 16))

_X86 = Architecture(
    branch=_mnemonics(r"(?:(?:bnd|notrack) )*(?:l?call|l?jmp|j\w+|loop\w*|i?ret\w*)"),
    call=_mnemonics(r"(?:(?:bnd|notrack) )*l?call"),
    jump=_jumps(r"(?:bnd )?jmp"),
    indirect=re.compile(r"(?:(?:bnd|notrack) )*jmp (?:\w+ ptr|r|e)"),
    trap=_mnemonics("hlt|ud[012]|int3"),
    idle=re.compile(
        r"(?:\w+ )*nop\b|endbr|int3$|xchg (r?)ax, \1ax$|mov (r\w+), \2$"
        r"|lea (r\w+), (?:\w\w:)?\[\3(?: \+ riz)?\]$"
    ),
    field=_X86_FIELD,
    pc=frozenset({"rip", "eip"}),
    frame=frozenset({b"rsp", b"rbp", b"esp", b"ebp", b"rip", b"eip"}),
    composes=False,
)
_I386 = dataclasses.replace(
    _X86,
    idle=re.compile(
        r"(?:\w+ )*nop\b|endbr|int3$|(?:xchg|mov) (\w+), \1$"
        r"|lea (\w+), (?:\w\w:)?\[\2(?: \+ eiz)?\]$"
    ),
    composes=True,
)
_ARM = Architecture(
    branch=_mnemonics(rf"b(?:l|x|lx|xj)?{_CONDITION}?(?:\.w)?|cbn?z|tb[bh]"),
    call=_mnemonics(rf"blx?{_CONDITION}?(?:\.w)?"),
    jump=_jumps(r"b(?:\.w)?"),
    indirect=re.compile(r"bx |ldr(?:\.w)? pc,|(?:pop|ldm).*pc|mov pc,"),
    trap=_mnemonics(r"udf(?:\.w)?|bkpt"),
    # The last one is 0xd4d4d4d4, with which lld fills gaps to trap stray jumps.
    idle=_mnemonics(r"nop(?:\.w)?|hint|mov (\w+), \1|ldrble sp, \[r4\], #0x4d4"),
    field=_ARM_FIELD,
    frame=frozenset({b"sp", b"fp", b"pc"}),
    sizes=((re.compile(r"q\d+"), 16),),
    pools=True,
    return_if=re.compile(rf"bx{_IF} lr$|(?:pop|ldm\w*?){_IF}(?:\.w)? .*\bpc\}}$"),
    restore=re.compile(r"(?:pop|ldm)[\w.]* .*\blr\}$|ldr(?:\.w)? lr, \[sp\], "),
)
_AARCH64 = dataclasses.replace(
    _ARM,
    branch=_mnemonics(r"bl?r?(?:a[ab]z?)?|bc?\.\w+|[ct]bn?z|ret\w*"),
    call=_mnemonics(r"blr?(?:a[ab]z?)?"),
    jump=_jumps("b"),
    indirect=re.compile(r"br"),
    trap=_mnemonics("udf|brk|hlt"),
    idle=_mnemonics("nop|hint|bti"),
    frame=frozenset({b"sp", b"x29"}),
    pools=False,
    return_if=_NEVER,
    restore=None,
)
_MIPS = Architecture(
    branch=_mnemonics(
        r"b(?:al|alc|c|c[0-9]\w+|n?z\.\w|(?:eq|ne|ge|gt|le|lt|o|no)\w*)?|j\w*(?:\.hb)?"
    ),
    call=_mnemonics(r"balc?|b\w+al[cl]?|jal\w*(?:\.hb)?|jialc"),
    jump=_jumps("b|bc|j"),
    indirect=re.compile(r"jr "),
    trap=_mnemonics("break|sdbbp"),
    idle=_mnemonics("s?nop|ssnop"),
    field=_RISC_FIELD,
    frame=frozenset({b"sp", b"fp", b"gp", b"s8"}),
    sizes=_VECTORS,
    delay=1,
)
_POWERPC = Architecture(
    branch=_mnemonics(r"b(?!rinc|permd|cd)\w*[+-]?"),
    call=_mnemonics(r"b\w*l[+-]?|bla"),
    jump=_jumps("b"),
    indirect=re.compile(r"bctr$"),
    trap=_mnemonics("trap"),
    idle=_mnemonics(r"nop|ori (r\d+), \1, 0"),
    field=_RISC_FIELD,
    frame=frozenset({b"r1", b"r2", b"r31"}),
    sizes=_VECTORS,
)
_RISCV = Architecture(
    branch=_mnemonics(r"(?:c\.)?(?:b(?:eq|ne|lt|ge|gt|le)\w*|j\w*|ret)"),
    call=re.compile(r"c\.jalr? |jalr? (?!zero)"),
    jump=_jumps(r"(?:c\.)?j|jalr zero, \w+,"),
    indirect=re.compile(r"(?:c\.)?jr |jalr "),
    trap=_mnemonics(r"(?:c\.)?ebreak|(?:c\.)?unimp"),
    idle=_mnemonics(r"(?:c\.)?nop"),
    field=_RISC_FIELD,
    frame=frozenset({b"sp", b"s0", b"gp", b"tp"}),
    sizes=((re.compile(r"f\w+"), 8), (re.compile(r"v\d+"), 16)),
)
_S390X = Architecture(
    branch=_mnemonics(r"j\w*|b\w*|cl?g?[ir]j\w*"),
    call=_mnemonics(r"brasl?|basr?|balr?|jasl?"),
    jump=_jumps("jg?"),
    indirect=re.compile(r"br "),
    trap=_mnemonics("trap"),
    idle=_mnemonics(r"nopr?|jgnop|bcr? 0,|brcl 0,"),
    field=_RISC_FIELD,
    frame=frozenset({b"r15", b"r11"}),
    composes=False,
)

# LLVM's name of each processor -> its family and angr's name.
ARCHITECTURES = {
    "x86_64": _X86,
    "i386": _I386,
    "aarch64": _AARCH64,
    "aarch64_be": _AARCH64,
    "arm": _ARM,
    "armeb": _ARM,
    "mipsel": _MIPS,
    "mips": _MIPS,
    "mips64el": _MIPS,
    "mips64": _MIPS,
    "powerpc": _POWERPC,
    "powerpc64le": _POWERPC,
    "powerpc64": _POWERPC,
    "riscv64": _RISCV,
    "s390x": _S390X,
}
_LITTLE = {
    "AMD64": "x86_64",
    "X86": "i386",
    "AARCH64": "aarch64",
    "ARMEL": "arm",
    "ARMHF": "arm",
    "ARMCortexM": "arm",
    "MIPS32": "mipsel",
    "MIPS64": "mips64el",
    "PPC64": "powerpc64le",
    "RISCV64": "riscv64",
}
_BIG = {
    "AARCH64": "aarch64_be",
    "ARMEL": "armeb",
    "ARMHF": "armeb",
    "MIPS32": "mips",
    "MIPS64": "mips64",
    "PPC32": "powerpc",
    "PPC64": "powerpc64",
    "S390X": "s390x",
}


def processor_of(arch: Any) -> str | None:
    """Return LLVM's name of one of angr's processors; None if it is not in ARCHITECTURES."""
    return (_LITTLE if arch.memory_endness == "Iend_LE" else _BIG).get(arch.name)


def architecture_of(arch: Any) -> Architecture:
    """Return the family of one of angr's processors."""
    return ARCHITECTURES[str(processor_of(arch))]
