"""Recognise a file's kind before angr reads it: refuse what is not a program, choose a slice.

>>> processors(b"\\x7fELF" + b"\\2\\1" + bytes(12) + b"\\x3e\\0")
['x86_64']
"""

import re
import struct
from collections.abc import Iterator

import pefile

from utils import UserError

UNPACK_FIRST = {  # first bytes of a file -> what it is
    b"!<thin>\n": "a thin archive: compare the object files that it names",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"\xfd7zXZ\0": "compressed with xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first",
    b"BZh": "compressed with bzip2: unpack it first",
    b"PK\3\4": "a zip archive: unpack it first",
    b"BC\xc0\xde": "LLVM bitcode, not machine code: compile it first",
    b"\xde\xc0\x17\x0b": "LLVM bitcode, not machine code: compile it first",
    b"\0asm": "WebAssembly, which angr does not read",
    b"dex\n": "Android bytecode, which angr does not read",
    **dict.fromkeys(
        (b"VZ\x4c\1", b"VZ\x64\x86", b"VZ\x64\xaa"),
        "a TE image of EFI firmware, which angr does not read: compare its PE file",
    ),
}
# Images of file systems and other archives: (offset, magic) -> what it is, and how it is unpacked.
SQUASHFS = "a squashfs image: unpack it first (unsquashfs)"
IMAGES = {
    (0, b"hsqs"): SQUASHFS,
    (0, b"sqsh"): SQUASHFS,
    (0x8001, b"CD001"): "an ISO image: unpack it first (bsdtar -xf)",
    (0x438, b"\x53\xef\1\0"): "an ext4 image: unpack it first (debugfs -R 'rdump / DIR')",
    (0, b"\x45\x3d\xcd\x28"): "a cramfs image: unpack it first (fsck.cramfs --extract)",
    (0, b"UBI#"): "a UBI image: unpack it first (ubireader_extract_files)",
    (0, b"\xed\xab\xee\xdb"): "an RPM package: unpack it first (rpm2archive, or bsdtar -xf)",
    (0, b"070701"): "a cpio archive: unpack it first (cpio -id)",
    (0, b"7z\xbc\xaf\x27\x1c"): "a 7z archive: unpack it first (7z x)",
    (0, b"Rar!\x1a\x07"): "a RAR archive: unpack it first (unrar x)",
    (0, b"MSCF"): "a cabinet: unpack it first (cabextract)",
    (0x28, b"_FVH"): "a firmware volume: unpack it first (uefi-firmware-parser -e)",
    # An ELF program that mounts the image after it.
    (8, b"AI\2"): "an AppImage: unpack it first (unsquashfs -offset)",
}
IMAGE_HEADER = 0x8006  # bytes that tell an image
PACKER = re.compile(rb"UPX!|UPX0\0")
PACKER_WITHIN = 1024  # bytes from the beginning that may contain the packer's mark
ARCHIVE, ELF = b"!<arch>\n", b"\x7fELF"
# Mach-O files with several slices: first bytes -> layout of a slice's entry.
UNIVERSAL = {b"\xca\xfe\xba\xbe": ">5I", b"\xca\xfe\xba\xbf": ">2I2Q2I"}
MANY_SLICES = 32  # Java classes have the same first bytes, then a version, which is at least 45
OLDEST_JAVA = 45
SHF_EXECINSTR, SHT_NOBITS = 4, 8
ELF_HEADER = 52  # bytes of the shorter one, of 32-bit files
ET_REL, ET_CORE = 1, 4
EM_MIPS, EM_ARM, EM_X86_64, EM_AARCH64 = 8, 40, 62, 183
EF_MIPS_ABI2, EF_ARM_BE8 = 0x20, 0x800000
CLR_DIRECTORY, CLR_IL_ONLY = 14, 1  # in PE files with bytecode of .NET
PT_LOAD, LC_SEGMENT, LC_SEGMENT_64 = 1, 1, 0x19
MACHO = (b"\xcf\xfa\xed\xfe", b"\xfe\xed\xfa\xcf", b"\xce\xfa\xed\xfe", b"\xfe\xed\xfa\xce")
OF_MACHO = {
    **{7: "i386", 0x01000007: "x86_64", 12: "arm", 0x0100000C: "aarch64"},
    **{18: "powerpc", 0x01000012: "powerpc64"},
}
BEGINNINGS = (ELF, b"MZ", *MACHO, *UNIVERSAL)  # of ELF, PE and Mach-O files
# Mach-O's processors and subtypes that stand beside others of one kind -> Apple's names.
VARIANTS = {(0x01000007, 8): "x86_64h", (0x0100000C, 2): "arm64e"}
VARIANTS |= {(12, 9): "armv7", (12, 11): "armv7s", (12, 12): "armv7k"}
SUBTYPE = 0xFFFFFF  # the byte above contains flags
LC_ENCRYPTION = (0x21, 0x2C)  # of 32 and 64 bits
NOT_A_PROGRAM = {  # type of a Mach-O file -> what it is
    1: "is a Mach-O object file, which angr does not read: link it",
    4: "is a core dump: compare the programs themselves",
    10: "contains debug information, but not the code: compare the programs themselves",
    11: "is a kernel extension of macOS, which angr does not read",
    12: "is a collection of macOS kernel extensions, which angr does not read",
}
FAR = 1 << 12  # PE headers begin before this offset; in programs for DOS the field is any number
COFF_SYMBOL = 18  # bytes of an entry in a PE file's table of symbols
OF_PE = {0x14C: "i386", 0x8664: "x86_64", 0xAA64: "aarch64", 0x1C0: "arm", 0x1C4: "arm"}
OF_ELF = {  # machine -> LLVM's names: 32 bits (little-endian, big-endian), then 64 bits
    3: ("i386", "", "", ""),
    62: ("", "", "x86_64", ""),
    40: ("arm", "armeb", "", ""),
    183: ("", "", "aarch64", "aarch64_be"),
    8: ("mipsel", "mips", "mips64el", "mips64"),
    20: ("", "powerpc", "", ""),
    21: ("", "", "powerpc64le", "powerpc64"),
    243: ("", "", "riscv64", ""),
    22: ("", "", "", "s390x"),
}
ALIASES = {"arm64": "aarch64", "amd64": "x86_64", "x86-64": "x86_64", "x86": "i386", "i686": "i386"}


def slices(content: bytes) -> dict[str, tuple[int, int]]:
    """Return processor -> (offset, size) of the slices of a universal file; else {}.

    Of two slices for one kind of processor, the second has Apple's name of its variant (arm64e).
    """
    form = UNIVERSAL.get(content[:4])
    if form is None or len(content) < 8:
        return {}
    (count,) = struct.unpack_from(">I", content, 4)
    size = struct.calcsize(form)
    if not 0 < count < MANY_SLICES or len(content) < 8 + count * size:
        return {}
    found: dict[str, tuple[int, int]] = {}
    for i in range(count):
        kind, variant, offset, length, *_ = struct.unpack_from(form, content, 8 + i * size)
        variant &= SUBTYPE
        name = OF_MACHO.get(kind, f"processor {kind:#x}")
        if name in found:
            name = VARIANTS.get((kind, variant), f"{name} variant {variant}")
        found.setdefault(name, (offset, length))
    return found


def processors(content: bytes) -> list[str]:
    """Return the names of the processors that a file has code for; [] if unknown."""
    if content[:4] == ELF and len(content) >= 20:
        order = ">" if content[5] == 2 else "<"
        (machine,) = struct.unpack_from(f"{order}H", content, 18)
        name = OF_ELF.get(machine, ("",) * 4)[2 * (content[4] == 2) + (order == ">")]
        return [name] if name else []
    if content[:4] in MACHO and len(content) >= 8:
        order = "<" if content[3] == 0xFE else ">"
        name = OF_MACHO.get(struct.unpack_from(f"{order}I", content, 4)[0], "")
        return [name] if name else []
    if content[:2] == b"MZ" and len(content) >= 64:
        (place,) = struct.unpack_from("<I", content, 60)
        if content[place : place + 4] == b"PE\0\0" and len(content) >= place + 6:
            name = OF_PE.get(struct.unpack_from("<H", content, place + 4)[0], "")
            return [name] if name else []
    return list(slices(content))


def image(beginning: bytes) -> str:
    """Return what image or archive begins so, and how it is unpacked; "" if it is none of those."""
    found = (what for (at, magic), what in IMAGES.items() if beginning.startswith(magic, at))
    return next(found, "")


def refuse(path: object, content: bytes) -> None:
    """Refuse a file that is not a single program, and say why and what to do.

    Raises
    ------
    UserError
    """
    if not content:
        raise UserError(f"{path} is empty")
    for magic, what in UNPACK_FIRST.items():
        if content.startswith(magic):
            raise UserError(f"{path} is {what}")
    if what := image(content[:IMAGE_HEADER]):
        raise UserError(f"{path} is {what}")
    if content[:4] in UNIVERSAL and int.from_bytes(content[6:8], "big") >= OLDEST_JAVA:
        raise UserError(f"{path} is a Java class: bytecode, which angr does not read")
    if content.startswith(ARCHIVE):
        raise UserError(f"{path} is a static archive: unpack it (ar x) and use its files")
    if parts := slices(content):
        raise UserError(
            f"{path} is a universal file for {' and '.join(parts)}: choose one with --arch"
        )
    if PACKER.search(content[:PACKER_WITHIN]):
        raise UserError(f"{path} is packed with UPX: unpack it first (upx -d)")
    if reason := cut_off(content):  # loaders take parts of a file for all of it
        raise UserError(f"{path} cannot be loaded: {reason}")
    if content[:4] == ELF and (what := _no_code_of_elf(content)):
        raise UserError(f"{path} {what}")
    if content[:4] in MACHO and (what := _no_code_of_macho(content)):
        raise UserError(f"{path} {what}")
    if content[:2] == b"MZ" and _is_bytecode_of_net(content):
        raise UserError(f"{path} is a .NET assembly: bytecode, which angr does not read")


def _no_code_of_elf(content: bytes) -> str:
    """Return why an ELF file cannot be compared, as the end of a sentence; "" if it can."""
    order, wide = _layout_of_elf(content)
    kind, machine = struct.unpack_from(f"{order}2H", content, 16)
    (flags,) = struct.unpack_from(f"{order}I", content, 48 if wide else 36)
    if kind == ET_CORE:
        return "is a core dump: compare the programs themselves"
    # angr would take the first two for i386 and 32-bit MIPS; it reads only the older form of ARM's.
    if machine == EM_X86_64 and not wide:
        return "is for x32 (x86-64 with 32-bit addresses), which angr does not read"
    if machine == EM_MIPS and not wide and flags & EF_MIPS_ABI2:
        return "is for MIPS n32 (64-bit code with 32-bit addresses), which angr does not read"
    if machine == EM_ARM and flags & EF_ARM_BE8:
        return "is for big-endian ARM with little-endian code (BE8), which angr does not read"
    if machine == EM_AARCH64 and order == ">":
        return "is for big-endian AArch64, which angr does not read"
    code, names = _code_and_names(content)
    if code == {SHT_NOBITS}:
        return "contains debug information, but not the code: compare the programs themselves"
    if kind == ET_REL and not code and b"\0.gnu.lto_" in names:
        return (
            "contains GCC's intermediate code, but no machine code: "
            "link it, or compile it with -ffat-lto-objects"
        )
    return ""


def _code_and_names(content: bytes) -> tuple[set[int], bytes]:
    """Return the types of the sections that hold code, and the names of all sections."""
    order, wide = _layout_of_elf(content)
    (place,) = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", content, 40 if wide else 32)
    size, count, names = struct.unpack_from(f"{order}3H", content, 58 if wide else 46)
    layout = f"{order}4xI{'QQQQ' if wide else 'IIII'}"  # type, flags, address, offset, size
    if not place or size < struct.calcsize(layout):
        return set(), b""
    rows = [struct.unpack_from(layout, content, place + i * size) for i in range(count)]
    begin, length = rows[names][3:] if names < count else (0, 0)
    code = {kind for kind, flags, _, _, size in rows if flags & SHF_EXECINSTR and size}
    return code, content[begin : begin + length]


def _is_bytecode_of_net(content: bytes) -> bool:
    """Whether a PE file contains bytecode of .NET only, so that its one jump is no program."""
    try:
        pe = pefile.PE(data=content, fast_load=True)
        clr = pe.OPTIONAL_HEADER.DATA_DIRECTORY[CLR_DIRECTORY]
        return bool(
            clr.VirtualAddress and pe.get_dword_at_rva(clr.VirtualAddress + 16) & CLR_IL_ONLY
        )
    except (pefile.PEFormatError, IndexError, TypeError):  # angr will say what is broken
        return False


def cut_off(content: bytes) -> str:
    """Return how an ELF, PE or Mach-O file is shorter than its headers say, as a reason; else "".

    >>> cut_off(b"\\x7fELF\\2\\1" + bytes(14))
    'it is cut off: it has 20 bytes, its headers speak of 64'
    """
    try:
        size = _size_by_headers(content)
    except struct.error:  # within the headers
        return f"it is cut off: it has {len(content):,} bytes, not even whole headers"
    if size <= len(content):
        return ""
    return f"it is cut off: it has {len(content):,} bytes, its headers speak of {size:,}"


def _size_by_headers(content: bytes) -> int:
    """Return how many bytes the headers speak of, at least; 0 for other kinds of file."""
    if content[:4] == ELF:
        return _size_of_elf(content) if len(content) >= 6 else ELF_HEADER
    if content[:2] == b"MZ":
        (place,) = struct.unpack_from("<I", content, 60)
        if place > FAR or content[place : place + 4] not in (b"PE\0\0", b""):
            return 0  # a program for DOS
        _, sections, symbols, count, optional = struct.unpack_from("<2H4x2IH", content, place + 4)
        table = place + 24 + optional
        rows = [struct.unpack_from("<2I", content, table + 40 * i + 16) for i in range(sections)]
        rows.append((symbols, COFF_SYMBOL * count))
        return max([table, *(sum(row) for row in rows if all(row))])
    if content[:4] in MACHO:
        return _size_of_macho(content)
    return 0


def _layout_of_elf(content: bytes) -> tuple[str, bool]:
    """Return the byte order, for struct, and whether addresses have 64 bits."""
    return ">" if content[5] == 2 else "<", content[4] == 2


def _size_of_elf(content: bytes) -> int:
    order, wide = _layout_of_elf(content)
    header = 64 if wide else ELF_HEADER
    if len(content) < header:
        return header
    places = struct.unpack_from(f"{order}2{'Q' if wide else 'I'}", content, 32 if wide else 28)
    sizes = struct.unpack_from(f"{order}4H", content, header - 10)
    ends = [start + sizes[2 * i] * sizes[2 * i + 1] for i, start in enumerate(places)]
    if not places[1]:  # no section headers, which are mostly at the end: what is loaded must do
        layout = "I4xQ16xQ" if wide else "2I8xI"
        for i in range(sizes[1]):
            kind, *part = struct.unpack_from(order + layout, content, places[0] + i * sizes[0])
            ends.append(sum(part) if kind == PT_LOAD else 0)
    return max(header, *ends)


def _size_of_macho(content: bytes) -> int:
    order, wide = _layout_of_macho(content)
    place = 32 if wide else 28
    ends = [place + struct.unpack_from(f"{order}I", content, 20)[0]]
    for kind, at in _load_commands(content):
        if kind == (LC_SEGMENT_64 if wide else LC_SEGMENT):
            layout = f"{order}2{'Q' if wide else 'I'}"
            ends.append(sum(struct.unpack_from(layout, content, at + (40 if wide else 32))))
    return max(ends)


def _layout_of_macho(content: bytes) -> tuple[str, bool]:
    """Return the byte order, for struct, and whether addresses have 64 bits."""
    return "<" if content[3] == 0xFE else ">", 0xCF in (content[0], content[3])


def _load_commands(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield (kind, offset) of each load command of a Mach-O file."""
    order, wide = _layout_of_macho(content)
    count, size = struct.unpack_from(f"{order}2I", content, 16)
    place = begin = 32 if wide else 28
    for _ in range(count):
        if place >= begin + size:
            break
        kind, length = struct.unpack_from(f"{order}2I", content, place)
        yield kind, place
        place += max(length, 8)


def _no_code_of_macho(content: bytes) -> str:
    """Return why a Mach-O file cannot be compared, as the end of a sentence; "" if it can."""
    order, _ = _layout_of_macho(content)
    for kind, at in _load_commands(content):
        if kind in LC_ENCRYPTION and struct.unpack_from(f"{order}I", content, at + 16)[0]:
            return "is encrypted (FairPlay): decrypt it first"
    return NOT_A_PROGRAM.get(struct.unpack_from(f"{order}I", content, 12)[0], "")


def choose_slice(path: object, content: bytes, arch: str | None, other: list[str]) -> str:
    """Choose the slice of a universal file that is compared, and return its processor.

    Parameters
    ----------
    arch : str, optional
        The processor that the user asked for.
    other : list of str
        Processors of the other file.

    Raises
    ------
    UserError
        There is no such slice, or several are possible.
    """
    names = list(slices(content))
    wanted = ALIASES.get(arch, arch) if arch else None
    if wanted is not None and wanted not in names:
        raise UserError(f"{path} has no slice for {arch}; it has {', '.join(names)}")
    fitting = [wanted] if wanted else [name for name in names if name in other] or names
    if len(fitting) > 1:
        raise UserError(f"{path} is for {' and '.join(fitting)}: choose one with --arch")
    if (end := sum(slices(content)[fitting[0]])) > len(content):
        size = f"it has {len(content):,} bytes, its headers speak of {end:,}"
        raise UserError(f"{path} cannot be loaded: it is cut off: {size}")
    return fitting[0]
