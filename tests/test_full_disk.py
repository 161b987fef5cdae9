"""A disk that becomes full: a clear error, nothing is lost, and afterwards the same bytes.

As root, the disk is a small file system in memory; for other users, a limit on the size of files.
"""

import contextlib
import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SIZES, SMALL, TINY, compile_c

import checkpoint
import classify
import dataprocess
import gendata
import models
import pretrain
import samefunc
import utils
from binary.analysis import cache_file, load_analysis, save_analysis
from binary.cache import analyse_one
from binary.disassemble import analyse
from jobs.processes import in_processes
from tasks.catalogue import Mrpc
from tokenization import SPECIAL_TOKENS
from utils import DiskError

WORDS = ["mov", "push", "reg8", "imme", "call", "ptr"]
TRAINING = dict(seed=1, batch_size=4, lr=0.01, n_epochs=9, warmup=0.1, save_steps=4, total_steps=12)


class Disk:
    """A folder whose size can be changed: a tmpfs, or a limit on the size of each file."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
        self.mounted = os.geteuid() == 0 and shutil.which("mount") is not None
        if self.mounted:
            self.mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0

    @contextlib.contextmanager
    def with_room(self, more):
        """Within the block, at most ``more`` bytes can be written here."""
        if self.mounted:
            stat = os.statvfs(self.folder)
            used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
            self._resize(used + more)
        else:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (more // 4, hard))
        try:
            yield
        finally:
            if self.mounted:
                self._resize(64 << 20)
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    def _resize(self, size):
        pages = max(1, size // 4096)
        options = f"remount,size={pages * 4096}"
        subprocess.run(["mount", "-o", options, str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    disk = Disk(tmp_path / "disk")
    monkeypatch.chdir(disk.folder)
    yield disk
    monkeypatch.undo()
    if disk.mounted:
        subprocess.run(["umount", "-l", str(disk.folder)], check=True)


def contents(folder):
    """Return the bytes of all files except TensorBoard's, which contain times, and last.pt."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and "events." not in file.name and file.name != "last.pt"
    }


def fill_up(disk, main, reference, shares=(0.0, 0.3, 0.6, 0.9)):
    """Run ``main`` several times with too little space, and then with enough.

    Files that already had their final name stay. In the end everything is as in the folder
    ``reference``, where ``main`` ran undisturbed.
    """
    before = contents(disk.folder)
    final = contents(reference)
    new = sum(len(data) for name, data in final.items() if name not in before)
    messages = []
    for share in shares:
        with disk.with_room(int(share * new)):
            try:
                main()
            except DiskError as error:
                messages.append(str(error))
        now = contents(disk.folder)
        assert not [name for name in now if name.split("/")[-1].startswith(".")]
        assert now.items() <= final.items()
        assert before.items() <= now.items()
    assert messages
    assert all("full" in message or "size limit" in message for message in messages)
    assert "\n" not in "".join(messages)
    main()
    assert contents(disk.folder) == final


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    """Two builds of a small program and their analyses."""
    folder = tmp_path_factory.mktemp("analysed")
    for level in ("O0", "O2"):
        file = compile_c(TINY, folder / "binaries" / level / "tiny", f"-{level}", *SMALL)
        target = cache_file(folder / "output", utils.sha256_of(file))
        save_analysis(analyse(file), target)
    return folder


def test_gendata_survives_a_full_disk(disk, analysed, tmp_path):
    def main():
        gendata.main("tiny", "../binaries", "../output", "data", workers=1)

    for name in ("binaries", "output"):
        shutil.copytree(analysed / name, tmp_path / name)
    reference = tmp_path / "reference"
    reference.mkdir()
    with contextlib.chdir(reference):
        main()
    fill_up(disk, main, reference)


def test_saving_an_analysis_survives_a_full_disk(disk, analysed, tmp_path):
    file = next((analysed / "output").iterdir())
    analysis = load_analysis(file)

    def main():
        save_analysis(analysis, "output/analysis.npz")

    (tmp_path / "reference/output").mkdir(parents=True)
    shutil.copy(file, tmp_path / "reference/output/analysis.npz")
    fill_up(disk, main, tmp_path / "reference")


def test_a_full_disk_is_no_binarys_fault(disk, analysed):
    """One error stops everything, instead of a line for each binary."""
    jobs = ((i, (str(analysed / "binaries/O0/tiny"), Path("output", str(i)))) for i in range(3))
    with disk.with_room(0), pytest.raises(DiskError):
        list(in_processes(analyse_one, jobs, 3, 1, "tests"))


def test_dataprocess_survives_a_full_disk(disk, analysed, tmp_path):
    def main():
        dataprocess.main(outputDir=str(analysed / "output"), workers=1)

    gendata.main("tiny", str(analysed / "binaries"), str(analysed / "output"), workers=1)
    shutil.copytree(disk.folder, tmp_path / "reference")
    with contextlib.chdir(tmp_path / "reference"):
        main()
    fill_up(disk, main, tmp_path / "reference")


def make_training(folder):
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, 8)) + "\n" * (1 + (i % 4 == 3)) for i in range(400)]
    (folder / "data").mkdir(parents=True)
    (folder / "data/corpus.txt").write_text("".join(lines))
    (folder / "vocab.txt").write_text("".join(f"{t}\n" for t in [*SPECIAL_TOKENS, *WORDS]))
    (folder / "train.json").write_text(json.dumps(TRAINING))
    (folder / "model.json").write_text(json.dumps(SIZES))
    pairs = [f"{rng.choice(['same', 'different'])}\t{line}\t{line}" for line in lines[:60]]
    rows = "".join(row.replace("\n", "") + "\n" for row in pairs)
    (folder / "pairs.tsv").write_text("label\ttext_a\ttext_b\n" + rows)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_pretrain_survives_a_full_disk(disk, tmp_path):
    def main():
        torch.manual_seed(99)  # the global state must not matter
        pretrain.main("train.json", "model.json", vocab="vocab.txt", max_len=12, max_pred=3)

    make_training(tmp_path / "reference")
    make_training(disk.folder)
    with contextlib.chdir(tmp_path / "reference"):
        main()
    fill_up(disk, main, tmp_path / "reference", shares=(0.0, 0.3, 0.5, 0.9))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("task", ["mrpc", "samefunc"])
def test_classify_survives_a_full_disk(disk, tmp_path, task, monkeypatch):
    monkeypatch.setattr(Mrpc, "text_a", "text_a")
    monkeypatch.setattr(Mrpc, "text_b", "text_b")
    monkeypatch.setattr(Mrpc, "label", "label")
    monkeypatch.setattr(Mrpc, "labels", ("different", "same"))
    start = {"model_cfg": "model.json", "vocab": "vocab.txt", "save_dir": "out", "max_len": 12}

    def main():
        classify.main(task, "train.json", data_file="pairs.tsv", **start)
        model = "out/model_steps_12.pt"
        classify.main(task, data_file="pairs.tsv", model_file=model, mode="eval")

    make_training(tmp_path / "reference")
    make_training(disk.folder)
    with contextlib.chdir(tmp_path / "reference"):
        main()
    fill_up(disk, main, tmp_path / "reference", shares=(0.0, 0.3, 0.8))


def test_samefunc_survives_a_full_disk(disk, tmp_path):
    rows = [("same", "mov reg8 " * i, "mov", "p/b/f", "p/c/f") for i in range(99)]

    def main():
        samefunc.write_tables("data/samefunc", dict.fromkeys(("train", "dev", "test"), rows))

    (tmp_path / "reference").mkdir()
    with contextlib.chdir(tmp_path / "reference"):
        main()
    fill_up(disk, main, tmp_path / "reference")


def test_export_survives_a_full_disk(disk, tmp_path):
    make_training(tmp_path / "model")
    sizes = models.Config(**SIZES, vocab_size=len(SPECIAL_TOKENS) + len(WORDS))
    torch.manual_seed(0)
    checkpoint.save_pt(models.BertModel4Pretrain(sizes).state_dict(), tmp_path / "model/model.pt")
    given = {"model_cfg": "../model/model.json", "vocab": "../model/vocab.txt"}

    def main():
        if not Path("to").exists():
            checkpoint.export_model("../model/model.pt", "to", **given)

    (tmp_path / "reference").mkdir()
    with contextlib.chdir(tmp_path / "reference"):
        main()
    fill_up(disk, main, tmp_path / "reference", shares=(0.0, 0.5, 0.8, 0.95))
