"""Relocations that cle does not know: those of linked files for RISC-V.

The numbers are those of the "RISC-V ELF Specification", table "Relocation types".
"""


def add_relocations() -> None:
    """Tell cle of them, unless it knows RISC-V by now."""
    from cle.backends.elf.relocation import ALL_RELOCATIONS, generic

    known = {
        2: generic.GenericAbsoluteAddendReloc,  # R_RISCV_64
        3: generic.GenericRelativeReloc,
        4: generic.GenericCopyReloc,
        5: generic.GenericJumpslotReloc,
        58: generic.GenericIRelativeReloc,
    }
    ALL_RELOCATIONS.setdefault("RISCV64", known)
