"""binary/disassemble.py and pairs/merge.py, against objdump and pyelftools."""

import dataclasses
import functools
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import BUILDS, NO_DATA, compile_c, words
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st

from binary.analysis import CALL, JUMP, STEP_OVER, Analysis, load_analysis, save_analysis
from binary.disassemble import analyse
from binary.instructions import MAX_STRING_WORDS, clean_name, string_words
from binary.tokens import tokenise
from pairs.merge import merge
from utils import UserError

ALL = [*BUILDS, "O1-stripped"]
SAMPLE = sorted(Path("experiment_data/coreutils/binaries").glob("*/chroot"))


def functions_of(file: Path) -> dict[str, tuple[int, int]]:
    """Name -> (address, size) of a file's function symbols, by pyelftools."""
    with open(file, "rb") as stream:
        table = ELFFile(stream).get_section_by_name(".symtab")
        return {
            s.name: (s["st_value"], s["st_size"])
            for s in table.iter_symbols()
            if s["st_info"]["type"] == "STT_FUNC" and s["st_size"] > 0
        }


def disassembly(file: Path) -> list[tuple[int, int, str]]:
    """Address, size, text of each instruction of the file's code, by objdump."""
    if shutil.which("objdump") is None:
        pytest.skip("no objdump")
    run = subprocess.run(
        ["objdump", "-d", "-w", "--section=.text", str(file)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = re.findall(r"^ *([0-9a-f]+):\t((?:[0-9a-f]{2} )+) *\t?(.*)$", run.stdout, re.M)
    return [(int(a, 16), len(code.split()), text) for a, code, text in found]


def instruction_starts(file: Path) -> tuple[set[int], set[int], set[int]]:
    """Return the addresses at which our blocks' instructions start, and the bytes they cover."""
    import angr

    project = angr.Project(str(file), auto_load_libs=False)
    shift = project.loader.main_object.mapped_base - project.loader.main_object.linked_base
    analysis = analyse(file)
    starts, covered = set(), set()
    for address, text in zip(analysis.address.tolist(), analysis.instructions, strict=True):
        if text:
            count = len(text.splitlines())
            block = project.factory.block(address, num_inst=count)
            starts |= {a - shift for a in block.instruction_addrs}
            covered |= set(range(address - shift, address - shift + block.size))
    return starts, covered


NO_OPERATION = re.compile(r"(data16 |cs |ds )*(nop|xchg +%ax,%ax|lea +0x0\(%[re]?(\w+)(,.*)?\),%)")


@pytest.mark.parametrize("stripped", [False, True])
@pytest.mark.parametrize("file", [*BUILDS, *SAMPLE], ids=str)
def test_all_function_bytes_are_covered_and_instructions_start_where_objdump_says(
    builds, file, stripped, tmp_path
):
    if isinstance(file, str):
        file = builds / file / "shapes"
    functions, listing = functions_of(file), disassembly(file)
    if stripped:
        subprocess.run(["strip", "-o", str(tmp_path / "stripped"), str(file)], check=True)
        file = tmp_path / "stripped"
    starts, covered = instruction_starts(file)
    padding = {
        byte
        for address, size, text in listing
        if NO_OPERATION.match(text)
        for byte in range(address, address + size)
    }
    for name, (address, size) in functions.items():
        missing = set(range(address, address + size)) - covered - padding
        assert not missing, f"{name} lacks {len(missing)} of {size} bytes"
    in_text = {a for a, _, _ in listing}
    low, high = min(in_text), max(in_text)
    assert {a for a in starts if low <= a <= high} <= in_text
    assert {a for a in in_text if a in covered} <= starts


def test_bytes_and_references_are_those_that_objdump_shows(builds, analyses):
    """An instruction's address is its block's plus the sizes of the instructions before it."""
    analysis, file = analyses["O1"], builds / "O1" / "shapes"
    run = subprocess.run(
        ["objdump", "-d", "-w", "--section=.text", file], check=True, capture_output=True, text=True
    )
    lines = re.findall(r"^ *([0-9a-f]+):\t((?:[0-9a-f]{2} )+)(.*)$", run.stdout, re.M)
    shift = 0x400000  # of a position-independent program
    shown = {int(a, 16) + shift: (bytes.fromhex(code), text) for a, code, text in lines}
    at, seen = 0, {}
    for block, text in enumerate(analysis.instructions[: analysis.code_blocks]):
        address, code = int(analysis.address[block]), analysis.code[block]
        for _ in text.splitlines():
            size = int(analysis.instruction_size[at])
            if address in shown:
                assert shown[address][0] == code[:size]
                seen[at] = address
            address, code, at = address + size, code[size:], at + 1
        assert not code
    assert at == len(analysis.instruction_size)
    literal = dict(zip(analysis.literal_address.tolist(), analysis.literal, strict=True))
    names = zip(analysis.reference_instruction.tolist(), analysis.reference_address, strict=True)
    found = {(seen[i], int(target)) for i, target in names if i in seen}
    for address, (_, text) in shown.items():
        place = re.search(r"# ([0-9a-f]+) ", text)  # what an operand relative to rip names
        if place and address in seen.values() and int(place[1], 16) + shift in literal:
            assert (address, int(place[1], 16) + shift) in found
    content = file.read_bytes()
    assert any(text.startswith(b"Usage: shapes") for text in literal.values())
    for address, text in literal.items():  # .rodata lies in the file as in memory
        assert content[address - shift :].startswith(text)


@pytest.mark.parametrize("build", ALL)
def test_imports_are_one_node_each(analyses, build):
    analysis = analyses[build]
    assert len(set(analysis.import_name)) == len(analysis.import_name)
    used = {"malloc", "free", "strlen", "qsort", "puts", "fwrite", "exit", "abort"}
    assert used <= set(analysis.import_name)
    assert not any(name.startswith("Unresolvable") for name in analysis.import_name)
    for i, name in enumerate(analysis.import_name):
        block = analysis.code_blocks + i
        assert words(analysis, block) == [name]
        assert analysis.address[block] == 0
    called = analysis.edges[analysis.kind == CALL][:, 1]
    for name in used:
        assert analysis.code_blocks + analysis.import_name.index(name) in called, name


@pytest.mark.parametrize("build", ALL)
def test_calls_of_imports_are_their_names(analyses, build):
    analysis = analyses[build]
    malloc = analysis.code_blocks + analysis.import_name.index("malloc")
    callers = analysis.edges[(analysis.edges[:, 1] == malloc) & (analysis.kind == CALL)][:, 0]
    assert len(callers) > 0
    for block in callers:
        assert words(analysis, block)[-2:] == ["call", "malloc"]


@pytest.mark.parametrize("build", ALL)
def test_imports_that_never_return_are_known(analyses, build):
    analysis = analyses[build]
    returning = {
        name: bool(analysis.returns[analysis.code_blocks + i])
        for i, name in enumerate(analysis.import_name)
    }
    assert returning["malloc"]
    assert returning["qsort"]
    assert not returning["exit"]
    assert not returning["abort"]


def test_tokens_are_classes_of_operands(builds, analyses):
    analysis = analyses["O0"]
    address = functions_of(builds / "O0" / "shapes")["area"][0]
    first = int(np.flatnonzero(analysis.address % 0x400000 == address)[0])
    # push rbp; mov rbp, rsp; mov [rbp - 0x18], rdi; mov [rbp - 0x1c], esi; ...
    expected = (
        "push reg8 mov reg8 reg8 mov ptr reg8 mov ptr reg4 mov ptr imme mov ptr imme jmp imme"
    )
    got = [w for w in words(analysis, first) if not w.startswith("endbr")]
    assert got == expected.split()


@pytest.mark.parametrize("build", ALL)
def test_strings_become_their_words(analyses, build):
    analysis = analyses[build]
    everything = [" ".join(words(analysis, b)) for b in range(analysis.blocks)]
    assert sum("str virtual memory exhausted" in text for text in everything) == 1
    # [MASK] in a literal is a word like any other
    assert any("str the area is d and the first kind mask d" in text for text in everything)


@pytest.mark.parametrize("build", ALL)
def test_no_padding_and_no_empty_block(analyses, build):
    analysis = analyses[build]
    for block in range(analysis.blocks):
        assert set(words(analysis, block)) - {"nop", "nop_word", "reg2", "ptr", "xchg"}
    assert (np.diff(tokenise(analysis).offsets) > 0).all()


@pytest.mark.parametrize("build", ALL)
def test_edges_follow_the_last_instruction(analyses, build):
    analysis = analyses[build]
    out: dict[int, set[int]] = {}
    for (source, target), kind in zip(analysis.edges.tolist(), analysis.kind.tolist(), strict=True):
        out.setdefault(source, set()).add(kind)
        assert 0 <= target < analysis.blocks
    for block in range(analysis.code_blocks):
        last = analysis.instructions[block].decode().splitlines()[-1]
        if last.startswith(("call", "bnd call")):
            assert out.get(block, set()) <= {CALL, STEP_OVER}, last
        else:
            assert out.get(block, set()) <= {JUMP}, last
        if last.startswith(("ret", "bnd ret")):
            assert block not in out
            assert analysis.returns[block]
        if last.startswith("hlt"):
            assert not analysis.returns[block]
        if re.match(r"j(?!mp)", last):
            assert len(out[block]) >= 1


@pytest.mark.parametrize("build", ALL)
def test_addresses_are_taken_by_what_is_no_branch(analyses, builds, build):
    """The C runtime takes main's address, and one of our functions that of qsort's comparator."""
    analysis = analyses[build]
    file = builds / build.removesuffix("-stripped") / "shapes"
    with open(file, "rb") as stream:
        elf = ELFFile(stream)
        base = 0x400000 if elf["e_type"] == "ET_DYN" else 0
        start = elf["e_entry"] + base
    place = {name: address + base for name, (address, _) in functions_of(file).items()}
    taken = {}
    for taker, block in zip(analysis.taker_block, analysis.taken_block, strict=True):
        entry = analysis.function_address[analysis.function[taker]]
        taken.setdefault(int(analysis.address[block]), set()).add(int(entry))
    assert taken.pop(place["main"]) == {start}
    (user,) = taken.pop(place["compare"])
    assert user in place.values()
    assert not taken.keys() & set(place.values())  # all others are called or unused
    pairs = zip(analysis.taker_block.tolist(), analysis.taken_block.tolist(), strict=True)
    assert not {*pairs} & {*map(tuple, analysis.edges.tolist())}  # branches take no address


def test_stripping_changes_names_only(analyses):
    full, bare = analyses["O1"], analyses["O1-stripped"]
    assert np.array_equal(full.address, bare.address)
    assert np.array_equal(full.edges, bare.edges)
    assert tokenise(full).words() == tokenise(bare).words()
    assert full.function_name != bare.function_name
    for field in (
        "variable_block",
        "variable_address",
        "variable_name",
        "taker_block",
        "taken_block",
        "pointer_address",
    ):
        assert np.array_equal(getattr(full, field), getattr(bare, field)), field
    assert np.array_equal(full.pointer_block, bare.pointer_block)
    assert full.label == bare.label


def test_analysis_is_the_same_when_angr_keeps_its_graph_on_disk(analyses, builds, monkeypatch):
    import angr
    from angr.knowledge_plugins.cfg import CFGModel

    monkeypatch.setattr(angr.Project, "get_cfg_node_cache_limit", lambda _: 10)
    small = functools.partialmethod(CFGModel.__init__, db_batch_size=10)
    monkeypatch.setattr(CFGModel, "__init__", small)
    spilt, whole = analyse(builds / "O1" / "shapes"), analyses["O1"]
    assert (whole.edges[:, 0] == whole.edges[:, 1]).any()  # a block that loops to itself
    assert np.array_equal(spilt.edges, whole.edges)
    assert tokenise(spilt).words() == tokenise(whole).words()
    assert np.array_equal(spilt.function, whole.function)


def test_saving_and_loading_gives_the_same(analyses, tmp_path):
    analysis = analyses["O0"]
    save_analysis(analysis, tmp_path / "a.npz")
    again = load_analysis(tmp_path / "a.npz")
    for name, value in vars(analysis).items():
        if isinstance(value, np.ndarray):
            assert value.dtype == getattr(again, name).dtype
            assert np.array_equal(value, getattr(again, name))
        else:
            assert value == getattr(again, name)


def test_damaged_cache_is_refused(analyses, tmp_path):
    file = tmp_path / "a.npz"
    save_analysis(analyses["O0"], file)
    whole = file.read_bytes()
    for content in (b"", whole[:100], whole[:-2], whole[:2000] + b"\0\0" + whole[2002:]):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.npz is damaged .* delete it and run gendata\.py"):
            load_analysis(file)


def test_analysis_is_the_same_in_another_process(builds, tmp_path):
    code = (
        "import sys; from binary.analysis import save_analysis; "
        "from binary.disassemble import analyse; save_analysis(analyse(sys.argv[1]), sys.argv[2])"
    )  # fmt: skip
    for run in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, str(builds / "O3-noplt" / "shapes"), str(tmp_path / run)],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": run, "PYTHONPATH": "."},
        )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"#!/bin/sh\necho hello\n", "not an executable"),
        (b"\x7fELF" + bytes(8), "cannot be loaded"),
    ],
)
def test_what_is_no_executable_is_refused(tmp_path, content, reason):
    file = tmp_path / "broken"
    file.write_bytes(content)
    with pytest.raises(UserError, match=reason) as error:
        analyse(file)
    assert str(file) in str(error.value)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing"):
        analyse(tmp_path / "nothing")


@given(st.binary(max_size=200))
def test_words_of_a_literal_forge_nothing(literal):
    found = string_words(literal)
    assert len(found) <= MAX_STRING_WORDS
    for word in found:
        assert re.fullmatch(r"[a-z0-9]{1,64}", word)


@given(st.text(max_size=200))
def test_names_of_imports_forge_nothing(name):
    assert re.fullmatch(r"[A-Za-z0-9_.@$?-]{1,64}", clean_name(name))


# ------------------------------------------------------------------------------------- merging


def made_up(imports: list[str], references: list[tuple[int, bytes]], code: int = 6) -> Analysis:
    """An analysis without instructions and edges."""
    blocks = code + len(imports)
    references = sorted(set(references))
    return Analysis(
        address=np.arange(blocks, dtype=np.uint64),
        function=np.zeros(blocks, np.int32),
        edges=np.zeros((0, 2), np.int32),
        kind=np.zeros(0, np.uint8),
        returns=np.zeros(blocks, bool),
        function_address=np.zeros(1, np.uint64),
        function_name=["f"],
        import_name=sorted(imports),
        string_block=np.array([b for b, _ in references], np.int32),
        string=[s for _, s in references],
        **NO_DATA,
        instructions=[b""] * blocks,
    )


LITERALS = [b"alpha one", b"beta two", b"gamma three", b"short", b"delta four"]
sides = st.builds(
    made_up,
    st.sets(st.sampled_from(["malloc", "free", "exit", "read"])).map(list),
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(LITERALS)), max_size=12),
)


@given(sides, sides)
@settings(max_examples=300)
def test_merging_follows_the_rules(first, second):
    merged = merge(first, second)
    pairs = merged.merged.tolist()
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)

    def only(analysis: Analysis, literal: bytes) -> set[int]:
        where = {
            b
            for b, s in zip(analysis.string_block.tolist(), analysis.string, strict=True)
            if s == literal
        }
        return where if len(where) == 1 else set()

    allowed = {
        (a, first.blocks + b)
        for literal in LITERALS
        if len(literal) > 5
        for a in only(first, literal)
        for b in only(second, literal)
    }
    imports = {
        (first.code_blocks + i, first.blocks + second.code_blocks + j)
        for i, x in enumerate(first.import_name)
        for j, y in enumerate(second.import_name)
        if x == y
    }
    assert imports <= {tuple(p) for p in pairs} <= imports | allowed
    # nothing is left that could still be merged
    left, right = {a for a, _ in pairs}, {b for _, b in pairs}
    assert not [(a, b) for a, b in allowed if a not in left and b not in right]


@given(sides, sides)
def test_merging_drops_no_block(first, second):
    merged = merge(first, second)
    assert len(merged.address) == first.blocks + second.blocks
    assert merged.binary.tolist() == [0] * first.blocks + [1] * second.blocks


@st.composite
def any_analysis(draw):
    """An analysis with random edges."""
    analysis = draw(sides)
    block = st.integers(0, analysis.blocks - 1)
    edges = sorted(draw(st.sets(st.tuples(block, block, st.integers(0, 2)), max_size=12)))
    edges = np.array(edges, np.int64).reshape(-1, 3)
    return dataclasses.replace(
        analysis,
        edges=edges[:, :2].astype(np.int32),
        kind=edges[:, 2].astype(np.uint8),
    )


@given(any_analysis(), any_analysis())
def test_merging_keeps_every_edge(first, second):
    merged = merge(first, second)
    edges = [(*edge, kind) for edge, kind in zip(merged.edges.tolist(), merged.kind, strict=True)]
    expected = [
        (*(block + shift for block in edge), kind)
        for side, shift in ((first, 0), (second, first.blocks))
        for edge, kind in zip(side.edges.tolist(), side.kind, strict=True)
    ]
    assert edges == expected


def test_real_builds_merge_at_equal_strings_and_imports(analyses):
    first, second = analyses["O0"], analyses["O2"]
    merged = merge(first, second)
    common = set(first.import_name) & set(second.import_name)
    texts = [
        (" ".join(words(first, a)), " ".join(words(second, b - first.blocks)))
        for a, b in merged.merged.tolist()
    ]
    assert {name for name, _ in texts} >= common
    for phrase in ("virtual memory exhausted", "try help for more information"):
        assert any(phrase in a and phrase in b for a, b in texts), phrase
    for source, target in merged.edges.tolist():
        assert merged.binary[source] == merged.binary[target]


def test_a_windows_executable_is_analysed(tmp_path):
    """The ELF object file is converted to PE, which the linker of most Linux systems can link."""
    source = """
    __attribute__((noinline)) int twice(int x) { return x > 3 ? x * 2 : x - 1; }
    int start(void) { int s = 0; for (int i = 0; i < 9; i++) s += twice(i); return s; }
    """
    if "i386pep" not in (subprocess.run(["ld", "-V"], capture_output=True, text=True).stdout or ""):
        pytest.skip("this ld links no PE files")
    flags = ["-c", "-O1", "-ffreestanding", "-fno-asynchronous-unwind-tables", "-g0"]
    elf = compile_c(source, tmp_path / "a.o", *flags)
    commands = [
        ["objcopy", "-O", "pe-x86-64", "-R", ".comment", "-R", ".note*", str(elf), "a.obj"],
        ["ld", "-m", "i386pep", "-e", "start", "--subsystem", "console", "a.obj", "-o", "a.exe"],
    ]
    for command in commands:
        subprocess.run(command, check=True, cwd=tmp_path)
    exe = tmp_path / "a.exe"
    assert exe.read_bytes()[:2] == b"MZ"
    starts, _ = instruction_starts(exe)
    listing = {a: text for a, _, text in disassembly(exe) if not NO_OPERATION.match(text)}
    end = max(address for address, text in listing.items() if text.startswith("ret"))
    # ld puts tables behind the code into .text; angr may take them for code
    assert {a for a in starts if a <= end} == {address for address in listing if address <= end}
    analysis = analyse(exe)
    here = analysis.address <= end
    calls = analysis.edges[(analysis.kind == CALL) & here[analysis.edges[:, 0]]]
    assert len(calls) == 1
    assert words(analysis, calls[0, 0])[-2:] == ["call", "imme"]
    assert analysis.returns[here].sum() == 2


def test_a_macos_executable_for_another_processor_is_analysed(tmp_path):
    """A minimal Mach-O for AArch64: one function that calls another under a condition."""
    code = [
        0xA9BF7BFD,  # 0x00 stp x29, x30, [sp, #-16]!
        0x71000C1F,  # 0x04 cmp w0, #3
        0x5400006C,  # 0x08 b.gt 0x14
        0x94000004,  # 0x0c bl 0x1c
        0x14000001,  # 0x10 b 0x14
        0xA8C17BFD,  # 0x14 ldp x29, x30, [sp], #16
        0xD65F03C0,  # 0x18 ret
        0x0B000000,  # 0x1c add w0, w0, w0
        0xD65F03C0,  # 0x20 ret
    ]
    base, offset, size = 1 << 32, 0x1000, 0x2000
    text = struct.pack("<9I", *code)
    section = struct.pack(
        *("<16s16sQQ8I", b"__text", b"__TEXT", base + offset, len(text)),
        *(offset, 2, 0, 0, 0x80000400, 0, 0, 0),
    )
    segment = "<II16sQQQQIIII"
    commands = [
        struct.pack(segment, 0x19, 72, b"__PAGEZERO", 0, base, 0, 0, 0, 0, 0, 0),
        struct.pack(segment, 0x19, 152, b"__TEXT", base, size, 0, size, 5, 5, 1, 0) + section,
        struct.pack("<IIQQ", 0x80000028, 24, offset, 0),  # LC_MAIN
        struct.pack("<6I", 2, 24, 0x1800, 0, 0x1800, 0),  # LC_SYMTAB, empty
    ]
    body = b"".join(commands)
    arm64 = 0x0100000C
    header = struct.pack("<8I", 0xFEEDFACF, arm64, 0, 2, len(commands), len(body), 0x85, 0)
    file = tmp_path / "program"
    file.write_bytes(((header + body).ljust(offset, b"\0") + text).ljust(size, b"\0"))

    analysis = analyse(file)
    assert (analysis.address - base - offset).tolist() == [0x00, 0x0C, 0x10, 0x14, 0x1C]
    edges = zip(analysis.edges.tolist(), analysis.kind.tolist(), strict=True)
    assert {(a, b, kind) for (a, b), kind in edges} == {
        *((0, 1, JUMP), (0, 3, JUMP), (1, 4, CALL), (1, 2, STEP_OVER), (2, 3, JUMP)),
    }
    assert analysis.returns.tolist() == [False, False, False, True, True]
    assert words(analysis, 4) == ["add", "reg4", "reg4", "reg4", "ret"]
    assert words(analysis, 0) == [
        "stp",
        "reg8",
        "reg8",
        "ptr",
        "cmp",
        "reg4",
        "imme",
        "b.gt",
        "imme",
    ]


def test_a_static_binary_without_imports_is_analysed(tmp_path):
    flags = ["-O1", "-static", "-nostdlib", "-fno-stack-protector"]
    source = """
    static void leave(int code) { __asm__ volatile("syscall" :: "a"(60), "D"(code)); }
    int twice(int x) { return 2 * x; }
    void _start(void) { leave(twice(21)); __builtin_unreachable(); }
    """
    analysis = analyse(compile_c(source, tmp_path / "static", *flags))
    assert analysis.import_name == []
    assert analysis.code_blocks >= 1


def test_code_that_angr_fails_on_is_read(tmp_path):
    """A system call of which angr lacks a type, and a call at the very end of the code."""
    flags = ["-O1", "-static", "-nostdlib", "-fno-stack-protector", "-Wl,-z,separate-code"]
    source = """
    long capget(void *a, void *b) {
        long r; __asm__ volatile("syscall" : "=a"(r) : "a"(125), "D"(a), "S"(b)); return r;
    }
    int twice(int x) { return 2 * x; }
    void _start(void) { capget(0, 0); twice(21); }
    __asm__(".section .text.z,\\"ax\\"; .cfi_startproc; last: call twice; .cfi_endproc; .text");
    """
    file = compile_c(source, tmp_path / "static", *flags)
    with open(file, "rb") as stream:
        elf = ELFFile(stream)
        text = elf.get_section_by_name(".text")
        end = text["sh_addr"] + text["sh_size"]
        code = next(s for s in elf.iter_segments("PT_LOAD") if s["p_flags"] & 1)
        assert end == code["p_vaddr"] + code["p_memsz"]
    *_, (last, size, _) = disassembly(file)
    assert last + size == end
    analysis = analyse(file)
    assert analysis.code_functions == 4
    assert last in analysis.function_address


def test_a_thread_that_angr_cannot_simulate_the_start_of_is_read(tmp_path):
    """An aligned store before pthread_create, such as GCC makes of two fields."""
    source = """
    #include <pthread.h>
    static void *work(void *x) { return (char *)x + 1; }
    int main(void) {
        pthread_t thread;
        _Alignas(16) char pair[16];
        __asm__ volatile("movaps %%xmm0, (%0)" :: "r"(pair) : "memory");
        return pthread_create(&thread, 0, work, pair);
    }
    """
    analysis = analyse(compile_c(source, tmp_path / "thread", "-O1", "-pthread"))
    assert "pthread_create" in analysis.import_name
    assert {"main", "work"} <= set(analysis.function_name)
