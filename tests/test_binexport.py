"""BinExport files and BinDiff's database, read by independent readers, and by ourselves."""

import contextlib
import dataclasses
import logging
import shutil
import sqlite3
import subprocess

import numpy as np
import pytest
from conftest import SOURCE, compile_c, run_script
from hypothesis import given, settings
from hypothesis import strategies as st

from binary.analysis import STEP_OVER
from binary.binexport import IMPORTED, NORMAL, PROCESSORS, THUNK, messages, read_binexport
from binary.disassemble import analyse
from features.extract import extract_features
from matching.changes import compare
from matching.exports.bindiff import export_names, write_bindiff
from matching.exports.binexport import as_binexport
from matching.model import read_model
from utils import UserError

PATHS = "a/shapes", "b/shapes"
NAMES = export_names(PATHS)
KERNEL = "int g; int first(int x) { return g += x; } void _start(void) { for (;;) first(g); }"


@pytest.fixture(scope="module")
def codes(codes, patched):
    """The program before and after the patch."""
    return codes["O1"], patched


@pytest.fixture(scope="module")
def exported(codes, model, tmp_path_factory):
    """A folder with both BinExport files and the database."""
    folder = tmp_path_factory.mktemp("exports")
    for name, path, code in zip(NAMES, PATHS, codes, strict=True):
        (folder / f"{name}.BinExport").write_bytes(as_binexport(path, "12" * 32, code))
    found = compare(*codes, model)
    write_bindiff(str(folder / "x.BinDiff"), PATHS, ("12" * 32, "34" * 32), codes, found)
    return folder, found


def test_message_numbers_are_those_of_an_independent_description():
    pb2 = pytest.importorskip("binexport.binexport2_pb2", exc_type=ImportError)
    theirs = pb2.BinExport2.DESCRIPTOR
    ours = messages()

    def compare_messages(one, other):
        for field in one.fields:
            twin = other.fields_by_name[field.name]
            assert (field.number, field.is_repeated) == (twin.number, twin.is_repeated)
            enum = twin.type == twin.TYPE_ENUM  # encoded as int32
            assert field.type == (field.TYPE_INT32 if enum else twin.type), field.name
            if field.message_type:
                compare_messages(field.message_type, twin.message_type)

    compare_messages(ours.File.DESCRIPTOR, theirs)
    vertex = theirs.nested_types_by_name["CallGraph"].nested_types_by_name["Vertex"]
    values = vertex.enum_types_by_name["Type"].values_by_name
    assert tuple(values[name].number for name in ("NORMAL", "IMPORTED", "THUNK")) == (
        NORMAL,
        IMPORTED,
        THUNK,
    )


@pytest.mark.parametrize("side", [0, 1])
def test_python_binexport_reads_what_we_know(codes, exported, side):
    binexport = pytest.importorskip("binexport", exc_type=ImportError)
    logging.getLogger("binexport").setLevel(logging.CRITICAL)
    name = NAMES[side]
    program = binexport.ProgramBinExport(str(exported[0] / f"{name}.BinExport"))
    code, analysis = codes[side], codes[side].analysis
    ours = {int(a): f for f, a in enumerate(analysis.function_address[: code.functions])}
    theirs = {address: f for address, f in program.items() if not f.is_import()}
    assert theirs.keys() == ours.keys()
    assert {f.name for f in program.values() if f.is_import()} == set(analysis.import_name)
    for address, function in theirs.items():
        f = ours[address]
        assert function.name == analysis.function_name[f]
        blocks = analysis.address[code.blocks[f]].tolist()
        assert sorted(function.blocks) == sorted(blocks)
        inside = set(code.blocks[f].tolist())
        edges = {
            (int(analysis.address[a]), int(analysis.address[b]))
            for (a, b), kind in zip(analysis.edges.tolist(), analysis.kind.tolist(), strict=True)
            if a in inside and b in inside and kind != 1
        }
        assert set(function.graph.edges) == edges
        for block in code.blocks[f].tolist():
            theirs_block = function.blocks[int(analysis.address[block])]
            lines = analysis.instructions[block].decode().splitlines()
            assert len(theirs_block.instructions) == len(lines)
            assert theirs_block.bytes == analysis.code[block]
            for instruction, line in zip(theirs_block.instructions.values(), lines, strict=True):
                assert instruction.mnemonic == line.partition(" ")[0]
    main = theirs[int(analysis.function_address[analysis.function_name.index("main")])]
    assert {f.name for f in main.children} >= {"usage", "copy", "kind", "area", "qsort"}


def test_python_bindiff_reads_the_same_matches(codes, exported):
    bindiff = pytest.importorskip("bindiff", exc_type=ImportError)
    folder, found = exported
    logging.getLogger("binexport").setLevel(logging.CRITICAL)
    names = NAMES
    files = [str(folder / f"{name}.BinExport") for name in names]
    result = bindiff.BinDiff(*files, str(folder / "x.BinDiff"))
    assert [result.primary_file.filename, result.secondary_file.filename] == names
    rows = [row for row in found.functions if -1 not in row.sides]
    starts = [code.analysis.function_address.tolist() for code in codes]
    expected = {
        tuple(s[f] for s, f in zip(starts, row.sides, strict=True)): row.score for row in rows
    }
    matches = {(m.address1, m.address2): m.confidence for m in result.function_matches}
    assert matches == pytest.approx(expected)
    similar = {m.name1: m.similarity for m in result.function_matches}
    assert similar["area"] < 1 == similar["usage"]
    blocks = {(m.address1, m.address2) for m in result.basicblock_matches}
    function = [c.analysis.function for c in codes]
    pairs = {row.sides for row in rows}
    address = [c.analysis.address for c in codes]
    assert blocks == {
        (int(address[0][a]), int(address[1][b]))
        for a, b in zip(found.blocks.a, found.blocks.b, strict=True)
        if (int(function[0][a]), int(function[1][b])) in pairs
    }
    for match in result.basicblock_matches:
        assert result.primary_instruction_match[match.address1]


def test_file_names_that_are_not_text(codes, exported, tmp_path):
    paths = ("a/\udcff\n", "b/\udcff\n")
    names = export_names(paths)
    assert names == [r"\xff\n.old", r"\xff\n.new"]
    write_bindiff(str(tmp_path / "x"), paths, ("", ""), codes, exported[1])
    with contextlib.closing(sqlite3.connect(tmp_path / "x")) as database:
        rows = database.execute("SELECT filename, exefilename FROM file ORDER BY id").fetchall()
    assert rows == [(name, r"\xff\n") for name in names]
    (tmp_path / "y.BinExport").write_bytes(as_binexport(paths[0], "", codes[0]))
    assert read_binexport(str(tmp_path / "y.BinExport")).code_functions == codes[0].functions


def test_addresses_of_kernels_fit(tmp_path):
    binary = compile_c(
        KERNEL, tmp_path / "kern", "-O2", "-nostdlib", "-no-pie", "-fno-pie", "-mcmodel=kernel",
        "-Wl,-Ttext=0xffffffff81000000",
    )  # fmt: skip
    code = extract_features(analyse(binary))
    found = compare(code, code, read_model())
    write_bindiff(str(tmp_path / "x.BinDiff"), ("a", "b"), ("", ""), (code, code), found)
    with sqlite3.connect(tmp_path / "x.BinDiff") as database:
        stored = {a % 2**64 for (a,) in database.execute("SELECT address1 FROM function")}
        instructions = {a % 2**64 for (a,) in database.execute("SELECT address1 FROM instruction")}
    assert stored == set(code.analysis.function_address.tolist())
    assert min(instructions) >= 0xFFFFFFFF81000000
    (tmp_path / "k.BinExport").write_bytes(as_binexport("k", "", code))
    again = read_binexport(tmp_path / "k.BinExport")
    assert again.address.tolist() == code.analysis.address.tolist()


# A BinExport file does not contain these.
UNKNOWN = {"pointer_address", "pointer_block", "label_pointer", "label", "variable_name", "data"}
UNKNOWN |= {"imported_address", "imported_name", "pointers", "returns"}
UNKNOWN |= {"start_address", "start_end", "start_source"}


@pytest.mark.parametrize("build", ["O1", "O2", "O3-noplt"])
def test_what_we_write_we_read(analyses, build, tmp_path):
    analysis = analyses[build]
    file = tmp_path / "x.BinExport"
    file.write_bytes(as_binexport("x", "", extract_features(analysis)))
    again = analyse(file)
    # Nor does it know what an import does (qsort calls compare), nor edges from a call that does
    # not return to code in another function, which angr has.
    source, target = analysis.edges.T
    kept = source < analysis.code_blocks
    kept &= (analysis.kind != STEP_OVER) | (analysis.function[source] == analysis.function[target])
    analysis = dataclasses.replace(analysis, edges=analysis.edges[kept], kind=analysis.kind[kept])
    for field in dataclasses.fields(analysis):
        if field.name not in UNKNOWN:
            one, other = getattr(analysis, field.name), getattr(again, field.name)
            equal = np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
            assert equal, field.name
    n = analysis.code_blocks
    assert (again.returns[:n] == analysis.returns[:n]).mean() > 0.95


@pytest.mark.parametrize("compiler", ["aarch64-linux-gnu-gcc", "arm-linux-gnueabihf-gcc"])
def test_other_processors_are_read(compiler, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    (tmp_path / "s.c").write_text(SOURCE)
    subprocess.run([compiler, "-O1", "-o", tmp_path / "s", tmp_path / "s.c"], check=True)
    analysis = analyse(tmp_path / "s")
    code = extract_features(analysis)
    (tmp_path / "s.BinExport").write_bytes(as_binexport("s", "", code))
    again = analyse(tmp_path / "s.BinExport")
    for field in ("address", "function_address", "function_name", "instructions", "import_name"):
        assert list(getattr(again, field)) == list(getattr(analysis, field)), field
    found = compare(extract_features(again), code, read_model())
    assert all(a == b for a, b in (row.sides for row in found.functions))


def test_calls_end_blocks_and_stubs_are_imports(tmp_path):
    """IDA's files: a block continues after a call, and a stub leads to the import."""
    file = messages().File()
    file.meta_information.architecture_name = "x86-64"
    # main: call stub; xor eax, eax; ret.  stub: jmp [rip + 0x10]
    for name, code, calls in (
        (0x401000, b"\xe8\xfb\x0f\x00\x00", [0x402000]),
        (None, b"\x31\xc0", []),
        (None, b"\xc3", []),
        (0x402000, b"\xff\x25\x10\x00\x00\x00", [0x404000]),
    ):
        instruction = file.instruction.add(raw_bytes=code, call_target=calls)
        if name:
            instruction.address = name
    file.basic_block.add().instruction_index.add(begin_index=0, end_index=3)
    file.basic_block.add().instruction_index.add(begin_index=3)
    file.flow_graph.add(basic_block_index=[0], entry_basic_block_index=0)
    file.flow_graph.add(basic_block_index=[1], entry_basic_block_index=1)
    for address, kind, name in (
        (0x401000, NORMAL, "main"),
        (0x402000, THUNK, ".puts"),
        (0x404000, IMPORTED, "puts"),
    ):
        file.call_graph.vertex.add(address=address, type=kind, mangled_name=name)
    file.call_graph.edge.add(source_vertex_index=0, target_vertex_index=1)
    file.call_graph.edge.add(source_vertex_index=1, target_vertex_index=2)
    (tmp_path / "x.BinExport").write_bytes(file.SerializeToString())
    found = analyse(tmp_path / "x.BinExport")
    assert found.function_name == ["main", "puts"]
    assert found.import_name == ["puts"]
    assert found.address.tolist() == [0x401000, 0x401005, 0]
    assert found.instructions == [b"call 0x402000", b"xor eax, eax\nret", b""]
    edges = zip(found.edges.tolist(), found.kind.tolist(), strict=True)
    assert [(*ends, kind) for ends, kind in edges] == [(0, 1, 2), (0, 2, 1)]
    assert found.returns.tolist() == [False, True, True]


def test_binexports_are_compared(exported, tmp_path):
    folder, _ = exported
    names = [folder / f"{name}.BinExport" for name in NAMES]
    code, out, err = run_script(
        tmp_path, "diff.py", *names, "--bindiff", "x.BinDiff", "--binexport", "again",
        "--ghidra", "g.py", "--html", "x.html",
    )  # fmt: skip
    assert code == 0, err
    assert "     1 function changed" in out
    assert {file.name for file in (tmp_path / "again").iterdir()} == {
        f"{name.name}.BinExport" for name in names
    }
    assert "RELATIVE = False" in (tmp_path / "g.py").read_text()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: f.meta_information.Clear(), "the processor without a name"),
        (lambda f: f.flow_graph[0].basic_block_index.append(10**6), "it has no block 1000000"),
        (lambda f: f.flow_graph[0].basic_block_index.append(-1), "it has no block -1"),
        (lambda f: f.basic_block[0].instruction_index[0].Clear(), ""),
        (lambda f: f.instruction[0].ClearField("raw_bytes"), ""),
        (lambda f: f.ClearField("flow_graph"), "no function with code"),
    ],
)
def test_damaged_files_are_refused(exported, tmp_path, change, reason):
    folder, _ = exported
    file = messages().File()
    file.ParseFromString((folder / f"{NAMES[0]}.BinExport").read_bytes())
    change(file)
    path = tmp_path / "x.BinExport"
    path.write_bytes(file.SerializeToString())
    if not reason:
        with_error(path)
        return
    with pytest.raises(UserError, match=reason):
        read_binexport(path)


def with_error(path):
    """Read a file that may be damaged: the result is an analysis, or an error of one sentence."""
    said = ""
    try:
        read_binexport(path)
    except UserError as error:
        said = str(error)
    assert "\n" not in said


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_mutants_end_in_one_sentence(exported, seed, random):
    folder, _ = exported
    path = folder / "mutant.BinExport"
    content = bytearray((folder / f"{NAMES[0]}.BinExport").read_bytes())
    for _ in range(random.randint(1, 8)):
        content[random.randrange(len(content))] = random.randrange(256)
    path.write_bytes(content[: random.choice([len(content), seed % len(content)])])
    with_error(path)


def test_every_processor_is_known_to_archinfo():
    import archinfo

    from binary.architectures import ARCHITECTURES, processor_of
    from binary.binexport import ARCHINFO

    assert set(PROCESSORS.values()) <= ARCHINFO.keys() <= ARCHITECTURES.keys()
    for processor, (name, endness) in ARCHINFO.items():
        arch = getattr(archinfo, name)(getattr(archinfo.Endness, endness))
        assert processor_of(arch) == processor
