"""experiment_data/build_packages.py: several releases, from a fake apt and a fake package."""

import hashlib
import json
import os
import subprocess

import build_coreutils
import build_packages as packages
import pytest
from conftest import pack

from utils import UserError

# A package whose only "program" contains its version and the compiler's flags.
MAKEFILE = """\
src/mill: ; printf '%s' '@VERSION@ $(CFLAGS) $(LDFLAGS)' > $@
clean: ; rm -f src/mill
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run main with two releases that have two versions of the package mill, and none of pond."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for release, version in (("old", "1.0"), ("new", "2.0")):
        files = {"configure": "#!/bin/sh\n", "src/mill.c": ""}
        files["Makefile"] = MAKEFILE.replace("@VERSION@", version)
        pack(tmp_path / f"{release}.tar.xz", files, folder=f"mill-{version}")
    # apt-get -c FILE update | source --download-only --only-source PACKAGE
    apt = f"""case $3 in
        update) sed -n 's/^Suites: //p' entries.sources >> {tmp_path}/asked;;
        source) echo "source $6" >> {tmp_path}/asked
            if [ $6 = mill ]
            then cp {tmp_path}/$(sed -n 's/^Suites: //p' entries.sources).tar.xz mill_1.orig.tar.xz
            else echo 'E: Unable to find a source package for pond'; exit 100; fi;;
    esac"""
    (tools / "apt-get").write_text(f"#!/bin/sh\n{apt}\n")
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    for module in (build_coreutils, packages):
        monkeypatch.setattr(module, "distribution", lambda: ("debian", "new"))
    entry = build_coreutils.Entry("http://m", "")
    monkeypatch.setattr(build_coreutils, "apt_entries", lambda codename: [entry])
    recipes = {name: packages.Recipe((f"src/{name}",), ()) for name in ("mill", "pond")}
    monkeypatch.setattr(packages, "RECIPES", recipes)

    def call(**options):
        options = {"packages": "mill", "levels": "O0 O3", "jobs": 1} | options
        return packages.main(output=tmp_path / "out", **options)

    return call


def made(tmp_path):
    files = (tmp_path / "out/binaries").glob("*/*")
    return {f"{f.parent.name}/{f.name}": f.read_text() for f in sorted(files)}


def test_each_release_has_its_version(run, tmp_path):
    assert run(releases="old new") == 0
    places = {
        "new": {"O0": "-fno-pie -no-pie", "O3": "-fpie -pie"},
        "old": {"O0": "-fpie -pie", "O3": "-fno-pie -no-pie"},
    }
    assert made(tmp_path) == {
        f"mill-{release}-{level}/mill": f"{version} -{level} -w -std=gnu11 {places[release][level]}"
        for release, version in (("new", "2.0"), ("old", "1.0"))
        for level in ("O0", "O3")
    }


def test_some_builds_lie_at_a_fixed_place_and_others_anywhere(run, tmp_path):
    run(releases="old new", levels="O0 O1 O2 O3")
    places = [flags.split("gnu11 ")[1] for flags in made(tmp_path).values()]
    assert set(places) == {"-fpie -pie", "-fno-pie -no-pie"}
    assert 2 <= places.count("-fpie -pie") <= 6


def test_named_compilers_build_one_source(run, tmp_path, monkeypatch):
    # Both configure and make get it: a package may have no configure script.
    files = {"configure": '#!/bin/sh\necho configured: "$@" > said\n', "src/mill.c": ""}
    files["Makefile"] = MAKEFILE.replace("@VERSION@", "2.0 $(CC) $(CXX)")
    pack(tmp_path / "new.tar.xz", files, folder="mill-2.0")
    for name in ("gcc-98", "clang-99"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    run(compilers="gcc-98 clang-99", levels="O0")
    siblings = {"gcc-98": "g++-98", "clang-99": "clang++-99"}
    for compiler, sibling in siblings.items():
        program = (tmp_path / f"out/binaries/mill-new-{compiler}-O0/mill").read_text()
        assert program.startswith(f"2.0 {compiler} {sibling} -O0 -w")
        said = (tmp_path / f"out/build/new/mill-{compiler}/said").read_text()
        assert said == f"configured: CC={compiler} CXX={sibling}\n"
    assert (tmp_path / "asked").read_text() == "new\nsource mill\n"  # once for both


def test_link_time_optimisation_is_a_level(run, tmp_path):
    run(levels="O2 O2-flto")
    flags = {folder: text.split(" -w")[0] for folder, text in made(tmp_path).items()}
    assert flags == {"mill-new-O2/mill": "2.0 -O2", "mill-new-O2-flto/mill": "2.0 -O2 -flto"}


def test_libraries_for_windows(run, tmp_path, monkeypatch):
    """A DLL is kept like a shared library; nothing is asked to be position-independent."""
    compiler = "x86_64-w64-mingw32-gcc"
    files = {"configure": '#!/bin/sh\necho "$@" > said\n', "mill.c": ""}
    write = "head -c 30000 /dev/zero >> $@"
    files["Makefile"] = f"libmill-1.dll: ; printf '%s' 'MZ $(CFLAGS)' > $@; {write}\nclean: ;\n"
    pack(tmp_path / "new.tar.xz", files, folder="mill-2.0")
    (tmp_path / "bin" / compiler).write_text("#!/bin/sh\n")
    (tmp_path / "bin" / compiler).chmod(0o755)
    monkeypatch.setattr(packages, "RECIPES", {"mill": packages.Recipe(configure=())})
    run(compilers=compiler, levels="O2")
    (made_one,) = made(tmp_path).items()
    assert made_one[0] == f"mill-new-{compiler}-O2/libmill-1.dll"
    assert made_one[1].rstrip("\0 ") == "MZ -O2 -w -std=gnu11"
    said = (tmp_path / f"out/build/new/mill-{compiler}/said").read_text()
    assert said == f"--host=x86_64-w64-mingw32 CC={compiler} CXX=x86_64-w64-mingw32-g++\n"


def test_a_program_that_the_build_did_not_make_is_named(run, monkeypatch):
    monkeypatch.setattr(packages, "RECIPES", {"mill": packages.Recipe(("src/mill", "wheel"), ())})
    with pytest.raises(UserError, match=r"mill-new: the build did not make .*/mill/wheel"):
        run(levels="O0")


def test_a_compiler_that_is_not_there_is_named(run, tmp_path):
    with pytest.raises(UserError, match=r"no clang-99 is installed .*install clang-99\)"):
        run(compilers="gcc clang-99")
    with pytest.raises(UserError, match=r"--compilers /usr/bin/gcc: .* not a path"):
        run(compilers="/usr/bin/gcc")
    assert not (tmp_path / "out").exists()


def test_without_releases_it_is_this_machines(run, tmp_path):
    run()
    assert list(made(tmp_path)) == ["mill-new-O0/mill", "mill-new-O3/mill"]


def test_a_second_run_makes_only_what_is_missing(run, tmp_path):
    run(releases="old", levels="O0 O2 O3")
    kept, missing, changed = (
        tmp_path / f"out/binaries/mill-old-{x}/mill" for x in ("O0", "O2", "O3")
    )
    whole = (kept.stat().st_ino, changed.read_text())
    missing.unlink()
    changed.write_text("another file")
    run(releases="old new", levels="O0 O2 O3")
    assert len(made(tmp_path)) == 6
    assert (kept.stat().st_ino, changed.read_text()) == whole
    asked = (tmp_path / "asked").read_text().split("\n")
    assert asked == ["old", "source mill", "new", "source mill", ""]


def test_the_manifest_says_what_was_made_of_what(run, tmp_path):
    run(releases="old", levels="O0")
    run(levels="O3")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert list(manifest) == ["mill-new-O3", "mill-old-O0"]
    build = manifest["mill-old-O0"]
    program = tmp_path / "out/binaries/mill-old-O0/mill"
    assert build["files"] == {"mill": hashlib.sha256(program.read_bytes()).hexdigest()}
    tarball = (tmp_path / "old.tar.xz").read_bytes()
    assert build["source"] == hashlib.sha256(tarball).hexdigest()
    said = subprocess.run(["gcc", "--version"], capture_output=True, text=True).stdout
    assert (build["compiler"], build["compiler_version"]) == ("gcc", said.splitlines()[0])
    named = [build[key] for key in ("package", "release", "version", "level")]
    assert named == ["mill", "old", "1", "O0"]
    assert f"1.0 {build['cflags']} {build['ldflags']}" == program.read_text()


def test_a_build_of_other_flags_or_another_compiler_is_made_anew(run, tmp_path, monkeypatch):
    def inode():
        run(levels="O0")
        return (tmp_path / "out/binaries/mill-new-O0/mill").stat().st_ino

    first = inode()
    assert inode() == first
    monkeypatch.setattr(packages, "version_of", lambda compiler: "gcc 99")
    second = inode()
    assert second != first
    recipe = packages.Recipe(("src/mill",), ("--disable-nls",))
    monkeypatch.setitem(packages.RECIPES, "mill", recipe)
    assert inode() != second


@pytest.mark.parametrize("content", ["{", "[]", '{"mill-new-O0": 1}'])
def test_a_damaged_manifest_is_named(run, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest.json is .*delete it"):
        run()


def test_what_cannot_be_had_is_named_and_the_rest_is_built(run, tmp_path):
    with pytest.raises(UserError, match=r"source package pond of old: E: Unable .*pond of new"):
        run(packages="pond mill", releases="old new")
    assert len(made(tmp_path)) == 4


def test_a_source_without_configure_is_named(run, tmp_path):
    pack(tmp_path / "new.tar.xz", {"Makefile": MAKEFILE, "src/mill.c": ""}, folder="mill-2.0")
    with pytest.raises(UserError, match="mill-new: its source has no configure script"):
        run(releases="old new")
    assert len(made(tmp_path)) == 2


def test_a_failed_build_says_what_the_package_needs(run, tmp_path, monkeypatch):
    recipe = packages.Recipe(("src/mill",), (), ("no-such-target",), needs=("libncurses-dev",))
    monkeypatch.setitem(packages.RECIPES, "mill", recipe)
    with pytest.raises(UserError, match=r"mill-new: make failed .*; it needs libncurses-dev$"):
        run(levels="O0")


@pytest.mark.parametrize("options", [{"packages": "lake"}, {"levels": "O7"}])
def test_unknown_values_are_refused(run, options):
    with pytest.raises(UserError, match=next(iter(options.values()))):
        run(**options)
