"""Build training programs: small C programs of many packages, at several optimisation levels.

    python experiment_data/build_packages.py
    python experiment_data/build_packages.py --packages "grep sed" --levels "O0 O2"

What contrast.py learns from: functions of many authors, none of them GNU coreutils', so that
coreutils stays a measure of what was learned. Everything made lies in one folder, ignored by git:

    packages/sources/grep/           upstream's source, from Debian's or Ubuntu's source package
    packages/build/grep/             configured once, compiled once per level, never installed
    packages/binaries/grep-O1/grep   what contrast.py reads, with symbols

What is there is kept; delete a folder to have it made anew.
"""

import os
import shutil
import subprocess
import sys
import tarfile
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


RECIPES = {
    "bzip2": Recipe(("bzip2",), None, ("bzip2",)),
    "dash": Recipe(("src/dash",)),
    "diffutils": Recipe(("src/diff", "src/diff3", "src/sdiff")),
    "ed": Recipe(("ed",), ()),
    "findutils": Recipe(("find/find", "xargs/xargs")),
    "grep": Recipe(("src/grep",), ("--disable-dependency-tracking", "--disable-perl-regexp")),
    "gzip": Recipe(("gzip",)),
    "lua5.4": Recipe(("src/lua",), None, ("-C", "src", "lua")),
    "lz4": Recipe(("programs/lz4",), None, ("-C", "programs", "lz4")),
    "m4": Recipe(("src/m4",)),
    "mawk": Recipe(("mawk",), ()),
    "patch": Recipe(("src/patch",)),
    "sed": Recipe(("sed/sed",)),
}

# Built to lie at a fixed place, as distributions did until 2016; the others may lie anywhere.
FIXED = ("diffutils", "findutils", "grep", "lz4", "patch")


@fire.decorators.SetParseFns(packages=str, levels=str, output=str)
def main(
    *,
    packages: str = " ".join(RECIPES),
    levels: str = "O0 O1 O3",
    jobs: int = 0,
    output: Path = OUTPUT,
) -> int:
    """Build programs of this machine's release of Debian or Ubuntu from source.

    Several values stand in one argument, with blanks between: --levels "O0 O3".

    Parameters
    ----------
    packages : str
        Source packages, of those that this script has a recipe for.
    levels : str
        Optimisation levels, of O0 O1 O2 O3 Os Og.
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
    for tool in ("gcc", "make"):
        if not shutil.which(tool):
            raise UserError(
                f"no {tool} is installed (Debian, Ubuntu: sudo apt-get install build-essential)"
            )
    todo = {p: [v for v in level_list if not is_built(output, p, v)] for p in package_list}
    todo = {package: missing for package, missing in todo.items() if missing}
    failures = []
    with disk_errors(output):
        get_sources(list(todo), output / "sources")
        with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
            for error in pool.map(lambda job: attempt(output, *job), todo.items()):
                failures += [error] if error else []
    programs = {file.name for file in (output / "binaries").glob("*/*")}
    print(f"{len(programs)} programs in {output / 'binaries'}")
    if failures:
        raise UserError("; ".join(failures))
    return 0


def is_built(output: Path, package: str, level: str) -> bool:
    """Whether all programs of a package are there at one level."""
    folder = output / "binaries" / f"{package}-{level}"
    return all((folder / Path(file).name).is_file() for file in RECIPES[package].programs)


def get_sources(packages: list[str], sources: Path) -> None:
    """Have sources/<package>/, upstream's tarball without the distribution's patches."""
    missing = [package for package in packages if not (sources / package).is_dir()]
    if not missing:
        return
    _, codename = distribution()
    say(f"download {' '.join(missing)}")
    with private_apt([codename], sources) as (apt, folder):
        complaint = apt("apt-get", "update")
        for package in missing:
            complaint = apt("apt-get", "source", "--download-only", "--only-source", package)
            tarballs = sorted(folder.glob(f"{package}_*.orig.tar.?z*"))
            if not tarballs:
                raise UserError(
                    f"cannot download the source package {package} of {codename}: "
                    f"{complaint.strip().splitlines()[-1]}"
                )
            extract(tarballs[0], sources / package)


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


def attempt(output: Path, package: str, levels: list[str]) -> str:
    """Build one package; return what went wrong, or ""."""
    try:
        build(output, package, levels)
    except UserError as error:
        return str(error)
    return ""


def build(output: Path, package: str, levels: list[str]) -> None:
    """Configure a copy of the sources, then compile it once per level."""
    recipe, folder = RECIPES[package], output / "build" / package
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(output / "sources" / package, folder, symlinks=True)
    if recipe.configure is not None:
        say(f"{package}: configure")
        run(package, folder, "configure", ["./configure", *recipe.configure])
    for level in levels:
        say(f"{package}: make at -{level}")
        run(package, folder, f"clean-{level}", ["make", "clean"])
        # No debug information: the symbol table is all that is read.
        pie = " -fno-pie -no-pie" if package in FIXED else ""
        flags = f"{recipe.flags}=-{level} -w -std=gnu11{pie}"
        run(package, folder, f"make-{level}", ["make", *recipe.targets, flags])
        for file in recipe.programs:
            target = output / "binaries" / f"{package}-{level}" / Path(file).name
            with atomic_file(target, "wb") as binary:
                binary.write((folder / file).read_bytes())
            target.chmod(0o755)


def run(package: str, folder: Path, step: str, command: list[str]) -> None:
    """Run one step of a build, its output in a log; raise a UserError if it fails."""
    log = folder / f"{step}.log"
    env = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    env |= {"LC_ALL": "C", "FORCE_UNSAFE_CONFIGURE": "1"}
    with log.open("wb") as file:
        done = subprocess.run(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or ["no output"]
        reason = next((line for line in lines if "error:" in line.lower()), lines[-1])
        raise UserError(f"{package}: {command[0]} failed ({reason.strip()}; all of it in {log})")


if __name__ == "__main__":
    command_line(main)
