"""models.py and optim.py against bench/plain.py."""

import numpy as np
import plain
import pytest
import torch
from conftest import shake, tiny_bert

import models
import optim
import pretrain


def config():
    return tiny_bert(50, p_drop_hidden=0.0, p_drop_attn=0.0, max_len=16)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    mask = (np.arange(16) < rng.integers(8, 17, 5)[:, None]).astype(np.int64)
    arrays = {
        "input_ids": rng.integers(0, 50, (5, 16)),
        "segment_ids": rng.integers(0, 2, (5, 16)),
        "input_mask": mask,
        "masked_pos": rng.integers(0, 8, (5, 4)),
        "masked_ids": rng.integers(0, 50, (5, 4)),
        "masked_weights": rng.random((5, 4)),
        "is_next": rng.integers(0, 2, 5),
        "is_next_weights": np.full(5, 0.2),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def twins(dtype):
    torch.manual_seed(0)
    slow = shake(plain.BertModel4Pretrain(config()).to(dtype))
    fast = models.BertModel4Pretrain(config()).to(dtype)
    fast.load_state_dict(slow.state_dict())
    return slow.train(), fast.train()


def gradients(model, data):
    logits_lm, logits_clsf = model(
        data["input_ids"], data["segment_ids"], data.get("input_mask"), data["masked_pos"]
    )
    loss = logits_lm.square().mean() + logits_clsf.square().mean()
    return [logits_lm, logits_clsf, *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_outputs_and_gradients_equal_those_of_the_plain_model(dtype, tolerance):
    slow, fast = twins(dtype)
    for data in (batch(), {**batch(), "input_mask": None}):
        for a, b in zip(gradients(slow, data), gradients(fast, data), strict=True):
            assert torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def test_our_attention_gives_the_gradients_of_the_plain_model(monkeypatch):
    """The fast CPU code, used with bfloat16 and dropout, inside the whole model."""
    slow, fast = twins(torch.float64)

    monkeypatch.setattr(models, "attention", models._Attention.apply)
    for a, b in zip(gradients(slow, batch()), gradients(fast, batch()), strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-11)


def test_ten_steps_of_training_equal_those_of_the_plain_model():
    slow, fast = twins(torch.float64)
    slow_adam = plain.Adam(slow, lr=1e-3)
    cfg = type("Config", (), {"lr": 1e-3, "warmup": 0.0, "total_steps": -1})
    fast_adam = optim.optim4GPU(cfg, fast)
    for step in range(10):
        for model, adam in ((slow, slow_adam), (fast, fast_adam)):
            adam.zero_grad()
            sum(pretrain.get_losses(model, batch(step)).values()).backward()
            adam.step()
    for (name, a), b in zip(slow.named_parameters(), fast.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6), name
