"""Formats: object files, Windows, macOS, universal files, no section headers, refused files."""

import gzip
import io
import json
import re
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pefile
import pytest
from conftest import typed
from elftools.elf.elffile import ELFFile
from zig import SOURCE, STRINGS, universal, zig

import diff
import gendata
import search
from binary.analysis import SOURCES
from binary.angr_gaps import loadable
from binary.cache import take_slices
from binary.disassemble import _reason, analyse
from binary.exports import read_exports
from binary.formats import processors, refuse, slices
from binary.starts import is_thumb
from features.extract import extract_features
from matching.changes import compare
from utils import UserError, sha256_of

BENCH = Path(__file__).resolve().parent.parent / "bench"
# Without imports, so that no libraries of Windows and macOS are needed.
BARE = (
    SOURCE.replace(
        "extern int puts(const char *);", "static int puts(const char *s) { return *s; }"
    )
    .replace("extern void abort(void) __attribute__((noreturn));", "static void abort(void) {}")
    .replace(
        "extern void *malloc(size);", "static char h[9]; static void *malloc(size n) { return h; }"
    )
    .replace("extern int limit;", "int limit = 7; int _fltused;")
    .replace('visibility("default")', "PUBLIC")
)
PUBLIC = {"scale", "count", "kind", "copy", "recurse", "choose", "start"}
WINDOWS = {
    "x86_64": "x86_64-windows-gnu",
    "aarch64": "aarch64-windows-gnu",
    "i386": "x86-windows-gnu",
}
MACOS = {"x86_64": "x86_64-macos", "aarch64": "aarch64-macos"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    (folder / "bare.c").write_text(BARE)
    (folder / "tiny.c").write_text(SOURCE)
    for name, target in WINDOWS.items():
        flags = ["-O1", "-fno-builtin", "-DPUBLIC=dllexport", "-shared", "-nostdlib"]
        zig(target, *flags, "-Wl,--entry=start", folder / "bare.c", "-o", folder / f"{name}.dll")
    for name, target in MACOS.items():
        flags = ["-O1", "-fno-builtin", '-DPUBLIC=visibility("default")', "-shared"]
        zig(target, *flags, folder / "bare.c", "-o", folder / f"{name}.dylib")
    files = [(folder / f"{name}.dylib").read_bytes() for name in MACOS]
    (folder / "universal.dylib").write_bytes(universal(*files))
    flags = ["-O1", "-nostdlib", "-fPIC", folder / "tiny.c", "-o"]
    zig("x86_64-linux-gnu", "-shared", *flags, folder / "tiny.so")
    return folder


def names(analysis) -> dict[str, int]:
    addresses = analysis.function_address[: analysis.code_functions].tolist()
    return dict(zip(analysis.function_name, addresses, strict=False))


@pytest.mark.parametrize("processor", WINDOWS)
def test_functions_of_windows_libraries_are_those_of_their_tables(folder, processor):
    """Against the exports and the exception directory, by pefile."""
    file = folder / f"{processor}.dll"
    analysis = analyse(file)
    assert analysis.processor == processor
    pe = pefile.PE(str(file))
    base = pe.OPTIONAL_HEADER.ImageBase
    exported = {s.name.decode(): base + s.address for s in pe.DIRECTORY_ENTRY_EXPORT.symbols}
    assert set(exported) >= PUBLIC
    found = names(analysis)
    assert {name: found[name] for name in PUBLIC} == {name: exported[name] for name in PUBLIC}
    assert {export.name: export.address for export in read_exports(file)} == exported
    if processor == "x86_64":
        entries = [entry.struct for entry in pe.DIRECTORY_ENTRY_EXCEPTION]
        ranges = {(base + e.BeginAddress, base + e.EndAddress) for e in entries}
        table = analysis.start_source == SOURCES.index(".pdata")
        columns = (analysis.start_address[table].tolist(), analysis.start_end[table].tolist())
        assert set(zip(*columns, strict=True)) == ranges
    # puts is inlined there: no "the third of the table"
    assert set(analysis.string) >= {b"the text of the beginning", b"abcdef"}


@pytest.mark.parametrize("processor", MACOS)
def test_functions_of_macos_libraries_are_found(folder, processor):
    file = folder / f"{processor}.dylib"
    analysis = analyse(file)
    assert analysis.processor == processor
    exported = {export.name: export.address for export in read_exports(file)}
    found = names(analysis)
    assert {name: exported[name] for name in PUBLIC} == {name: found[f"_{name}"] for name in PUBLIC}
    sources = {SOURCES[s] for s in analysis.start_source.tolist()}
    assert sources == {"__unwind_info", "exported symbols"}


def test_macos_exports_that_are_in_another_library_are_skipped(folder, tmp_path):
    """The last ones in the table are read first."""
    content = bytearray((folder / "aarch64.dylib").read_bytes())
    exported = read_exports(folder / "aarch64.dylib")
    assert {export.name for export in exported} >= PUBLIC
    nodes = {b"_" + e.name.encode(): b"\0" + leb128(e.address) for e in exported}
    nodes = {b"_first": b"\x08\1_other\0", **nodes, b"_last": b"\x08\1\0"}
    edges = sum(len(name) + 3 for name in nodes)
    table, ends = b"", b""
    for name, node in nodes.items():
        place = 2 + edges + len(ends)
        table += name + b"\0" + bytes([place & 127 | 128, place >> 7])
        ends += bytes([len(node)]) + node + b"\0"
    trie = bytes([0, len(nodes)]) + table + ends
    at = content.index(struct.pack("<2I", 0x80000022, 48))  # LC_DYLD_INFO_ONLY
    struct.pack_into("<2I", content, at + 40, len(content), len(trie))
    (tmp_path / "more.dylib").write_bytes(content + trie)
    assert sorted(read_exports(tmp_path / "more.dylib")) == sorted(exported)
    before, after = analyse(folder / "aarch64.dylib"), analyse(tmp_path / "more.dylib")
    assert after.start_address.tolist() == before.start_address.tolist()


def leb128(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def test_functions_of_macos_end_where_the_next_begin(folder, tmp_path):
    """So code that nothing reaches, such as landing pads, is no function of its own."""
    content = bytearray((folder / "aarch64.dylib").read_bytes())
    before = analyse(folder / "aarch64.dylib")
    begins = before.start_address[before.start_source == SOURCES.index("__unwind_info")].tolist()
    commands, size = struct.unpack_from("<2I", content, 16)
    struct.pack_into("<2I", content, 16, commands + 1, size + 16)
    listed = b"".join(map(leb128, np.diff([0, *begins]).tolist()))
    struct.pack_into("<4I", content, 32 + size, 0x26, 16, len(content), len(listed) + 1)
    (tmp_path / "listed.dylib").write_bytes(content + listed + b"\0")
    analysis = analyse(tmp_path / "listed.dylib")
    found = analysis.start_source == SOURCES.index("LC_FUNCTION_STARTS")
    assert analysis.start_address[found].tolist() == begins
    assert analysis.start_end[found][:-1].tolist() == begins[1:]


def test_macos_bundles_are_read_like_libraries(folder, tmp_path):
    content = bytearray((folder / "aarch64.dylib").read_bytes())
    assert content[12] == 6  # MH_DYLIB
    content[12] = 8  # MH_BUNDLE
    (tmp_path / "bundle.so").write_bytes(content)
    library, bundle = analyse(folder / "aarch64.dylib"), analyse(tmp_path / "bundle.so")
    assert names(bundle) == names(library)
    assert bundle.instructions == library.instructions
    assert bundle.import_name == library.import_name


def test_edits_of_efi_applications_are_found(tmp_path, model):
    """A callee and a string are seen as changes; another file in front of the objects is none."""
    flags = ["-O2", "-nostdlib", "-ffreestanding", "-fno-builtin", "-w", "-fno-unwind-tables"]
    link = ["-Dbegin=EfiMain", "-Wl,--subsystem,efi_application", "-Wl,--no-gc-sections"]
    sources = [BENCH / "edits.c", BENCH / "edits_imports.c"]
    codes = {}
    for name, more in {
        "plain": [],
        "padded": [BENCH / "edits_pad.c"],
        "check": ["-DEDIT=2"],
        "complain": ["-DEDIT=5"],
    }.items():
        out = tmp_path / f"{name}.efi"
        zig(WINDOWS["x86_64"], *flags, *link, *more, *sources, "-o", out)
        codes[name] = extract_features(analyse(out))
    header = pefile.PE(str(out), fast_load=True).OPTIONAL_HEADER
    assert pefile.SUBSYSTEM_TYPE[header.Subsystem] == "IMAGE_SUBSYSTEM_EFI_APPLICATION"
    expected = {  # functions by their order in the source
        "plain": [],
        "padded": [("only in new", (-1, 0))],
        "check": [("changed", (2, 2))],
        "complain": [("changed", (7, 7))],
    }
    for name, other in codes.items():
        rows = compare(codes["plain"], other, model).functions
        assert len(rows) > 30
        found = [(row.status, row.sides) for row in rows]
        assert [pair for pair in found if pair[0] != "identical"] == expected[name]


def test_of_a_universal_file_one_slice_is_compared(folder, tmp_path, capsys):
    both = folder / "universal.dylib"
    content = both.read_bytes()
    assert list(slices(content)) == ["x86_64", "aarch64"]
    variant = content[:8] + struct.pack(">2I", 0x0100000C, 0x80000002) + content[16:]
    assert list(slices(variant)) == ["aarch64", "aarch64 variant 0"]
    order = content[:8] + content[28:48] + struct.pack(">2I", 0x0100000C, 0x80000002) + content[16:]
    assert list(slices(order)) == ["aarch64", "arm64e"]
    assert processors(content) == ["x86_64", "aarch64"]
    with pytest.raises(UserError, match="universal file for x86_64 and aarch64"):
        analyse(both)
    pair = (str(both), str(folder / "aarch64.dylib"))
    files = take_slices(pair, str(tmp_path), None)
    assert files[1] == pair[1]
    assert Path(files[0]).read_bytes() == Path(pair[1]).read_bytes()
    assert f"{both}: the slice for aarch64 of x86_64, aarch64" in capsys.readouterr().out
    with pytest.raises(UserError, match="is for x86_64 and aarch64: choose one with --arch"):
        take_slices((str(both), str(both)), str(tmp_path), None)
    for file in take_slices((str(both), str(both)), str(tmp_path), "x86-64"):
        assert Path(file).read_bytes() == (folder / "x86_64.dylib").read_bytes()
    offset, size = slices(content)["aarch64"]
    other = tmp_path / both.name  # has the same name, but is another file
    other.write_bytes(content[: offset + size - 1] + b"\xff" + content[offset + size :])
    old, new = take_slices((str(both), str(other)), str(tmp_path / "output"), "aarch64")
    assert Path(old).read_bytes() == Path(pair[1]).read_bytes() != Path(new).read_bytes()
    with pytest.raises(UserError, match="has no slice for mips; it has x86_64, aarch64"):
        take_slices((str(both), str(both)), str(tmp_path), "mips")
    assert typed(diff.main, both, both, "--outputDir", tmp_path / "output") == 1
    assert "choose one with --arch" in capsys.readouterr().err


def test_gendata_takes_the_slice_that_is_asked_for(folder, tmp_path):
    both, alone = folder / "universal.dylib", folder / "aarch64.dylib"
    builds = [{"path": str(f), "build": f.stem, "sha256": sha256_of(f)} for f in (both, alone)]
    programs = {"a": builds}
    assert gendata.replace_by_slices(programs, str(tmp_path), "arm64") == {}
    assert [build["sha256"] for build in programs["a"]] == [sha256_of(alone)] * 2
    assert [build["build"] for build in programs["a"]] == ["universal", "aarch64"]
    programs = {"a": builds}
    refused = gendata.replace_by_slices(programs, str(tmp_path), "mips")
    assert "has no slice for mips; it has x86_64, aarch64" in refused[str(both)]
    assert programs["a"] == builds[1:]


def test_search_takes_the_slice_that_is_asked_for(folder, tmp_path, capsys):
    both, alone = folder / "universal.dylib", folder / "aarch64.dylib"
    where = {"index_dir": str(tmp_path / "index"), "outputDir": str(tmp_path / "output")}
    with pytest.raises(UserError, match="for x86_64 and aarch64: choose one with --arch"):
        search.index(str(both), **where)
    assert search.index(str(both), arch="arm64", **where) == 0
    assert [file.stem for file in (tmp_path / "index").iterdir()] == [sha256_of(alone)]
    capsys.readouterr()
    search.query(str(both), function="_scale", own=True, top=1, arch="arm64", **where)
    assert capsys.readouterr().out.split()[-2:] == ["_scale", str(both)]


def test_an_architecture_without_a_universal_file_is_refused(folder, tmp_path, capsys):
    alone, where = folder / "aarch64.dylib", ("--outputDir", tmp_path / "output")
    for build in ("one", "two"):  # gendata.py needs two builds of a program
        (tmp_path / "builds" / build).mkdir(parents=True)
        shutil.copy(alone, tmp_path / "builds" / build / "alone")
    commands = [
        (diff.main, alone, alone),
        (search.index, alone, "--index_dir", tmp_path / "index"),
        (search.query, alone, "--function", "_scale", "--index_dir", tmp_path),
        (search.scan, alone, "--index_dir", tmp_path),
        (
            gendata.main,
            "--path",
            tmp_path / "builds",
            "--biname",
            "alone",
            "--data",
            tmp_path / "d",
        ),
    ]
    for command in commands:
        assert typed(*command, *where, "--arch", "aarch64") == 2
        assert "--arch aarch64 is for universal (macOS) files, and none is given" in (
            capsys.readouterr().err
        )
    for command in commands[2:4]:
        assert typed(*command, "--outputDir", alone) == 1
        assert "this is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "processor", ["x86_64", "aarch64", "riscv64", "s390x", "powerpc64le", "powerpc64"]
)
def test_functions_imports_and_calls_of_object_files_are_found(folder, tmp_path, processor):
    file = tmp_path / "tiny.o"
    zig(f"{processor}-linux-gnu", "-c", "-O1", "-fPIC", folder / "tiny.c", "-o", file)
    analysis = analyse(file)
    with file.open("rb") as stream:
        symbols = ELFFile(stream).get_section_by_name(".symtab").iter_symbols()
        functions = {s.name for s in symbols if s["st_info"]["type"] == "STT_FUNC"}
    assert set(analysis.function_name[: analysis.code_functions]) == functions
    assert set(analysis.import_name) == {"abort", "malloc", "puts"} | (
        {"memcpy"} & set(analysis.import_name)
    )
    assert set(analysis.string) >= STRINGS
    named = [analysis.function_name[f] for f in analysis.function.tolist()]
    leads = {(named[a], named[b]) for a, b in analysis.edges.tolist()}
    calls = [("copy", "malloc"), ("copy", "abort"), ("start", "copy"), ("recurse", "recurse")]
    assert leads > {*calls, ("start", "kind"), ("kind", "count"), ("third", "puts")}


def test_object_files_with_unknown_relocations_are_refused(folder, tmp_path):
    for target, flag, kind in [
        ("mips-linux-gnueabi", "-O1", "R_MIPS_CALL16"),
        ("powerpc64-linux-gnu", "-mabi=elfv1", "R_PPC64_TOC16_HA"),
        ("x86-linux-gnu", "-O1", "R_386_GOTOFF"),
    ]:
        zig(target, "-c", "-O1", flag, "-fPIC", folder / "tiny.c", "-o", tmp_path / "tiny.o")
        with pytest.raises(UserError, match=rf"relocations that angr does not know \(.*{kind}"):
            analyse(tmp_path / "tiny.o")
    content = bytearray((tmp_path / "tiny.o").read_bytes())
    elf = ELFFile(io.BytesIO(content))
    table = elf.get_section_index(".rel.text")
    at = elf["e_shoff"] + table * elf["e_shentsize"] + 28  # the section that it is for
    content[at : at + 4] = b"\xff\xff\0\0"
    (tmp_path / "tiny.o").write_bytes(content)
    with pytest.raises(UserError, match=r"tiny\.o cannot be loaded"):
        analyse(tmp_path / "tiny.o")


def test_a_few_unknown_relocations_bring_a_warning(tmp_path, capsys):
    calls = "f(1); f(2); f(3); f(4); f(5); f(6); f(7); f(8); f(9); f(10); f(11); f(12);"
    source = "extern _Thread_local int t; extern void f(int);\n"
    source += f"void g(void) {{ {calls} }} void h(void) {{ {calls} }}\n"
    for name, more in (("all.o", ""), ("some.o", "int local(void) { return t; }\n")):
        (tmp_path / "a.c").write_text(source + more)
        zig("x86_64-linux-gnu", "-c", "-O1", "-fPIC", tmp_path / "a.c", "-o", tmp_path / name)
    assert typed(diff.main, *[tmp_path / "all.o"] * 2, "--outputDir", tmp_path / "output") == 0
    assert "relocations" not in capsys.readouterr().err
    command = [diff.main, *[tmp_path / "some.o"] * 2, "--outputDir", tmp_path / "output"]
    for _ in range(2):  # also if the analysis is cached
        assert typed(*command) == 0
        said = r"some\.o: angr does not know 4% of .*\(R_X86_64_TLSGD\), so a change"
        assert len(re.findall(said, capsys.readouterr().err)) == 1
    for name in ("all", "some"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as package:
            package.write(tmp_path / f"{name}.o", "in/a.o")
    packages = tmp_path / "all.zip", tmp_path / "some.zip"
    assert typed(diff.main, *packages, "--outputDir", tmp_path / "output") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "does not know" in line]
    assert [line.partition(": angr")[0] for line in said] == [f"{packages[1]}: in/a.o"]


def test_section_headers_may_be_cut_off(folder, tmp_path):
    content = bytearray((folder / "tiny.so").read_bytes())
    content[0x28:0x30] = bytes(8)  # e_shoff
    content[0x3A:0x40] = bytes(6)  # e_shentsize, e_shnum, e_shstrndx
    (tmp_path / "cut").write_bytes(content)
    whole, cut = analyse(folder / "tiny.so"), analyse(tmp_path / "cut")
    assert set(whole.function_address.tolist()) <= set(cut.function_address.tolist())
    assert read_exports(tmp_path / "cut") == read_exports(folder / "tiny.so") != []
    assert cut.import_name == whole.import_name
    assert np.array_equal(cut.start_address, whole.start_address)
    assert set(cut.string) >= STRINGS


@pytest.mark.parametrize("name", ["tiny.so", *(f"{name}.dll" for name in WINDOWS)])
def test_broken_headers_end_in_a_refusal_or_in_the_loader(folder, name):
    """Nothing fails while headers are looked at: short beginnings, and bytes changed at random."""
    content, rng = (folder / name).read_bytes(), np.random.default_rng(0)
    broken = [content[:length] for length in range(1, 400)]
    for _ in range(600):
        changed = bytearray(content)
        for at in rng.integers(0, 400, 4).tolist():
            changed[at] = rng.integers(256)
        broken.append(bytes(changed))
    refused = 0
    for some in broken:
        try:
            refuse("x", some)
        except UserError:
            refused += 1
        loadable("x", some)
    assert 0 < refused < len(broken)


def test_elf_files_that_angr_would_mistake_are_refused(folder, tmp_path):
    """The compiler says what they are; angr would read them as another processor, or not at all."""
    targets = {
        "x86_64-linux-gnux32": "for x32",
        "mips64-linux-gnuabin32": "for MIPS n32",
        "armeb-linux-gnueabihf": r"little-endian code \(BE8\)",
        "aarch64_be-linux-gnu": "for big-endian AArch64",
    }
    file = tmp_path / "tiny"
    for target, reason in targets.items():
        zig(target, "-O1", "-nostdlib", "-shared", "-fPIC", folder / "tiny.c", "-o", file)
        with pytest.raises(UserError, match=reason):
            refuse(file, file.read_bytes())
    command = ["gcc", "-c", "-O1", folder / "tiny.c", "-o", file, "-flto"]
    for fat, reason in (("-fno-fat-lto-objects", "no machine code"), ("-ffat-lto-objects", "")):
        subprocess.run([*command, fat], check=True)
        if reason:
            with pytest.raises(UserError, match=f"intermediate code, but {reason}"):
                refuse(file, file.read_bytes())
        else:
            refuse(file, file.read_bytes())
    content = bytearray((folder / "tiny.so").read_bytes())
    content[16] = 4
    with pytest.raises(UserError, match="is a core dump"):
        refuse(file, bytes(content))
    pe = pefile.PE(data=(folder / "x86_64.dll").read_bytes())
    header = pe.OPTIONAL_HEADER.DATA_DIRECTORY[14]
    section = pe.sections[0]
    header.VirtualAddress, header.Size = section.VirtualAddress, 72
    pe.set_dword_at_rva(section.VirtualAddress + 16, 1)  # bytecode only
    with pytest.raises(UserError, match=r"is a \.NET assembly"):
        refuse(file, bytes(pe.write()))
    pe.set_dword_at_rva(section.VirtualAddress + 16, 0)  # with machine code
    refuse(file, bytes(pe.write()))


def test_a_magic_number_alone_is_cut_off():
    with pytest.raises(UserError, match="cut off: it has 4 bytes"):
        refuse("x", b"\x7fELF")


def test_frames_are_those_that_readelf_lists(folder):
    command = ["readelf", "--debug-dump=frames", folder / "tiny.so"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    frames = {tuple(int(x, 16) for x in m) for m in re.findall(r"pc=(\w+)\.\.(\w+)", listing)}
    analysis = analyse(folder / "tiny.so")
    shift = int(analysis.start_address[0]) - min(start for start, _ in frames)
    ours = zip(analysis.start_address.tolist(), analysis.start_end.tolist(), strict=True)
    assert {(start - shift, end - shift) for start, end in ours} == {
        frame for frame in frames if frame[0] + shift in analysis.function_address.tolist()
    }
    assert len(analysis.start_address) == 10


GO = """
#define PLAIN __attribute__((noinline, used, section(".text")))
PLAIN int first(int x) { return x * 3; }
PLAIN int second(int x) { return first(x) + 1; }
PLAIN void _start(void) { for (volatile int i = 0;; i++) second(i); }
__asm__(
    ".section .gopclntab, \\"aR\\"\\n.balign 8\\n"
    "table: .long 0xfffffff1\\n.byte 0, 0, 1, 8\\n"
    ".quad 2, 0, first, names - table, 0, 0, 0, functions - table\\n"
    "names: .asciz \\"main.first\\"\\n.asciz \\"main.(*T).second\\"\\n"
    "functions: .long 0, one - functions, second - first, two - functions, _start - first\\n"
    "one: .long 0, 0\\ntwo: .long 0, 11\\n.text\\n");
"""


def test_functions_are_read_from_gos_table(tmp_path):
    (tmp_path / "go.c").write_text(GO)
    # Without .eh_frame, which takes precedence; zig needs this flag for that.
    flags = ["-O1", "-nostdlib", "-static", "-s", "-fno-unwind-tables"]
    zig("x86_64-linux-gnu", *flags, tmp_path / "go.c", "-o", tmp_path / "go")
    analysis = analyse(tmp_path / "go")
    assert {"main.first", "main.(*T).second"} <= set(analysis.function_name)
    assert analysis.start_sources()["Go's pclntab"] == 2
    # Since Go 1.26 the address of the text is not in the header; it is that of the section, if any
    content = bytearray((tmp_path / "go").read_bytes())
    text = content.index(b"\xf1\xff\xff\xff\0\0\1\x08") + 8 + 2 * 8
    content[text : text + 8] = bytes(8)
    (tmp_path / "go").write_bytes(content)
    assert analyse(tmp_path / "go").start_sources()["Go's pclntab"] == 2
    content[0x28:0x30] = bytes(8)  # e_shoff
    content[0x3A:0x40] = bytes(6)  # e_shentsize, e_shnum, e_shstrndx
    (tmp_path / "go").write_bytes(content)
    assert "Go's pclntab" not in analyse(tmp_path / "go").start_sources()


def test_addresses_above_2_to_the_63_are_written_whole(tmp_path, monkeypatch):
    source = "int g[9]; int f(int x) { g[x & 7] += x; return x; } void _start(void) { f(MORE); }"
    for name, more in (("old", "1"), ("new", "2")):
        (tmp_path / f"{name}.c").write_text(source.replace("MORE", more))
        flags = ["-O0", "-nostdlib", "-static", "-mcmodel=kernel", "-fno-pic"]
        place = "-Wl,--image-base=0xffffffff81000000"
        zig("x86_64-linux-gnu", *flags, place, tmp_path / f"{name}.c", "-o", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert typed(diff.main, "old", "new", "--json", "d.json") == 0
    functions = json.loads((tmp_path / "d.json").read_text())["functions"]
    text = json.dumps(functions)
    assert len(set(re.findall(r"0xffffffff81[0-9a-f]{6}", text))) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"!<arch>\n" + b"a.o/".ljust(48) + b"4         `\nabcd", "static archive: unpack it"),
        (gzip.compress(b"x", mtime=0), "compressed with gzip: unpack it first"),
        (b"\xfd7zXZ\0...", "compressed with xz: unpack it first"),
        (b"BC\xc0\xde....", "LLVM bitcode"),
        (b"\x7fELF" + bytes(200) + b"UPX!", "packed with UPX: unpack it first"),
        (b"\xcf\xfa\xed\xfe" + bytes(944) + b"UPX!", "packed with UPX: unpack it first (upx -d)"),
        (b"MZ" + bytes(200) + b"UPX0\0", "packed with UPX: unpack it first"),
        (b"hsqs" + bytes(90), "a squashfs image: unpack it first (unsquashfs)"),
        (b"\x7fELF\2\1\1\0AI\2" + bytes(90), "an AppImage: unpack it first"),
        (bytes(0x438) + b"\x53\xef\1\0", "an ext4 image: unpack it first"),
        (bytes(0x28) + b"_FVH", "a firmware volume: unpack it first"),
        (b"VZ\x64\x86" + bytes(90), "a TE image of EFI firmware"),
        (b"\xca\xfe\xba\xbe\0\0\0\x34" + bytes(90), "a Java class"),
        (b"", "is empty"),
    ],
)
def test_files_that_are_no_programs_are_refused_with_the_reason(tmp_path, content, reason):
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(reason)):
        analyse(file)


def test_macho_files_that_are_no_programs_are_refused(folder, tmp_path):
    content = bytearray((folder / "aarch64.dylib").read_bytes())
    for kind, reason in ((1, "object file"), (10, "debug information"), (11, "kernel extension")):
        content[12] = kind
        with pytest.raises(UserError, match=reason):
            refuse("x", bytes(content))
    content[12] = 6  # a library again; its first load command becomes one for encryption
    content[32:36] = struct.pack("<I", 0x2C)
    content[48:52] = struct.pack("<I", 1)
    with pytest.raises(UserError, match="is encrypted"):
        refuse("x", bytes(content))


def test_the_loaders_reason_is_told(folder, tmp_path):
    content = bytearray((folder / "aarch64.dylib").read_bytes())
    content[12] = 7  # a loader of libraries
    (tmp_path / "loader").write_bytes(content)
    with pytest.raises(UserError, match=r"loader cannot be loaded: .*Mach-O file type: 7"):
        analyse(tmp_path / "loader")


@pytest.mark.parametrize("name", ["tiny.so", "x86_64.dll", "aarch64.dylib", "x86_64.dylib"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_refused(folder, name, share):
    content = (folder / name).read_bytes()
    refuse(name, content)
    refuse(name, content + b"what is appended, such as a signature")
    size = int(share * len(content))
    with pytest.raises(UserError, match=f"{name} cannot be loaded: it is cut off: it has {size:,}"):
        refuse(name, content[:size])


def test_a_cut_off_file_without_section_headers_or_with_slices_is_refused(folder, tmp_path):
    with (folder / "tiny.so").open("rb") as stream:
        parts = [s.header for s in ELFFile(stream).iter_segments() if s["p_type"] == "PT_LOAD"]
    content = bytearray((folder / "tiny.so").read_bytes())
    content[0x28:0x30] = bytes(8)  # e_shoff
    size = max(part.p_offset + part.p_filesz for part in parts)
    refuse("whole", bytes(content[:size]))
    with pytest.raises(UserError, match=f"its headers speak of {size:,}"):
        refuse("cut", bytes(content[: size - 1]))
    (tmp_path / "cut").write_bytes((folder / "universal.dylib").read_bytes()[:-1])
    with pytest.raises(UserError, match="cut cannot be loaded: it is cut off"):
        take_slices([str(tmp_path / "cut")] * 2, str(tmp_path), "arm64")
    refuse("a DOS program", b"MZ" + b"\x11" * 100)


def test_a_failure_without_a_message_is_told_by_its_place():
    def of_angr():
        raise AssertionError

    with pytest.raises(AssertionError) as failed:
        of_angr()
    assert _reason(failed.value) == "AssertionError in of_angr"
    assert _reason(ValueError("a\nb")) == "ValueError: a"


def test_arm_and_thumb_code_are_told_apart():
    arm = bytes.fromhex("04e02de5 08d04de2 0030a0e3 1eff2fe1")  # push, sub, mov, bx lr
    thumb = bytes.fromhex("80b5 00af 0023 1846 bd46 80bd 00bf 00bf")
    assert is_thumb(arm) == 0
    assert is_thumb(thumb) == 1


def test_debug_files_and_other_processors_are_refused(builds, tmp_path):
    program, copy = builds / "O1" / "shapes", tmp_path / "shapes"
    subprocess.run(["objcopy", "--only-keep-debug", program, copy], check=True)
    with pytest.raises(UserError, match="contains debug information, but not the code"):
        analyse(copy)
    content = bytearray(program.read_bytes())
    for machine, name in ((43, "sparcv9"), (258, "Loongarch")):
        content[18:20] = machine.to_bytes(2, "little")
        copy.write_bytes(content)
        with pytest.raises(UserError, match=rf"processor that is not supported \({name}"):
            analyse(copy)


def test_a_pe_file_may_have_few_data_directories(tmp_path):
    """A PE file may end its table of data directories before what it needs; EFI programs do."""
    (tmp_path / "a.c").write_text(BARE.replace("PUBLIC", "default"))
    whole, few = tmp_path / "whole.exe", tmp_path / "few.exe"
    zig("x86_64-windows-gnu", "-O1", "-nostdlib", "-Wl,-e,start", tmp_path / "a.c", "-o", whole)
    content = bytearray(whole.read_bytes())
    (place,) = struct.unpack_from("<I", content, 60)
    sections, optional = struct.unpack_from("<H12xH", content, place + 6)
    table, less = place + 24 + optional, 10 * 8
    rows = content[table : table + 40 * sections]
    content[table - less : table + 40 * sections] = rows + bytes(less)
    struct.pack_into("<H", content, place + 20, optional - less)
    struct.pack_into("<I", content, table - 16 * 8 - 4, 6)
    few.write_bytes(content)
    assert len(pefile.PE(str(few)).OPTIONAL_HEADER.DATA_DIRECTORY) == 6
    analyses = [analyse(file) for file in (whole, few)]
    assert analyses[0].code_functions >= len(PUBLIC)
    assert analyses[0].function_address.tolist() == analyses[1].function_address.tolist()
    assert analyses[0].instructions == analyses[1].instructions
