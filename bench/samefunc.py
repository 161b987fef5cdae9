"""Does pre-training help to compare functions? BERT from our model, from random weights, and
logistic regression, on functions of programs that none of them has seen.

    python bench/samefunc.py --path DIR     # DIR/<build>/{chroot,ls,cp,sort}; hours on two cores

Pre-trains on the training programs only, makes the pairs of functions, fine-tunes with each seed,
and measures all on the same test pairs. The random network is the same but for its first weights.
*Vectors alone*: the same fine-tuned networks, but only the cosine of BERT's two vectors counts.
The logistic regressions' regularisation is the best of three on the test pairs themselves, which is
more than BERT is given.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from bags import VECTORIZERS, Bags, read
from sklearn.linear_model import LogisticRegression

import classify
import utils

REGULARISATION = (0.01, 0.1, 1.0)  # scikit-learn's C


def main(
    path: str = "experiment_data/coreutils/binaries/",
    train: str | list[str] = ("chroot", "ls"),
    tests: str | list[str] = ("cp", "sort"),
    model_cfg: str = "config/bert_tiny.json",
    steps: int = 6000,
    train_pairs: int = 10000,
    seeds: int = 3,
    pretrain_file: str | None = None,
    work: str = "out-samefunc",
) -> None:
    """Train everything, and print the table.

    Args:
        path: Builds, as for gendata.py.
        train: The programs of pre-training and of the training pairs.
        tests: Two programs whose functions are the test pairs.
        model_cfg: The model's sizes.
        steps: Of pre-training, on 32 x 64 tokens.
        train_pairs: Of functions.
        seeds: How often each fine-tuning is done.
        pretrain_file: A model that pretrain.py made, instead of pre-training one.
        work: Where everything is made.
    """
    folder = Path(work)
    folder.mkdir(exist_ok=True)
    programs = ",".join(train)
    if pretrain_file is None:
        pretrain_file = pretrain(folder, path, programs, model_cfg, steps)
    script(
        *("samefunc.py", "--path", path, "--train", programs, "--dev", tests[0]),
        *("--test", tests[1], "--train_pairs", train_pairs, "--outputDir", folder / "output"),
        *("--to", folder / "pairs"),
    )
    pairs = {s: read(folder / "pairs" / f"{s}.tsv") for s in ("train", "dev", "test")}
    table = {f"logistic regression, {kind}": linear(kind, pairs) for kind in VECTORIZERS}
    # The sizes and the vocabulary are the pre-trained model's; so is how much is read at a time.
    model = json.loads(Path(pretrain_file).with_name("model.json").read_text())
    sizes = folder / "sizes.json"
    utils.write_json(sizes, model["model"])
    vocab = Path(pretrain_file).with_name("vocab.txt")
    for name, start in (
        ("random weights", ["--model_cfg", sizes, "--vocab", vocab]),
        ("pre-training", ["--pretrain_file", pretrain_file]),
    ):
        start += ["--max_len", model["max_len"]]
        files = [fine_tune(folder, start, seed) for seed in range(seeds)]
        runs = [measures(file, pairs) for file in files]
        for kind in runs[0]:
            table[f"{kind}, from {name}"] = [run[kind] for run in runs]
    print(f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}, torch", end=" ")
    print(f"{torch.__version__}; {train_pairs:,} training pairs of {programs}; accuracy, ROC AUC")
    print(f"{'':38}{tests[0]:>24}{tests[1]:>24}")
    for name, runs in table.items():
        cells = []
        for split in ("dev", "test"):
            for measure in ("accuracy", "roc_auc"):
                values = 100 * np.array([run[split][measure] for run in runs])
                spread = f"±{values.std(ddof=1):.1f}" if len(values) > 1 else ""
                cells.append(f"{values.mean():6.1f}{spread:5}")
        print(f"{name:38}  {' '.join(cells)}")


def script(*arguments: object) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], check=True)


def settings(file: Path, of: str, **changes: object) -> Path:
    """Write a settings file: config/<of>.json with changes."""
    utils.write_json(file, json.loads(Path("config", of).read_text()) | changes)
    return file


def pretrain(folder: Path, path: str, programs: str, model_cfg: str, steps: int) -> Path:
    """Make the corpus and pre-train on it; return the model's file."""
    data, corpus, vocab = folder / "data", folder / "corpus.txt", folder / "vocab.txt"
    script(
        *("gendata.py", "--path", path, "--biname", programs, "--num_walks", 1),
        *("--validation", 0, "--test", 0),  # else one of two programs would be held out
        *("--outputDir", folder / "output", "--data", data),
    )
    script(
        *("dataprocess.py", "--data", data, "--outputDir", folder / "output"),
        *("--vocab_file", vocab, "--corpus_file", corpus),
    )
    cfg = settings(folder / "pretrain.json", "pretrain.json", total_steps=steps)
    script(
        *("pretrain.py", "--train_cfg", cfg, "--model_cfg", model_cfg, "--data_file", corpus),
        *("--vocab", vocab, "--save_dir", folder / "pretrained"),
    )
    return folder / "pretrained" / f"model_steps_{steps}.pt"


def fine_tune(folder: Path, start: list, seed: int) -> Path:
    """Fine-tune with one seed; return the model's file."""
    kind = "pretrained" if "--pretrain_file" in start else "random"
    save_dir = folder / f"{kind}-{seed}"
    cfg = settings(folder / f"seed-{seed}.json", "samefunc.json", seed=seed)
    script(
        *("classify.py", "--train_cfg", cfg, "--data_file", folder / "pairs/train.tsv", *start),
        *("--save_dir", save_dir),
    )
    return max(save_dir.glob("model_steps_*.pt"), key=lambda p: int(p.stem.rsplit("_", 1)[1]))


@torch.inference_mode()
def measures(
    model_file: Path, pairs: dict[str, classify.Examples]
) -> dict[str, dict[str, dict[str, float]]]:
    """Measure a model on both other splits, whole and by its vectors alone."""
    model, info, tokenizer = classify.load_classifier(str(model_file), "samefunc")
    found: dict[str, dict[str, dict[str, float]]] = {"network": {}, "vectors alone": {}}
    for split in ("train", "dev", "test"):
        data = classify.read_ids(classify.Samefunc, pairs[split], tokenizer, info.max_len)
        cosine = data.encode(model)[data.rows].prod(1).sum(1, keepdim=True).numpy()  # (N, 1)
        if split == "train":
            alone = LogisticRegression().fit(cosine, data.label)
            continue
        shares = classify.predict(model, data, torch.device("cpu"))
        found["network"][split] = classify.measure(shares, data.label)
        shares = alone.predict_proba(cosine)
        found["vectors alone"][split] = classify.measure(shares, data.label)
    return found


def linear(kind: str, pairs: dict[str, classify.Examples]) -> list[dict]:
    """Measure logistic regression on what two functions have each and in common."""
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
    utils.command_line(main)
