"""How much time, memory and disk the steps to a trained model cost.

    python bench/throughput.py --path DIR --biname chroot --workers 2     # gendata.py against angr
    python bench/throughput.py pairs --path DIR --times 1,10,100          # growing numbers of pairs
    python bench/throughput.py input                                      # is it fast enough?
    OMP_NUM_THREADS=1 python bench/throughput.py encoder --path DIR --biname '*'    # search.py

*gendata.py against angr.* Cold: nothing cached. Warm: analyses cached, data/ deleted, every pair
written again. "angr alone" is one CFGFast of each distinct binary, one after the other, divided by
the number of workers; "at once" is the same in so many parallel processes, which slow each other
down because they share caches and memory. angr's import, which takes seconds, counts only in the
cold run. All take turns, because shared machines change their speed; medians are printed. "Each
pair anew" is what it would cost to analyse both binaries again for every pair in one process, like
DeepBinDiff's scripts.

*Pairs.* A program's builds are copied under other names, as separate programs. Each copy has a few
more bytes at its end, so that its walks differ. Its code is the same as the original's, so the
original's analysis is put into the cache: this measures pairs, not angr. CPU seconds are those of
all processes; memory is the maximum of the main process and of its largest worker (VmHWM).
"Tokens/s a core" is the tokens of all walks per CPU second of pairing, walking, writing and, in
dataprocess.py, writing the corpus.

*Input.* Generates a corpus of 2 GB (in a temporary folder, which needs 4 GB), tokenises it, draws
and masks batches on one core, trains bert_tiny for as long, and pre-trains on all of it. Takes 4
minutes on two cores. Memory is the private memory of the processes; the ids are mapped from files,
and the kernel drops those pages when it needs them.

*Encoder.* CPU seconds of what search.py does after the analysis: extract features, make vectors,
write them to an index, and search an index for one function. For the last two, the same vectors are
written again under other hashes until the index is large enough. Analyses that are not in
--outputDir are made first.
"""

import contextlib
import importlib.metadata
import json
import logging
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import psutil
import torch
from shared import machine
from speed_training import make_step

import models
import pretrain
import train
import utils
from binary.analysis import cache_file, load_analysis
from binary.builds import find_binaries, find_programs
from binary.cache import analyse_all
from corpus.ids import Corpus, read_corpus
from corpus.split import split_corpus
from encoder import index
from encoder.encoder import read_encoder
from encoder.inputs import look_up
from features.extract import extract_features
from features.positions import read_positions
from terminal.arguments import names_of
from terminal.command_line import command_line
from tokenization import SPECIAL_TOKENS, CorpusTokenizer

MODEL = "config/bert_tiny.json"
WORDS = 2000
SECONDS = 10  # for each figure


def main(
    path: str = str(ROOT / "experiment_data/coreutils/binaries"),
    biname: str | list[str] = "chroot",
    workers: int = 2,
    runs: int = 3,
) -> None:
    """Print the table.

    Parameters
    ----------
    path : str
        The builds, as for gendata.py.
    biname : str or list of str
        The program, or several, or a pattern.
    workers : int
        Processes.
    runs : int
        Number of repetitions.
    """
    programs = find_programs(path, names_of(biname))
    binaries = [binary for builds in programs.values() for binary in builds]
    with tempfile.TemporaryDirectory() as folder:

        def run() -> float:
            shutil.rmtree(Path(folder, "data"), ignore_errors=True)
            began = time.perf_counter()
            command = [sys.executable, ROOT / "gendata.py", "--path", Path(path).resolve()]
            command += ["--biname", ",".join(programs), "--workers", str(workers)]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - began

        files = [binary["path"] for binary in binaries]
        colds, alones, at_onces = [], [], []
        for _ in range(runs):
            alones.append(angr_alone(files, 1) / workers)
            at_onces.append(angr_alone(files, workers))
            shutil.rmtree(Path(folder, "output"), ignore_errors=True)
            colds.append(run())
        cold, alone, at_once = (float(np.median(x)) for x in (colds, alones, at_onces))
        # of the largest process, which is one that ran angr
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        warm = float(np.median([run() for _ in range(runs)]))
        counts = [
            json.loads(f.read_text())["counts"] for f in Path(folder, "data").glob("*/pair.json")
        ]
        size = size_of(Path(folder, "data"))
    tokens = sum(count["tokens"] for count in counts)
    lengths = [n for c in counts for n, k in enumerate(c["document_lengths"]) for _ in range(k)]
    print(f"{machine()}, angr {importlib.metadata.version('angr')}, {workers} workers")
    builds = f"{len(binaries)} builds of {', '.join(programs)}"
    print(f"{builds}, {len(counts)} pairs, {tokens:,} tokens")
    print(f"  cold              {cold:7.1f} s")
    print(f"  warm              {warm:7.1f} s   {tokens / warm / 1e6:.1f} million tokens/s")
    print(f"  angr alone        {alone:7.1f} s   cold is {cold / alone:.2f} x")
    print(f"  angr at once      {at_once:7.1f} s   cold is {cold / at_once:.2f} x")
    anew = alone * workers * 2 * len(counts) / len(binaries)
    print(f"  each pair anew    {anew:7.1f} s   in one process")
    print(f"  memory            {memory / 1e6:7.0f} MB  of the largest process")
    print(f"  bytes a pair      {size / len(counts):9,.0f}")
    print(f"  blocks a document, quartiles {np.percentile(lengths, [25, 50, 75])}")


def angr_alone(files: list[str], processes: int) -> float:
    """Return the seconds of CFGFast for all files, without angr's import."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        # These first jobs are long, so that one process does not take both.
        list(pool.map(analyse, files[:1] * processes))
        began = time.perf_counter()
        list(pool.map(analyse, files))
        return time.perf_counter() - began


def analyse(file: str) -> None:
    import angr

    logging.getLogger("angr").setLevel(logging.CRITICAL)
    angr.Project(file, auto_load_libs=False).analyses.CFGFast(normalize=True)


def pairs(
    path: str = str(ROOT / "experiment_data/coreutils/binaries"),
    biname: str = "chroot",
    times: str | list[int] | tuple[int, ...] = (1, 10, 100),
    workers: int = 2,
    outputDir: str = "output",
) -> None:
    """Print the cost of 1, 10 and 100 times as many pairs, a row for each.

    Parameters
    ----------
    path : str
        The builds, as for gendata.py.
    biname : str
        The program.
    times : str or list of int
        One number, or several: how often its pairs are made.
    workers : int
        Processes.
    outputDir : str
        Analysed binaries, as for gendata.py; used and completed.
    """
    print(f"{machine()}, {workers} workers; memory: first process / largest worker")
    print()
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        originals = find_binaries(path, biname)
        analyse_all(originals, outputDir, workers)
        analyses = [load_analysis(cache_file(outputDir, b["sha256"])) for b in originals]
        (folder / "output").mkdir()
        distinct = sum(analysis.code_blocks for analysis in analyses)
        print("      pairs  step           wall s   CPU s  memory MB   disk MB  tokens/s a core")
        for factor in map(int, names_of(times)):
            copies(folder, originals, outputDir, factor)
            one_size(folder, workers, distinct)


def copies(folder: Path, originals: list[dict[str, str]], output_dir: str, factor: int) -> None:
    """Make ``factor`` programs of the original builds, with their analyses."""
    for number in range(factor):
        for original in originals:
            copy = folder / "binaries" / original["build"] / f"program{number}"
            if copy.exists():
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(original["path"], copy)
            with copy.open("ab") as file:
                file.write(f"copy {number}".encode())
            sha256 = utils.sha256_of(copy)
            shutil.copyfile(
                cache_file(output_dir, original["sha256"]),
                cache_file(folder / "output", sha256),
            )


def one_size(folder: Path, workers: int, distinct: int) -> None:
    """Run both steps, starting from the analyses, and print their cost."""
    for made in ("data", "vocab"):
        shutil.rmtree(folder / made, ignore_errors=True)
    arguments = ["--path", "binaries", "--biname", "program*", "--workers", str(workers)]
    gen = measured(folder, "gendata.py", *arguments)
    count = tokens = 0
    for file in (folder / "data").glob("*/pair.json"):
        count += 1
        tokens += json.loads(file.read_text())["counts"]["tokens"]
    on_disk = size_of(folder / "data")
    process = measured(folder, "dataprocess.py", "--workers", str(workers))
    corpus = (folder / "data/corpus.txt").stat().st_size
    for step, cost, disk in (("gendata", gen, on_disk), ("dataprocess", process, corpus)):
        print(f"{count:11,}  {step:12}  {cost[0]:7.1f} {cost[1]:7.1f}  ", end="")
        print(f"{cost[2]:4.0f}/{cost[3]:4.0f}  {disk / 1e6:8.1f}  {tokens / cost[1]:15,.0f}")
    about = json.loads((folder / "data/corpus.json").read_text())
    print(
        f"             {on_disk / count:,.0f} bytes a pair; {tokens / (gen[1] + process[1]):,.0f} "
        f"tokens/s a core for both; {about['repeated_documents']:,} of "
        f"{about['documents'] + about['repeated_documents']:,} documents are copies; corpus: "
        f"{corpus / distinct:,.0f} bytes for each distinct block of the binaries",
        flush=True,
    )


def measured(folder: Path, script: str, *arguments: str) -> tuple[float, float, float, float]:
    """Run a script; return wall and CPU seconds, and MB of the first process and of a worker."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    command = [sys.executable, str(ROOT / script), *arguments]
    process = psutil.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    parent = worker = 0.0
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):  # one has ended
            parent = max(parent, process.memory_info().rss / 1e6)
            for child in process.children(recursive=True):
                worker = max(worker, child.memory_info().rss / 1e6)
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"{script} failed")
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, parent, worker


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def feed(gigabytes: float = 2.0, steps: int = 300) -> None:
    """Print how fast text becomes batches, compared with the model's speed, and the memory.

    Parameters
    ----------
    gigabytes : float
        Size of the generated corpus.
    steps : int
        Steps of the pre-training.
    """
    print(f"{machine()}, torch {torch.__version__}, numpy {np.__version__}")
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


def encode(
    path: str = str(ROOT / "experiment_data/coreutils/binaries"),
    biname: str | list[str] = "*",
    encoded: int = 20_000,
    indexed: int = 100_000,
    outputDir: str = "output",
) -> None:
    """Print how fast functions are encoded, written to an index and found there.

    Parameters
    ----------
    path : str
        The builds, as for gendata.py.
    biname : str or list of str
        The program, or several, or a pattern.
    encoded : int
        Minimum number of functions to encode; 0 for all of the binaries.
    indexed : int
        Minimum number of functions of the index.
    outputDir : str
        Analysed binaries, as for gendata.py; used and completed.
    """
    programs = find_programs(path, names_of(biname))
    binaries = list({b["sha256"]: b for builds in programs.values() for b in builds}.values())
    analyse_all(binaries, outputDir, len(os.sched_getaffinity(0)))
    encoder = read_encoder()
    seconds = dict.fromkeys(("analysis", "features", "words", "vectors", "index"), 0.0)

    @contextlib.contextmanager
    def timed(what: str) -> Iterator[None]:
        start = time.process_time()
        yield
        seconds[what] += time.process_time() - start

    parts, done = [], 0
    for binary in binaries:
        with timed("analysis"):
            analysis = load_analysis(cache_file(outputDir, binary["sha256"]))
        with timed("features"):
            code = extract_features(analysis)
        with timed("words"):
            inputs = look_up(read_positions(code), encoder.vocabulary)
        with timed("vectors"):
            vectors = encoder.encode(inputs)
        start = code.analysis.function_address[: code.functions]
        names = code.analysis.function_name[: code.functions]
        parts.append((start, names, np.asarray(code.sizes, np.int32), vectors))
        done += code.functions
        if 0 < encoded <= done:
            break
    rate = done / (seconds["words"] + seconds["vectors"])
    print(f"{machine()}, numpy {np.__version__}; {done:,} functions of {len(parts)} binaries")
    print(
        f"encoded per CPU second: {rate:,.0f} (vectors alone: {done / seconds['vectors']:,.0f}); "
        f"their features, before that: {done / seconds['features']:,.0f}; reading the analysis: "
        f"{done / seconds['analysis']:,.0f}"
    )
    everything = sum(seconds.values()) / done
    print(f"per CPU second from analysis to vector: {1 / everything:,.0f}; ", end="")
    print(f"{indexed:,} functions on two cores: {everything * indexed / 2:.0f} seconds")
    with tempfile.TemporaryDirectory() as folder:
        held = number = 0
        while held < indexed:
            part = parts[number % len(parts)]
            about = index.Binary("again", f"{number:064x}", "AMD64")
            with timed("index"):
                index.add(folder, encoder.identity, about, *part)
            held, number = held + len(part[1]), number + 1
        print(f"written to an index per CPU second: {held / seconds['index']:,.0f}")
        reads, queries = [], []
        for vector in parts[0][3][:5]:
            start = time.process_time()
            table = index.read(folder, encoder.identity, encoder.dimensions)
            read = time.process_time()
            index.nearest(table, vector[None], 10, encoder.calibration)
            reads.append(read - start)
            queries.append(time.process_time() - read)
        print(
            f"an index of {held:,} functions in {number} files: read in {np.median(reads):.2f} CPU "
            f"seconds, one function found in {np.median(queries):.2f}, both in "
            f"{np.median(np.add(reads, queries)):.2f}"
        )


def generate(folder: Path, size: int) -> tuple[Path, Path]:
    """Write random documents of up to 16 sentences; words are as frequent as in text."""
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
    device, sizes = utils.get_device(), models.Config.from_json(MODEL)
    work = MODEL, vocab_size, 32, max_len, max_pred, sizes.p_drop_attn, sizes.p_drop_hidden
    step = make_step(f"ours, {train.best_precision(device)}", work, device)
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        step()
        steps += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    return steps * 32 * max_len / (time.perf_counter() - start)


class Peak:
    """The peak memory of a process and its children together (bytes, without shared ones)."""

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
        total = 0
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended
            first = psutil.Process(self.pid)
            for process in (first, *first.children(recursive=True)):
                memory = process.memory_info()
                total += memory.rss - memory.shared
        return total


if __name__ == "__main__":
    command_line(main, pairs=pairs, input=feed, encoder=encode)
