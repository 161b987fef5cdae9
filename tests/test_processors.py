"""All processors: functions, imports and strings of stripped files; a diff of each with itself.

The compiler is zig, from PyPI, which includes clang and linkers for all of them.
"""

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from zig import SOURCE, STRINGS, zig

from binary.analysis import SOURCES, load_analysis, save_analysis
from binary.architectures import ARCHITECTURES
from binary.disassemble import analyse
from binary.exports import read_exports
from binary.tokens import tokenise
from features.extract import extract_features
from matching.changes import compare
from matching.model import DEFAULT, read_model
from matching.result import IDENTICAL
from pairs.merge import merge
from pairs.walks import control_flow_walks, walk_graph

TARGETS = {  # the target's name for zig -> ours
    "x86_64-linux-gnu": "x86_64",
    "x86-linux-gnu": "i386",
    "aarch64-linux-gnu": "aarch64",
    "arm-linux-gnueabihf": "arm",
    "thumb-linux-gnueabihf": "arm",
    "mips-linux-gnueabihf": "mips",
    "mipsel-linux-gnueabihf": "mipsel",
    "mips64-linux-gnuabi64": "mips64",
    "mips64el-linux-gnuabi64": "mips64el",
    "powerpc-linux-gnueabihf": "powerpc",
    "powerpc64-linux-gnu": "powerpc64",
    "powerpc64le-linux-gnu": "powerpc64le",
    "riscv64-linux-gnu": "riscv64",
    "s390x-linux-gnu": "s390x",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processors")
    (folder / "tiny.c").write_text(SOURCE)
    return folder


@pytest.fixture(scope="module", params=TARGETS)
def built(request, folder):
    """A shared object with symbols, and the analysis of a stripped copy; one for each target."""
    file = folder / request.param
    flags = ["-O1", "-shared", "-nostdlib", "-fPIC", folder / "tiny.c", "-o"]
    zig(request.param, *flags, file)
    zig(request.param, "-s", *flags, f"{file}-stripped")
    return request.param, file, analyse(f"{file}-stripped")


def symbols(file) -> dict[str, int]:
    """Return the functions of a file by pyelftools, without stubs of the linker."""
    with file.open("rb") as stream:
        table = ELFFile(stream).get_section_by_name(".symtab")
        return {
            s.name: s["st_value"]
            for s in table.iter_symbols()
            if s["st_info"]["type"] == "STT_FUNC"
            and s["st_shndx"] != "SHN_UNDEF"
            and "plt" not in s.name
            and "Thunk" not in s.name
        }


def base(analysis, truth) -> int:
    """Return the address where angr maps a file that is linked at 0."""
    return int(analysis.function_address[0]) - min(truth.values())


def test_processor_and_every_function_of_a_stripped_file(built):
    target, file, analysis = built
    assert analysis.processor == TARGETS[target]
    assert set(TARGETS.values()) == set(ARCHITECTURES) - {"aarch64_be", "armeb"}
    truth = symbols(file)
    starts = {int(a) for a in analysis.function_address[: analysis.code_functions]}
    linked = {start - base(analysis, truth) for start in starts}
    assert set(truth.values()) <= linked
    # All others begin in the linker's own code, behind all functions.
    assert all(start > max(truth.values()) for start in linked - set(truth.values()))
    assert set(analysis.start_source.tolist()) <= {
        SOURCES.index(name) for name in (".eh_frame", ".ARM.exidx", "exported symbols")
    }


def test_symbols_give_names_and_nothing_else(built):
    _, file, stripped = built
    analysis = analyse(file)
    truth = symbols(file)
    names = dict(zip(truth.values(), truth, strict=True))
    for address, name in zip(analysis.function_address, analysis.function_name, strict=True):
        if int(address) - base(analysis, truth) in names:
            assert name == names[int(address) - base(analysis, truth)]
    for field in ("address", "function", "edges", "kind", "returns", "function_address"):
        assert np.array_equal(getattr(analysis, field), getattr(stripped, field)), field
    assert analysis.instructions == stripped.instructions
    assert analysis.string == stripped.string


def test_exported_names_survive_stripping(built):
    _, file, analysis = built
    truth = symbols(file)
    exported = read_exports(f"{file}-stripped")
    names = {"scale", "count", "kind", "copy", "recurse", "choose", "start"}
    linked = {export.name: export.address - base(analysis, truth) for export in exported}
    assert linked == {name: truth[name] for name in names}
    assert exported == read_exports(file)
    assert {export.address for export in exported} <= set(analysis.function_address.tolist())


def test_imports_and_strings_are_found(built):
    _, _, analysis = built
    assert {"abort", "malloc", "puts"} <= set(analysis.import_name)
    assert set(analysis.import_name) <= {"abort", "malloc", "puts", "memcpy"}
    assert set(analysis.string) >= STRINGS


def test_calls_of_exported_functions_lead_to_them(built):
    _, file, analysis = built
    at = {a: i for i, a in enumerate(analysis.function_address[: analysis.code_functions].tolist())}
    truth = symbols(file)
    number = {name: at[a + base(analysis, truth)] for name, a in truth.items()}
    calls = {tuple(pair) for pair in analysis.function[analysis.edges].tolist()}
    for caller, called in [("kind", "count"), ("start", "copy"), ("start", "kind")]:
        assert (number[caller], number[called]) in calls, (caller, called)
    assert (number["recurse"], number["recurse"]) in calls


def test_diff_with_itself_walks_and_vectors(built, tmp_path):
    _, _, analysis = built
    save_analysis(analysis, tmp_path / "a.npz")
    loaded = load_analysis(tmp_path / "a.npz")
    assert loaded.processor == analysis.processor
    features = extract_features(loaded)
    model = read_model(str(DEFAULT))
    diff = compare(features, features, model)
    assert {row.status for row in diff.functions} == {IDENTICAL}
    assert all(a == b for a, b in (row.sides for row in diff.functions))
    vectors = model.encoder(features)
    assert len(vectors) == features.functions
    assert np.isfinite(vectors).all()
    assert {f"reg{loaded.pointers[0]}", "ptr", "imme"} <= set(tokenise(loaded).dictionary)
    pair = merge(loaded, loaded)
    assert len(pair.merged) >= len(loaded.import_name)
    graph = walk_graph(pair.edges, pair.kind, pair.merged, pair.function, pair.returns)
    has_code = np.tile(np.arange(loaded.blocks) < loaded.code_blocks, 2)
    walked, _ = control_flow_walks(graph, has_code, 1, 64, [0])
    assert set(np.flatnonzero(has_code)) <= set(walked.tolist())


@pytest.mark.parametrize(("register", "nops"), [("eax", 0), ("ecx", 0), ("ebx", 8)])
def test_texts_of_position_independent_i386_code(tmp_path, register, nops):
    """The address comes from a function that returns its own return address, as GCC makes it."""
    source = f"""    .globl what
    .type what, @function
what: .cfi_startproc
    pushl %ebx
    call thunk
    addl $_GLOBAL_OFFSET_TABLE_, %{register}
    leal text@GOTOFF(%{register}), %eax
    popl %ebx
    ret
    .cfi_endproc
    .type thunk, @function
thunk: .cfi_startproc
    {"nop; " * nops}movl (%esp), %{register}
    ret
    .cfi_endproc
    .section .rodata.str1.1,"aMS",@progbits,1
text: .asciz "what went wrong"
    """
    (tmp_path / "what.s").write_text(source)
    file = tmp_path / "what"
    zig("x86-linux-gnu", "-shared", "-nostdlib", tmp_path / "what.s", "-o", file)
    analysis = analyse(file)
    assert analysis.string == [b"what went wrong"]
    [block] = analysis.string_block.tolist()
    assert analysis.function_name[analysis.function[block]] == "what"
