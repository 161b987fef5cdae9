"""bench/gpu.sh: a trial run without a GPU, on a machine with little more than torch and numpy."""

import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from corpus.ids import read_corpus
from corpus.split import split_corpus
from tokenization import SPECIAL_TOKENS, CorpusTokenizer
from utils import sha256_of

ROOT = Path(__file__).resolve().parent.parent
# Packages that the GPU machine lacks, so nothing may import them.
LACKING = "angr sklearn scipy matplotlib tensorflow tensorboard transformers numba psutil pebble"
BARE = f"""
import importlib.util, runpy, sys

class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {LACKING.split()!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Lacking())
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name in {LACKING.split()!r} else real(name, *a)
sys.argv = ["gpu.py", *sys.argv[1:]]
sys.path.insert(0, {str(ROOT / "bench")!r})
runpy.run_path({str(ROOT / "bench/gpu.py")!r}, run_name="__main__")
"""


def run(folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", BARE, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(30)]
    documents = [
        "".join(" ".join(rng.choice(words, 12)) + "\n" for _ in range(8)) for _ in range(80)
    ]
    (folder / "corpus.txt").write_text("\n".join(documents))
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *words]) + "\n")
    run(folder, "pack", "--data_file", "corpus.txt", "--vocab", "vocab.txt", "--wheels", False)
    return folder


def test_ids_come_out_as_they_went_in(folder):
    tokenizer = CorpusTokenizer(folder / "vocab.txt")
    corpus = read_corpus(folder / "corpus.txt", tokenizer, sha256_of(folder / "vocab.txt"))
    with np.load(folder / "gpu/corpus.npz") as arrays:
        assert (arrays["tokens"] == corpus.tokens).all()
        assert (np.cumsum([0, *arrays["sentences"]]) == corpus.sentences).all()
        assert (np.cumsum([0, *arrays["documents"]]) == corpus.documents).all()
        assert (arrays["heldout"] == split_corpus(corpus).heldout).all()


def test_speed_reports_losses_and_rates(folder):
    run(folder, "speed", "--tiny", True)
    lines = (folder / "gpu/out/speed.txt").read_text().splitlines()
    off = [float(line.split(" off")[0].split()[-1]) for line in lines if line.endswith(" off")]
    assert len(off) == 3
    assert off[:2] == [0, 0]  # the CPU against itself
    assert 0 < off[2] < 0.1  # and in bfloat16
    assert any("waiting for data" in line for line in lines)
    (row,) = [line for line in lines if line.startswith("bert_tiny 512 x 64: ours")]
    tokens_per_second, mfu, _ = row.split("CUDA graphs")[1].split()
    assert float(tokens_per_second.replace(",", "")) > 0
    assert mfu.endswith("%")


def test_settings_trains_what_is_missing_and_prints_the_table(folder):
    """A row that is trained, on a corpus and functions made here, and one that was done before."""
    work, out = folder / "gpu/settings", folder / "gpu/out"
    for place in (work, out):
        place.mkdir(exist_ok=True)
    (work / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    text = (folder / "corpus.txt").read_text().replace(" word1 ", "\tword1 ")
    (work / "corpus.txt.xz").write_bytes(lzma.compress(text.encode()))
    texts = np.random.default_rng(0).integers(5, 35, (2, 40))
    functions = {"texts": 2 * texts.tolist(), "tasks": [[[0, 1], [2, 3], [2, 3]]]}
    (work / "functions.json").write_text(json.dumps(functions))
    rows = ["BERT's recipe", "whole instructions alone"]
    (work / "costs.json").write_text(json.dumps({rows[0]: 0.001, rows[1]: 0.0005}))
    done = {"row": rows[1], "seed": 0, "steps": 4, "measures": [0.1, 0.2, 0.3, 0.4]}
    (out / "settings.jsonl").write_text(json.dumps(done) + "\n")
    arguments = {"steps": 2, "seeds": 1, "workers": 1, "minutes": 600, "rows": ",".join(rows)}
    run(folder, "settings", *(f"--{name}={value}" for name, value in arguments.items()))
    before, line = map(json.loads, (out / "settings.jsonl").read_text().splitlines())
    assert before == done
    assert (line["row"], line["seed"], line["steps"]) == (rows[0], 0, 2)
    *masked, found = line["measures"]
    assert all(0 <= share < 1 for share in masked)
    assert found == 1  # the same text has the same vector
    assert (out / "reference-0/model_steps_2.pt").exists()
    table = (out / "settings.txt").read_text().splitlines()[-2:]
    assert [row.split()[-2] for row in table] == ["100.0%", "40.0%"]


def test_recipe_reports_a_curve_and_join_restores_its_weights(folder):
    run(folder, "recipe", "--tiny", True)
    text = (folder / "gpu/out/recipe.txt").read_text()
    assert text.count("masked tokens ") == 6  # at each of five steps, and the 5-gram's
    assert max(p.stat().st_size for p in (folder / "gpu/out").rglob("*") if p.is_file()) < 15e6
    assert list((folder / "gpu/out/log").glob("log.jsonl"))
    run(folder, "join", "--model_cfg", ROOT / "config/bert_tiny.json")
    state = torch.load(folder / "gpu/model.pt", weights_only=True)
    sizes = models.Config.from_json(ROOT / "config/bert_tiny.json")
    own = models.BertModel4Pretrain(sizes.with_vocab_size(35, "", "")).state_dict()
    assert state.keys() == own.keys()
    trained = torch.load(folder / "gpu/work/recipe/model_steps_5.pt", weights_only=True)
    for name, value in state.items():
        assert torch.equal(value, trained[name].bfloat16().float())
