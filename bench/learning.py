"""Does pre-training learn? Compare BERT with simple models of the same text, on held-out programs.

    python bench/learning.py --path DIR     # DIR/<build>/<program>; three seeds, 3 minutes each
    python bench/learning.py picture        # the curves of the training in out/, as SVG
    python bench/learning.py next --model_file out/model_steps_3000.pt    # next sentence alone

Runs the whole pipeline in a separate folder (a second run repeats only what changed) with both of
BERT's objectives, then measures all models on the same examples of the programs that gendata.py
holds out. Masked LM: always the most common token; a 5-gram model with backoff, which sees the four
true tokens to the left. Next sentence: logistic regression on the lengths and bags of tokens of
both segments and on their common tokens, with the best of three strengths of regularisation,
chosen on the held-out examples themselves. To find out what the model's answers depend on, it
answers again with parts of the text hidden, and with each segment's tokens in random order.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import scipy.sparse
import torch
from settings import MODEL, REFERENCE, make_text, place_of, trained
from shared import machine
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

import checkpoint
import pretrain
import utils
from corpus.ids import read_corpus
from corpus.split import split_corpus
from terminal.command_line import command_line
from tokenization import CorpusTokenizer

TRAINING_BATCHES = 1500  # of 64 pairs, for the logistic regression
REGULARISATION = (1e-6, 1e-5, 1e-4)
BORDER = 8  # tokens on each side of the border between two segments
BATCHES = 64  # number of batches of held-out examples


def main(
    path: str = "experiment_data/coreutils/binaries/",
    biname: str = "*",
    steps: int = 3000,
    seeds: int = 3,
    work: str = "out-learning",
    plot: str = "out-learning/learning.svg",
) -> None:
    """Train, print the table, and draw the curves.

    Parameters
    ----------
    path : str
        Builds, as for gendata.py.
    biname : str
        The programs' names; if there are three or more, some are held out.
    steps : int
        Steps of each training; the other settings are those of config/pretrain.json.
    seeds : int
        Number of trainings; mean, minimum and maximum are printed.
    work : str
        Folder for all results.
    plot : str
        The picture to draw, .svg.
    """
    utils.check_outputs({"plot": plot}, (), {"work": work})
    vocab, data_file = make_text(path, biname, work)
    models, files = [], []
    for seed in range(seeds):
        place = place_of(REFERENCE, seed, steps, work)
        model, info, file = trained(REFERENCE, seed, steps, vocab, data_file, place)
        models.append(model)
        files.append(file)

    text = HeldOut(info, CorpusTokenizer(vocab))
    evaluation = text.evaluation
    found = [evaluation(model) for model in models]
    five_gram = evaluation.five_gram(text.split.training)
    by_bags, by_bags_hard = bag_accuracy(text)

    def of_seeds(values: list[float], form: str = ".1%") -> str:
        return f"{np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"

    def ours(name: str, form: str = ".1%") -> str:
        return of_seeds([measures[name] for measures in found], form)

    def seeing(view: str) -> str:
        return of_seeds([next_accuracy(model, text.batches, view) for model in models])

    print(
        f"{machine()}, torch {torch.__version__}; {MODEL}, {steps} "
        f"steps, {seeds} seeds: mean (least to most)"
    )
    pairs = len(text.batches) * pretrain.EVAL_EXAMPLES
    print(f"held out {text.split.rule}; {pairs:,} pairs of segments")
    for title, rows in (
        (
            "masked LM, accuracy",
            {
                "commonest token": f"{evaluation.commonest:.1%}",
                "5-gram with backoff": f"{five_gram:.1%}",
                "this model": ours("masked_lm_accuracy"),
            },
        ),
        (
            "masked LM, nats",
            {
                "unigram entropy": f"{evaluation.unigram_entropy:.3f}",
                "this model": ours("masked_lm_loss", ".3f"),
            },
        ),
        (
            "next sentence, accuracy; against hard negatives",
            {
                "lengths and bags of tokens": f"{by_bags:.1%}; {by_bags_hard:.1%}",
                "this model": f"{ours('next_accuracy')}; {ours('next_accuracy_hard')}",
            },
        ),
        (
            "next sentence, accuracy of this model when it sees",
            {view: seeing(view) for view in VIEWS},
        ),
    ):
        print(title)
        for name, value in rows.items():
            print(f"  {name:45}{value}")
    measures = found[0] | {"five_gram_accuracy": five_gram}
    draw([curve(file.parent) for file in files], measures, Path(plot))
    print(plot)


def next_sentence(model_file: str) -> None:
    """Print on which parts of the text a model's answers to "does B follow A?" depend.

    Parameters
    ----------
    model_file : str
        A model trained with next sentence; its corpus must still be in the same place.
    """
    model, info, tokenizer = checkpoint.load_pretrained(model_file)
    text = HeldOut(info, tokenizer)
    print(f"held out {text.split.rule}; next sentence, accuracy")
    for view in VIEWS:
        print(f"  sees {view:40}{next_accuracy(model, text.batches, view):.1%}")
    print(f"  {'lengths and bags of tokens':45}{bag_accuracy(text)[0]:.1%}")


class HeldOut:
    """A model's corpus: its training part, and batches of the held-out part.

    Parameters
    ----------
    info : checkpoint.ModelInfo
    tokenizer : CorpusTokenizer
    """

    def __init__(self, info: checkpoint.ModelInfo, tokenizer: CorpusTokenizer) -> None:
        corpus = read_corpus(Path(info.data_file), tokenizer, info.vocab_sha256)
        self.split = split_corpus(corpus)
        self.n_words = len(tokenizer.vocab)
        preprocess = pretrain.Preprocess4Pretrain(
            tokenizer.vocab, info.max_len, info.max_pred, info.mask_prob
        )
        pretrain.EVAL_BATCHES = BATCHES
        self.evaluation = pretrain.Evaluation(
            corpus, self.split.heldout, preprocess, torch.device("cpu")
        )
        self.batches = [self.evaluation.loader.batch(k) for k in range(self.evaluation.batches)]
        sampler = pretrain.SentPairSampler(corpus, self.split.training, info.max_len)
        self.training = pretrain.SentPairDataLoader(
            sampler, preprocess, 0, pretrain.EVAL_EXAMPLES, seed=1
        )


def picture(save_dir: str = "out", plot: str = "out-learning/learning.svg") -> None:
    """Draw the curves of a training with --check, such as that of `make train`.

    Parameters
    ----------
    save_dir : str
        Folder of the training.
    plot : str
        The picture to draw, .svg.
    """
    utils.check_outputs({"plot": plot})
    measures = json.loads(Path(save_dir, "metrics.json").read_text())
    draw([curve(Path(save_dir))], measures, Path(plot))


def curve(save_dir: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Return a training's log: steps and values of losses and held-out measures."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(save_dir / "runs")).Reload()
    names = ("train/masked_lm_loss", "eval/masked_lm_loss", "eval/masked_lm_accuracy")
    found = {name: log.Scalars(name) for name in names}
    return {n: ([e.step for e in events], [e.value for e in events]) for n, events in found.items()}


def draw(curves: list[dict], measures: dict[str, float], file: Path) -> None:
    """Draw each seed's curves and the peers in ``measures``; equal inputs give equal bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # On white, whatever the page is that shows it.
    with matplotlib.rc_context({"svg.hashsalt": "learning", "savefig.facecolor": "white"}):
        figure, (loss, accuracy) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
        for number, values in enumerate(curves):
            once = {} if number else {"label": "training text"}
            loss.plot(*values["train/masked_lm_loss"], color="tab:blue", alpha=0.4, **once)
            once = {} if number else {"label": "held-out programs"}
            style = {"color": "tab:blue", "marker": "o", "markersize": 4}
            loss.plot(*values["eval/masked_lm_loss"], **style, **once)
            accuracy.plot(*values["eval/masked_lm_accuracy"], **style, **once)
        lines = {"color": "black", "linewidth": 1}
        loss.axhline(measures["unigram_entropy"], linestyle="--", label="unigram entropy", **lines)
        for name, label, line in (
            ("five_gram_accuracy", "5-gram with backoff", "--"),
            ("commonest_token", "commonest token", ":"),
        ):
            accuracy.axhline(measures[name], linestyle=line, label=label, **lines)
        loss.set(xlabel="steps", ylabel="loss per masked token (nats)", xlim=(0, None))
        accuracy.set(xlabel="steps", ylabel="masked tokens guessed", xlim=(0, None), ylim=(0, 1))
        loss.set_ylim(0, 1.5 * measures["unigram_entropy"])
        accuracy.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        loss.legend(loc="upper right")
        accuracy.legend(loc="lower right")
        with utils.atomic_file(file, "wb") as out:
            figure.savefig(out, format="svg", metadata={"Date": None})
        pyplot.close(figure)


VIEWS = ("all", f"{BORDER} tokens on each side of the border", "all but these", "no order")


@torch.inference_mode()
def next_accuracy(model: torch.nn.Module, batches: list[dict], view: str) -> float:
    """Return the share of right answers if the model sees only a part of the text (see `VIEWS`)."""
    rng = np.random.default_rng(0)
    right = []
    for batch in batches:
        ids, segment = batch["input_ids"].copy(), batch["segment_ids"]
        mask = batch.get("input_mask", np.ones_like(ids))
        ordinary = ids >= 5
        distance = np.arange(ids.shape[1]) - segment.argmax(1)[:, None]  # from B's first token
        near = (distance >= -1 - BORDER) & (distance < BORDER)
        if view == VIEWS[1]:
            mask = mask & (near | ~ordinary)
        elif view == VIEWS[2]:
            mask = mask & (~near | ~ordinary)
        elif view == VIEWS[3]:
            for row, of_row in zip(ids, segment, strict=True):
                for side in (0, 1):
                    inside = np.flatnonzero((row >= 5) & (of_row == side))
                    row[inside] = row[rng.permutation(inside)]
        tensors = [torch.from_numpy(x) for x in (ids, segment, mask, batch["masked_pos"])]
        answers = model(*tensors)[1].argmax(1).numpy()
        right.append(answers == batch["is_next"])
    return float(np.concatenate(right).mean())


def bag_accuracy(text: HeldOut) -> tuple[float, float]:
    """Return next-sentence accuracies, all and against hard negatives, of logistic regression."""
    training = [text.training.batch(k) for k in range(TRAINING_BATCHES)]
    known = scipy.sparse.vstack([bags(batch, text.n_words) for batch in training])
    answers = np.concatenate([batch["is_next"] for batch in training])
    asked = scipy.sparse.vstack([bags(batch, text.n_words) for batch in text.batches])
    is_next = np.concatenate([batch["is_next"] for batch in text.batches])
    is_hard = np.concatenate([batch["is_hard"] for batch in text.batches])
    results = []
    for alpha in REGULARISATION:
        classifier = SGDClassifier("log_loss", alpha=alpha, average=True, random_state=0)
        model = make_pipeline(MaxAbsScaler(), classifier).fit(known, answers)
        right = model.predict(asked) == is_next
        hard = (right[is_next == 1].mean() + right[is_hard].mean()) / 2
        results.append((float(right.mean()), float(hard)))
    return max(results, key=lambda result: result[1])


def bags(batch: dict, vocab_size: int) -> scipy.sparse.csr_matrix:
    """Return lengths, bag of A, bag of B and their common tokens for each pair, with its masks."""
    rows = np.arange(len(batch["is_next"]))[:, None]
    sides = []
    ordinary = batch["input_ids"] >= 5
    for side in (0, 1):
        inside = ordinary & (batch["segment_ids"] == side)
        where = (rows + 0 * batch["input_ids"])[inside]
        counts = (np.ones(inside.sum()), (where, batch["input_ids"][inside]))
        sides.append(scipy.sparse.csr_matrix(counts, (len(rows), vocab_size)))
    a, b = sides
    lengths = np.log1p(np.stack([a.sum(1).A1, b.sum(1).A1], 1))
    shared = [a.minimum(b), a.multiply(b).sqrt(), abs(a - b)]
    return scipy.sparse.hstack([lengths, a.log1p(), b.log1p(), *shared]).tocsr()


if __name__ == "__main__":
    command_line(main, next=next_sentence, picture=picture)
