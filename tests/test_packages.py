"""Whole packages: read without trust, their files paired, functions ranked across files."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import zstandard
from conftest import PATCHED, bytes_of, compile_c, run_script
from hypothesis import given
from hypothesis import strategies as st
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from zig import universal

import diff
from bench.screenshots import browser, open_page
from binary.analysis import cache_file
from matching.packages import contents
from matching.packages.compare import FILE_STATUS, _keep_slices
from matching.packages.contents import Member, load_contents, read_contents
from matching.packages.exports import SCHEMA
from matching.packages.pairs import pair_files
from utils import UsageError, UserError

ELF = b"\x7fELF\2\1\1" + bytes(11) + b"\x3e\0" + bytes(44)  # looks like a program, and is none
FILES = {"usr/bin/tool": ELF + b"tool", "usr/share/doc/note": b"a note", "a": b""}


def tar_of(entries, mode="w:"):
    """Return a tar archive of (name, content) or TarInfo."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
            else:
                header = tarfile.TarInfo(entry[0])
                header.size = len(entry[1])
                archive.addfile(header, io.BytesIO(entry[1]))
    return out.getvalue()


def zip_of(entries, method=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return out.getvalue()


def ar_of(entries):
    """Return an archive of ar(5), with the long names of System V."""
    names, body = b"", b""
    for name, content in entries:
        if len(name) > 15:
            short = f"/{len(names)}"
            names += name.encode() + b"/\n"
        else:
            short = name + "/"
        body += f"{short:<16}{0:<12}{0:<6}{0:<6}{644:<8}{len(content):<10}`\n".encode()
        body += content + b"\n" * (len(content) % 2)
    names += b"\n" * (len(names) % 2)
    table = f"{'//':<48}{len(names):<10}`\n".encode() + names if names else b""
    return b"!<arch>\n" + table + body


def link(name, target, kind=tarfile.SYMTYPE):
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, target
    return header


def read(tmp_path, content, limit=0.01):
    """Read a package; check that nothing is written outside of its folder, and only files."""
    file = content
    if isinstance(content, bytes):
        file = tmp_path / "package"
        file.write_bytes(content)
    folder = tmp_path / "unpacked" / "here"
    folder.mkdir(parents=True)
    before = set(tmp_path.rglob("*"))
    listing = tmp_path / "list.json"
    try:
        read_contents(str(file), str(folder), str(listing), limit)
    finally:
        for made in set(tmp_path.rglob("*")) - before - {listing}:
            assert made.parent == folder
            assert made.is_file()
            assert not made.is_symlink()
    return load_contents(str(listing))


ITEMS = list(FILES.items())
TAR = tar_of(ITEMS)
CONTROL = lzma.compress(tar_of([("./control", b"x")]))
DATA = zstandard.compress(tar_of([("./" + name, content) for name, content in ITEMS]))
DEB = ar_of([("debian-binary", b"2.0\n"), ("control.tar.xz", CONTROL), ("data.tar.zst", DATA)])


@pytest.mark.parametrize(
    "content",
    [
        *(TAR, gzip.compress(TAR), bz2.compress(TAR), lzma.compress(TAR), zstandard.compress(TAR)),
        *(zip_of(ITEMS), zip_of(ITEMS, zipfile.ZIP_LZMA), DEB, "folder"),
    ],
    ids=["tar", "gz", "bz2", "xz", "zst", "zip", "zip with lzma", "deb", "folder"],
)
def test_every_kind_of_package_has_the_same_files(tmp_path, content):
    if content == "folder":
        content = tmp_path / "folder"
        for name, text in ITEMS:
            (content / name).parent.mkdir(parents=True, exist_ok=True)
            (content / name).write_bytes(text)
        (content / "loop").symlink_to(content)
        os.mkfifo(content / "pipe")
    found = read(tmp_path, content)
    own = {"debian-binary", "DEBIAN/control"} if content == DEB else set()
    assert {m.name for m in found.members} == FILES.keys() | own
    for member in found.members:
        if member.name in FILES:
            text = FILES[member.name]
            assert (member.size, member.sha256) == (len(text), hashlib.sha256(text).hexdigest())
            assert bool(member.path) == text.startswith(b"\x7fELF")
            assert not member.path or Path(member.path).read_bytes() == text
    assert not found.failed
    assert found.left_out == ({"link": 1, "pipe": 1} if isinstance(content, Path) else {})


def test_archives_in_archives(tmp_path):
    library = ar_of(
        [("one.o", ELF), ("a_very_long_name_of_an_object.o", ELF + b"2"), ("one.o", b"3")]
    )
    inner = zip_of([("libx.a", library), ("note.gz", gzip.compress(b"no archive"))])
    found = read(tmp_path, tar_of([("in/inner.zip", inner), ("x.tar", tar_of([("y", b"z")]))]))
    assert [m.name for m in found.members] == [
        "in/inner.zip!libx.a!a_very_long_name_of_an_object.o",
        *("in/inner.zip!libx.a!one.o", "in/inner.zip!libx.a!one.o (2)"),
        *("in/inner.zip!note.gz", "x.tar!y"),
    ]
    assert not found.failed


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress, zstandard.compress])
def test_a_compressed_program_is_unpacked(tmp_path, pack):
    """Distributions compress kernel modules one by one."""
    content = ELF + np.random.default_rng(0).bytes(1 << 20)
    one, half = pack(ELF + b"1"), pack(content)[:-5000]
    entries = [("m/one.ko.x", one), ("half.ko.x", half), ("x", pack(b"text"))]
    found = read(tmp_path, tar_of([*entries, ("no.x", one[:8] + b"damaged" + bytes(99))]))
    assert [m.name for m in found.members] == ["m/one.ko.x!one.ko", "x"]
    assert Path(found.members[0].path).read_bytes() == ELF + b"1"
    assert found.members[0].sha256 == hashlib.sha256(ELF + b"1").hexdigest()
    assert list(found.failed) == ["half.ko.x!half.ko", "no.x"]
    (tmp_path / "alone").mkdir()
    (alone,) = read(tmp_path / "alone", one).members
    assert Path(alone.path).read_bytes() == ELF + b"1"


def test_images_are_named_not_passed_over(tmp_path):
    """What may hold programs is no text that changed: somebody must unpack it."""
    image = b"hsqs" + bytes(100)
    found = read(tmp_path, tar_of([("root.img", image), ("root.xz", lzma.compress(image))]))
    assert {m.name for m in found.members} == {"root.img", "root.xz!root"}
    assert all("unsquashfs" in m.closed and not m.path for m in found.members)


NASTY = "\x1b[2J\n<b>"


def test_hostile_members_cost_themselves_only(tmp_path):
    device = tarfile.TarInfo("dev/sda")
    device.type, device.devmajor, device.devminor = tarfile.BLKTYPE, 8, 0
    found = read(
        tmp_path,
        tar_of(
            [
                *(("../../escaped", b"1"), ("/etc/escaped", b"2"), ("a/../../b", b"3")),
                *(link("passwd", "/etc/passwd"), ("passwd/x", b"4"), device),
                *(link("hard", "/etc/passwd", tarfile.LNKTYPE), ("twice", b"5"), ("twice", b"6")),
                *(("good", b"7"), link("same", "good", tarfile.LNKTYPE), (NASTY, b"8")),
                link("pipe", "", tarfile.FIFOTYPE),
            ]
        ),
    )
    names = {m.name: m for m in found.members}
    assert names.keys() == {"passwd/x", "twice", "twice (2)", "good", "same", NASTY}
    assert names["same"].sha256 == names["good"].sha256
    assert found.failed.keys() == {"../../escaped", "/etc/escaped", "a/../../b", "hard"}
    assert found.left_out == {"link": 1, "device": 1, "pipe": 1}


def zip_with(change):
    """Return a zip archive of which ``change`` has spoilt the central directory's entry."""
    content = bytearray(zip_of([("a", b"x" * 100), ("b", b"good")]))
    change(content, content.index(b"PK\1\2"))
    return bytes(content)


def encrypted(content, at):
    for flags in (6, at + 8):
        content[flags] |= 1


def wrong_sum(content, at):
    content[at + 16] ^= 1


@pytest.mark.parametrize("change", [encrypted, wrong_sum])
def test_a_damaged_member_of_a_zip_is_listed(tmp_path, change):
    found = read(tmp_path, zip_with(change))
    assert [m.name for m in found.members] == ["b"]
    assert found.failed.keys() == {"a"}


def lies(content, at):
    content[at + 24 : at + 28] = struct.pack("<I", 1 << 30)


def pax_bomb():
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 40
    return header.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


ZEROS = bytes(30 << 20)  # more than the limit below


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(tar_of([("zeros", ZEROS)]), 1), "unpacks to more than 0.01 GiB"),
        (gzip.compress(ZEROS, 1), "contains no files"),
        (zip_of([("zeros", ZEROS)]), "unpacks to more than 0.01 GiB"),
        (zip_with(lies), "unpacks to more than 0.01 GiB"),
        (tar_of([("x.zip", zip_of([("zeros", ZEROS)]))]), "unpacks to more than 0.01 GiB"),
        (zstandard.compress(tar_of([(str(i), ZEROS[: 1 << 20]) for i in range(12)])), "unpacks to"),
        (pax_bomb(), "claims 1,099,511,627,776 bytes"),
        (tar_of([("a", b"1"), ("b", b"2")])[:700], "damaged"),
        (TAR[:1024] + b"x" * 512 + TAR[1536:], "damaged"),
        (gzip.compress(tar_of([("a", os.urandom(9000))]))[:5000], "no readable program or tar"),
        (DEB[:-50], "damaged"),
        (zip_of(ITEMS)[:-30], "damaged"),
        (b"!<arch>\n" + b"x" * 60, "damaged"),
        (b"\x1f\x8b" + bytes(100), "contains no readable program or tar"),
        (tar_of([]), "contains no files"),
        (tar_of([(f"{i}", b"") for i in range(60)]), "contains more than 50 files"),
    ],
)  # fmt: skip
def test_a_hostile_package_is_one_sentence(tmp_path, content, reason, monkeypatch):
    monkeypatch.setattr(contents, "MEMBERS", 50)
    with pytest.raises(UserError, match=reason) as error:
        read(tmp_path, content)
    assert len(str(error.value).splitlines()) == 1


def test_a_damaged_archive_in_a_package_costs_itself_only(tmp_path):
    found = read(tmp_path, tar_of([("bad.zip", zip_of(ITEMS)[:-30]), ("good", b"1")]))
    assert [m.name for m in found.members] == ["good"]
    assert found.failed.keys() == {"bad.zip"}


# ------------------------------------------------------------------------------- pairs


def member(name, content="", path=""):
    return Member(name, 1, content or name, path)


@pytest.mark.parametrize(
    ("old", "new", "how"),
    [
        (["lib/x.so"], ["lib/x.so"], "path"),
        (["lib/libx.so.1.2"], ["lib/libx.so.1.3"], "path but for versions"),
        (["x.libs/libq-3f2a9c01.so.1"], ["x.libs/libq-bb07e455.so.1"], "path but for versions"),
        (["p_1.0-2+b6_amd64.deb!x"], ["p_1.0-2+deb12u1_amd64.deb!x"], "path but for versions"),
        (["lib/x.so"], ["usr/lib/x.so"], "name"),
        (["lib/libx.so.1"], ["usr/lib/libx.so.2"], "name but for versions"),
        (["lib/one.so"], ["lib/other.so"], ""),
        (["a1", "a2"], ["a3"], ""),
    ],
)  # fmt: skip
def test_files_are_paired_by_path_and_name(old, new, how):
    pairs = pair_files([member(n, "1" + n) for n in old], [member(n, "2" + n) for n in new])
    assert {pair.how for pair in pairs} == {how}
    assert len(pairs) == (1 if how else len(old) + len(new))


def test_files_are_paired_by_content(tmp_path):
    texts = {
        "old": b"an error message\0 and another one\0usage: first\0",
        "new": b"an error message\0 and another one\0usage: tirst\0",
        "else": b"something different\0 and with no words\0in common\0",
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    old = [member("bin/one", path=str(tmp_path / "old")), member("doc/x", "same")]
    new = [member(f"bin/{name}", path=str(tmp_path / name)) for name in ("else", "new")]
    pairs = pair_files(old, [*new, member("doc/y", "same")])
    assert [(p.old and p.old.name, p.new and p.new.name, p.how) for p in pairs] == [
        (None, "bin/else", ""),
        ("bin/one", "bin/new", "texts"),
        ("doc/x", "doc/y", "content"),
    ]


names = st.lists(st.sampled_from(["a/x1", "a/x2", "b/x1", "b/x3", "y", "z.so.1"]), unique=True)


@given(names, names, st.integers(0, 8))
def test_each_file_is_in_one_pair(old, new, seed):
    sides = [
        [member(n, str((len(n) * (i + 3) + seed) % 3)) for i, n in enumerate(s)] for s in (old, new)
    ]
    pairs = pair_files(*sides)
    for side in (0, 1):
        found = [pair[side].name for pair in pairs if pair[side]]
        assert sorted(found) == sorted(m.name for m in sides[side])
    same = {pair.old.name for pair in pairs if pair.old and pair.new and pair.how == "path"}
    assert same == set(old) & set(new)


MACHO = {"x86_64": b"\xcf\xfa\xed\xfe\7\0\0\1", "aarch64": b"\xcf\xfa\xed\xfe\x0c\0\0\1"}


def test_slices_of_universal_files_are_paired_by_processor(tmp_path):
    both, arm = universal(*MACHO.values()), MACHO["aarch64"] + b"newer"
    sides = []
    for name, files in {
        "old": [("a.so", both), ("cut", both[:-1])],
        "new": [("a.so", arm)],
    }.items():
        (tmp_path / name).mkdir()
        sides.append(read(tmp_path / name, zip_of(files)))
    old, new = sides
    names = [f"{file} ({p})" for file in ("a.so", "cut") for p in MACHO]
    assert [m.name for m in old.members] == sorted(names[:3])
    assert old.failed == {names[3]: "the universal file is cut off"}
    for member in old.members:
        assert Path(member.path).read_bytes() == MACHO[member.processor]
        assert member.name == f"{member.slice_of} ({member.processor})"
    found = [[m.name for m in pair.members] for pair in pair_files(old.members, new.members)]
    assert found == [["a.so (aarch64)", "a.so"], ["a.so (x86_64)"], ["cut (x86_64)"]]
    with pytest.raises(UsageError, match=r"no universal file has a slice .*; they are for aarch64"):
        _keep_slices((old, new), "mips")
    _keep_slices((old, new), "arm64")
    assert [m.name for side in sides for m in side.members] == ["a.so (aarch64)", "a.so"]
    assert old.left_out == {"other slice": 2}
    assert old.failed["cut"] == "it has no slice for arm64"
    with pytest.raises(UsageError, match=r"--arch arm64 is for universal .*; leave it out"):
        _keep_slices((new, new), "arm64")


# --------------------------------------------------------------------- from end to end


@pytest.fixture(scope="module")
def packages(builds, tmp_path_factory):
    """A tarball and a zip; a program changed, one only moved, one is broken, one is new."""
    folder = tmp_path_factory.mktemp("packages")
    program = (builds / "O1" / "shapes").read_bytes()
    patched = compile_c(PATCHED, folder / "patched", "-O1").read_bytes()
    old = [("lib/libshapes.so.1.2", program), ("bin/broken", ELF + b"1"), ("doc/a", b"same")]
    old += [
        ("fs", b"hsqs1"),
        ("bin/gone", ELF),
        ("doc/changes", b"1"),
        ("bin/noted", program),
        (NASTY, b"1"),
    ]
    new = [("lib/libshapes.so.1.3", patched), ("bin/broken", ELF + b"2"), ("doc/b", b"same")]
    new += [
        ("fs", b"hsqs2"),
        ("doc/changes", b"2"),
        ("bin/noted", program + b"a note"),
        ("../x", b""),
        (NASTY, b"2"),
    ]
    (folder / "old.tar.xz").write_bytes(lzma.compress(tar_of(old)))
    (folder / "new.whl").write_bytes(zip_of(new))
    return folder


@pytest.fixture(scope="module")
def compared(packages):
    asked = ["--html", "report", "--json", "p.json", "--markdown", "p.md", "--csv", "p.csv"]
    done = run_script(packages, "diff.py", "old.tar.xz", "new.whl", *asked)
    assert done[0] == 3, done
    return packages, done[1]


def test_functions_are_ranked_over_all_files(compared):
    folder, printed = compared
    found = json.loads((folder / "p.json").read_text())
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    status = {(f["new"] or f["old"])["path"]: f["status"] for f in found["files"]}
    assert status == {
        "lib/libshapes.so.1.3": "changed",
        "bin/broken": "failed",
        "../x": "failed",
        "fs": "failed",
        "bin/gone": "only in old",
        "bin/noted": "same code",
        "doc/changes": "changed (no program)",
        NASTY: "changed (no program)",
        "doc/b": "identical",
    }
    order = [FILE_STATUS.index(f["status"]) for f in found["files"]]
    assert order == sorted(order)
    (function,) = found["functions"]
    assert function["new"]["name"] == "area"
    assert found["files"][function["file"]]["old"]["path"] == "lib/libshapes.so.1.2"
    reasons = {f["reason"] for f in found["files"] if f["status"] == "failed"}
    assert "its path leads out of the package" in reasons
    assert "changed, but not compared: a squashfs image: unpack it first (unsquashfs)" in reasons
    assert not any("unpacked" in reason for reason in reasons), (
        "members are named, no scratch files"
    )
    assert "\x1b" not in printed
    assert printed.splitlines()[-1].startswith(
        "verdict: 9 files: 3 failed, 1 changed, 1 only in old"
    )
    text = (folder / "p.md").read_text()
    assert "\x1b" not in text
    assert "| `lib/libshapes.so.1.3` | changed | `area` `0x" in text
    assert (folder / "p.csv").read_text().count("\n") == 2


def test_what_was_compared_is_not_compared_again(compared, monkeypatch, capsys):
    folder, _ = compared
    monkeypatch.chdir(folder)

    def kept():  # what failed is tried anew
        report = bytes_of(folder / "report")
        return [(name, bytes) for name, bytes in report.items() if name != "index.html"]

    before = kept(), bytes_of(folder / "output")
    monkeypatch.setattr("matching.packages.compare.compare", None)
    monkeypatch.setattr(
        "matching.packages.compare.analyse_all",
        lambda files, output, *_: {
            f["path"]: "fails" for f in files if not cache_file(output, f["sha256"]).exists()
        },
    )
    old, new = "old.tar.xz", "new.whl"
    for fail_on, code in ((None, 3), ("changed", 4), ("unmatched", 4)):
        assert diff.main(old, new, html="report", fail_on=fail_on) == code
    assert before == (kept(), bytes_of(folder / "output"))
    assert diff.main(old, old, fail_on="changed") == 0
    assert "verdict: identical: all 8 files are" in capsys.readouterr().out


def test_the_page_leads_to_each_function(compared):
    folder, _ = compared
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("no chromium and chromium-driver")
    with browser() as chrome:
        open_page(chrome, folder / "report" / "index.html")
        rows = chrome.find_elements(By.CSS_SELECTOR, "#files tbody tr")
        assert len(rows) == 9
        assert any("<b>" in row.text for row in rows), "a name is text"
        search = chrome.find_element(By.ID, "search")
        search.send_keys("AREA")
        assert not chrome.find_elements(By.CSS_SELECTOR, "#files tbody tr")
        search.clear()
        search.send_keys("libshapes")
        (row,) = chrome.find_elements(By.CSS_SELECTOR, "#functions tbody tr")
        row.find_element(By.LINK_TEXT, "area").click()
        # An element of the page before may be looked at while the new page comes.
        waiting = WebDriverWait(chrome, 60, ignored_exceptions=[StaleElementReferenceException])
        waiting.until(
            lambda chrome: (
                chrome.find_element(By.TAG_NAME, "body").get_attribute("data-ready")
                and chrome.find_elements(By.ID, "home")
            )
        )
        assert chrome.find_element(By.CSS_SELECTOR, "#title b").text == "area"
        chrome.find_element(By.ID, "home").click()
        assert chrome.current_url.endswith("/index.html")
        assert not [e for e in chrome.get_log("browser") if e["level"] == "SEVERE"]


def test_packages_are_compared_with_packages(packages, builds, tmp_path):
    old, program = str(packages / "old.tar.xz"), str(builds / "O1" / "shapes")
    for sides in ((old, program), (program, old)):
        with pytest.raises(UsageError, match=r"\.xz is an archive, but .*/shapes is a single"):
            diff.main(*sides)
    with pytest.raises(UsageError, match=r"is a folder, .*; compare .*/shapes with .*/O0/shapes"):
        diff.main(program, str(builds / "O0"))
    with pytest.raises(UsageError, match="--bindiff is for two binaries"):
        diff.main(old, old, bindiff="x")
    with pytest.raises(UsageError, match="--unpack_limit is for packages"):
        diff.main(program, program, unpack_limit=1)
    with pytest.raises(UsageError, match=r"--arch aarch64 is for universal"):
        diff.main(old, old, arch="aarch64", outputDir=str(tmp_path / "output"))
    with pytest.raises(UserError, match=r"^cannot read missing: No such file or directory$"):
        diff.main(old, "missing", outputDir=str(tmp_path / "output"))


@pytest.mark.parametrize("flag", ["json", "csv", "markdown", "html", "outputDir"])
def test_nothing_is_written_into_what_is_compared(builds, tmp_path, flag):
    shutil.copytree(builds, tmp_path / "old")
    outputs = {"outputDir": str(tmp_path / "o"), flag: str(tmp_path / "old" / "O1" / "new")}
    with pytest.raises(UsageError, match=f"--{flag} .* lies in .*old, which is an input"):
        diff.main(str(tmp_path / "old"), str(builds), **outputs)
    (tmp_path / "index.html").write_bytes(TAR)
    with pytest.raises(UsageError, match=r"--html .*index.html would replace .*index.html, which"):
        diff.main(str(tmp_path / "index.html"), str(builds), html=str(tmp_path))


def test_many_members_of_one_name_are_told_apart_at_once(tmp_path):
    """It took the square of their number, which is minutes for a package of a megabyte."""
    asked = 0

    class Watched(dict):
        def __contains__(self, name):
            nonlocal asked
            asked += 1
            return super().__contains__(name)

    reader = contents._Reader(tmp_path, 1.0)
    reader.members = Watched()
    names = []
    for _ in range(500):
        names.append(reader._member("twin", ""))
        reader.members[names[-1]] = 1
    assert names[:3] == ["twin", "twin (2)", "twin (3)"]
    assert len(set(names)) == 500
    assert asked < 2000


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-5],
        lambda text: "[]",
        lambda text: '{"functions": [], "counts": 3}',
        lambda text: '{"functions": [1], "counts": {}}',
        lambda text: text.replace('"0x', '"x'),
        lambda text: text.replace('"changed"', '"odd"'),
        lambda text: text.replace('"score": ', '"score": "no", "x": '),
    ],
)
def test_a_damaged_comparison_costs_itself_only(compared, tmp_path, monkeypatch, capsys, change):
    shutil.copytree(compared[0], tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    damaged = 0
    for file in Path("output/compared").glob("*.json"):
        text = file.read_text()
        if '"area"' in text:
            file.write_text(change(text))
            damaged += 1
    assert damaged == 1
    assert diff.main("old.tar.xz", "new.whl", json="again.json") == 3
    (lib,) = [
        f
        for f in json.loads(Path("again.json").read_text())["files"]
        if f["new"] and f["new"]["path"] == "lib/libshapes.so.1.3"
    ]
    assert lib["status"] == "failed"
    assert lib["reason"].endswith("delete it and run again")
    assert "verdict: 9 files: 4 failed" in capsys.readouterr().out
