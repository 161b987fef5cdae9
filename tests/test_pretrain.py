"""pretrain.py: sampling, masking, evaluating, and whole trainings from corpus to model."""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoint
import models
import pretrain
import train
from corpus.ids import Corpus
from pretrain import (
    MaskedInstructions,
    MaskedTokens,
    Preprocess4Pretrain,
    SentPairDataLoader,
    SentPairSampler,
    get_losses,
)
from tasks.objectives import OBJECTIVES, Objective, Text
from tokenization import SPECIAL_TOKENS
from utils import UserError

ROOT = Path(pretrain.__file__).parent


def make_corpus(documents_per_pair, sentence_lengths, tokens=None):
    """Return a corpus in memory; all tokens differ unless ``tokens`` are given."""
    sentences = np.cumsum([0, *itertools.chain(*sentence_lengths)])
    return Corpus(
        tokens=np.arange(sentences[-1]) if tokens is None else tokens,
        sentences=sentences,
        documents=np.cumsum([0, *map(len, sentence_lengths)]),
        pairs=np.cumsum([0, *documents_per_pair]),
        programs=[],
        builds=[],
        sha256="",
    )


def random_corpus(rng, n_pairs=4, n_documents=60, sentences=(1, 7), words=(1, 21)):
    lengths = [
        rng.integers(*words, size=rng.integers(*sentences)).tolist()
        for _ in range(n_pairs * n_documents)
    ]
    return make_corpus([n_documents] * n_pairs, lengths)


def everything(corpus):
    return np.ones(len(corpus.documents) - 1, bool)


def place(corpus, token):
    """Return sentence, document and pair of a token's position."""
    sentence = np.searchsorted(corpus.sentences, token, side="right") - 1
    document = np.searchsorted(corpus.documents, sentence, side="right") - 1
    return sentence, document, np.searchsorted(corpus.pairs, document, side="right") - 1


# --- sampling


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n_pairs=st.integers(1, 4),
    n_documents=st.integers(2, 80),
    most_sentences=st.integers(2, 9),
    max_len=st.integers(5, 90),
)
def test_every_pair_is_what_it_says(seed, n_pairs, n_documents, most_sentences, max_len):
    rng = np.random.default_rng(seed)
    corpus = random_corpus(rng, n_pairs, n_documents, sentences=(2, most_sentences + 1))
    chosen = rng.random(n_pairs * n_documents) < 0.7
    chosen[:2] = True
    pairs = SentPairSampler(corpus, chosen, max_len).draw(200, rng)
    a_end, b_end = pairs["a_start"] + pairs["a_len"], pairs["b_start"] + pairs["b_len"]
    assert (pairs["a_len"] >= 1).all()
    assert (pairs["b_len"] >= 1).all()
    assert (pairs["a_len"] + pairs["b_len"] <= max_len - 3).all()
    a_document, b_document = place(corpus, a_end - 1)[1], place(corpus, pairs["b_start"])[1]
    assert chosen[a_document].all()
    assert chosen[b_document].all()
    # No segment crosses the end of a document.
    assert (place(corpus, pairs["a_start"])[1] == a_document).all()
    assert (place(corpus, b_end - 1)[1] == b_document).all()
    # A ends and B starts where a sentence starts that continues its document.
    assert np.isin(a_end, corpus.sentences).all()
    assert (place(corpus, a_end)[1] == a_document).all()
    assert np.isin(pairs["b_start"], corpus.sentences).all()
    assert (corpus.bounds[b_document] < pairs["b_start"]).all()
    # True continuations follow A, negatives are from another document, hard ones of the same pair.
    is_next = pairs["is_next"] == 1
    assert (pairs["b_start"] == a_end)[is_next].all()
    assert (a_document != b_document)[~is_next].all()
    same_pair = place(corpus, a_end - 1)[2] == place(corpus, pairs["b_start"])[2]
    assert (pairs["is_hard"] == (same_pair & ~is_next)).all()


def test_shares_of_the_three_kinds():
    corpus = random_corpus(np.random.default_rng(0), n_pairs=10, n_documents=300)
    sampler = SentPairSampler(corpus, everything(corpus), 30)
    pairs = sampler.draw(20_000, np.random.default_rng(1))
    assert pairs["is_next"].mean() == pytest.approx(0.5, abs=0.02)
    # Half of the negatives, and by chance a tenth of the others.
    assert pairs["is_hard"][pairs["is_next"] == 0].mean() == pytest.approx(0.55, abs=0.02)


def test_long_documents_fill_max_len():
    corpus = random_corpus(np.random.default_rng(0), sentences=(30, 40))
    sampler = SentPairSampler(corpus, everything(corpus), 40)
    pairs = sampler.draw(5000, np.random.default_rng(1))
    full = pairs["a_len"] + pairs["b_len"] == 37
    assert full.all()
    # Split at random, wherever the documents are long enough on both sides.
    assert set(pairs["a_len"]) == set(range(1, 37))


def test_short_documents_are_used_whole():
    # 64 documents of 3 + 5 tokens: one bucket.
    corpus = make_corpus([64], [[3, 5]] * 64)
    pairs = SentPairSampler(corpus, everything(corpus), 40).draw(100, np.random.default_rng(0))
    assert (pairs["a_len"] == 3).all()
    assert (pairs["b_len"] == 5).all()


def test_all_boundaries_are_drawn_evenly():
    corpus = make_corpus([40], [[5, 5, 5, 5]] * 40)
    pairs = SentPairSampler(corpus, everything(corpus), 9).draw(60_000, np.random.default_rng(0))
    starts, counts = np.unique(pairs["a_start"] + pairs["a_len"], return_counts=True)
    assert len(starts) == 120
    assert counts.min() > 400  # 500 expected, standard deviation 22
    is_next = pairs["is_next"] == 1
    starts, counts = np.unique(pairs["b_start"][~is_next], return_counts=True)
    assert len(starts) == 120
    assert counts.min() > 180  # 250 expected, standard deviation 16


def shape_features(corpus, pairs):
    """Return features that need no reading: lengths, B's place, whether B ends its document."""
    b_end = pairs["b_start"] + pairs["b_len"]
    document = place(corpus, pairs["b_start"])[1]
    left = corpus.bounds[document + 1] - b_end
    return np.stack(
        [
            pairs["a_len"],
            pairs["b_len"],
            pairs["a_len"] + pairs["b_len"],
            left == 0,
            np.minimum(left, 20),
            np.minimum(pairs["b_start"] - corpus.bounds[document], 60),
        ],
        1,
    )


# Short documents; some long ones; only long ones, where even all features together say nothing.
@pytest.mark.parametrize(
    ("sentences", "views"),
    [
        ((1, 4), ([0, 1, 2], [1, 3, 4], [5])),
        ((2, 12), ([0, 1, 2], [1, 3, 4], [5])),
        ((10, 20), ([0, 1, 2, 3, 4, 5],)),
    ],
)
def test_shape_gives_nothing_away(sentences, views):
    ensemble = pytest.importorskip("sklearn.ensemble")
    corpus = random_corpus(np.random.default_rng(0), 4, 300, sentences)
    sampler = SentPairSampler(corpus, everything(corpus), 60)
    seen, unseen = (sampler.draw(8000, np.random.default_rng(seed)) for seed in (1, 2))
    guess = ensemble.HistGradientBoostingClassifier(max_iter=40, random_state=0)
    for columns in views:
        guess.fit(shape_features(corpus, seen)[:, columns], seen["is_next"])
        right = guess.score(shape_features(corpus, unseen)[:, columns], unseen["is_next"])
        assert right < 0.5 + 4 * 0.5 / math.sqrt(8000)


def test_the_shape_test_would_notice():
    # Check the classifier: it does find a B that is always from the document's start.
    ensemble = pytest.importorskip("sklearn.ensemble")
    corpus = random_corpus(np.random.default_rng(0), 4, 300, (2, 12))
    sampler = SentPairSampler(corpus, everything(corpus), 60)
    pairs = sampler.draw(4000, np.random.default_rng(1))
    false = np.flatnonzero(pairs["is_next"] == 0)
    pairs["b_start"][false] = corpus.bounds[place(corpus, pairs["b_start"][false])[1]]
    guess = ensemble.HistGradientBoostingClassifier(max_iter=40, random_state=0)
    features = shape_features(corpus, pairs)[:, 1:6]
    guess.fit(features[:2000], pairs["is_next"][:2000])
    assert guess.score(features[2000:], pairs["is_next"][2000:]) > 0.8


def test_negatives_that_read_like_the_truth_are_rare():
    # Half of all documents continue with the same text.
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 100, size=400 * 20)
    for document in range(0, 400, 2):
        tokens[document * 20 + 10 : document * 20 + 20] = 7
    corpus = make_corpus([400], [[10, 10]] * 400, tokens)
    pairs = SentPairSampler(corpus, everything(corpus), 40).draw(4000, rng)
    true = pairs["a_start"] + pairs["a_len"]
    negative = pairs["is_next"] == 0
    twin = (tokens[true] == 7) & (tokens[pairs["b_start"]] == 7)
    assert twin[negative].mean() < 0.06  # 0.25 without choosing; (1/2)^4 of the half with it


# --- masking

VOCAB = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *"abcdefghij"])}
PAIR = {"is_next": np.ones(1, np.int64), "is_hard": np.zeros(1, bool)}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    max_len=st.integers(5, 40),
    max_pred=st.integers(1, 30),
    mask_prob=st.floats(0.01, 0.99),
)
def test_examples_have_berts_layout_and_mask_only_ordinary_tokens(
    seed, max_len, max_pred, mask_prob
):
    rng = np.random.default_rng(seed)
    n = 30
    tokens = rng.integers(0, 15, size=500)  # special tokens too: the text may hold [UNK]
    a_len = rng.integers(1, max_len - 3, size=n)
    b_len = rng.integers(1, max_len - 3 - a_len + 1)
    pairs = {
        "a_start": rng.integers(0, 400, size=n),
        "a_len": a_len,
        "b_start": rng.integers(0, 400, size=n),
        "b_len": b_len,
        "is_next": rng.integers(0, 2, size=n),
        "is_hard": np.zeros(n, bool),
    }
    preprocess = Preprocess4Pretrain(VOCAB, max_len, max_pred, mask_prob)
    batch = preprocess(make_corpus([1], [[len(tokens)]], tokens), pairs, [seed], slice(None))
    assert {name: array.dtype.name for name, array in batch.items() if name != "input_mask"} == {
        **dict.fromkeys(("input_ids", "segment_ids", "masked_pos", "masked_ids"), "int64"),
        **dict.fromkeys(("masked_weights", "is_next_weights"), "float32"),
        "is_next": "int64",
        "is_hard": "bool",
    }
    total = planned = 0
    for row in range(n):
        a = tokens[pairs["a_start"][row] :][: a_len[row]].tolist()
        b = tokens[pairs["b_start"][row] :][: b_len[row]].tolist()
        padding = max_len - len(a) - len(b) - 3
        plain = [2, *a, 3, *b, 3] + [0] * padding
        segments = [0] * (len(a) + 2) + [1] * (len(b) + 1) + [0] * padding
        assert batch["segment_ids"][row].tolist() == segments
        if "input_mask" in batch:
            assert batch["input_mask"][row].tolist() == [1] * (max_len - padding) + [0] * padding
        else:
            assert padding == 0
        maskable = [at for at in range(max_len) if plain[at] >= 5]
        used = batch["masked_weights"][row] > 0
        position = batch["masked_pos"][row][used].tolist()
        wanted = max(1, int(np.rint((len(a) + len(b)) * mask_prob)))
        wanted = min(wanted, len(a) + len(b), max_pred)
        assert len(position) == min(wanted, len(maskable))
        assert len(set(position)) == len(position)
        assert set(position) <= set(maskable)
        assert batch["masked_ids"][row][used].tolist() == [plain[at] for at in position]
        assert (batch["masked_ids"][row][~used] == 0).all()
        assert (batch["masked_pos"][row][~used] == 0).all()
        for at, token in enumerate(batch["input_ids"][row].tolist()):
            # A masked position shows [MASK] or an ordinary token, any other its own token.
            assert token == 4 or token >= 5 if at in position else token == plain[at]
        total += len(position)
        planned += wanted
    # If the text has too few ordinary tokens, fewer are masked than planned.
    assert np.isclose(batch["masked_weights"].sum(), total / planned, atol=1e-4)
    assert np.isclose(batch["is_next_weights"].sum(), 1)


def text_of(ids, starts=None):
    """Return rows of ordinary text, without special tokens or padding, as objectives get them."""
    return Text(
        ids=ids,
        segment_ids=0 * ids,
        inside=np.ones(ids.shape, bool),
        starts=starts,
        pairs={},
        lengths=np.full(len(ids), ids.shape[1]),
        key=[0],
        rows=slice(None),
    )


def test_masked_tokens_are_replaced_in_shares_of_80_10_10():
    ids = np.full((2000, 100), 9)
    out = MaskedTokens.columns(text_of(ids), Preprocess4Pretrain(VOCAB, 100, 100, 0.5))
    at = np.take_along_axis(out["input_ids"], out["masked_pos"], 1)[out["masked_weights"] > 0]
    assert len(at) == 2000 * 50
    share = np.bincount(at, minlength=15) / len(at)
    assert share[4] == pytest.approx(0.8, abs=0.01)
    assert share[9] == pytest.approx(0.1 + 0.01, abs=0.005)
    others = [5, 6, 7, 8, 10, 11, 12, 13, 14]
    assert share[others] == pytest.approx(0.01, abs=0.002)
    assert share[:4].sum() == 0
    # Every position is as likely as any other.
    hits = np.bincount(out["masked_pos"][out["masked_weights"] > 0], minlength=100)
    assert hits.min() > 850  # 1000 expected, standard deviation 22


def test_text_without_ordinary_tokens_is_not_masked():
    out = MaskedTokens.columns(text_of(np.full((2, 9), 1)), Preprocess4Pretrain(VOCAB, 9, 3, 0.5))
    assert (out["input_ids"] == 1).all()
    assert (out["masked_weights"] == 0).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), max_pred=st.integers(1, 30), mask_prob=st.floats(0.05, 0.95))
def test_whole_instructions_are_masked(seed, max_pred, mask_prob):
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, 15, size=(20, 30))
    starts = rng.random(ids.shape) < 0.4
    starts[:, 0] = True
    preprocess = Preprocess4Pretrain(VOCAB, 30, max_pred, mask_prob)
    out = MaskedInstructions.columns(text_of(ids, starts), preprocess)
    alone = MaskedTokens.columns(text_of(ids, starts), preprocess)
    assert (out["masked_weights"] == alone["masked_weights"]).all()  # as many tokens
    for row in range(len(ids)):
        number = np.cumsum(starts[row])
        masked = set(out["masked_pos"][row][out["masked_weights"][row] > 0].tolist())
        in_part = 0
        for instruction in set(number.tolist()):
            places = np.flatnonzero(number == instruction).tolist()
            hit = [place in masked for place in places]
            if any(hit) and not all(hit):
                in_part += 1
                assert hit == sorted(hit, reverse=True)  # from its first token on
        assert in_part <= 1


def test_masking_instructions_needs_their_borders():
    with pytest.raises(UserError, match="tabs between instructions"):
        MaskedInstructions.columns(
            text_of(np.full((2, 9), 7)), Preprocess4Pretrain(VOCAB, 9, 3, 0.5)
        )


def make_loader(seed=3, batch_size=8, max_len=24):
    rng = np.random.default_rng(0)
    corpus = random_corpus(rng)
    object.__setattr__(corpus, "tokens", rng.integers(5, 15, size=len(corpus.tokens)))
    sampler = SentPairSampler(corpus, everything(corpus), max_len)
    preprocess = Preprocess4Pretrain(VOCAB, max_len, 4, 0.2)
    return SentPairDataLoader(sampler, preprocess, len(corpus.tokens), batch_size, seed)


def test_batch_is_a_function_of_seed_and_step():
    one, two, other = make_loader(), make_loader(), make_loader(seed=4)
    two.batch(0)
    for name, array in one.batch(5).items():
        assert (array == two.batch(5)[name]).all()
    assert (one.batch(5)["input_ids"] != one.batch(6)["input_ids"]).any()
    assert (one.batch(5)["input_ids"] != other.batch(5)["input_ids"]).any()


@pytest.mark.parametrize("world", [2, 3, 8, 11])
def test_processes_read_their_share_of_the_batch(world):
    loader, whole = make_loader(), make_loader().batch(5)
    corpus = loader.sampler.corpus
    pairs = loader.sampler.draw(8, np.random.default_rng([3, 5]))
    seen = []
    for rank in range(world):
        # Any other part of the text that a process reads would show as [UNK].
        mine = np.zeros(len(corpus.tokens), bool)
        for row in range(8)[train.share(8, rank, world)]:
            seen.append(row)
            for side in "ab":
                mine[pairs[f"{side}_start"][row] :][: pairs[f"{side}_len"][row]] = True
        other = dataclasses.replace(corpus, tokens=np.where(mine, corpus.tokens, 1))
        loader.sampler.draw = lambda *_: pairs  # all processes read what negatives are compared to
        loader.sampler.corpus = other
        for name, array in loader.batch(5, rank, world).items():
            assert (array == whole[name][train.share(8, rank, world)]).all()
    assert seen == list(range(8))


def test_epoch_has_the_tokens_of_the_text():
    loader = make_loader()
    batches = list(loader)
    assert len(batches) == len(loader) == math.ceil(loader.n_tokens / (8 * 21))


def test_losses_are_means_over_what_is_masked():
    torch.manual_seed(0)
    sizes = dict(dim=16, n_layers=1, n_heads=2, dim_ff=16, max_len=24, n_segments=2)
    cfg = models.Config(**sizes, p_drop_hidden=0.0, p_drop_attn=0.0, vocab_size=15)
    model = models.BertModel4Pretrain(cfg)
    batch = {name: torch.from_numpy(array) for name, array in make_loader().batch(0).items()}
    logits_lm, logits_clsf = model(
        batch["input_ids"], batch["segment_ids"], None, batch["masked_pos"]
    )
    used = batch["masked_weights"] > 0
    used[0, 1] = False  # one row has one token less than the others
    batch["masked_weights"] = used.float() / used.sum()
    losses = get_losses(model, batch)
    lm = F.cross_entropy(logits_lm[used], batch["masked_ids"][used])  # mean
    assert losses["masked_lm_loss"].item() == pytest.approx(lm.item(), rel=1e-5)
    clsf = F.cross_entropy(logits_clsf, batch["is_next"])
    assert losses["next_loss"].item() == pytest.approx(clsf.item(), rel=1e-5)


def test_losses_are_the_same_where_all_positions_are_computed():
    class Everywhere(pretrain.Objective):  # without a key, so it is not registered
        name, everywhere = "everywhere", True

        @staticmethod
        def loss(model, h, batch):
            assert h.shape[:2] == batch["input_ids"].shape
            return h.sum() * 0

    batch = {name: torch.from_numpy(array) for name, array in make_loader().batch(0).items()}
    model = tiny_model().double()
    batch["masked_weights"] = batch["masked_weights"].double()
    batch["is_next_weights"] = batch["is_next_weights"].double()
    gradients = []
    for objectives in (pretrain.BERTS, [*pretrain.BERTS, Everywhere]):
        model.zero_grad()
        losses = get_losses(model, batch, objectives)
        sum(losses.values()).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        assert losses["masked_lm_loss"] > 0
    for some, whole in zip(*gradients, strict=True):
        assert torch.allclose(some, whole, rtol=1e-5, atol=1e-7)


# --- evaluating


class Oracle(torch.nn.Module):
    """Predicts token 5 with probability e / (e + 14), and always "next"."""

    def transformer(self, input_ids, segment_ids, input_mask, at=None):
        return torch.zeros(*(input_ids if at is None else at).shape, 1)

    def score_tokens(self, h, at):
        logits = torch.zeros(*at.shape, 15)
        logits[..., 5] = 1
        return logits

    def score_next(self, h):
        return torch.tensor([[0.0, 1.0]]).expand(len(h), 2)


def test_evaluation_measures_a_known_model_exactly():
    rng = np.random.default_rng(0)
    tokens = rng.choice([5, 6, 7], p=[0.5, 0.25, 0.25], size=200 * 40)
    corpus = make_corpus([100, 100], [[20, 20]] * 200, tokens)
    preprocess = Preprocess4Pretrain(VOCAB, 30, 5, 0.15)
    evaluation = pretrain.Evaluation(corpus, everything(corpus), preprocess, torch.device("cpu"))
    measures = evaluation(Oracle())
    assert measures["unigram_entropy"] == pytest.approx(1.5 * math.log(2), abs=0.01)
    assert measures["commonest_token"] == (tokens == 5).mean()
    assert measures["masked_lm_accuracy"] == pytest.approx(0.5, abs=0.06)
    expected = math.log(math.e + 14) - measures["masked_lm_accuracy"]
    assert measures["masked_lm_loss"] == pytest.approx(expected, abs=1e-5)
    is_next = np.concatenate([evaluation.loader.batch(k)["is_next"] for k in range(5)])
    assert len(evaluation.loader) == 5
    assert measures["next_accuracy"] == is_next.mean()
    assert measures["next_accuracy_hard"] == 0.5
    loss = math.log(1 + math.e) - is_next.mean()
    assert measures["next_loss"] == pytest.approx(loss, abs=1e-5)
    assert evaluation(Oracle()) == measures


def test_check_fails_where_nothing_was_learned(capsys):
    good = dict.fromkeys(
        ("masked_lm_accuracy", "next_accuracy", "next_accuracy_hard", "commonest_token"), 0.5
    )
    good |= {"masked_lm_loss": 1.0, "unigram_entropy": 1.1}
    pretrain.report(good, "rule", check=True)
    for loss in (1.1, 2.0, math.nan):
        bad = good | {"masked_lm_loss": loss}
        pretrain.report(bad, "rule", check=False)
        with pytest.raises(UserError, match="has not learned"):
            pretrain.report(bad, "rule", check=True)
    pretrain.report(good | {"five_gram_accuracy": 0.49}, "rule", check=True)
    with pytest.raises(UserError, match=r"predicts 50\.0 % .* a 5-gram model 50\.0 %; train"):
        pretrain.report(good | {"five_gram_accuracy": 0.5}, "rule", check=True)
    assert capsys.readouterr().out.count("held out rule") == 9


# --- objectives, phases, batch sizes


def tiny_model():
    torch.manual_seed(0)
    sizes = dict(dim=16, n_layers=1, n_heads=2, dim_ff=16, max_len=48, n_segments=2)
    cfg = models.Config(**sizes, p_drop_hidden=0.0, p_drop_attn=0.0, vocab_size=15)
    return models.BertModel4Pretrain(cfg)


def test_a_new_objective_is_one_object():
    """An objective that predicts the first token of A from [CLS]."""

    class FirstToken(Objective):
        key, name = "first_token", "first"

        @staticmethod
        def columns(text, how):
            return {"first": text.ids[:, 1], "first_weights": np.full(len(text.ids), 0.125, "f4")}

        @staticmethod
        def loss(model, h, batch):
            at = torch.zeros(len(h), 1, dtype=torch.int64)
            logits = model.score_tokens(h, at)[:, 0]
            loss = F.cross_entropy(logits, batch["first"], reduction="none")
            return (loss * batch["first_weights"]).sum()

    try:
        cfg = pretrain.Config(**TRAINING, objectives={"first_token": 2.0, "masked_lm": 1.0})
        loader = make_loader()
        loader.preprocess.objectives = cfg.used()
        corpus, pairs = loader.sampler.corpus, loader.sampler.draw(8, np.random.default_rng([3, 0]))
        batch = loader.batch(0)
        assert (batch["first"] == corpus.tokens[pairs["a_start"]]).all()
        assert "is_next" not in batch
        rows = {name: torch.from_numpy(array) for name, array in batch.items()}
        losses = get_losses(tiny_model(), rows, cfg.used())
        assert losses.keys() == {"masked_lm_loss", "first_loss"}
        assert losses["first_loss"].item() == pytest.approx(math.log(15), abs=0.1)
        evaluation = pretrain.Evaluation(
            corpus, everything(corpus), loader.preprocess, torch.device("cpu")
        )
        assert evaluation(tiny_model())["first_loss"] > 0
    finally:
        del OBJECTIVES["first_token"]


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ({}, "must give weights above 0 to some of next_sentence, masked_lm, masked_instr"),
        ({"masked_lm": 0}, "must give weights above 0"),
        ({"masked_lm": 1, "jump": 1}, "must give weights above 0 to some of next"),
        ({"masked_lm": 1, "masked_instructions": 1}, "one way of masking at a time"),
        ({"masked_lm": -1}, "give a number of at least 0"),
    ],
)
def test_impossible_objectives_are_refused(tmp_path, objectives, message):
    (tmp_path / "cfg.json").write_text(json.dumps(TRAINING | {"objectives": objectives}))
    with pytest.raises(UserError, match=rf"cfg\.json: .*{message}"):
        pretrain.Config.from_json(tmp_path / "cfg.json")


def test_only_chosen_objectives_have_a_loss():
    batch = {name: torch.from_numpy(array) for name, array in make_loader().batch(0).items()}
    assert get_losses(tiny_model(), batch, [MaskedTokens]).keys() == {"masked_lm_loss"}
    all_true = make_loader()
    all_true.true_share = 1.0
    assert all_true.batch(3)["is_next"].all()
    assert not make_loader().batch(3)["is_next"].all()


# --- the command line

WORDS = ["mov", "reg8", "imme", "cmp", "ptr", "je", "call", "push", "pop", "ret"]
TRAINING = dict(
    seed=4, batch_size=32, lr=0.003, n_epochs=100, warmup=0.1, save_steps=60, total_steps=150
)
MODEL = dict(
    dim=32, n_layers=2, n_heads=2, dim_ff=64, p_drop_hidden=0.1, p_drop_attn=0.0, max_len=32
) | {"n_segments": 2}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A corpus where each document repeats one of ten tokens."""
    folder = tmp_path_factory.mktemp("workplace")
    rng = np.random.default_rng(0)
    documents = []
    for number in rng.permutation(400):
        documents.append((" ".join([WORDS[number % 10]] * 6) + "\n") * 10)
    (folder / "data").mkdir()
    (folder / "data/corpus.txt").write_text("\n".join(documents))
    (folder / "vocab").mkdir()
    (folder / "vocab/vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *WORDS]) + "\n")
    (folder / "config").mkdir()
    (folder / "config/pretrain.json").write_text(json.dumps(TRAINING))
    (folder / "config/bert_small.json").write_text(json.dumps(MODEL))
    return folder


def start(folder, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "pretrain.py"), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder, *arguments):
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


SIZE = ("--max_len", 32, "--max_pred", 6)


@pytest.fixture(scope="module")
def trained(workplace):
    code, out, err = run(workplace, *SIZE, "--check")
    assert code == 0, err
    return workplace, out


def test_a_tiny_model_learns_a_simple_corpus(trained):
    folder, out = trained
    metrics = json.loads((folder / "out/metrics.json").read_text())
    assert metrics["unigram_entropy"] == pytest.approx(math.log(10), abs=0.2)
    assert metrics["masked_lm_loss"] < 0.2
    assert metrics["masked_lm_accuracy"] > 0.95
    assert metrics["next_accuracy"] > 0.9
    assert metrics["next_accuracy_hard"] > 0.9
    assert metrics["heldout"].startswith("by document: 40 of 400")
    assert "held out by document: 40 of 400" in out
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        *("last.pt", "metrics.json", "model.json", "model_steps_120.pt", "model_steps_150.pt"),
        *("model_steps_60.pt", "runs", "vocab.txt"),
    ]
    state = torch.load(folder / "out/model_steps_150.pt", weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    assert state["transformer.embed.tok_embed.weight"].shape == (15, 32)


MODEL_FILE = "out/model_steps_150.pt"


def test_eval_says_what_the_training_said(trained, monkeypatch, capsys):
    folder, out = trained
    monkeypatch.chdir(folder)
    pretrain.evaluate(MODEL_FILE, check=True)
    assert capsys.readouterr().out == out[out.index("held out ") :]
    # For another corpus, all documents are used.
    Path("other.txt").write_text("mov ptr je\nptr call mov\n\n" * 4)
    pretrain.evaluate(MODEL_FILE, data_file="other.txt")
    assert "every document" in capsys.readouterr().out


def test_eval_on_the_programs_left_for_a_test(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained[0])
    text = "mov ptr je\nptr call mov\n\n" * 6
    Path("programs.txt").write_text(text)
    pairs = [
        dict(program=program, split=split, documents=3, builds=[dict(sha256="a"), dict(sha256="b")])
        for program, split in (("p", "train"), ("t", "test"))
    ]
    about = dict(corpus_sha256=hashlib.sha256(text.encode()).hexdigest(), pairs=pairs)
    Path("programs.json").write_text(json.dumps(about))
    pretrain.evaluate(MODEL_FILE, data_file="programs.txt", test=True)
    assert capsys.readouterr().out.startswith("held out for the test: t\n  masked tokens: loss ")
    with pytest.raises(UserError, match="has no test programs"):
        pretrain.evaluate(MODEL_FILE, test=True)


def test_predict_fills_masks_with_shares(trained, monkeypatch, capsys):
    line = "cmp cmp [MASK] cmp cmp cmp [MASK] cmp cmp cmp"
    monkeypatch.chdir(trained[0])
    pretrain.predict(MODEL_FILE, line)
    out = capsys.readouterr().out
    fills = re.findall(r"^\[MASK\] (\d): (\S+) (\S+) %, ", out, re.M)
    assert [(number, token) for number, token, _ in fills] == [("1", "cmp"), ("2", "cmp")]
    assert len(out.splitlines()[0].split(", ")) == 5


def test_predict_fills_a_lone_mask(trained):
    code, out, _ = run(trained[0], "predict", MODEL_FILE, "--line=[MASK]", "--top=20")
    assert code == 0
    shares = [float(share) for share in re.findall(r"(\S+) %", out)]
    assert len(shares) == 15
    assert sum(shares) == pytest.approx(100, abs=1)


def test_finished_training_is_not_done_again(trained, monkeypatch, capsys):
    folder, out = trained
    monkeypatch.chdir(folder)
    before = Path(MODEL_FILE).stat().st_mtime_ns
    pretrain.main(max_len=32, max_pred=6, check=True)
    again = capsys.readouterr().out
    assert "finished" in again
    assert again.endswith(out[out.index("held out ") :])
    assert Path(MODEL_FILE).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        (dict(max_len=31), "max_len 32, not 31"),
        (dict(mask_prob=0.2), r"mask_prob 0\.25, not 0\.2"),
        (dict(model_cfg="other.json"), "model_cfg n_layers 2, not 3"),
        (dict(train_cfg="other_train.json"), r"lr 0\.003, not 0\.02"),
        (dict(train_cfg="other_batch.json"), "batch_size 32, not 16"),
        (dict(data_file="other_corpus.txt"), "corpus_sha256 [0-9a-f]+, not [0-9a-f]+"),
        (dict(vocab="other_vocab.txt"), "vocab_sha256 [0-9a-f]+, not [0-9a-f]+"),
        (dict(precision="float16"), "precision (bfloat16|float32), not float16"),
    ],
)
def test_a_setting_is_changed_and_the_training_run_again(
    trained, tmp_path, monkeypatch, capsys, changes, difference
):
    folder, _ = trained
    shutil.copytree(folder / "out", tmp_path / "out")
    other = {"other.json": MODEL | {"n_layers": 3}, "other_train.json": TRAINING | {"lr": 0.02}}
    other["other_batch.json"] = TRAINING | {"batch_size": 16}
    for name, content in other.items():
        (folder / name).write_text(json.dumps(content))
    corpus, vocab = folder / "data/corpus.txt", folder / "vocab/vocab.txt"
    (folder / "other_corpus.txt").write_text(corpus.read_text() + "\nmov\npop\n")
    *words, last, first = vocab.read_text().splitlines()
    (folder / "other_vocab.txt").write_text("\n".join([*words, first, last]) + "\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(train.Trainer, "train", lambda self: stop())
    with pytest.raises(Stop):
        pretrain.main(**{"max_len": 32, "max_pred": 6, "save_dir": str(tmp_path / "out")} | changes)
    said = capsys.readouterr().out
    assert re.search(rf"out held a training with {difference}; that is now in .*out-before-", said)
    assert "steps 0 to 150" in said
    (moved,) = tmp_path.glob("out-before-*")
    assert sorted(path.name for path in moved.iterdir()) == sorted(os.listdir(folder / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.json", "vocab.txt"}


class Stop(Exception):
    """Raised instead of a training that a test does not need."""


def stop():
    raise Stop


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(max_len=33), r"max_len 33 is larger than the max_len 32 of config/bert_small\.json"),
        (dict(model_cfg="wrong_size.json"), r"wrong_size\.json has vocab_size 99, but .*15 tokens"),
        (dict(data_file="none.txt"), r"the corpus none\.txt"),
        (dict(vocab="none.txt"), r"none\.txt"),
        (dict(train_cfg="none.json"), r"none\.json"),
    ],
)
def test_impossible_settings_change_nothing(trained, monkeypatch, changes, message):
    folder, _ = trained
    (folder / "wrong_size.json").write_text(json.dumps(MODEL | {"vocab_size": 99}))
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").iterdir()}
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=message):
        pretrain.main(**{"max_len": 32, "max_pred": 6} | changes)
    assert {path: path.stat().st_mtime_ns for path in (folder / "out").iterdir()} == before


def test_raising_total_steps_goes_on(trained, tmp_path, monkeypatch, capsys):
    folder, _ = trained
    shutil.copytree(folder / "out", tmp_path / "out")
    (folder / "longer.json").write_text(json.dumps(TRAINING | {"total_steps": 160}))
    monkeypatch.chdir(folder)
    arguments = {"max_len": 32, "max_pred": 6, "save_dir": str(tmp_path / "out")}
    pretrain.main("longer.json", **arguments)
    said = capsys.readouterr().out
    assert "holds step 150 of this training with 150 steps; it continues to 160" in said
    assert "steps 150 to 160" in said
    assert json.loads((tmp_path / "out/metrics.json").read_text())["masked_lm_accuracy"] > 0.9
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_training_starts_from_a_trained_model(trained, monkeypatch, capsys):
    folder, _ = trained
    monkeypatch.chdir(folder)
    model_file = max((folder / "out").glob("model_steps_*.pt"), key=os.path.getmtime)
    (folder / "one_step.json").write_text(json.dumps(TRAINING | {"total_steps": 1, "lr": 1e-9}))
    arguments = {"train_cfg": "one_step.json", "max_len": 24, "max_pred": 4}
    pretrain.main(**arguments, pretrain_file=str(model_file), save_dir="longer")
    before, after = (
        torch.load(f, weights_only=True) for f in (model_file, "longer/model_steps_1.pt")
    )
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)
    # With another starting point it is another training.
    pretrain.main(**arguments, save_dir="longer")
    assert "longer held a training with pretrain_sha256" in capsys.readouterr().out
    (folder / "wrong.json").write_text(json.dumps(MODEL | {"n_layers": 3}))
    with pytest.raises(UserError, match=re.escape(str(model_file))):
        pretrain.main(
            **arguments, model_cfg="wrong.json", pretrain_file=str(model_file), save_dir="none"
        )
    assert not (folder / "none").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [("mov reg8", r"has no \[MASK\]"), ("mov " * 31 + "[MASK]", "has 32 tokens, .* at most 30")],
)
def test_lines_that_cannot_be_filled_are_refused(trained, monkeypatch, line, message):
    monkeypatch.chdir(trained[0])
    with pytest.raises(UserError, match=message):
        pretrain.predict(MODEL_FILE, line)


def test_a_model_without_its_json_or_vocabulary_is_refused(trained, tmp_path, monkeypatch):
    model_file = tmp_path / "model_steps_150.pt"
    out = trained[0] / "out"
    model_file.write_bytes((out / "model_steps_150.pt").read_bytes())
    with pytest.raises(UserError, match=r"model\.json is missing"):
        checkpoint.load_pretrained(str(model_file))
    (tmp_path / "model.json").write_text((out / "model.json").read_text())
    with pytest.raises(UserError, match=r"vocabulary .*vocab\.txt"):
        checkpoint.load_pretrained(str(model_file))
    text = (out / "vocab.txt").read_text()
    (tmp_path / "vocab.txt").write_text(text.replace("pop\nret", "ret\npop"))
    with pytest.raises(UserError, match=r"vocab\.txt is not the vocabulary"):
        checkpoint.load_pretrained(str(model_file))
    (tmp_path / "vocab.txt").write_text(text)
    info = json.loads((out / "model.json").read_text())
    for change, message in [
        ({"format": 2}, "'format' is 2"),
        ({"max_len": None}, "'max_len' is null"),
        ({"model": {}}, "model.dim"),
    ]:
        (tmp_path / "model.json").write_text(json.dumps(info | change))
        with pytest.raises(UserError, match=rf"model\.json.*{message}"):
            checkpoint.load_pretrained(str(model_file))
    (tmp_path / "model.json").write_text(json.dumps(info))
    checkpoint.load_pretrained(str(model_file))
    with pytest.raises(UserError, match=r"no_such\.pt"):
        checkpoint.load_pretrained(str(tmp_path / "no_such.pt"))


def test_killed_training_goes_on_to_the_same_model(trained, tmp_path):
    folder, _ = trained
    process = start(folder, *SIZE, "--save_dir", tmp_path)
    for _ in range(1200):
        if (tmp_path / "last.pt").exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "model_steps_150.pt").exists()
    code, out, err = run(folder, *SIZE, "--save_dir", tmp_path)
    assert code == 0, err
    assert re.search("steps (60|120) to 150", out)
    one, two = (
        torch.load(place / "model_steps_150.pt", weights_only=True)
        for place in (folder / "out", tmp_path)
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    first, second = (
        json.loads((place / "metrics.json").read_text()) for place in (folder / "out", tmp_path)
    )
    del first["model_file"]
    assert {name: second[name] for name in first if name != "five_gram_accuracy"} == {
        name: value for name, value in first.items() if name != "five_gram_accuracy"
    }  # which `eval` adds, and another test may have run that


def test_flags_out_of_range_are_refused(workplace):
    code, out, err = run(workplace, "--mask_prob", 1.5, "--max_len", 4)
    assert code == 2
    assert out == ""
    assert re.search(r"--mask_prob 1.5: give a number \(above 0, below 1\)", err)
    assert re.search(r"--max_len 4: give a whole number \(at least 5\)", err)


def test_optional_settings_work_together(workplace, tmp_path, monkeypatch, capsys):
    """The last steps at full length, without next sentence, with another schedule."""
    monkeypatch.chdir(workplace)
    recipe = {"objectives": {"masked_lm": 0.5}, "long_share": 0.25}
    recipe |= {"schedule": "warmup_stable_decay", "total_steps": 16, "save_steps": 16}
    (workplace / "recipe.json").write_text(json.dumps(TRAINING | recipe))
    (workplace / "rotary.json").write_text(json.dumps(MODEL | {"positions": "rotary"}))
    shapes, rates, bert = [], [], {}
    real = train.Trainer._gradients

    def spied(self, losses_of, parallel, batch):
        bert.setdefault("fc", self.model.fc.weight.detach().clone())
        shapes.append(tuple(batch["input_ids"].shape))
        rates.append(self.optimizer.get_lr()[0])
        assert "is_next" not in batch
        return real(self, losses_of, parallel, batch)

    monkeypatch.setattr(train.Trainer, "_gradients", spied)
    save_dir = tmp_path / "out"
    pretrain.main(
        "recipe.json", model_cfg="rotary.json", max_len=16, max_pred=3, save_dir=str(save_dir)
    )
    assert shapes == [(32, 16)] * 12 + [(16, 32)] * 4
    assert rates[2:14] == pytest.approx([0.003] * 11 + [0.003 * 3 / 3.2], rel=0.05)
    info = json.loads((save_dir / "model.json").read_text())
    assert (info["max_len"], info["max_pred"], info["objectives"]) == (32, 6, ["masked_lm"])
    metrics = json.loads((save_dir / "metrics.json").read_text())
    assert metrics["max_len"] == 32
    assert "next_accuracy" not in metrics
    state = checkpoint.load_pt(save_dir / "model_steps_16.pt")
    assert not any("pos_embed" in key for key in state)
    assert torch.equal(state["fc.weight"], bert["fc"])  # nothing trains it
    capsys.readouterr()
    pretrain.evaluate(str(save_dir / "model_steps_16.pt"))
    assert "next sentence" not in capsys.readouterr().out
    (workplace / "recipe.json").write_text(json.dumps(TRAINING | recipe | {"batch_size": 1}))
    with pytest.raises(UserError, match="batches of 32 tokens have 0 examples, less than 1"):
        pretrain.main("recipe.json", model_cfg="rotary.json", save_dir=str(save_dir), max_len=16)
    (workplace / "recipe.json").write_text(
        json.dumps(TRAINING | {"objectives": {"masked_instructions": 1}})
    )
    with pytest.raises(UserError, match=r"corpus\.txt has no tabs between instructions"):
        pretrain.main("recipe.json", save_dir=str(save_dir), max_len=16)
