"""How far up in diff.py's list are the functions that a patch changed? With Debian's patches.

    python bench/patches.py
    python bench/patches.py --old_level O3               # OLD and NEW at different levels
    python bench/patches.py --old_compiler clang         # or by different compilers

Debian's changes to a program are a series of patches, most of them for security. Each patch that
changes code gives a pair: the program built without the patch, and with it. diff.py compares
stripped copies. Debug information tells which functions the patch changed: those with code from
lines that the patch removes or adds.

The sources come from the machine's own Debian or Ubuntu, as in experiment_data/. Programs that are
built already are not built again; delete the folder to start over.
"""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench"), str(ROOT / "experiment_data")]

import numpy as np
import truth
from build_coreutils import distribution, extracted, open_tarball, private_apt
from build_packages import download, require_tools
from pydantic import PositiveInt
from scipy.stats import binomtest
from shared import machine

import utils
from binary.analysis import load_analysis
from binary.cache import analyse_files
from features.extract import Features, extract_features
from matching.changes import compare
from matching.model import DEFAULT, read_model
from matching.result import IDENTICAL, Diff
from terminal import progress
from terminal.command_line import command_line


class Recipe(NamedTuple):
    """How a package's program is built."""

    program: str
    configure: tuple[str, ...] | None
    make: tuple[tuple[str, ...], ...] = ((),)  # arguments of each call of make


PLAIN = ("--disable-nls", "--disable-dependency-tracking")
RECIPES = {
    "cpio": Recipe("src/cpio", PLAIN, (("-C", "gnu"), ("-C", "lib"), ("-C", "src"))),
    "dnsmasq": Recipe("src/dnsmasq", None),
    "rsync": Recipe(
        "rsync",
        (
            "--disable-openssl",
            "--disable-xxhash",
            "--disable-zstd",
            "--disable-lz4",
            "--disable-iconv",
            "--disable-acl-support",
            "--disable-xattr-support",
            "--disable-md2man",
            "--with-included-popt",
            "--with-included-zlib",
        ),
        (("rsync",),),
    ),
    "tar": Recipe("src/tar", PLAIN, (("-C", "gnu"), ("-C", "lib"), ("-C", "src"))),
    "unzip": Recipe(
        "unzip",
        None,
        (
            (
                *("-f", "unix/Makefile", "unzip", "CC=gcc"),
                "LF2=",  # not stripped
                "LOC=-DLARGE_FILE_SUPPORT -DUNICODE_SUPPORT -DUNICODE_WCHAR -DUTF8_MAYBE_NATIVE "
                "-DNO_LCHMOD -DNOMEMCPY",
            ),
        ),
    ),
}
C_FILE = re.compile(r"^\+\+\+ [^/\n]+/(\S+\.[ch])\b", re.M)  # what a part changes
# Addresses in objdump's output: 0x20(%rip), # 4010 <main+0x8>, call 4010 <main>
ADDRESS = re.compile(r"-?0x[0-9a-f]+(?=\(%rip\))|\s+#.*|<.*>|(?<=\s)[0-9a-f]+(?= <|$)", re.M)
HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", re.M)

Lines = set[tuple[str, int]]  # file, line


@dataclasses.dataclass
class Step:
    """One patch.

    Attributes
    ----------
    package, patch : str
    old, new : Path
        The program without the patch and with it.
    removed, added : set of (str, int)
        The lines that the patch removes from ``old`` and adds in ``new``.
    before : Path
        The program without the patch, built by the compiler and at the level of ``new``.
    """

    package: str
    patch: str
    old: Path
    new: Path
    removed: Lines
    added: Lines
    before: Path = Path()


def main(
    packages: str = " ".join(RECIPES),
    release: str = "",
    level: str = "O2",
    compiler: str = "gcc",
    old_level: str = "",
    old_compiler: str = "",
    every: PositiveInt = 1,
    model_file: str = str(DEFAULT),
    work: str = "out-patches",
    workers: int = 2,
) -> None:
    """Print for each patch the place of its functions in diff.py's list.

    Parameters
    ----------
    packages : str
        Source packages, separated by blanks; this script must have a recipe for each.
    release : str
        The release of the distribution to take them from. Default: this machine's.
    level, compiler : str
        Optimisation level and compiler.
    old_level, old_compiler : str
        Those of OLD, if they differ.
    every : int
        Measure only each n-th patch of a package's series; the others are only applied.
    model_file : str
        A model written by matching/train.py.
    work : str
        Folder for sources, programs and analyses.
    workers : int
        Number of parallel analyses.
    """
    old_level, old_compiler = old_level or level, old_compiler or compiler
    require_tools(compiler, old_compiler, "make", "patch", "diff", "objdump", "strip")
    model = read_model(model_file)
    release = release or distribution()[1]
    folder = Path(work)
    steps = []
    for package in packages.split():
        source = folder / "sources" / release / package
        if not source.is_dir():
            get_source(package, release, source)
        both = [
            build_series(package, source, folder, release, *setting, every)
            for setting in dict.fromkeys([(old_compiler, old_level), (compiler, level)])
        ]
        before = {step.patch: step for step in both[0]}
        for step in both[-1]:
            if step.patch in before:
                old = before[step.patch]
                steps.append(dataclasses.replace(step, old=old.old, before=step.old))
    copies = {
        file: truth.stripped_copy(file, folder / "stripped" / file.relative_to(folder))
        for step in steps
        for file in (step.old, step.before, step.new)
    }
    how = f"{old_compiler} -{old_level} to {compiler} -{level}"
    print(f"{machine()}; {release}, {how}")
    for step in steps.copy():
        if instructions(copies[step.before]) == instructions(copies[step.new]):
            print(f"{step.package}: {step.patch} changes no instruction")
            steps.remove(step)
    compared = {str(copies[file]) for step in steps for file in (step.old, step.new)}
    analyses, failed = analyse_files(sorted(compared), str(folder / "output"), workers)
    print("functions differ patched first")
    rows = []
    for step in progress.bar(steps, desc="compare"):
        pair = str(copies[step.old]), str(copies[step.new])
        if missing := [file for file in pair if file in failed]:
            print(f"{step.package}: {step.patch} left out: {failed[missing[0]]}")
            continue
        codes = tuple(extract_features(load_analysis(analyses[file])) for file in pair)
        found = compare(*codes, model)
        patched = patched_functions(step, codes, folder / "truth")
        rows.append((step.package, *judge(step, found, patched)))
    for package in packages.split():
        show(package, [row[1:] for row in rows if row[0] == package])
    show("all", [row[1:] for row in rows])


def get_source(package: str, release: str, source: Path) -> None:
    """Download the upstream source of a package, and unpack Debian's folder of patches into it."""
    with private_apt([release], source.parent.parent) as (apt, folder):
        upstream = download(apt, folder, package, release, apt("apt-get", "update"))
        patches = sorted(folder.glob(f"{package}_*.debian.tar.?z"))
        if not patches:
            raise utils.UserError(f"{package} of {release} has no debian.tar with patches")
        with extracted(upstream, source, links=True) as tree, open_tarball(patches[0]) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)
            tar.extractall(tree)


def build_series(
    package: str,
    source: Path,
    work: Path,
    release: str,
    compiler: str,
    level: str,
    every: int = 1,
) -> list[Step]:
    """Build a program before and after every n-th patch that changes C code."""
    recipe = RECIPES[package]
    setting = level if compiler == "gcc" else f"{compiler}-{level}"
    folder = work / f"{package}-{release}-{setting}"
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(source, tree, symlinks=True)
    programs = folder / "programs"
    programs.mkdir(parents=True, exist_ok=True)
    flags = [f"CFLAGS=-g -{level} -w -fcommon", f"CC={compiler}"]
    configured = False

    def program(number: int) -> Path:
        """Return the program after this number of patches."""
        nonlocal configured
        file = programs / f"{number:03}"
        if not file.exists():
            if recipe.configure is not None and not configured:
                run(tree, ["./configure", *recipe.configure, *flags])
                configured = True
            for arguments in recipe.make:
                run(tree, ["make", *arguments, *(flags if recipe.configure is None else [])])
            shutil.copy(tree / recipe.program, file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
        return file

    steps = []
    applied = patches = 0
    series = (tree / "debian/patches/series").read_text().splitlines()
    names = [line.split("#")[0].strip() for line in series]
    for number, name in enumerate(progress.bar(list(filter(None, names)), desc=package), 1):
        text = (tree / "debian/patches" / name).read_text(errors="surrogateescape")
        parts = c_parts(text)
        if not parts:
            continue
        patches += 1
        taken = patches % every == 0
        try:
            last = program(applied) if taken else Path()
            removed, added = apply(tree, parts)
            applied = number
            current = program(number) if taken else Path()
        except utils.UserError as error:
            print(f"{package}: {name} left out: {error}")
            continue
        if taken:
            steps.append(Step(package, name, last, current, removed, added))
    return steps


def run(folder: Path, command: list[str], text: str | None = None) -> None:
    """Run a command with its output in a log; raise a `utils.UserError` if it fails."""
    with (folder / "log").open("a") as log:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | {"FORCE_UNSAFE_CONFIGURE": "1"},
            input=text,
            errors="surrogateescape",
            stdout=log,
            stderr=log,
        )
    if done.returncode:
        raise utils.UserError(f"{command[0]} failed, see the end of {folder / 'log'}")


def c_parts(patch: str) -> list[str]:
    """Return the parts of a patch that change C files, one for each file."""
    parts = re.split(r"^(?=--- |diff --git )", patch, flags=re.M)
    return [part for part in parts if C_FILE.search(part)]


def apply(tree: Path, parts: list[str]) -> tuple[Lines, Lines]:
    """Apply parts of a patch; return the lines that they remove and those that they add."""
    files = sorted({C_FILE.search(part)[1] for part in parts})
    before = tree.parent / "before"
    shutil.rmtree(before, ignore_errors=True)
    for file in files:
        (before / file).parent.mkdir(parents=True, exist_ok=True)
        if (tree / file).exists():
            shutil.copy(tree / file, before / file)
    command = ["patch", "-p1", "--no-backup-if-mismatch"]
    run(tree, [*command, "--dry-run"], "".join(parts))  # apply all parts or none
    run(tree, command, "".join(parts))
    removed: Lines = set()
    added: Lines = set()
    for file in files:
        command = ["diff", "-N", "-U0", before / file, tree / file]
        said = subprocess.run(command, capture_output=True, text=True, errors="replace").stdout
        for hunk in HUNK.finditer(said):
            for lines, first, count in ((removed, *hunk.groups()[:2]), (added, *hunk.groups()[2:])):
                n = int(first)
                # Line tables are read without folders as well.
                lines |= {(Path(file).name, n + i) for i in range(int(count or 1))}
    return removed, added


def instructions(program: Path) -> str:
    """Return objdump's listing of a program's code, without addresses."""
    command = ["objdump", "-d", "--no-addresses", "--no-show-raw-insn", str(program)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return ADDRESS.sub("", text.partition("Disassembly")[2])


def patched_functions(
    step: Step, codes: tuple[Features, ...], cache: Path
) -> tuple[set[int], set[int]]:
    """Return the numbers of the functions of OLD and of NEW with code from the patch's lines."""
    found = []
    for code, file, lines in zip(
        codes, (step.old, step.new), (step.removed, step.added), strict=True
    ):
        analysis = code.analysis
        blocks = analysis.address[: analysis.code_blocks].astype(np.int64)
        inside = set()
        for address, name, line in truth.read_truth(file, cache).line:
            if (name, line) in lines:
                block = int(np.searchsorted(blocks, address, side="right")) - 1
                inside.add(int(analysis.function[block]))
        found.append(inside)
    return found[0], found[1]


def judge(
    step: Step,
    found: Diff,
    patched: tuple[set[int], set[int]],
) -> tuple[int, int, int]:
    """Find a patch's functions in diff.py's list, and print its row.

    Returns
    -------
    int
        Number of functions that differ.
    int
        Number of functions that the patch changed.
    int
        Place of the first function that is both, from 1; 0 if there is none.
    """
    differs = [row.status != IDENTICAL for row in found.functions]
    a, b = patched
    hit = [row.sides[0] in a or row.sides[1] in b for row in found.functions]
    both = [place for place, row in enumerate(zip(differs, hit, strict=True), 1) if all(row)]
    first = both[0] if both else 0
    print(
        f"{len(found.functions):9} {sum(differs):6} {sum(hit):7} {first:5}  "
        f"{step.package}: {step.patch}"
    )
    return sum(differs), sum(hit), first


def show(what: str, rows: list[tuple[int, int, int]]) -> None:
    """Print one line of the summary; patches without a line in any function do not count."""
    rows = [row for row in rows if row[1]]
    if not rows:
        return
    differ, _, first = np.array(rows).T
    soon = binomtest(int(np.sum((first > 0) & (first <= 5))), len(rows))
    low, high = soon.proportion_ci(method="wilson")
    print(
        f"{what}: {len(rows)} patches; their function is first for {np.sum(first == 1)}, "
        f"second to fifth for {np.sum((first > 1) & (first <= 5))}, later for {np.sum(first > 5)}, "
        f"missing for {np.sum(first == 0)}; {np.median(differ):.0f} functions differ (median; "
        f"maximum {np.max(differ)}); in the first five: {soon.statistic:.0%} "
        f"(95 % interval {low:.0%} to {high:.0%})"
    )


if __name__ == "__main__":
    command_line(main)
