"""Which encoder best finds a function's other build, among libraries that it has never seen?

    python experiment_data/build_packages.py          # see experiment_data/README.md for which
    python bench/retrieval.py analyse                 # hours on two cores; can be resumed
    python bench/retrieval.py train --rows "tokens tfidf word2vec table"
    python bench/minhash.py                           # one row more, see there
    python bench/retrieval.py                         # the tables

A query is a function of a TEST library (experiment_data/recipes.py) in one build, with at least
three basic blocks. The right answer is the same source function in another build. The pool contains
it and other functions of TEST and VALIDATION libraries in that kind of build. Names from symbols
are the ground truth; no row uses symbols. Functions whose normalised body occurs in a training
package are left out, and of functions with the same normalised body only one is kept.

`train` writes the rows' models to the folder models/. Variants of the encoder are model files of
`python classify.py functions` in the same folder. A row with several seeds has several files:
table-seed0.npz, table-seed1.npz.
"""

import hashlib
import itertools
import json
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "experiment_data"))

import numpy as np
import scipy.sparse
from pydantic import PositiveFloat, PositiveInt
from ranks import MEASURES, count_nearer, interval, pool_figures, resampled_means
from recipes import RECIPES, TEST, VALIDATION
from rows import CELLS, KINDS_OF_ROWS, MinHash, Programs, Row, read_row, write_row
from shared import machine

import utils
from binary.analysis import load_analysis
from binary.cache import analyse_files, cache_file
from binary.symbols import source_names
from features.extract import Features, extract_features
from terminal import progress
from terminal.arguments import names_of
from terminal.command_line import PARTLY, command_line

PACKAGES = "experiment_data/packages/"
WORK = "out-retrieval/"
WORKERS = os.cpu_count() or 1
POOLS = (32, 100, 1000, 10_000)
LEAST_BLOCKS = 3  # minimum number of blocks of a query's function, in both builds
AARCH64, I386, ARM = "aarch64-linux-gnu-gcc", "i686-linux-gnu-gcc", "arm-linux-gnueabihf-gcc"
RISCV, MIPS = "riscv64-linux-gnu-gcc", "mipsel-linux-gnu-gcc"
# Task -> builds of the queries and of the pool: release, compiler, level.
TASKS = {
    "optimisation, O0 to O3": (("bookworm", "gcc", "O0"), ("bookworm", "gcc", "O3")),
    "compiler, gcc to clang, O2": (("bookworm", "gcc", "O2"), ("bookworm", "clang", "O2")),
    "version, Debian 11 to 12, O2": (("bullseye", "gcc", "O2"), ("bookworm", "gcc", "O2")),
    "processor, x86-64 to AArch64, O2": (("bookworm", "gcc", "O2"), ("bookworm", AARCH64, "O2")),
    "processor, x86-64 to i386, O2": (("bookworm", "gcc", "O2"), ("bookworm", I386, "O2")),
    "processor, x86-64 to ARM, O2": (("bookworm", "gcc", "O2"), ("bookworm", ARM, "O2")),
    "processor, x86-64 to RISC-V, O2": (("bookworm", "gcc", "O2"), ("bookworm", RISCV, "O2")),
    "processor, x86-64 to MIPS, O2": (("bookworm", "gcc", "O2"), ("bookworm", MIPS, "O2")),
    "mixed": None,  # any two builds of the function
}


@dataclass(frozen=True)
class Build:
    """One file of one build, as the manifest lists it."""

    package: str
    setting: tuple[str, str, str]  # release, compiler, level
    file: Path
    sha256: str


@dataclass(frozen=True)
class Known:
    """Names and bodies of the F functions of one file.

    Attributes
    ----------
    name : list of str
        Name in the source; "" if it is not certain.
    blocks : int64 (F,)
        Number of basic blocks.
    body : uint64 (F,)
        Hash of the normalised body.
    """

    name: list[str]
    blocks: np.ndarray
    body: np.ndarray


@dataclass
class Task:
    """Queries and a pool.

    Attributes
    ----------
    queries, pool : list of (Build, int)
        Functions: a file, and the index of a function.
    target : list of int
        For each query, the right function's index in the pool.
    """

    queries: list[tuple[Build, int]] = field(default_factory=list)
    pool: list[tuple[Build, int]] = field(default_factory=list)
    target: list[int] = field(default_factory=list)


def builds_of(packages: str, output_dir: str, wanted: Iterable[str]) -> tuple[list[Build], int]:
    """Return the analysed files of some packages, and the number of files not analysed.

    Of a held-out library, only shared libraries and the programs of its recipe are used, because
    its other programs may contain copies of its code.
    """
    file = Path(packages) / "manifest.json"
    if not file.exists():
        raise utils.UserError(f"{file} does not exist; run experiment_data/build_packages.py first")
    found, missing, wanted = [], 0, set(wanted)
    for folder, entry in json.loads(file.read_text(encoding="utf-8")).items():
        package = entry["package"]
        if package not in wanted:
            continue
        programs = {Path(program).name for program in RECIPES[package].programs}
        setting = entry["release"], entry["compiler"], entry["level"]
        for name, sha256 in entry["files"].items():
            if package in {*TEST, *VALIDATION} and not name.endswith(".so") | (name in programs):
                continue
            build = Build(package, setting, Path(packages) / "binaries" / folder / name, sha256)
            if cache_file(output_dir, sha256).exists():
                found.append(build)
            else:
                missing += 1
    return found, missing


def training_packages() -> list[str]:
    """Return the packages for training, in a random but fixed order."""
    names = [name for name in RECIPES if name not in {*TEST, *VALIDATION}]
    # The same order in which `packages` of a stage in config/encoder.json adds them.
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def features_of(build: Build, output_dir: str) -> Features:
    return extract_features(load_analysis(cache_file(output_dir, build.sha256)))


def kept_as(build: Build, output_dir: str) -> str:
    """Return the name of a file that keeps something of a build: another for each analysis of it.

    Functions are kept by their numbers, which another version of the analysis may change.
    """
    return cache_file(output_dir, build.sha256).name


def known_of(build: Build, output_dir: str, work: str) -> Known:
    """Return names and bodies of one file's functions; they are cached."""
    file = Path(work) / "functions" / kept_as(build, output_dir)
    if not file.exists():
        code = features_of(build, output_dir)
        names = np.array(source_names(code.analysis), str)
        with utils.atomic_file(file, "wb") as out:
            np.savez_compressed(out, name=names, blocks=code.sizes, body=body_digests(code))
    with np.load(file, allow_pickle=False) as arrays:
        return Known(arrays["name"].tolist(), arrays["blocks"], arrays["body"])


def body_digests(code: Features) -> np.ndarray:
    """Return a digest of each function's normalised body, uint64 (F,).

    Functions have equal digests if their instructions without addresses, the texts and imports that
    they refer to, and the jumps between their blocks are the same.
    """
    digests = [hashlib.blake2b(repr(b).encode(), digest_size=8).digest() for b in code.outline.code]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def not_seen(builds: list[Build], known: dict[Build, Known], seen: np.ndarray) -> set[tuple]:
    """Return (package, file, name) of the functions that occur in no training package.

    ``seen`` are the hashes of the bodies in training packages, uint64 (N,).
    """
    files = defaultdict(list)
    for build in builds:
        files[build.package, build.file.name].append((known[build].name, known[build].body))
    return {(*file, name) for file, of in files.items() for name in unseen_names(of, seen)}


def unseen_names(builds: Iterable[tuple[list[str], np.ndarray]], seen: np.ndarray) -> set[str]:
    """Return the names of a file's functions that occur in no training program.

    A held-out library may contain functions of the training packages: copied source files, and what
    compilers add. A function is left out if its body in any of the builds was seen in training.

    Parameters
    ----------
    builds : iterable of (list of str, uint64 (F,))
        For each build of the file, the names ("" if unknown) and `body_digests` of its functions.
    seen : uint64 (n,)
        `body_digests` of the training programs' functions.
    """
    names: set[str] = set()
    met: set[str] = set()
    for name, bodies in builds:
        names.update(name)
        met.update(n for n, again in zip(name, np.isin(bodies, seen), strict=True) if again)
    return names - met - {""}


def make_task(
    between: tuple | None, builds: list[Build], known: dict[Build, Known], asked: set[tuple]
) -> Task:
    """Choose queries and a pool.

    Parameters
    ----------
    between : (tuple, tuple) or None
        Settings of the builds of queries and pool; None: any two builds of each function.
    builds : list of Build
    known : dict of Build to Known
    asked : set of (str, str, str)
        The functions to use, as (package, file, name).
    """
    place: dict[tuple, dict[tuple, tuple[Build, int]]] = defaultdict(dict)
    for build in builds:
        of = known[build]
        for f, (name, blocks) in enumerate(zip(of.name, of.blocks.tolist(), strict=True)):
            key = build.package, build.file.name, name
            if key in asked and blocks >= LEAST_BLOCKS:
                place[key][build.setting] = build, f
    task, rng = Task(), np.random.default_rng(0)
    number: dict[int, int] = {}  # normalised body -> index in the pool
    queried: set[int] = set()
    for key in sorted(place):
        settings = sorted(place[key])
        if between is not None:
            first, second = between
        elif len(settings) > 1:
            first, second = (settings[i] for i in rng.choice(len(settings), 2, replace=False))
        else:
            continue
        if second not in place[key]:
            continue
        there = place[key][second]
        at = number.setdefault(int(known[there[0]].body[there[1]]), len(task.pool))
        if at == len(task.pool):
            task.pool.append(there)
        here = place[key].get(first)
        if here is None or key[0] not in TEST:
            continue
        body = int(known[here[0]].body[here[1]])
        if body not in queried:
            queried.add(body)
            task.queries.append(here)
            task.target.append(at)
    return task


def check_task(flag: str, task: str) -> None:
    """Raise an error if no task's name begins so."""
    if not any(name.startswith(task) for name in TASKS):
        raise utils.UserError(f"{flag} {task}: no such task; there are {'; '.join(TASKS)}")


def held_out(
    packages: str, outputDir: str, work: str
) -> tuple[list[Build], dict[Build, Known], set[tuple], int]:
    """Read the held-out libraries, and print how much of them is used.

    Returns
    -------
    list of Build
        Their files.
    dict of Build to Known
    set of (str, str, str)
        The functions to use, as (package, file, name): those that no training package holds.
    int
        Number of files that are not analysed.
    """
    held, lacking = builds_of(packages, outputDir, [*TEST, *VALIDATION])
    learned, _ = builds_of(packages, outputDir, training_packages())
    known = {build: known_of(build, outputDir, work) for build in progress.bar(held, desc="held")}
    seen = [known_of(build, outputDir, work).body for build in progress.bar(learned, desc="seen")]
    asked = not_seen(held, known, np.unique(np.concatenate([*seen, np.empty(0, np.uint64)])))
    number = len({(b.package, b.file.name, name) for b in held for name in known[b].name if name})
    print(
        f"{machine()}; {len(held)} files of held-out libraries, {lacking} not analysed; of "
        f"{number:,} functions {number - len(asked):,} occur in training and are left out"
    )
    return held, known, asked, lacking


class Vectors:
    """Vectors of functions by each row, cached by the row's identity and the file's analysis."""

    def __init__(self, rows: dict[str, list[Row]], output_dir: str, work: str) -> None:
        self.rows, self.output_dir = rows, output_dir
        self.folder = Path(work) / "vectors"

    def file(self, row: Row, cell: str, build: Build) -> Path:
        name = re.sub(r"\W+", "-", f"{type(row).__name__} {row.identity} {cell}")
        return self.folder / name / kept_as(build, self.output_dir)

    def make(self, builds: list[Build], cells: list[str]) -> None:
        """Make missing vectors; extract each file's features only once for all rows."""
        every = [(row, cell) for seeds in self.rows.values() for row in seeds for cell in cells]
        for build in progress.bar(builds, desc="vectors"):
            missing = [(r, c) for r, c in every if not self.file(r, c, build).exists()]
            if missing:
                code = features_of(build, self.output_dir)
                for row, cell in missing:
                    if isinstance(row, MinHash):
                        starts = code.analysis.function_address[: code.functions]
                        made = row.of_file(build.sha256, starts)
                    else:
                        made = row(code, cell)
                    vectors = scipy.sparse.csr_matrix(made, dtype=np.float32)
                    with utils.atomic_file(self.file(row, cell, build), "wb") as file:
                        scipy.sparse.save_npz(file, vectors)

    def of(self, row: Row, cell: str, functions: list[tuple[Build, int]]) -> np.ndarray:
        """Return the vectors of n functions, float32 (n, D), as an array or csr matrix."""
        inside = defaultdict(list)
        for i, (build, f) in enumerate(functions):
            inside[build].append((i, f))
        order, parts = [], []
        for build, places in inside.items():
            rows = scipy.sparse.load_npz(self.file(row, cell, build))
            parts.append(rows[[f for _, f in places]])
            order += [i for i, _ in places]
        vectors = scipy.sparse.vstack(parts, "csr")[np.argsort(order)]
        return vectors if vectors.shape[1] > 4096 else vectors.toarray()


def main(
    *,
    packages: str = PACKAGES,
    outputDir: str = "output/",
    work: str = WORK,
    only: str = "",
    tasks: str | list[str] = tuple(TASKS),
    cells: str | list[str] = tuple(CELLS),
    reference: str = "table",
    to: str | None = None,
) -> int:
    """Measure all rows in models/ on the TEST libraries, and print the tables.

    Parameters
    ----------
    packages : str
        The folder made by build_packages.py.
    outputDir : str
        Folder of the analyses.
    work : str
        Folder with models/ and the cache.
    only : str
        Rows, separated by blanks. Default: all.
    tasks : str or list of str
        Beginnings of the names of tasks, such as optimisation,mixed.
    cells : str or list of str
        Which features the rows may use. Default: each of the three choices.
    reference : str
        The row to compare the others with.
    to : str
        Also write all figures to this JSON file.
    """
    cells, tasks = names_of(cells), names_of(tasks)
    for cell in cells:
        if cell not in CELLS:
            raise utils.UserError(f"--cells {cell}: there are {', '.join(CELLS)}")
    for task in tasks:
        check_task("--tasks", task)
    models = sorted(
        file
        for file in (Path(work) / "models").glob("*")
        if file.suffix in (".npz", ".safetensors")
    )
    rows: dict[str, list[Row]] = {}
    for file in models:
        name = re.sub(r"-seed\d+$", "", file.stem)
        if not only or name in only.split():
            rows.setdefault(name, []).append(read_row(file))
    if not rows:
        raise utils.UserError(f"{work}models contains no row; train makes some")
    held, known, asked, lacking = held_out(packages, outputDir, work)
    print()
    vectors = Vectors(rows, outputDir, work)
    figures = []
    for name, between in TASKS.items():
        if not name.startswith(tuple(tasks)):
            continue
        task = make_task(between, held, known, asked)
        if not task.queries:
            print(f"{name}: no library has both builds")
            print()
            continue
        vectors.make([b for b in held if between is None or b.setting in between], cells)
        for cell in cells:
            figures += measure(name, task, cell, rows, vectors, reference)
    if to is not None:
        utils.write_json(to, {"figures": figures})
    return PARTLY if lacking else 0


def measure(
    name: str,
    task: Task,
    cell: str,
    rows: dict[str, list[Row]],
    vectors: Vectors,
    reference: str,
) -> list[dict]:
    """Measure all rows on one task with one choice of features; print and return the figures."""
    libraries = [build.package for build, _ in task.queries]
    library = np.unique(libraries, return_inverse=True)[1]
    target, all_ = np.array(task.target), len(task.pool)
    pools = sorted({min(pool, all_) for pool in POOLS})
    found, samples = {}, {}
    for row, seeds in rows.items():
        counts = [
            count_nearer(
                vectors.of(seed, cell, task.queries), vectors.of(seed, cell, task.pool), target
            )
            for seed in seeds
        ]
        for pool in pools:
            values = np.stack([pool_figures(*count, all_, pool) for count in counts])
            for m, what in enumerate(MEASURES):
                found[row, pool, what] = values[:, :, m]
                samples[row, pool, what] = resampled_means(values[:, :, m], library)
    print(f"### {name}: {cell}")
    print()
    print(f"{len(task.queries):,} queries of {library.max() + 1} libraries; ", end="")
    print(f"{all_:,} functions to be found.")
    print()
    heads = [f"{pool:,}: R@1" for pool in pools] + [f"R@10, MRR of {p:,}" for p in pools[-2:]]
    print(f"| | {' | '.join(heads)} | R@1 of {pools[-1]:,} beyond {reference} |")
    print(f"| --- {'| --- ' * (len(heads) + 1)}|")
    figures = []
    for row, seeds in rows.items():
        cells = []
        for pool, what in itertools.product(pools, MEASURES):
            low, high = interval(samples[row, pool, what])
            figure = {"task": name, "cell": cell, "row": row, "pool": pool, "measure": what}
            figure |= {"value": float(found[row, pool, what].mean()), "low": low, "high": high}
            figures.append(figure | {"queries": len(library), "seeds": len(seeds)})
        for pool in pools:
            low, high = interval(samples[row, pool, "R@1"])
            cells.append(f"{short(found[row, pool, 'R@1'].mean())} [{short(low)} {short(high)}]")
        for pool in pools[-2:]:
            cells.append(", ".join(short(found[row, pool, m].mean()) for m in ("R@10", "MRR")))
        beyond = ""
        if reference in rows and row != reference:
            a, b = ((r, pools[-1], "R@1") for r in (row, reference))
            low, high = interval(samples[a] - samples[b])
            beyond = f"{found[a].mean() - found[b].mean():+.3f} [{low:+.3f} {high:+.3f}]"
        print(f"| {row} | {' | '.join(cells)} | {beyond} |")
    print(flush=True)
    return figures


def short(value: float) -> str:
    """Return a share as .123."""
    return f"{value:.3f}".removeprefix("0")


def analyse(
    *,
    packages: str = PACKAGES,
    outputDir: str = "output/",
    largest: PositiveFloat = 2,
    workers: PositiveInt = WORKERS,
) -> int:
    """Analyse the builds of build_packages.py, the held-out libraries first.

    Parameters
    ----------
    packages : str
        The folder made by build_packages.py.
    outputDir : str
        Folder for the analyses.
    largest : float
        Leave out files of training packages that are larger than this, in megabytes.
    workers : int
        Number of parallel processes.
    """
    failed = {}
    for held in (True, False):
        wanted = [*TEST, *VALIDATION] if held else training_packages()
        files = []
        entries = json.loads((Path(packages) / "manifest.json").read_text(encoding="utf-8"))
        for folder, entry in entries.items():
            for name in entry["files"] if entry["package"] in wanted else ():
                file = Path(packages) / "binaries" / folder / name
                if held or file.stat().st_size < largest * 1e6:
                    files.append(str(file))
        if files:
            failed |= analyse_files(files, outputDir, workers)[1]
    for path, why in failed.items():
        print(f"{path}: {why}", file=sys.stderr)
    return PARTLY if failed else 0


def train(
    *,
    rows: str = "tokens tfidf word2vec table",
    numbers: str = "",
    steps: PositiveInt = 6000,
    seed: int = 0,
    packages: str = PACKAGES,
    outputDir: str = "output/",
    work: str = WORK,
) -> None:
    """Train rows on the analysed builds of the training packages.

    Parameters
    ----------
    rows : str
        Which of tokens, tfidf, word2vec and table, separated by blanks.
    numbers : str
        Numbers of packages to train on, separated by blanks; one training for each. Default: train
        once, on all packages.
    steps : int
        Training steps of the word table.
    seed : int
        Random seed of the word table and word2vec.
    packages : str
        The folder made by build_packages.py.
    outputDir : str
        Folder of the analyses.
    work : str
        Folder for models/.
    """
    for row in rows.split():
        if row not in KINDS_OF_ROWS:
            raise utils.UserError(f"--rows {row}: the rows are {' '.join(KINDS_OF_ROWS)}")
    builds, lacking = builds_of(packages, outputDir, training_packages())
    there = {build.package for build in builds}
    order = [name for name in training_packages() if name in there]
    codes = {b: features_of(b, outputDir) for b in progress.bar(builds, desc="features")}
    print(f"{len(builds)} files of {len(order)} packages; {lacking} files are not analysed")
    for number in [int(number) for number in numbers.split()] or [0]:
        wanted = order[: number or len(order)]
        programs: Programs = defaultdict(list)
        for build in builds:
            if build.package in wanted:
                programs[f"{build.package} {build.file.name}"].append(codes[build])
        functions = sum(code.functions for some in programs.values() for code in some)
        for row in rows.split():
            start = time.perf_counter()
            options = {"steps": steps, "seed": seed} if row == "table" else {}
            options |= {"seed": seed} if row == "word2vec" else {}
            made = KINDS_OF_ROWS[row].train(programs, **options)
            name = row + (f"-{number}" if number else "") + (f"-seed{seed}" if options else "")
            write_row(Path(work) / "models" / f"{name}.npz", made)
            print(f"{name}: {len(wanted)} packages, {functions:,} functions, ", end="")
            print(f"{time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    command_line(main, analyse=analyse, train=train)
