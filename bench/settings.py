"""How much does each setting of pre-training gain, for the same CPU time?

    python bench/settings.py --path DIR --seeds 3       # DIR/<build>/<program>; can be resumed
    python bench/settings.py pack --path DIR --to gpu/settings     # to run it on another machine:
    sh bench/gpu.sh settings                            # there, with torch and numpy alone

Each row changes one setting of BERT's recipe, and otherwise does what train.sh does. Models are
evaluated on programs that they were not trained on: on masked tokens in examples of 64 and of 512
tokens, on masked instructions, and on whether the mean of a function's hidden states finds the same
function in another build. Each training uses one core.
"""

import contextlib
import io
import json
import lzma
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from shared import machine

import checkpoint
import models
import pretrain
import train
import utils
from corpus.ids import read_corpus
from corpus.split import split_corpus
from terminal.arguments import names_of
from terminal.command_line import command_line
from tokenization import CorpusTokenizer

ROOT = Path(__file__).resolve().parent.parent
MODEL = str(ROOT / "config/bert_tiny.json")
TRAINING = ROOT / "config/pretrain.json"
REFERENCE = "BERT's recipe"
BERTS = {"objectives": {"masked_lm": 1, "next_sentence": 1}}
WHOLE = {"masked_instructions": 1}
# Row -> changes to config/pretrain.json, and to the model's sizes.
SETTINGS: dict[str, tuple[dict, dict]] = {
    REFERENCE: ({}, {}),
    "no next sentence": ({"objectives": {"masked_lm": 1}}, {}),
    "whole instructions": ({"objectives": WHOLE | {"next_sentence": 1}}, {}),
    "whole instructions alone": ({"objectives": WHOLE}, {}),
    "rotary positions": ({}, {"positions": "rotary"}),
    "last tenth at full length": ({"long_share": 0.1}, {}),
    "rotary and last tenth at full length": ({"long_share": 0.1}, {"positions": "rotary"}),
    "warm-up-stable-decay": ({"schedule": "warmup_stable_decay"}, {}),
}
# How examples are made: max_len, max_pred, mask_prob. OURS is what train.sh uses.
OURS = (64, 16, 0.25)
MEASURED = (
    ("tokens of 64", (64, 10, 0.15), pretrain.MaskedTokens),
    ("of 512", (512, 77, 0.15), pretrain.MaskedTokens),
    ("instructions of 64", (64, 10, 0.15), pretrain.MaskedInstructions),
)
FOUND = "functions found"
EXAMPLES = 1024  # number of examples to evaluate a model on
TRIAL, ROUNDS = 30, 3  # steps of a trial that measures a step's CPU time, and number of trials
POINTS = 8  # number of evaluations during a training
BLOCKS = 5  # functions with fewer blocks are not searched for
WINDOWS, ENCODED = 6, 256  # maximum number of windows of a function, and windows encoded at a time
PACKED = ("corpus.txt.xz", "corpus.json", "vocab.txt", "functions.json")


def make_text(path: str, biname: str, work: str) -> tuple[Path, Path]:
    """Make vocabulary and corpus from builds; return their files, which are in ``work``."""
    Path(work).mkdir(exist_ok=True)
    vocab, data_file = Path(work, "vocab.txt"), Path(work, "corpus.txt")
    for arguments in (
        ["gendata.py", "--path", path, "--biname", biname],
        ["dataprocess.py", "--vocab_file", vocab, "--corpus_file", data_file],
    ):
        command = [sys.executable, *map(str, arguments), "--data", f"{work}/data"]
        command += ["--outputDir", f"{work}/output"]
        subprocess.run(command, check=True)
    return vocab, data_file


def main(
    path: str = "experiment_data/coreutils/binaries/",
    biname: str = "*",
    steps: int = 3000,
    seeds: int = 3,
    rows: str | list[str] = "",
    work: str = "out-settings",
    workers: int = 1,
    minutes: float = 600,
) -> None:
    """Train and evaluate each setting; print the table.

    Parameters
    ----------
    path : str
        Folder of builds, as for gendata.py.
    biname : str
        The programs' names; if there are three or more, some are held out.
    steps : int
        Steps of the first row; the others get the same CPU time.
    seeds : int
        Number of trainings of each row.
    rows : str or list of str
        Which rows. Default: all.
    work : str
        Folder for everything that is made.
    workers : int
        Number of trainings at the same time, on one core each.
    minutes : float
        Start no training that would end later than this.
    """
    prepare(path, biname, work)
    run(work, work, steps, seeds, rows, workers, minutes)


def prepare(path: str, biname: str, work: str) -> None:
    """Make the corpus, and the functions to search for, in ``work``."""
    vocab, _ = make_text(path, biname, work)
    utils.write_json(Path(work, "functions.json"), functions_of(work, CorpusTokenizer(vocab)))


def pack(
    path: str = "experiment_data/coreutils/binaries/",
    biname: str = "*",
    work: str = "out-settings",
    to: str = "gpu/settings",
) -> None:
    """Write what `run` needs to a folder.

    Parameters
    ----------
    path : str
        Folder of builds, as for gendata.py.
    biname : str
        The programs' names; if there are three or more, some are held out.
    work : str
        Folder for everything that is made.
    to : str
        The folder to write.
    """
    prepare(path, biname, work)
    Path(to).mkdir(parents=True, exist_ok=True)
    text = Path(work, "corpus.txt").read_bytes()
    with utils.atomic_file(Path(to, PACKED[0]), "wb") as file:
        file.write(lzma.compress(text, preset=1))
    for name in PACKED[1:]:
        shutil.copy(Path(work, name), Path(to, name))
    print(f"{to}: {sum(Path(to, name).stat().st_size for name in PACKED) / 1e6:.1f} MB")


def run(
    work: str = "gpu/settings",
    out: str = "gpu/out",
    steps: int = 3000,
    seeds: int = 3,
    rows: str | list[str] = "",
    workers: int = 0,
    minutes: float = 600,
) -> None:
    """Train and evaluate each setting on text that `pack` or `prepare` made; print the table.

    Parameters
    ----------
    work : str
        Folder of the text.
    out : str
        Folder for settings.jsonl, with a line for each training, settings.txt, and the models of
        the first row.
    steps : int
        Steps of the first row; the others get the same CPU time.
    seeds : int
        Number of trainings of each row.
    rows : str or list of str
        Which rows. Default: all.
    workers : int
        Number of trainings at the same time, on one core each; 0: on three quarters of the cores.
    minutes : float
        Start no training that would end later than this.
    """
    end = time.time() + 60 * minutes
    chosen = names_of(rows) if rows else list(SETTINGS)
    unknown = [row for row in chosen if row not in SETTINGS]
    if unknown:
        raise utils.UserError(f"--rows {unknown[0]}: the rows are {', '.join(SETTINGS)}")
    data_file = Path(work, "corpus.txt")
    if not data_file.exists():
        with utils.atomic_file(data_file, "wb") as file:
            file.write(lzma.decompress(Path(work, PACKED[0]).read_bytes()))
    text = HeldOut(work)
    workers = workers or max(1, 3 * len(os.sched_getaffinity(0)) // 4)
    log = Path(out, "settings.jsonl")
    log.parent.mkdir(parents=True, exist_ok=True)
    done = {}
    if log.exists():
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        done = {(line["row"], line["seed"], line["steps"]): line for line in lines}
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=one_core)
    with pool:
        costs = costs_of_steps(work, pool)
        of_row = {row: round(steps * costs[REFERENCE] / costs[row]) for row in chosen}
        todo = [(row, seed, of_row[row]) for seed in range(seeds) for row in chosen]
        waiting = [
            pool.submit(measured, work, out, *key, costs[key[0]], end)
            for key in todo
            if key not in done
        ]
        for future in as_completed(waiting):
            try:
                line = future.result()
            except Exception as error:  # so that the other trainings go on
                print(f"{type(error).__name__}: {error}", flush=True)
                continue
            if line is None:  # no time was left
                continue
            done[line["row"], line["seed"], line["steps"]] = line
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
    lines = [
        f"{machine()}, {workers} trainings at a time, on one core each, torch "
        f"{torch.__version__}, {train.best_precision(torch.device('cpu'))}; bert_tiny, "
        f"{steps * costs[REFERENCE]:.0f} s of CPU time each; held out {text.split.rule}; "
        f"{text.searches:,} searches; bags of words find {text.recall(text.bags()):.1%}",
        f"{'':38}{'steps':>6}{'seeds':>6}"
        + "".join(f"{name:>24}" for name in [*(name for name, *_ in MEASURED), FOUND]),
    ]
    for row in chosen:
        values = [
            done[row, seed, of_row[row]]["measures"]
            for seed in range(seeds)
            if (row, seed, of_row[row]) in done
        ]
        if values:
            lines.append(
                f"{row:38}{of_row[row]:6}{len(values):6}"
                + "".join(
                    f"{f'{np.mean(v):.1%} ({np.min(v):.1%}-{np.max(v):.1%})':>24}"
                    for v in zip(*values, strict=True)
                )
            )
    Path(out, "settings.txt").write_text("\n".join(lines) + "\n")
    for line in lines:
        print(line)


def one_core() -> None:
    """Prepare a process for training: one thread, no GPU, and a low priority."""
    torch.set_num_threads(1)
    utils.get_device = lambda: torch.device("cpu")
    pretrain.EVAL_BATCHES = EXAMPLES // pretrain.EVAL_EXAMPLES
    os.nice(10)


def measured(
    work: str, out: str, row: str, seed: int, steps: int, cost: float, end: float
) -> dict | None:
    """Train and evaluate one model; return its figures, or None if there is no time for it."""
    start, spent = time.time(), time.process_time()
    if start + 1.1 * cost * steps > end:
        return None
    place = place_of(row, seed, steps, work)
    model, info, _ = trained(
        row, seed, steps, Path(work, "vocab.txt"), Path(work, "corpus.txt"), place
    )
    training = time.process_time() - spent
    text = HeldOut(work)
    measures = [evaluation(model)["masked_lm_accuracy"] for evaluation in text.evaluations()]
    measures.append(text.recall(text.vectors(model, info)))
    if row == REFERENCE and work != out:
        kept = Path(out, f"reference-{seed}")
        shutil.copytree(place / "out", kept, ignore=shutil.ignore_patterns("model_steps_*"))
        shutil.copy(place / f"out/model_steps_{steps}.pt", kept)
    return {
        "row": row,
        "seed": seed,
        "steps": steps,
        "measures": measures,
        "seconds": round(time.time() - start),
        "processor seconds of the training": round(training),
    }


def place_of(row: str, seed: int, steps: int, work: str) -> Path:
    """Return the folder for a training of a row."""
    return Path(work, "settings", "".join(c for c in row if c.isalnum()), f"{seed}-{steps}")


def costs_of_steps(work: str, pool: ProcessPoolExecutor) -> dict[str, float]:
    """Return row -> CPU seconds of a training step, the minimum of some trials."""
    file = Path(work, "costs.json")
    if not file.exists():
        tries = {row: pool.submit(cost_of_step, work, row) for row in SETTINGS}
        utils.write_json(file, {row: future.result() for row, future in tries.items()})
    return json.loads(file.read_text())


def cost_of_step(work: str, row: str) -> float:
    seconds = []
    for number in range(ROUNDS):
        with clock() as spent:
            place = Path(work, "trial", "".join(c for c in row if c.isalnum()))
            trained(row, number, TRIAL, Path(work, "vocab.txt"), Path(work, "corpus.txt"), place)
        seconds.append(spent[0] / TRIAL)
    return min(seconds)


@contextlib.contextmanager
def clock() -> Iterator[list[float]]:
    """Record the CPU time of each training inside the `with` block, without evaluations."""
    spent: list[float] = []
    real = train.Trainer.train

    def timed(trainer: train.Trainer) -> dict[str, float]:
        trainer.evaluate = lambda model: {}
        start = time.process_time()
        measures = real(trainer)
        spent.append(time.process_time() - start)
        return measures

    train.Trainer.train = timed
    try:
        yield spent
    finally:
        train.Trainer.train = real


def trained(
    row: str, seed: int, steps: int, vocab: Path, data_file: Path, place: Path
) -> tuple[models.BertModel4Pretrain, checkpoint.ModelInfo, Path]:
    """Train like train.sh does, with a row's settings; return the model and its file."""
    changes, of_model = SETTINGS[row]
    lengths = {"total_steps": steps, "save_steps": max(1, steps // POINTS), "n_epochs": 10**6}
    cfg = json.loads(TRAINING.read_text()) | BERTS | changes | lengths
    utils.write_json(place / "pretrain.json", cfg | {"seed": seed})
    utils.write_json(place / "model.json", json.loads(Path(MODEL).read_text()) | of_model)
    with contextlib.redirect_stdout(io.StringIO()):
        pretrain.main(
            *(str(place / "pretrain.json"), str(place / "model.json")),
            *(str(data_file), str(vocab), str(place / "out")),
            **dict(zip(("max_len", "max_pred", "mask_prob"), OURS, strict=True)),
            overwrite=True,
        )
    file = place / f"out/model_steps_{steps}.pt"
    model, info, _ = checkpoint.load_pretrained(file)
    return model, info, file


def functions_of(work: str, tokenizer: CorpusTokenizer) -> dict[str, list]:
    """Return functions of held-out programs, to search for in other builds by their vectors.

    A task is two builds of a program. It has a query for each function of the first build, whose
    answer is the function with the same symbol in the second build; the choices are all functions
    of the second build. Functions whose names also occur in training programs are not searched for,
    because coreutils programs share code. The texts contain no names (strings, imports).

    Parameters
    ----------
    work : str
        Folder in which `make_text` made data/ and output/.
    tokenizer : CorpusTokenizer

    Returns
    -------
    dict of str to list
        ``texts``: the token ids of each text; ``tasks``: for each task, the numbers of the texts of
        its queries, answers and choices.
    """
    from pairs.binaries import read_pairs
    from pairs.folder import analysis_files
    from samefunc import choose, read_functions

    infos = read_pairs(f"{work}/data")
    seen: set[str] = set()
    texts: dict[str, int] = {}
    tasks: list[tuple[list[int], ...]] = []
    for of_training in (True, False):
        for info in infos:
            if (info.split == "train") != of_training:
                continue
            builds = [
                choose(read_functions(file, info.program, build.build), set(), BLOCKS)
                for build, file in zip(
                    info.binaries, analysis_files(info, f"{work}/output"), strict=True
                )
            ]
            if of_training:
                seen.update(function.symbol for build in builds for function in build)
                continue
            numbers = [
                {f.symbol: texts.setdefault(f.texts[1], len(texts)) for f in build}
                for build in builds
            ]
            for first, second in (numbers, numbers[::-1]):
                names = sorted(first.keys() & second.keys() - seen)
                queries, answers = ([side[name] for name in names] for side in (first, second))
                tasks.append((queries, answers, sorted(second.values())))
    return {"texts": [tokenizer.encode(text).tolist() for text in texts], "tasks": tasks}


class HeldOut:
    """Text and functions of programs that are not trained on."""

    def __init__(self, work: str) -> None:
        vocab = Path(work, "vocab.txt")
        self.tokenizer = CorpusTokenizer(vocab)
        self.corpus = read_corpus(Path(work, "corpus.txt"), self.tokenizer, utils.sha256_of(vocab))
        self.split = split_corpus(self.corpus)
        functions = json.loads(Path(work, "functions.json").read_text())
        self.texts = functions["texts"]
        self.tasks = [[np.array(part, np.int64) for part in task] for task in functions["tasks"]]
        self.searches = sum(len(queries) for queries, _, _ in self.tasks)

    def evaluations(self) -> list[pretrain.Evaluation]:
        """Return the evaluations listed in MEASURED."""
        return [
            pretrain.Evaluation(
                *(self.corpus, self.split.heldout),
                pretrain.Preprocess4Pretrain(self.tokenizer.vocab, *examples, [objective]),
                torch.device("cpu"),
            )
            for _, examples, objective in MEASURED
        ]

    @torch.inference_mode()
    def vectors(self, model: models.BertModel4Pretrain, info: checkpoint.ModelInfo) -> np.ndarray:
        """Return the mean of each function's hidden states, float32 (functions, D)."""
        pad, cls, sep = (self.tokenizer.vocab[name] for name in ("[PAD]", "[CLS]", "[SEP]"))
        room = info.max_len - 2
        windows = [
            (number, text[start : start + room])
            for number, text in enumerate(self.texts)
            for start in range(0, min(len(text), WINDOWS * room), room)
        ]
        windows.sort(key=lambda window: len(window[1]))  # so that a batch has similar lengths
        sums = np.zeros((len(self.texts), info.model.dim), np.float32)
        model.eval()
        for first in range(0, len(windows), ENCODED):
            some = windows[first : first + ENCODED]
            ids = np.full((len(some), len(some[-1][1]) + 2), pad, np.int64)
            for row, (_, text) in zip(ids, some, strict=True):
                row[: len(text) + 2] = [cls, *text, sep]
            mask = torch.from_numpy((ids != pad).astype(np.int64))
            x = torch.from_numpy(ids)
            h = model.transformer(x, torch.zeros_like(x), mask) * mask[..., None]
            np.add.at(sums, [number for number, _ in some], h.sum(1).numpy())
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)

    def bags(self) -> np.ndarray:
        """Return log(1 + count) of each of V words, float64 (functions, V)."""
        n = len(self.tokenizer.vocab)
        return np.log1p([np.bincount(text, minlength=n) for text in self.texts])

    def recall(self, vectors: np.ndarray) -> float:
        """Return the share of queries whose nearest choice, by cosine, is the answer."""
        x = vectors - vectors.mean(0)  # remove what all functions have in common
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        right = 0
        for queries, answers, choices in self.tasks:
            nearest = (x[queries] @ x[choices].T).argmax(1)
            right += int((choices[nearest] == answers).sum())
        return right / self.searches


if __name__ == "__main__":
    command_line(main, pack=pack, run=run)
