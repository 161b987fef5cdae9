"""Tokens per second of pre-training: our model and its peers, in one run.

    python bench/speed_training.py                          # bert_tiny, three dropouts: 3 minutes
    python bench/speed_training.py --model_cfg config/bert_base.json --batch_size 8 --steps 3 \\
        --own_dropout True --together False           # 6 minutes
    python bench/speed_training.py --compiled True --own_dropout True --max_len 64 --max_pred 16 \\
        --vocab_size 600 --steps 100                  # what torch.compile is worth: 6 minutes
    python bench/speed_training.py optimizer          # BertAdam beside torch's AdamW(fused=True)

A peer is left out if it is not installed, and bfloat16 if the processor does not support it. Each
runs in its own process. They take steps in turn, so that other load on the machine slows all of
them alike, and medians are printed. Each step is forward pass, loss, gradients and optimizer on the
same batch. The plain model is in plain.py; Hugging Face's is BertForPreTraining with its own loss
and AdamW(fused=True), on a GPU compiled. Ratios are of medians, with 95 % intervals by a bootstrap
over the rounds. On a GPU, the model's FLOP/s are also printed as a share of those of large matrix
products, measured here, too.
"""

import dataclasses
import datetime
import importlib.util
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import plain
import torch
from shared import processor
from torch import nn

import models
import optim
import pretrain
import train
import utils
from terminal.command_line import command_line

Batch = dict[str, torch.Tensor]
BERT_BASE = "config/bert_base.json"
DROPOUTS = ((0.1, 0.1), (0.0, 0.1), (0.0, 0.0))  # of attention weights, of hidden states


def main(
    model_cfg: str = "config/bert_tiny.json",
    vocab_size: int = 2000,
    batch_size: int = 32,
    max_len: int = 512,
    max_pred: int = 20,
    steps: int = 7,
    own_dropout: bool = False,
    together: bool = True,
    compiled: bool = False,
    profile: bool = False,
) -> None:
    """Print tokens per second of each, and the ratios.

    Parameters
    ----------
    model_cfg : str
        The model's sizes.
    vocab_size : int
        Size of the vocabulary.
    batch_size : int
        Examples per step.
    max_len : int
        Tokens per example.
    max_pred : int
        Masked tokens per example.
    steps : int
        Number of timed steps for each cell.
    own_dropout : bool
        Only one column, with the dropout of model_cfg.
    together : bool
        Keep all models in memory and take their steps in turn; else measure one after the other.
    compiled : bool
        On a CPU, measure our compiled model, too, and after how many steps that pays. Nothing that
        was compiled before is used.
    profile : bool
        Instead, print the time of our step by PyTorch's operations.
    """
    device = utils.get_device()
    if device.type == "cuda":
        left_out = ON_CPU  # there, ours is always compiled
    else:
        left_out = (GRAPHS, PEER) if compiled else (GRAPHS, PEER, *ON_CPU)
    names = [name for name in ROWS if name not in left_out]
    if train.best_precision(device) == "float32":
        names = [name for name in names if "bfloat16" not in name]
    if importlib.util.find_spec("transformers") is None:
        names = [name for name in names if not name.startswith("Hugging")]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    print(
        f"{datetime.date.today()}, {where}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}; {model_cfg}, vocabulary {vocab_size:,}, "
        f"{batch_size} x {max_len} tokens, {max_pred} of them masked"
    )
    work = model_cfg, vocab_size, batch_size, max_len, max_pred
    if profile:
        print_profile((*work, 0.0, 0.1), device)
        return
    columns = DROPOUTS
    if own_dropout:
        sizes = models.Config.from_json(model_cfg)
        columns = ((sizes.p_drop_attn, sizes.p_drop_hidden),)
    if compiled:
        os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    found: list[dict[str, list[float]]] = []  # for each column, the seconds of each row's steps
    for dropouts in columns:
        found.append({})
        ready: dict[str, float] = {}
        for some in [names] if together else [[name] for name in names]:
            for name, (before, seconds) in measure(some, (*work, *dropouts), steps).items():
                found[-1][name], ready[name] = seconds, before
    tokens = batch_size * max_len
    print(f"{'tokens per second, by dropout of attention / hidden':44}", end="")
    print("".join(f"{f'{a:g} / {h:g}':>20}" for a, h in columns))
    for name in names:
        print(f"{name:44}" + "".join(f"{tokens / np.median(x[name]):20,.0f}" for x in found))
    for what, start in (("plain", "plain"), ("Hugging Face's best", "Hugging")):
        if any(name.startswith(start) for name in names):
            ratios = [ratio_of(fastest(x, start), fastest(x, "ours")) for x in found]
            print(f"{f'our best / {what}':44}" + "".join(f"{ratio:>20}" for ratio in ratios))
    for name in [name for name in names if name in ON_CPU]:
        base = name.removesuffix(", compiled")
        more = ready[name] - ready[base]
        gain = np.median(found[-1][base]) - np.median(found[-1][name])
        pays = f"after {more / gain:,.0f} steps" if gain > 0 else "never"
        print(
            f"{name}: {ratio_of(found[-1][base], found[-1][name])} times as fast as without, "
            f"{more:.0f} s to compile, pays {pays}"
        )
    if device.type == "cuda":
        sizes = models.Config.from_json(model_cfg)
        sizes = dataclasses.replace(sizes, vocab_size=vocab_size)
        flops = train.flops_per_token(sizes, max_len, max_pred)
        ceiling = train.product_flops(device, torch.bfloat16)
        print(f"{flops / 1e9:.3f} GFLOP a token; products reach {ceiling / 1e12:.0f} TFLOP/s")
        shares = [tokens * flops / ceiling / np.median(fastest(x, "ours")) for x in found]
        print(f"{'our share of that':44}" + "".join(f"{share:20.1%}" for share in shares))


def fastest(seconds: dict[str, list[float]], start: str) -> list[float]:
    """Return the seconds of the row with the lowest median whose name begins with ``start``."""
    return min((s for name, s in seconds.items() if name.startswith(start)), key=np.median)


def ratio_of(slow: list[float], fast: list[float]) -> str:
    """Return how many times as fast, with an interval; the steps of a round belong together."""
    both = np.array([slow, fast])
    drawn = np.random.default_rng(0).integers(both.shape[1], size=(1000, both.shape[1]))
    ratios = np.divide(*np.median(both[:, drawn], axis=2))
    low, high = np.quantile(ratios, [0.025, 0.975])
    return f"{np.divide(*np.median(both, axis=1)):.2f} ({low:.2f}-{high:.2f})"


def measure(names: list[str], work: tuple, steps: int) -> dict[str, tuple[float, list[float]]]:
    """Return the seconds until each row was ready, and those of each of its steps, in turn."""
    context = multiprocessing.get_context("spawn")
    pipes, processes, ready = {}, [], {}
    for name in names:
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(theirs, name, work), daemon=True))
        processes[-1].start()
        ready[name] = pipes[name].recv()  # waits for its first steps
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(steps):
        for name, pipe in pipes.items():
            pipe.send(True)
            seconds[name].append(pipe.recv())
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(False)
        process.join()
    return {name: (ready[name], seconds[name]) for name in names}


def serve(pipe: Connection, name: str, work: tuple) -> None:
    """Take a step for each True received, and answer with its seconds."""
    device = utils.get_device()
    start = time.perf_counter()
    step = make_step(name, work, device)
    pipe.send(time.perf_counter() - start)
    while pipe.recv():
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        pipe.send(time.perf_counter() - start)


def print_profile(work: tuple, device: torch.device) -> None:
    """Print the share of each operation in our step, with dropout of hidden states only."""
    step = make_step(f"ours, {train.best_precision(device)}", work, device)
    for line in profile_of(step, device):
        print(line)


def profile_of(step: Callable[[], None], device: torch.device) -> list[str]:
    """Return lines with the time of a step, and the share of each operation or kernel in it."""
    from torch.profiler import ProfilerActivity, profile

    activities = [getattr(ProfilerActivity, device.type.upper())]
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(5):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    events = profiler.key_averages()
    name = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    total = sum(getattr(event, name) for event in events)
    return [f"{total / 5000:.0f} ms a step"] + [
        f"{getattr(event, name) / total:6.1%}  {event.count // 5:4} x {event.key[:90]}"
        for event in sorted(events, key=lambda event: -getattr(event, name))[:16]
    ]


def make_step(name: str, work: tuple, device: torch.device) -> Callable[[], None]:
    """Return a function that takes one step of a row's training, after two warm-up steps."""
    torch.manual_seed(0)
    model_cfg, vocab_size, batch_size, max_len, max_pred, p_drop_attn, p_drop_hidden = work
    sizes = models.Config(
        **{
            **vars(models.Config.from_json(model_cfg)),
            "vocab_size": vocab_size,
            "p_drop_attn": p_drop_attn,
            "p_drop_hidden": p_drop_hidden,
        }
    )
    with device:
        step = ROWS[name](sizes, random_batch(vocab_size, batch_size, max_len, max_pred), device)
    for _ in range(2):
        step()
    return step


def random_batch(vocab_size: int, batch_size: int, max_len: int, max_pred: int) -> Batch:
    position = torch.rand(batch_size, max_len - 1).topk(max_pred).indices + 1  # not [CLS]
    return {
        "input_ids": torch.randint(5, vocab_size, (batch_size, max_len)),
        "segment_ids": (torch.arange(max_len) >= max_len // 2).long().repeat(batch_size, 1),
        "masked_pos": position,
        "masked_ids": torch.randint(5, vocab_size, (batch_size, max_pred)),
        "masked_weights": torch.full((batch_size, max_pred), 1 / (batch_size * max_pred)),
        "is_next": torch.randint(2, (batch_size,)),
        "is_next_weights": torch.full((batch_size,), 1 / batch_size),
    }


def step_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | plain.Adam,
    loss_of: Callable[[], torch.Tensor],
    device: torch.device,
    precision: train.Precision,
) -> Callable[[], None]:
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = loss_of()
        loss.backward()
        optimizer.step()

    return step


def of_plain(sizes: models.Config, batch: Batch, device: torch.device) -> Callable[[], None]:
    model = plain.BertModel4Pretrain(sizes)

    def loss_of() -> torch.Tensor:
        return sum(pretrain.get_losses(model, batch).values())

    return step_of(model, plain.Adam(model, lr=1e-4), loss_of, device, "float32")


def of_hugging_face(precision: train.Precision, compiled: bool = False) -> Callable:
    def make(sizes: models.Config, batch: Batch, device: torch.device) -> Callable[[], None]:
        import transformers

        model = transformers.BertForPreTraining(
            transformers.BertConfig(
                vocab_size=sizes.vocab_size,
                hidden_size=sizes.dim,
                num_hidden_layers=sizes.n_layers,
                num_attention_heads=sizes.n_heads,
                intermediate_size=sizes.dim_ff,
                max_position_embeddings=sizes.max_len,
                hidden_dropout_prob=sizes.p_drop_hidden,
                attention_probs_dropout_prob=sizes.p_drop_attn,
                attn_implementation="sdpa",
            )
        )
        labels = torch.full_like(batch["input_ids"], -100)
        labels = labels.scatter(1, batch["masked_pos"], batch["masked_ids"])
        run = torch.compile(model, dynamic=False) if compiled else model

        def loss_of() -> torch.Tensor:
            return run(
                input_ids=batch["input_ids"],
                token_type_ids=batch["segment_ids"],
                labels=labels,
                next_sentence_label=batch["is_next"],
            ).loss

        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        return step_of(model, optimizer, loss_of, device, precision)

    return make


def of_ours(precision: train.Precision, mode: str = "default", compiled: bool = False) -> Callable:
    def make(sizes: models.Config, batch: Batch, device: torch.device) -> Callable[[], None]:
        utils.keep_freed_memory()
        model = models.BertModel4Pretrain(sizes)
        get_losses = pretrain.get_losses
        if compiled or device.type == "cuda":
            get_losses = torch.compile(get_losses, mode=mode, dynamic=False)

        def loss_of() -> torch.Tensor:
            return sum(get_losses(model, batch).values())

        return step_of(model, optim.BertAdam(model.parameters(), 1e-4), loss_of, device, precision)

    return make


PEER = "Hugging Face, bfloat16, compiled"
GRAPHS = "ours, bfloat16, CUDA graphs"
ON_CPU = ("ours, float32, compiled", "ours, bfloat16, compiled")
ROWS = {
    "plain, float32": of_plain,
    "Hugging Face, float32": of_hugging_face("float32"),
    "Hugging Face, bfloat16": of_hugging_face("bfloat16"),
    PEER: of_hugging_face("bfloat16", compiled=True),
    "ours, float32": of_ours("float32"),
    "ours, bfloat16": of_ours("bfloat16"),
    ON_CPU[0]: of_ours("float32", compiled=True),
    ON_CPU[1]: of_ours("bfloat16", compiled=True),
    GRAPHS: of_ours("bfloat16", "reduce-overhead"),
}


def milliseconds(step: Callable[[], object], device: torch.device) -> float:
    """Time one call, until the device is done with it."""
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - start)


def optimizer(rounds: int = 15) -> None:
    """Print the median time of one step of BertAdam and of AdamW(fused=True) on BERT-base.

    They take steps in turn, so that other load on the machine slows both alike.

    Parameters
    ----------
    rounds : int
        Number of timed steps of each optimizer.
    """
    device = utils.get_device()
    cfg = models.Config.from_json(BERT_BASE).with_vocab_size(
        30522,  # Google's bert-base-uncased
        BERT_BASE,
        "bench/speed_training.py",
    )
    with device:
        params = [torch.nn.Parameter(p) for p in models.BertModel4Pretrain(cfg).parameters()]
        for p in params:
            p.grad = torch.randn_like(p)
    steps = {
        "AdamW(fused=True)": torch.optim.AdamW(params, lr=1e-4, fused=True).step,
        "BertAdam": optim.BertAdam(params, lr=1e-4, warmup=0.1, t_total=1000).step,
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for p in params:
            p.grad.normal_()  # longer than max_grad_norm, so that there is something to clip
        for name, step in steps.items():
            times[name].append(milliseconds(step, device))
    medians = {name: statistics.median(spent[1:]) for name, spent in times.items()}  # 0: warm-up

    where = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    print(
        f"{datetime.date.today()}, {where}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {sum(p.numel() for p in params) / 1e6:.0f} M parameters, "
        f"median of {rounds} steps"
    )
    for name, spent in medians.items():
        print(f"{name:18} {spent:8.2f} ms")
    print(f"ratio              {medians['BertAdam'] / medians['AdamW(fused=True)']:8.2f}")


if __name__ == "__main__":
    command_line(main, optimizer=optimizer)
