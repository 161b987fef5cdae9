"""models.py: the fast CPU code for attention and dropout against plain PyTorch."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from models import add_dropped, dropout, kept


def inputs(dtype, length=20, seed=0):
    """Return q, k and v of 3 examples and 2 heads, a mask, and a gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(3, length, 3, 2, 8, generator=generator, dtype=dtype)
    gradient = torch.randn(3, length, 2, 8, generator=generator, dtype=dtype)
    lengths = torch.tensor([length, length // 2, 1])
    mask = (torch.arange(length) < lengths[:, None])[:, None, None, :]
    return qkv.requires_grad_(), mask, gradient


def outcome(function, qkv, gradient):
    """Return the result of a function of q, k and v, and their gradients."""
    out = function(qkv)
    return [out, *torch.autograd.grad(out, [qkv], gradient)]


def pytorchs(mask):
    """PyTorch's attention, which expects heads first."""

    def function(qkv):
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, mask, scale=1.0).transpose(1, 2)

    return function


@pytest.mark.parametrize("part", [1, 3 * 20**2, 2**20])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_and_its_gradients_equal_pytorchs(monkeypatch, part, masked):
    monkeypatch.setattr(models, "PART", part)
    qkv, mask, gradient = inputs(torch.float64)
    mask = mask if masked else None
    expected = outcome(pytorchs(mask), qkv, gradient)
    found = outcome(lambda x: models._Attention.apply(x, mask, 0.0), qkv, gradient)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dropout_equals_the_formula(monkeypatch, dtype, masked):
    """With the same random factors, autograd through the formula gives the same."""
    monkeypatch.setattr(models, "PART", 2 * 20**2)  # three parts of two heads
    qkv, mask, gradient = inputs(dtype)
    mask = mask if masked else None
    torch.manual_seed(5)
    found = outcome(lambda x: models.attention(x, mask, 0.3), qkv, gradient)
    torch.manual_seed(5)
    factors = torch.cat([kept(torch.Size([2, 20, 20]), 0.3, dtype) for _ in range(3)])

    def formula(qkv):
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(2, 3)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return (scores.softmax(-1) * factors.view(3, 2, 20, 20) @ v).transpose(1, 2)

    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for ours, theirs in zip(found, outcome(formula, qkv, gradient), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=tolerance)
    assert not torch.allclose(found[0], pytorchs(mask)(qkv), atol=0.1)


@pytest.mark.parametrize("masked", [False, True])
def test_bfloat16_is_near_float32(masked):
    """Eight bits of mantissa: a hundredth of the largest element, as PyTorch's own kernel."""
    qkv, mask, gradient = inputs(torch.float32, length=64)
    mask = mask if masked else None
    rough = qkv.detach().bfloat16().requires_grad_()
    exact = rough.detach().float().requires_grad_()
    plain = outcome(pytorchs(mask), exact, gradient)
    found = outcome(lambda x: models.attention(x, mask, 0.0), rough, gradient.bfloat16())
    for ours, theirs in zip(found, plain, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - theirs).abs().max() < 0.02 * theirs.abs().max()


@pytest.mark.parametrize("p_drop", [0.0, 0.3])
@pytest.mark.parametrize("part", [1, 2**20])
@pytest.mark.parametrize("masked", [False, True])
def test_a_few_queries_give_the_same_as_all_of_them(monkeypatch, p_drop, part, masked):
    """A few queries alone give the same as these queries among all."""
    monkeypatch.setattr(models, "PART", part)
    qkv, mask, gradient = inputs(torch.float64)
    mask = mask if masked else None
    rows = [7, 0, 7]  # one of them twice

    def some(qkv):
        return models._Attention.apply(qkv[:, :, 1:], mask, p_drop, qkv[:, rows, 0])

    def formula(qkv):
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = q[:, :, rows] @ k.transpose(2, 3)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return (scores.softmax(-1) * factors @ v).transpose(1, 2)

    torch.manual_seed(5)
    found = outcome(some, qkv, gradient[:, rows])
    torch.manual_seed(5)
    factors = torch.ones(3, 2, 3, 20, dtype=torch.float64)
    if p_drop:
        size = max(1, part // 60)  # heads computed at a time
        shapes = [torch.Size([min(size, 6 - start), 3, 20]) for start in range(0, 6, size)]
        factors = torch.cat([kept(shape, p_drop, torch.float64) for shape in shapes])
        factors = factors.view(3, 2, 3, 20)
    for ours, theirs in zip(found, outcome(formula, qkv, gradient[:, rows]), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


def test_a_text_of_padding_alone_is_finite():
    qkv, mask, gradient = inputs(torch.bfloat16)
    out = outcome(lambda x: models.attention(x, mask & False, 0.1), qkv, gradient)
    assert all(x.isfinite().all() for x in out)


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 9), st.integers(0, 2**32))
def test_dropout_factors_have_mean_one(p_drop, n, seed):
    torch.manual_seed(seed)
    factors = kept(torch.Size([1000, n]), p_drop, torch.float64)
    assert factors.shape == (1000, n)
    share = max(1 - p_drop, 2**-16)
    for value in factors.unique().tolist():
        assert value == 0 or value == pytest.approx(1 / share, rel=2**-16 / share)
    spread = math.sqrt((1 - share) / share / (1000 * n))  # standard deviation of the mean
    assert abs(factors.mean() - 1) < 6 * spread + 0.01


def test_each_of_four_neighbours_is_dropped_as_often():
    """They share one 64-bit number."""
    torch.manual_seed(0)
    factors = kept(torch.Size([100_000, 4]), 0.1, torch.float32)
    dropped = (factors == 0).float()
    assert torch.allclose(dropped.mean(0), torch.tensor(0.1), atol=0.005)
    assert (dropped.T.corrcoef() - torch.eye(4)).abs().max() < 0.02


def test_dropout_and_its_gradient_use_the_same_factors():
    x = torch.randn(50, 30, dtype=torch.float64, requires_grad=True)
    y = torch.randn(50, 30, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    factors = kept(x.shape, 0.2, x.dtype)
    torch.manual_seed(3)
    (d_x,) = torch.autograd.grad(dropout(x, 0.2).sum(), [x])
    torch.manual_seed(3)
    total = add_dropped(x, y, 0.2)
    assert torch.equal(d_x, factors)
    assert torch.allclose(total, x + factors * y)
    assert torch.equal(torch.autograd.grad(total.sum(), [y])[0], factors)
    assert dropout(x, 0.0) is x
    assert torch.equal(add_dropped(x, y, 0.0), x + y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_attention_is_the_same(dtype):
    """Without dropout; with it, torch.compile draws numbers of its own."""
    qkv, mask, gradient = inputs(dtype)
    compiled = torch.compile(lambda x: models.attention(x, mask, 0.0), backend="aot_eager")
    expected = outcome(lambda x: models.attention(x, mask, 0.0), qkv, gradient)
    for ours, theirs in zip(outcome(compiled, qkv, gradient), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    dropped = torch.compile(lambda x: models.attention(x, mask, 0.5), backend="aot_eager")
    assert not torch.equal(outcome(dropped, qkv, gradient)[0], expected[0])
