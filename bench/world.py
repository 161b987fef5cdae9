"""How well does diff.py match functions of published libraries, across processors and versions?

    python bench/world.py --work FOLDER

Each row compares two builds of one library, for two processors or of two versions, without symbols
and debug information, which are the ground truth. The files come from PyPI's wheels by `pip
download`, and from Debian by `apt-get download`; bench/world.sha256 lists their hashes.

A pair is right if both functions have the same source: the same name and, if several functions of
one version have it, file and line. Debug information says so, which most of these files have, or
else symbols. Endings like .part.0, the parameters and results of C++ names, and suffixes of the
numbers in them (4ul) do not count, nor do the numbers that Cython gives functions anew in each
version. Functions may have been renamed: pairs with names that do not occur in the other file count
as wrong, but their number is shown ("unclear"). Confidence intervals are of 95 %, by bootstrap over
functions.

FOLDER keeps downloads, analyses and finished rows, so that a stopped run can go on. Rows are
measured again if the code or the model has changed. `--seconds` ends a run early.

The peers get the same analyses. "words" matches functions one to one by the cosines of their
tokens, strings and imports, weighted by TF-IDF; its threshold is the best one for all rows of the
group. qbindiff (pip install qbindiff), if it is installed, aligns the call graphs, given these
cosines; its cell is empty where that takes more than ten minutes.
"""

import functools
import hashlib
import itertools
import json
import multiprocessing
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import numpy as np
from accuracy import PEERS, peer_matrix, peer_words
from ranks import interval
from scipy.optimize import linear_sum_assignment
from shared import machine
from truth import PIE_BASE
from world_files import Defined, File, defined, original, stripped

import utils
from binary.analysis import cache_file, load_analysis
from binary.cache import analyse_one
from features.extract import Features, extract_features
from features.tfidf import weigh
from matching.changes import compare
from matching.model import DEFAULT, Model, read_model
from terminal.command_line import command_line

BOOTSTRAPS = 1000
QBINDIFF_SECONDS = 600
THRESHOLDS = np.arange(0, 0.9, 0.1)  # minimum cosines for the pairs of a peer


class Row(NamedTuple):
    """A pair of files, and the group whose results it belongs to."""

    group: str
    first: File
    second: File

    @property
    def name(self) -> str:
        """The row's name in the table."""
        one, other = self.first, self.second
        versions = "-".join(dict.fromkeys((one.version, other.version)))
        processors = " to ".join(dict.fromkeys((one.processor, other.processor)))
        return f"{one.package} {versions}, {Path(one.member).name}, {processors}"


# Package, version, module; written in C, and with symbols for most processors.
C_WHEELS = [
    ("bitarray", "2.9.2", "_bitarray"),
    ("bitarray", "2.9.2", "_util"),
    ("brotli", "1.1.0", "_brotli"),
    ("lz4", "4.3.3", "_frame"),
    ("msgpack", "1.0.8", "_cmsgpack"),
    ("regex", "2024.5.15", "_regex"),
    ("wrapt", "1.16.0", "_wrappers"),
    ("xxhash", "3.4.1", "_xxhash"),
    ("zstandard", "0.22.0", "backend_c"),
]
CPP_WHEELS = [
    ("greenlet", "3.0.3", "_greenlet"),
    ("kiwisolver", "1.4.5", "_cext"),
    ("levenshtein", "0.25.1", "levenshtein_cpp"),
    ("rapidfuzz", "3.9.0", "utils_cpp"),
]
NONE_FOR = {  # processor -> packages that have no wheel for it, or one without symbols
    "i686": {"greenlet"},
    "ppc64le": {"msgpack", "zstandard", "lz4", "wrapt"},
    "s390x": {"msgpack", "zstandard", "lz4", "brotli", "wrapt"},
}
VERSIONS = [  # package, versions, module
    ("bitarray", "2.7.3", "2.9.2", "_bitarray"),
    ("brotli", "1.0.9", "1.1.0", "_brotli"),
    ("lz4", "4.0.2", "4.3.3", "_frame"),
    ("msgpack", "1.0.5", "1.0.8", "_cmsgpack"),
    ("regex", "2022.10.31", "2024.5.15", "_regex"),
    ("xxhash", "3.0.0", "3.4.1", "_xxhash"),
    ("zstandard", "0.21.0", "0.22.0", "backend_c"),
]
CPP_VERSIONS = [
    ("greenlet", "2.0.2", "3.0.3", "_greenlet"),
    ("kiwisolver", "1.4.4", "1.4.5", "_cext"),
    ("levenshtein", "0.21.0", "0.25.1", "levenshtein_cpp"),
    ("rapidfuzz", "3.6.0", "3.9.0", "process_cpp_impl"),
    ("google-re2", "1.0", "1.1", "_re2"),
    ("plyvel", "1.4.0", "1.5.0", "libsnappy"),
]
# Package, versions, module, processors; measured once, before anybody looked at them.
UNSEEN = [
    ("ujson", "5.7.0", "5.10.0", "ujson", ("aarch64", "i686")),
    ("multidict", "6.0.2", "6.0.5", "_multidict", ("i686",)),
    ("simplejson", "3.17.6", "3.19.2", "_speedups", ("aarch64", "i686")),
    ("pyahocorasick", "2.0.0", "2.1.0", "ahocorasick", ()),
    ("hiredis", "2.2.3", "2.3.2", "hiredis", ("aarch64", "i686", "ppc64le", "s390x")),
    ("editdistance", "0.6.2", "0.8.1", "bycython", ("i686",)),
    ("rpds-py", "0.17.1", "0.18.0", "rpds", ()),
]
OLD, NEW = "bookworm", "trixie"  # Debian's releases
MACS = ("macos-x86_64", "macos-arm64")
AIMS = {
    "x86_64 to aarch64": 0.95,
    "x86_64 to i686": 0.90,
    "x86_64 to s390x": 0.85,
    "versions": 0.97,
    "C++ versions": 0.90,
}


def rows() -> list[Row]:
    """Return the table's rows, without results."""
    found = []
    for wheels, what in ((C_WHEELS, ""), (CPP_WHEELS, "C++, ")):
        for processor in ("aarch64", "i686", "s390x", "ppc64le"):
            for package, version, module in wheels:
                if package not in NONE_FOR.get(processor, ()):
                    files = [File(package, version, p, module) for p in ("x86_64", processor)]
                    found.append(Row(f"{what}x86_64 to {processor}", *files))
    xxhash = [File("xxhash", "4.1.0", p, "_xxhash") for p in ("x86_64", "armv7l")]
    found.append(Row("x86_64 to armv7l", *xxhash))
    for versions, group in ((VERSIONS, "versions"), (CPP_VERSIONS, "C++ versions")):
        for package, old, new, module in versions:
            files = [File(package, version, "x86_64", module) for version in (old, new)]
            found.append(Row(group, *files))
    for package, member in (("zlib1g", "libz.so"), ("libexpat1", "libexpat.so")):
        for processor in ("x86_64", "aarch64", "i686", "armv7l"):
            files = [File(package, v, processor, member, "Debian") for v in (OLD, NEW)]
            found.append(Row("Debian, versions", *files))
        for processor in ("aarch64", "i686", "armv7l", "ppc64le", "s390x", "riscv64"):
            version = NEW if processor == "riscv64" else OLD  # the first that has it
            files = [File(package, version, p, member, "Debian") for p in ("x86_64", processor)]
            found.append(Row("Debian, across processors", *files))
    dlls = {p: f"{p}-w64-mingw32/lib/zlib1.dll" for p in ("x86_64", "i686")}
    for processor, dll in dlls.items():
        files = [File("libz-mingw-w64", v, processor, dll, "Debian") for v in (OLD, NEW)]
        found.append(Row("PE", *files))
    files = [File("libz-mingw-w64", NEW, p, dll, "Debian") for p, dll in dlls.items()]
    found.append(Row("PE", *files))
    for package, version, module in (C_WHEELS[0], C_WHEELS[4]):
        found.append(Row("Mach-O", *(File(package, version, p, module) for p in MACS)))
    rust = [("1.0.3", "x86_64"), ("1.1.0", "x86_64"), ("1.1.0", "aarch64")]
    rust = [File("jellyfish", version, p, "_rustyfish") for version, p in rust]
    found += [Row("Rust", *rust[:2]), Row("Rust", *rust[1:])]
    found.append(Row("Go", *(File("gron", v, "x86_64", "gron", "Debian") for v in (OLD, NEW))))
    for package, old, new, module, processors in UNSEEN:
        files = [File(package, v, "x86_64", module) for v in (old, new)]
        found.append(Row("unseen", *files))
        for processor in processors:
            found.append(Row("unseen", files[1], File(package, new, processor, module)))
    found.append(Row("unseen", *(File("ujson", "5.10.0", p, "ujson") for p in MACS)))
    for package, member in (("libyaml-0-2", "libyaml-0.so"), ("libpopt0", "libpopt.so")):
        for processor in ("x86_64", "aarch64"):
            files = [File(package, v, processor, member, "Debian") for v in (OLD, NEW)]
            found.append(Row("unseen", *files))
        for processor in ("aarch64", "armv7l", "i686"):
            files = [File(package, NEW, p, member, "Debian") for p in ("x86_64", processor)]
            found.append(Row("unseen", *files))
    dlls = {p: f"{p}-w64-mingw32/bin/libgpg-error-0.dll" for p in ("x86_64", "i686")}
    gpg = "libgpg-error-mingw-w64-dev"
    for processor, dll in dlls.items():
        files = [File(gpg, v, processor, dll, "Debian") for v in (OLD, NEW)]
        found.append(Row("unseen", *files))
    found.append(Row("unseen", *(File(gpg, NEW, p, dll, "Debian") for p, dll in dlls.items())))
    groups = list(dict.fromkeys(row.group for row in found))
    return sorted(found, key=lambda row: groups.index(row.group))


def main(work: str, groups: str = "", match: str = "", seconds: int = 0) -> None:
    """Print the table.

    Parameters
    ----------
    work : str
        Folder for downloads, analyses and results.
    groups : str
        Only these groups, separated by semicolons. Default: all.
    match : str
        Only rows whose names contain this.
    seconds : int
        Start no row after this time. Default: no limit.
    """
    chosen = [row for row in rows() if match in row.name]
    if groups:
        if unknown := set(groups.split(";")) - {row.group for row in rows()}:
            raise utils.UserError(f"there is no group {sorted(unknown)[0]!r}")
        chosen = [row for row in chosen if row.group in groups.split(";")]
    bench = World(Path(work))
    began = time.monotonic()
    results = []
    for row in chosen:
        if seconds and time.monotonic() - began > seconds and not bench.known(row):
            print(f"stopped after {seconds} s; run the same command again to go on")
            break
        try:
            results.append((row, bench.result(row)))
        except utils.UserError as error:
            print(f"left out: {row.name}: {error}", flush=True)
        else:
            print(f"measured: {row.name}", file=sys.stderr, flush=True)
    for text in table(results):
        print(text)


# ----------------------------------------------------------------------------------- downloads


class World:
    """Downloads, analyses and measures; keeps everything in a folder."""

    def __init__(self, work: Path) -> None:
        self.work = work
        for name in ("files", "output", "rows"):
            (work / name).mkdir(parents=True, exist_ok=True)
        self.model: Model = read_model()
        self.code = functools.lru_cache(8)(self._code)
        self.itself = functools.cache(self._itself)

    def known(self, row: Row) -> bool:
        """Return whether a row's result is stored."""
        return self._cell(row).exists()

    def result(self, row: Row) -> dict:
        """Return a row's result; measure it if it is not stored."""
        file = self._cell(row)
        if not file.exists():
            utils.write_json(file, self.measure(row))
        return json.loads(file.read_text())

    def _cell(self, row: Row) -> Path:
        key = hashlib.sha256(f"{state()} {row}".encode()).hexdigest()[:16]
        return self.work / "rows" / f"{key}.json"

    # ------------------------------------------------------------------------------- analyses

    def _code(self, file: File) -> tuple[Features, dict]:
        """Return the stripped copy's features, and the time and memory of its analysis."""
        copy = stripped(file, self.work)
        analysis = cache_file(self.work / "output", utils.sha256_of(copy))
        cost = analysis.with_suffix(".cost")
        if not cost.exists():
            context = multiprocessing.get_context("fork")
            worker = context.Process(target=analyse_and_measure, args=(str(copy), analysis, cost))
            worker.start()
            worker.join()
            if worker.exitcode:
                raise utils.UserError(f"{copy} cannot be analysed")
        return extract_features(load_analysis(analysis)), json.loads(cost.read_text())

    def _itself(self, file: File) -> tuple[int, int]:
        """Compare a file with itself; return the number of identical functions, and of all."""
        code, _ = self.code(file)
        status = [row.status for row in compare(code, code, self.model).functions]
        return status.count("identical"), len(status)

    def measure(self, row: Row) -> dict:
        """Match a pair; return the outcome of each function, and time and memory."""
        (first, cost), (second, other) = self.code(row.first), self.code(row.second)
        before = time.process_time()
        diff = compare(first, second, self.model)
        matching = time.process_time() - before
        pairs = [r.sides for r in diff.functions if min(r.sides) >= 0]
        files = row.first, row.second
        found = [defined(original(file, self.work)) for file in files]
        keys = told_apart(found, row.first.version == row.second.version)
        names = [named(code, key) for code, key in zip((first, second), keys, strict=True)]
        score = words_score(first, second)
        peers = {"words": words_pairs(score)}
        if found := within(QBINDIFF_SECONDS, qbindiff_pairs, first, second, score):
            peers["qbindiff"] = {"0": found}
        same, of = self.itself(row.first)
        return {
            "functions": [len(n.of) for n in names],
            "ours": outcomes(pairs, *names),
            "peers": {
                peer: {at: outcomes(found, *names) for at, found in by_threshold.items()}
                for peer, by_threshold in peers.items()
            },
            "itself": [same, of],
            "seconds": cost["seconds"] + other["seconds"] + matching,
            "matching": matching,
            "megabytes": max(cost["megabytes"], other["megabytes"]),
        }


@functools.cache
def state() -> str:
    """Return a hash of what results depend on: the matching code, the model, and this bench."""
    folders = ("binary", "features", "encoder", "matching", "files")
    files = [f for folder in folders for f in sorted((ROOT / folder).rglob("*.py"))]
    files += [*(Path(__file__).with_name(f"{n}.py") for n in ("world", "world_files", "truth"))]
    files.append(Path(DEFAULT))
    return hashlib.sha256("".join(map(utils.sha256_of, files)).encode()).hexdigest()


def analyse_and_measure(file: str, analysis: Path, cost: Path) -> None:
    """Analyse a file, and write CPU seconds and peak memory to ``cost``; runs in a new process."""
    import angr  # noqa: F401 - so that its import is not measured

    before = time.process_time()
    analyse_one(file, analysis)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    utils.write_json(cost, {"seconds": time.process_time() - before, "megabytes": peak})


# --------------------------------------------------------------------------------------- truth


class Names(NamedTuple):
    """What each function is called, by its number, and each that the file contains."""

    of: dict[int, frozenset[str]]
    all: list[frozenset[str]]


def told_apart(
    found: list[dict[int, Defined]], one_source: bool
) -> list[dict[int, frozenset[str]]]:
    """Return address -> names of the functions there, for each of two files.

    Names that several functions have get the file and line of each in the sources, if both files
    are built from the same (``one_source``). Others do not, because the lines of the standard
    library depend on the compiler.
    """
    several = set()
    for file in found:
        places = defaultdict(set)
        for names, sources in file.values():
            for name in names:
                places[name] |= sources
        several |= {name for name, of in places.items() if one_source and len(of) > 1}
    return [
        {
            address: frozenset(
                f"{name} {source}".strip()
                for name in names
                for source in (sources if name in several and sources else [""])
            )
            for address, (names, sources) in file.items()
        }
        for file in found
    ]


def named(code: Features, keys: dict[int, frozenset[str]]) -> Names:
    """Return the names of the analysis's functions, given address in the file -> names."""
    analysis = code.analysis
    number = {a & ~1: f for f, a in enumerate(analysis.function_address[: code.functions].tolist())}
    shift = max((0, PIE_BASE), key=lambda base: sum((a & ~1) + base in number for a in keys))
    of = {
        number[(address & ~1) + shift]: names
        for address, names in keys.items()
        if (address & ~1) + shift in number
    }
    return Names(of, list(keys.values()))


def outcomes(pairs: list, old: Names, new: Names) -> dict[str, list]:
    """Judge the pairs. One is right if a name is common to both functions.

    Returns
    -------
    dict
        ``units``: a list of [is right, was found, exists], each 0 or 1, for each pair that was
        found and each function that should have been paired but was not;
        ``unclear``: number of wrong pairs whose names do not occur in the other file.
    """
    units: list[list[int]] = []
    unclear = 0
    times = [Counter(itertools.chain.from_iterable(names.all)) for names in (old, new)]

    def key(names: frozenset[str]) -> str:
        """Return one of a function's names, if possible one that the new file has, too."""
        return min(names, key=lambda name: (name not in times[1], name))

    right_of: Counter[str] = Counter()
    for a, b in pairs:
        one, other = old.of.get(a), new.of.get(b)
        if one is None and other is None:
            continue  # neither function has a name
        if one and other and one & other:
            right_of[key(one)] += 1
            units.append([1, 1, 1])
        else:
            known = any(n in times[1] for n in one or ()), any(n in times[0] for n in other or ())
            unclear += not any(known)
            units.append([0, 1, 0])
    for name, count in Counter(map(key, old.all)).items():
        missing = min(count, times[1][name]) - right_of[name]
        units += [[0, 0, 1]] * max(missing, 0)
    return {"units": units, "unclear": unclear}


def f1(units: np.ndarray) -> np.ndarray:
    """Return the F1 score of units, int (..., n, 3) as in `outcomes`."""
    right, said, true = np.moveaxis(units.sum(-2), -1, 0)
    return 2 * right / np.maximum(said + true, 1)


def f1_interval(units: np.ndarray) -> tuple[float, float]:
    """Return the 95 % confidence interval of F1, by bootstrap over units, int (n, 3)."""
    random = np.random.default_rng(0)
    samples = (units[random.integers(0, len(units), len(units))] for _ in range(BOOTSTRAPS))
    return interval(np.array([f1(sample) for sample in samples]))


# --------------------------------------------------------------------------------------- peers


class Peer(NamedTuple):
    """The part of a build that accuracy.peer_matrix reads."""

    code: Features
    peer_words: dict


def words_score(first: Features, second: Features) -> np.ndarray:
    """Return the cosines of all pairs of functions by their words, float (functions, functions)."""
    groups = PEERS["TF-IDF, tokens + names"]
    matrices = [peer_matrix(Peer(code, peer_words(code)), groups) for code in (first, second)]
    a, b = weigh(*matrices)
    return (a @ b.T).toarray()


def words_pairs(score: np.ndarray) -> dict[str, list]:
    """Return threshold -> pairs, matched one to one by these cosines."""
    rows, columns = linear_sum_assignment(score, maximize=True)
    found = score[rows, columns]
    return {
        f"{t:.1f}": list(zip(rows[found > t].tolist(), columns[found > t].tolist(), strict=True))
        for t in THRESHOLDS
    }


def qbindiff_pairs(first: Features, second: Features, score: np.ndarray) -> list:
    """Return qbindiff's pairs, given cosines and call graphs; none if it is not installed."""
    try:
        import networkx
        import qbindiff
    except ImportError:
        return []
    graphs = []
    for code in (first, second):
        graph = networkx.DiGraph()
        graph.add_nodes_from(range(code.functions))
        calls = code.calls.tocoo()
        graph.add_edges_from(zip(calls.row.tolist(), calls.col.tolist(), strict=True))
        graphs.append(graph)

    class Differ(qbindiff.DiGraphDiffer):
        def gen_sim_matrix(self, sim_matrix, *args, **kwargs) -> None:
            sim_matrix[:] = score

    differ = Differ(*graphs, sparsity_ratio=0.75, tradeoff=0.75, epsilon=0.5)
    found = differ.compute_matching()
    return sorted((int(m.primary), int(m.secondary)) for m in found)


def within(seconds: float, call: Callable[..., list], *arguments: Any) -> list:
    """Return what a call returns in a copy of this process, or nothing if it takes longer."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    worker = context.Process(target=lambda: send.send(call(*arguments)))
    worker.start()
    send.close()  # so that `recv` fails if the copy ends without an answer
    try:
        return receive.recv() if receive.poll(seconds) else []
    finally:
        worker.kill()
        worker.join()


# --------------------------------------------------------------------------------------- table


def table(results: list[tuple[Row, dict]]) -> list[str]:
    """Return the lines of a Markdown table, with a row for each pair and one for each group."""
    lines = [machine(), ""]
    columns = "pair|functions|right|wrong (unclear)|missed|F1 (95 %)|words|qbindiff|itself|CPU s|MB"
    lines.append(f"| {' | '.join(columns.split('|'))} |")
    lines.append("|---|---|---|---|---|---|---|---|---|---|---|")
    for group, inside in itertools.groupby(results, key=lambda item: item[0].group):
        inside = list(inside)
        best = {}  # peer -> threshold
        for peer in ("words", "qbindiff"):
            by_threshold = [r["peers"][peer] for _, r in inside if peer in r["peers"]]
            if by_threshold:
                best[peer] = max(
                    by_threshold[0],
                    key=lambda at: f1(np.concatenate([units(found[at]) for found in by_threshold])),
                )
        lines += [line(row.name, [result], best) for row, result in inside]
        pooled = [result for _, result in inside]
        aim = f"; aim {AIMS[group]:.2f}" if group in AIMS else ""
        lines.append(line(f"**{group}, all{aim}**", pooled, best))
    return lines


def units(outcome: dict) -> np.ndarray:
    """Return the units of `outcomes` as an array, int (n, 3)."""
    return np.array(outcome["units"], int).reshape(-1, 3)


def line(name: str, results: list[dict], best: dict[str, str]) -> str:
    """Return a line of the table for one result, or for several together."""
    ours = np.concatenate([units(r["ours"]) for r in results])
    right, said, true = ours.sum(0).tolist()
    low, high = f1_interval(ours)
    peers = []
    for peer in ("words", "qbindiff"):
        if all(peer in r["peers"] for r in results):
            found = [units(r["peers"][peer][best[peer]]) for r in results]
            peers.append(f"{f1(np.concatenate(found)):.3f}")
        else:
            peers.append("")  # it is not installed, or did not finish
    same, of = (sum(r["itself"][i] for r in results) for i in (0, 1))
    cells = [name, true, right, f"{said - right} ({sum(r['ours']['unclear'] for r in results)})"]
    cells += [true - right, f"{f1(ours):.3f} ({low:.3f}-{high:.3f})", *peers, f"{same}/{of}"]
    cells += [f"{sum(r['seconds'] for r in results):.0f}", max(r["megabytes"] for r in results)]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    command_line(main)
