"""BertAdam, the optimizer of the original BERT, and AdamW with one cycle for small networks."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR


def warmup_linear(x: float, warmup: float) -> float:
    """Rise from 0 to 1 over the share ``warmup`` of the training, then follow 1 - x to 0."""
    return x / warmup if x < warmup else max(0.0, 1 - x)


def warmup_constant(x: float, warmup: float) -> float:
    """Rise from 0 to 1 over the share ``warmup`` of the training, then stay there."""
    return x / warmup if x < warmup else 1.0


def warmup_cosine(x: float, warmup: float) -> float:
    """Rise from 0 to 1 over the share ``warmup`` of the training, then follow a cosine to 0."""
    return x / warmup if x < warmup else 0.5 * (1 + math.cos(math.pi * min(x, 1.0)))


def warmup_stable_decay(x: float, warmup: float) -> float:
    """Rise from 0 to 1 over the share ``warmup``, stay there, fall to 0 over the last fifth.

    References
    ----------
    Hu et al., "MiniCPM", 2024, https://arxiv.org/abs/2404.06395
    """
    return x / warmup if x < warmup else min(1.0, max(0.0, (1 - x) / DECAY))


DECAY = 0.2  # share of the training over which warmup_stable_decay falls
Schedule = Literal["warmup_linear", "warmup_constant", "warmup_cosine", "warmup_stable_decay"]
SCHEDULES = {
    f.__name__: f for f in (warmup_linear, warmup_constant, warmup_cosine, warmup_stable_decay)
}


class BertAdam(torch.optim.Optimizer):
    """Adam as in Google's BERT.

    Three things differ from `torch.optim.AdamW`: no bias correction, a built-in schedule, and the
    gradient of each parameter tensor is clipped by itself, in place. Both decouple weight decay.

    Parameters
    ----------
    params : iterable of Parameter, or of dict
        Parameters, or groups of them with their own settings.
    lr : float
        Learning rate where the schedule is 1.
    warmup : float
        Share of ``t_total`` over which the rate rises from 0; -1 for none.
    t_total : int
        Number of steps of the whole training; -1 keeps the rate at ``lr``.
    schedule : {"warmup_linear", "warmup_constant", "warmup_cosine", "warmup_stable_decay"}
        Factor of ``lr`` as a function of ``x = steps taken / t_total``.
    b1, b2, e : float
        Decay rates of the two moments, and the constant added to the root of the second.
    weight_decay_rate : float
        Each step subtracts this share of a weight, times the learning rate.
    max_grad_norm : float
        Largest norm of the gradient of a parameter tensor; -1 for no clipping.

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
        schedule: Schedule = "warmup_linear",
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
        """Add a group: a dict with "params", all of one device and dtype, and own settings."""
        group = {**self.defaults, **param_group}
        for name, allowed, good in (
            ("lr", "at least 0", 0 <= group["lr"] < math.inf),
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
                raise ValueError(f"{name} is {group[name]!r}; it must be {allowed}")
        super().add_param_group(param_group)

    def get_lr(self) -> list[float]:
        """Return the learning rate of the next step for each parameter group."""
        return [_scheduled_lr(group) for group in self.param_groups]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a `state_dict`, except ``t_total``: a resumed training may have more steps."""
        totals = [group["t_total"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, total in zip(self.param_groups, totals, strict=True):
            group["t_total"] = total

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step and return what ``closure`` returns.

        Parameters without a gradient do not change. Every call counts as a step of the schedule.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params)
            group["step"] += 1
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        grads = [p.grad for p in params]
        exp_avgs = [self.state[p]["exp_avg"] for p in params]
        exp_avg_sqs = [self.state[p]["exp_avg_sq"] for p in params]
        # torch's fused AdamW divides the moments by 1 - b^step. With an infinite step this is
        # exactly 1, which leaves BERT's update.
        steps = [torch.full((), math.inf, device=params[0].device)] * len(params)
        adamw = functools.partial(
            torch._fused_adamw_,
            lr=_scheduled_lr(group),
            beta1=group["b1"],
            beta2=group["b2"],
            eps=group["e"],
            weight_decay=group["weight_decay_rate"],
            amsgrad=False,
            maximize=False,
        )
        if group["max_grad_norm"] == -1:
            adamw(params, grads, exp_avgs, exp_avg_sqs, [], steps)
            return
        norms = torch.stack(torch._foreach_norm(grads))
        excess = ((norms + 1e-6) / group["max_grad_norm"]).clamp_(min=1.0).unbind()
        if params[0].is_cpu and params[0].dtype == torch.float32:
            # The kernel can divide by a (float32) scale, which saves a pass over the gradients.
            # It takes one scale per call; on a CPU the calls cost less than the pass.
            for p, g, m, v, step, scale in zip(
                params, grads, exp_avgs, exp_avg_sqs, steps, excess, strict=True
            ):
                adamw([p], [g], [m], [v], [], [step], grad_scale=scale)
        else:
            torch._foreach_div_(grads, excess)
            adamw(params, grads, exp_avgs, exp_avg_sqs, [], steps)


def _scheduled_lr(group: dict[str, Any]) -> float:
    if group["t_total"] == -1:
        return group["lr"]
    return group["lr"] * SCHEDULES[group["schedule"]](
        group["step"] / group["t_total"], group["warmup"]
    )


def optim4GPU(cfg: Any, model: nn.Module, schedule: Schedule = "warmup_linear") -> BertAdam:
    """Return BERT's optimizer for ``model``, without decay of biases and layer-norm weights.

    Parameters
    ----------
    cfg
        Settings with ``lr``, ``warmup`` (a share of the steps) and ``total_steps``.
    model : Module
        A model made of parts from `models`.
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
        schedule=schedule,
    )


class OneCycleAdamW(torch.optim.AdamW):
    """torch's AdamW and one-cycle schedule behind the interface that `train.Trainer` expects.

    Made for small networks that start from random weights and train for a few hundred steps.
    BertAdam does not correct the bias of its moments, so its first steps are several times larger.

    Parameters
    ----------
    params : iterable of Parameter, or of dict
        Parameters, or groups of them with their own settings.
    lr : float
        Highest learning rate, for groups without one of their own; the lowest is near 0.
    warmup : float
        Share of the training over which the rate rises.
    total_steps : int

    References
    ----------
    Smith and Topin, "Super-Convergence", 2018, https://arxiv.org/abs/1708.07120
    """

    def __init__(self, params: Iterable[Any], lr: float, warmup: float, total_steps: int) -> None:
        super().__init__(params, lr=lr)
        highest = [group["lr"] for group in self.param_groups]
        self.schedule = OneCycleLR(self, highest, total_steps, pct_start=warmup)

    def get_lr(self) -> list[float]:
        """Return the learning rate of the next step for each parameter group."""
        return [group["lr"] for group in self.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step and return what ``closure`` returns."""
        loss = super().step(closure)
        self.schedule.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state needed to resume, including the position in the schedule."""
        return {**super().state_dict(), "steps": self.schedule.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a `state_dict`."""
        state = dict(state_dict)
        self.schedule.last_epoch = state.pop("steps")
        super().load_state_dict(state)
