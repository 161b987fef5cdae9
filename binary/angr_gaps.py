"""What angr and cle do not know yet, added to their tables before a file is loaded."""


def fill_gaps() -> None:
    """Add relocations of linked RISC-V files, and Windows on ARM, unless angr knows them by now.

    The numbers are those of the "RISC-V ELF Specification", table "Relocation types".
    """
    from angr.calling_conventions import SYSCALL_CC
    from cle.backends.elf.relocation import ALL_RELOCATIONS, generic

    known = {
        2: generic.GenericAbsoluteAddendReloc,  # R_RISCV_64
        3: generic.GenericRelativeReloc,
        4: generic.GenericCopyReloc,
        5: generic.GenericJumpslotReloc,
        58: generic.GenericIRelativeReloc,
    }
    ALL_RELOCATIONS.setdefault("RISCV64", known)
    for processor in ("AARCH64", "ARMEL", "ARMHF"):
        conventions = SYSCALL_CC[processor]
        conventions.setdefault("Win32", conventions["default"])  # else a PE cannot be loaded
