"""encoder/index.py: vectors are read back, and the nearest ones are those of a plain sort."""

import re
import subprocess
import sys

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder import index
from encoder.calibration import Calibration, fit
from encoder.map import _labels as map_labels
from encoder.map import draw_map
from files import arrays
from jobs.processes import limited_memory
from utils import UserError


def unit(rng, n, width=8):
    vector = rng.normal(size=(n, width)).astype(np.float16).astype(np.float32)
    return vector


def add(folder, n, number=0, encoder="e", width=8):
    rng = np.random.default_rng(number)
    binary = index.Binary(f"/b/{number}", f"{number:064x}", "AMD64")
    vector = unit(rng, n, width)
    names = [f"f{number}_{i}\n\x1b[" for i in range(n)]
    address = np.arange(n, dtype=np.uint64) + np.uint64(0xFFFFFFFF81000000)
    index.add(folder, encoder, binary, address, names, np.arange(n), vector)
    return binary, address, names, vector


def test_what_is_added_is_read_and_nothing_else_is_touched(tmp_path):
    first = add(tmp_path, 3, 1)
    before = index.index_file(tmp_path, first[0].sha256).read_bytes()
    second = add(tmp_path, 2, 2)
    assert index.index_file(tmp_path, first[0].sha256).read_bytes() == before
    found = index.read(tmp_path, "e", 8)
    assert found.binaries == [first[0], second[0]]
    assert found.binary.tolist() == [0, 0, 0, 1, 1]
    assert [found.name_of(i) for i in range(len(found))] == first[2] + second[2]
    assert found.address.tolist() == [*first[1].tolist(), *second[1].tolist()]
    assert np.array_equal(found.vector, np.concatenate([first[3], second[3]]))
    again = add(tmp_path, 3, 1)  # the same content replaces itself
    assert index.read(tmp_path, "e", 8).binaries == [again[0], second[0]]


def test_reading_starts_no_thread(tmp_path):
    """A thread that holds the Python file while Python ends would abort the process."""
    add(tmp_path, 3, 1)
    script = """if True:
        import os, sys
        from encoder import index

        before = set(os.listdir("/proc/self/task"))
        index.read(sys.argv[1], "e", 8)
        print(len(set(os.listdir("/proc/self/task")) - before))
        """
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "0\n", done.stderr


def test_file_names_that_are_not_text(tmp_path):
    vector = np.eye(1, 8, dtype=np.float32)
    binary = index.Binary("b/\udcff\x1b.bin", "0" * 64, "x86")
    index.add(tmp_path, "e", binary, np.arange(1, dtype=np.uint64), ["f"], np.ones(1), vector)
    assert index.read(tmp_path, "e", 8).binaries[0].path == r"b/\xff\x1b.bin"


def test_two_encoders_do_not_mix(tmp_path):
    add(tmp_path, 3, 1)
    add(tmp_path, 3, 2, encoder="other")
    with pytest.raises(UserError, match="vectors of another encoder"):
        index.read(tmp_path, "e", 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no index"):
        index.read(tmp_path / "empty", "e", 8)
    with pytest.raises(UserError, match=r"--index_dir .*none: there is no such folder"):
        index.read(tmp_path / "none", "e", 8)


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "noise", "bit", "columns", "metadata", "nan", "null"]
)
def test_damaged_parts_are_named(tmp_path, damage):
    binary, *_ = add(tmp_path, 5, 1)
    file = index.index_file(tmp_path, binary.sha256)
    whole = file.read_bytes()
    table = pyarrow.parquet.read_table(file)
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "noise":
        file.write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    elif damage == "bit":
        at = whole.index(table["vector"][2].as_py())
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    elif damage == "columns":
        pyarrow.parquet.write_table(table.drop_columns(["vector"]), file)
    elif damage == "metadata":
        pyarrow.parquet.write_table(table.replace_schema_metadata({}), file)
    else:
        nothing = pa.array([None] * 5, pa.binary(16))
        column = index.packed(np.full((5, 8), np.nan)) if damage == "nan" else nothing
        pyarrow.parquet.write_table(table.set_column(3, "vector", column), file)
    with pytest.raises(UserError, match="is not part of an index"):
        index.read(tmp_path, "e", 8)


def of_rows(rows, name="f", width=8):
    """A table as `index.add` writes it, of one row again and again."""
    address, blocks = (
        pa.repeat(pa.scalar(0, pa.uint64()), rows),
        pa.repeat(pa.scalar(1, pa.int32()), rows),
    )
    names = pa.DictionaryArray.from_arrays(
        pa.repeat(pa.scalar(0, pa.int32()), rows), pa.array([name])
    )
    columns = {
        "address": address,
        "name": names,
        "blocks": blocks,
        "vector": index.packed(np.zeros((rows, width))),
    }
    about = {"format": index.FORMAT, "encoder": "e", "path": "p", "sha256": "0", "processor": "x"}
    return pa.table(columns).replace_schema_metadata(about)


@pytest.mark.parametrize(("rows", "width", "group"), [(20_000, 8, 20_000), (100, 3000, 25)])
def test_a_small_file_that_would_fill_the_memory(tmp_path, monkeypatch, rows, width, group):
    monkeypatch.setattr(arrays, "SMALL", 2**19)
    monkeypatch.setattr(arrays, "RATIO", 50)
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(of_rows(rows, width=width), file, row_group_size=group)
    assert file.stat().st_size < 2**14
    with pytest.raises(UserError, match=r"is not part of an index [(]it would unpack to"):
        index.read(tmp_path, "e", width)


def test_a_long_name_of_many_functions_is_kept_once(tmp_path):
    pyarrow.parquet.write_table(of_rows(10**4, name="f" * 10**6), tmp_path / "a.parquet")
    with limited_memory(psutil.Process().memory_info().rss / 2**30 + 1, "reading"):
        found = index.read(tmp_path, "e", 8)
    assert len(found) == 10**4
    assert not found.name.any()
    assert found.names.to_pylist() == ["f" * 10**6]


def test_functions_of_equal_vectors(tmp_path):
    """Parquet can store equal values once, so a file may hold more vectors than its size says."""
    for number in range(3):
        table = of_rows(1000 + number, name=f"f{number}")
        pyarrow.parquet.write_table(table, tmp_path / f"{number}.parquet")
    found = index.read(tmp_path, "e", 8)
    assert len(found) == 3003 == len(found.vector)
    assert found.vector.nbytes > sum(file.stat().st_size for file in tmp_path.iterdir())
    assert not found.vector.any()
    assert found.names.take(found.name).to_pylist() == [
        f"f{number}" for number in range(3) for _ in range(1000 + number)
    ]


def test_halves_are_widened_and_checked_like_numpy():
    half = np.arange(2**16, dtype="<u2").view("<f2")
    finite = np.isfinite(half)
    assert [index.is_finite(half[i : i + 1]) for i in range(2**16)] == finite.tolist()
    assert index.is_finite(half[finite])
    assert index.is_finite(half[:0])
    wide = np.empty(finite.sum(), np.int32)
    index.widen(half[finite], wide)
    assert wide.tobytes() == half[finite].astype(np.float32).tobytes()


def test_vectors_of_another_length_are_refused(tmp_path):
    add(tmp_path, 3, 1)
    with pytest.raises(UserError, match="has vectors of 8 dimensions, and its encoder makes 9"):
        index.read(tmp_path, "e", 9)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(0, 5), st.integers(1, 40), st.integers(0, 2**16))
def test_nearest_is_a_plain_sort(n, queries, count, seed):
    rng = np.random.default_rng(seed)
    vector = rng.integers(-2, 3, size=(n, 3)).astype(np.float16)  # many equal products
    asked = rng.integers(-2, 3, size=(queries, 3)).astype(np.float32)
    allowed = rng.random(n) < 0.7
    names = rng.integers(0, 4, n).astype(np.int32)
    said = pa.array(["a", "b", "c", "d"])
    table = index.Index([], np.zeros(n, np.int32), np.zeros(n), names, said, np.zeros(n), vector)
    how = Calibration(scale=0.5, none=1.0)
    found, cosine, chance = index.nearest(table, asked, count, how, allowed)
    for row, functions, scores, chances in zip(asked, found, cosine, chance, strict=True):
        products = vector @ row
        expected = sorted(np.flatnonzero(allowed), key=lambda i: (-products[i], i))[:count]
        assert functions.tolist() == expected
        assert np.allclose(scores, products[expected])
        best: dict[int, float] = {}
        for i in np.flatnonzero(allowed):
            best[names[i]] = max(best.get(names[i], -np.inf), products[i])
        total = sum(np.exp(0.5 * (x - 1)) for x in best.values()) + 1  # and none
        assert np.allclose(chances, [np.exp(0.5 * (best[names[i]] - 1)) / total for i in functions])
    found, cosine, chance = index.nearest(table, asked, count, how, allowed, by_name=True)
    every = index.nearest(table, asked, n, how, allowed)
    for row, whole in zip(
        zip(found, cosine, chance, strict=True), zip(*every, strict=True), strict=True
    ):
        of_name = dict(reversed([(names[i], (i, c, x)) for i, c, x in zip(*whole, strict=True)]))
        nearest = [of_name[name] for name in dict.fromkeys(names[whole[0]])][:count]
        assert [*zip(*row, strict=True)] == nearest


def test_as_many_answers_are_right_as_their_chances_say():
    """Of names that are given a chance of 70 to 90 %, about as many are right; of others, too."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 24))
    y = x + rng.normal(size=x.shape) * rng.choice([0.3, 1.2, 3.0], (900, 1))
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    how = fit(x[:600], y[:600])
    here = np.arange(600, 750)  # the last 150 are strangers
    chance = how.chances(x[600:] @ y[here].T)
    assert (chance.sum(1) < 1).all()
    best, said = chance.argmax(1), chance.max(1)
    right = best == np.arange(300)
    for low, high in ((0, 0.3), (0.3, 0.7), (0.7, 1)):
        some = (said >= low) & (said < high)
        assert some.sum() > 15
        assert abs(right[some].mean() - said[some].mean()) < 0.15
    few, many = how.chances(np.full((1, 3), 0.5)), how.chances(np.full((1, 300), 0.5))
    assert few.max() > many.max()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("rows", "text"), [(1, "1 function of 1 file"), (20, "20 functions of 1")])
def test_a_map_of_functions_that_are_all_the_same(tmp_path, rows, text):
    pyarrow.parquet.write_table(of_rows(rows), tmp_path / "a.parquet")
    draw_map(index.read(tmp_path, "e", 8), str(tmp_path / "map.svg"))
    assert text in (tmp_path / "map.svg").read_text()


def test_the_map_names_the_largest_files(tmp_path):
    for number in range(1, 13):
        add(tmp_path, number, number)
    draw_map(index.read(tmp_path, "e", 8), str(tmp_path / "map.svg"))
    texts = re.findall("<!-- (.*) -->", (tmp_path / "map.svg").read_text())
    files = [f"{n} ({n})" for n in range(12, 3, -1)]
    assert [text for text in texts if text[0].isdigit()][1:] == ["3 other files", *files]
    assert map_labels(["old/$f", "/b/new/$f"]) == [r"old/\$f", r"new/\$f"]
    assert map_labels(["old/f", "new/g\x1b"]) == ["f", r"g\x1b"]
    assert map_labels(["1/lib/f", "/b/2/lib/f", "g"]) == ["1/lib/f", "2/lib/f", "g"]
    assert map_labels(["lib/f", "lib/f", "g"]) == ["f", "f", "g"]  # two files were there in turn
