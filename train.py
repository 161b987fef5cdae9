"""The training loop: steps, several processes, logging, saving and resuming."""

import dataclasses
import os
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

import checkpoint
import utils

# TensorBoard imports TensorFlow where it is installed (10 s and many messages), unless this
# module exists; its own stub writes the same files.
sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))
from torch.utils.tensorboard import SummaryWriter  # noqa: E402

LOG_STEPS = 20  # losses are read from the device once per so many steps

Precision = Literal["float32", "bfloat16"]
Batch = dict[str, np.ndarray]
Losses = dict[str, Tensor]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=utils.STRICT)
class Config:
    """How to train; all keys but ``accumulate`` are needed.

    Attributes
    ----------
    seed : int
        Of weights, batches and dropout.
    batch_size : int
        Examples per step, over all processes.
    accumulate : int
        Parts that each process computes its share of a batch in, one after the other, for GPUs of
        little memory. The result is the same, dropout aside.
    lr : float
        Highest learning rate.
    n_epochs, total_steps : int
        Training ends after so many passes or steps, whichever comes first.
    warmup : float
        Share of the training, 0 to 1, over which the learning rate rises from 0.
    save_steps : int
        Evaluate and save once per so many steps, and at the end.
    """

    seed: pydantic.NonNegativeInt
    batch_size: pydantic.PositiveInt
    lr: pydantic.PositiveFloat
    n_epochs: pydantic.PositiveInt
    warmup: Annotated[float, pydantic.Field(ge=0, le=1)]
    save_steps: pydantic.PositiveInt
    total_steps: pydantic.PositiveInt
    accumulate: pydantic.PositiveInt = 1

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> "Config":
        """Read a JSON file; every fault is one `utils.UserError` naming the file and the keys."""
        return utils.read_config(cls, path)

    def with_epochs(self, steps_per_epoch: int) -> "Config":
        """Return this config with the number of steps that will really be done."""
        steps = min(self.total_steps, self.n_epochs * steps_per_epoch)
        return dataclasses.replace(self, total_steps=steps)


def start_processes(device: torch.device) -> tuple[int, int]:
    """Join the processes that torchrun started; return this one's number and how many there are."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return (dist.get_rank(), world) if world > 1 else (0, 1)


def share(n: int, part: int, parts: int) -> slice:
    """Return which of ``n`` rows are one of ``parts`` parts, as equal in size as can be."""
    return slice(n * part // parts, n * (part + 1) // parts)


def best_precision(device: torch.device) -> Precision:
    """Return "bfloat16" where the device multiplies it in hardware, else "float32"."""
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"


class Trainer:
    """Train a model on batches that are a function of the step.

    As step k's batch and dropout follow from the seed and k alone, a run that was interrupted
    goes on as if it had not been, and any number of processes does the same training.

    Parameters
    ----------
    cfg : Config
        ``total_steps`` is the exact end.
    model : Module
        Moved to ``device``.
    optimizer : Optimizer
        Of the model's parameters, with a ``get_lr`` like `optim.BertAdam`'s.
    get_batch : callable
        (step, rank, world) -> arrays of this process's `share` of the batch's rows, among them
        ``input_ids``; first dimension the examples.
    get_losses : callable
        (model, batch of tensors) -> named losses, whose sum is minimised. Each must be a sum over
        rows that is already divided by what the *whole* batch holds: processes add them up.
    evaluate : callable
        Model -> named measures; called in evaluation mode at every save and at the end.
    save_dir : path-like
        Gets ``model_steps_<k>.pt``, ``last.pt`` and TensorBoard's ``runs``.
    device : torch.device
    settings : dict of str to number or str
        All that decides the result. A run is resumed only with the same settings.
    precision : {"float32", "bfloat16"}
        Of the products and of what is kept for the gradients; weights and their sums are float32.
    compile : bool
        Let torch.compile fuse what ``get_losses`` does. That takes a minute before the first step.
    """

    def __init__(
        self,
        cfg: Config,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        get_batch: Callable[[int, int, int], Batch],
        get_losses: Callable[[nn.Module, dict[str, Tensor]], Losses],
        evaluate: Callable[[nn.Module], dict[str, float]],
        save_dir: str | os.PathLike[str],
        device: torch.device,
        settings: dict[str, Any],
        precision: Precision = "float32",
        compile: bool = False,
    ) -> None:
        self.cfg = cfg
        self.model = model.to(device)
        self.optimizer = optimizer
        self.get_batch = get_batch
        self.get_losses = torch.compile(get_losses) if compile else get_losses
        self.evaluate = evaluate
        self.save_dir = Path(save_dir)
        self.device = device
        self.settings = settings
        self.precision = precision
        self.step = 0
        self.rank, self.world = start_processes(device)
        if cfg.batch_size < self.world * cfg.accumulate:
            raise utils.UserError(
                f"batch_size {cfg.batch_size} is below {self.world} processes times accumulate "
                f"{cfg.accumulate}"
            )

    def train(self) -> dict[str, float]:
        """Train from ``self.step`` to the end; return the last evaluation's measures.

        Raises
        ------
        utils.UserError
            The GPU's memory is too small, or a loss is not finite.
        KeyboardInterrupt
            Ctrl-C or SIGTERM came; what was reached is saved.
        """
        if self.device.type == "cpu":
            utils.keep_freed_memory()
        model = nn.parallel.DistributedDataParallel(self.model) if self.world > 1 else self.model
        log = Log(self) if self.rank == 0 else None
        unread: list[Losses] = []
        tokens = 0  # of this process, since the last reading
        measures: dict[str, float] = {}
        # torchrun ends its processes at different steps: only a lone process can save and stop.
        signals = _deferred_signals() if self.world == 1 else nullcontext([])
        with _out_of_memory(self.cfg.batch_size), signals as received:
            while self.step < self.cfg.total_steps:
                model.train()
                torch.manual_seed(self._seed(self.step))
                batch = self.get_batch(self.step, self.rank, self.world)
                unread.append(self._gradients(model, batch))
                tokens += batch["input_ids"].size
                self.optimizer.step()
                self.step += 1

                saving = self.step % self.cfg.save_steps == 0 or self.step == self.cfg.total_steps
                if saving or received or self.step % LOG_STEPS == 0:
                    means = self._read(unread)
                    if log:
                        log.steps(means, tokens * self.world)
                    unread, tokens = [], 0
                if saving and log:
                    measures = self.evaluate(self.model.eval())
                    log.measures(measures)
                    self._save_model()
                if (saving or received) and self.rank == 0:
                    self._save_last(measures)
                if received:
                    print(f"stopped and saved at step {self.step}; the same command goes on")
                    raise KeyboardInterrupt
        if log:
            log.close()
        if self.world > 1:
            dist.barrier()  # the others wait for the first one's last evaluation
            dist.destroy_process_group()
        return measures

    def resume(self) -> dict[str, float] | None:
        """Go back to where ``save_dir/last.pt`` stands, if it is there.

        Returns
        -------
        The last measures, when that training had reached its end; else None.

        Raises
        ------
        utils.UserError
            It was another training: the first setting that differs is named.
        """
        path = self.save_dir / "last.pt"
        if not path.exists():
            return None
        last = checkpoint.load_pt(path)
        if not isinstance(last, dict) or "settings" not in last:
            raise utils.UserError(f"{path} is not what a training left; choose another save_dir")
        for name in {**last["settings"], **self.settings}:
            before, now = last["settings"].get(name), self.settings.get(name)
            if before != now:
                raise utils.UserError(
                    f"{self.save_dir} holds a training with {name} {before}, not {now}; "
                    "choose another save_dir, or give --resume False to replace that training"
                )
        self.model.load_state_dict(last["model"])
        self.optimizer.load_state_dict(last["optimizer"])
        self.step = last["step"]
        return last["measures"] if self.step == self.cfg.total_steps else None

    def forget(self) -> None:
        """Delete what an earlier training left in ``save_dir``."""
        for path in [*self.save_dir.glob("model_steps_*.pt"), *self.save_dir.glob("runs/events.*")]:
            path.unlink()
        (self.save_dir / "last.pt").unlink(missing_ok=True)

    def _seed(self, step: int) -> int:
        state = np.random.SeedSequence([self.cfg.seed, step, self.rank])
        return int(state.generate_state(1, np.uint64)[0])

    def _gradients(self, model: nn.Module, batch: Batch) -> Losses:
        """Compute the gradients of this process's share of a batch, and return its losses."""
        self.optimizer.zero_grad()
        parts = self.cfg.accumulate
        sums: Losses = {}
        for part in range(parts):
            rows = self._rows(batch, share(len(batch["input_ids"]), part, parts))
            last = part == parts - 1
            alone = model.no_sync() if self.world > 1 and not last else nullcontext()
            bfloat16 = self.precision == "bfloat16"
            with alone:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
                    losses = self.get_losses(model, rows)
                # DistributedDataParallel averages over processes; ours are shares of one sum.
                (sum(losses.values()) * self.world).backward()
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach()
        return sums

    def _rows(self, batch: Batch, some: slice) -> dict[str, Tensor]:
        """Copy some rows to the device; a GPU goes on with what it has meanwhile."""
        rows = {name: torch.from_numpy(array[some]) for name, array in batch.items()}
        if self.device.type == "cpu":
            return rows
        return {name: x.pin_memory().to(self.device, non_blocking=True) for name, x in rows.items()}

    def _read(self, unread: list[Losses]) -> dict[str, float]:
        """Return each loss's mean over the steps since the last reading, checked to be finite."""
        table = torch.stack([torch.stack(list(losses.values())) for losses in unread])  # (N, L)
        if self.world > 1:
            dist.all_reduce(table)
        table = table.cpu()
        bad = (~table.isfinite()).any(1).nonzero()
        if len(bad):
            step = self.step - len(unread) + int(bad[0]) + 1
            raise utils.UserError(
                f"the loss is not a finite number at step {step}; lower lr ({self.cfg.lr}) or "
                f"raise warmup ({self.cfg.warmup})"
            )
        return dict(zip(unread[0], table.mean(0).tolist(), strict=True))

    def _save_model(self) -> None:
        path = self.save_dir / f"model_steps_{self.step}.pt"
        checkpoint.save_pt(self.model.state_dict(), path)

    def _save_last(self, measures: dict[str, float]) -> None:
        last = {
            "settings": self.settings,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "measures": measures,
        }
        checkpoint.save_pt(last, self.save_dir / "last.pt")


class Log:
    """What the user sees of a training: a progress bar, TensorBoard, a line per evaluation."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.logged = trainer.step
        self.writer = SummaryWriter(trainer.save_dir / "runs", purge_step=trainer.step or None)
        self.bar = tqdm(
            total=trainer.cfg.total_steps,
            initial=trainer.step,
            unit="step",
            disable=None,
        )
        self.since = time.perf_counter()

    def steps(self, losses: dict[str, float], tokens: int) -> None:
        """Log the steps since the last call; ``tokens`` are those of all processes."""
        done = self.trainer.step - self.logged
        values = {f"train/{name}": value for name, value in losses.items()}
        values["train/lr"] = self.trainer.optimizer.get_lr()[0]
        values["train/tokens_per_second"] = tokens / (time.perf_counter() - self.since)
        self._write(values)
        self.bar.update(done)
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()})
        self.logged, self.since = self.trainer.step, time.perf_counter()

    def measures(self, measures: dict[str, float]) -> None:
        self._write({f"eval/{name}": value for name, value in measures.items()})
        text = ", ".join(f"{name} {value:.4g}" for name, value in measures.items())
        tqdm.write(f"step {self.trainer.step}/{self.trainer.cfg.total_steps}: {text}")
        self.since = time.perf_counter()

    def close(self) -> None:
        self.bar.close()
        self.writer.close()

    def _write(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, self.trainer.step)


@contextmanager
def _out_of_memory(batch_size: int) -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise utils.UserError(
            f"the GPU's memory is too small for batch_size {batch_size}; raise accumulate, or "
            "lower batch_size"
        ) from error


@contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Yield a list that Ctrl-C and SIGTERM are noted in, so that a step ends before they act."""
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
