"""What survives kill -9, and what broken files do: python bench/stress.py --path DIR

gendata.py, dataprocess.py, pretrain.py and classify.py each run once undisturbed. Then each runs
again and again on the same input; SIGKILL ends its whole process group at a random moment of the
undisturbed run's time, and the same command is given once more. Whenever it comes to its end, every
file is compared with the undisturbed run's (but TensorBoard's, which hold times, and last.pt, which
holds equal numbers in another order of bytes); then it starts anew, until it was killed so often as
asked for. At last copies of a binary with flipped bits are analysed. A difference ends with exit
code 1.
"""

import collections
import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

import utils
from binary.builds import find_binaries
from binary.cache import analyse_one
from jobs.processes import in_processes
from terminal.command_line import command_line

MODEL = dict(dim=32, n_layers=1, n_heads=2, dim_ff=64, p_drop_hidden=0.1, p_drop_attn=0.1)
MODEL |= dict(max_len=32, n_segments=2)
TRAINING = dict(seed=1, batch_size=8, lr=0.001, n_epochs=9, warmup=0.1, save_steps=10)
TRAINING |= dict(total_steps=80)
SIZES = ["--train_cfg", "train.json", "--model_cfg", "model.json", "--max_len", "32"]


def main(
    path: str = str(ROOT / "experiment_data/coreutils/binaries"),
    biname: str = "chroot",
    builds: int = 3,
    kills: int = 20,
    mutants: int = 200,
    seed: int = 0,
) -> int:
    """Print for each stage how often it was killed, how often it ended, and how many bytes differ.

    Parameters
    ----------
    path : str
        The builds, as for gendata.py.
    biname : str
        The program.
    builds : int
        How many of its builds are used.
    kills : int
        How often each stage is killed.
    mutants : int
        Copies with flipped bits.
    seed : int
        Seed of the moments and bits.
    """
    binaries = find_binaries(path, biname)
    chosen = binaries[:: -(-len(binaries) // builds)]
    rng = np.random.default_rng(seed)
    print(f"{datetime.date.today()}, {platform.machine()}, Python {platform.python_version()}")
    print(f"{len(chosen)} builds of {biname}")
    lost = 0
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder, "inputs")
        for binary in chosen:
            target = inputs / "binaries" / binary["build"] / biname
            target.parent.mkdir(parents=True)
            shutil.copy(binary["path"], target)
        (inputs / "train.json").write_text(json.dumps(TRAINING))
        (inputs / "model.json").write_text(json.dumps(MODEL))
        for arguments in (
            ["gendata.py", "--path", "binaries", "--biname", biname, "--workers", "2"],
            ["dataprocess.py"],
            ["pretrain.py", *SIZES, "--max_pred", "6"],
            ["classify.py", *SIZES, "--vocab", "vocab/vocab.txt", "--data_file", "pairs.tsv"],
        ):
            if arguments[0] == "classify.py":
                write_pairs(inputs, rng)
            inputs, bytes_lost = stress(arguments, inputs, kills, rng)
            lost += bytes_lost
        file = inputs / "binaries" / chosen[0]["build"] / biname
        print(f"{mutants} mutants: {outcomes(mutate(file.read_bytes(), mutants, seed), folder)}")
    return 1 if lost else 0


def stress(
    arguments: list[str], inputs: Path, kills: int, rng: np.random.Generator
) -> tuple[Path, int]:
    """Kill a stage again and again; return the undisturbed run's folder, and bytes that differ."""
    command = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
    reference = inputs.with_name(f"after-{arguments[0]}")
    shutil.copytree(inputs, reference)
    began = time.perf_counter()
    subprocess.run(command, cwd=reference, check=True, capture_output=True)
    seconds = time.perf_counter() - began
    killed = ended = lost = 0
    work = inputs.with_name("work")
    while killed < kills:
        shutil.copytree(inputs, work)
        while True:
            # The last run is let through, so that the last kill is followed by a comparison, too.
            moment = rng.uniform(0, seconds) if killed < kills else None
            process = subprocess.Popen(
                command,
                cwd=work,
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                code = process.wait(moment)
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                killed += 1
        ended += 1
        if code != 0:
            raise utils.UserError(f"{arguments[0]} ended with exit code {code} after a kill")
        lost += differing(reference, work)
        shutil.rmtree(work)
    print(f"{arguments[0]:15} killed {killed} times, came to its end {ended} times", end=", ")
    print(f"{lost:,} bytes lost ({seconds:.1f} s undisturbed)", flush=True)
    return reference, lost


def differing(reference: Path, work: Path) -> int:
    """Return how many bytes are in files that only one folder has, or that differ."""
    one, two = contents(reference), contents(work)
    names = [name for name in one.keys() | two.keys() if one.get(name) != two.get(name)]
    for name in names:
        print(f"{name} differs", file=sys.stderr)
    return sum(max(len(side.get(name, b"")) for side in (one, two)) for name in names)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files that must be the same."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and "events." not in file.name and file.name != "last.pt"
    }


def write_pairs(folder: Path, rng: np.random.Generator) -> None:
    """Write pairs of sentences of the corpus with random labels: something to fine-tune on."""
    lines = [line for line in (folder / "data/corpus.txt").read_text().splitlines() if line]
    rows = ["label\ttext_a\ttext_b"]
    for one, two in rng.integers(len(lines), size=(640, 2)):
        rows.append(f"{('same', 'different')[one % 2]}\t{lines[one]}\t{lines[two]}")
    (folder / "pairs.tsv").write_text("".join(f"{row}\n" for row in rows))


def mutate(content: bytes, number: int, seed: int) -> list[bytes]:
    """Return copies with 1 to 64 bits flipped; every tenth is cut off, too.

    Every other copy has its flips in the first KiB, where the headers are.
    """
    rng = np.random.default_rng(seed)
    made = []
    for i in range(number):
        data = np.frombuffer(content, np.uint8).copy()
        where = rng.integers(min(len(data), 1024) if i % 2 else len(data), size=2 ** (i % 7))
        data[where] ^= np.uint8(1) << rng.integers(8, size=len(where)).astype(np.uint8)
        made.append(data.tobytes()[: rng.integers(len(data)) if i % 10 == 0 else None])
    return made


def outcomes(mutants: list[bytes], folder: str) -> str:
    """Analyse the mutants as gendata.py does; return what became of them."""
    for i, content in enumerate(mutants):
        Path(folder, f"mutant-{i}").write_bytes(content)
    jobs = (
        (i, (str(Path(folder, f"mutant-{i}")), Path(folder, "mutants", str(i))))
        for i in range(len(mutants))
    )
    count = collections.Counter()
    for number, error in in_processes(
        analyse_one, jobs, len(mutants), 2, "mutants", time_limit=60, memory_limit=4
    ):
        if error is None:
            count["analysed"] += 1
        elif f"mutant-{number}" in error:
            count["refused"] += 1
        else:
            count[error] += 1
    return ", ".join(f"{number} {what}" for what, number in count.most_common())


if __name__ == "__main__":
    command_line(main)
