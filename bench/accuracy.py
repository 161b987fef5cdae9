"""How well diff.py matches functions and blocks, judged by symbols and debug information.

    python bench/accuracy.py --path DIR --programs sort,cp --seen DIR2,DIR3
    python bench/accuracy.py --compilers --programs sort,cp --seen DIR2,DIR3

DIR/<build>/<program> are builds with symbols and DWARF line tables; stripped copies of them are
compared. Every figure is given for all functions, and for unseen ones: those whose name does not
occur in any program used for training or for choosing settings (`--seen`).

Retrieval: is the right function the first among all functions of the other binary with at least 3
blocks? Matching: how many matched pairs of functions with at least 3 blocks are right, and how many
of the right pairs are found? Functions that the disassembler misses count as not found. Blocks: a
pair is right if both blocks come from a common line of the source; each block of the old binary
whose lines occur in the new one should be found. Between versions, lines are numbered from the
beginning of their function, and only functions of equal length count.

A pair is right if both symbols are equal. Symbols do not tell if a function was renamed between
versions, or if its code moved to a new function that the old one calls: such pairs count as wrong.

The peers match one to one by cosines alone, with the threshold that is best on the measured pairs.
word2vec, with gensim, represents DeepBinDiff's features of blocks: vectors of tokens, trained on
the two binaries, averaged with TF-IDF weights. `--bindiff SECONDS` also runs angr's own BinDiff,
for at most so long per pair.
"""

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import numpy as np
import scipy.sparse
import truth
from elftools.elf.elffile import ELFFile
from scipy.optimize import linear_sum_assignment
from shared import machine
from truth import Truth

import utils
from binary.analysis import cache_file, load_analysis
from binary.cache import analyse_all
from binary.instructions import clean_name, string_words
from binary.tokens import tokenise
from features.extract import Features, extract_features
from features.tfidf import hashed, weigh
from matching.blocks import match_blocks
from matching.candidates import Candidates, find_candidates
from matching.functions import Matches, match_functions
from matching.model import DEFAULT, Model, read_model
from terminal import progress
from terminal.arguments import names_of
from terminal.command_line import command_line

MIN_BLOCKS = 3
# Kind of pairs -> the ends of the builds' names.
LEVELS_AND_VERSIONS = {
    "O0-O1": [("8.30-O0", "8.30-O1")],
    "O0-O2": [("8.30-O0", "8.30-O2")],
    "O0-O3": [("8.30-O0", "8.30-O3")],
    "O1-O3": [("8.30-O1", "8.30-O3")],
    "O2-O3": [("8.30-O2", "8.30-O3")],
    "5.93-8.30 at O2": [("5.93-O2", "8.30-O2")],
    "neighbours at O2": [
        ("5.93-O2", "6.4-O2"),
        ("6.4-O2", "7.6-O2"),
        ("7.6-O2", "8.1-O2"),
        ("8.1-O2", "8.30-O2"),
    ],
    "5.93-O0 to 8.30-O3": [("5.93-O0", "8.30-O3")],
}
COMPILERS = {
    "gcc-clang at O0": [("9.10-gcc-12-O0", "9.10-clang-19-O0")],
    "gcc-clang at O2": [("9.10-gcc-12-O2", "9.10-clang-19-O2")],
    "gcc at O0 to clang at O3": [("9.10-gcc-12-O0", "9.10-clang-19-O3")],
    "clang at O0-O3": [("9.10-clang-19-O0", "9.10-clang-19-O3")],
    "8.32 by gcc to 9.10 by clang": [("8.32-gcc-12-O2", "9.10-clang-19-O2")],
}
KINDS = LEVELS_AND_VERSIONS | COMPILERS
PEER_THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of a cosine
PEERS = {"TF-IDF, tokens": ("code",), "TF-IDF, tokens + names": ("code", "words")}
WORD2VEC = "word2vec, TF-IDF weights"
OURS = "ours"
SIMILARITY = "ours without neighbours"
# angr's analysis runs in its own process, because it may take hours or fail.
BINDIFF = """
import json, logging, sys
import angr
logging.disable(logging.ERROR)
old, new = (angr.Project(file, auto_load_libs=False) for file in sys.argv[1:])
found = old.analyses.BinDiff(new)
print(json.dumps(sorted([int(a), int(b)] for a, b in found.function_matches)))
"""

Names = str | tuple[str, ...] | list[str]


class Build:
    """The features of a stripped copy, and the ground truth."""

    def __init__(self, binary: Path, work: Path) -> None:
        copy = stripped(binary, work)
        file = cache_file(work / "output", utils.sha256_of(copy))
        self.file = copy
        self.version = re.match(r"[\d.]*", copy.parent.name).group()  # "" for a folder "O2"
        self.code = extract_features(load_analysis(file))
        analysis = self.code.analysis
        self.truth: Truth = truth.read_truth(binary, work / "truth")
        self.peer_words = peer_words(self.code)
        sizes = truth.block_counts(self.truth, analysis)
        self.number = {a: f for f, a in enumerate(analysis.function_address.tolist()) if a}
        # angr's own functions may begin elsewhere, but inside ours.
        code = slice(analysis.code_blocks)
        at = analysis.address[code].tolist(), analysis.function[code].tolist()
        self.of_angr = dict(zip(*at, strict=True))
        # name -> number of the disassembled function, or -1
        self.functions = {
            name: self.number.get(address, -1)
            for address, name in self.truth.name.items()
            if sizes[address] >= MIN_BLOCKS
        }


def stripped(binary: Path, work: Path) -> Path:
    """Return the stripped copy of a build; make it if it is missing."""
    build = re.sub("^coreutils-", "", binary.parent.name)
    return truth.stripped_copy(binary, work / "stripped" / build / binary.name)


def main(
    path: str = "experiment_data/coreutils/binaries/",
    programs: Names = ("sort", "cp"),
    seen: Names = (),
    kinds: Names = tuple(LEVELS_AND_VERSIONS),
    compilers: bool = False,
    model_file: str = str(DEFAULT),
    work: str = "out-diff",
    workers: int = 2,
    bindiff: int = 0,
    wrong: bool = False,
) -> None:
    """Print the tables.

    Parameters
    ----------
    path : str
        Builds, DIR/<build>/<program>.
    programs : str or list of str
        Programs to measure.
    seen : str or list of str
        Binaries, or folders of them, used for training or for choosing settings.
    kinds : str or list of str
        Kinds of pairs.
    compilers : bool
        Measure the kinds across compilers instead.
    model_file : str
        Model written by matching/train.py.
    work : str
        Folder for stripped copies and analyses.
    workers : int
        Number of parallel processes.
    bindiff : int
        Maximum number of seconds for angr's BinDiff per pair; 0: do not run it.
    wrong : bool
        Print our pairs of functions that count as wrong.
    """
    kinds = tuple(COMPILERS) if compilers else kinds
    programs, kinds, seen = (names_of(x) for x in (programs, kinds, seen))
    model = read_model(model_file)
    known = seen_names(seen)
    pairs = read_pairs(Path(path), programs, kinds, Path(work), workers)
    print(f"{machine()}; {', '.join(programs)}")
    for kind in kinds:
        measure(kind, pairs[kind], model, known, bindiff, wrong)


def read_pairs(
    path: Path, programs: list[str], kinds: list[str], work: Path, workers: int
) -> dict[str, list[tuple[Build, Build]]]:
    """Strip, analyse and read the builds for all kinds; return kind -> its pairs."""
    where = {
        (build, program): find(path, build, program)
        for kind in kinds
        for pair in KINDS[kind]
        for build in pair
        for program in programs
    }
    copies = [stripped(binary, work) for binary in where.values()]
    binaries = [{"path": str(copy), "sha256": utils.sha256_of(copy)} for copy in copies]
    failed = analyse_all(binaries, str(work / "output"), workers)
    if failed:
        raise utils.UserError("; ".join(f"{file}: {why}" for file, why in failed.items()))
    builds = {key: Build(binary, work) for key, binary in progress.bar(where.items())}
    return {
        kind: [(builds[a, p], builds[b, p]) for a, b in KINDS[kind] for p in programs]
        for kind in kinds
    }


def find(path: Path, build: str, program: str) -> Path:
    """Return the one build whose folder's name ends in ``build``."""
    found = [file for file in sorted(path.glob(f"*{build}/{program}")) if file.is_file()]
    if len(found) != 1:
        raise utils.UserError(
            f"{path} must hold one folder *{build} with {program} in it, but holds {len(found)}"
        )
    return found[0]


def seen_names(places: list[str]) -> set[str]:
    """Return the names of all functions in the symbol tables of binaries."""
    names: set[str] = set()
    for place in map(Path, places):
        for file in [place] if place.is_file() else sorted(place.rglob("*")):
            if file.is_file():
                with file.open("rb") as stream:
                    table = ELFFile(stream).get_section_by_name(".symtab")
                    names |= {s.name.split(".")[0] for s in table.iter_symbols()}
    return names


def measure(
    kind: str,
    pairs: list[tuple[Build, Build]],
    model: Model,
    known: set[str],
    bindiff: int,
    wrong: bool,
) -> None:
    """Print the rows of one kind of pairs."""
    mistakes: list[str] = []
    ranks: dict[str, list[float]] = defaultdict(list)
    counts: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros((1, 3)))
    unseen: list[bool] = []
    for first, second in pairs:
        both = names_in_both(first, second)
        unseen += [name not in known for name in both]
        scores = {peer: peer_scores(first, second, groups) for peer, groups in PEERS.items()}
        scores[WORD2VEC] = word2vec_scores(first, second)
        results = {peer: assign(score) for peer, score in scores.items()}
        scores[SIMILARITY] = similarity(first.code, second.code, model)
        matched = match_functions(first.code, second.code, model)
        results[OURS] = [matched]
        if wrong:
            mistakes += said_wrong(matched, first, second, known)
        if bindiff:
            found = angr_matches(first, second, bindiff)
            print(f"angr's BinDiff, {first.file} {second.file}: {len(found.a)} functions")
            results["angr's BinDiff"] = [found]
        for row, score in scores.items():
            ranks[row] += rank(score, first, second, both)
        lines = source_lines(first, second)
        for row, found in results.items():
            for part, left_out in (("all", set()), ("unseen", known)):
                judged = [judge(m, first, second, both, left_out) for m in found]
                counts[row, part] = counts[row, part] + np.array(judged)
        peer = "TF-IDF, tokens + names"
        for row, blocks in (
            (peer, plain_blocks(first, second, results[peer][0])),
            (OURS, match_blocks(first.code, second.code, matched)),
        ):
            counts[row, "blocks"] += judge_blocks(blocks, *lines)
    new = np.array(unseen)
    print()
    print(f"{kind}: {len(new)} functions, {int(new.sum())} of them unseen")
    for row, values in ranks.items():
        r = np.array(values)
        cells = [f"{(r[part] == 1).mean():.3f} {(1 / r[part]).mean():.3f}" for part in (r > 0, new)]
        print(f"  retrieval  {row:38} recall@1, MRR: all {cells[0]}   unseen {cells[1]}")
    for (row, part), judged in counts.items():
        p, r = judged[:, 0] / np.maximum(judged[:, 1:], 1).T
        f1, p, r = max(zip(2 * p * r / np.maximum(p + r, 1e-9), p, r, strict=True))
        print(f"  matching   {row:38} {part:7} precision {p:.3f} recall {r:.3f} F1 {f1:.3f}")
    for line in mistakes:
        print(line)
    sys.stdout.flush()


def said_wrong(found: Matches, first: Build, second: Build, known: set[str]) -> list[str]:
    """Return a line for each pair whose names differ; some of these may have been renamed."""
    lines = []
    for one, other in judged_pairs(found, first, second, set()):
        if one != other:
            there = ", also there" if one in second.truth.name.values() else ""
            new = "unseen" if one not in known else "seen"
            names = f"{one} -> {other or 'no name'}"
            lines.append(f"  wrong, {new:6} {first.file.name}: {names}{there}")
    return lines


# --------------------------------------------------------------------------------------- truth


def names_in_both(first: Build, second: Build) -> list[str]:
    """Return the names of the functions that both builds have, sorted."""
    return sorted(first.functions.keys() & second.functions.keys())


def rank(score: np.ndarray, first: Build, second: Build, names: list[str]) -> list[float]:
    """Return the rank of each function's namesake; infinite if the disassembler missed one."""
    large = np.flatnonzero(second.code.sizes >= MIN_BLOCKS)
    ranks = []
    for name in names:
        a, b = first.functions[name], second.functions[name]
        if a < 0 or b < 0 or second.code.sizes[b] < MIN_BLOCKS:
            ranks.append(np.inf)
            continue
        row = score[a, large]
        better, equal = (row > score[a, b]).sum(), (row == score[a, b]).sum()
        ranks.append(float(better + (equal + 1) / 2))  # the middle of equal scores
    return ranks


def judge(
    found: Matches, first: Build, second: Build, names: list[str], left_out: set[str]
) -> np.ndarray:
    """Count right, claimed and true pairs of functions with at least MIN_BLOCKS blocks.

    Parameters
    ----------
    names : list of str
        The result of `names_in_both`.
    left_out : set of str
        Functions to leave out.
    """
    said = judged_pairs(found, first, second, left_out)
    right = sum(one == other for one, other in said)
    return np.array([right, len(said), len(set(names) - left_out)], float)


def judged_pairs(
    found: Matches, first: Build, second: Build, left_out: set[str]
) -> list[tuple[str, str | None]]:
    """Return the names of the pairs that count; see `judge`.

    None stands for a function without a name: a part that the compiler split off, or start-up code.
    """
    names = []
    for build in (first, second):
        address = build.code.analysis.function_address
        names.append([build.truth.name.get(int(address[f])) for f in range(build.code.functions)])
    said = []
    for a, b in zip(found.a.tolist(), found.b.tolist(), strict=True):
        one, other = names[0][a], names[1][b]
        counted = one in first.functions and one not in left_out
        if counted and (one != other or other in second.functions):
            said.append((one, other))
    return said


def source_lines(first: Build, second: Build) -> tuple[list[set], list[set]]:
    """Return the source lines of both binaries' blocks that can be compared."""
    relative = first.version != second.version
    lines = [truth.block_lines(b.truth, b.code.analysis, relative) for b in (first, second)]
    if relative:
        ends = []
        for side in lines:
            end: Counter = Counter()
            for name, line in set().union(*side):
                end[name] = max(end[name], line)
            ends.append(end)
        equal = {name for name in ends[0] if ends[0][name] == ends[1][name]}
        lines = [[{x for x in block if x[0] in equal} for block in side] for side in lines]
    return lines[0], lines[1]


def judge_blocks(found: Matches, old: list[set], new: list[set]) -> np.ndarray:
    """Count right, claimed and true pairs of blocks."""
    there = set().union(*new)
    true = sum(bool(lines & there) for lines in old)
    said = right = 0
    for a, b in zip(found.a.tolist(), found.b.tolist(), strict=True):
        if old[a] and new[b]:
            said += 1
            right += bool(old[a] & new[b])
    return np.array([right, said, true], float)


# --------------------------------------------------------------------------------------- peers


def peer_words(code: Features) -> dict[str, scipy.sparse.csr_matrix]:
    """Count each block's normalised tokens: those of instructions, and strings and imports."""
    analysis = code.analysis
    strings = defaultdict(set)
    for block, literal in zip(analysis.string_block.tolist(), analysis.string, strict=True):
        strings[block] |= set(string_words(literal))
    imports = {clean_name(name) for name in analysis.import_name}
    bags: dict[str, list[list[str]]] = {"code": [], "words": []}
    for block, words in enumerate(tokenise(analysis).words()[: analysis.code_blocks]):
        names = [w in strings[block] or w in imports for w in words]
        for part, bag in bags.items():
            wanted = part == "words"
            bag.append([w for w, n in zip(words, names, strict=True) if n == wanted])
    return {part: hashed(bag) for part, bag in bags.items()}


def peer_matrix(build: Build, groups: tuple[str, ...]) -> scipy.sparse.csr_matrix:
    """Return the word counts of the functions, csr (F, all words)."""
    function = build.code.analysis.function[: build.code.analysis.code_blocks]
    ones = np.ones(len(function), np.float32)
    shape = build.code.functions, len(function)
    inside = scipy.sparse.csr_matrix((ones, (function, np.arange(len(function)))), shape)
    blocks = scipy.sparse.hstack([build.peer_words[group] for group in groups], "csr")
    return inside @ blocks


def peer_scores(first: Build, second: Build, groups: tuple[str, ...]) -> np.ndarray:
    """Return the cosines of all pairs of functions by TF-IDF of tokens."""
    a, b = weigh(peer_matrix(first, groups), peer_matrix(second, groups))
    return (a @ b.T).toarray()


def word2vec_scores(first: Build, second: Build) -> np.ndarray:
    """Return the cosines of all pairs of functions by the TF-IDF weighted mean of word2vec.

    References
    ----------
    Duan et al., "DeepBinDiff", NDSS 2020, section IV-B. There, blocks get vectors, trained on
    random walks; here, functions get them, trained on their blocks in the order of addresses.
    """
    from gensim.models import Word2Vec

    texts = []
    for build in (first, second):
        words = tokenise(build.code.analysis).words()
        texts += [[w for b in inside for w in words[b]] for inside in build.code.blocks]
    trained = Word2Vec(texts, vector_size=64, min_count=1, workers=1, seed=0, epochs=10).wv
    number = trained.key_to_index
    rows = [Counter(number[word] for word in text) for text in texts]
    counts = scipy.sparse.csr_matrix(
        (
            [n for row in rows for n in row.values()],
            [w for row in rows for w in row],
            np.cumsum([0] + [len(row) for row in rows]),
        ),
        (len(rows), len(number)),
        np.float32,
    )
    vectors = weigh(counts)[0] @ trained.vectors
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return vectors[: first.code.functions] @ vectors[first.code.functions :].T


def angr_matches(first: Build, second: Build, seconds: int) -> Matches:
    """Return the matches of angr's BinDiff; none if it takes too long or fails."""
    command = [sys.executable, "-c", BINDIFF, str(first.file), str(second.file)]
    try:
        done = subprocess.run(command, timeout=seconds, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, IndexError, ValueError) as error:
        print(f"angr's BinDiff: {type(error).__name__} after at most {seconds} s")
        found = []
    pairs = sorted(
        {
            (first.of_angr[a], second.of_angr[b])
            for a, b in found
            if a in first.of_angr and b in second.of_angr
        }
    )
    a, b = np.array(pairs, np.int64).reshape(-1, 2).T
    return Matches(a, b, np.ones(len(a), np.float32))


def assign(score: np.ndarray) -> list[Matches]:
    """Match one to one by the highest sum of cosines, without using structure.

    Returns
    -------
    list of Matches
        One for each of PEER_THRESHOLDS; the tables show the one with the best F1.
    """
    a, b = linear_sum_assignment(score, maximize=True)
    found = score[a, b]
    return [Matches(a[found > t], b[found > t], found[found > t]) for t in PEER_THRESHOLDS]


def plain_blocks(first: Build, second: Build, functions: Matches) -> Matches:
    """Match blocks of matched functions only by the cosines of their tokens."""
    parts = [
        scipy.sparse.hstack([b.peer_words["code"], b.peer_words["words"]], "csr")
        for b in (first, second)
    ]
    x, y = weigh(*parts)
    found: list[list] = [[], []]
    for f, g in zip(functions.a, functions.b, strict=True):
        a, b = first.code.blocks[f], second.code.blocks[g]
        i, j = linear_sum_assignment((x[a] @ y[b].T).toarray(), maximize=True)
        found[0] += a[i].tolist()
        found[1] += b[j].tolist()
    a, b = (np.array(side, np.int64) for side in found)
    return Matches(a, b, np.ones(len(a), np.float32))


# ---------------------------------------------------------------------------------------- ours


def similarity(first: Features, second: Features, model: Model) -> np.ndarray:
    """Return the scores of all pairs of functions; pairs that are not candidates come last."""
    return spread(find_candidates(first, second, model.encoder), model)


def spread(candidates: Candidates, model: Model) -> np.ndarray:
    """Return the scores of candidates as a matrix of all pairs."""
    score = np.full(candidates.shape, -np.inf, np.float32)
    score[candidates.a, candidates.b] = model.similarity(candidates.measures)
    return score


if __name__ == "__main__":
    command_line(main)
