"""Ground truth of the benches: symbol tables and debug information (DWARF) of unstripped builds.

Only the bench reads these; diff.py gets stripped copies.
"""

import dataclasses
import functools
import json
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from elftools.dwarf.die import DIE
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import Symbol

import utils
from binary.analysis import Analysis
from binary.symbols import STARTUP

PIE_BASE = 0x400000  # where angr maps position-independent executables
# Copies specialised by the compiler count as the function; parts split off do not.
COPY = re.compile(r"\.(isra|constprop)\.\d+")


@dataclasses.dataclass
class Truth:
    """The symbols and debug information of one build.

    Attributes
    ----------
    name : dict of int to str
        Address -> name of the source function. Names that occur twice, parts that the compiler
        splits off (foo.part.0, foo.cold) and the C runtime's start-up code are left out.
    end : dict of int to int
        Address -> end of the function.
    line : list of (int, str, int)
        Address, file, line; sorted by address; line 0 ends a sequence.
    start : list of (str, int, str)
        File, line, name of each function's declaration.
    """

    name: dict[int, str]
    end: dict[int, int]
    line: list[tuple[int, str, int]]
    start: list[tuple[str, int, str]]


def stripped_copy(binary: Path, copy: Path) -> Path:
    """Make a copy without symbols and debug information if it is missing; return its path."""
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["strip", "--strip-all", "-o", str(copy), str(binary)], check=True)
    return copy


def read_truth(binary: Path, cache: Path) -> Truth:
    """Read a build's symbols and debug information; ``cache`` is a folder."""
    file = cache / f"{utils.sha256_of(binary)}.json"
    if not file.exists():
        with binary.open("rb") as stream:
            elf = ELFFile(stream)
            base = PIE_BASE if elf.header.e_type == "ET_DYN" else 0
            found = {"symbols": _symbols(elf, base), **_debug(elf, base)}
        utils.write_json(file, found)
    found = json.loads(file.read_text())
    names: dict[int, str] = {}
    ends = {}
    for address, size, name in found["symbols"]:
        names[address] = COPY.sub("", name)
        ends[address] = address + size
    times = Counter(names.values())
    return Truth(
        name={
            a: n for a, n in names.items() if times[n] == 1 and "." not in n and n not in STARTUP
        },
        end=ends,
        line=[tuple(entry) for entry in found["line"]],
        start=[tuple(entry) for entry in found["start"]],
    )


def function_symbols(elf: ELFFile, *tables: str) -> list[Symbol]:
    """Return the symbols of functions that the file contains, from ".symtab" or ".dynsym"."""
    sections = [elf.get_section_by_name(table) for table in tables]
    return [
        symbol
        for section in sections
        for symbol in (section.iter_symbols() if section else ())
        if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_shndx"] != "SHN_UNDEF"
    ]


def _symbols(elf: ELFFile, base: int) -> list[tuple[int, int, str]]:
    return sorted(
        {
            symbol["st_value"] + base: (symbol["st_value"] + base, symbol["st_size"], symbol.name)
            for symbol in function_symbols(elf, ".symtab")
            if symbol["st_size"]
        }.values()
    )


def _debug(elf: ELFFile, base: int) -> dict[str, list]:
    lines, starts = [], []
    if not elf.has_dwarf_info():
        return {"line": lines, "start": starts}
    dwarf = elf.get_dwarf_info()
    for unit in dwarf.iter_CUs():
        program = dwarf.line_program_for_CU(unit)
        if program is None:
            continue
        files = _files(unit)
        for entry in program.get_entries():
            if (state := entry.state) is not None:
                line = 0 if state.end_sequence else state.line
                lines.append((state.address + base, files.get(state.file, ""), line))
        for die in unit.get_top_DIE().iter_children():
            where = die.attributes
            if die.tag == "DW_TAG_subprogram" and {"DW_AT_decl_line", "DW_AT_name"} <= where.keys():
                name = where["DW_AT_name"].value.decode("utf-8", "replace")
                file = files[where["DW_AT_decl_file"].value]
                starts.append((file, where["DW_AT_decl_line"].value, name))
    return {"line": sorted(lines), "start": sorted(set(starts))}


def definitions(elf: ELFFile) -> dict[int, set[tuple[str, str, int]]]:
    """Return address -> name, file and line of the source functions whose code begins there.

    Copies and parts that the compiler made have those of the function they were made from. If the
    linker has folded equal functions, several begin at one address. Names are as in symbols.
    """
    found: dict[int, set[tuple[str, str, int]]] = defaultdict(set)
    if not elf.has_dwarf_info():
        return found
    files = functools.cache(_files)
    for unit in elf.get_dwarf_info().iter_CUs():
        for die in _subprograms(unit.get_top_DIE()):
            address = _begin(die)
            if address is None:
                continue
            name = file = line = None
            for source in _origins(die):
                where = source.attributes
                for key in ("DW_AT_linkage_name", "DW_AT_MIPS_linkage_name", "DW_AT_name"):
                    name = name or (key in where and where[key].value.decode("utf-8", "replace"))
                if file is None and {"DW_AT_decl_file", "DW_AT_decl_line"} <= where.keys():
                    file = files(source.cu)[where["DW_AT_decl_file"].value]
                    line = where["DW_AT_decl_line"].value
            if name and file is not None:
                found[address].add((name, file, line))
    return found


def _files(unit) -> dict[int, str]:
    """Return number -> name of the source files of a unit."""
    header = unit.dwarfinfo.line_program_for_CU(unit).header
    first = 0 if header.version >= 5 else 1
    names = (entry.name.decode("utf-8", "replace") for entry in header.file_entry)
    return {first + number: Path(name).name for number, name in enumerate(names)}


def _subprograms(die: DIE) -> Iterator[DIE]:
    for child in die.iter_children():
        if child.tag == "DW_TAG_subprogram":
            yield child
        elif child.tag in ("DW_TAG_namespace", "DW_TAG_class_type", "DW_TAG_structure_type"):
            yield from _subprograms(child)


def _begin(die: DIE) -> int | None:
    """Return where a function's code begins; None if it has none of its own."""
    for key in ("DW_AT_low_pc", "DW_AT_entry_pc"):
        if (low := die.attributes.get(key)) and low.value:
            return low.value
    if "DW_AT_ranges" not in die.attributes:
        return None
    ranges = die.dwarfinfo.range_lists()
    parts = ranges.get_range_list_at_offset(die.attributes["DW_AT_ranges"].value, die.cu)
    base = die.cu.get_top_DIE().attributes.get("DW_AT_low_pc")
    for part in parts:
        if hasattr(part, "begin_offset"):  # the first is where it is entered
            absolute = getattr(part, "is_absolute", False)
            return part.begin_offset + (0 if absolute or base is None else base.value)
    return None


def _origins(die: DIE) -> Iterator[DIE]:
    """Yield a function's entry, and those that it completes or was made from."""
    yield die
    for key in ("DW_AT_abstract_origin", "DW_AT_specification"):
        if key in die.attributes:
            yield from _origins(die.get_DIE_from_attribute(key))


def block_counts(truth: Truth, analysis: Analysis) -> dict[int, int]:
    """Return the number of the analysis's blocks in each named function."""
    address = np.sort(analysis.address[: analysis.code_blocks].astype(np.int64))
    return {
        a: int(np.searchsorted(address, truth.end[a]) - np.searchsorted(address, a))
        for a in truth.name
    }


def block_lines(truth: Truth, analysis: Analysis, relative: bool) -> list[set[tuple[str, int]]]:
    """Return the source lines of each code block.

    Parameters
    ----------
    relative : bool
        Identify a line by its function and its distance from the function's first line instead of
        file and number, which differ between versions.

    Returns
    -------
    list of set of (str, int)
    """
    address = analysis.address[: analysis.code_blocks].astype(np.int64)
    ends = np.append(np.sort(address)[1:], np.iinfo(np.int64).max)
    end = ends[np.searchsorted(np.sort(address), address)]
    where = np.array([a for a, _, _ in truth.line], np.int64)
    starts = defaultdict(list)
    for file, line, name in truth.start:
        starts[file].append((line, name))

    def key(file: str, line: int) -> tuple[str, int] | None:
        if not relative:
            return file, line
        before = [start for start in starts[file] if start[0] <= line]
        return (before[-1][1], line - before[-1][0]) if before else None

    keys = {(f, n): key(f, n) for _, f, n in set(truth.line) if n}
    found = []
    for a, b in zip(address.tolist(), end.tolist(), strict=True):
        low = max(0, np.searchsorted(where, a, side="right") - 1)
        low = int(np.searchsorted(where, where[low])) if len(where) else 0
        high = int(np.searchsorted(where, b))
        lines = {keys.get(entry[1:]) for entry in truth.line[low:high] if entry[2]}
        found.append(lines - {None})
    return found
