"""Build training programs: small C programs of many packages, at several optimisation levels.

    python experiment_data/build_packages.py
    python experiment_data/build_packages.py --packages "grep sed" --levels "O0 O2"
    python experiment_data/build_packages.py --releases "bookworm bullseye"
    python experiment_data/build_packages.py --compilers "gcc-12 clang"
    python experiment_data/build_packages.py --levels "O2 O2-flto"  # link-time optimisation
    python experiment_data/build_packages.py --compilers x86_64-w64-mingw32-gcc  # for Windows

matching/train.py learns from these and GNU coreutils: functions by many authors. All results are in
one folder, which git ignores:

    packages/sources/bookworm/grep/           the upstream source, from a release's source package
    packages/build/bookworm/grep/             configured once, compiled per level, never installed
    packages/binaries/grep-bookworm-O1/grep   the input of matching/train.py, with symbols
    packages/manifest.json                    how each folder of binaries was built, and hashes

A build is kept if, according to the manifest, its source, compiler and flags are the same and no
file has changed. less and screen need curses (Debian, Ubuntu: libncurses-dev); without it they
fail, and the others are built.
"""

import fcntl
import functools
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import PositiveInt

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from build_coreutils import (
    JOBS,
    LEVELS,
    distribution,
    extracted,
    private_apt,
    run_logged,
    say,
    split,
)
from recipes import RECIPES, Recipe

from terminal.command_line import command_line
from utils import UserError, atomic_folder, check_outputs, disk_errors, sha256_of, write_json

OUTPUT = Path(__file__).resolve().parent / "packages"
LEAST_SIZE = 20_000  # minimum number of bytes of a program or library to keep it
NOT_INSTALLED = re.compile(r"test|example|bench|fuzz|CMakeFiles|conftest|/lt-|\bdoc", re.IGNORECASE)
LTO = "-flto"  # a level's ending: link-time optimisation
# Options of the compiler and the linker for code at fixed addresses, and position-independent code.
PIE = ("-fno-pie", "-no-pie"), ("-fpie", "-pie")


@dataclass(frozen=True)
class Tree:
    """One package in the version of one release."""

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
        """The variables for configure and make that name the C compiler and its C++ compiler."""
        sibling = self.compiler.replace("gcc", "g++").replace("clang", "clang++")
        return [f"CC={self.compiler}", f"CXX={sibling}"] if self.compiler else []

    @property
    def host(self) -> str:
        """The target of a cross-compiler, or ""."""
        named = re.match(r"(\w+-linux-\w+|\w+-w64-mingw32)-(gcc|clang)", self.compiler)
        return named[1] if named else ""

    @property
    def is_for_windows(self) -> bool:
        return self.host.endswith("mingw32")

    def is_position_independent(self, level: str) -> bool:
        """Return whether to build position-independent code, as in most programs since 2016.

        About every second build is, because comparisons meet programs of both kinds.
        """
        return hashlib.sha256(f"{self.name}-{level}".encode()).digest()[0] % 2 == 1

    def binaries(self, level: str) -> Path:
        """Return the folder for its programs and libraries."""
        return self.output / "binaries" / f"{self.name}-{level}"

    @property
    def origin(self) -> Path:
        """The file that says which tarball the source comes from."""
        return self.source.with_name(f"{self.package}.json")

    def inputs(self, level: str) -> dict:
        """Return everything that determines a build's bytes; its source must exist."""
        c, cxx, linker = self.options(level)
        recipe = self.recipe
        return {
            "package": self.package,
            "release": self.release,
            **json.loads(self.origin.read_text(encoding="utf-8")),
            "level": level,
            "compiler": self.compiler or "gcc",
            "compiler_version": version_of(self.compiler or "gcc"),
            "cflags": c,
            "cxxflags": cxx,
            "ldflags": linker,
            "configure": None if recipe.configure is None else list(recipe.configure),
            "targets": list(recipe.targets),
        }

    def is_built(self, level: str, manifest: dict[str, dict]) -> bool:
        """Return whether the manifest has exactly this build, and its files are unchanged."""
        folder = self.binaries(level)
        known = dict(manifest.get(folder.name, {}))
        files = known.pop("files", {})
        return (
            self.origin.is_file()
            and known == self.inputs(level)
            and all((folder / name).is_file() for name in files)
            and all(sha256_of(str(folder / name)) == sha256 for name, sha256 in files.items())
        )

    def options(self, level: str) -> tuple[str, str, str]:
        """Return the options of the C compiler, of the C++ compiler and of the linker."""
        code, program = PIE[self.is_position_independent(level)]
        if self.is_for_windows:  # all of its code can be moved
            code, program = "", ""
        elif not self.recipe.programs:  # shared libraries
            code, program = "-fPIC", ""
        # No debug information, because only the symbol table is used.
        common = f"-{level.replace(LTO, ' ' + LTO)} -w"
        return f"{common} -std=gnu11 {code}", f"{common} -std=gnu++17 {code}", program


@functools.cache
def version_of(compiler: str) -> str:
    """Return the first line of a compiler's --version."""
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return said.stdout.split("\n")[0]


class Manifest:
    """The file that records how each folder of binaries was built, and the hashes of its files."""

    def __init__(self, output: Path) -> None:
        self.file = output / "manifest.json"

    def read(self) -> dict[str, dict]:
        """Return folder's name -> `Tree.inputs` and, under "files", name -> SHA-256.

        Raises
        ------
        UserError
            The file is damaged.
        """
        if not self.file.exists():
            return {}
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{self.file} is damaged ({error}); delete it") from error
        if not isinstance(found, dict) or not all(isinstance(x, dict) for x in found.values()):
            raise UserError(f"{self.file} is not a manifest of builds; delete it")
        return found

    def add(self, tree: Tree, level: str) -> None:
        """Add a build that was just made."""
        folder = tree.binaries(level)
        files = {file.name: sha256_of(str(file)) for file in sorted(folder.iterdir())}
        with open(self.file.with_suffix(".lock"), "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # packages are built in parallel
            builds = self.read() | {folder.name: tree.inputs(level) | {"files": files}}
            write_json(self.file, dict(sorted(builds.items())))


def main(
    *,
    packages: str = " ".join(RECIPES),
    levels: str = "O0 O1 O3",
    releases: str = "",
    compilers: str = "",
    jobs: PositiveInt = JOBS,
    output: Path = OUTPUT,
) -> int:
    """Build programs of Debian or Ubuntu from source.

    Several values are one argument, separated by blanks: --levels "O0 O3".

    Parameters
    ----------
    packages : str
        Source packages; `experiment_data/recipes.py` must have their recipes.
    levels : str
        Optimisation levels, from O0 O1 O2 O3 Os Og; O2-flto is O2 with link-time optimisation.
    releases : str
        Codenames of releases; each gives one version of a package. Default: this machine's.
    compilers : str
        Installed compilers: "gcc-12 clang". The folders' names then include the compiler. Default:
        gcc, not in the folders' names.
    jobs : int
        Number of packages built in parallel.
    output : Path
        Folder for sources/, build/ and binaries/.

    Raises
    ------
    UserError
        Unknown values, no compiler, no network; failed builds, after all others are done.
    """
    check_outputs({}, (), {"output": output})
    level_list, package_list = split("levels", levels), split("packages", packages)
    for level in level_list:
        if level.removesuffix(LTO) not in LEVELS:
            raise UserError(
                f"--levels {level}: the levels are {' '.join(LEVELS)}, each also with {LTO} added"
            )
    for package in package_list:
        if package not in RECIPES:
            raise UserError(f"--packages {package}: there are recipes for {' '.join(RECIPES)}")
    compiler_list = split("compilers", compilers) if compilers else [""]
    require_tools(*(compiler or "gcc" for compiler in compiler_list), "make")
    release_list = split("releases", releases) if releases else [distribution()[1]]
    manifest = Manifest(output)
    built, todo = manifest.read(), {}
    for release, package, compiler in itertools.product(release_list, package_list, compiler_list):
        tree = Tree(output, package, release, compiler)
        missing = [level for level in level_list if not tree.is_built(level, built)]
        todo |= {tree: missing} if missing else {}
    with disk_errors(output):
        failures = get_sources(list(todo))
        ready = [job for job in todo.items() if job[0].origin.is_file()]
        with ThreadPoolExecutor(jobs) as pool:
            for error in pool.map(lambda job: attempt(*job, manifest), ready):
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
            package = {"autoreconf": "autoconf automake", "libtoolize": "libtool"}.get(
                tool, package
            )
            raise UserError(
                f"no {tool} is installed (Debian, Ubuntu: sudo apt-get install {package})"
            )


def get_sources(trees: list[Tree]) -> list[str]:
    """Get the upstream sources, without the distribution's patches; return the failures."""
    failures = []
    missing = {tree.source: tree for tree in trees if not tree.origin.is_file()}.values()
    for release in dict.fromkeys(tree.release for tree in missing):
        wanted = [tree for tree in missing if tree.release == release]
        say(f"{release}: download {' '.join(tree.package for tree in wanted)}")
        with private_apt([release], wanted[0].output / "sources") as (apt, folder):
            complaint = apt("apt-get", "update")
            for tree in wanted:
                try:
                    tarball = download(apt, folder, tree.package, release, complaint)
                    with extracted(tarball, tree.source, links=True):
                        pass
                    version = tarball.name.removeprefix(f"{tree.package}_").split(".orig.")[0]
                    write_json(tree.origin, {"version": version, "source": sha256_of(str(tarball))})
                except UserError as error:
                    failures.append(str(error))
    return failures


def download(
    apt: Callable[..., str], folder: Path, package: str, release: str, complaint: str
) -> Path:
    """Download a source package into ``folder``; return the upstream tarball.

    Parameters
    ----------
    apt, folder
        The values that `private_apt` yields.
    complaint : str
        apt's complaint about the release's lists, for the error message.
    """
    said = apt("apt-get", "source", "--download-only", "--only-source", package)
    tarballs = sorted(folder.glob(f"{package}_*.orig.tar.?z*"))
    if not tarballs:
        lines = (said + complaint).strip().splitlines() or ["no output"]
        reason = next((line for line in lines if line.startswith("E:")), lines[-1])
        raise UserError(f"cannot download the source package {package} of {release}: {reason}")
    return tarballs[0]


def attempt(tree: Tree, levels: list[str], manifest: Manifest) -> str:
    """Build one package; return the error, or ""."""
    try:
        build(tree, levels, manifest)
    except UserError as error:
        return str(error)
    return ""


def build(tree: Tree, levels: list[str], manifest: Manifest) -> None:
    """Configure a copy of the sources, then compile it once per level."""
    recipe, folder = tree.recipe, tree.folder
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tree.source, folder, symlinks=True)
    if recipe.system == "make" and recipe.configure is not None:
        if not (folder / recipe.folder / "configure").is_file():
            if not (folder / recipe.folder / "configure.ac").is_file():
                raise UserError(f"{tree.name}: its source has no configure script")
            require_tools("autoreconf", "libtoolize")
            run(tree, "autoreconf", ["autoreconf", "-fi"])
        say(f"{tree.name}: configure")
        host = [f"--host={tree.host}"] if tree.host else []
        run(tree, "configure", ["./configure", *recipe.configure, *host, *tree.compilers])
    for level in levels:
        say(f"{tree.name}: compile at -{level}")
        (build_with_cmake if recipe.system == "cmake" else build_with_make)(tree, level)
        ending = ".exe" if tree.is_for_windows else ""
        made = [folder / f"{file}{ending}" for file in recipe.programs] or find_built(folder)
        if not made:
            raise UserError(f"{tree.name}: the build made no program and no library")
        if missing := [str(file) for file in made if not file.is_file()]:
            raise UserError(f"{tree.name}: the build did not make {', '.join(missing)}")
        with atomic_folder(tree.binaries(level)) as target:
            for file in made:
                copy = target / re.sub(r"\.so[.\d]*$", ".so", file.name)
                copy.write_bytes(file.read_bytes())
                copy.chmod(0o755)
        manifest.add(tree, level)


def build_with_make(tree: Tree, level: str) -> None:
    """Compile everything again with the package's Makefile."""
    run(tree, f"clean-{level}", ["make", "clean"])
    c, cxx, linker = tree.options(level)
    options = [f"CFLAGS={c}", f"CXXFLAGS={cxx}", "MAKEINFO=true", *tree.compilers]  # no manuals
    if linker:
        options.append(f"{tree.recipe.linker}={linker}")
    run(tree, f"make-{level}", ["make", *tree.recipe.targets, *options])


def build_with_cmake(tree: Tree, level: str) -> None:
    """Compile everything again with cmake."""
    work = tree.folder / "made"
    shutil.rmtree(work, ignore_errors=True)
    c, cxx, linker = tree.options(level)
    options = [f"-DCMAKE_C_FLAGS={c}", f"-DCMAKE_CXX_FLAGS={cxx}", "-DCMAKE_BUILD_TYPE=None"]
    options += [f"-DCMAKE_EXE_LINKER_FLAGS={linker}"] if linker else []
    for option in tree.compilers:
        variable, _, compiler = option.partition("=")
        language = {"CC": "C", "CXX": "CXX"}[variable]
        options.append(f"-DCMAKE_{language}_COMPILER={compiler}")
    if tree.host:
        options += [
            f"-DCMAKE_SYSTEM_NAME={'Windows' if tree.is_for_windows else 'Linux'}",
            f"-DCMAKE_SYSTEM_PROCESSOR={tree.host.split('-')[0]}",
        ]
    source = ["-S", ".", "-B", str(work)]
    run(tree, f"configure-{level}", ["cmake", *source, *(tree.recipe.configure or ()), *options])
    run(tree, f"make-{level}", ["cmake", "--build", str(work)])


def find_built(folder: Path) -> list[Path]:
    """Return the programs and shared libraries in a build's folder, one for each name.

    Tests, examples and files with hardly any code are left out.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*"), key=lambda path: (len(path.parts), path)):
        inside = path.relative_to(folder)
        if path.is_symlink() or not path.is_file() or path.stat().st_size < LEAST_SIZE:
            continue
        if NOT_INSTALLED.search(str(inside)):
            continue
        with path.open("rb") as file:
            head = file.read(18)
        # An ELF program or shared library, of either byte order, or Windows' own.
        is_elf = head[:4] == b"\x7fELF" and head[16:18] in (b"\2\0", b"\3\0", b"\0\2", b"\0\3")
        if is_elf or head[:2] == b"MZ":
            found.setdefault(re.sub(r"\.so[.\d]*$", ".so", path.name), path)
    return list(found.values())


def run(tree: Tree, step: str, command: list[str]) -> None:
    """Run one step of a build with a log; raise a UserError if it fails."""
    try:
        run_logged(command, tree.folder / tree.recipe.folder, tree.folder / f"{step}.log")
    except UserError as error:
        needs = f"; it needs {', '.join(tree.recipe.needs)}" if tree.recipe.needs else ""
        raise UserError(f"{tree.name}: {error}{needs}") from error


if __name__ == "__main__":
    command_line(main)
