"""The files of bench/world.py: where they come from, copies without symbols, and what they define.

What a file defines comes from its debug information if it has any: there a part that the compiler
split off (foo.part.0), a copy that it specialised, and functions that the linker folded into one
all have the names of their sources. Otherwise it comes from its symbols, of ELF, Mach-O and
PE (or its exports), and from the table of functions that Go programs contain.
"""

import functools
import io
import os
import re
import struct
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from elftools.elf.elffile import ELFFile
from shared import run
from truth import definitions, function_symbols

import utils
from binary.demangle import SHOWN, demangle
from binary.starts import GO_MAGIC
from binary.symbols import STARTUP
from experiment_data.build_coreutils import private_apt
from matching.packages.contents import load_contents, read_contents

SUMS = Path(__file__).resolve().with_name("world.sha256")
PYTHON = "310"  # the version of Python that the wheels are for
PLATFORMS = [f"manylinux{tag}" for tag in ("1", "2010", "2014", "_2_5", "_2_12", "_2_17", "_2_31")]
MACS = {"macos-arm64": "macosx_11_0_arm64", "macos-x86_64": "macosx_10_9_x86_64"}
DEBIAN = {"x86_64": "amd64", "aarch64": "arm64", "i686": "i386", "armv7l": "armhf"}
DEBIAN |= {"ppc64le": "ppc64el", "s390x": "s390x", "riscv64": "riscv64"}
PART = re.compile(r"\.(part|isra|constprop|lto_priv|localalias|llvm)(\.\d+)*")
ABSEIL = re.compile(r"\blts_\d{8}::|_lts_\d{8}$")  # its release, in an inline namespace
SUFFIX = re.compile(r"\b(\d+)u?l{0,2}\b")  # of a number: size_t is unsigned long or unsigned int
RUST_HASH = re.compile(r"::h[0-9a-f]{16}$")
ELF, MACHO = b"\x7fELF", b"\xcf\xfa\xed\xfe"  # 64 bits, little-endian
JUMP_THROUGH_SLOT = b"\xff\x25"  # on x86
LISTS = ("_CTOR_LIST__", "_DTOR_LIST__")  # which mingw's linker puts into .text
LC_SYMTAB, N_STAB, N_EXT, N_GSYM = 2, 0xE0, 1, 0x20  # of Mach-O, see <mach-o/nlist.h>


class File(NamedTuple):
    """A file in a package.

    Attributes
    ----------
    package : str
    version : str
        For Debian, the release.
    processor : str
        As wheels name it.
    member : str
        The beginning of the file's name, or the end of its path.
    source : str
        PyPI or Debian.
    """

    package: str
    version: str
    processor: str
    member: str
    source: str = "PyPI"

    @property
    def place(self) -> str:
        """A name for the file in a folder with others."""
        return "-".join(self[:4]).replace("/", "_")


def download(file: File, work: Path) -> Path:
    """Return the package; download it to ``work`` if it is missing.

    Raises
    ------
    utils.UserError
        It cannot be downloaded, or is not the file listed in bench/world.sha256.
    """
    folder = work / "packages" / f"{file.package}-{file.version}-{file.processor}"
    if not list(folder.glob("*")):
        folder.mkdir(parents=True, exist_ok=True)
        if file.source == "Debian":
            apt_download(file, folder)
        else:
            run(pip_download(file), folder)
    [package] = folder.iterdir()
    found = utils.sha256_of(package)
    known = sums().get(package.name)
    if known not in (None, found):
        raise utils.UserError(
            f"{package} has sha256 {found}, {SUMS.name} says {known}; delete it and run again"
        )
    if known is None:
        print(f"not in {SUMS.name}: {found}  {package.name}", file=sys.stderr)
    return package


@functools.cache
def sums() -> dict[str, str]:
    """Return package -> SHA-256."""
    return dict(line.split()[::-1] for line in SUMS.read_text().splitlines())


def pip_download(file: File) -> list[str]:
    """Return the command that downloads a wheel."""
    tags = [MACS[file.processor]] if file.processor in MACS else PLATFORMS
    tags = tags if file.processor in MACS else [f"{tag}_{file.processor}" for tag in tags]
    command = [*(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")]
    command += ["--only-binary=:all:", "--implementation=cp"]
    command += [f"--python-version={PYTHON}", f"--abi=cp{PYTHON}", "--abi=abi3"]
    return [*command, *(f"--platform={t}" for t in tags), f"{file.package}=={file.version}"]


def apt_download(file: File, folder: Path) -> None:
    """Download a package of a Debian release for any processor, into an empty folder.

    Raises
    ------
    utils.UserError
        There is no such package.
    """
    name = DEBIAN.get(file.processor, "amd64")
    options = [f"-oAPT::Architecture={name}", f"-oAPT::Architectures={name}"]
    with private_apt([file.version], folder.parent, "deb") as (apt, inside):
        said = apt("apt-get", *options, "update")
        said += apt("apt-get", *options, "download", file.package)
        found = sorted(Path(inside).glob("*.deb"))
        if not found:
            why = [line for line in said.splitlines() if line.startswith("E:")] or [
                "no such package"
            ]
            raise utils.UserError(f"cannot download {file.package}: {why[0]}")
        os.replace(found[0], folder / found[0].name)


def original(file: File, work: Path) -> Path:
    """Return the file as it is in its package."""
    place = work / "files" / file.place
    if not place.exists():
        package = download(file, work)
        with tempfile.TemporaryDirectory(dir=work) as folder:
            listing = os.path.join(folder, "listing.json")
            read_contents(str(package), folder, listing)
            programs = [m for m in load_contents(listing).members if m.path]
            for member in programs:
                name = member.name.rsplit("!", 1)[-1]
                if Path(name).name.startswith(file.member) or name.endswith(f"/{file.member}"):
                    with utils.atomic_file(place, "wb") as out:
                        out.write(Path(member.path).read_bytes())
                    return place
        raise utils.UserError(f"{package} contains no program {file.member}")
    return place


def stripped(file: File, work: Path) -> Path:
    """Return a copy of the file without symbols and debug information."""
    copy = work / "files" / f"{file.place}.stripped"
    if not copy.exists():
        with utils.atomic_file(copy, "wb") as out:
            out.write(strip(original(file, work).read_bytes()))
    return copy


def strip(content: bytes) -> bytes:
    """Remove the symbol table and debug information; exported and imported names stay.

    The `strip` of the machine cannot do this for other processors. PE files are left as they are.
    """
    if content.startswith(MACHO):
        return _strip_macho(content)
    if not content.startswith(ELF):
        return content
    elf = ELFFile(io.BytesIO(content))
    changed = bytearray(content)
    entry = elf["e_shentsize"]
    for number, section in enumerate(elf.iter_sections()):
        if section.name in (".symtab", ".strtab") or section.name.startswith((".debug", ".zdebug")):
            begin, size = section["sh_offset"], section["sh_size"]
            changed[begin : begin + size] = bytes(size)
            at = elf["e_shoff"] + number * entry
            changed[at : at + 8] = bytes(8)  # no name, SHT_NULL
    return bytes(changed)


def _strip_macho(content: bytes) -> bytes:
    """Turn local symbols into nameless entries for debuggers, so that others keep their numbers."""
    changed = bytearray(content)
    at, commands = 32, struct.unpack_from("<I", content, 16)[0]
    for _ in range(commands):
        kind, size = struct.unpack_from("<II", content, at)
        if kind == LC_SYMTAB:
            first, count, texts, _ = struct.unpack_from("<4I", content, at + 8)
            for entry in range(first, first + 16 * count, 16):
                name, what = struct.unpack_from("<IB", content, entry)
                if not what & (N_STAB | N_EXT):
                    end = content.index(b"\0", texts + name)
                    changed[texts + name : end] = bytes(end - texts - name)
                    struct.pack_into("<IBBHQ", changed, entry, 0, N_GSYM, 0, 0, 0)
        at += size
    return bytes(changed)


class Defined(NamedTuple):
    """What is at an address: the functions' names, and where their sources are if that is known."""

    names: frozenset[str]
    sources: frozenset[str]


def defined(file: Path) -> dict[int, Defined]:
    """Return address -> the functions that begin there, by debug information or by symbols."""
    content = file.read_bytes()
    if not content.startswith(ELF):
        found = {address: (set(names), set()) for address, names in _by_cle(file).items()}
    else:
        elf = ELFFile(io.BytesIO(content))
        thumb = ~1 if elf["e_machine"] == "EM_ARM" else ~0
        found = defaultdict(lambda: (set(), set()))
        for symbol in function_symbols(elf, ".symtab", ".dynsym"):
            if ".cold" not in symbol.name and symbol.name not in STARTUP:
                found[symbol["st_value"] & thumb][0].add(symbol.name)
        if not found or GO_MAGIC.search(content):  # Go's table also has what Go's symbols lack
            found = {a: (set(names), set()) for a, names in _by_cle(file).items()} or found
        for address, functions in definitions(elf).items():
            if address in found:  # else inlined everywhere, or left out by the linker
                found[address] = (
                    {name for name, _, _ in functions},
                    {f"{source}:{line}" for _, source, line in functions},
                )
    names = spelled({address: names for address, (names, _) in found.items()})
    return {a: Defined(frozenset(names[a]), frozenset(s)) for a, (_, s) in found.items()}


def _by_cle(file: Path) -> dict[int, set[str]]:
    """Return the names that PE's or Mach-O's symbols or the table of a Go program has.

    Of PE files, stubs of imports and the linker's lists of constructors are left out.
    """
    import angr
    import cle

    from binary.angr_gaps import fill_gaps, loadable
    from binary.starts import go_functions, is_code

    fill_gaps()
    project = angr.Project(loadable(str(file), file.read_bytes()), auto_load_libs=False)
    binary = project.loader.main_object
    found = defaultdict(set)
    for symbol in binary.symbols:
        address = symbol.rebased_addr
        if symbol.name and not symbol.is_import and is_code(binary, address):
            section = binary.find_section_containing(address)
            name = section.name if section else ""
            if isinstance(binary, cle.PE):
                is_stub = project.loader.memory.load(address, 2) == JUMP_THROUGH_SLOT
                if not is_stub and not symbol.name.endswith(LISTS):
                    found[address].add(_in_source(symbol, project.arch.name))
            elif not isinstance(binary, cle.MachO) or name == "__text":  # no constants
                found[address].add(symbol.name)
    for function in go_functions(project):
        found[function.address].add(function.name)
    return found


def _in_source(symbol: Any, architecture: str) -> str:
    """Return a name in PE's symbol table as in the source; on i386 it has a _ and maybe @8."""
    if symbol.is_export or architecture != "X86":
        return symbol.name
    return re.sub(r"@\d+$", "", symbol.name.removeprefix("_"))


def spelled(found: dict[int, set[str]]) -> dict[int, set[str]]:
    """Return the names demangled, without endings like .part.0, and as `source_name` has them."""
    flat = sorted(set().union(*found.values())) if found else []
    readable = dict(
        zip(flat, map(source_name, demangle([PART.sub("", n) for n in flat])), strict=True)
    )
    return {address: {readable[n] for n in inside} for address, inside in found.items()}


def source_name(name: str) -> str:
    """Return a name without parameters, Cython's numbers, Rust's hash, and Abseil's release.

    Nor has it its result, which the names of templates begin with, and suffixes of numbers: both
    may be ``size_t``, which has another type on 32-bit processors.

    >>> source_name("void std::vector<int, A<4ul> >::at<int>(unsigned long) const")
    'std::vector<int, A<4> >::at<int>'
    """
    name = SUFFIX.sub(r"\1", RUST_HASH.sub("", ABSEIL.sub("", name)))
    name = name.replace("(anonymous namespace)", "{anonymous}").replace("long long", "long")
    thunk = re.match(r"(non-)?virtual thunk to ", name)
    name = name[thunk.end() :] if thunk else name
    if re.search(r"\)( const| &&?)*( \[.*\])?$", name) or len(name) >= SHOWN:
        name = _without_parameters(name)
    name = re.sub(r"\d+", "", name) if name.startswith("__pyx") else name
    return f"thunk {name}" if thunk else name


def _without_parameters(name: str) -> str:
    """Return a demangled name of C++, which may be cut off, without parameters and result."""
    depth = 0
    if "operator" in name:  # which may contain brackets and spaces
        for at in range(name.rfind(")"), -1, -1):
            depth += (name[at] == ")") - (name[at] == "(")
            if not depth:
                return name[:at]
        return name
    start, end = 0, len(name)
    for at, character in enumerate(name):
        if character == " " and not depth and end == len(name):
            start = at + 1
        elif character in "<(":
            if character == "(" and not depth and not name[:at].endswith("decltype"):
                end = at
            depth += 1
        elif character in ">)" and name[at - 1 : at + 1] != "->":
            depth -= 1
            if not depth and name[at + 1 : at + 3] == "::":  # it was the function around this one
                end = len(name)
    return name[start:end]
