"""experiment_data/build_coreutils.py: apt entries, names, mistakes, and builds of a tiny fake."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import build_coreutils as sample
import pytest
from conftest import pack

from utils import UserError

SCRIPT = Path(sample.__file__)

# A fake coreutils whose "compiler" writes its flags, one line per object.
CONFIGURE = """\
#!/bin/sh
echo run >> "$(dirname "$0")/configure.count"
for argument; do case $argument in CC=*) compiler=${argument#CC=};; esac; done
source=$(dirname "$0")
mkdir -p src lib
sed "s,@CC@,$compiler$CPPFLAGS,;s,@source@,$source," "$source/Makefile.in" > Makefile
"""
MAKEFILE = """\
BUILT_SOURCES = lib/generated.h
lib/generated.h:
	echo generated > $@
lib/gnulib.o:
	test -f lib/generated.h
	printf '[%s]' lib $(CFLAGS) > $@
src/%: lib/gnulib.o @source@/src/%.c
	test -f lib/generated.h
	cat lib/gnulib.o > $@
	printf '[%s]' '' $* @CC@ $(CFLAGS) >> $@
	test ! -f @source@/fail-$*
clean:
	rm -f lib/* src/*
"""


def fake(**more: str) -> dict[str, str]:
    files = {"configure": CONFIGURE, "Makefile.in": MAKEFILE, **more}
    for program in ("chroot", "ls", "install"):
        files |= {f"man/{program}.x": "", f"src/{program}.c": ""}
    return files | {"src/ginstall.c": ""}


@pytest.fixture
def tarball(tmp_path):
    return pack(tmp_path / "coreutils-1.2.tar.xz", fake())


@pytest.fixture
def build(tmp_path, tarball, capsys):
    """Run main on the fake's tarball; return what was printed on stdout and on stderr."""

    def run(**options):
        options = {"output": tmp_path / "out", "tarballs": str(tarball), "compilers": ""} | options
        assert sample.main(**options) == 0
        return capsys.readouterr()

    return run


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Builds


def test_one_binary_per_level_all_objects_with_its_flags(build, tmp_path):
    printed = build()
    made = tree(tmp_path / "out" / "binaries")
    assert list(made) == [f"coreutils-1.2-O{level}/chroot" for level in range(4)]
    for level in range(4):
        flags = f"[-g][-O{level}][-Wno-incompatible-function-pointer-types]"
        flags += f"[-fdebug-prefix-map={tmp_path}/out/build/coreutils-1.2=.]"
        lib, program = made[f"coreutils-1.2-O{level}/chroot"].split("[]")
        assert lib == f"[lib]{flags}"
        assert program.startswith("[chroot][")
        assert program.endswith(flags)
    assert "chroot: 4 builds, 6 pairs" in printed.out
    assert f"--path {tmp_path}/out/binaries" in printed.out


def test_a_folder_name_may_contain_blanks(tarball, tmp_path, capsys):
    output = tmp_path / "with a blank"
    assert sample.main(tarballs=str(tarball), output=output) == 0
    text = (output / "binaries/coreutils-1.2-O0/chroot").read_text()
    assert text.count(f"[-fdebug-prefix-map={output}/build/coreutils-1.2=.]") == 2
    assert f"--path '{output}/binaries'" in capsys.readouterr().out


def test_second_run_touches_nothing_and_needs_no_tools(build, tmp_path, monkeypatch):
    build()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    monkeypatch.setenv("PATH", str(tmp_path))
    printed = build(tarballs="", versions="1.2")
    assert printed.err.count("is there already") == 4
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_only_what_is_missing_is_made_and_configured_once(build, tmp_path):
    build(levels="O0 O1")
    kept = tmp_path / "out/binaries/coreutils-1.2-O0/chroot"
    kept.write_text("kept")
    (tmp_path / "out/binaries/coreutils-1.2-O1/chroot").unlink()
    build(levels="O0,O1,O2", programs="chroot install")
    made = tree(tmp_path / "out" / "binaries")
    assert len(made) == 6
    assert kept.read_text() == "kept"
    assert "[][ginstall][" in made["coreutils-1.2-O0/install"]
    assert "-O1" in made["coreutils-1.2-O1/chroot"]
    assert (tmp_path / "out/sources/coreutils-1.2/configure.count").read_text() == "run\n"


def test_an_interrupted_configure_is_run_again(build, tmp_path):
    build(levels="O0")
    (tmp_path / "out/build/coreutils-1.2/configured").unlink()
    (tmp_path / "out/build/coreutils-1.2/Makefile").write_text("broken")
    build(levels="O1")
    assert (tmp_path / "out/binaries/coreutils-1.2-O1/chroot").is_file()


def test_compilers_are_named_in_the_folders(build, tmp_path, monkeypatch):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("gcc-98", "clang-99"):
        (tools / name).write_text("#!/bin/sh\necho 1\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    printed = build(compilers="gcc-98 clang-99", levels="O2", programs="chroot ls", jobs=3)
    made = tree(tmp_path / "out" / "binaries")
    assert set(made) == {
        f"coreutils-1.2-{compiler}-O2/{program}"
        for compiler in ("gcc-98", "clang-99")
        for program in ("chroot", "ls")
    }
    for name, text in made.items():
        assert f"[{name.split('/')[0].removeprefix('coreutils-1.2-')[:-3]}]" in text
    assert "ls: 2 builds, 1 pair\n" in printed.out


def test_the_environment_does_not_change_the_binaries(build, tmp_path, monkeypatch):
    monkeypatch.setenv("CFLAGS", "-march=native")
    monkeypatch.setenv("CPPFLAGS", "-Dnonsense")
    monkeypatch.setenv("MAKEFLAGS", "-e --jobserver-auth=98,99")
    monkeypatch.setenv("CC", "nonsense")
    build(levels="O1")
    text = (tmp_path / "out/binaries/coreutils-1.2-O1/chroot").read_text()
    assert "nonsense" not in text
    assert "native" not in text
    assert text.count("[-g][-O1]") == 2


def test_a_failed_build_leaves_no_binary_and_the_others_go_on(tarball, tmp_path, capsys):
    bad = fake(**{"fail-ls": "", "src/ls.c": ""})
    broken = pack(tmp_path / "broken.tar.xz", bad, folder="coreutils-1.3")
    with pytest.raises(UserError, match=r"coreutils-1\.3: make failed .*make-O0\.log"):
        sample.main(
            tarballs=f"{broken} {tarball}",
            programs="ls",
            levels="O0 O1",
            output=tmp_path / "out",
        )
    made = tree(tmp_path / "out" / "binaries")
    assert list(made) == ["coreutils-1.2-O0/ls", "coreutils-1.2-O1/ls"]
    assert "ls: 2 builds, 1 pair\n" in capsys.readouterr().out


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": "O4"}, "--levels O4"),
        ({"levels": " "}, "--levels is empty"),
        ({"versions": "newest"}, "--versions newest"),
        ({"programs": "chroot vim"}, r"no such program, but has chroot install ls"),
        ({"programs": "../chroot"}, "not a path"),
        ({"compilers": "gcc-0.1"}, r"gcc-0\.1.*build-essential.*--path"),
    ],
)
def test_impossible_options_are_refused(build, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        build(**options)
    assert not (tmp_path / "out" / "binaries").exists()


def test_a_missing_compiler_or_make_is_named(build, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no C compiler .*gendata\.py --path FOLDER --biname"):
        build()
    (tmp_path / "gcc").touch(0o755)
    with pytest.raises(UserError, match=r"no make .*gendata\.py --path FOLDER --biname"):
        build()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no tarball"),
        (b"", "cannot read the tarball"),
        (b"no tarball at all", "cannot read the tarball"),
    ],
)
def test_unreadable_tarballs_are_refused(build, tmp_path, content, message):
    path = tmp_path / "bad.tar.xz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        build(tarballs=str(path))
    assert not (tmp_path / "out").exists()


def test_a_cut_tarball_leaves_no_source(build, tarball, tmp_path):
    more = {f"lib/{n}.c": os.urandom(9000).hex() for n in range(20)}
    whole = pack(tarball, fake(**more)).read_bytes()
    tarball.write_bytes(whole[: len(whole) * 9 // 10])
    with pytest.raises(UserError, match="cannot read the tarball"):
        build()
    assert list((tmp_path / "out" / "sources").iterdir()) == []


def test_tarballs_of_other_projects_are_refused(build, tmp_path):
    with pytest.raises(UserError, match="has no folder coreutils-VERSION"):
        build(tarballs=str(pack(tmp_path / "a.tar.xz", fake(), folder="hello-2.10")))
    with pytest.raises(UserError, match="no configure script"):
        build(tarballs=str(pack(tmp_path / "b.tar.xz", {"README": "from git"})))


@pytest.mark.parametrize("name", ["coreutils-1.2/../../evil", "/evil"])
def test_a_tarball_writes_nowhere_else(build, tarball, tmp_path, name):
    with tarfile.open(tarball, "w:xz") as tar:
        tar.addfile(tarfile.TarInfo("coreutils-1.2/configure"))
        tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(UserError, match="must not be in the tarball"):
        build()
    link = tarfile.TarInfo("coreutils-1.2/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tarball, "w:xz") as tar:
        tar.addfile(link)
    with pytest.raises(UserError, match="must not be in the tarball"):
        build()
    assert list((tmp_path / "out" / "sources").iterdir()) == []
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    "os_release", ['ID=fedora\nVERSION_CODENAME=""\n', "ID=arch\n# ID=debian\n", None]
)
def test_other_distributions_are_told_to_give_a_tarball(tmp_path, os_release):
    path = tmp_path / "os-release"
    if os_release:
        path.write_text(os_release)
    with pytest.raises(UserError, match=r"--tarballs .*gendata\.py --path FOLDER --biname"):
        sample.distribution(path)


def test_the_script_runs_from_the_command_line(tmp_path):
    tarball = pack(tmp_path / "a.tar.xz", fake(), folder="coreutils-9.10")
    command = [sys.executable, SCRIPT, "--output", tmp_path / "out", "--tarballs", tarball]
    # fire alone would read version 9.10 as 9.1
    options = ["--versions", "9.10", "--levels", "O0 O3", "--programs", "chroot ls"]
    run = subprocess.run([*command, *options], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    made = tree(tmp_path / "out" / "binaries")
    assert list(made) == [
        f"coreutils-9.10-{level}/{program}"
        for level in ("O0", "O3")
        for program in ("chroot", "ls")
    ]
    run = subprocess.run([*command, "--levels", "3"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == "error: --levels 3: the levels are O0 O1 O2 O3 Os Og\n"


# Debian and Ubuntu


@pytest.fixture
def etc(tmp_path, monkeypatch):
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_the_distribution_is_read_from_os_release(tmp_path, monkeypatch):
    (tmp_path / "apt-get").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "os-release"
    path.write_text('NAME="Debian GNU/Linux"\nVERSION_CODENAME=bookworm\nID=debian\n')
    assert sample.distribution(path) == ("debian", "bookworm")
    path.write_text('ID="ubuntu"\nID_LIKE=debian\nVERSION_CODENAME="noble"\n')
    assert sample.distribution(path) == ("ubuntu", "noble")
    (tmp_path / "apt-get").unlink()
    with pytest.raises(UserError, match="--tarballs"):
        sample.distribution(path)


def test_apt_entries_of_one_line_are_read(etc):
    (etc / "sources.list").write_text(
        "# deb http://commented/debian bookworm main\n"
        "deb cdrom:[Debian GNU/Linux 12 _Bookworm_ - Official amd64 NETINST]/ bookworm main\n"
        "deb http://mirror/debian bookworm main contrib # ours\n"
        "deb-src http://mirror/debian bookworm main\n"
        "deb http://mirror/debian bookworm-updates main\n"
        "deb http://mirror/debian-security bookworm-security main\n"
        "deb http://universe/debian bookworm contrib\n"
    )
    parts = etc / "sources.list.d"
    (parts / "a.list").write_text(
        "deb [arch=amd64 signed-by=/k/a.gpg,/k/b.gpg] https://other/debian/ bookworm main\n"
        "deb [ Signed-By=/k/c.gpg ] tor+http://onion/debian\tbookworm\tmain\n"
        "deb [signed-by=/k/docker.gpg] https://docker/linux/debian bookworm stable\n"
        "deb https://cloud/apt cloud-sdk-bookworm main\n"
        "deb https://flat/repository ./\n"
    )
    (parts / "a.list.save").write_text("deb http://backup/debian bookworm main\n")
    assert sample.apt_entries("bookworm", etc) == [
        ("http://mirror/debian", ""),
        ("https://other/debian/", "/k/a.gpg /k/b.gpg"),
        ("tor+http://onion/debian", "/k/c.gpg"),
    ]


def test_apt_entries_in_deb822_are_read(etc):
    key = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINB\n -----END PGP PUBLIC KEY BLOCK-----"
    (etc / "sources.list.d" / "debian.sources").write_text(
        "Types: deb deb-src\n"
        "# a note\n"
        "URIs: http://one/debian http://two/debian\n"
        "Suites: noble noble-updates\n"
        "Components: main universe\n"
        "Signed-By: /k/ubuntu.gpg\n"
        "\n"
        "Types: deb\nURIs: http://one/debian\nSuites: noble-security\nComponents: main\n"
        "  \n"
        "types: deb\nuris: http://one/debian\nsuites: noble\ncomponents: main\n"
        "signed-by: /k/ubuntu.gpg\n\n\n"
        "Enabled: no\nTypes: deb\nURIs: http://off/\nSuites: noble\nComponents: main\n\n"
        f"Types: deb\nURIs: http://inline/\nSuites: noble\nComponents: main\nSigned-By:\n {key}\n"
    )
    (etc / "sources.list.d" / "nodesource.sources").write_text(
        "Types: deb\nURIs: https://node/\nSuites: nodistro\nComponents: main\n"
    )
    (etc / "sources.list.d" / "old.sources.disabled").write_text(
        "Types: deb\nURIs: https://old/\nSuites: noble\nComponents: main\n"
    )
    assert sample.apt_entries("noble", etc) == [
        ("http://one/debian", "/k/ubuntu.gpg"),
        ("http://two/debian", "/k/ubuntu.gpg"),
        ("http://inline/", f"\n {key}"),
    ]


def test_without_apt_entries_there_are_no_mirrors(etc):
    assert sample.apt_entries("bookworm", etc / "nothing") == []


@pytest.fixture
def apt(tmp_path, tarball, monkeypatch):
    """A fake apt-get and apt-cache that offers coreutils 9.1 and records its entries."""
    tools = tmp_path / "bin"
    tools.mkdir()
    scripts = {
        "apt-get": """case $3 in
            update) cat entries.sources > ENTRIES; cat apt.conf > CONF; echo "W: offline";;
            source) cp TARBALL coreutils_1.2.orig.tar.xz; touch coreutils_1.2.orig.tar.xz.asc;;
        esac""",
        "apt-cache": "test -f NOTHING || printf 'Package: coreutils\\nVersion: 1.2-3ubuntu1\\n'",
    }
    for name, text in scripts.items():
        text = text.replace("ENTRIES", f"{tmp_path}/entries").replace("CONF", f"{tmp_path}/conf")
        text = text.replace("TARBALL", str(tarball)).replace("NOTHING", f"{tmp_path}/nothing")
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(sample, "distribution", lambda: ("ubuntu", "future"))
    monkeypatch.setattr(
        sample, "apt_entries", lambda codename: [sample.Entry(f"http://m/{codename}", "/k/u.gpg")]
    )
    return tmp_path


def test_sources_are_downloaded_by_a_private_apt(apt, build):
    printed = build(tarballs="", levels="O0")
    assert (apt / "out/binaries/coreutils-1.2-O0/chroot").is_file()
    assert "download from ubuntu's focal jammy noble questing resolute future" in printed.err
    assert (apt / "entries").read_text() == (
        "Types: deb-src\nURIs: http://m/future\n"
        "Suites: focal jammy noble questing resolute future\n"
        "Components: main\nSigned-By: /k/u.gpg\n"
    )
    # No file of apt remains, here or elsewhere.
    assert {path.name for path in (apt / "out/sources").iterdir()} == {
        "coreutils-1.2",
        "coreutils-1.2.tar.xz",
    }
    folders = [line for line in (apt / "conf").read_text().splitlines() if line.startswith("Dir::")]
    assert len(folders) == 7
    for line in folders:
        assert f'"{apt}/out/sources/.apt.' in line or '"/dev/null"' in line


def test_a_kept_tarball_is_not_downloaded_again(apt, build):
    (apt / "out/sources").mkdir(parents=True)
    (apt / "coreutils-1.2.tar.xz").rename(apt / "out/sources/coreutils-1.2.tar.xz")
    printed = build(tarballs="", versions="1.2", levels="O0")
    assert "download" not in printed.err
    assert not (apt / "entries").exists()


def test_an_unavailable_version_is_refused_with_those_there_are(apt, build):
    with pytest.raises(UserError, match=r"coreutils 3\.4 .*available: 1\.2; .*--path FOLDER"):
        build(tarballs="", versions="3.4")


def test_without_network_apts_complaint_is_shown(apt, build):
    (apt / "nothing").touch()
    for versions in ("", "9.7"):
        with pytest.raises(UserError, match=r"W: offline.*--path FOLDER"):
            build(tarballs="", versions=versions)
    assert list((apt / "out/sources").iterdir()) == []
