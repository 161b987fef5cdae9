"""The global offset table of a file, and the address from which code counts offsets into it."""

from typing import Any

NAMES = (".got", ".toc", "__got", "__la_symbol")  # beginnings of the names of sections
BIAS = {"MIPS": 0x7FF0, "PPC": 0x8000}  # how far the register points behind the beginning


def offset_tables(image: Any) -> list[tuple[int, int]]:
    """Return (start, end) of each part of a file's global offset table."""
    found = [(s.vaddr, s.vaddr + s.memsize) for s in image.sections if s.name.startswith(NAMES)]
    if not len(image.sections) and image.arch.name.startswith("MIPS"):
        said = getattr(image, "_dynamic", {})  # without section headers
        names = "DT_MIPS_LOCAL_GOTNO", "DT_MIPS_SYMTABNO", "DT_MIPS_GOTSYM"
        local, symbols, first = (said.get(name, 0) for name in names)
        if start := _dynamic_table(image):
            found.append((start, start + image.arch.bytes * (local + symbols - first)))
    return found


def table_base(image: Any) -> int:
    """Return the address from which offsets into the table count; without a table, nearly 0.

    It is in $gp on MIPS, in r2 on 64-bit PowerPC.
    """
    family = next((name for name in BIAS if image.arch.name.startswith(name)), "")
    return _begin(image) + BIAS.get(family, 0)


def _begin(image: Any) -> int:
    starts = {section.name: section.vaddr for section in image.sections if section.memsize}
    if ".got" in starts:
        return starts[".got"]
    if image.arch.name.startswith("MIPS") and not starts:
        return _dynamic_table(image)
    if image.arch.name == "PPC64" and getattr(image, "is_relocatable", False):
        # An object file has no such table yet: its own part of it counts, or what comes first.
        mapped = [s.vaddr for s in image.sections if s.occupies_memory and s.memsize]
        return starts.get(".toc", min(mapped))
    return 0


def _dynamic_table(image: Any) -> int:
    """Return where the table begins according to the dynamic section, 0 if it does not say."""
    address = getattr(image, "_dynamic", {}).get("DT_PLTGOT", 0)
    return address + image.mapped_base - image.linked_base if address else 0
