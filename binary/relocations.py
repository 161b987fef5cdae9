"""Relocations that cle does not know, or gets wrong, most of them of object files.

Without them a call leads to the next instruction, and an address is 0: two files that differ there
would look equal. So a file with many relocations that stay unknown is refused.

The numbers and formulas are those of "ELF for the Arm 64-bit Architecture (AArch64)", "ELF
Application Binary Interface, s390x Supplement", "RISC-V ELF psABI Specification", and "64-Bit ELF
V2 ABI Specification: Power Architecture".
"""

import functools
import io
from typing import Any

from elftools.elf.descriptions import describe_reloc_type
from elftools.elf.elffile import ELFFile

import utils
from binary.formats import ELF, ET_REL
from binary.offset_tables import table_base

SHF_EXECINSTR = 4
Fields = tuple[tuple[int, int, int], ...]
# Hints for the linker, and labels that only differences in data use, change no instruction.
HINTS = {"R_RISCV_RELAX", "R_RISCV_ALIGN", "R_ARM_V4BX", "R_390_NONE", "R_AARCH64_NONE"}
HINTS |= {"R_MIPS_JALR", "R_ARM_NONE", "R_X86_64_NONE", "R_386_NONE", "R_RISCV_NONE"}
HINTS |= {"R_PPC64_NONE"}
MOST = 0.1  # maximum share of relocations in code that may be unknown (for thread-local data, say)
FEW = 0.01  # a larger share is worth a warning
TOC = ".TOC."  # 64-bit PowerPC: the symbol of the address in r2
# A function's first two instructions, if they compute r2; callers that have it jump behind them.
COMPUTES_TOC = ((0x3C4C0000, 0x38420000), (0xE84C0000, 0x7C420000))


def unknown_relocations(content: bytes, processor: str) -> tuple[list[str], float]:
    """Return the kinds of relocations that angr does not know in an object file's code.

    Parameters
    ----------
    processor : str
        angr's name.

    Returns
    -------
    list of str
        Their names, sorted.
    float
        Their share of all relocations in code.
    """
    from cle.backends.elf.relocation import ALL_RELOCATIONS

    known = ALL_RELOCATIONS.get(processor, {})
    elf = ELFFile(io.BytesIO(content))
    if elf.get_section_by_name(".opd"):  # ELF V1: the symbol of a function is its descriptor's
        known = {}
    count, unknown = 0, []
    for table in elf.iter_sections():
        if table["sh_type"] not in ("SHT_RELA", "SHT_REL"):
            continue
        section: Any = elf.get_section(table["sh_info"])
        if not section["sh_flags"] & SHF_EXECINSTR:
            continue
        entries: Any = table
        for relocation in entries.iter_relocations():
            kind = relocation["r_info_type"]
            count += 1
            if known.get(kind) is None:
                name = str(describe_reloc_type(kind, elf))
                unknown.append(f"number {kind}" if name == "<unknown>" else name)
    unknown = [name for name in unknown if name not in HINTS]
    return sorted(set(unknown)), len(unknown) / max(count, 1)


def relocation_warning(path: str) -> str:
    """Return a warning if a change of an object file may be missed, as it has unknown relocations.

    "" for other files.
    """
    with utils.open_regular(path) as file:
        header = file.read(18)
        if header[:4] != ELF or ET_REL not in header[16:18]:
            return ""
        content = header + file.read()
    import cle

    add_relocations()
    elf = ELFFile(io.BytesIO(content))
    kinds, share = unknown_relocations(content, cle.ELF.extract_arch(elf).name)
    if share <= FEW:
        return ""
    return (
        f"angr does not know {share:.0%} of the relocations in its code ({', '.join(kinds[:3])}), "
        "so a change of what they refer to may be missed"
    )


def add_relocations() -> None:
    """Add the relocations to cle's tables."""
    from cle.backends.elf import relocation

    ALL_RELOCATIONS = relocation.ALL_RELOCATIONS
    generic: Any = relocation.generic
    arm64: Any = relocation.arm64

    class Absolute(generic.RelocTruncate32Mixin, generic.GenericAbsoluteAddendReloc):
        """A word of 32 bits with an address."""

    class Relative(generic.RelocTruncate32Mixin, generic.GenericPCRelativeAddendReloc):
        """A word of 32 bits with a distance."""

    class GotPage(generic.RelocGOTMixin, arm64.R_AARCH64_ADR_PREL_PG_HI21):
        pass

    class GotLow(generic.RelocGOTMixin, arm64.R_AARCH64_LDST64_ABS_LO12_NC):
        pass

    distance: Any = generic.GenericPCRelativeAddendReloc
    ALL_RELOCATIONS["AARCH64"] |= {258: Absolute, 260: distance, 261: Relative}
    ALL_RELOCATIONS["AARCH64"] |= {311: GotPage, 312: GotLow}

    class Halfwords(distance):
        """A distance in units of two bytes."""

        size = 4

        def relocate(self) -> None:
            memory, mask = self.owner.memory, (1 << 8 * self.size) - 1
            memory.pack_word(self.dest_addr, self.value >> 1 & mask, size=self.size)

    class ShortHalfwords(Halfwords):
        size = 2

    class GotHalfwords(generic.RelocGOTMixin, Halfwords):
        pass

    ALL_RELOCATIONS["S390X"] |= {
        **{4: Absolute, 5: Relative, 8: Relative, 23: distance, 26: GotHalfwords},
        **{16: ShortHalfwords, 17: ShortHalfwords, 19: Halfwords, 20: Halfwords},
    }

    class Instruction(generic.GenericPCRelativeAddendReloc):
        """A distance in the immediate fields of RISC-V's instructions.

        ``fields``: (lowest bit of the value, number of bits, lowest bit in the instruction).
        """

        fields: Fields = ()
        size = 4

        def target(self) -> int:
            return self.value

        def write(self, value: int, place: int, fields: Fields, size: int) -> None:
            word = self.owner.memory.unpack_word(place, size=size)
            for low, count, at in fields:
                mask = (1 << count) - 1
                word = word & ~(mask << at) | (value >> low & mask) << at
            self.owner.memory.pack_word(place, word, size=size)

        def relocate(self) -> None:
            self.write(self.target(), self.dest_addr, self.fields, self.size)

    upper: Fields = ((12, 20, 12),)
    lower: Fields = ((0, 12, 20),)
    store: Fields = ((0, 5, 7), (5, 7, 25))

    class Branch(Instruction):
        fields = ((1, 4, 8), (5, 6, 25), (11, 1, 7), (12, 1, 31))

    class Jump(Instruction):
        fields = ((1, 10, 21), (11, 1, 20), (12, 8, 12), (20, 1, 31))

    class ShortBranch(Instruction):
        fields = ((1, 2, 3), (3, 2, 10), (5, 1, 2), (6, 2, 5), (8, 1, 12))
        size = 2

    class ShortJump(Instruction):
        fields = (
            *((1, 3, 3), (4, 1, 11), (5, 1, 2), (6, 1, 7), (7, 1, 6), (8, 2, 9)),
            *((10, 1, 8), (11, 1, 12)),
        )
        size = 2

    class Call(Instruction):
        """A pair of instructions, auipc and jalr."""

        def relocate(self) -> None:
            self.write(self.value + 0x800, self.dest_addr, upper, 4)
            self.write(self.value, self.dest_addr + 4, lower, 4)

    class High(Instruction):
        """The upper part of a distance; the relocation of the lower part names its place."""

        fields = upper

        def target(self) -> int:
            return self.value + 0x800

    class GotHigh(generic.RelocGOTMixin, High):
        pass

    class Low(Instruction):
        """The lower part of the distance whose upper part is at the symbol."""

        fields = lower

        def target(self) -> int:
            upper_part = _upper_parts(self.owner, High).get(self.resolvedby.relative_addr)
            return upper_part.value if upper_part else 0

    class LowStore(Low):
        fields = store

    class AbsoluteHigh(High):
        @property
        def value(self) -> int:
            return self.resolvedby.rebased_addr + self.addend

    class AbsoluteLow(AbsoluteHigh):
        fields = lower

        def target(self) -> int:
            return self.value

    class AbsoluteStore(AbsoluteLow):
        fields = store

    in_linked_files = {
        2: generic.GenericAbsoluteAddendReloc,  # R_RISCV_64
        3: generic.GenericRelativeReloc,
        4: generic.GenericCopyReloc,
        5: generic.GenericJumpslotReloc,
        58: generic.GenericIRelativeReloc,
    }
    # A newer angr may have these, but not those of object files.
    ALL_RELOCATIONS.setdefault("RISCV64", in_linked_files).update(
        {
            **{1: Absolute, 16: Branch, 17: Jump, 18: Call, 19: Call, 20: GotHigh, 23: High},
            **{24: Low, 25: LowStore, 26: AbsoluteHigh, 27: AbsoluteLow, 28: AbsoluteStore},
            **{44: ShortBranch, 45: ShortJump, 57: Relative},
        }
    )
    _add_powerpc(generic, ALL_RELOCATIONS["PPC64"])


def _add_powerpc(generic: Any, known: dict[int, Any]) -> None:
    """Add the relocations of 64-bit PowerPC."""

    class Half(generic.GenericAbsoluteAddendReloc):
        """A part of an address in the low half of an instruction."""

        shift = 0
        carry = 0  # that of the lower half, which is added as a signed number
        kept = 0  # bits of the instruction

        @property
        def value(self) -> int:
            if self.resolvedby.name == TOC:
                return table_base(self.owner) + self.addend
            return self.resolvedby.rebased_addr + self.addend

        def relocate(self) -> None:
            memory = self.owner.memory
            word = memory.unpack_word(self.dest_addr, size=2) & self.kept
            part = (self.value + self.carry >> self.shift) & 0xFFFF & ~self.kept
            memory.pack_word(self.dest_addr, word | part, size=2)

    class FromToc(Half):
        @property
        def value(self) -> int:
            return super().value - table_base(self.owner)

    class FromHere(Half):
        @property
        def value(self) -> int:
            return super().value - self.rebased_addr

    def halves(kind: Any, *numbers: int) -> None:
        """Add the whole, lower, high, adjusted high, word-aligned, and lower aligned part."""
        for number, shift, carry, kept in zip(
            numbers, (0, 0, 16, 16, 0, 0), (0, 0, 0, 0x8000, 0, 0), (0, 0, 0, 0, 3, 3), strict=False
        ):
            parts = {"shift": shift, "carry": carry, "kept": kept}
            known[number] = type(kind.__name__, (kind,), parts)

    halves(Half, 3, 4, 5, 6, 56, 57)
    halves(FromToc, 47, 48, 49, 50, 63, 64)
    halves(FromHere, 249, 250, 251, 252)

    class Toc(generic.GenericAbsoluteAddendReloc):
        AUTO_HANDLE_NONE = True

        @property
        def value(self) -> int:
            return table_base(self.owner)

    class Absolute(generic.RelocTruncate32Mixin, generic.GenericAbsoluteAddendReloc):
        pass

    class Relative(generic.RelocTruncate32Mixin, generic.GenericPCRelativeAddendReloc):
        pass

    class Branch(generic.GenericPCRelativeAddendReloc):
        """A distance within an instruction; the target is behind the code that computes r2."""

        bits = 0x3FFFFFC
        skips = True

        def relocate(self) -> None:
            memory, place = self.owner.memory, self.resolvedby.relative_addr + self.addend
            distance = self.value
            if self.skips and self.resolvedby.owner is self.owner and not self.addend:
                code = [memory.unpack_word(place + step, size=4) for step in (0, 4)]
                distance += 8 * (tuple(word & 0xFFFF0000 for word in code) in COMPUTES_TOC)
            word = memory.unpack_word(self.dest_addr, size=4) & ~self.bits
            memory.pack_word(self.dest_addr, word | distance & self.bits, size=4)

    class ShortBranch(Branch):
        bits = 0xFFFC

    class BranchWithoutToc(Branch):
        skips = False

    class Hint(generic.GenericAbsoluteAddendReloc):
        """Marks an instruction for the linker."""

        AUTO_HANDLE_NONE = True

        def relocate(self) -> None:
            pass

    known |= {67: Hint, 107: Hint, 108: Hint, 118: Hint, 119: Hint, 120: Hint}
    known |= {1: Absolute, 26: Relative, 44: generic.GenericPCRelativeAddendReloc, 51: Toc}
    known |= {10: Branch, 116: BranchWithoutToc, 11: ShortBranch, 12: ShortBranch, 13: ShortBranch}


@functools.lru_cache(maxsize=1)
def _upper_parts(owner: Any, kind: Any) -> dict[int, Any]:
    """Return place -> relocation of an address's upper part, in an object file."""
    return {r.dest_addr: r for r in owner.relocs if isinstance(r, kind)}
