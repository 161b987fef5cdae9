"""utils.py: safe writing and checked settings."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pydantic
import pytest

import utils
from checkpoint import load_pt
from files.arrays import read_arrays, weights_of
from tasks.catalogue import Samefunc
from tasks.tables import read_examples
from utils import UserError

ROOT = Path(__file__).resolve().parent.parent


@pydantic.dataclasses.dataclass(config=utils.STRICT)
class Size:
    width: pydantic.PositiveInt
    share: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.5


@pydantic.dataclasses.dataclass(config=utils.STRICT)
class House:
    name: str
    size: Size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"width": 3, "share": 1}', None),
        ('{"width": 3, "height": 4}', "unknown key 'height' \\(known: width, share\\)"),
        ("{}", "key 'width' is missing"),
        ('{"width": "3"}', "'width' is \"3\": give a whole number, without quotes$"),
        ('{"width": 3.0}', "'width' is 3.0: give a whole number$"),
        ('{"width": true}', "'width' is true: give a whole number$"),
        ('{"width": 0}', "'width' is 0: give a number above 0$"),
        ('{"width": 3, "share": NaN}', "'share' is NaN: .*finite"),
        ('{"width": 0, "share": 2}', "'width' is 0: .*; 'share' is 2: "),
        ("[3]", "must hold one JSON object"),
        ('{"width": 3', "is not JSON: it ends too early, in line 1 column 12$"),
        ("", "is not JSON: the file is empty$"),
        ('{"width": 3} x', "is not JSON: Extra data"),
        ('{\n"width": 3, // wide\n}', "is not JSON: it has a comment in line 2 column 13; remove"),
        ('{"width": 3,}', "is not JSON: it has one comma too many before line 1 column 1[23];"),
    ],
)
def test_settings_are_checked(tmp_path, text, message):
    file = tmp_path / "size.json"
    file.write_text(text)
    if message is None:
        assert utils.read_config(Size, file) == Size(width=3, share=1.0)
        return
    with pytest.raises(UserError, match=f"size.json.*{message}") as caught:
        utils.read_config(Size, file)
    assert "\n" not in str(caught.value)


def test_settings_inside_settings(tmp_path):
    file = tmp_path / "house.json"
    file.write_text('{"name": "x", "size": {"width": 1}}')
    assert utils.read_config(House, file) == House("x", Size(1))
    file.write_text('{"name": "x", "size": {"width": -1}}')
    with pytest.raises(UserError, match=r"house\.json: .*size\.width.*is -1: give a number"):
        utils.read_config(House, file)


def test_an_unreadable_settings_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the settings file .*none\.json: No such"):
        utils.read_config(Size, tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'{"width": "\xe9"}')
    with pytest.raises(UserError, match="is not UTF-8 text"):
        utils.read_config(Size, tmp_path / "latin.json")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "new" / "file.txt"
    with utils.atomic_file(file) as out:
        out.write("one\n")
        assert not file.exists()
    out = utils.atomic_file(file)
    out.__enter__().write("two\n")
    with pytest.raises(ZeroDivisionError):
        out.gen.throw(ZeroDivisionError)
    assert file.read_bytes() == b"one\n"
    assert os.listdir(file.parent) == ["file.txt"]
    umask = os.umask(0o027)
    try:
        with utils.atomic_file(file, "wb") as out:
            out.write(b"three")
    finally:
        os.umask(umask)
    assert file.read_bytes() == b"three"
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "folder"
    with utils.atomic_folder(folder) as new:
        (new / "a").write_text("one")
        assert not folder.exists()
    writing = utils.atomic_folder(folder)
    (writing.__enter__() / "a").write_text("two")
    with pytest.raises(KeyboardInterrupt):
        writing.gen.throw(KeyboardInterrupt)
    assert (folder / "a").read_text() == "one"
    with utils.atomic_folder(folder) as new:
        (new / "b").write_text("three")
    assert os.listdir(folder) == ["b"]
    assert os.listdir(tmp_path) == ["folder"]


def test_what_cannot_be_written_is_one_sentence():
    with (
        pytest.raises(UserError, match="cannot write /proc/x/file: "),
        utils.disk_errors(Path("/proc/x/file")),
    ):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(FileNotFoundError), utils.disk_errors(Path("x")):  # a bug, not the disk
        raise FileNotFoundError(2, "No such file")


WRITER = """
import os, sys, time
import utils

folder = sys.argv[1]
with utils.atomic_file(folder + "/file") as file, utils.atomic_folder(folder + "/folder") as new:
    file.write("half")
    file.flush()
    (new / "inside").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_leftovers_of_killed_runs_go_and_those_of_running_ones_stay(tmp_path):
    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert process.stdout.readline() == b"writing\n"
        return process

    mine = [".mine", "mine.tmp", ".mine.tmp", ".mine.12345.tmp"]
    for name in mine:
        (tmp_path / name).write_text("a user's")
    (tmp_path / ".link.abcdefgh.tmp").symlink_to(tmp_path)
    mine.append(".link.abcdefgh.tmp")
    running = start()
    held = set(os.listdir(tmp_path))
    assert len(held) == len(mine) + 2
    killed = start()
    killed.kill()
    killed.communicate()
    assert len(os.listdir(tmp_path)) == len(mine) + 4
    utils.remove_leftovers(tmp_path, tmp_path, tmp_path / "none")
    assert set(os.listdir(tmp_path)) == held
    running.kill()
    running.communicate()
    utils.remove_leftovers(tmp_path)
    assert set(os.listdir(tmp_path)) == set(mine)


def test_writing_a_file_again_removes_what_a_killed_run_left_of_it(tmp_path):
    """Of that file alone, and not what another process is writing at the moment."""
    left, other = tmp_path / ".[a]*.abcdefgh.tmp", tmp_path / ".aa.abcdefgh.tmp"
    left.touch()
    other.touch()
    with utils.atomic_file(tmp_path / "[a]*") as first:
        first.write("first")
        with utils.atomic_file(tmp_path / "[a]*") as second:
            second.write("second")
    assert set(os.listdir(tmp_path)) == {"[a]*", other.name}
    assert (tmp_path / "[a]*").read_text() == "first"
    left.mkdir()
    with utils.atomic_folder(tmp_path / "[a]*"):
        pass
    assert set(os.listdir(tmp_path)) == {"[a]*", other.name}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a file, a folder, links to both, a pipe, and a read-only folder."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("read")
    os.link("file", "hard")
    Path("link").symlink_to("file")
    Path("folder").mkdir()
    Path("folder/inside").write_text("read")
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    return tmp_path


@pytest.mark.parametrize(
    "path", ["new", "new/deep/er", "file", "folder/new", "../x", "loop", "n" * 241, "é" * 120]
)
def test_possible_outputs_pass_and_nothing_is_created(place, path):
    before = sorted(place.rglob("*"))
    utils.check_outputs({"json": path, "csv": None}, ["folder/inside", None, "missing"])
    assert sorted(place.rglob("*")) == before
    with utils.atomic_file(path) as file:
        file.write("all of it")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "the name is empty"),
        ("folder", "this is a folder"),
        ("new/", "this is a folder"),
        (".", "this is a folder"),
        ("/dev/null", "this is a device"),
        ("/dev/stdout", "this is a device"),
        ("pipe", "this is a device"),
        ("file/new", "file is not a folder"),
        ("file/new/er", "file is not a folder"),
        ("pipe/new", "pipe is not a folder"),
        ("n" * 242, "the name is too long"),
        ("é" * 121, "the name is too long"),
        ("n" * 300 + "/x", "the name is too long"),
        ("/".join(["n" * 200] * 25), "the path is too long"),
        ("/proc/new/file", "this is a device"),
        ("/sys/new", "this is a device"),
        ("/dev/new", "this is a device"),
    ],
)
def test_impossible_outputs_are_refused(place, path, reason):
    with pytest.raises(UserError, match=f"^--json {re.escape(path)}: .*{reason}"):
        utils.check_outputs({"csv": "fine", "json": path})


@pytest.mark.parametrize("path", ["file", "hard", "link", "./file", "folder/../file"])
def test_no_output_replaces_an_input(place, path):
    with pytest.raises(utils.UsageError, match=r"--json .* would replace file, which is an input"):
        utils.check_outputs({"json": path}, ["folder/inside", "file"])


def test_no_output_lies_in_a_folder_that_is_read(place):
    os.symlink("folder", "alias")
    for path in ("folder/inside", "folder/new", "folder/new/file", "alias/new"):
        for source in ("folder", "alias"):
            with pytest.raises(utils.UsageError, match=f"--json {path} lies in {source}, which is"):
                utils.check_outputs({"json": path}, [source])
    utils.check_outputs({}, ["folder"], {"outputDir": "folder/new"})  # apart from what is read
    with pytest.raises(utils.UsageError, match="--outputDir folder/new lies in folder, which is"):
        utils.check_outputs({}, (), {"outputDir": "folder/new"}, whole=["file", "folder"])


@pytest.mark.parametrize("path", ["folder", ".", "folder/"])
def test_no_folder_replaces_an_input(place, path):
    with pytest.raises(utils.UsageError, match="would replace folder/inside, which is an input"):
        utils.check_outputs({}, ["folder/inside"], replaced={"to": path})
    utils.check_outputs({}, ["folder/inside"], {"to": path})  # only more files in it


@pytest.mark.parametrize("path", ["pipe", "/dev/zero"])
@pytest.mark.parametrize(
    "read",
    [
        utils.sha256_of,
        lambda path: utils.read_text(path, "text"),
        lambda path: read_arrays(path, {}, "analysis", ""),
        lambda path: weights_of(path, "model", "a test").__enter__(),
        lambda path: load_pt(path),
        lambda path: read_examples(Samefunc, path, labelled=True),
    ],
)
def test_pipes_and_devices_are_refused(place, path, read):
    """Reading a pipe would wait for a writer, and a device may never end."""
    with pytest.raises(UserError, match=f"{path}: it is a pipe or a device; give a regular file"):
        read(path)


def test_an_output_folder_must_be_a_folder_or_new(place):
    utils.check_outputs({}, ["file"], {"to": "folder", "data": "new/folder", "more": None})
    for path in ("file", "pipe", "loop"):
        with pytest.raises(UserError, match=f"--to {path}: this is not a folder"):
            utils.check_outputs({}, (), {"to": path})
        with pytest.raises(UserError, match=f"--to {path}: this is not a folder"):
            utils.check_outputs({}, (), replaced={"to": path})
    with pytest.raises(UserError, match=r"--to file/x: .*file is not a folder"):
        utils.check_outputs({}, (), {"to": "file/x"})


@pytest.mark.parametrize(
    ("one", "two"), [("a", "a"), ("a", "./a"), ("file", "hard"), ("a/b", "a/../a/b")]
)
def test_no_two_outputs_are_one_file(place, one, two):
    with pytest.raises(utils.UsageError, match="--json and --csv would both write"):
        utils.check_outputs({"json": one, "csv": two})


def test_outputs_without_permission_are_refused(place, monkeypatch):
    real = os.access
    closed = lambda path, mode: not str(path).endswith("folder") and real(path, mode)  # noqa: E731
    monkeypatch.setattr(os, "access", closed)  # root may write everywhere
    with pytest.raises(UserError, match=r"cannot write to .*/folder"):
        utils.check_outputs({"json": "folder/new/file"})


@pytest.mark.parametrize(("n", "said"), [(0, "files"), (1, "file"), (2, "files")])
def test_nouns_are_plural_except_after_one(n, said):
    assert utils.plural(n, "file") == said
