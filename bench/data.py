"""Does the input keep up with the model, and does it fit into memory? python bench/data.py

Generates a corpus of 2 GB (in a temporary folder, which needs 4 GB), tokenises it, draws and masks
batches on one core, trains bert_tiny for as long, and pre-trains on all of it. Takes 4 minutes on
two cores. Memory is what the processes hold for themselves; the ids are mapped from files, and the
kernel drops those pages when it needs them.
"""

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

import models
import optim
import pretrain
import train
import utils
from corpus.ids import Corpus, read_corpus
from corpus.split import split_corpus
from terminal.command_line import command_line
from tokenization import SPECIAL_TOKENS, CorpusTokenizer

MODEL = "config/bert_tiny.json"
WORDS = 2000
SECONDS = 10  # for each figure


def main(gigabytes: float = 2.0, steps: int = 300) -> None:
    """Print the figures.

    Parameters
    ----------
    gigabytes : float
        Size of the generated corpus.
    steps : int
        Steps of the pre-training.
    """
    print(f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}", end=", ")
    print(f"torch {torch.__version__}, numpy {np.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data_file, vocab = generate(folder, round(gigabytes * 1e9))
        tokenizer = CorpusTokenizer(vocab)
        with Peak(os.getpid()) as peak:
            before = peak.now()
            start = time.perf_counter()
            corpus = read_corpus(data_file, tokenizer, utils.sha256_of(vocab))
            speed = data_file.stat().st_size / 1e6 / (time.perf_counter() - start)
        print(f"tokenised, with both SHA-256s: {speed:6.1f} MB/s", end=", ")
        print(f"{(peak.most - before) / 1e6:,.0f} MB more memory in all processes")
        for max_len, max_pred in ((64, 10), (512, 20), (512, 77)):
            given = sampled(corpus, tokenizer, max_len, max_pred)
            taken = consumed(len(tokenizer.vocab), max_len, max_pred)
            print(
                f"32 x {max_len:3} tokens, {max_pred:2} masked: one core draws and masks "
                f"{given / 1e6:5.1f} million a second, {given / taken:5.1f} times what the model "
                f"takes on all cores ({taken:,.0f})"
            )
        cfg = json.loads(Path("config/pretrain.json").read_text()) | {"total_steps": steps}
        utils.write_json(folder / "pretrain.json", cfg | {"save_steps": steps})
        command = ["pretrain.py", "--train_cfg", folder / "pretrain.json", "--model_cfg", MODEL]
        command += ["--data_file", data_file, "--vocab", vocab, "--save_dir", folder / "out"]
        process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL)
        with Peak(process.pid) as peak:
            code = process.wait()
        size = data_file.stat().st_size / 1e9
        print(f"pretrain.py on {size:.1f} GB of text: {peak.most / 1e6:,.0f} MB of memory at most")
        sys.exit(code)


def generate(folder: Path, size: int) -> tuple[Path, Path]:
    """Write random documents of up to 16 sentences, of words as frequent as in text."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(WORDS)])
    vocab, data_file = folder / "vocab.txt", folder / "corpus.txt"
    vocab.write_text("".join(f"{token}\n" for token in [*SPECIAL_TOKENS, *words]))
    share = 1 / np.arange(1, WORDS + 1)
    share /= share.sum()
    with data_file.open("w") as file:
        while file.tell() < size:
            # a part of the text, several times
            drawn = words[rng.choice(WORDS, 2_000_000, p=share)].tolist()
            lines, start = [], 0
            while start < len(drawn):
                for length in rng.integers(40, 120, rng.integers(2, 17)).tolist():
                    lines.append(" ".join(drawn[start : start + length]))
                    start += length
                lines.append("")
            text = "\n".join(lines) + "\n"
            for _ in range(16):
                file.write(text)
    return data_file, vocab


def sampled(corpus: Corpus, tokenizer: CorpusTokenizer, max_len: int, max_pred: int) -> float:
    """Return the tokens per second of one core that draws and masks batches of 32."""
    sampler = pretrain.SentPairSampler(corpus, split_corpus(corpus).training, max_len)
    preprocess = pretrain.Preprocess4Pretrain(tokenizer.vocab, max_len, max_pred, 0.15)
    loader = pretrain.SentPairDataLoader(sampler, preprocess, 0, 32, seed=0)
    start, k = time.process_time(), 0
    while time.process_time() - start < SECONDS:
        loader.batch(k)
        k += 1
    return k * 32 * max_len / (time.process_time() - start)


def consumed(vocab_size: int, max_len: int, max_pred: int) -> float:
    """Return the tokens per second that the model trains on, always the same batch of 32."""
    device = utils.get_device()
    if device.type == "cpu":
        utils.keep_freed_memory()
    sizes = models.Config.from_json(MODEL).with_vocab_size(vocab_size, MODEL, "bench/data.py")
    model = models.BertModel4Pretrain(sizes).to(device).train()
    optimizer = optim.BertAdam(model.parameters(), lr=1e-4)
    rng = np.random.default_rng(0)
    batch = {
        "input_ids": rng.integers(5, vocab_size, (32, max_len)),
        "segment_ids": np.zeros((32, max_len), np.int64),
        "masked_pos": rng.permuted(np.tile(np.arange(1, max_len), (32, 1)), axis=1)[:, :max_pred],
        "masked_ids": rng.integers(5, vocab_size, (32, max_pred)),
        "masked_weights": np.full((32, max_pred), 1 / (32 * max_pred), np.float32),
        "is_next": rng.integers(0, 2, 32),
        "is_next_weights": np.full(32, 1 / 32, np.float32),
    }
    rows = {name: torch.from_numpy(x).to(device) for name, x in batch.items()}
    bfloat16 = train.best_precision(device) == "bfloat16"
    start = time.perf_counter()
    steps = 0
    while time.perf_counter() - start < SECONDS:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = sum(pretrain.get_losses(model, rows).values())
        loss.backward()
        optimizer.step()
        steps += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    return steps * 32 * max_len / (time.perf_counter() - start)


class Peak:
    """The most memory that a process and its children held at once (Linux's RssAnon, bytes)."""

    def __init__(self, pid: int) -> None:
        self.pid, self.most, self.ended = pid, 0, threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Peak":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.ended.wait(0.1):
            self.most = max(self.most, self.now())

    def now(self) -> int:
        total, pids = 0, [self.pid]
        for pid in pids:
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                for task in Path(f"/proc/{pid}/task").iterdir():
                    pids += map(int, (task / "children").read_text().split())
            except OSError:  # it has ended
                continue
            lines = [line for line in status.splitlines() if line.startswith("RssAnon")]
            total += sum(1024 * int(line.split()[1]) for line in lines)
        return total


if __name__ == "__main__":
    command_line(main)
