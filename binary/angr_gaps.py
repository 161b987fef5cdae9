"""What angr and cle do not know yet, added to their tables before a file is loaded."""

import io
import struct
from collections.abc import Callable
from typing import Any

from binary.formats import MACHO
from binary.relocations import add_relocations
from binary.unlifted import lift_the_rest

DIRECTORIES, PE32_PLUS = 16, 0x20B
MH_DYLIB, MH_BUNDLE = 6, 8  # types of Mach-O files, at byte 12


def fill_gaps() -> None:
    """Add relocations, instructions, and Windows on ARM; mend some methods."""
    from angr.analyses.cfg import CFGFast
    from angr.calling_conventions import SYSCALL_CC
    from angr.procedures.definitions import SimSyscallLibrary
    from angr.procedures.glibc.__libc_start_main import __libc_start_main
    from angr.procedures.posix.pthread import pthread_create
    from cle import Loader

    _mend(Loader, "find_section_next_to", _only_if_mapped)
    _mend(SimSyscallLibrary, "has_prototype", _only_if_complete)
    _mend(CFGFast, "_to_snippet", _empty_at_the_end)
    _mend(CFGFast, "drop_bad_functions", _only_guesses)
    for procedure in (__libc_start_main, pthread_create):
        _mend(procedure, "static_exits", _none_on_failure)
    add_relocations()
    lift_the_rest()
    for processor in ("AARCH64", "ARMEL", "ARMHF"):
        conventions = SYSCALL_CC[processor]
        conventions.setdefault("Win32", conventions["default"])  # else a PE cannot be loaded


def _mend(owner: Any, name: str, change: Callable[[Any], Any]) -> None:
    """Replace a method by what ``change`` makes of it, once."""
    method = getattr(owner, name)
    if not hasattr(method, "mended"):
        changed = change(method)
        changed.mended = True
        setattr(owner, name, changed)


def _only_if_complete(has_prototype: Callable[..., bool]) -> Callable[..., bool]:
    """Return angr's test for a system call's prototype, but True only if all its types are known.

    Otherwise angr fails an assertion, for example at capget.
    """

    def has_whole_prototype(library: Any, abi: str, name: str) -> bool:
        known = has_prototype(library, abi, name)
        return known and library.get_prototype(abi, name, deref=True) is not None

    return has_whole_prototype


def _empty_at_the_end(to_snippet: Callable[..., Any]) -> Callable[..., Any]:
    """Return angr's reader of a block, but with an empty block where no code is mapped.

    A call may be the last instruction of the last section. angr then fails when it reads the block
    that the call would return to.
    """
    from angr.codenode import BlockNode
    from angr.errors import SimEngineError

    def read(cfg: Any, *arguments: Any, addr: int | None = None, **more: Any) -> Any:
        try:
            return to_snippet(cfg, *arguments, addr=addr, **more)
        except SimEngineError:
            if addr is None or cfg.project.loader.find_segment_containing(addr):
                raise
            return BlockNode(addr, 0, bytestr=b"")

    return read


def _only_guesses(drop: Callable[..., None]) -> Callable[..., None]:
    """Return angr's search for functions that are rather data, but not among the file's own.

    Otherwise angr drops small functions that end in a trap (ud2, udf, unimp).
    """

    def drop_guesses(cfg: Any) -> None:
        functions, known = cfg.kb.functions, cfg._function_addresses_from_symbols
        # angr spares functions that return.
        for name in ("is_func_nonreturning", "is_func_returning_unknown"):
            test = getattr(functions, name)
            setattr(functions, name, lambda a, test=test: a not in known and test(a))
        try:
            drop(cfg)
        finally:
            del functions.is_func_nonreturning, functions.is_func_returning_unknown

    return drop_guesses


def _none_on_failure(static_exits: Callable[..., list]) -> Callable[..., list]:
    """Return angr's search for the function that a thread starts with, but for none where it fails.

    angr simulates the two blocks before the call, and cannot simulate each instruction.
    """
    from angr.errors import AngrError

    def search(procedure: Any, *arguments: Any, **more: Any) -> list:
        try:
            return static_exits(procedure, *arguments, **more)
        except AngrError:
            return []

    return search


def _only_if_mapped(find: Callable[..., Any]) -> Callable[..., Any]:
    """Return cle's search for the next section, but for addresses in segments only.

    Outside of them angr 9.2 compares the section's address with None.
    """

    def search(loader: Any, address: int, *arguments: Any, **more: Any) -> Any:
        inside = any(map(loader.find_segment_containing, (address, address - 1)))
        return find(loader, address, *arguments, **more) if inside else None

    return search


def loadable(path: str, content: bytes) -> str | io.BytesIO:
    """Return what cle is given: the path, or the content of a file that cle would refuse.

    Mach-O bundles (plug-ins, Python's extension modules) are laid out like libraries and become
    libraries. PE files with a short table of directories get the missing entries, which are empty.
    """
    if content[:2] == b"MZ":
        try:
            longer = _all_directories(content)
        except struct.error:  # broken headers: cle says what is wrong with them
            return path
        return io.BytesIO(longer) if longer else path
    if content[:4] in MACHO and len(content) >= 16:
        number = "<I" if content[3] == 0xFE else ">I"
        if struct.unpack_from(number, content, 12)[0] == MH_BUNDLE:
            return io.BytesIO(content[:12] + struct.pack(number, MH_DYLIB) + content[16:])
    return path


def _all_directories(content: bytes) -> bytes | None:
    """Return a PE file with 16 data directories; None if it has them, or there is no room.

    The table of sections moves back, into the gap before the first section. EFI programs for ARM,
    whose headers are written by hand, have six directories.
    """
    (place,) = struct.unpack_from("<I", content, 60)
    if content[place : place + 4] != b"PE\0\0":
        return None
    _, sections, optional, magic = struct.unpack_from("<2H12xH2xH", content, place + 4)
    first = place + 24 + (112 if magic == PE32_PLUS else 96)  # of the directories
    (count,) = struct.unpack_from("<I", content, first - 4)
    table, more = place + 24 + optional, 8 * (DIRECTORIES - count)
    end = table + 40 * sections
    begins = [struct.unpack_from("<I", content, table + 40 * i + 20)[0] for i in range(sections)]
    if more <= 0 or table != first + 8 * count or any(0 < b < end + more for b in begins):
        return None
    changed = bytearray(content)
    changed[table + more : end + more] = content[table:end]
    changed[table : table + more] = bytes(more)
    struct.pack_into("<I", changed, first - 4, DIRECTORIES)
    struct.pack_into("<H", changed, place + 20, optional + more)
    return bytes(changed)
