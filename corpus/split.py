"""Split the corpus into training, validation and test."""

import dataclasses
import itertools

import numpy as np

from corpus.ids import Corpus
from utils import UserError

SPLIT_SEED = 0  # fixed, so that the split does not depend on the training's seed


@dataclasses.dataclass(frozen=True)
class Split:
    """Which documents are trained on and which are held out.

    Attributes
    ----------
    training, heldout : bool (documents,)
    rule : str
        One line for the report: how the corpus was split, and what is held out.
    """

    training: np.ndarray
    heldout: np.ndarray
    rule: str


def split_corpus(corpus: Corpus) -> Split:
    """Hold out the validation programs, or a quarter of at least 8 builds, or a tenth of all.

    The first of these rules is used that leaves pairs of segments on both sides: programs as split
    by gendata.py, or else builds, or else documents. Test programs are never on either side. The
    choice is random, but always the same for a corpus.

    Raises
    ------
    UserError
        The corpus is too small for any split.
    """
    rng = np.random.default_rng(SPLIT_SEED)
    of_pair = np.array(corpus.splits or ["train"] * (len(corpus.pairs) - 1))
    may_read = of_pair != "test"
    programs: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    for program, split in zip(corpus.programs, corpus.splits, strict=False):
        programs[split].add(program)
    readable = itertools.compress(corpus.builds, may_read)
    builds = sorted({build for pair in readable for build in pair})
    n_documents = len(corpus.documents) - 1
    splits = []
    if programs["validation"]:
        count = {split: len(names) for split, names in programs.items()}
        listed = _few(sorted(programs["validation"]))
        rule = (
            f"by program: {count['validation']} held out ({listed}), {count['train']} trained on, "
            f"{count['test']} left for a test"
        )
        splits.append((of_pair == "train", of_pair == "validation", rule))
    if len(builds) >= 8:
        out = set(rng.permutation(builds)[: round(len(builds) / 4)].tolist())
        inside = np.array([sum(build in out for build in pair) for pair in corpus.builds])
        rule = (
            f"by build: {len(out)} of {len(builds)} builds held out, {(inside == 2).sum()} pairs "
            f"inside them, {(inside == 1).sum()} mixed pairs dropped"
        )
        splits.append(((inside == 0) & may_read, (inside == 2) & may_read, rule))
    per_pair = np.diff(corpus.pairs)
    splits = [(np.repeat(a, per_pair), np.repeat(b, per_pair), rule) for a, b, rule in splits]
    may_read = np.repeat(may_read, per_pair)
    several = (np.diff(corpus.documents) > 1) & may_read  # others have no second segment
    useful = rng.permutation(np.flatnonzero(several))
    documents = np.zeros(n_documents, bool)
    documents[useful[: max(2, len(useful) // 10)]] = True
    rule = (
        f"by document: {documents.sum()} of {n_documents} held out; paths through the same code "
        "are on both sides, so these figures flatter the model"
    )
    splits.append((~documents & may_read, documents, rule))
    for training, heldout, rule in splits:
        if min((several & training).sum(), (several & heldout).sum()) >= 2:
            return Split(training, heldout, rule)
    raise UserError(
        f"the corpus has {several.sum()} documents of two or more sentences, but training and "
        "evaluation need at least two each; a blank line ends a document"
    )


def split_test(corpus: Corpus) -> tuple[np.ndarray, str]:
    """Return which documents are of test programs, bool (documents,), and a line for the report.

    Raises
    ------
    UserError
        There are no test programs.
    """
    of_test = np.array([split == "test" for split in corpus.splits], bool)
    names = sorted({p for p, test in zip(corpus.programs, of_test, strict=False) if test})
    if not names:
        raise UserError(
            "the corpus has no test programs; gendata.py holds some out of at least three "
            "programs (--biname '*', --test)"
        )
    documents = np.repeat(of_test, np.diff(corpus.pairs))
    return documents, f"for the test: {_few(names)}"


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" and others" if len(names) > 5 else "")
