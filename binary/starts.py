"""Read where functions begin and end from tables in the file that survive stripping.

Symbols that `strip` removes are ignored, so that a stripped copy gives the same analysis as the
original. Object files and kernel modules keep the symbol table that linking needs; it is read.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pefile
from elftools.common.exceptions import DWARFError, ELFError
from elftools.construct.core import ConstructError
from elftools.dwarf.callframe import FDE, CallFrameInfo
from elftools.dwarf.structs import DWARFStructs
from elftools.elf.elffile import ELFFile

from binary.analysis import SOURCES

# What the readers raise on a broken table; its earlier entries and the other tables still count.
BROKEN = (
    *(ELFError, DWARFError, ConstructError, struct.error, zlib.error),
    *(ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError, OverflowError),
)
GO_NAME = 256  # maximum number of bytes of a name that are read
DW_CFA_NOP = 0x00
# Instructions that advance the location: set_loc, advance_loc1, 2, 4, MIPS_advance_loc8.
ADVANCES = {0x01, 0x02, 0x03, 0x04, 0x1D, *range(0x40, 0x80)}
ARRAYS = ("INIT_ARRAY", "FINI_ARRAY", "PREINIT_ARRAY")
COMPRESSED_PAGE = 3  # kind of a page in Mach-O's table for unwinding
# Sections that contain only stubs of imports.
STUBS = (".plt", ".iplt", ".glink", ".MIPS.stubs", "__stubs", "__auth_stubs", "__stub_helper")
UNWIND_CHAINED = 4  # flag of UNWIND_INFO on x64: this is a part, its function has another entry
FRAGMENT = 2  # marks packed unwind data of a part, on AArch64
GO_MAGIC = re.compile(
    rb"(?:[\xf0\xf1\xfa\xfb]\xff\xff\xff|\xff\xff\xff[\xf0\xf1\xfa\xfb])\0\0[\1\2\4][\4\x08]"
)


Found = tuple[int, int, str]  # start, end or 0, source


REGULAR, KIND, ELSEWHERE, RESOLVED = 0, 3, 8, 16  # flags of Mach-O's exports


class Start(NamedTuple):
    """The start of a function; addresses are those where angr maps the file.

    Attributes
    ----------
    address : int
        Odd for Thumb code, as in angr.
    end : int
        Address after the function's last byte; 0 if the file does not say.
    source : int
        Index into `binary.analysis.SOURCES`.
    """

    address: int
    end: int
    source: int


def read_starts(project: Any, content: bytes) -> list[Start]:
    """Return all function starts that the file names, sorted, one for each address.

    Addresses that are not mapped as executable are left out. If two ranges overlap, the end of the
    later one is dropped.

    Parameters
    ----------
    project : angr.Project
    content : bytes
        The content of the file that ``project`` has loaded.
    """
    import cle

    binary = project.loader.main_object
    shift = binary.mapped_base - binary.linked_base  # tables hold the linker's addresses
    found: dict[int, Start] = {}

    def note(starts: Iterable[Found], shift: int = 0) -> None:
        try:
            for address, end, source in starts:
                start = Start(address + shift, end and end + shift, SOURCES.index(source))
                if is_code(binary, start.address):
                    known = found.get(start.address, start)
                    best = min(known, start, key=lambda s: s.source)
                    found[start.address] = best._replace(end=best.end or known.end or start.end)
        except BROKEN:
            pass  # the other tables still count

    if binary.entry != shift:  # equal if the file's entry point is 0: it has none
        note([(binary.entry, 0, "entry point")])
    if getattr(binary, "is_relocatable", False):
        note(_object_symbols(binary))
        return _without_overlaps(sorted(found.values()))
    if isinstance(binary, cle.ELF):
        elf = ELFFile(io.BytesIO(content))
        for read_elf in ELF_READERS:
            note(read_elf(elf), shift)
        note(_arrays(elf, project, shift))
    elif isinstance(binary, cle.PE):
        pe = pefile.PE(data=content, fast_load=True)
        note((s.rebased_addr, 0, "exported symbols") for s in binary.symbols if s.is_export)
        for read_pe in PE_READERS:
            note(read_pe(pe, project))
    elif isinstance(binary, cle.MachO):
        # All functions are listed, so each ends where the next one begins.
        begins = sorted(binary.lc_function_starts or [])
        ends = [*begins[1:], 0][: len(begins)]
        note(((a, b, "LC_FUNCTION_STARTS") for a, b in zip(begins, ends, strict=True)), shift)
        note((address, 0, "exported symbols") for _, address, _ in macho_exports(binary))
        note(_compact_unwinding(binary, project))
    note((f.address, f.end, "Go's pclntab") for f in go_functions(project))
    return _without_overlaps(sorted(found.values()))


def macho_exports(binary: Any) -> Iterator[tuple[str, int, bool]]:
    """Yield what a Mach-O file exports and has itself: name, address, whether that is a resolver's.

    The others are in another library.
    """
    for name, (flags, *places) in binary.exports_by_name.items():
        if flags & KIND == REGULAR and not flags & ELSEWHERE:
            # cle adds the base to the address of a function, but not to those of stub and resolver.
            shift = binary.mapped_base - (0 if flags & RESOLVED else binary.linked_base)
            yield name, places[-1] + shift, bool(flags & RESOLVED)


def is_code(binary: Any, address: int) -> bool:
    """Whether an address lies in a section of code; without sections, in an executable segment."""
    section = binary.find_section_containing(address & ~1)
    if section is not None:
        return section.is_executable and not section.name.startswith(STUBS)
    segment = binary.find_segment_containing(address & ~1)
    return segment is not None and segment.is_executable


def _without_overlaps(starts: list[Start]) -> list[Start]:
    kept, behind = [], 0
    for start in starts:
        kept.append(start._replace(end=start.end if start.address >= behind else 0))
        behind = max(behind, kept[-1].end)
    return kept


def _object_symbols(binary: Any) -> Iterator[Found]:
    for symbol in binary.symbols:
        if symbol.is_function and not symbol.is_import:
            address = symbol.rebased_addr
            end = (address & ~1) + symbol.size if symbol.size else 0
            yield address, end, "symbols of the object file"


def _frames(elf: ELFFile) -> Iterator[Found]:
    """Yield the ranges of the frame description entries.

    A part is entered when its function has already set up the frame. So the entry of a part, unlike
    that of a function, has unwinding rules for the first instruction.
    """
    place = _frame_table(elf)
    if place is None:
        return
    address, data = place
    size = elf.elfclass // 8
    structs = DWARFStructs(elf.little_endian, dwarf_format=32, address_size=size)
    table = CallFrameInfo(io.BytesIO(data), len(data), address, structs, for_eh_frame=True)
    for entry in table.get_entries():
        if isinstance(entry, FDE) and entry["address_range"]:
            start = entry["initial_location"] % (1 << elf.elfclass)
            first = entry.instructions[0].opcode if entry.instructions else DW_CFA_NOP
            is_part = first != DW_CFA_NOP and first not in ADVANCES
            yield start, start + entry["address_range"], "part" if is_part else ".eh_frame"


def _frame_table(elf: ELFFile) -> tuple[int, bytes] | None:
    """Return address and content of .eh_frame, found by its section or the segment of its index."""
    section = elf.get_section_by_name(".eh_frame")
    if section is not None:
        return section["sh_addr"], section.data()
    for segment in elf.iter_segments("PT_GNU_EH_FRAME"):
        # The index begins with a version, the encoding of the pointer, two bytes, and the pointer.
        version, encoding, _, _, distance = struct.unpack(f"{_order(elf)}4Bi", segment.data()[:8])
        if (version, encoding) == (1, 0x1B):  # relative to its own place, four bytes, signed
            address = segment["p_vaddr"] + 4 + distance
            return address, _rest_of_segment(elf, address)
    return None


def _rest_of_segment(elf: ELFFile, address: int) -> bytes:
    for segment in elf.iter_segments("PT_LOAD"):
        if 0 <= address - segment["p_vaddr"] < segment["p_filesz"]:
            return segment.data()[address - segment["p_vaddr"] :]
    return b""


def _order(elf: ELFFile) -> str:
    return "<" if elf.little_endian else ">"


def _exported(elf: ELFFile) -> Iterator[Found]:
    tables: list[Any] = [s for s in elf.iter_sections() if s["sh_type"] == "SHT_DYNSYM"]
    opd = elf.get_section_by_name(".opd")
    for table in tables or [*elf.iter_segments("PT_DYNAMIC")]:
        for symbol in table.iter_symbols():
            kind, address, size = symbol["st_info"]["type"], symbol["st_value"], symbol["st_size"]
            if kind not in ("STT_FUNC", "STT_LOOS") or symbol["st_shndx"] == "SHN_UNDEF":
                continue  # STT_LOOS is STT_GNU_IFUNC
            if opd is None or not 0 <= address - opd["sh_addr"] < opd["sh_size"]:
                yield address, (address & ~1) + size if size else 0, "exported symbols"


def _descriptors(elf: ELFFile) -> Iterator[Found]:
    """Yield the functions that the descriptors of PowerPC's first 64-bit ABI point to."""
    section = elf.get_section_by_name(".opd")
    if section is not None and elf["e_machine"] == "EM_PPC64":
        words = np.frombuffer(section.data(), f"{_order(elf)}u8")
        yield from ((int(address), 0, ".opd") for address in words[::3])


def _procedure_descriptors(elf: ELFFile) -> Iterator[Found]:
    """Yield the starts in MIPS's table for debuggers, which strip does not remove."""
    section = elf.get_section_by_name(".pdr")
    if section is not None:
        words = np.frombuffer(section.data(), f"{_order(elf)}u4")
        yield from ((int(address), 0, ".pdr") for address in words[::8])


def _exception_index(elf: ELFFile) -> Iterator[Found]:
    """Yield the starts in the index of the "Exception Handling ABI for the Arm Architecture".

    An entry has two words: the distance to the function, in 31 bits, and how to unwind. The second
    is 1 if the function cannot be unwound; linkers also write such entries at the end of sections.
    """
    for segment in elf.iter_segments("PT_ARM_EXIDX"):
        words = np.frombuffer(segment.data(), f"{_order(elf)}u4").astype(np.int64)
        distances, actions = words[::2], words[1::2]
        for i, (distance, action) in enumerate(zip(distances, actions, strict=True)):
            if action != 1:
                distance -= (distance & 0x40000000) << 1
                address = int(segment["p_vaddr"] + 8 * i + distance) & 0xFFFFFFFF
                thumb = is_thumb(_rest_of_segment(elf, address)[:16])
                yield address | thumb, 0, ".ARM.exidx"


def is_thumb(code: bytes) -> int:
    """Return 1 if this is probably Thumb code: most ARM instructions have condition "always"."""
    always = sum(byte >> 4 == 0xE for byte in code[3::4])
    return int(2 * always <= len(code) // 4)


def _dynamic(elf: ELFFile) -> Iterator[tuple[str, int]]:
    segments: Iterator[Any] = elf.iter_segments("PT_DYNAMIC")
    for segment in segments:
        for tag in segment.iter_tags():
            yield tag.entry.d_tag, tag.entry.d_val


def _init_and_fini(elf: ELFFile) -> Iterator[Found]:
    for tag, address in _dynamic(elf):
        if tag in ("DT_INIT", "DT_FINI"):
            yield address, 0, "init and fini arrays"


def _arrays(elf: ELFFile, project: Any, shift: int) -> Iterator[Found]:
    """Yield the functions, as mapped, in the arrays of what runs before and after main."""
    kinds = {f"SHT_{array}" for array in ARRAYS}
    places = {(s["sh_addr"], s["sh_size"]) for s in elf.iter_sections() if s["sh_type"] in kinds}
    tags = dict(_dynamic(elf))
    places |= {(tags.get(f"DT_{a}", 0), tags.get(f"DT_{a}SZ", 0)) for a in ARRAYS}
    size = elf.elfclass // 8
    for address, length in sorted(places):
        for place in range(address + shift, address + shift + length, size):
            yield project.loader.memory.unpack_word(place), 0, "init and fini arrays"


ELF_READERS = (
    *(_frames, _descriptors, _procedure_descriptors, _exported, _exception_index, _init_and_fini),
)


def _runtime_functions(pe: Any, project: Any) -> Iterator[Found]:
    """Yield the ranges in the exception directory.

    See "x64 exception handling" and "ARM64 exception handling" in Microsoft's documentation.
    """
    directory = pe.OPTIONAL_HEADER.DATA_DIRECTORY[3]
    base, memory = project.loader.main_object.mapped_base, project.loader.memory
    if not directory.Size:
        return
    table = memory.load(base + directory.VirtualAddress, directory.Size)
    if project.arch.name == "AMD64":
        for begin, end, unwind in struct.iter_unpack("<3I", table[: len(table) // 12 * 12]):
            chained = unwind & 1 or memory[base + unwind] >> 3 & UNWIND_CHAINED
            if begin:
                yield base + begin, base + end, "part" if chained else ".pdata"
    elif project.arch.name == "AARCH64":
        for begin, unwind in struct.iter_unpack("<2I", table[: len(table) // 8 * 8]):
            packed = unwind & 3
            length = unwind >> 2 & 0x7FF
            if not packed:
                length = struct.unpack("<I", memory.load(base + unwind, 4))[0] & 0x3FFFF
            if begin:
                end = base + begin + 4 * length
                yield base + begin, end, "part" if packed == FRAGMENT else ".pdata"
    else:
        for begin, _ in struct.iter_unpack("<2I", table[: len(table) // 8 * 8]):
            if begin:
                yield base + begin, 0, ".pdata"


def _callbacks(pe: Any, project: Any) -> Iterator[Found]:
    pe.parse_data_directories([pefile.DIRECTORY_ENTRY["IMAGE_DIRECTORY_ENTRY_TLS"]])
    tls = getattr(pe, "DIRECTORY_ENTRY_TLS", None)
    place = _as_mapped(project, tls.struct.AddressOfCallBacks) if tls else 0
    while place and (address := project.loader.memory.unpack_word(place)):
        yield address, 0, "TLS callbacks"
        place += project.arch.bytes


def _guarded(pe: Any, project: Any) -> Iterator[Found]:
    """Yield the functions that indirect calls may reach, if Microsoft's compiler lists them."""
    pe.parse_data_directories([pefile.DIRECTORY_ENTRY["IMAGE_DIRECTORY_ENTRY_LOAD_CONFIG"]])
    config: Any = getattr(pe, "DIRECTORY_ENTRY_LOAD_CONFIG", None)
    place = getattr(config.struct, "GuardCFFunctionTable", 0) if config else 0
    if place:
        step = 4 + (config.struct.GuardFlags >> 28)
        count = config.struct.GuardCFFunctionCount
        table = project.loader.memory.load(_as_mapped(project, place), step * count)
        base = project.loader.main_object.mapped_base
        for i in range(len(table) // step):
            address = base + struct.unpack_from("<I", table, step * i)[0]
            yield address, 0, "control flow guard"


def _as_mapped(project: Any, address: int) -> int:
    binary = project.loader.main_object
    return address - binary.linked_base + binary.mapped_base


PE_READERS = (_runtime_functions, _callbacks, _guarded)


def _compact_unwinding(binary: Any, project: Any) -> Iterator[Found]:
    """Yield the starts in Mach-O's table for unwinding; neighbours may share an entry.

    Its layout is that of Apple's mach-o/compact_unwind_encoding.h: an index of pages, each with
    the addresses of functions, or with 24-bit distances from the page's first function.
    """
    section = next((s for s in binary.sections if s.name == "__unwind_info"), None)
    if section is None:
        return
    data = project.loader.memory.load(section.vaddr, section.memsize)
    index, count = struct.unpack_from("<2I", data, 20)
    for i in range(count - 1):  # the last one is the end
        first, page, _ = struct.unpack_from("<3I", data, index + 12 * i)
        kind, entries, number = struct.unpack_from("<I2H", data, page)
        for entry in range(number):
            if kind == COMPRESSED_PAGE:
                (word,) = struct.unpack_from("<I", data, page + entries + 4 * entry)
                start = first + (word & 0xFFFFFF)
            else:
                (start,) = struct.unpack_from("<I", data, page + entries + 8 * entry)
            yield binary.mapped_base + start, 0, "__unwind_info"


class GoFunction(NamedTuple):
    """A function in Go's table: its range, as mapped, and its name."""

    address: int
    end: int
    name: str


def go_functions(project: Any) -> list[GoFunction]:
    """Return the functions in the table that every Go program contains; [] for other programs.

    The layouts are those of Go 1.2, 1.16, 1.18 and 1.20, see runtime/symtab.go and
    internal/abi/symtab.go.
    """
    binary = project.loader.main_object
    for start, backer in binary.memory.backers():
        for found in GO_MAGIC.finditer(bytes(backer)):
            try:
                functions = _go_table(project, binary.mapped_base + start + found.start(), found[0])
            except BROKEN:
                continue
            if functions:
                return functions
    return []


def _go_table(project: Any, place: int, header: bytes) -> list[GoFunction]:
    memory = project.loader.memory
    order, magic = ("<", header[0]) if header[0] != 0xFF else (">", header[3])
    size = header[7]
    word = "Q" if size == 8 else "I"

    def words(address: int, count: int, code: str = word) -> tuple[int, ...]:
        form = f"{order}{count}{code}"
        return struct.unpack(form, memory.load(address, struct.calcsize(form)))

    text, (count, *fields) = 0, words(place + 8, 8)
    if magic == 0xFB:  # Go 1.2: the functions follow the header
        names, table, code = place, place + 8 + size, word
        offsets = place
    else:
        if magic in (0xF0, 0xF1):
            text, *fields = fields[1:]
        else:
            fields = fields[1:]
        names, offsets = place + fields[0], place + fields[4]
        table, code = offsets, word if magic == 0xFA else "I"
    if magic in (0xF0, 0xF1) and not text:  # empty since Go 1.26
        sections = project.loader.main_object.sections
        text = next((s.vaddr for s in sections if "text" in s.name), 0)
        if not text:
            return []
    if not 0 < count < 1 << 22:
        return []
    entries = words(table, 2 * count + 1, code)
    starts, records = entries[::2], entries[1::2]
    named = 4 if magic in (0xF0, 0xF1) else size  # bytes before the name's offset in a record
    functions = []
    for start, end, record in zip(starts, starts[1:], records, strict=False):
        (name,) = words(offsets + record + named, 1, "i")
        functions.append(GoFunction(text + start, text + end, _text_at(memory, names + name)))
    return functions


def _text_at(memory: Any, address: int) -> str:
    return memory.load(address, GO_NAME).partition(b"\0")[0].decode("utf-8", "replace")
