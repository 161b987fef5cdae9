"""Does pre-training help to compare functions? BERT from our model, from random weights, and
logistic regression, on functions of programs that none of them has seen.

    python bench/same_function.py --path DIR --more DIR2,DIR3     # hours on two cores

Pairs of functions are made from the builds DIR/<build>/{chroot,ls,cp,sort}. BERT is pre-trained on
all other programs in the other folders: first masked LM and next sentence, then twins (samefunc.py
twins), which need no symbols. Those four programs are left out because BERT must know the training
pairs as little as the test pairs; otherwise the network trusts it too much. Then the script
fine-tunes with each number of labelled pairs and each seed, and measures everything on the same
test pairs. The random network differs only in its initial weights. *Vectors alone*: the same
fine-tuned networks, but only the cosine of BERT's two vectors counts. The regularisation of the
logistic regressions is the best of three on the test pairs themselves, an advantage over BERT."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import scipy.sparse
import torch
from shared import machine
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import MaxAbsScaler

import classify
import utils
from tasks.catalogue import Samefunc
from tasks.tables import read_examples
from tasks.task import Examples
from terminal.arguments import names_of
from terminal.command_line import command_line

REGULARISATION = (0.01, 0.1, 1.0)  # scikit-learn's C
EXAMPLES = 4000  # a fine-tuning reads at least so many examples, small sets several times
# Strings and names of imports are words, too; words in fewer than 5 functions are left out.
WORDS = {"token_pattern": r"(?u)\S+", "lowercase": False, "min_df": 5}
VECTORIZERS = {
    "bag of tokens": lambda: CountVectorizer(**WORDS),
    "TF-IDF": lambda: TfidfVectorizer(**WORDS, sublinear_tf=True),
}


def main(
    path: str = "experiment_data/coreutils/binaries/",
    more: str | list[str] = "experiment_data/packages/binaries/",
    train: str | list[str] = ("chroot", "ls"),
    tests: str | list[str] = ("cp", "sort"),
    model_cfg: str = "config/bert_tiny.json",
    steps: int = 6000,
    train_pairs: str | list[int] = (1000, 10000),
    seeds: int = 3,
    pretrain_file: str | None = None,
    work: str = "out-samefunc",
) -> None:
    """Train everything, and print the table.

    Parameters
    ----------
    path : str
        Folder of builds, as for gendata.py.
    more : str or list of str
        Folders of builds for pre-training.
    train : str or list of str
        The programs of the training pairs.
    tests : str or list of str
        Two programs whose functions are the test pairs.
    model_cfg : str
        The model's sizes.
    steps : int
        Steps of pre-training, on 32 x 64 tokens, before the twins.
    train_pairs : str or list of int
        How many pairs of functions to train on: one number, or several.
    seeds : int
        Number of repetitions of each fine-tuning.
    pretrain_file : str
        A model made by an earlier run, instead of pre-training one.
    work : str
        Folder for all results.
    """
    folder = Path(work)
    folder.mkdir(exist_ok=True)
    numbers = [int(number) for number in names_of(train_pairs)]
    more, train, tests = names_of(more), names_of(train), names_of(tests)
    if pretrain_file is None:
        pretrain_file = pretrain(folder, link(folder, more, {*train, *tests}), model_cfg, steps)
    output = ["--outputDir", folder / "output", "--data", folder / "labelled"]
    script(
        *("gendata.py", "--path", path, "--biname", ",".join([*train, *tests]), "--num_walks", 1),
        *("--pairs", 20, *output),
    )
    script(
        *("samefunc.py", "--train", ",".join(train), "--dev", tests[0], "--test", tests[1]),
        *("--train_pairs", max(numbers), "--to", folder / "pairs", *output),
    )
    # Sizes, vocabulary and length of the windows are those of the pre-trained model.
    model = json.loads(Path(pretrain_file).with_name("model.json").read_text())
    sizes = folder / "sizes.json"
    utils.write_json(sizes, model["model"])
    vocab = Path(pretrain_file).with_name("vocab.txt")
    table: dict[str, list[dict]] = {}
    for n in numbers:
        train_file = first_pairs(folder, n)
        files = {"train": train_file, "dev": folder / "pairs/dev.tsv"}
        files["test"] = folder / "pairs/test.tsv"
        pairs = {s: read_examples(Samefunc, file, labelled=True) for s, file in files.items()}
        for kind in VECTORIZERS:
            table[f"{n:,}: logistic regression, {kind}"] = linear(kind, pairs)
        for name, start in (
            ("random weights", ["--model_cfg", sizes, "--vocab", vocab]),
            ("pre-training", ["--pretrain_file", pretrain_file]),
        ):
            start += ["--max_len", model["max_len"]]
            made = [fine_tune(folder, train_file, n, start, seed) for seed in range(seeds)]
            runs = [measures(file, pairs) for file in made]
            for kind in runs[0]:
                table[f"{n:,}: {kind}, from {name}"] = [run[kind] for run in runs]
    print(f"{machine()}, torch {torch.__version__}; training pairs of {', '.join(train)}")
    print("accuracy, ROC AUC")
    print(f"{'':42}{tests[0]:>22}{tests[1]:>22}")
    for name, runs in table.items():
        cells = []
        for split in ("dev", "test"):
            for measure in ("accuracy", "roc_auc"):
                values = 100 * np.array([run[split][measure] for run in runs])
                spread = f"±{values.std(ddof=1):.1f}" if len(values) > 1 else ""
                cells.append(f"{values.mean():6.1f}{spread:4}")
        print(f"{name:42}  {' '.join(cells)}")


def script(*arguments: object) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], check=True)


def settings(file: Path, of: str, **changes: object) -> Path:
    """Write a settings file: config/<of>.json with changes."""
    utils.write_json(file, json.loads(Path("config", of).read_text()) | changes)
    return file


def link(folder: Path, paths: list[str], left_out: set[str]) -> Path:
    """Link all programs for pre-training into one folder; return the folder."""
    builds = folder / "builds"
    for number, path in enumerate(paths):
        for file in sorted(Path(path).resolve().glob("*/*")):
            if file.name not in left_out:
                place = builds / f"{number}-{file.parent.name}" / file.name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.unlink(missing_ok=True)
                place.symlink_to(file)
    return builds


def pretrain(folder: Path, builds: Path, model_cfg: str, steps: int) -> Path:
    """Make corpus and twins, pre-train on both; return the model's file."""
    data, corpus, vocab = folder / "data", folder / "corpus.txt", folder / "vocab.txt"
    output = ["--outputDir", folder / "output", "--data", data]
    script(
        *("gendata.py", "--path", builds, "--biname", "*", "--num_walks", 1, "--pairs", 20),
        *("--validation", 0, "--test", 0, *output),
    )
    script("dataprocess.py", *output, "--vocab_file", vocab, "--corpus_file", corpus)
    cfg = settings(folder / "pretrain.json", "pretrain.json", total_steps=steps)
    script(
        *("pretrain.py", "--train_cfg", cfg, "--model_cfg", model_cfg, "--data_file", corpus),
        *("--vocab", vocab, "--save_dir", folder / "pretrained"),
    )
    script("samefunc.py", "twins", *output, "--to", folder / "twins.tsv")
    script(
        *("classify.py", "--train_cfg", "config/twins.json", "--data_file", folder / "twins.tsv"),
        *("--pretrain_file", folder / "pretrained" / f"model_steps_{steps}.pt"),
        *("--save_dir", folder / "twins"),
    )
    return last_model(folder / "twins")


def last_model(save_dir: Path) -> Path:
    return max(save_dir.glob("model_steps_*.pt"), key=lambda p: int(p.stem.rsplit("_", 1)[1]))


def first_pairs(folder: Path, n: int) -> Path:
    """Write the first ``n`` training pairs (their order is random) to a separate file."""
    file = folder / "pairs" / f"train-{n}.tsv"
    with open(folder / "pairs/train.tsv", encoding="utf-8") as lines:
        file.write_text("".join(itertools.islice(lines, n + 1)), encoding="utf-8")
    return file


def fine_tune(folder: Path, train_file: Path, n: int, start: list, seed: int) -> Path:
    """Fine-tune with one seed on ``n`` pairs; return the model's file."""
    kind = "pretrained" if "--pretrain_file" in start else "random"
    save_dir = folder / f"{kind}-{n}-{seed}"
    epochs = max(1, -(-EXAMPLES // n))
    cfg = settings(
        folder / f"seed-{n}-{seed}.json", "train_samefunc.json", seed=seed, n_epochs=epochs
    )
    script(
        *("classify.py", "--train_cfg", cfg, "--data_file", train_file, *start),
        *("--save_dir", save_dir),
    )
    return last_model(save_dir)


@torch.inference_mode()
def measures(
    model_file: Path, pairs: dict[str, Examples]
) -> dict[str, dict[str, dict[str, float]]]:
    """Measure a model on both other splits, as a whole and by its vectors alone."""
    model, info, tokenizer = classify.load_classifier(str(model_file), "samefunc")
    found: dict[str, dict[str, dict[str, float]]] = {"network": {}, "vectors alone": {}}
    for split in ("train", "dev", "test"):
        data = Samefunc.read(pairs[split], tokenizer, info.max_len)
        cosine = data.encode(model)[data.rows].prod(1).sum(1, keepdim=True).numpy()  # (N, 1)
        if split == "train":
            alone = LogisticRegression().fit(cosine, data.label)
            continue
        shares = classify.predict(model, data, torch.device("cpu"))
        found["network"][split] = classify.measure(shares, data.label)
        shares = alone.predict_proba(cosine)
        found["vectors alone"][split] = classify.measure(shares, data.label)
    return found


class Bags:
    """Features of pairs of texts: their similarity, sizes, and counts and matches of each word.

    Parameters
    ----------
    kind : {"bag of tokens", "TF-IDF"}
    train : tasks.task.Examples
        The examples that words and scales are taken from.
    """

    def __init__(self, kind: str, train: Examples) -> None:
        self.words = VECTORIZERS[kind]().fit(train.text_a + train.text_b)
        self.scaler = MaxAbsScaler().fit(self.raw(train))

    def features(self, examples: Examples) -> scipy.sparse.csr_matrix:
        """Return features of the pairs, scaled to -1..1: (N, 4 + 2 words)."""
        return self.scaler.transform(self.raw(examples)).tocsr()

    def raw(self, examples: Examples) -> scipy.sparse.csr_matrix:
        a, b = (self.words.transform(texts) for texts in (examples.text_a, examples.text_b))
        norms = [np.sqrt(x.multiply(x).sum(1)) for x in (a, b)]
        cosine = np.asarray(a.multiply(b).sum(1)) / np.maximum(np.multiply(*norms), 1e-9)
        sums = [np.log1p(x.sum(1)) for x in (a, b)]
        parts = [cosine, *sums, abs(sums[0] - sums[1]), abs(a - b), a.minimum(b)]
        return scipy.sparse.hstack(parts).tocsr()


def linear(kind: str, pairs: dict[str, Examples]) -> list[dict]:
    """Measure logistic regression on the features of two functions and what they share."""
    words = Bags(kind, pairs["train"])
    x = {split: words.features(examples) for split, examples in pairs.items()}
    best: dict[str, dict[str, float]] = {}
    for c in REGULARISATION:
        model = LogisticRegression(C=c, max_iter=2000).fit(x["train"], pairs["train"].label)
        for split in ("dev", "test"):
            found = classify.measure(model.predict_proba(x[split]), pairs[split].label)
            if split not in best or found["roc_auc"] > best[split]["roc_auc"]:
                best[split] = found
    return [best]


if __name__ == "__main__":
    command_line(main)
