"""Functions that both files export by the same name are matched by it, and by no other symbol."""

import io
import itertools
import json
import shutil
import struct
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from zig import zig

import diff
from binary.exports import Export, read_exports
from matching.anchors import known_pairs, pairs_by_names

# Each setter stores at the place where its neighbour of the other version does: the code of
# set_1 of one is that of set_0 of the other. `local` is only in the symbol table.
SOURCE = """
struct parser {{ {fields} }};
#define SETTER(n) void set_##n(struct parser *p, void *f) {{ p->f##n = f; local(p); }}
static __attribute__((noinline)) void local(struct parser *p) {{ p->calls++; }}
{setters}
int same(int x) {{ return x * 3 + 1; }}
extern int alias(int) __attribute__((alias("same")));
static int chosen(int x) {{ return x ^ 77; }}
static void *choose(void) {{ return chosen; }}
int indirect(int) __attribute__((ifunc("choose")));
"""
SETTERS = 6


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """Two versions of a library with symbols, and stripped copies."""
    folder = tmp_path_factory.mktemp("exported")
    fields = [*(f"void *f{n};" for n in range(SETTERS)), "int calls;"]
    setters = "\n".join(f"SETTER({n})" for n in range(SETTERS))
    for version, first in (("old", ""), ("new", "void *added;")):
        source = SOURCE.format(fields=" ".join([first, *fields]), setters=setters)
        (folder / f"{version}.c").write_text(source)
        flags = ["-O1", "-shared", "-nostdlib", "-fPIC", folder / f"{version}.c"]
        zig("x86_64-linux-gnu", *flags, "-o", folder / version)
        zig("x86_64-linux-gnu", *flags, "-s", "-o", folder / f"{version}-stripped")
    return folder


def compared(folder, suffix="") -> dict:
    """Return the JSON of a comparison of the two versions, without the names that it shows."""
    out = folder / f"diff{suffix}.json"
    files = [str(folder / f"{version}{suffix}") for version in ("old", "new")]
    diff.main(*files, json=str(out), outputDir=str(folder / "output"), top=0)
    found = json.loads(out.read_text())
    for row in found["functions"]:
        for side in ("old", "new"):
            row[side] = row[side] and {key: row[side][key] for key in ("address", "blocks")}
    return {"functions": found["functions"], "blocks": found["blocks"]}


def test_exported_functions_are_matched_by_name_and_stripping_changes_nothing(libraries):
    found = compared(libraries, "-stripped")
    at = [
        {export.name: hex(export.address) for export in read_exports(libraries / f"{v}-stripped")}
        for v in ("old", "new")
    ]
    names = {*(f"set_{n}" for n in range(SETTERS)), "same", "alias", "indirect"}
    assert at[0].keys() == at[1].keys() == names
    sides = [(row["old"], row["new"]) for row in found["functions"] if row["old"] and row["new"]]
    pairs = {(one["address"], other["address"]) for one, other in sides}
    assert {(at[0][name], at[1][name]) for name in names} <= pairs
    assert compared(libraries) == found


def code(*addresses):
    """Return functions at these addresses."""
    entries = np.array(addresses, np.uint64)
    analysis = SimpleNamespace(function_address=entries)
    return SimpleNamespace(analysis=analysis, functions=len(addresses))


def exports(*said):
    """Return exports of "name" or "name@version", with "!" in front for a resolver."""
    found = []
    for text, address in said:
        name, _, version = text.removeprefix("!").partition("@")
        found.append(Export(name, version, text[0] == "!", address))
    return found


@pytest.mark.parametrize(
    ("old", "new", "pairs"),
    [
        ([("f", 1), ("g", 2)], [("g", 1), ("f", 2)], [(0, 1), (1, 0)]),
        ([("f", 1), ("old", 2)], [("f", 2), ("new", 1)], [(0, 1)]),
        # Several names of one function: one that is common is enough, unless they disagree.
        ([("f", 1), ("alias", 1)], [("alias", 2)], [(0, 1)]),
        ([("f", 1), ("alias", 1)], [("f", 1), ("alias", 1)], [(0, 0)]),
        ([("f", 1), ("g", 1), ("h", 2)], [("f", 1), ("g", 2), ("h", 3)], [(1, 2)]),
        ([("f", 1), ("g", 2), ("h", 3)], [("f", 1), ("g", 1), ("h", 3)], [(2, 2)]),
        # Versions: the same one, else the only one.
        ([("f@V1", 1)], [("f@V1", 2), ("f@V2", 1)], [(0, 1)]),
        ([("f@V1", 1), ("f@V2", 2)], [("f@V2", 1), ("f@V1", 2)], [(0, 1), (1, 0)]),
        ([("f@V1", 1)], [("f@V2", 2)], [(0, 1)]),
        ([("f", 1)], [("f@V2", 3)], [(0, 2)]),
        ([("f@V1", 1), ("f@V2", 2)], [("f@V3", 1)], []),
        # The address of a resolver is not that of the function.
        ([("!f", 1)], [("f", 1)], []),
        ([("!f", 1)], [("!f", 2)], [(0, 1)]),
        # Data, or a function that was not found.
        ([("f", 9)], [("f", 1)], []),
    ],
)
def test_names_that_agree_make_pairs(old, new, pairs):
    codes = code(1, 2, 3), code(1, 2, 3)
    for one, other in itertools.product((old, old[::-1]), (new, new[::-1])):
        found = pairs_by_names((exports(*one), exports(*other)), codes)
        assert list(map(tuple, found.tolist())) == pairs


def test_pairs_of_the_user_win(libraries):
    files = [libraries / "old", libraries / "new"]
    at = [{e.name: e.address for e in read_exports(file)} for file in files]
    codes = tuple(code(*sorted(set(side.values()))) for side in at)
    free = known_pairs(files, codes)
    assert len(free) == SETTERS + 2  # one for `same` and `alias`
    given = np.array([[free[0, 0], free[1, 1]]])
    found = known_pairs(files, codes, given)
    assert found[0].tolist() == given[0].tolist()
    assert found[1:].tolist() == free[2:].tolist()


def test_versions_are_those_that_readelf_lists(tmp_path):
    """And hidden ones, of a library by GNU's linker."""
    source, script, file = (tmp_path / name for name in ("v.c", "v.map", "v.so"))
    source.write_text(
        "int first(int x) { return x; } int second(int x) { return x + 1; }\n"
        'int plain(int x) { return x; }\n__asm__(".symver first,f@V1"); '
        '__asm__(".symver second,f@@V2");'
    )
    script.write_text("V1 { global: plain; }; V2 { local: first; second; } V1;")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler (cc)")
    command = ["cc", "-O1", "-shared", "-fPIC", "-nostdlib", f"-Wl,--version-script={script}"]
    subprocess.run([*command, source, "-o", file], check=True)
    said = subprocess.run(
        ["readelf", "--dyn-syms", "-W", file], capture_output=True, text=True, check=True
    ).stdout
    expected = set()
    for line in said.splitlines():
        columns = line.split()
        if len(columns) >= 8 and columns[3] == "FUNC":
            name, _, version = columns[7].replace("@@", "@").partition("@")
            expected.add((name, version, int(columns[1], 16) + 0x400000))
    assert {(name, version) for name, version, _ in expected} == {
        ("f", "V1"),
        ("f", "V2"),
        ("plain", "V1"),
    }
    assert {(e.name, e.version, e.address) for e in read_exports(file)} == expected


def test_other_files_export_nothing(tmp_path):
    for content in (
        b"",
        b"\x7fELF",
        b"MZ",
        b"MZ" + bytes(200),
        b"\xcf\xfa",
        b"\x7fELF" + bytes(90),
    ):
        (tmp_path / "file").write_bytes(content)
        assert read_exports(tmp_path / "file") == []


def test_a_compressed_table_that_is_broken_ends_the_reading(tmp_path):
    """The versions of symbols are read from a section, which may say that it is compressed."""
    (tmp_path / "a.c").write_text("int f(void) { return 1; }")
    (tmp_path / "map").write_text("V1 { f; };")
    library = tmp_path / "a.so"
    flags = ["-shared", "-nostdlib", f"-Wl,--version-script={tmp_path / 'map'}"]
    zig("x86_64-linux-gnu", *flags, tmp_path / "a.c", "-o", library)
    assert [(export.name, export.version) for export in read_exports(library)] == [("f", "V1")]
    content = bytearray(library.read_bytes())
    elf = ELFFile(io.BytesIO(content))
    broken = struct.pack("<IIQQ", 1, 0, 100, 1) + b"\xff" * 36
    (number,) = [i for i, s in enumerate(elf.iter_sections()) if s["sh_type"] == "SHT_GNU_versym"]
    header = elf["e_shoff"] + number * elf["e_shentsize"]
    struct.pack_into("<Q", content, header + 8, 0x802)  # allocated, compressed
    struct.pack_into("<QQ", content, header + 24, len(content), len(broken))
    library.write_bytes(content + broken)
    assert read_exports(library) == []
