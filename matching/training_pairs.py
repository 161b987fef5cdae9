"""Pairs of builds for training: their candidates, and the true partners according to symbols."""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from binary.analysis import Analysis, load_analysis
from binary.symbols import source_names
from encoder.encoder import Encoder
from features.extract import Features, extract_features
from matching.candidates import Candidates, find_candidates
from matching.evidence import Evidence
from pairs.binaries import binaries_of, read_pairs

UNKNOWN, NONE = -2, -1  # in place of the index of a candidate
SMALL = 0.3  # weight in the loss of functions with fewer than MIN_BLOCKS blocks
MIN_BLOCKS = 3


@dataclasses.dataclass
class Program:
    """The analysed builds of a program, ordered by the builds' names.

    Attributes
    ----------
    name : str
    packages : set of str
        Where it comes from: several versions of a program may be packages of their own.
    builds : list of Analysis
    """

    name: str
    packages: set[str]
    builds: list[Analysis]


@dataclasses.dataclass
class Pair:
    """The candidates of two builds of a program, and their functions' true partners.

    Attributes
    ----------
    candidates : Candidates
    evidence : Evidence
    partner_a : int64 (F,)
        For each function of the first build, the index of the candidate that contains its partner;
        or NONE or UNKNOWN.
    partner_b : int64 (G,)
        The same for the functions of the second build.
    weight_a, weight_b : float32 (F,), (G,)
        The functions' weights in the loss.
    """

    candidates: Candidates
    evidence: Evidence
    partner_a: np.ndarray
    partner_b: np.ndarray
    weight_a: np.ndarray
    weight_b: np.ndarray


def find_builds(folders: list[str], output_dir: str) -> list[Program]:
    """Read the analysed builds of the programs that gendata.py has made pairs of.

    Equal files of a program count once, because two releases may contain the same version. Pairs
    for the test are left out.

    Parameters
    ----------
    folders : list of str
        Folders that gendata.py wrote.
    output_dir : str
        Folder of the analysed binaries.
    """
    pairs = [pair for data in folders for pair in read_pairs(data, "train", "validation")]
    found: dict[str, Program] = {}
    for binary in binaries_of(pairs, output_dir):
        program = found.setdefault(binary.program, Program(binary.program, set(), []))
        program.packages.add(binary.package)
        program.builds.append(load_analysis(binary.analysis))
    return list(found.values())


def loss_weights(code: Features) -> np.ndarray:
    """Return how much each function counts in a loss, float32 (F,): small ones are often alike."""
    return np.where(code.sizes < MIN_BLOCKS, SMALL, 1).astype(np.float32)


def pairs_of(program: Program, encoder: Encoder, limit: int, seed: int) -> list[Pair]:
    """Return at most ``limit`` pairs of a program's builds; every second one is reversed."""
    rng = np.random.default_rng(seed)
    codes = [extract_features(analysis) for analysis in program.builds]
    chosen = draw_pairs([analysis.processor for analysis in program.builds], limit, rng)
    both = [(codes[i], codes[j]) for i, j in chosen]
    pairs = [pair if n % 2 else pair[::-1] for n, pair in enumerate(both)]
    vectors = {id(code): encoder(code) for code in codes}  # each build is in several pairs

    def encode(code: Features, functions: np.ndarray) -> np.ndarray:
        return vectors[id(code)][functions]

    return [make_pair(old, new, encode) for old, new in pairs]


def draw_pairs(
    processors: list[str], limit: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Draw pairs (i, j), i < j, of builds, sorted. Half of them are for one processor, if possible.

    With builds for six processors, most pairs are of two. But users mostly compare builds for one.
    """
    groups: tuple[list, list] = ([], [])
    for i, j in itertools.combinations(range(len(processors)), 2):
        groups[processors[i] != processors[j]].append((i, j))
    shuffled = [[group[k] for k in rng.permutation(len(group))] for group in groups]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*shuffled))
    return sorted(itertools.islice(filter(None, in_turn), limit))


def make_pair(first: Features, second: Features, encode: Callable[..., np.ndarray]) -> Pair:
    """Find the candidates of two builds and their true partners."""
    candidates = find_candidates(first, second, encode)
    names = source_names(first.analysis), source_names(second.analysis)
    number = {pair: i for i, pair in enumerate(zip(candidates.a, candidates.b, strict=True))}
    partners = []
    for side in (0, 1):
        # A part that the compiler split off (foo.part.0) may be a better partner of foo.
        other = second if side == 0 else first
        split = {n.split(".")[0] for n in other.analysis.function_name if "." in n}
        where = {name: f for f, name in enumerate(names[1 - side]) if name}
        found = []
        for f, name in enumerate(names[side]):
            if not name or (name not in where and name in split):
                found.append(UNKNOWN)
            elif name not in where:
                found.append(NONE)
            else:
                pair = (f, where[name]) if side == 0 else (where[name], f)
                found.append(number.get(pair, UNKNOWN))
        partners.append(np.array(found, np.int64))
    weights = [loss_weights(code) for code in (first, second)]
    evidence = Evidence(first, second)
    return Pair(candidates, evidence, *partners, *weights)
