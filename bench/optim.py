"""Time one step of BertAdam on BERT-base beside torch's AdamW(fused=True): python bench/optim.py

Both optimizers step in turn, so that what else runs on the machine slows both alike.
"""

import datetime
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import models
import optim
import utils
from terminal.command_line import command_line

VOCAB_SIZE = 30522  # Google's bert-base-uncased
CONFIG = Path(__file__).resolve().parent.parent / "config" / "bert_base.json"


def milliseconds(step: Callable[[], object], device: torch.device) -> float:
    """Time one call, until the device is done with it."""
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - start)


def main(rounds: int = 15) -> None:
    """Print the median time of one step of each, and their ratio.

    Parameters
    ----------
    rounds : int
        Number of timed steps of each optimizer.
    """
    device = utils.get_device()
    cfg = models.Config.from_json(CONFIG).with_vocab_size(VOCAB_SIZE, CONFIG, "bench/optim.py")
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

    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(
        f"{datetime.date.today()}, {where}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {sum(p.numel() for p in params) / 1e6:.0f} M parameters, "
        f"median of {rounds} steps"
    )
    for name, spent in medians.items():
        print(f"{name:18} {spent:8.2f} ms")
    print(f"ratio              {medians['BertAdam'] / medians['AdamW(fused=True)']:8.2f}")


if __name__ == "__main__":
    command_line(main)
