"""Do the scripts survive kill -9, parallel runs and broken files? bench/stress.py --path DIR

Each stage runs once without disturbance. Then it runs again on the same input, SIGKILL ends its
whole process group at a random moment, and the same command runs again. When a run comes to its
end, all files are compared with those of the undisturbed run (except TensorBoard's files, which
contain times, and last.pt, which contains the same numbers in another order). Then the stage starts
from nothing again, until it was killed as often as requested. The runs are forks of a process that
has imported everything, so that they are killed at work, not while they load libraries.

Next, several gendata.py run at once in one folder, some with other settings; each must succeed, or
report that another run writes there. Finally, files of all kinds that the project reads are changed
and read (bench/mutants.py). The exit code is 1 if any byte differs, or if a run fails without a
one-sentence error.
"""

import collections
import contextlib
import io
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import mutants as changed_files
import numpy as np
from shared import machine

import utils
from binary.analysis import load_analysis
from binary.builds import find_binaries
from binary.cache import analyse_files
from jobs.processes import in_processes
from terminal.command_line import command_line

MODEL = dict(dim=32, n_layers=1, n_heads=2, dim_ff=64, p_drop_hidden=0.1, p_drop_attn=0.1)
MODEL |= dict(max_len=32, n_segments=2)
TRAINING = dict(seed=1, batch_size=8, lr=0.001, n_epochs=9, warmup=0.1, save_steps=10)
TRAINING |= dict(total_steps=80)
CONTRAST = dict(seed=0, hidden=8, lr=0.01, weight_decay=0.01, n_epochs=2, networks=1, pairs=3)
STAGE = dict(seed=0, batch_size=16, lr=1e-3, words_lr=1e-3, n_epochs=99, warmup=0.5, save_steps=10)
STAGE |= dict(name="stage", total_steps=20)
ENCODER = dict(model=MODEL | dict(vocab_size=1, max_len=258, n_segments=3, positions="rotary"))
ENCODER |= dict(pretraining=[STAGE | dict(objectives={"masked": 1.0, "walks": 1.0})])
ENCODER |= dict(fine_tuning=[STAGE | dict(objectives={"same": 1.0})])
# The stage that makes the input of another.
BEFORE = {"dataprocess": "gendata", "samefunc": "gendata"}
BEFORE |= {"pretrain": "dataprocess", "classify": "pretrain", "train": "gendata"}
BEFORE |= {"functions": "gendata", "before": "functions", "encoder": "before"}
TOGETHER = 4  # number of gendata.py that run at once
BATCH = 250  # number of changed files per process
SIZES = ["--train_cfg", "train.json", "--model_cfg", "model.json", "--max_len", "32"]


def main(
    path: str = str(ROOT / "experiment_data/coreutils/binaries"),
    biname: str = "chroot",
    builds: int = 3,
    kills: int = 20,
    mutants: int = 200,
    stages: str = "gendata,dataprocess,pretrain,classify,diff,search,samefunc,"
    "train,functions,before,encoder",
    at_once: bool = True,
    kinds: str = "all",
    seed: int = 0,
) -> int:
    """Print for each stage how often it was killed, how often it ended, and how many bytes differ.

    Parameters
    ----------
    path : str
        Folder of builds, as for gendata.py.
    biname : str
        The program.
    builds : int
        Number of its builds to use.
    kills : int
        How often to kill each stage.
    mutants : int
        Number of changed files of each kind.
    stages : str
        The stages to kill. The stages that make their input run first, without kills.
    at_once : bool
        Also run several gendata.py at once in one folder.
    kinds : str
        Kinds of files to change, separated by commas; bench/mutants.py has the list.
    seed : int
        Random seed of the moments and the changes.
    """
    binaries = find_binaries(path, biname)
    chosen = binaries[:: -(-len(binaries) // builds)]
    rng = np.random.default_rng(seed)
    print(machine())
    print(f"{len(chosen)} builds of {biname}")
    lost = failed = 0
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder, "inputs")
        for binary in chosen:
            target = inputs / "binaries" / binary["build"] / biname
            target.parent.mkdir(parents=True)
            shutil.copy(binary["path"], target)
        settings_of = {"train": TRAINING, "model": MODEL, "contrast": CONTRAST, "encoder": ENCODER}
        for name, settings in settings_of.items():
            (inputs / f"{name}.json").write_text(json.dumps(settings))
        shutil.copy(ROOT / "model/encoder.safetensors", inputs)
        gendata = ["gendata.py", "--path", "binaries", "--biname", biname, "--workers", "2"]
        old, new = (f"binaries/{binary['build']}/{biname}" for binary in chosen[:2])
        commands = {
            "gendata": gendata,
            "dataprocess": ["dataprocess.py"],
            "pretrain": ["pretrain.py", *SIZES, "--max_pred", "6"],
            "classify": [
                *("classify.py", *SIZES, "--vocab", "vocab/vocab.txt", "--data_file", "pairs.tsv")
            ],
            "diff": ["diff.py", old, new, "--json", "d.json", "--csv", "d.csv", "--html", "d.html"],
            "search": ["search.py", "index", "binaries"],
            "samefunc": ["samefunc.py", "twins", "--outputDir", "output"],
            "train": [
                *("matching.train", "--data", "data", "--held_out", "none"),
                *("--train_cfg", "contrast.json", "--to", "m.safetensors"),
            ],
            "functions": ["dataprocess.py", "functions"],
            "before": ["pretrain.py", "functions", "--train_cfg", "encoder.json"],
            "encoder": [
                *("classify.py", "functions", "--train_cfg", "encoder.json"),
                *("--pretrain_file", "out-functions/0-stage/model_steps_20.pt"),
                *("--to", "e.safetensors"),
            ],
        }
        after: dict[str | None, Path] = {None: inputs}
        for stage in filter(None, stages.split(",")):
            lost += stress(stage, commands, after, kills, rng)
        if at_once:
            lost += together(gendata, inputs)
        file = inputs / "binaries" / chosen[0]["build"] / biname
        if mutants:
            failed = change_files(str(file), mutants, seed, Path(folder), kinds)
    return 1 if lost or failed else 0


def together(command: list[str], inputs: Path) -> int:
    """Run a command several times at once, every second one with other settings, then once alone.

    Returns
    -------
    int
        Number of bytes that differ from those of a single run.
    """
    import forks  # here, for the reason given in until_the_end

    work, alone = inputs.with_name("together"), inputs.with_name("alone")
    for folder in (work, alone):
        shutil.copytree(inputs, folder)
    run_well(command, alone)
    others = [*command, "--num_walks", "3"]
    with contextlib.ExitStack() as opened:
        runs = []
        for i in range(TOGETHER):
            errors = opened.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            runs.append((forks.start(others if i % 2 else command, work, errors), errors))
        count = collections.Counter()
        for child, errors in runs:
            code = forks.wait(child, math.inf)
            errors.seek(0)
            said = errors.read()
            if code == 1 and said.count("\n") == 1 and "another run writes" in said:
                count["refused in one sentence"] += 1
            elif code == 0:
                count["ended well"] += 1
            else:
                raise utils.UserError(f"one of several gendata.py ended with {code}: {said}")
    run_well(command, work)
    lost = differing(alone, work)
    ends = ", ".join(f"{number} {what}" for what, number in count.items())
    print(f"{TOGETHER} gendata.py at once on one folder: {ends}; {lost:,} bytes lost", flush=True)
    return lost


def run_well(command: list[str], folder: Path) -> None:
    """Run a command; raise a `utils.UserError` if its exit code is not 0."""
    code, _ = until_the_end(command, folder, 0, 0.0, np.random.default_rng())
    if code:
        raise utils.UserError(f"{command[0]} ended with exit code {code}")


def change_files(binary: str, number: int, seed: int, folder: Path, kinds: str) -> int:
    """Change and read files of all kinds; print the outcomes, return the number of failures."""
    analyses, _ = analyse_files([binary], str(folder / "output"), 1)
    analysis = analyses[binary]
    failures = 0
    print(f"{'changed files':22} {'tried':>6} {'read':>6} {'refused':>8}  failed, slowest (s)")
    for name in changed_files.KINDS if kinds == "all" else kinds.split(","):
        parts = range(0, number, BATCH)
        jobs = (
            (first, (name, analysis, folder / f"{name}-{first}", seed, first, number))
            for first in parts
        )
        count = collections.Counter()
        for first, error in in_processes(
            change_some, jobs, len(parts), 2, name, time_limit=300, memory_limit=4
        ):
            if error is not None:
                count["failed"] += 1
                print(f"{name}, from {first} on: {error}", file=sys.stderr)
                continue
            found = json.loads((folder / f"{name}-{first}" / "found.json").read_text())
            count.update({key: found[key] for key in ("read", "refused", "failed")})
            count["slowest"] = max(count["slowest"], found["slowest"])
            for failure in found["failures"]:
                print(failure, file=sys.stderr)
        failures += count["failed"]
        print(
            f"{name:22} {number:6,} {count['read']:6,} {count['refused']:8,}  {count['failed']}, "
            f"{count['slowest']:.2f}",
            flush=True,
        )
    return failures


def change_some(
    name: str, analysis: Path, folder: Path, seed: int, first: int, number: int
) -> None:
    """Change and read files of one kind, some of the trials; runs in a worker process."""
    kind = changed_files.KINDS[name]
    good = folder / "files"
    good.mkdir(parents=True)
    with contextlib.redirect_stdout(io.StringIO()):
        kind.make(good, load_analysis(analysis))
    found = {"read": 0, "refused": 0, "failed": 0, "slowest": 0.0, "failures": []}
    for i in range(first, min(first + BATCH, number)):
        began = time.process_time()
        try:
            refused = changed_files.try_mutant(kind, good, random.Random(f"{seed} {name} {i}"))
            found["refused" if refused else "read"] += 1
        except AssertionError as error:
            found["failed"] += 1
            found["failures"].append(f"{name}, {i}: {error}")
        found["slowest"] = max(found["slowest"], time.process_time() - began)
    (folder / "found.json").write_text(json.dumps(found))


def stress(
    stage: str,
    commands: dict[str, list[str]],
    after: dict[str | None, Path],
    kills: int,
    rng: np.random.Generator,
) -> int:
    """Kill a stage many times; return the number of bytes that differ from an undisturbed run.

    ``after`` maps stages to the folders of their undisturbed runs; this stage's folder is added.
    """
    command = commands[stage]
    reference, seconds = undisturbed(stage, commands, after, rng)
    inputs = after[BEFORE.get(stage)]
    killed = ended = lost = 0
    work = inputs.with_name("work")
    while killed < kills:
        shutil.copytree(inputs, work)
        code, more = until_the_end(command, work, kills - killed, seconds, rng)
        killed += more
        ended += 1
        if code != 0:
            raise utils.UserError(f"{stage} ended with exit code {code} after a kill")
        lost += differing(reference, work)
        shutil.rmtree(work)
    print(f"{stage:11} killed {killed} times, came to its end {ended} times", end=", ")
    print(f"{lost:,} bytes lost ({seconds:.1f} s undisturbed)", flush=True)
    return lost


def undisturbed(
    stage: str,
    commands: dict[str, list[str]],
    after: dict[str | None, Path],
    rng: np.random.Generator,
) -> tuple[Path, float]:
    """Run a stage and those that make its input once; return its folder and its seconds."""
    before = BEFORE.get(stage)
    if before not in after:
        undisturbed(str(before), commands, after, rng)
    folder = after[None].with_name(f"after-{stage}")
    if stage == "classify":
        write_pairs(after[before], rng)
    shutil.copytree(after[before], folder)
    began = time.perf_counter()
    run_well(commands[stage], folder)
    after[stage] = folder
    return folder, time.perf_counter() - began


def until_the_end(
    command: list[str], work: Path, kills: int, seconds: float, rng: np.random.Generator
) -> tuple[int, int]:
    """Start a command again and again, and kill it up to ``kills`` times, until one run ends.

    Returns
    -------
    int
        The exit code of the last run. If it is not 0, its error messages are printed.
    int
        How often it was killed.
    """
    import forks  # here, because it takes ten seconds, and the tests import this file

    killed = 0
    while True:
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            child = forks.start(command, work, errors)
            # The last run is not killed, so that there is a comparison after the last kill as well.
            code = forks.wait(child, rng.uniform(0, seconds) if killed < kills else math.inf)
            if code is not None:
                errors.seek(0)
                print(errors.read() if code else "", end="", file=sys.stderr)
                return code, killed
            with contextlib.suppress(ProcessLookupError):  # it has not made its process group yet
                os.killpg(child, signal.SIGKILL)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed += 1


def differing(reference: Path, work: Path) -> int:
    """Return the number of bytes in files that differ or that exist in only one folder."""
    one, two = contents(reference), contents(work)
    names = [name for name in one.keys() | two.keys() if one.get(name) != two.get(name)]
    for name in names:
        print(f"{name} differs", file=sys.stderr)
    return sum(max(len(side.get(name, b"")) for side in (one, two)) for name in names)


def contents(folder: Path) -> dict[str, bytes]:
    """Return name -> bytes of all files that must be the same."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and "events." not in file.name and file.name != "last.pt"
    }


def write_pairs(folder: Path, rng: np.random.Generator) -> None:
    """Write pairs of sentences of the corpus with random labels, for classify.py to train on."""
    text = (folder / "data/corpus.txt").read_text().replace("\t", " ")  # tabs divide columns here
    lines = [line for line in text.splitlines() if line]
    rows = ["label\ttext_a\ttext_b"]
    for one, two in rng.integers(len(lines), size=(640, 2)):
        rows.append(f"{('same', 'different')[one % 2]}\t{lines[one]}\t{lines[two]}")
    (folder / "pairs.tsv").write_text("".join(f"{row}\n" for row in rows))


if __name__ == "__main__":
    command_line(main)
