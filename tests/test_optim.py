"""optim.py against the formulas of BERT's Adam and its schedules."""

import copy
import io
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_bert
from hypothesis import given, settings
from hypothesis import strategies as st

import models
import optim

SHAPES = [(5, 7), (7,), (3, 2, 4), (1,)]


def factor(schedule: str, x: float, warmup: float) -> float:
    """BERT's schedules, written from their description."""
    if warmup > 0 and x < warmup:
        return x / warmup
    return {
        "warmup_linear": max(1 - x, 0.0),
        "warmup_constant": 1.0,
        "warmup_cosine": (1 + math.cos(math.pi * min(x, 1.0))) / 2,
        "warmup_stable_decay": 1.0 if x <= 0.8 else max((1 - x) * 5, 0.0),
    }[schedule]


def reference_step(p, g, m, v, lr, b1, b2, e, decay, max_norm):
    """Take a step of BERT's Adam on one parameter; return the new parameter and moments."""
    if max_norm > 0:
        norm = g.pow(2).sum().sqrt()
        g = g * min(1.0, max_norm / (norm + 1e-6))  # the 1e-6 of torch's clip_grad_norm_
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g * g
    return p - lr * (m / (v.sqrt() + e) + decay * p), m, v


def parameters(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES
    ]


def set_gradients(params, step):
    """Set gradients of norms below and above 1; some are always or sometimes missing."""
    generator = torch.Generator().manual_seed(1000 + step)
    for i, p in enumerate(params):
        length = 10.0 ** ((step + i) % 4 - 2)
        g = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.grad = (g * (length / g.norm())).to(p.dtype)
    params[2].grad = None if step % 3 == 1 else params[2].grad
    params[3].grad = None


@pytest.mark.parametrize("max_norm", [1.0, 0.03, -1])
@pytest.mark.parametrize("warmup", [-1, 0, 0.35])
@pytest.mark.parametrize("schedule", list(optim.SCHEDULES))
# On a CPU, the step clips float64 and float32 in different ways.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_steps_equal_the_formula(schedule, warmup, max_norm, dtype, tolerance):
    lr, total, decay, e = 0.02, 10, 0.3, 1e-3
    params = parameters(dtype)
    optimizer = optim.BertAdam(
        [{"params": params[:2]}, {"params": params[2:], "weight_decay_rate": 0.0, "lr": 2 * lr}],
        lr=lr,
        warmup=warmup,
        t_total=total,
        schedule=schedule,
        b1=0.8,
        b2=0.95,
        e=e,
        weight_decay_rate=decay,
        max_grad_norm=max_norm,
    )
    expected = [(p.detach().double(), *torch.zeros(2, *p.shape).double()) for p in params]
    for step in range(total + 2):  # the rate stays at its last value beyond the end
        set_gradients(params, step)
        now = factor(schedule, step / total, warmup)
        for i, p in enumerate(params):
            if p.grad is not None:
                rate, rate_of_decay = (lr, decay) if i < 2 else (2 * lr, 0.0)
                expected[i] = reference_step(
                    expected[i][0],
                    p.grad.double(),
                    *expected[i][1:],
                    rate * now,
                    0.8,
                    0.95,
                    e,
                    rate_of_decay,
                    max_norm,
                )
        assert optimizer.get_lr() == pytest.approx([lr * now, 2 * lr * now], abs=1e-15)
        optimizer.step()
        for p, (value, *_) in zip(params, expected, strict=True):
            torch.testing.assert_close(p.detach().double(), value, rtol=tolerance, atol=tolerance)
    assert params[3] not in optimizer.state


def test_one_step_by_hand():
    """Without bias correction the first step is sqrt(1000) / 10 times the learning rate."""
    p = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    p.grad = torch.tensor([-0.5], dtype=torch.float64)
    optim.BertAdam([p], lr=0.1, weight_decay_rate=0.01).step()
    moved = 0.1 * (0.1 * 0.5) / (math.sqrt(0.001) * 0.5 + 1e-6)
    assert p.item() == pytest.approx(2.0 - 0.1 * 0.01 * 2.0 + moved, abs=1e-12)


def test_clipping_is_torchs_on_each_tensor_alone():
    for dtype in (torch.float32, torch.float64):
        params = parameters(dtype)
        set_gradients(params, 0)
        others = copy.deepcopy(params)
        for p, other in zip(params, others, strict=True):
            other.grad = None if p.grad is None else p.grad.clone()
            torch.nn.utils.clip_grad_norm_([other], 0.05)
        optim.BertAdam(params, lr=0.1, max_grad_norm=0.05).step()
        for p, other in zip(params, others, strict=True):
            torch.testing.assert_close(p.grad, other.grad)


@settings(deadline=None, max_examples=60)
@given(
    length=st.floats(1e-6, 1e6),
    max_norm=st.floats(1e-3, 1e3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 100),
)
def test_clipping_bounds_the_norm_keeps_the_direction_and_spares_the_short(
    length, max_norm, dtype, seed
):
    g = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    g = (g * (length / g.norm())).to(dtype)
    p = torch.nn.Parameter(torch.zeros(4, 5, dtype=dtype))
    p.grad = g.clone()
    optim.BertAdam([p], lr=0.1, max_grad_norm=max_norm).step()
    norm = g.norm()
    assert p.grad.norm() <= max_norm * (1 + 1e-5)
    if norm + 2e-6 < max_norm:
        assert torch.equal(p.grad, g)
    elif norm > max_norm + 2e-6:
        assert p.grad.norm() >= max_norm * (1 - 1e-5) - 2e-6
        torch.testing.assert_close(p.grad / p.grad.norm(), g / norm)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6),
    st.floats(-10, 10),
    st.floats(1e-6, 0.1),
    st.floats(0, 0.1),
    st.sampled_from([-1, 0.5, 1.0]),
)
def test_any_steps_equal_the_formula(grads, value, lr, decay, max_norm):
    """A sequence of gradients of any size and sign, including zeros."""
    p = torch.nn.Parameter(torch.tensor([value, -value], dtype=torch.float64))
    options = {"weight_decay_rate": decay, "max_grad_norm": max_norm}
    optimizer = optim.BertAdam([p], lr=lr, **options)
    q, m, v = p.detach().clone(), torch.zeros(2).double(), torch.zeros(2).double()
    for grad in grads:
        g = torch.tensor([grad, grad / 3], dtype=torch.float64)
        p.grad = g.clone()
        optimizer.step()
        q, m, v = reference_step(q, g, m, v, lr, 0.9, 0.999, 1e-6, decay, max_norm)
    torch.testing.assert_close(p.detach(), q, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(
    value=st.floats(-1e6, 1e6, width=32),
    lr=st.floats(0, 10),
    steps=st.integers(1, 5),
    clip=st.sampled_from([-1, 1.0]),
)
def test_without_gradient_and_decay_nothing_moves(value, lr, steps, clip):
    p = torch.nn.Parameter(torch.full((3,), value))
    optimizer = optim.BertAdam([p], lr=lr, weight_decay_rate=0.0, max_grad_norm=clip)
    for _ in range(steps):
        p.grad = torch.zeros(3)
        optimizer.step()
    assert torch.equal(p.detach(), torch.full((3,), value))


@settings(deadline=None, max_examples=30)
@given(
    x=st.floats(0, 2),
    warmup=st.floats(0, 1) | st.just(-1),
    name=st.sampled_from(list(optim.SCHEDULES)),
)
def test_schedules_stay_between_nothing_and_the_full_rate(x, warmup, name):
    assert 0 <= optim.SCHEDULES[name](x, warmup) <= 1


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("warmup_linear", [0, 0.5, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0, 0]),
        ("warmup_constant", [0, 0.5] + [1] * 10),
    ],
)
def test_learning_rates_of_a_short_training(schedule, rates):
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = optim.BertAdam([p], lr=1.0, warmup=0.2, t_total=10, schedule=schedule)
    for rate in rates:
        assert optimizer.get_lr() == [pytest.approx(rate)]
        optimizer.step()


def test_without_a_total_the_rate_is_constant():
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = optim.BertAdam([p], lr=0.3, warmup=0.5)
    for _ in range(3):
        assert optimizer.get_lr() == [0.3]
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_state_continues_bit_for_bit(dtype):
    def fresh():
        params = parameters(dtype)
        return params, optim.BertAdam(params, lr=0.05, warmup=0.3, t_total=12)

    def train(params, optimizer, steps):
        for step in steps:
            set_gradients(params, step)
            optimizer.step()

    params, optimizer = fresh()
    train(params, optimizer, range(5))
    file = io.BytesIO()
    torch.save({"model": [p.detach() for p in params], "optimizer": optimizer.state_dict()}, file)
    train(params, optimizer, range(5, 12))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again, resumed = fresh()
    with torch.no_grad():
        for p, value in zip(again, saved["model"], strict=True):
            p.copy_(value)
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.get_lr() == [pytest.approx(0.05 * (1 - 5 / 12))]
    train(again, resumed, range(5, 12))
    for p, q in zip(params, again, strict=True):
        assert torch.equal(p, q)


def test_the_closure_has_gradients_and_its_loss_comes_back():
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = optim.BertAdam([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert (p < 1).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1e-9),
        ("lr", math.nan),
        ("lr", math.inf),
        ("warmup", 1.01),
        ("warmup", -0.5),
        ("t_total", 0),
        ("t_total", -2),
        ("schedule", "linear"),
        ("b1", 1.0),
        ("b1", -0.1),
        ("b2", 1.0),
        ("e", 0.0),
        ("weight_decay_rate", -0.01),
        ("max_grad_norm", 0.0),
        ("max_grad_norm", -2.0),
        ("max_grad_norm", math.nan),
    ],
)
def test_bad_settings_are_named(name, value):
    p = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=f"^{name} is {value!r}; it must be "):
        optim.BertAdam([p], **{"lr": 0.1, name: value})
    with pytest.raises(ValueError, match=f"^{name} is "):
        optim.BertAdam([{"params": [p], name: value}], lr=0.1)


def test_optim4gpu_decays_matrices_and_nothing_else():
    model = models.BertModel4Pretrain(tiny_bert(11))
    cfg = SimpleNamespace(lr=1e-3, warmup=0.1, total_steps=50)
    optimizer = optim.optim4GPU(cfg, model)
    decayed, spared = optimizer.param_groups
    for group in (decayed, spared):
        assert (group["lr"], group["warmup"], group["t_total"]) == (1e-3, 0.1, 50)
        assert (group["schedule"], group["max_grad_norm"]) == ("warmup_linear", 1.0)
    assert (decayed["weight_decay_rate"], spared["weight_decay_rate"]) == (0.01, 0.0)
    names = {p: name for name, p in model.named_parameters()}
    # In this model matrices decay, and vectors are biases or layer-norm weights.
    assert {names[p] for p in decayed["params"]} == {n for p, n in names.items() if p.dim() == 2}
    assert {names[p] for p in spared["params"]} == {n for p, n in names.items() if p.dim() == 1}
    assert "decoder_bias" in {names[p] for p in spared["params"]}


def test_optim4gpu_shrinks_only_what_decays():
    model = models.BertModel4Pretrain(tiny_bert(11))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
            p.grad = torch.zeros_like(p)
    optim.optim4GPU(SimpleNamespace(lr=0.5, warmup=0.0, total_steps=1), model).step()
    for name, p in model.named_parameters():
        expected = 1 - 0.5 * 0.01 if p.dim() == 2 else 1.0
        torch.testing.assert_close(p.detach(), torch.full_like(p, expected), msg=name)


def test_optim4gpu_leaves_frozen_parameters_alone():
    model = models.BertModel4Pretrain(tiny_bert(11))
    model.transformer.requires_grad_(False)
    optimizer = optim.optim4GPU(SimpleNamespace(lr=0.5, warmup=0.0, total_steps=1), model)
    held = {p for group in optimizer.param_groups for p in group["params"]}
    assert held == {p for p in model.parameters() if p.requires_grad}


def test_one_cycle_is_torchs_and_continues_where_it_was():
    def made():
        torch.manual_seed(0)
        return torch.nn.Linear(3, 2)

    def train(model, optimizer, steps):
        rates = []
        for step in steps:
            optimizer.zero_grad()
            (model(torch.full((1, 3), step + 1.0)) ** 2).sum().backward()
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
        return rates

    whole, torchs = made(), made()
    plain = torch.optim.AdamW(torchs.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(plain, 0.1, 10, pct_start=0.3)
    expected = []
    for step in range(10):
        expected += train(torchs, plain, [step])
        schedule.step()
    optimizer = optim.OneCycleAdamW(whole.parameters(), 0.1, 0.3, 10)
    assert optimizer.get_lr() == expected[:1]
    assert train(whole, optimizer, range(10)) == expected
    assert max(expected) == pytest.approx(0.1)

    parts = made()
    first = optim.OneCycleAdamW(parts.parameters(), 0.1, 0.3, 10)
    train(parts, first, range(4))
    again = optim.OneCycleAdamW(parts.parameters(), 0.1, 0.3, 10)
    again.load_state_dict(first.state_dict())
    assert train(parts, again, range(4, 10)) == expected[4:]
    for a, b, c in zip(whole.parameters(), torchs.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
