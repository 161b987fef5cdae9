"""BertAdam, the optimizer that BERT was trained with, and its learning-rate schedules."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw


def warmup_linear(x: float, warmup: float) -> float:
    """Rise from 0 to 1 over the share ``warmup`` of the training, then lie on the line 1 - x."""
    return x / warmup if x < warmup else max(0.0, 1 - x)


def warmup_constant(x: float, warmup: float) -> float:
    """Rise from 0 to 1 over the share ``warmup`` of the training, then stay there."""
    return x / warmup if x < warmup else 1.0


def warmup_cosine(x: float, warmup: float) -> float:
    """Rise from 0 to 1 over the share ``warmup`` of the training, then follow a cosine to 0."""
    return x / warmup if x < warmup else 0.5 * (1 + math.cos(math.pi * min(x, 1.0)))


SCHEDULES = {f.__name__: f for f in (warmup_linear, warmup_constant, warmup_cosine)}


class BertAdam(torch.optim.Optimizer):
    """Adam as Google's BERT has it.

    It differs from `torch.optim.AdamW` in three ways: no bias correction, a schedule of its own,
    and each parameter's gradient is clipped by itself, in place. Weight decay is decoupled in both.

    Parameters
    ----------
    params : iterable of Parameter, or of dict
        Parameters, or groups of them with their own settings.
    lr : float
        Learning rate at the schedule's 1.
    warmup : float
        Share of ``t_total`` over which the rate rises from 0; -1 for none.
    t_total : int
        Number of steps of the whole training; -1 keeps the rate at ``lr``.
    schedule : {"warmup_linear", "warmup_constant", "warmup_cosine"}
        With ``x = steps taken / t_total``, the factor of ``lr``.
    b1, b2, e : float
        Decay rates of the two moments, and what is added to the root of the second.
    weight_decay_rate : float
        Share of a weight, times the learning rate, that each step takes away.
    max_grad_norm : float
        Longest gradient of one parameter tensor; -1 for no clipping.

    Raises
    ------
    ValueError
        A setting out of range.

    References
    ----------
    https://github.com/google-research/bert/blob/master/optimization.py
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        warmup: float = -1,
        t_total: int = -1,
        schedule: str = "warmup_linear",
        b1: float = 0.9,
        b2: float = 0.999,
        e: float = 1e-6,
        weight_decay_rate: float = 0.01,
        max_grad_norm: float = 1.0,
    ) -> None:
        settings = {
            "lr": lr,
            "warmup": warmup,
            "t_total": t_total,
            "schedule": schedule,
            "b1": b1,
            "b2": b2,
            "e": e,
            "weight_decay_rate": weight_decay_rate,
            "max_grad_norm": max_grad_norm,
        }
        super().__init__(params, {**settings, "step": 0})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for name, allowed, good in (
            ("lr", "at least 0", group["lr"] >= 0),
            ("warmup", "in [0, 1], or -1", group["warmup"] == -1 or 0 <= group["warmup"] <= 1),
            ("t_total", "at least 1, or -1", group["t_total"] == -1 or group["t_total"] >= 1),
            ("schedule", f"one of {', '.join(SCHEDULES)}", group["schedule"] in SCHEDULES),
            ("b1", "in [0, 1)", 0 <= group["b1"] < 1),
            ("b2", "in [0, 1)", 0 <= group["b2"] < 1),
            ("e", "above 0", group["e"] > 0),
            ("weight_decay_rate", "at least 0", group["weight_decay_rate"] >= 0),
            (
                "max_grad_norm",
                "above 0, or -1",
                group["max_grad_norm"] == -1 or group["max_grad_norm"] > 0,
            ),
        ):
            if not good:
                raise ValueError(f"{name} is {group[name]!r}, but must be {allowed}")

    def get_lr(self) -> list[float]:
        """Return the learning rate of the next step, for each parameter group."""
        return [_scheduled_lr(group) for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
                    self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
            grads = [p.grad for p in params]
            if group["max_grad_norm"] > 0:
                _clip_each(grads, group["max_grad_norm"])
            # torch's fused kernel divides the moments by 1 - b^step. At step infinity that is
            # exactly 1, and what is left is BERT's update.
            never = {p.device: torch.full((), math.inf, device=p.device) for p in params}
            adamw(
                params,
                grads,
                [self.state[p]["exp_avg"] for p in params],
                [self.state[p]["exp_avg_sq"] for p in params],
                [],
                [never[p.device] for p in params],
                fused=True,
                amsgrad=False,
                beta1=group["b1"],
                beta2=group["b2"],
                lr=_scheduled_lr(group),
                weight_decay=group["weight_decay_rate"],
                eps=group["e"],
                maximize=False,
            )
            group["step"] += 1
        return loss


def _scheduled_lr(group: dict[str, Any]) -> float:
    if group["t_total"] == -1:
        return group["lr"]
    return group["lr"] * SCHEDULES[group["schedule"]](
        group["step"] / group["t_total"], group["warmup"]
    )


def _clip_each(grads: list[Tensor], max_norm: float) -> None:
    """Scale each gradient whose norm exceeds ``max_norm`` down to it, in place."""
    if not grads:
        return
    scales = torch._foreach_norm(grads)
    torch._foreach_add_(scales, 1e-6)
    torch._foreach_reciprocal_(scales)
    torch._foreach_mul_(scales, max_norm)
    torch._foreach_clamp_max_(scales, 1.0)
    torch._foreach_mul_(grads, scales)


def optim4GPU(cfg: Any, model: nn.Module) -> BertAdam:  # noqa: N802 - the lineage's name
    """Return BERT's optimizer for ``model``: no decay on biases and layer-norm weights.

    Parameters
    ----------
    cfg
        Has ``lr``, ``warmup`` (a share of the steps) and ``total_steps``.
    model : Module
        A model made of `models`' parts.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decays = {name: not name.endswith(("bias", "gamma", "beta")) for name, _ in named}
    return BertAdam(
        [
            {"params": [p for name, p in named if decays[name]]},
            {"params": [p for name, p in named if not decays[name]], "weight_decay_rate": 0.0},
        ],
        lr=cfg.lr,
        warmup=cfg.warmup,
        t_total=cfg.total_steps,
    )
