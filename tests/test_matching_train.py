"""matching/train.py: labels from symbols, the loss, a whole training."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, typed
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

import utils
from encoder.encoder import DEFAULT as ENCODER
from encoder.encoder import read_encoder
from matching.candidates import PLAUSIBLE, softmax_both_ways
from matching.model import Model, read_model
from matching.networks import (
    MatchingConfig,
    Perceptron,
    log_shares,
    plausible_part,
    train_neighbours,
    train_network,
    train_networks,
    train_similarity,
)
from matching.train import main, measure
from matching.training_pairs import NONE, UNKNOWN, draw_pairs, make_pair


@pytest.fixture(scope="module")
def cfg():
    return utils.read_config(MatchingConfig, ROOT / "config/contrast.json")


@pytest.fixture(scope="module")
def fitted():
    return read_encoder()


def test_log_shares_are_a_softmax_with_none():
    index = torch.tensor([0, 2, 0, 2, 2])
    logit = torch.tensor([1.0, 50.0, -2.0, 3.0, 49.0])
    shares, none = log_shares(logit, index, 3)
    for i in range(3):
        expected = torch.log_softmax(torch.cat([logit[index == i], torch.zeros(1)]), 0)
        assert torch.allclose(torch.cat([shares[index == i], none[i : i + 1]]), expected)


def test_network_is_the_perceptron():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (50, 4)).astype(np.float32)
    torch.manual_seed(0)
    model = Perceptron(x, 8)
    assert np.allclose(model.network()(x), model(torch.from_numpy(x)).detach().numpy(), atol=1e-5)


def test_networks_are_their_mean(codes, fitted, cfg):
    cfg = dataclasses.replace(cfg, n_epochs=1, networks=3)
    pair = make_pair(codes["O0"], codes["O2"], fitted)
    x = pair.candidates.measures
    single = [train_network([(x, pair)], cfg, cfg.seed + i, "one")(x) for i in range(3)]
    assert not np.allclose(single[0], single[1], atol=1e-3)
    mean = train_networks([(x, pair)], cfg, "three")
    assert np.allclose(mean(x), np.mean(single, axis=0), atol=1e-4)


def test_partners_have_the_same_name(codes, fitted):
    first, second = codes["O0"], codes["O2"]
    pair = make_pair(first, second, fitted)
    names = first.analysis.function_name, second.analysis.function_name
    candidates = pair.candidates
    asked = np.flatnonzero(pair.partner_a >= 0)
    assert {"main", "kind", "area", "usage", "copy"} <= {names[0][f] for f in asked}
    for f in asked:
        c = pair.partner_a[f]
        assert candidates.a[c] == f
        assert names[0][f] == names[1][candidates.b[c]]
        assert pair.partner_b[candidates.b[c]] == c


def test_missing_partners_are_marked_and_start_up_code_is_left_out(codes, fitted):
    code = codes["O0"]
    pair = make_pair(code, codes["O1-stripped"], fitted)
    names = code.analysis.function_name
    assert pair.partner_a[names.index("area")] == NONE
    assert pair.partner_a[names.index("_start")] == UNKNOWN


def test_dropping_hopeless_candidates_keeps_the_partners(codes, fitted):
    pair = make_pair(codes["O0"], codes["O2"], fitted)
    unlike = np.random.default_rng(0).normal(0, 9, len(pair.candidates.a)).astype(np.float32)
    part = plausible_part(pair, lambda measures: unlike)
    shares = softmax_both_ways(pair.candidates, unlike)
    kept = (shares[0] > PLAUSIBLE) | (shares[1] > PLAUSIBLE)
    assert 0 < kept.sum() < len(kept)
    assert np.array_equal(part.candidates.measures, pair.candidates.measures[kept])
    partners = (pair.partner_a, part.partner_a), (pair.partner_b, part.partner_b)
    lost = 0
    for before, after in partners:
        assert np.array_equal(before == NONE, after == NONE)
        for old, new in zip(before[before >= 0], after[before >= 0], strict=True):
            if kept[old]:
                assert part.candidates.a[new] == pair.candidates.a[old]
                assert part.candidates.b[new] == pair.candidates.b[old]
            else:
                assert new == UNKNOWN
                lost += 1
        assert (after[before == UNKNOWN] == UNKNOWN).all()
    assert lost, "the test should meet one"


def test_a_pair_without_plausible_candidates_does_not_stop_training(codes, fitted, cfg):
    """Its functions count as not found; the neighbour network learns from the others."""
    pair = make_pair(codes["O0"], codes["O2"], fitted)
    cfg = dataclasses.replace(cfg, n_epochs=1, networks=1, hidden=4)
    likeness = train_similarity([pair], cfg)
    unlike = dataclasses.replace(likeness, b2=np.float32(-99))
    assert not len(plausible_part(pair, unlike).candidates.a)
    empty = dataclasses.replace(pair, candidates=pair.candidates.only(pair.candidates.a < 0))
    nowhere = np.full_like(pair.partner_a, UNKNOWN)
    empty.partner_a, empty.partner_b = nowhere, np.full_like(pair.partner_b, UNKNOWN)
    structure = train_neighbours([empty, pair], likeness, cfg)
    alone = train_neighbours([pair], likeness, cfg)
    assert np.array_equal(structure.w1, alone.w1)
    model = Model(fitted, unlike, structure)
    assert measure([pair], model) == (0, 0)


@pytest.fixture(scope="module")
def trained(paired, tmp_path_factory):
    """A folder with two equal trainings, one of them by the command, and what the command said."""
    folder = tmp_path_factory.mktemp("trained")
    cfg = json.loads((ROOT / "config/contrast.json").read_text()) | {
        "n_epochs": 3,
    }
    shutil.copy(ENCODER, folder)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    data = paired / "data"
    arguments = ["--data", f"{data},{data}"]  # the same builds again count once
    arguments += ["--outputDir", str(paired / "output")]
    arguments += ["--held_out", "nothing", "--train_cfg", "cfg.json", "--to"]
    run = subprocess.run(
        [sys.executable, "-m", "matching.train", *arguments, "a.safetensors"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert typed(main, *arguments, "b.safetensors") == 0
    return folder, run


def test_training_writes_networks_and_their_card(trained):
    folder, run = trained
    assert run.returncode == 0, run.stderr
    assert "pairs of builds of: shapes (5 builds)" in run.stdout
    model = read_model(folder / "a.safetensors")
    assert model.encoder.identity == read_encoder().identity
    with safe_open(folder / "a.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["card"])["programs"] == "shapes (5 builds)"


def test_training_is_deterministic(trained):
    folder, _ = trained
    assert (folder / "a.safetensors").read_bytes() == (folder / "b.safetensors").read_bytes()


@given(st.lists(st.sampled_from("abc"), max_size=9), st.integers(1, 50), st.integers(0, 9))
def test_half_of_the_pairs_are_of_one_processor(processors, limit, seed):
    pairs = draw_pairs(processors, limit, np.random.default_rng(seed))
    n = len(processors)
    there = sum(processors[i] == processors[j] for j in range(n) for i in range(j))
    assert pairs == sorted(set(pairs))
    assert all(0 <= i < j < n for i, j in pairs)
    assert len(pairs) == min(limit, n * (n - 1) // 2)
    same = sum(processors[i] == processors[j] for i, j in pairs)
    across = n * (n - 1) // 2 - there
    assert same == max(min(there, (limit + 1) // 2), min(there, limit - across))


def test_a_folder_without_pairs_is_named(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    shutil.copy(ENCODER, tmp_path)
    for folder, reason in (("data", ": no program has two builds"), ("none", ": there is no such")):
        assert typed(main, "--data", tmp_path / folder, "--to", tmp_path / "a") == 1
        assert f"{tmp_path / folder}{reason}" in capsys.readouterr().err
