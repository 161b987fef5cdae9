"""The functions that a file exports, by name.

Linkers and loaders need these names, so `strip` keeps them, unlike symbols and debug information,
which are not read here.
"""

import io
import os
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import pefile
from elftools.elf.elffile import ELFFile

import utils
from binary.angr_gaps import loadable
from binary.formats import ELF, MACHO
from binary.starts import BROKEN, macho_exports

BASE = 0x400000  # where angr maps a position-independent file whose own addresses begin at 0
HIDDEN = 0x8000  # flag of a symbol's version: not the default one
EXPORT_DIRECTORY = pefile.DIRECTORY_ENTRY["IMAGE_DIRECTORY_ENTRY_EXPORT"]
MOST = 1 << 20  # exports that are read of a PE file; pefile's own limit is 8,192


class Export(NamedTuple):
    """A function that a file exports.

    Attributes
    ----------
    name : str
        As in C: without what a file format puts around it (`_f` of Mach-O, `_f@8` of Windows).
    version : str
        Of the symbol, such as GLIBC_2.2.5; "" for none.
    resolver : bool
        The address is not that of the function, but of one that chooses it (IFUNC).
    address : int
        Where angr maps it; odd for Thumb code.
    """

    name: str
    version: str
    resolver: bool
    address: int


def read_exports(path: str | os.PathLike[str]) -> list[Export]:
    """Return what an ELF, PE or Mach-O file exports by name; [] of other files.

    Data may be among them: PE does not tell it from functions. If a table is broken, its beginning
    counts.

    Raises
    ------
    UserError
        The file cannot be read.
    """
    try:
        with utils.open_regular(path) as file:
            content = file.read()
    except OSError as error:
        raise utils.UserError(f"cannot read {path}: {error.strerror}") from error
    reader: Iterator[Export] = iter(())
    if content[:4] == ELF:
        reader = _elf(content)
    elif content[:2] == b"MZ":
        reader = _pe(content)
    elif content[:4] in MACHO:
        reader = _macho(path, content)
    found = []
    try:
        for export in reader:
            found.append(export)
    except (*BROKEN, pefile.PEFormatError):
        pass
    return found


def _elf(content: bytes) -> Iterator[Export]:
    elf = ELFFile(io.BytesIO(content))
    begins = [segment["p_vaddr"] for segment in elf.iter_segments("PT_LOAD")]
    shift = BASE if elf["e_type"] == "ET_DYN" and not min(begins, default=1) else 0
    sections: list[Any] = [s for s in elf.iter_sections() if s["sh_type"] == "SHT_DYNSYM"]
    versions = _versions(elf)
    opd: Any = elf.get_section_by_name(".opd")
    descriptors = opd.data() if opd and elf["e_machine"] == "EM_PPC64" else b""
    for table in sections or [*elf.iter_segments("PT_DYNAMIC")]:
        for number, symbol in enumerate(table.iter_symbols()):
            kind, binding = symbol["st_info"]["type"], symbol["st_info"]["bind"]
            if kind not in ("STT_FUNC", "STT_LOOS") or symbol["st_shndx"] == "SHN_UNDEF":
                continue  # STT_LOOS is STT_GNU_IFUNC
            if binding not in ("STB_GLOBAL", "STB_WEAK"):
                continue
            address = symbol["st_value"]
            if descriptors and 0 <= (place := address - opd["sh_addr"]) < len(descriptors):
                order = "<" if elf.little_endian else ">"
                (address,) = struct.unpack_from(f"{order}Q", descriptors, place)
            version = versions.get(number, "")
            yield Export(symbol.name, version, kind == "STT_LOOS", address + shift)


def _versions(elf: ELFFile) -> dict[int, str]:
    """Return number of a dynamic symbol -> its version."""
    sections: dict[str, Any] = {section["sh_type"]: section for section in elf.iter_sections()}
    definitions, numbers = sections.get("SHT_GNU_verdef"), sections.get("SHT_GNU_versym")
    if definitions is None or numbers is None:
        return {}
    names = {}
    for definition, auxiliary in definitions.iter_versions():
        if definition["vd_ndx"] in names:
            break  # a broken list, which may have no end
        # The first entry is the file's own name, for symbols without a version.
        is_base = definition["vd_flags"] & 1
        names[definition["vd_ndx"]] = "" if is_base else next(auxiliary).name
    order = "<" if elf.little_endian else ">"
    data = numbers.data()
    found = struct.unpack(f"{order}{len(data) // 2}H", data[: len(data) // 2 * 2])
    return {i: names.get(number & ~HIDDEN, "") for i, number in enumerate(found)}


def _pe(content: bytes) -> Iterator[Export]:
    pe: Any = pefile.PE(data=content, fast_load=True, max_symbol_exports=MOST)
    pe.parse_data_directories([EXPORT_DIRECTORY])
    base = pe.OPTIONAL_HEADER.ImageBase or BASE
    directory = getattr(pe, "DIRECTORY_ENTRY_EXPORT", None)
    for symbol in directory.symbols if directory else ():
        if symbol.name and symbol.forwarder is None:
            name = symbol.name.decode("utf-8", "backslashreplace")
            stem, at, size = name.partition("@")
            if at and stem[:1] == "_" and size.isdigit():  # stdcall of 32-bit Windows
                name = stem[1:]
            yield Export(name, "", False, base + symbol.address)


def _macho(path: str | os.PathLike[str], content: bytes) -> Iterator[Export]:
    import cle  # takes a second

    loader = cle.Loader(loadable(str(path), content), auto_load_libs=False)
    for name, address, resolver in macho_exports(loader.main_object):
        yield Export(name.removeprefix("_"), "", resolver, address)
