"""How soon diff.py shows the functions that a patch changed, by real patches of Debian's.

    python bench/patches.py
    python bench/patches.py --old_level O3               # OLD built at another level than NEW
    python bench/patches.py --old_compiler clang         # or by another compiler

Debian keeps what it changes in a program as a series of patches, most of them for security. Each
one that changes code makes a pair, built before it and with it, by one compiler with the same
flags. diff.py is given stripped copies. What a patch changed, debug information tells: the
functions, as diff.py lists them, that hold code of lines that the patch takes away or adds.

Sources come from the machine's own Debian or Ubuntu, as in experiment_data/. What is built already
is not built again; delete the folder to have all made anew.
"""

import dataclasses
import datetime
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
from build_coreutils import distribution, open_tarball, private_apt
from build_packages import download, extract, require_tools
from pydantic import PositiveInt
from scipy.stats import binomtest

import utils
from binary.analysis import cache_file, load_analysis
from binary.cache import analyse_all
from features.extract import Features, extract_features
from matching.changes import IDENTICAL, Diff, compare
from matching.model import DEFAULT, read_model
from terminal import progress
from terminal.command_line import command_line


class Recipe(NamedTuple):
    """How a package's program is built."""

    program: str
    configure: tuple[str, ...] | None
    make: tuple[tuple[str, ...], ...] = ((),)  # the arguments of each call


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
C_FILE = re.compile(r"^\+\+\+ [^/\n]+/(\S+\.[ch])\b", re.M)  # that a part of a patch is of
# Places in the image, as objdump shows them: 0x20(%rip), # 4010 <main+0x8>, call 4010 <main>
ADDRESS = re.compile(r"-?0x[0-9a-f]+(?=\(%rip\))|\s+#.*|<.*>|(?<=\s)[0-9a-f]+(?= <|$)", re.M)
HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", re.M)

Lines = set[tuple[str, int]]  # file, line


@dataclasses.dataclass
class Step:
    """One patch: the programs without it and with it, and its lines of these two.

    ``before`` is the one without it that was built as ``new`` is.
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
    """Print where each patch's functions stand in diff.py's list.

    Parameters
    ----------
    packages : str
        Source packages, of those that this script has a recipe for.
    release : str
        The release of the distribution that has them. Default: this machine's.
    level, compiler : str
        Optimisation level, and compiler.
    old_level, old_compiler : str
        Of OLD, where these are others.
    every : int
        Take each patch whose number in its package's series this divides; others are only applied.
    model_file : str
        What matching/train.py wrote.
    work : str
        Where sources, programs and analyses are kept.
    workers : int
        Processes that analyse.
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
    print(f"{datetime.date.today()}, {os.cpu_count()} cores; {release}, {how}")
    for step in steps.copy():
        if instructions(copies[step.before]) == instructions(copies[step.new]):
            print(f"{step.package}: {step.patch} changes no instruction")
            steps.remove(step)
    compared = {copies[file] for step in steps for file in (step.old, step.new)}
    binaries = [{"path": str(f), "sha256": utils.sha256_of(f)} for f in sorted(compared)]
    output = str(folder / "output")
    failed = analyse_all(binaries, output, workers)
    print("functions differ patched first")
    rows = []
    for step in progress.bar(steps, desc="compare"):
        pair = copies[step.old], copies[step.new]
        if missing := [str(file) for file in pair if str(file) in failed]:
            print(f"{step.package}: {step.patch} left out: {failed[missing[0]]}")
            continue
        codes = tuple(
            extract_features(load_analysis(cache_file(output, digest)))
            for digest in map(utils.sha256_of, pair)
        )
        found = compare(*codes, model)
        patched = patched_functions(step, codes, folder / "truth")
        rows.append((step.package, *judge(step, codes, found, patched)))
    for package in packages.split():
        show(package, [row[1:] for row in rows if row[0] == package])
    show("all", [row[1:] for row in rows])


def get_source(package: str, release: str, source: Path) -> None:
    """Have the upstream source of a package, with Debian's folder of patches in it."""
    with private_apt([release], source.parent.parent) as (apt, folder):
        upstream = download(apt, folder, package, release, apt("apt-get", "update"))
        patches = sorted(folder.glob(f"{package}_*.debian.tar.?z"))
        if not patches:
            raise utils.UserError(f"{package} of {release} has no debian.tar with patches")
        extract(upstream, folder / "tree")
        with open_tarball(patches[0]) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)
            tar.extractall(folder / "tree")
        source.parent.mkdir(parents=True, exist_ok=True)
        (folder / "tree").rename(source)  # whole or not at all


def build_series(
    package: str,
    source: Path,
    work: Path,
    release: str,
    compiler: str,
    level: str,
    every: int = 1,
) -> list[Step]:
    """Build a program before and after each patch, or every n-th, that changes C code."""
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
        """Return the program as it is after so many patches."""
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
    """Run a command, its output in a log; raise a UserError if it fails."""
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
    """Return what a patch changes in C files: one part for each."""
    parts = re.split(r"^(?=--- |diff --git )", patch, flags=re.M)
    return [part for part in parts if C_FILE.search(part)]


def apply(tree: Path, parts: list[str]) -> tuple[Lines, Lines]:
    """Apply parts of a patch; return the lines that it takes away and those that it adds."""
    files = sorted({C_FILE.search(part)[1] for part in parts})
    before = tree.parent / "before"
    shutil.rmtree(before, ignore_errors=True)
    for file in files:
        (before / file).parent.mkdir(parents=True, exist_ok=True)
        if (tree / file).exists():
            shutil.copy(tree / file, before / file)
    command = ["patch", "-p1", "--no-backup-if-mismatch"]
    run(tree, [*command, "--dry-run"], "".join(parts))  # all of it, or nothing
    run(tree, command, "".join(parts))
    removed: Lines = set()
    added: Lines = set()
    for file in files:
        command = ["diff", "-N", "-U0", before / file, tree / file]
        said = subprocess.run(command, capture_output=True, text=True, errors="replace").stdout
        for hunk in HUNK.finditer(said):
            for lines, first, count in ((removed, *hunk.groups()[:2]), (added, *hunk.groups()[2:])):
                n = int(first)
                # Line tables are read without folders, too.
                lines |= {(Path(file).name, n + i) for i in range(int(count or 1))}
    return removed, added


def instructions(program: Path) -> str:
    """Return what objdump shows of a program's code, without addresses."""
    command = ["objdump", "-d", "--no-addresses", "--no-show-raw-insn", str(program)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return ADDRESS.sub("", text.partition("Disassembly")[2])


def patched_functions(
    step: Step, codes: tuple[Features, ...], cache: Path
) -> tuple[set[int], set[int]]:
    """Return the functions of OLD and of NEW that hold code of the patch's lines."""
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
    codes: tuple[Features, ...],
    found: Diff,
    patched: tuple[set[int], set[int]],
) -> tuple[int, int, int]:
    """Print and return how many rows differ, how many hold patched lines, and the first of both.

    Places count from 1; 0 is nowhere.
    """
    differs = [row["status"] != IDENTICAL for row in found.functions]
    a, b = patched
    hit = [row["sides"][0] in a or row["sides"][1] in b for row in found.functions]
    both = [place for place, row in enumerate(zip(differs, hit, strict=True), 1) if all(row)]
    first = both[0] if both else 0
    print(
        f"{len(found.functions):9} {sum(differs):6} {sum(hit):7} {first:5}  "
        f"{step.package}: {step.patch}"
    )
    return sum(differs), sum(hit), first


def show(what: str, rows: list[tuple[int, int, int]]) -> None:
    """Print one line of the summary, of the patches that have a line in some function."""
    rows = [row for row in rows if row[1]]
    if not rows:
        return
    differ, _, first = np.array(rows).T
    soon = binomtest(int(np.sum((first > 0) & (first <= 5))), len(rows))
    low, high = soon.proportion_ci(method="wilson")
    print(
        f"{what}: of {len(rows)} patches {np.sum(first == 1)} have their function first, "
        f"{np.sum((first > 1) & (first <= 5))} second to fifth, {np.sum(first > 5)} later, "
        f"{np.sum(first == 0)} nowhere; of functions {np.median(differ):.0f} differ (median; "
        f"{np.max(differ)} at most); in the first five: {soon.statistic:.0%} "
        f"(95 % interval {low:.0%} to {high:.0%})"
    )


if __name__ == "__main__":
    command_line(main)
