"""files/arrays.py: files that match the schema are read back equal, all others are refused."""

import dataclasses
import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from binary.analysis import load_analysis, save_analysis
from files import arrays
from files.arrays import Numbers, Texts, read_arrays, write_arrays
from utils import UserError

SCHEMA = {
    "edges": Numbers("i4", "m", 2, below="B"),
    "offsets": Numbers("i8", "B + 1", rises_to="T"),
    "tokens": Numbers("i4", "T", below="W"),
    "words": Texts("W"),
    "code": Texts("B", raw=True),
    "score": Numbers("f4 f8", "m"),
    "returns": Numbers("?", "B"),
    "name": Numbers("U", "m"),
}
GOOD = {
    "edges": np.array([[0, 1], [1, 2]], np.int32),
    "offsets": np.array([0, 2, 2, 3]),
    "tokens": np.array([1, 0, 1], np.int32),
    "words": ["mov", "ä b"],
    "code": [b"\xff", b"", b"\0\n"],
    "score": np.array([0.5, -1], np.float32),
    "returns": np.array([True, False, True]),
    "name": np.array(["a", "größer"]),
}


def read(file):
    return read_arrays(file, SCHEMA, "table", "make it again")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "table.npz"
    with path.open("wb") as out:
        write_arrays(out, GOOD, SCHEMA)
    return path


def test_what_was_written_is_read(file):
    values = read(file)
    assert values.keys() == GOOD.keys()
    for name, value in GOOD.items():
        if isinstance(value, list):
            assert values[name] == value
        else:
            assert values[name].dtype == value.dtype
            assert values[name].tolist() == value.tolist()
    assert read_arrays(file, {"words": SCHEMA["words"]}, "table", "")["words"] == GOOD["words"]


def test_arrays_whose_columns_come_first(tmp_path):
    values = np.arange(6, dtype=np.int32).reshape(2, 3)
    np.savez(tmp_path / "f.npz", x=np.asfortranarray(values))
    read = read_arrays(tmp_path / "f.npz", {"x": Numbers("i4", 2, "n")}, "table", "")
    assert read["x"].tolist() == values.tolist()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"edges": None}, "'edges' is missing"),
        ({"words_offsets": None}, "'words_offsets' is missing"),
        ({"edges": np.zeros((2, 2))}, "'edges' is of type float64, not int32"),
        ({"edges": np.zeros((2, 2), ">i4")}, "'edges' is of type >i4"),
        ({"edges": np.zeros((2, 2), object)}, "'edges' "),
        ({"name": np.array(["a", "b"], ">U1")}, "'name' is of type >U1, not U"),
        ({"name": np.array([b"a", b"b"])}, "'name' is of type .S1, not U"),
        ({"edges": np.zeros((2, 3), np.int32)}, r"'edges' has the shape \(2, 3\)"),
        ({"edges": np.zeros(2, np.int32)}, "'edges' has 1 dimensions, not 2"),
        ({"edges": np.zeros((2, 0), np.int32)}, r"'edges' has the shape \(2, 0\)"),
        ({"score": np.zeros(3, np.float32)}, r"'score' has the shape \(3,\), which does not fit"),
        ({"returns": np.ones(4, bool)}, "'returns' has the shape"),
        ({"offsets": np.zeros(0, np.int64)}, "'offsets' has the shape"),
        ({"edges": np.array([[0, 1], [1, 3]], np.int32)}, "'edges' holds 3, which is not in 0"),
        ({"edges": np.array([[0, -1], [1, 1]], np.int32)}, "'edges' holds -1"),
        ({"tokens": np.array([1, 0, 2], np.int32)}, "'tokens' holds 2, which is not in 0 to 1"),
        ({"offsets": np.array([1, 2, 2, 3])}, "'offsets' does not rise from 0 to 3"),
        ({"offsets": np.array([0, 2, 2, 4])}, "'offsets' does not rise from 0 to 3"),
        ({"offsets": np.array([0, 2, 1, 3])}, "'offsets' does not rise from 0 to 3"),
        ({"words_offsets": np.array([0, 99, 7])}, "'words_offsets' does not rise"),
        ({"words": np.array([255] * 7, np.uint8)}, "codec can't decode"),
        ({"score": np.array([0, np.nan], np.float32)}, "'score' holds a number that is not finite"),
        ({"score": np.array([np.inf, 0])}, "'score' holds a number that is not finite"),
        ({"returns": np.array([1, 2, 0], np.uint8).view(bool)}, "something other than true"),
        ({"name": np.array([0x110000, 5], np.uint32).view("U1")}, "'name' holds an invalid char"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(file, change, reason):
    with np.load(file) as old:
        values = dict(old) | change
    np.savez(file, **{name: value for name, value in values.items() if value is not None})
    with pytest.raises(UserError, match=rf"the table .*\.npz is damaged \(.*{reason}") as caught:
        read(file)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("); make it again")


def npy(dtype, shape, content=b""):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return header.getvalue() + content


def replaced(file, name, content, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(file) as archive:
        members = {entry: archive.read(entry) for entry in archive.namelist()}
    members[f"{name}.npy"] = content
    with zipfile.ZipFile(file, "w", method) as archive:
        for entry, data in members.items():
            archive.writestr(entry, data)


@pytest.mark.parametrize("length", [10**12, 2**63, -1, 10**30])
def test_a_length_that_is_only_declared(file, length):
    replaced(file, "tokens", npy("<i4", (length,)))
    with pytest.raises(
        UserError, match=r"'tokens' has .* bytes, but its header says|a negative length"
    ):
        read(file)


def test_a_small_file_that_would_fill_the_memory(file, monkeypatch):
    monkeypatch.setattr(arrays, "SMALL", 2**24)
    size = 2**26
    replaced(file, "tokens", npy("<i4", (size // 4,), b"\0" * size))
    assert file.stat().st_size < 2**17
    tracemalloc.start()
    with pytest.raises(UserError, match=r"would unpack to 67,\d\d\d,\d\d\d bytes, more than 16,7"):
        read(file)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_directory_that_lies_about_sizes(file):
    """The zip directory says that an array is small, but the packed data never ends."""
    more = 2**26
    whole = npy("<i4", (3,), b"\0" * 12)
    replaced(file, "tokens", whole + b"\0" * more)
    data = bytearray(file.read_bytes())
    size = (len(whole) + more).to_bytes(4, "little")
    assert data.count(size) == 2
    file.write_bytes(data.replace(size, len(whole).to_bytes(4, "little")))
    tracemalloc.start()
    with pytest.raises(UserError, match="Bad CRC-32"):
        read(file)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_other_files_and_other_packings(file, tmp_path):
    whole = file.read_bytes()
    for content in (b"", b"PK", whole[:-2], whole[:200], whole[100:], b"\x93NUMPY" + whole):
        file.write_bytes(content)
        if content == b"\x93NUMPY" + whole:
            assert read(file)["words"] == GOOD["words"]  # a zip file may begin with other bytes
            continue
        with pytest.raises(UserError, match=r"table\.npz is damaged"):
            read(file)
    file.write_bytes(whole)
    replaced(file, "tokens", b"hello")
    with pytest.raises(UserError, match=r"something other than \.npy files"):
        read(file)
    with pytest.raises(UserError, match=r"cannot read the table .*none\.npz: No such file"):
        read(tmp_path / "none.npz")
    with pytest.raises(UserError, match="cannot read the table"):
        read(tmp_path)


@given(st.data())
def test_bytes_that_are_changed_anywhere(tmp_path_factory, data):
    """With any bits flipped, the arrays are the same, or match the schema, or are refused."""
    file = tmp_path_factory.mktemp("flipped") / "table.npz"
    with file.open("wb") as out:
        write_arrays(out, GOOD, SCHEMA)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        values = read(file)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert len(values["words"]) > values["tokens"].max(initial=-1)


def test_an_analysis_is_checked_when_it_is_read(analyses, tmp_path):
    file = tmp_path / "analysis.npz"
    good = analyses["O0"]
    save_analysis(good, file)
    assert load_analysis(file).blocks == good.blocks
    last = good.blocks - 1
    for name, value in {
        "edges": np.array([[0, good.blocks]], np.int32),
        "function": np.full(good.blocks, -1, np.int32),
        "instruction_form": good.instruction_form + len(good.form),
        "operand_string": good.operand_string[1:],
        "first_instruction": good.first_instruction[:-1],
        "kind": good.kind + 3,
        "taken_block": np.full(len(good.taken_block), last, np.int32),  # an import has no code
        "pointer_block": good.pointer_block[:-1],
        "address": good.address[::-1].copy(),
        "function_address": good.function_address[::-1].copy(),
        "import_name": good.import_name[1:],
        "instructions": good.instructions[1:],
        "instruction_size": good.instruction_size[:0],
    }.items():
        save_analysis(dataclasses.replace(good, **{name: value}), file)
        with pytest.raises(UserError, match=r"the cached analysis .*analysis\.npz is damaged"):
            assert load_analysis(file) is None, name
