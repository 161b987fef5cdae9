"""Do all commands report damaged files properly? python bench/broken_inputs.py --path DIR

The pipeline runs once on two builds of a program, with a tiny model. Then, in each trial,
bench/mutants.py changes one of the files that a command reads, and the command runs as a user would
run it. It must end with exit code 0, 1 or 3, within the limits of time and memory, and without a
traceback; with exit code 1 it must print one line that begins with "error:". Anything else is
printed, and then this bench ends with exit code 1.

The commands run in forks of a process that has imported everything, because importing angr takes
ten seconds.
"""

import collections
import dataclasses
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import forks
import mutants
import numpy as np
from shared import machine
from stress import MODEL, SIZES, TRAINING, write_pairs

import utils
from binary.builds import find_binaries
from terminal.command_line import command_line

TIME_LIMIT = 120  # maximum CPU seconds of a command
MEMORY_LIMIT = 6 << 30  # maximum bytes of writable memory, including what the fork inherited
LIMITS = {resource.RLIMIT_CPU: TIME_LIMIT, resource.RLIMIT_DATA: MEMORY_LIMIT}
WELL = (0, 1, 3)  # allowed exit codes
PREDICT = ["pretrain.py", "predict", "--line", "mov [MASK] imme"]


@dataclasses.dataclass(frozen=True)
class Input:
    """Files of one kind, how they are changed, and the command that reads them.

    Attributes
    ----------
    files : str
        Pattern of files in the folder that `make_project` fills; one of them is changed.
    change : callable
        (content, random numbers) -> changed content.
    command : list of str
        Script and arguments.
    """

    files: str
    change: Callable[[bytes, random.Random], bytes]
    command: list[str]


DIFF = ["diff.py", "binaries/a/p", "binaries/b/p", "--json", "d.json", "--html", "d.html"]
PRETRAIN = ["pretrain.py", *SIZES, "--max_pred", "6"]
CLASSIFY = ["classify.py", *SIZES, "--vocab", "vocab/vocab.txt", "--data_file", "pairs.tsv"]
INPUTS = {
    "binary": Input("binaries/a/p", mutants.change_bytes, DIFF),
    "analysis, of a pair": Input("output/*.npz", mutants.change_npz, ["gendata.py", "show", "0"]),
    "analysis, for a comparison": Input("output/*.npz", mutants.change_npz, DIFF),
    "walks": Input("data/0/walks.npz", mutants.change_npz, ["dataprocess.py"]),
    "pair.json": Input("data/0/pair.json", mutants.change_json, ["dataprocess.py"]),
    "corpus.txt": Input("data/corpus.txt", mutants.change_lines, PRETRAIN),
    "corpus.json": Input("data/corpus.json", mutants.change_json, PRETRAIN),
    "token ids": Input("data/corpus.ids/*.bin", mutants.change_bytes, PRETRAIN),
    "vocabulary": Input("vocab/vocab.txt", mutants.change_lines, PRETRAIN),
    "training settings": Input("train.json", mutants.change_json, PRETRAIN),
    "sizes of a model": Input("model.json", mutants.change_json, PRETRAIN),
    "last.pt": Input("out/last.pt", mutants.change_pt, PRETRAIN),
    "model of pretrain.py": Input(
        "out/model_steps_*.pt", mutants.change_pt, [*PREDICT, "--model_file", "MODEL"]
    ),
    "TSV": Input("pairs.tsv", mutants.change_lines, CLASSIFY),
    "Hugging Face folder": Input(
        "hf/*.json", mutants.change_json, ["checkpoint.py", "import", "--source", "hf", "--to", "x"]
    ),
    "safetensors": Input(
        "hf/model.safetensors",
        mutants.change_safetensors,
        ["checkpoint.py", "import", "--source", "hf", "--to", "x"],
    ),
    "TensorFlow checkpoint": Input(
        "tf/*", mutants.change_bytes, ["checkpoint.py", "import", "--source", "tf", "--to", "x"]
    ),
    "index": Input("index/*.parquet", mutants.change_parquet, ["search.py", "scan", DIFF[1]]),
    "model of diff.py": Input(
        "m.safetensors", mutants.change_safetensors, [*DIFF, "--model_file", "m.safetensors"]
    ),
    "anchors": Input("anchors.txt", mutants.change_lines, [*DIFF, "--anchors", "anchors.txt"]),
    "BinExport": Input(
        "exported/*.BinExport",
        mutants.change_bytes,
        ["diff.py", "exported/p.old.BinExport", "exported/p.new.BinExport", "--json", "d.json"],
    ),
}


def main(
    path: str = str(ROOT / "experiment_data/coreutils/binaries"),
    biname: str = "chroot",
    trials: int = 20,
    kinds: str = "all",
    seed: int = 0,
) -> int:
    """Print for each kind of file how its command ended.

    Parameters
    ----------
    path : str
        Folder of builds, as for gendata.py.
    biname : str
        The program; its first two builds are used.
    trials : int
        Number of changed files of each kind.
    kinds : str
        Kinds to try, separated by semicolons; INPUTS in this file has the list.
    seed : int
        Random seed of the changes.
    """
    first, second = (binary["path"] for binary in find_binaries(path, biname)[:2])
    chosen = list(INPUTS) if kinds == "all" else kinds.split(";")
    print(machine())
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder, "project")
        make_project(project, first, second)
        print(f"{'changed file':28} {'tried':>6} {'exit 0':>7} {'exit 1':>7} {'exit 3':>7}  failed")
        for kind in chosen:
            ends: collections.Counter = collections.Counter()
            unchanged = dataclasses.replace(INPUTS[kind], change=lambda content, rng: content)
            code, fault = try_command(unchanged, project, Path(folder, "work"), random.Random(0))
            if code or fault:
                raise utils.UserError(f"{kind}: exit code {code} with unchanged files")
            for trial in range(trials):
                rng = random.Random(f"{seed} {kind} {trial}")
                code, fault = try_command(INPUTS[kind], project, Path(folder, "work"), rng)
                ends["failed" if fault else code] += 1
                if fault:
                    print(f"{kind}, trial {trial}: {fault}", file=sys.stderr)
            print(
                f"{kind:28} {trials:6,} {ends[0]:7,} {ends[1]:7,} {ends[3]:7,}  {ends['failed']}",
                flush=True,
            )
            failed += ends["failed"]
    return 1 if failed else 0


def make_project(project: Path, first: str, second: str) -> None:
    """Run the pipeline on two binaries in a folder, so that it contains all kinds of files."""
    for build, binary in (("a", first), ("b", second)):
        (project / "binaries" / build).mkdir(parents=True)
        shutil.copy(binary, project / "binaries" / build / "p")
    for name, settings in (("train", TRAINING | {"total_steps": 20}), ("model", MODEL)):
        (project / f"{name}.json").write_text(json.dumps(settings))

    def run(*command: str) -> None:
        code, said = run_in_fork(list(command), project)
        if code:
            raise utils.UserError(f"{' '.join(command)} ended with exit code {code}: {said}")

    run("gendata.py", "--path", "binaries", "--biname", "p", "--workers", "2")
    run("dataprocess.py")
    run(*PRETRAIN)
    model = newest_model(project)
    run("checkpoint.py", "export", "--model_file", model, "--to", "hf")
    write_tensorflow(project)
    run("search.py", "index", "binaries/b/p")
    run(*DIFF, "--binexport", "exported")
    matches = json.loads((project / "d.json").read_text())["functions"]
    pairs = [
        (match["old"]["address"], match["new"]["address"])
        for match in matches
        if match["old"] and match["new"]
    ]
    (project / "anchors.txt").write_text("".join(f"{old} {new}\n" for old, new in pairs[:4]))
    shutil.copy(ROOT / "model/diff.safetensors", project / "m.safetensors")
    shutil.copy(ROOT / "model/encoder.safetensors", project)
    write_pairs(project, np.random.default_rng(0))


def newest_model(project: Path) -> str:
    """Return the file of the last model that was trained, relative to the project."""
    models = sorted(project.glob("out/model_steps_*.pt"), key=lambda file: len(file.name))
    return str(models[-1].relative_to(project))


def try_command(
    kind: Input, project: Path, work: Path, rng: random.Random
) -> tuple[int, str | None]:
    """Change one file in a copy of the project and run the command there.

    Returns
    -------
    int
        The command's exit code.
    str or None
        What was wrong with its end, if anything.
    """
    shutil.copytree(project, work)
    try:
        file = rng.choice(sorted(file for file in work.glob(kind.files) if file.is_file()))
        content = file.read_bytes()
        file.write_bytes(kind.change(content, rng))
        command = [newest_model(project) if word == "MODEL" else word for word in kind.command]
        code, said = run_in_fork(command, work)
        what = f"{' '.join(command)}, {file.relative_to(work)}"
        if code not in WELL:
            return code, f"{what}: exit code {code}: {said[-600:]}"
        errors = [line for line in said.splitlines() if line.startswith("error:")]
        if "Traceback" in said or (code == 1 and len(errors) != 1):
            return code, f"{what}: not a one-line error: {said[-600:]}"
        return code, None
    finally:
        shutil.rmtree(work)


def run_in_fork(command: list[str], folder: Path) -> tuple[int, str]:
    """Run a script in a fork of this process; return its exit code and its stderr."""
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        child = forks.start(command, folder, errors, LIMITS)
        code = forks.wait(child, 10 * TIME_LIMIT)
        if code is None:  # it hangs without using the CPU
            os.kill(child, signal.SIGKILL)
            code = forks.wait(child, math.inf)
        errors.seek(0)
        return code, errors.read()


def write_tensorflow(project: Path) -> None:
    """Write a TensorFlow checkpoint of a tiny BERT, made by the tests' code, and its vocabulary."""
    program = (
        "import json, sys; from google_bert import *; "
        "write_tensorflow('tf/bert_model.ckpt', google_variables()); "
        "json.dump(CONFIG, open('tf/bert_config.json', 'w')); "
        "special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']; "
        "words = special + [f'w{i}' for i in range(VOCAB - len(special))]; "
        "open('tf/vocab.txt', 'w').write(''.join(f'{word}\\n' for word in words))"
    )
    (project / "tf").mkdir()
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-c", program]
    subprocess.run(command, cwd=project, env=environment, check=True, capture_output=True)


if __name__ == "__main__":
    command_line(main)
