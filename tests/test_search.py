"""search.py: an index that grows; without symbols, the same functions are found in it."""

import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

import search
from encoder.index import Binary, add
from utils import UserError, sha256_of


def search_py(cwd, *arguments):
    done = subprocess.run(
        [sys.executable, str(ROOT / "search.py"), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def made(builds, tmp_path_factory):
    """An index of two builds, made in two runs; the second also gets a file that is no binary."""
    cwd = tmp_path_factory.mktemp("search")
    first = search_py(cwd, "index", builds / "O1")
    before = {file: file.read_bytes() for file in (cwd / "index").iterdir()}
    (cwd / "more").mkdir()
    (cwd / "more" / "b").write_bytes((builds / "O2" / "shapes").read_bytes())
    (cwd / "more" / "broken").write_bytes(b"\x7fELF and nothing else")
    (cwd / "more" / "text").write_text("no binary")
    second = search_py(cwd, "index", "more", builds / "O1", "--plot", "map.svg")
    return cwd, first, second, before


def test_an_index_grows(made):
    cwd, first, second, before = made
    assert first.returncode == 0
    assert "functions of 1 file, 1 new" in first.stdout
    assert second.returncode == 3  # one was skipped
    assert "functions of 2 files, 1 new" in second.stdout
    assert "skipped more/broken" in second.stderr
    assert "text" not in second.stderr
    for file, content in before.items():
        assert file.read_bytes() == content
    assert (cwd / "map.svg").read_text().lstrip().startswith("<?xml")


def test_the_number_of_workers_changes_no_byte(made, builds, tmp_path):
    cwd, *_ = made  # two runs with the default number of workers
    again = search_py(cwd, "index", "more", builds / "O1", "--index_dir", tmp_path, "--workers", 1)
    assert "2 new" in again.stdout
    files = {file.name: file.read_bytes() for file in (cwd / "index").iterdir()}
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files


def fail(*_):
    raise UserError("its vectors take more memory")


def test_if_no_file_can_be_added_the_reasons_are_given(made, builds, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "add_binary", fail)
    with pytest.raises(UserError, match="shapes: its vectors take more memory"):
        search.index(
            str(builds / "O1"),
            index_dir=str(tmp_path),
            outputDir=str(made[0] / "output"),
            workers=1,
        )
    assert not list(tmp_path.iterdir())


def test_a_function_finds_itself_in_other_builds(made, builds):
    cwd, *_ = made
    stripped = builds / "O1-stripped" / "shapes"
    done = search_py(cwd, "scan", stripped, "--least", 0)
    assert done.returncode == 0
    header, *found, last = done.stdout.splitlines()
    assert header == f"chance that the name is right, address in {stripped}, name, file found:"
    small = int(re.search(r"; (\d+) were not searched", last)[1])
    assert last.startswith(
        f"{len(found)} of {len(found) + small} functions found with a chance of 0 "
    )
    unnamed = sum(line.split()[2].startswith("sub_") for line in found)
    assert f"; {unnamed} of them have no name" in last
    names = {line.split()[2] for line in found}
    assert {"area", "kind", "copy"} <= names
    done = search_py(cwd, "query", builds / "O2" / "shapes", "--function", "kind", "--top", 1)
    header, found = done.stdout.splitlines()
    assert header == "chance that the name is right, address in the file found, name, file found:"
    assert found.split()[2] == "kind"
    assert str(builds / "O1") in done.stdout  # the file's own functions are left out
    own = search_py(cwd, "query", builds / "O2" / "shapes", "--function", "kind", "--own")
    first = own.stdout.splitlines()[1]
    assert str(cwd / "more" / "b") in first or "more/b" in first  # the same content
    assert first.split()[2] == "kind"
    other = search_py(cwd, "query", builds / "O2" / "shapes", "--function", "kind", "--top", 99)
    chances = [float(line.split()[0]) for line in other.stdout.splitlines()[1:]]
    assert chances == sorted(chances, reverse=True)
    assert 0 <= chances[-1] < chances[0] <= 1


def test_only_files_that_were_asked_for_are_searched(tmp_path):
    (tmp_path / "own").write_bytes(b"1")
    own = sha256_of(tmp_path / "own")
    known = [("own", own, "AMD64"), ("arm", "2", "AARCH64"), ("x86", "3", "AMD64")]
    table = SimpleNamespace(binaries=[Binary(*b) for b in known], binary=np.array([0, 1, 1, 2]))
    code = SimpleNamespace(analysis=SimpleNamespace(processor="AMD64"))

    def found(same_processor, own):
        binary = str(tmp_path / "own")
        return search.searched(table, binary, code, same_processor, own).astype(int).tolist()

    assert found(same_processor=False, own=False) == [0, 1, 1, 1]
    assert found(same_processor=False, own=True) == [1, 1, 1, 1]
    assert found(same_processor=True, own=False) == [0, 0, 0, 1]
    assert found(same_processor=True, own=True) == [1, 0, 0, 1]
    table.binary = np.array([0, 1, 1])
    with pytest.raises(UserError, match=r"own itself [(]--own .* or for other processors [(]--"):
        found(same_processor=True, own=False)
    table.binary = np.array([0])
    with pytest.raises(UserError, match=r"only has functions of .*own itself [(].* too[)]$"):
        found(same_processor=False, own=False)


def test_an_index_of_another_encoder_is_left_as_it_is(made, builds, tmp_path):
    """It is refused before a file is analysed, and no vector is added to it."""
    about = Binary("p", "0" * 64, "AMD64")
    one = np.ones(1)
    add(tmp_path, "other", about, one.astype(np.uint64), ["f"], one, np.ones((1, 384)))
    files = list(tmp_path.iterdir())
    with pytest.raises(UserError, match="vectors of another encoder"):
        search.index(
            str(builds / "O2" / "shapes"),
            index_dir=str(tmp_path),
            outputDir=str(made[0] / "output"),
            workers=1,
        )
    assert list(tmp_path.iterdir()) == files


def test_names_are_those_of_the_sources():
    table = SimpleNamespace(name_of=["_ZN5shape4areaEi", "main"].__getitem__)
    assert search.names_of(table, [1, 0]) == ["main", "shape::area(int)"]


def test_mistakes_are_named(made, builds):
    cwd, *_ = made
    program = builds / "O1" / "shapes"
    for arguments, reason in (
        (["query", program, "--function", "kid"], "no function is called kid; did you mean kind"),
        (["query", program, "--function", "kind", "--index_dir", "none"], "no such folder"),
        (["index", "nowhere", "more/text"], "nowhere"),
        (["scan", "more/text"], "more/text"),
    ):
        done = search_py(cwd, *arguments)
        assert done.returncode in (1, 3)
        assert reason in done.stdout + done.stderr
    for arguments in ([], ["index"]):
        assert search_py(cwd, *arguments).returncode == 2


def test_folders_give_their_binaries_only(tmp_path):
    for name, content in {"a/x": b"\x7fELF..", "a/b/y": b"MZ..", "z": b"\xcf\xfa\xed\xfe"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "a" / "text").write_text("text")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "z")
    found = list(search.find_binaries((str(tmp_path),)))
    assert found == [str(tmp_path / name) for name in ("a/b/y", "a/x", "z")]
    assert list(search.find_binaries((str(tmp_path / "a/text"),))) == [str(tmp_path / "a/text")]
