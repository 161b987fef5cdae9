"""How well diff.py finds what corresponds, against symbols and debug information.

    python bench/diff.py --path DIR --programs sort,cp --seen DIR2,DIR3

DIR/<build>/<program> are builds with symbols and DWARF line tables; what is compared are stripped
copies. Every figure is given for all functions and for those whose name occurs in no program that
something was learned from or chosen by (`--seen`).

Retrieval: is the right function the first among all functions of the other binary with 3 blocks or
more? Matching: of the pairs of functions of 3 blocks or more, how many are right, how many of the
right ones are found? Functions that the disassembler misses count as not found. Blocks: a pair is
right if both blocks come from a common line of the source; to be found is each block of the old
binary whose lines occur in the new one. Between versions a line is named by its distance from the
beginning of its function, and only functions of equal length count.

The peers match by their cosines alone, one to one, and are given the threshold that is best for
them on the very pairs that are measured.
"""

import datetime
import os
import re
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
from tqdm import tqdm
from truth import Truth

import features
import gendata
import matching
import preprocessing
import similarity
import utils
from features import Code
from matching import Matches

MIN_BLOCKS = 3
# Kinds of pairs: the builds' names end so.
KINDS = {
    "O0-O1": [("8.30-O0", "8.30-O1")],
    "O0-O2": [("8.30-O0", "8.30-O2")],
    "O0-O3": [("8.30-O0", "8.30-O3")],
    "O1-O3": [("8.30-O1", "8.30-O3")],
    "O2-O3": [("8.30-O2", "8.30-O3")],
    "5.93-8.30 at O2": [("5.93-O2", "8.30-O2")],
    "5.93-O0 to 8.30-O3": [("5.93-O0", "8.30-O3")],
}
PEER_THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of a cosine
PEERS = {"TF-IDF, tokens": ("code",), "TF-IDF, tokens + names": ("code", "words")}

Names = str | tuple[str, ...] | list[str]


class Build:
    """A stripped copy's features, and the truth about it."""

    def __init__(self, binary: Path, work: Path) -> None:
        copy = stripped(binary, work)
        file = preprocessing.cache_file(work / "output", utils.sha256_of(copy))
        analysis = preprocessing.load(file)
        self.code = features.read_code(analysis)
        self.truth: Truth = truth.read_truth(binary, work / "truth")
        self.peer_words = peer_words(self.code)
        sizes = truth.block_counts(self.truth, analysis)
        self.number = {a: f for f, a in enumerate(analysis.function_address.tolist()) if a}
        # name -> function as the disassembler has it, or -1
        self.functions = {
            name: self.number.get(address, -1)
            for address, name in self.truth.name.items()
            if sizes[address] >= MIN_BLOCKS
        }


def stripped(binary: Path, work: Path) -> Path:
    """Return the stripped copy of a build, made if it is not there."""
    build = re.sub("^coreutils-", "", binary.parent.name)
    return truth.stripped_copy(binary, work / "stripped" / build / binary.name)


def main(
    path: str = "experiment_data/coreutils/binaries/",
    programs: Names = ("sort", "cp"),
    seen: Names = (),
    kinds: Names = tuple(KINDS),
    model_file: str = str(similarity.DEFAULT),
    work: str = "out-diff",
    workers: int = 2,
) -> None:
    """Print the tables.

    Args:
        path: Builds, DIR/<build>/<program>.
        programs: What is measured.
        seen: Binaries, or folders of them, that something was learned from or chosen by.
        kinds: Kinds of pairs.
        model_file: What contrast.py wrote.
        work: Where stripped copies and analyses are kept.
        workers: Processes that analyse.
    """
    programs, kinds, seen = (
        [x] if isinstance(x, str) else list(x) for x in (programs, kinds, seen)
    )
    model = similarity.read_model(model_file)
    known = seen_names(seen)
    where = {
        (build, program): find(Path(path), build, program)
        for kind in kinds
        for pair in KINDS[kind]
        for build in pair
        for program in programs
    }
    copies = [stripped(binary, Path(work)) for binary in where.values()]
    binaries = [{"path": str(copy), "sha256": utils.sha256_of(copy)} for copy in copies]
    failed = gendata.analyse_all(binaries, str(Path(work) / "output"), workers)
    if failed:
        raise utils.UserError(str(failed))
    builds = {key: Build(binary, Path(work)) for key, binary in tqdm(where.items(), disable=None)}
    print(f"{datetime.date.today()}, {os.cpu_count()} cores; {', '.join(programs)}")
    for kind in kinds:
        pairs = [(builds[a, p], builds[b, p]) for a, b in KINDS[kind] for p in programs]
        measure(kind, pairs, model, known)


def find(path: Path, build: str, program: str) -> Path:
    """Return the one build whose folder's name ends in ``build``."""
    found = [folder / program for folder in sorted(path.glob(f"*{build}"))]
    if len(found) != 1 or not found[0].is_file():
        raise utils.UserError(f"{path}: no build *{build} with {program}, or several")
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


def measure(kind: str, pairs: list, model: similarity.Model, known: set[str]) -> None:
    """Print the rows of one kind of pairs."""
    ranks: dict[str, list[float]] = defaultdict(list)
    counts: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros((1, 3)))
    unseen: list[bool] = []
    for first, second in pairs:
        both = sorted(first.functions.keys() & second.functions.keys())
        unseen += [name not in known for name in both]
        scores = {peer: peer_scores(first, second, groups) for peer, groups in PEERS.items()}
        scores["likeness (ours)"] = likeness(first.code, second.code, model)
        matched = matching.match_functions(first.code, second.code, model)
        results = {peer: assign(scores[peer]) for peer in PEERS} | {"structure (ours)": [matched]}
        for row, score in scores.items():
            ranks[row] += rank(score, first, second, both)
        lines = source_lines(first, second, kind)
        for row, found in results.items():
            for part, left_out in (("all", set()), ("unseen", known)):
                judged = [judge(matches, first, second, left_out) for matches in found]
                counts[row, part] = counts[row, part] + np.array(judged)
        peer = list(PEERS)[-1]
        for row, blocks in (
            (peer, plain_blocks(first, second, results[peer][0])),
            ("structure (ours)", matching.match_blocks(first.code, second.code, matched)),
        ):
            counts[row, "blocks"] += judge_blocks(blocks, *lines)
    new = np.array(unseen)
    print(f"\n{kind}: {len(new)} functions, {int(new.sum())} of them unseen")
    for row, values in ranks.items():
        r = np.array(values)
        cells = [f"{(r[part] == 1).mean():.3f} {(1 / r[part]).mean():.3f}" for part in (r > 0, new)]
        print(f"  retrieval  {row:38} recall@1, MRR: all {cells[0]}   unseen {cells[1]}")
    for (row, part), judged in counts.items():
        p, r = judged[:, 0] / np.maximum(judged[:, 1:], 1).T
        f1, p, r = max(zip(2 * p * r / np.maximum(p + r, 1e-9), p, r, strict=True))
        print(f"  matching   {row:38} {part:7} precision {p:.3f} recall {r:.3f} F1 {f1:.3f}")
    sys.stdout.flush()


# --------------------------------------------------------------------------------------- truth


def rank(score: np.ndarray, first: Build, second: Build, names: list[str]) -> list[float]:
    """Return the rank of the right function for each name; infinite where one was missed."""
    large = np.flatnonzero(second.code.sizes >= MIN_BLOCKS)
    ranks = []
    for name in names:
        a, b = first.functions[name], second.functions[name]
        if a < 0 or b < 0 or second.code.sizes[b] < MIN_BLOCKS:
            ranks.append(np.inf)
            continue
        row = score[a, large]
        better, equal = (row > score[a, b]).sum(), (row == score[a, b]).sum()
        ranks.append(float(better + (equal + 1) / 2))  # among equals, the middle
    return ranks


def judge(found: Matches, first: Build, second: Build, left_out: set[str]) -> np.ndarray:
    """Count right, said and true pairs of functions with MIN_BLOCKS or more."""
    names = []
    for build in (first, second):
        address = build.code.analysis.function_address
        names.append([build.truth.name.get(int(address[f])) for f in range(build.code.functions)])
    right = said = 0
    for a, b in zip(found.a.tolist(), found.b.tolist(), strict=True):
        one, other = names[0][a], names[1][b]
        counted = one in first.functions and one not in left_out
        if not counted or (one == other and other not in second.functions):
            continue
        said += 1
        right += one == other
    true = len((first.functions.keys() & second.functions.keys()) - left_out)
    return np.array([right, said, true], float)


def source_lines(first: Build, second: Build, kind: str) -> tuple[list[set], list[set]]:
    """Return the source lines of both binaries' blocks, without those that cannot be compared."""
    relative = kind.startswith("5.93")
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
    """Count right, said and true pairs of blocks."""
    there = set().union(*new)
    true = sum(bool(lines & there) for lines in old)
    said = right = 0
    for a, b in zip(found.a.tolist(), found.b.tolist(), strict=True):
        if old[a] and new[b]:
            said += 1
            right += bool(old[a] & new[b])
    return np.array([right, said, true], float)


# --------------------------------------------------------------------------------------- peers


def peer_words(code: Code) -> dict[str, scipy.sparse.csr_matrix]:
    """Counts of each block's normalised tokens: of instructions, and of strings and imports."""
    analysis = code.analysis
    strings = defaultdict(set)
    for block, literal in zip(analysis.string_block.tolist(), analysis.string, strict=True):
        strings[block] |= set(preprocessing.string_words(literal))
    imports = {preprocessing.clean_name(name) for name in analysis.import_name}
    bags: dict[str, list[Counter]] = {"code": [], "words": []}
    tokens = analysis.tokens.tolist()
    for block in range(analysis.code_blocks):
        start, end = analysis.offsets[block : block + 2]
        words = [analysis.dictionary[t] for t in tokens[start:end]]
        names = [w in strings[block] or w in imports for w in words]
        for part, bag in bags.items():
            wanted = part == "words"
            bag.append(Counter(w for w, n in zip(words, names, strict=True) if n == wanted))
    return {part: features.hashed(bag) for part, bag in bags.items()}


def peer_matrix(build: Build, groups: tuple[str, ...]) -> scipy.sparse.csr_matrix:
    """Words of the functions, csr (F, all words)."""
    function = build.code.analysis.function[: build.code.analysis.code_blocks]
    ones = np.ones(len(function), np.float32)
    shape = build.code.functions, len(function)
    inside = scipy.sparse.csr_matrix((ones, (function, np.arange(len(function)))), shape)
    blocks = scipy.sparse.hstack([build.peer_words[group] for group in groups], "csr")
    return inside @ blocks


def peer_scores(first: Build, second: Build, groups: tuple[str, ...]) -> np.ndarray:
    """Cosines of TF-IDF weighed tokens of all pairs of functions."""
    a, b = features.weigh(peer_matrix(first, groups), peer_matrix(second, groups))
    return (a @ b.T).toarray()


def assign(score: np.ndarray) -> list[Matches]:
    """Match one to one by the highest sum of cosines, as a peer without structure can.

    Returns
    -------
    list of Matches
        For each of PEER_THRESHOLDS; the tables show the one with the best F1.
    """
    a, b = linear_sum_assignment(score, maximize=True)
    found = score[a, b]
    return [Matches(a[found > t], b[found > t], found[found > t]) for t in PEER_THRESHOLDS]


def plain_blocks(first: Build, second: Build, functions: Matches) -> Matches:
    """Match blocks of matched functions by their tokens' cosines alone."""
    parts = [
        scipy.sparse.hstack([b.peer_words["code"], b.peer_words["words"]], "csr")
        for b in (first, second)
    ]
    x, y = features.weigh(*parts)
    found: list[list] = [[], []]
    for f, g in zip(functions.a, functions.b, strict=True):
        a, b = first.code.blocks[f], second.code.blocks[g]
        i, j = linear_sum_assignment((x[a] @ y[b].T).toarray(), maximize=True)
        found[0] += a[i].tolist()
        found[1] += b[j].tolist()
    a, b = (np.array(side, np.int64) for side in found)
    return Matches(a, b, np.ones(len(a), np.float32))


# ---------------------------------------------------------------------------------------- ours


def likeness(first: Code, second: Code, model: similarity.Model) -> np.ndarray:
    """Scores of all pairs of functions; those that are no candidates are last."""
    candidates = similarity.find_candidates(first, second, model.encoder)
    score = np.full(candidates.shape, -np.inf, np.float32)
    score[candidates.a, candidates.b] = model.function(candidates.measures)
    return score


if __name__ == "__main__":
    utils.command_line(main)
