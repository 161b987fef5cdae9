"""What angr and cle do not know yet, added to their tables before a file is loaded."""

import io
import struct

from binary.formats import MACHO

MH_DYLIB, MH_BUNDLE = 6, 8  # types of Mach-O files, at byte 12


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


def loadable(path: str, content: bytes) -> str | io.BytesIO:
    """Return what cle is given: the path, or for a Mach-O bundle its content as a library.

    Bundles (plug-ins, Python's extension modules) are laid out like libraries, but
    cle refuses them.
    """
    if content[:4] in MACHO and len(content) >= 16:
        number = "<I" if content[3] == 0xFE else ">I"
        if struct.unpack_from(number, content, 12)[0] == MH_BUNDLE:
            return io.BytesIO(content[:12] + struct.pack(number, MH_DYLIB) + content[16:])
    return path
