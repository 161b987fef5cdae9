"""Does diff.py see every change, and no change where there is none? Per processor.

    python bench/edits.py

A small program is built as it is, and once for each of a dozen edits: a constant, a callee, a
comparison, a table, a string, a field's offset, an added instruction. The edited function must be
"changed" and come first in the list. The same objects are also linked with another file in front,
with shuffled functions, and stripped; then all functions except new ones must be "identical". Each
program is also compared with itself. None of the programs is run.

The package ziglang contains a compiler (clang) and a linker (lld) for all processors.
"""

import functools
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from shared import machine, run

import utils
from binary.analysis import load_analysis
from binary.cache import analyse_files
from features.extract import Features, extract_features
from matching.changes import compare
from matching.model import Model, read_model
from matching.result import CHANGED, IDENTICAL, Diff
from terminal.command_line import command_line

HERE = Path(__file__).resolve().parent
ZIG = [sys.executable, "-m", "ziglang"]
PROCESSORS = {  # name -> clang's name
    "x86-64": "x86_64-linux-musl",
    "i386": "x86-linux-musl",
    "AArch64": "aarch64-linux-musl",
    "ARM": "arm-linux-musleabihf",
    "Thumb": "thumb-linux-musleabihf",
    "MIPS": "mips-linux-musleabihf",
    "MIPS little": "mipsel-linux-musleabihf",
    "MIPS64": "mips64-linux-muslabi64",
    "MIPS64 little": "mips64el-linux-muslabi64",
    "PowerPC": "powerpc-linux-musleabihf",
    "PowerPC64": "powerpc64-linux-musl",
    "PowerPC64 little": "powerpc64le-linux-musl",
    "RISC-V 64": "riscv64-linux-musl",
    "s390x": "s390x-linux-musl",
}
FLAGS = ["-ffunction-sections", "-fno-sanitize=all", "-fno-stack-protector", "-w"]
KINDS = {"position-independent": ("-fPIC", "-pie"), "fixed": ("-fno-PIC", "-no-pie")}
EDIT = re.compile(r"EDIT == (\d+) /\* (\w+): ([^*]+) \*/")
NEW = {"version_banner"}  # functions of edits_pad.c


class Edit(NamedTuple):
    """One of the edits of edits.c."""

    number: int
    function: str
    what: str


class Programs(NamedTuple):
    """The programs of one processor; the linker may rewrite code in the relaxed one."""

    plain: Path
    padded: Path
    shuffled: Path
    stripped: Path
    relaxed: Path
    edits: dict[Edit, Path]

    def all(self) -> list[Path]:
        """Return all files."""
        copies = [self.plain, self.padded, self.shuffled, self.stripped, self.relaxed]
        return [*copies, *self.edits.values()]


def edits() -> list[Edit]:
    """Return the edits in edits.c, by number."""
    found = EDIT.findall((HERE / "edits.c").read_text())
    return sorted(Edit(int(number), function, what) for number, function, what in found)


def main(
    processors: str = ",".join(PROCESSORS),
    kinds: str = ",".join(KINDS),
    level: str = "O2",
    work: str = "",
    workers: int = 2,
) -> None:
    """Print the table.

    Parameters
    ----------
    processors : str
        Names of PROCESSORS, separated by commas.
    kinds : str
        How the programs are linked: position-independent, fixed, or both, separated by a comma.
    level : str
        Optimisation level.
    work : str
        Folder for programs and analyses. Default: a temporary folder.
    workers : int
        Number of processes that analyse.
    """
    for given, known in ((processors, PROCESSORS), (kinds, KINDS)):
        if unknown := set(given.split(",")) - set(known):
            raise utils.UserError(f"{sorted(unknown)[0]!r} is none of {', '.join(known)}")
    model = read_model()
    print(f"{machine()}; clang -{level}; {len(edits())} programs with one edit each")
    print("found: changed, and leads the list; else: other functions called changed or unmatched")
    print(f"{'':36} found  else  relinked shuffled stripped itself  relaxed  seconds")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(work or temporary)
        for name in processors.split(","):
            for kind in kinds.split(","):
                began = time.perf_counter()
                try:
                    programs = build(folder / name / kind, name, kind, level)
                    codes = analysed(programs, folder / "output", workers)
                    row = measure(programs, codes, model)
                except utils.UserError as error:
                    row = str(error)
                seconds = time.perf_counter() - began
                print(f"{name + ', ' + kind:36} {row}  {seconds:6.1f}", flush=True)


def build(
    folder: Path, processor: str, kind: str, level: str = "O2", numbers: Iterable[int] = ()
) -> Programs:
    """Build the missing programs of a processor; ``numbers``: only these edits."""
    folder.mkdir(parents=True, exist_ok=True)
    target = ["-target", PROCESSORS[processor], f"-{level}", *FLAGS]
    compiler_flag, linker_flag = KINDS[kind]

    def compiled(source: str, name: str, *flags: str) -> Path:
        out = folder / f"{name}.o"
        if not out.exists():
            run([*ZIG, "cc", *target, *flags, "-c", str(HERE / source), "-o", str(out)])
        return out

    imports = folder / "libimports.so"
    if not imports.exists():
        item = compiled("edits_imports.c", "imports", "-fPIC")
        link(
            imports, [item], "-shared", "--soname=libimports.so", "--unresolved-symbols=ignore-all"
        )

    def linked(name: str, *objects: Path, flags: Iterable[str] = ()) -> Path:
        out = folder / name
        if not out.exists():
            link(out, [*objects, imports], linker_flag, *flags)
        return out

    # Else the compiler leaves RISC-V's linker to finish the code.
    fixed = [compiler_flag] + ["-mno-relax"] * processor.startswith("RISC-V")
    plain = compiled("edits.c", "plain", *fixed)
    pad = compiled("edits_pad.c", "pad", *fixed)
    return Programs(
        linked("plain", plain),
        linked("padded", pad, plain),
        linked("shuffled", plain, flags=["--shuffle-sections=.text.*=7"]),
        linked("stripped", plain, flags=["--strip-all"]),
        linked("relaxed", compiled("edits.c", "relaxed", compiler_flag), flags=["--relax"]),
        {
            edit: linked(
                f"edit{edit.number}",
                compiled("edits.c", f"edit{edit.number}", *fixed, f"-DEDIT={edit.number}"),
            )
            for edit in edits()
            if not numbers or edit.number in numbers
        },
    )


def link(out: Path, items: list[Path], *flags: str) -> None:
    """Link objects with lld; the linker is asked not to rewrite code."""
    command = [*ZIG, "ld.lld", "--no-relax", *flags, "--entry=begin", "-z", "now"]
    command += ["--dynamic-linker=/lib/ld.so", "--allow-shlib-undefined"]
    command += ["--unresolved-symbols=ignore-all"]
    run([*command, *map(str, items), "-o", str(out)])


def analysed(programs: Programs, output: Path, workers: int) -> dict[Path, Features]:
    """Analyse programs; return their features."""
    files = [str(file) for file in programs.all()]
    analyses, _ = analyse_files(files, str(output), workers, all_or_none=True)
    return {Path(file): extract_features(load_analysis(analyses[file])) for file in files}


def names(code: Features, f: int) -> str:
    """Return a function's symbol, "" for -1."""
    return code.analysis.function_name[f] if f >= 0 else ""


def found(diff: Diff, codes: tuple[Features, Features], function: str) -> tuple[bool, int]:
    """Return whether a function is changed and comes first, and how many others differ."""
    rows = [row for row in diff.functions if row.status != IDENTICAL]
    ours = [(names(codes[0], row.sides[0]), names(codes[1], row.sides[1])) for row in rows]
    leads = bool(rows) and rows[0].status == CHANGED and function in ours[0]
    return leads, len(rows) - leads


def statuses(diff: Diff, codes: tuple[Features, Features], *wanted: str) -> tuple[int, int]:
    """Return how many functions have a wanted status, and how many are in both programs."""
    rows = [row for row in diff.functions if names(codes[1], row.sides[1]) not in NEW]
    return sum(row.status in wanted for row in rows), len(rows)


def measure(programs: Programs, codes: dict[Path, Features], model: Model) -> str:
    """Return a processor's row of the table."""
    plain = codes[programs.plain]
    match = functools.partial(compare, plain, model=model)
    totals: Counter[str] = Counter()
    for edit, file in programs.edits.items():
        leads, others = found(match(codes[file]), (plain, codes[file]), edit.function)
        totals["found"] += leads
        totals["others"] += others
    cells = [f"{totals['found']:2} of {len(programs.edits)} {totals['others']:4}  "]
    for file in (programs.padded, programs.shuffled, programs.stripped, programs.plain):
        same, of = statuses(match(codes[file]), (plain, codes[file]), "identical")
        cells.append(f"{same}/{of}".center(8))
    relaxed = codes[programs.relaxed]
    same, of = statuses(match(relaxed), (plain, relaxed), "identical", "compiled differently")
    return " ".join([*cells, f"{same}/{of}".center(8)])


if __name__ == "__main__":
    command_line(main)
