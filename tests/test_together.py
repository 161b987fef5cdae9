"""Several processes at once: no file is lost, and only one run at a time writes to a folder."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gendata
import utils
from matching.packages.compare import PackageDiff
from matching.packages.page import write_pages
from utils import UserError

ROOT = Path(__file__).resolve().parent.parent

# Repeatedly writes a file and a folder, while other processes remove leftovers.
RACER = """
import sys, time
from pathlib import Path
import utils

folder, number, until = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
rounds = 0
while time.time() < until:
    with utils.atomic_file(folder / "file") as file:
        file.write(number)
    with utils.atomic_folder(folder / "folder") as new:
        (new / "inside").write_text(number)
    utils.remove_leftovers(folder)
    rounds += 1
print(rounds)
"""


def test_files_and_folders_of_many_writers(tmp_path):
    until = str(time.time() + 4)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path), str(number), until],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for racer in racers:
        out, error = racer.communicate(timeout=60)
        assert racer.returncode == 0, error
        assert int(out) > 20
    assert (tmp_path / "file").read_text() in "0123"
    assert (tmp_path / "folder/inside").read_text() in "0123"
    utils.remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


HOLDER = """
import sys, time
import utils

with utils.one_writer(sys.argv[1]):
    print("holds", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def held(folder):
    """Let another process write to a folder."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"holds\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def test_a_folder_has_one_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "PATIENCE", 0.2)
    folder = tmp_path / "new" / "data"
    with held(folder) as holder:
        for given in (folder, folder.parent / ".." / "new" / "data"):
            with (
                pytest.raises(UserError, match=f"another run writes to the folder .*{given.name}"),
                utils.one_writer(given),
            ):
                pass
        with utils.one_writer(folder.parent):
            pass
        holder.kill()
        holder.wait()
        with utils.one_writer(folder, folder):  # a killed run has no lock
            pass
    assert folder.exists()
    folder.rmdir()
    with utils.one_writer(folder):
        assert folder.exists()
    assert not folder.exists()  # because nothing was written


def test_one_writer_waits_for_one_that_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "PATIENCE", 20)
    with held(tmp_path) as holder:
        subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {holder.pid}"])
        with utils.one_writer(tmp_path):
            assert holder.wait(timeout=1) == -9


def test_one_writer_of_a_folder_that_is_replaced(tmp_path):
    """A process that waited for a folder locks the one that is there now."""
    folder = tmp_path / "folder"
    for text in ("one", "two"):
        with utils.one_writer(folder), utils.atomic_folder(folder) as new:
            (new / text).touch()
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(folder) == ["two"]


def test_two_gendata_on_one_folder(tmp_path, builds, monkeypatch):
    """The second run is refused with the folder's name, and leaves the first one's pairs alone."""
    monkeypatch.chdir(tmp_path)
    gendata.main("shapes", str(builds), num_walks=1, workers=1)
    before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*.npz")}
    assert before
    monkeypatch.setattr(utils, "PATIENCE", 0.2)
    with (
        held(tmp_path / "data"),
        pytest.raises(UserError, match="another run writes to the folder data;"),
    ):
        gendata.main("shapes", str(builds), num_walks=2, workers=1)
    assert {path: path.read_bytes() for path in (tmp_path / "data").rglob("*.npz")} == before


def test_pages_of_packages_have_one_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "PATIENCE", 0.2)
    nothing = PackageDiff(("a.deb", "b.deb"), [], ({}, {}))
    with held(tmp_path), pytest.raises(UserError, match="another run writes to the folder"):
        write_pages(nothing, tmp_path)
    assert not os.listdir(tmp_path)
    write_pages(nothing, tmp_path)
    assert os.listdir(tmp_path) == ["index.html"]
