"""contrast.py: labels from symbols, the loss, a whole training."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import contrast
import features
import similarity

ROOT = Path(__file__).resolve().parent.parent


def test_log_shares_are_a_softmax_with_none():
    index = torch.tensor([0, 2, 0, 2, 2])
    logit = torch.tensor([1.0, 50.0, -2.0, 3.0, 49.0])
    shares, none = contrast.log_shares(logit, index, 3)
    for i in range(3):
        expected = torch.log_softmax(torch.cat([logit[index == i], torch.zeros(1)]), 0)
        assert torch.allclose(torch.cat([shares[index == i], none[i : i + 1]]), expected)


def test_network_is_the_perceptron():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (50, 4)).astype(np.float32)
    torch.manual_seed(0)
    model = contrast.Perceptron(x, 8)
    assert np.allclose(model.network()(x), model(torch.from_numpy(x)).detach().numpy(), atol=1e-5)


def test_partners_have_the_same_name(analyses):
    first, second = (features.read_code(analyses[build]) for build in ("O0", "O2"))
    pair = contrast.make_pair("shapes", first, second)
    names = first.analysis.function_name, second.analysis.function_name
    candidates = pair.candidates
    asked = np.flatnonzero(pair.partner_a >= 0)
    assert {"main", "kind", "area", "usage", "copy"} <= {names[0][f] for f in asked}
    for f in asked:
        c = pair.partner_a[f]
        assert candidates.a[c] == f
        assert names[0][f] == names[1][candidates.b[c]]
        assert pair.partner_b[candidates.b[c]] == c


def test_no_partner_is_said_and_the_runtime_is_not_asked_for(analyses):
    code = features.read_code(analyses["O0"])
    stripped = features.read_code(analyses["O1-stripped"])
    pair = contrast.make_pair("shapes", code, stripped)
    names = code.analysis.function_name
    assert pair.partner_a[names.index("area")] == contrast.NONE
    assert pair.partner_a[names.index("_start")] == contrast.UNKNOWN


@pytest.fixture(scope="module")
def trained(builds, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    cfg = json.loads((ROOT / "config/contrast.json").read_text()) | {"n_epochs": 3}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    runs = []
    for to in ("a.safetensors", "b.safetensors"):
        arguments = [
            "--path",
            builds,
            "--held_out",
            "nothing",
            "--train_cfg",
            "cfg.json",
            "--to",
            to,
        ]
        runs.append(
            subprocess.run(
                [sys.executable, str(ROOT / "contrast.py"), *map(str, arguments)],
                cwd=folder,
                capture_output=True,
                text=True,
            )
        )
    return folder, runs


def test_training_writes_networks_and_their_card(trained):
    folder, (run, _) = trained
    assert run.returncode == 0, run.stderr
    assert "pairs of builds of: shapes" in run.stdout
    networks = similarity.read_networks(folder / "a.safetensors")
    assert networks.keys() == {"function", "structure"}
    with safe_open(folder / "a.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["card"])["programs"] == "shapes"


def test_training_is_deterministic(trained):
    folder, _ = trained
    assert (folder / "a.safetensors").read_bytes() == (folder / "b.safetensors").read_bytes()


def test_nothing_to_learn_from(tmp_path):
    run = subprocess.run(
        [sys.executable, str(ROOT / "contrast.py"), "--path", str(tmp_path / "none")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: no builds under {tmp_path / 'none'}")
