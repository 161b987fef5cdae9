"""Other processors and formats through the whole pipeline, against objdump of their toolchains.

Cross-compilers are in Debian: gcc-aarch64-linux-gnu, gcc-arm-linux-gnueabihf,
gcc-mingw-w64-x86-64 (with libc6-dev-arm64-cross and libc6-dev-armhf-cross).
"""

import json
import re
import shutil
import subprocess

import capstone
import numpy as np
import pytest
from conftest import SOURCE, gendata_py, words
from elftools.elf.elffile import ELFFile

import dataprocess
from binary.analysis import CALL, load_analysis
from binary.architectures import ARCHITECTURES
from binary.disassemble import analyse
from binary.tokens import tokenise
from pairs.merge import merge

TARGETS = {  # name: (toolchain, flags)
    "aarch64-O0": ("aarch64-linux-gnu", ["-O0"]),
    "aarch64-O2-nopie": ("aarch64-linux-gnu", ["-O2", "-fno-pie", "-no-pie"]),
    "thumb-O1": ("arm-linux-gnueabihf", ["-O1"]),
    "thumb-O2-nopie": ("arm-linux-gnueabihf", ["-O2", "-fno-pie", "-no-pie"]),
    "arm-O1": ("arm-linux-gnueabihf", ["-O1", "-marm"]),
    "windows-O0": ("x86_64-w64-mingw32", ["-O0"]),
    "windows-O2": ("x86_64-w64-mingw32", ["-O2"]),
}
LITERALS = {
    "str try help for more information",
    "str usage shapes option file with a very long explanation",
    "str virtual memory exhausted",
    "str the area is d and the first kind mask d",
}
SAME_EVERYWHERE = {
    "ldr",
    "str",
    "cmp",
    "mul",
    "add",
    "sub",
    "bl",
    "blx",
    "bx",
    "lea",
    "push",
    "ret",
}
OURS = ("area", "usage", "kind", "copy", "compare", "main")


@pytest.mark.parametrize(("bits", "processor"), [(32, "i386"), (64, "x86_64")])
def test_what_fills_gaps_is_idle(tmp_path, bits, processor):
    """The assembler fills gaps of all lengths; prefixes lengthen what does nothing."""
    gaps = "".join(f".skip {n}, 0xc3\n.p2align 5\n" for n in range(1, 32))
    prefixed = ".byte 0x2e, 0x8d, 0x74, 0x26, 0\n"  # by newer versions: lea esi, cs:[esi]
    (tmp_path / "a.s").write_text(gaps + (prefixed if bits == 32 else ""))
    command = ["as", f"--{bits}", tmp_path / "a.s", "-o", tmp_path / "a.o"]
    subprocess.run(command, check=True)
    with (tmp_path / "a.o").open("rb") as stream:
        code = ELFFile(stream).get_section_by_name(".text").data()
    mode = capstone.CS_MODE_32 if bits == 32 else capstone.CS_MODE_64
    instructions = capstone.Cs(capstone.CS_ARCH_X86, mode).disasm(code, 0)
    lines = [f"{i.mnemonic} {i.op_str}" for i in instructions]
    filling = {line for line in lines if not line.startswith(("ret", "jmp"))}  # jmp: over the rest
    assert len(filling) > 2
    assert [line for line in filling if not ARCHITECTURES[processor].idle.match(line)] == []


@pytest.fixture(scope="session")
def foreign(tmp_path_factory):
    """A folder of <target>/shapes, of all targets whose compilers are here."""
    folder = tmp_path_factory.mktemp("foreign")
    for name, (tools, flags) in TARGETS.items():
        if shutil.which(f"{tools}-gcc"):
            target = folder / name / "shapes"
            target.parent.mkdir()
            target.with_suffix(".c").write_text(SOURCE)
            source = target.with_suffix(".c")
            subprocess.run([f"{tools}-gcc", "-g", *flags, "-o", target, source], check=True)
            source.unlink()
            if target.with_suffix(".exe").exists():
                target.with_suffix(".exe").rename(target)
    return folder


@pytest.fixture(params=TARGETS)
def target(request, foreign, cached):
    """A target's name, its file and its analysis; skipped where its compiler is missing."""
    tools, _ = TARGETS[request.param]
    file = foreign / request.param / "shapes"
    if not file.exists():
        pytest.skip(f"no {tools}-gcc; on Debian and Ubuntu: apt install gcc-... (see the file)")
    if request.param not in cached:
        cached[request.param] = analyse(file)
    return request.param, file, cached[request.param]


@pytest.fixture(scope="session")
def cached():
    return {}


def listing(file, tools) -> dict[str, list[tuple[int, str]]]:
    command = [f"{tools}-objdump", "-d", "-w", "--no-show-raw-insn", str(file)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, list[tuple[int, str]]] = {}
    inside = None
    for line in run.stdout.splitlines():
        if head := re.match(r"[0-9a-f]+ <(.+)>:$", line):
            inside = found.setdefault(head[1], [])
        elif (row := re.match(r" *([0-9a-f]+):\t(.*)$", line)) and inside is not None:
            inside.append((int(row[1], 16), row[2].strip()))
    return found


def test_all_code_of_our_functions_is_there(target):
    """Except padding and data, each instruction of objdump is in our analysis at its address."""
    import angr

    name, file, analysis = target
    project = angr.Project(str(file), auto_load_libs=False)
    shift = project.loader.main_object.mapped_base - project.loader.main_object.linked_base
    ours: dict[int, str] = {}
    for block in range(analysis.code_blocks):
        text = analysis.instructions[block].decode().splitlines()
        address = int(analysis.address[block])
        starts = project.factory.block(address, num_inst=len(text)).instruction_addrs
        ours |= {
            (a & ~1 if "thumb" in name else a) - shift: t for a, t in zip(starts, text, strict=True)
        }
    for function in OURS:
        rows = listing(file, TARGETS[name][0])[function]
        code = [
            (a, text) for a, text in rows if not re.match(r"\.(word|short|byte)|.*\bnop|xchg", text)
        ]
        assert len(code) >= 3
        for address, text in code:
            assert address in ours, f"{function}: {address:x} {text}"
            mnemonic = text.split()[0].split(".")[0]
            if mnemonic in SAME_EVERYWHERE:
                assert ours[address].split()[0].split(".")[0] == mnemonic, (ours[address], text)


def test_the_comparators_address_is_taken(target):
    """However the processor forms an address."""
    _, _, analysis = target
    taken = [analysis.function_name[analysis.function[b]] for b in analysis.taken_block]
    takers = [analysis.function_name[analysis.function[b]] for b in analysis.taker_block]
    used = [taker for taker, f in zip(takers, taken, strict=True) if f == "compare"]
    assert len(used) == 1
    assert used[0] in OURS
    pairs = zip(analysis.taker_block.tolist(), analysis.taken_block.tolist(), strict=True)
    assert not {*pairs} & {*map(tuple, analysis.edges.tolist())}  # branches take no address


def test_start_up_code_takes_the_address_of_main(target):
    """On AArch64 from the global offset table, or that of a jump there within _start."""
    name, _, analysis = target
    if "windows" in name:
        pytest.skip("Windows' start-up code calls it")
    main = "_start" if name == "aarch64-O2-nopie" else "main"
    taken = [analysis.function_name[analysis.function[b]] for b in analysis.taken_block]
    takers = [analysis.function_name[analysis.function[b]] for b in analysis.taker_block]
    assert {taker for taker, f in zip(takers, taken, strict=True) if f == main} == {"_start"}


def is_stub(rows, name: str) -> bool:
    """Whether ``name`` is the import, and not one of MinGW's functions of the same name."""
    inside = [text for _, text in rows.get(name, []) if not re.search(r"\bnop", text)]
    return len(inside) <= 1


def test_calls_become_names_of_imports(target):
    name, file, analysis = target
    rows = listing(file, TARGETS[name][0])
    called = {}
    for function in OURS:
        for _, text in rows[function]:
            call = re.match(r"(?:bl|blx|call|callq)\s+[^<]*<(\w+)(?:@plt)?>$", text)
            if call and call[1] in analysis.import_name and is_stub(rows, call[1]):
                called.setdefault(call[1], []).append(function)
    assert {"malloc", "qsort", "free"} <= set(called)  # others may be jumped to at -O2
    assert len(set(analysis.import_name)) == len(analysis.import_name)
    calls = analysis.edges[analysis.kind == CALL]
    for imported, where in called.items():
        node = analysis.code_blocks + analysis.import_name.index(imported)
        callers = [b for b in calls[calls[:, 1] == node][:, 0].tolist()]
        found = [analysis.function_name[analysis.function[b]] for b in callers]
        assert sorted(f for f in found if f in OURS) == sorted(where), imported
        for block in callers:
            assert words(analysis, block)[-1] == imported


def test_strings_become_words(target):
    name, _, analysis = target
    text = {b: " ".join(words(analysis, b)) for b in range(analysis.code_blocks)}
    for literal in LITERALS:
        found = [b for b in text if literal in text[b]]
        assert found, literal
        assert set(found) <= set(analysis.string_block.tolist())
        if "windows" not in name:  # MinGW makes a copy of printf for its one format
            assert len(found) == 1
            assert analysis.function_name[analysis.function[found[0]]] in OURS


def test_imported_variables_have_names(target):
    name, _, analysis = target
    if "windows" in name:
        pytest.skip("Windows' C library gives its streams by a call")
    if name in ("thumb-O1", "arm-O1"):
        pytest.skip("the place in the GOT is a sum of two registers, which nobody follows")
    of = analysis.function[analysis.variable_block].tolist()
    using = {
        analysis.function_name[f]
        for f, variable in zip(of, analysis.variable_name, strict=True)
        if variable == "stderr"
    }
    assert using & set(OURS) == {"usage", "copy"}


def test_the_switch_is_resolved(target):
    _, _, analysis = target
    inside = [
        b
        for b in range(analysis.code_blocks)
        if analysis.function_name[analysis.function[b]] == "kind"
    ]
    entry = min(inside)
    out: dict[int, list[int]] = {}
    for (a, b), kind in zip(analysis.edges.tolist(), analysis.kind.tolist(), strict=True):
        if kind != CALL:
            out.setdefault(a, []).append(b)
    reached, ahead = {entry}, [entry]
    while ahead:
        for block in out.get(ahead.pop(), []):
            if block not in reached:
                reached.add(block)
                ahead.append(block)
    assert reached >= set(inside)


def test_registers_have_their_width(target):
    name, _, analysis = target
    everything = set(tokenise(analysis).dictionary)
    if name.startswith(("arm", "thumb")):
        assert "reg4" in everything
        assert not {"reg1", "reg2"} & everything
    else:
        assert {"reg4", "reg8"} <= everything


def test_pairs_across_architectures_merge_at_imports_and_strings(builds, foreign, tmp_path):
    """x86-64, AArch64, ARM and Windows through gendata.py and dataprocess.py."""
    shutil.copytree(builds / "O2", tmp_path / "binaries" / "O2")
    for name in ("aarch64-O0", "thumb-O1", "windows-O0"):
        if not (foreign / name).exists():
            pytest.skip(f"no {TARGETS[name][0]}-gcc")
        shutil.copytree(foreign / name, tmp_path / "binaries" / name)
    gendata_py(tmp_path, "--biname", "shapes", "--path", "binaries", "--workers", 2)
    pairs = [json.loads(f.read_text()) for f in (tmp_path / "data").glob("*/pair.json")]
    assert len(pairs) == 6
    for pair in pairs:
        first, second = (load_analysis(tmp_path / "output" / f) for f in pair["analyses"])
        merged, texts = merge(first, second), tokenise(first).words()
        at = [" ".join(texts[a]) for a in merged.merged[:, 0].tolist()]
        assert {"malloc", "free", "qsort"} <= set(at)
        for literal in LITERALS:
            assert any(literal in text for text in at), (pair["binaries"], literal)
        assert pair["counts"]["documents_in_both"] > 0
    dataprocess.main(
        *(str(tmp_path / name) for name in ("data", "output", "vocab.txt", "data/corpus.txt")),
        workers=1,
    )
    vocabulary = (tmp_path / "vocab.txt").read_text().splitlines()
    assert {"adrp", "lea", "malloc", "reg8"} <= set(vocabulary)
    about = json.loads((tmp_path / "data/corpus.json").read_text())
    assert min(pair["documents"] for pair in about["pairs"]) > 10
    assert np.all([pair["split"] == "train" for pair in about["pairs"]])
