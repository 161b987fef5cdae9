"""Build training programs: small C programs of many packages, at several optimisation levels.

    python experiment_data/build_packages.py
    python experiment_data/build_packages.py --packages "grep sed" --levels "O0 O2"
    python experiment_data/build_packages.py --releases "bookworm bullseye"
    python experiment_data/build_packages.py --compilers "gcc-12 clang"

What matching/train.py learns from, beside GNU coreutils: functions of many authors. Everything
made lies in one folder, ignored by git:

    packages/sources/bookworm/grep/           upstream's source, from a release's source package
    packages/build/bookworm/grep/             configured once, compiled per level, never installed
    packages/binaries/grep-bookworm-O1/grep   what matching/train.py reads, with symbols

What is there is kept; delete a folder to have it made anew. less and screen need curses (Debian,
Ubuntu: libncurses-dev); if it is not there, they fail, and the others are built.
"""

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import fire

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from build_coreutils import distribution, open_tarball, private_apt, say, split

from utils import UserError, atomic_file, atomic_folder, command_line, disk_errors

OUTPUT = Path(__file__).resolve().parent / "packages"
LEVELS = ("O0", "O1", "O2", "O3", "Os", "Og")


@dataclass(frozen=True)
class Recipe:
    """How one source package is built; files are relative to its folder."""

    programs: tuple[str, ...]
    configure: tuple[str, ...] | None = ("--disable-dependency-tracking", "--disable-nls")
    targets: tuple[str, ...] = ()
    flags: str = "CFLAGS"  # the make variable that takes the level
    standard: str = "gnu11"  # of the language
    linker: str = "LDFLAGS"  # the make variable that the linker's options go to


LUA = Recipe(("src/lua",), None, ("-C", "src", "lua"), linker="MYLDFLAGS")

RECIPES = {
    "bzip2": Recipe(("bzip2",), None, ("bzip2",)),
    "dash": Recipe(("src/dash",)),
    "diffutils": Recipe(("src/diff", "src/diff3", "src/sdiff")),
    "ed": Recipe(("ed",), ()),
    "file": Recipe(
        ("src/file",),
        (
            "--disable-shared",
            "--disable-zlib",
            "--disable-bzlib",
            "--disable-xzlib",
            "--disable-zstdlib",
            "--disable-libseccomp",
        ),
    ),
    "findutils": Recipe(("find/find", "xargs/xargs")),
    "grep": Recipe(("src/grep",), ("--disable-dependency-tracking", "--disable-perl-regexp")),
    "gzip": Recipe(("gzip",)),
    "inetutils": Recipe(
        ("ftp/ftp", "src/tftp", "ping/ping", "src/inetd", "src/syslogd", "ifconfig/ifconfig")
    ),
    "less": Recipe(("less",), ()),
    "lua5.1": LUA,
    "lua5.2": LUA,
    "lua5.3": LUA,
    "lua5.4": LUA,
    "lzip": Recipe(("lzip",), (), flags="CXXFLAGS", standard="gnu++17"),
    "lz4": Recipe(("programs/lz4",), None, ("-C", "programs", "lz4")),
    "m4": Recipe(("src/m4",)),
    "mawk": Recipe(("mawk",), ()),
    "patch": Recipe(("src/patch",)),
    "screen": Recipe(("screen",), ()),
    "sed": Recipe(("sed/sed",)),
    "wget": Recipe(
        ("src/wget",),
        (
            "--disable-nls",
            "--without-ssl",
            "--without-zlib",
            "--disable-pcre",
            "--disable-pcre2",
            "--without-libpsl",
            "--disable-iri",
        ),
    ),
    "xz-utils": Recipe(("src/xz/xz",), ("--disable-shared", "--disable-nls")),
}

# How a program is compiled and linked to lie at a fixed place, and anywhere.
PLACES = ("-fno-pie", "-no-pie"), ("-fpie", "-pie")


@dataclass(frozen=True)
class Tree:
    """One package as one release of the distribution has it."""

    output: Path
    package: str
    release: str
    compiler: str  # or "": gcc, unnamed

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.package]

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.package, self.release, self.compiler)))

    @property
    def source(self) -> Path:
        return self.output / "sources" / self.release / self.package

    @property
    def folder(self) -> Path:
        inside = "-".join(filter(None, (self.package, self.compiler)))
        return self.output / "build" / self.release / inside

    @property
    def compilers(self) -> list[str]:
        """What configure and make are told of a named compiler: of C, and its sibling of C++."""
        sibling = self.compiler.replace("gcc", "g++").replace("clang", "clang++")
        return [f"CC={self.compiler}", f"CXX={sibling}"] if self.compiler else []

    def lies_anywhere(self, level: str) -> bool:
        """Return whether its code may lie at any place, as in most programs since 2016.

        Every second build or so: a comparison meets programs of both kinds.
        """
        return hashlib.sha256(f"{self.name}-{level}".encode()).digest()[0] % 2 == 1

    def binaries(self, level: str) -> list[Path]:
        """Return where the programs go."""
        folder = self.output / "binaries" / f"{self.name}-{level}"
        return [folder / Path(file).name for file in self.recipe.programs]


@fire.decorators.SetParseFns(packages=str, levels=str, releases=str, compilers=str, output=str)
def main(
    *,
    packages: str = " ".join(RECIPES),
    levels: str = "O0 O1 O3",
    releases: str = "",
    compilers: str = "",
    jobs: int = 0,
    output: Path = OUTPUT,
) -> int:
    """Build programs of Debian or Ubuntu from source.

    Several values stand in one argument, with blanks between: --levels "O0 O3".

    Parameters
    ----------
    packages : str
        Source packages, of those that this script has a recipe for.
    levels : str
        Optimisation levels, of O0 O1 O2 O3 Os Og.
    releases : str
        Codenames of releases, whose versions of the packages are built. Default: this machine's.
    compilers : str
        Installed compilers: "gcc-12 clang". They are then part of the folders' names. Default: gcc,
        unnamed.
    jobs : int
        Packages at a time. Default: one for each CPU.
    output : Path
        The folder that gets sources/, build/ and binaries/.

    Raises
    ------
    UserError
        Unknown values, no compiler, no network; failed builds, after all others are done.
    """
    level_list, package_list = split("levels", levels), split("packages", packages)
    for level in level_list:
        if level not in LEVELS:
            raise UserError(f"--levels {level}: the levels are {' '.join(LEVELS)}")
    for package in package_list:
        if package not in RECIPES:
            raise UserError(f"--packages {package}: there are recipes for {' '.join(RECIPES)}")
    compiler_list = split("compilers", compilers) if compilers else [""]
    require_tools(*(compiler or "gcc" for compiler in compiler_list), "make")
    release_list = split("releases", releases) if releases else [distribution()[1]]
    todo = {}
    for release, package, compiler in itertools.product(release_list, package_list, compiler_list):
        tree = Tree(output, package, release, compiler)
        missing = [v for v in level_list if not all(f.is_file() for f in tree.binaries(v))]
        todo |= {tree: missing} if missing else {}
    with disk_errors(output):
        failures = get_sources(list(todo))
        ready = [job for job in todo.items() if job[0].source.is_dir()]
        with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
            for error in pool.map(lambda job: attempt(*job), ready):
                failures += [error] if error else []
    programs = {file.name for file in (output / "binaries").glob("*/*")}
    print(f"{len(programs)} programs in {output / 'binaries'}")
    if failures:
        raise UserError("; ".join(failures))
    return 0


def require_tools(*tools: str) -> None:
    """Raise a UserError for a tool that is not installed."""
    for tool in tools:
        if not shutil.which(tool):
            package = tool if "clang" in tool or "gcc-" in tool else "build-essential"
            raise UserError(
                f"no {tool} is installed (Debian, Ubuntu: sudo apt-get install {package})"
            )


def get_sources(trees: list[Tree]) -> list[str]:
    """Have the sources, upstream's tarballs without the distribution's patches; return failures."""
    failures = []
    missing = {tree.source: tree for tree in trees if not tree.source.is_dir()}.values()
    for release in dict.fromkeys(tree.release for tree in missing):
        wanted = [tree for tree in missing if tree.release == release]
        say(f"{release}: download {' '.join(tree.package for tree in wanted)}")
        with private_apt([release], wanted[0].output / "sources") as (apt, folder):
            complaint = apt("apt-get", "update")
            for tree in wanted:
                try:
                    extract(download(apt, folder, tree.package, release, complaint), tree.source)
                except UserError as error:
                    failures.append(str(error))
    return failures


def download(
    apt: Callable[..., str], folder: Path, package: str, release: str, complaint: str
) -> Path:
    """Download a source package into ``folder``; return upstream's tarball.

    Parameters
    ----------
    apt, folder
        What `private_apt` yields.
    complaint : str
        What ``apt`` said of the release's lists, of which the error may speak.
    """
    said = apt("apt-get", "source", "--download-only", "--only-source", package)
    tarballs = sorted(folder.glob(f"{package}_*.orig.tar.?z*"))
    if not tarballs:
        lines = (said + complaint).strip().splitlines() or ["no output"]
        reason = next((line for line in lines if line.startswith("E:")), lines[-1])
        raise UserError(f"cannot download the source package {package} of {release}: {reason}")
    return tarballs[0]


def extract(tarball: Path, target: Path) -> None:
    """Extract the one folder of a source tarball, whole or not at all."""
    with open_tarball(tarball) as tar, atomic_folder(target) as work:
        members = []
        for member in tar:
            parts = Path(member.name).parts[1:]
            if not parts or not (member.isfile() or member.isdir() or member.issym()):
                continue
            if ".." in parts or member.name.startswith("/"):
                raise UserError(f"{tarball}: {member.name} would lie outside of its folder")
            member.name = "/".join(parts)
            members.append(member)
        # Links that lead out of the folder are refused.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        tar.extractall(work, members)


def attempt(tree: Tree, levels: list[str]) -> str:
    """Build one package; return what went wrong, or ""."""
    try:
        build(tree, levels)
    except UserError as error:
        return str(error)
    return ""


def build(tree: Tree, levels: list[str]) -> None:
    """Configure a copy of the sources, then compile it once per level."""
    recipe, folder = tree.recipe, tree.folder
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tree.source, folder, symlinks=True)
    if recipe.configure is not None:
        if not (folder / "configure").is_file():
            raise UserError(f"{tree.name}: its source has no configure script")
        say(f"{tree.name}: configure")
        run(tree, "configure", ["./configure", *recipe.configure, *tree.compilers])
    for level in levels:
        say(f"{tree.name}: make at -{level}")
        run(tree, f"clean-{level}", ["make", "clean"])
        # No debug information: the symbol table is all that is read.
        code, program = PLACES[tree.lies_anywhere(level)]
        options = [
            f"{recipe.flags}=-{level} -w -std={recipe.standard} {code}",
            f"{recipe.linker}={program}",
            "MAKEINFO=true",  # no manuals
            *tree.compilers,
        ]
        run(tree, f"make-{level}", ["make", *recipe.targets, *options])
        for file, target in zip(recipe.programs, tree.binaries(level), strict=True):
            with atomic_file(target, "wb") as binary:
                binary.write((folder / file).read_bytes())
            target.chmod(0o755)


def run(tree: Tree, step: str, command: list[str]) -> None:
    """Run one step of a build, its output in a log; raise a UserError if it fails."""
    log = tree.folder / f"{step}.log"
    env = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    env |= {"LC_ALL": "C", "FORCE_UNSAFE_CONFIGURE": "1"}
    with log.open("wb") as file:
        done = subprocess.run(
            command, cwd=tree.folder, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or ["no output"]
        reason = next((line for line in lines if "error:" in line.lower()), lines[-1])
        raise UserError(f"{tree.name}: {command[0]} failed ({reason.strip()}; all of it in {log})")


if __name__ == "__main__":
    command_line(main)
