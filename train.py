"""The training loop: steps, several processes, logging, saving and resuming."""

import dataclasses
import hashlib
import math
import os
import re
import shutil
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
import torch
import torch.distributed as dist
from torch import Tensor, nn

import checkpoint
import models
import utils
from terminal import progress

# TensorBoard imports TensorFlow where it is installed (10 s and many messages), unless this
# module exists; its own stub writes the same files.
sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))
from torch.utils.tensorboard import SummaryWriter  # noqa: E402

LOG_STEPS = 20  # losses are read from the device every so many steps
MADE = ("last.pt", "model_steps_*.pt", "model.json", "vocab.txt", "metrics.json", "runs")
MAY_CHANGE = ("save_steps", "keep", "accumulate", "n_epochs", "data_file")  # not in the result

Precision = Literal["float32", "bfloat16", "float16"]
LEAST_SCALE = 1.0  # float16: with a lower scale, even unscaled losses overflow
AHEAD = 2  # batches drawn in advance while a step is computed
LET_GO = 1.0  # seconds for gloo's threads to release the tensors that they sent last
Batch = dict[str, np.ndarray]
Losses = dict[str, Tensor]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=utils.STRICT)
class Config:
    """Settings of a training; all keys except ``accumulate`` and ``keep`` are required.

    Attributes
    ----------
    seed : int
        Random seed of weights, batches and dropout.
    batch_size : int
        Examples per step, over all processes.
    accumulate : int
        Each process computes its share of a batch in so many parts, one after the other, for GPUs
        with little memory. The result is the same, except for dropout and samefunc's contrastive
        loss.
    lr : float
        Highest learning rate.
    n_epochs, total_steps : int
        Training ends after so many passes or steps, whichever comes first.
    warmup : float
        Share of the training, 0 to 1, over which the learning rate rises from 0.
    save_steps : int
        Evaluate and save every so many steps, and at the end.
    keep : int or None
        How many of the latest ``model_steps_<k>.pt`` to keep; None: all.
    """

    seed: Annotated[int, pydantic.Field(ge=0, lt=2**63)]
    batch_size: Annotated[int, pydantic.Field(ge=1, le=2**20)]
    lr: pydantic.PositiveFloat
    n_epochs: pydantic.PositiveInt
    warmup: Annotated[float, pydantic.Field(ge=0, le=1)]
    save_steps: pydantic.PositiveInt
    total_steps: pydantic.PositiveInt
    accumulate: pydantic.PositiveInt = 1
    keep: pydantic.PositiveInt | None = None

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> "Config":
        """Read a JSON file; raise a `utils.UserError` with the file and all wrong keys."""
        return utils.read_config(cls, path)

    def with_epochs(self, steps_per_epoch: int) -> "Config":
        """Return this config with the actual number of steps."""
        steps = min(self.total_steps, self.n_epochs * steps_per_epoch)
        return dataclasses.replace(self, total_steps=steps)


def settings_of(cfg: Config, info: Any, precision: Precision) -> dict[str, Any]:
    """Return everything that decides a training's result; ``info`` is the content of model.json."""
    settings = dataclasses.asdict(cfg) | dataclasses.asdict(info) | {"precision": precision}
    sizes = settings.pop("model")
    settings = {name: value for name, value in settings.items() if name not in MAY_CHANGE}
    return settings | {f"model_cfg {name}": value for name, value in sizes.items()}


def weights_sha256(model: nn.Module) -> str:
    """Return a hash of the values of all weights, in hexadecimal."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()


def start_processes(device: torch.device) -> tuple[int, int]:
    """Join the processes started by torchrun; return the rank of this one and their number."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return (dist.get_rank(), world) if world > 1 else (0, 1)


def end_processes() -> None:
    """Wait for the other processes, and leave the group that `start_processes` joined."""
    dist.barrier()
    if dist.get_backend() == "gloo":
        # gloo's threads need the GIL to release the tensors that they sent last. Deleting the group
        # holds the GIL and waits for the threads. Without a pause, both may wait for ever.
        time.sleep(LET_GO)
    dist.destroy_process_group()


def check_parallel(data_parallel: bool) -> None:
    """Check the documented flag ``data_parallel``; torchrun decides how many processes there are.

    Raises
    ------
    utils.UserError
        It is False, but several processes were started.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and not data_parallel:
        raise utils.UserError(
            f"--data_parallel False, but torchrun started {world} processes; start one"
        )
    if data_parallel and world == 1 and torch.cuda.device_count() > 1:
        print(
            f"note: one of {torch.cuda.device_count()} GPUs is used; for all of them start this "
            "with python -m torch.distributed.run --standalone --nproc_per_node gpu"
        )


def share(n: int, part: int, parts: int) -> slice:
    """Return the rows of one of ``parts`` parts of ``n`` rows, which are as equal as possible."""
    return slice(n * part // parts, n * (part + 1) // parts)


def best_precision(device: torch.device) -> Precision:
    """Return "bfloat16" if the device multiplies it in hardware, else "float32"."""
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"


def flops_per_token(cfg: models.Config, length: int, predicted: float) -> float:
    """Count the FLOPs of a training step per token of input.

    Parameters
    ----------
    cfg : models.Config
    length : int
        Tokens per example.
    predicted : float
        Tokens per example for which the vocabulary is scored. The last block computes only these
        and [CLS].

    Returns
    -------
    float
        Only those of matrix products: two per weight and token, and twice as many for gradients.
    """
    keys_and_values = 2 * cfg.dim**2
    others = 2 * cfg.dim**2 + 2 * cfg.dim * cfg.dim_ff + 2 * length * cfg.dim  # attention's: last
    head = (predicted * (cfg.dim + cfg.vocab_size) + cfg.dim) * cfg.dim / length
    read = (predicted + 1) / length
    blocks = cfg.n_layers * keys_and_values + (cfg.n_layers - 1 + read) * others
    return 6 * (blocks + head)


def product_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a product of two large square matrices: the best of several.

    A GPU repeats it for half a second, because an idle one takes time to raise its clock.
    """
    size, least = (8192, 0.5) if device.type == "cuda" else (1024, 0.0)
    a = torch.ones(size, size, device=device, dtype=dtype)
    seconds: list[float] = []
    while len(seconds) < 5 or sum(seconds) < least:
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


class Trainer:
    """Train a model on batches that are a function of the step.

    The batch and the dropout of step k depend only on the seed and k. So an interrupted run
    continues as if it had not been interrupted, and the training is the same with any number of
    processes.

    Parameters
    ----------
    cfg : Config
        ``total_steps`` is the exact end.
    model : Module
        Is moved to ``device``.
    optimizer : Optimizer
        For the model's parameters, with a ``get_lr`` like that of `optim.BertAdam`.
    get_batch : callable
        (step, rank, world) -> arrays with this process's `share` of the batch's rows, including
        ``input_ids``; the first dimension are the examples.
    get_losses : callable
        (model, batch of tensors) -> named losses, whose sum is minimised. Each must be a sum over
        rows, divided by the number for the *whole* batch, because processes add them up.
    evaluate : callable
        Model -> named measures; called in evaluation mode at every save and at the end.
    save_dir : path-like
        Folder for ``model_steps_<k>.pt``, ``last.pt`` and TensorBoard's ``runs``.
    device : torch.device
    settings : dict of str to number or str
        Everything that decides the result. A run is resumed only with the same settings.
    precision : {"float32", "bfloat16", "float16"}
        Type of products and activations; weights and their updates are float32. In float16, whose
        range is small, losses are scaled up and gradients down again; a step whose gradients
        overflow is skipped, and the scale is halved.
    compile : bool
        Let torch.compile fuse ``get_losses``. This takes a minute before the first step. A lone
        process with ``accumulate`` 1 records it as a CUDA graph, too: launching kernels one by one
        takes longer than the step of a small model.
    log_dir : path-like, optional
        Folder for TensorBoard's files. Default: ``<save_dir>/runs``.
    loss_weights : dict of str to float
        Weights of named losses in the sum; 1 for all others.
    get_flops : callable, optional
        Batch -> FLOPs of its training step, for the log.
    """

    def __init__(
        self,
        cfg: Config,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        get_batch: Callable[[int, int, int], Batch],
        get_losses: Callable[[Any, dict[str, Tensor]], Losses],
        evaluate: Callable[[Any], dict[str, float]],
        save_dir: str | os.PathLike[str],
        device: torch.device,
        settings: dict[str, Any],
        precision: Precision = "float32",
        compile: bool = False,
        log_dir: str | os.PathLike[str] | None = None,
        loss_weights: dict[str, float] | None = None,
        get_flops: Callable[[Batch], float] | None = None,
    ) -> None:
        self.cfg = cfg
        self.model = model.to(device)
        self.optimizer = optimizer
        self.get_batch = get_batch
        self.get_losses = get_losses
        self.compile = compile
        self.loss_weights = loss_weights or {}
        self.get_flops = get_flops
        self.evaluate = evaluate
        self.save_dir = Path(save_dir)
        self.log_dir = Path(log_dir) if log_dir is not None else self.save_dir / "runs"
        self.device = device
        self.settings = settings
        self.precision = precision
        self.half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
        self.step = 0
        self.rank, self.world = start_processes(device)
        if device.type == "cuda" and precision == "float32":
            torch.set_float32_matmul_precision("high")  # TF32
        if cfg.batch_size < self.world * cfg.accumulate:
            raise utils.UserError(
                f"batch_size {cfg.batch_size} is below {self.world} processes times accumulate "
                f"{cfg.accumulate}"
            )

    def train(self) -> dict[str, float]:
        """Train from ``self.step`` to the end; return the measures of the last evaluation.

        Raises
        ------
        utils.UserError
            The GPU's memory is too small, or a loss is not finite.
        KeyboardInterrupt
            On Ctrl-C or SIGTERM, after saving.
        """
        if self.device.type == "cpu":
            utils.keep_freed_memory()
        losses_of = _Losses(self.model, self.get_losses)
        parallel = nn.parallel.DistributedDataParallel(losses_of) if self.world > 1 else None
        losses_of = parallel or losses_of
        if self.compile:
            # The gradients that a CUDA graph returns are overwritten by its next call.
            graphs = self.device.type == "cuda" and self.cfg.accumulate == 1 and parallel is None
            losses_of = _compiled(losses_of, graphs)
        unread: list[Losses] = []
        measures: dict[str, float] = {}
        with (
            _out_of_memory(self.cfg.batch_size),
            utils.disk_errors(self.save_dir),
            _deferred_signals(self.world) as received,
            closing(self._batches()) as batches,
        ):
            log = Log(self) if self.rank == 0 else None
            stopping = False
            while self.step < self.cfg.total_steps and not stopping:
                start = time.perf_counter()
                batch = next(batches)
                if log:
                    log.batch(batch, time.perf_counter() - start)
                self.model.train()
                torch.manual_seed(self._seed(self.step))
                unread.append(self._gradients(losses_of, parallel, batch))
                step = self.step + 1
                saving = step % self.cfg.save_steps == 0 or step == self.cfg.total_steps
                reading = saving or step % LOG_STEPS == 0
                norm = self._gradient_norm() if reading and log else None
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.step = step

                # All processes must stop at the same step: one at which they communicate anyway.
                stopping = bool(received) and self.world == 1
                if reading or stopping:
                    means, stopping = self._read(unread, bool(received))
                    if log:
                        log.steps(means, norm)
                    unread = []
                if (saving or stopping) and log:
                    self._check_weights()
                if saving and log:
                    measures = self.evaluate(self.model.eval())
                    log.measures(measures)
                if (saving or stopping) and log:
                    # First save what resuming needs, in case the run is killed between the two.
                    self._save_last(measures)
                if saving and log:
                    self._save_model()
                    self._remove_old()
            if log:
                log.close()
            if self.world > 1:
                end_processes()  # not before the first one has written all
        if self.step < self.cfg.total_steps:
            if log:
                print(f"stopped and saved at step {self.step}; run the same command to continue")
            raise KeyboardInterrupt
        return measures

    def run(
        self, info: Any, vocab: bytes, resume: bool, overwrite: bool, what: str
    ) -> dict[str, float]:
        """Train, or continue the training in ``save_dir``; return the last measures.

        Parameters
        ----------
        info : dataclass with ``max_len``
            Written to model.json beside the models.
        vocab : bytes
            Written to vocab.txt there.
        resume, overwrite
            See `start`.
        what : str
            Model and data, for the first line of the output.
        """
        measures = self.start(resume, overwrite)
        if measures is not None:
            if self.rank == 0:
                print(f"the training in {self.save_dir} is finished; --resume False repeats it")
            return measures
        if self.rank == 0:
            with utils.atomic_file(self.save_dir / "vocab.txt", "wb") as file:
                file.write(vocab)
            utils.write_json(self.save_dir / "model.json", dataclasses.asdict(info))
            print(
                f"{what}; steps {self.step} to {self.cfg.total_steps} of {self.cfg.batch_size} x "
                f"{info.max_len} tokens, on {self.device} in {self.precision}"
            )
        return self.train()

    def start(self, resume: bool = True, overwrite: bool = False) -> dict[str, float] | None:
        """Load the state of the training in ``save_dir`` if it is the same one, or start again.

        Another training there is renamed to ``<save_dir>-before-<date>``. One that differs only by
        fewer ``total_steps`` is continued with the learning rates of the new length.

        Parameters
        ----------
        resume : bool
            False: always start again.
        overwrite : bool
            Delete another training instead of renaming it.

        Returns
        -------
        The last measures if this training had reached its end, else None.

        Raises
        ------
        utils.UserError
            ``last.pt`` is damaged, or was not written by a training.
        """
        path = self.save_dir / "last.pt"
        last = self._read_last(path) if resume and path.exists() else None
        differs = self._difference(last) if last is not None else None
        if self.world > 1:
            dist.barrier()  # the first process moves files when all have read them
        if last is not None and differs is None:
            return self._load(last, path)
        if self.rank == 0:
            what = f"a training with {differs}" if differs else "an earlier training"
            self._clear(overwrite, f"{self.save_dir} held {what}")
        return None

    def _read_last(self, path: Path) -> dict[str, Any]:
        last = checkpoint.load_pt(path)
        if not isinstance(last, dict) or not isinstance(last.get("settings"), dict):
            raise utils.UserError(
                f"{path} was not written by a training; choose another save_dir, or give "
                "--resume False to start again"
            )
        return last

    def _difference(self, last: dict[str, Any]) -> str | None:
        """Say how this training differs from ``last``; None if it can be continued."""
        before, now = last["settings"], self.settings
        for name in {**before, **now}:
            longer = name == "total_steps" and before.get(name, math.inf) <= now[name]
            if before.get(name) != now.get(name) and not longer:
                return f"{name} {before.get(name)}, not {now.get(name)}"
        return None

    def _load(self, last: dict[str, Any], path: Path) -> dict[str, float] | None:
        try:
            self.model.load_state_dict(last["model"])
            self.optimizer.load_state_dict(last["optimizer"])
            self.scaler.load_state_dict(last["scaler"])
            self.step, measures = last["step"], last["measures"]
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise utils.UserError(f"{path} does not fit this training: {error}") from error
        planned = last["settings"]["total_steps"]
        saving = self.step % self.cfg.save_steps == 0 or self.step == planned
        if saving and self.rank == 0 and not self._model_file().exists():
            self._save_model()  # the run ended before it could
        if planned != self.cfg.total_steps and self.rank == 0:
            print(
                f"{self.save_dir} holds step {self.step} of this training with {planned} steps; "
                f"it continues to {self.cfg.total_steps}, with the learning rates of that length"
            )
        return measures if self.step == self.cfg.total_steps else None

    def _clear(self, overwrite: bool, held: str) -> None:
        """Move the files of an earlier training aside, or delete them."""
        earlier = [path for name in MADE for path in sorted(self.save_dir.glob(name))]
        if not any(path.suffix == ".pt" for path in earlier):
            return
        if overwrite:
            for path in earlier:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            return
        place = self.save_dir.resolve()
        aside = place.with_name(f"{place.name}-before-{time.strftime('%Y%m%d-%H%M%S')}")
        with utils.disk_errors(aside):
            while aside.exists():  # made in the same second
                aside = aside.with_name(f"{aside.name}-2")
            aside.mkdir()
            for path in earlier:
                shutil.move(path, aside / path.name)
        print(f"{held}; that is now in {os.path.relpath(aside)}")

    def _seed(self, step: int) -> int:
        state = np.random.SeedSequence([self.cfg.seed, step, self.rank])
        return int(state.generate_state(1, np.uint64)[0])

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        """Yield this process's share of each batch from this step on.

        A thread draws the next batches in advance, and pins them for a GPU. This does not change
        the results, because batches are functions of the step.
        """

        def draw(step: int) -> dict[str, Tensor]:
            arrays = self.get_batch(step, self.rank, self.world)
            batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
            if self.device.type == "cuda":
                batch = {name: x.pin_memory() for name, x in batch.items()}
            return batch

        pool = ThreadPoolExecutor(1, "batches")
        try:
            steps = range(self.step, self.cfg.total_steps)
            for future in utils.ahead((pool.submit(draw, step) for step in steps), AHEAD):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _gradients(
        self, losses_of: nn.Module, parallel: nn.Module | None, batch: dict[str, Tensor]
    ) -> Losses:
        """Compute the gradients of this process's share of a batch, and return its losses."""
        self.optimizer.zero_grad()
        parts = self.cfg.accumulate
        sums: Losses = {}
        for part in range(parts):
            some = share(len(batch["input_ids"]), part, parts)
            # A GPU continues computing while these rows are copied.
            rows = {n: x[some].to(self.device, non_blocking=True) for n, x in batch.items()}
            last = part == parts - 1
            with parallel.no_sync() if parallel and not last else nullcontext():
                with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
                    losses = losses_of(rows)
                total = sum(loss * self.loss_weights.get(n, 1) for n, loss in losses.items())
                # DistributedDataParallel averages over processes, but our losses are to be summed.
                self.scaler.scale(total * self.world).backward()
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach()
        return sums

    def _gradient_norm(self) -> Tensor:
        """Return the norm of all gradients together, before clipping."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        return norm / self.scaler.get_scale() if self.scaler.is_enabled() else norm

    def _read(self, unread: list[Losses], received: bool) -> tuple[dict[str, float], bool]:
        """Return each loss's mean over the steps since the last reading, and whether to stop.

        All losses must be finite, except those of steps skipped in float16. All processes stop if
        one has ``received`` a signal.
        """
        table = torch.stack([torch.stack(list(losses.values())) for losses in unread])  # (N, L)
        if self.world > 1:
            signals = table.new_full((1, table.shape[1]), float(received))
            table = torch.cat([table, signals])
            dist.all_reduce(table)
            table, received = table[:-1], bool(table[-1, 0] > 0)
        table = table.cpu()
        finite = table.isfinite().all(1)
        if self.scaler.is_enabled():
            if self.scaler.get_scale() < LEAST_SCALE:
                raise self._not_finite("loss or a gradient", self.step)
            table = table[finite]
        elif not finite.all():
            first = int((~finite).nonzero()[0])
            raise self._not_finite("loss", self.step - len(unread) + first + 1)
        return dict(zip(unread[0], table.mean(0).tolist(), strict=True)), received

    def _check_weights(self) -> None:
        """Check weights before saving: a step may break them although its loss was finite."""
        norms = torch.stack(torch._foreach_norm(list(self.model.parameters())))
        if not norms.isfinite().all():
            raise self._not_finite("model", self.step)

    def _not_finite(self, what: str, step: int) -> utils.UserError:
        saved = self._saved()
        last = f"the last good model is {saved[-1]}" if saved else "no good model was saved before"
        return utils.UserError(
            f"the {what} is not finite at step {step}; {last}; lower lr ({self.cfg.lr}) or raise "
            f"warmup ({self.cfg.warmup}), and run again"
        )

    def _saved(self) -> list[Path]:
        """Return the models in ``save_dir`` up to this step, earliest first."""
        steps = {
            int(match[1]): path
            for path in self.save_dir.glob("model_steps_*.pt")
            if (match := re.fullmatch(r"model_steps_(\d+)\.pt", path.name))
        }
        return [steps[step] for step in sorted(steps) if step <= self.step]

    def _model_file(self) -> Path:
        return self.save_dir / f"model_steps_{self.step}.pt"

    def _save_model(self) -> None:
        with utils.disk_errors(self.save_dir):
            checkpoint.save_pt(self.model.state_dict(), self._model_file())

    def _remove_old(self) -> None:
        if self.cfg.keep is not None:
            for path in self._saved()[: -self.cfg.keep]:
                path.unlink()

    def _save_last(self, measures: dict[str, float]) -> None:
        last = {
            "settings": self.settings,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "measures": measures,
        }
        checkpoint.save_pt(last, self.save_dir / "last.pt")


class _Losses(nn.Module):
    """Model and losses as one module, called once, as DistributedDataParallel requires."""

    def __init__(
        self, model: nn.Module, get_losses: Callable[[Any, dict[str, Tensor]], Losses]
    ) -> None:
        super().__init__()
        self.model, self.get_losses = model, get_losses

    def forward(self, batch: dict[str, Tensor]) -> Losses:
        return self.get_losses(self.model, batch)


def _compiled(losses_of: nn.Module, graphs: bool) -> Callable[[dict[str, Tensor]], Losses]:
    """Return ``losses_of``, compiled; if the compiler fails, say so and go on without it.

    With ``graphs``, a step's losses and gradients must be read before the next call.
    """
    # Each of the few shapes of batches gets kernels of its own. Kernels for any shape are slower,
    # and torch 2.11 fails to make them for some of our models.
    mode = "reduce-overhead" if graphs else "default"
    run = torch.compile(losses_of, mode=mode, dynamic=False)

    def compiled(batch: dict[str, Tensor]) -> Losses:
        nonlocal run
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            return run(batch)
        except Exception as error:
            if run is losses_of or not isinstance(error, torch._dynamo.exc.TorchDynamoException):
                raise
            message = " ".join(str(error).partition("\n\n")[0].split())  # hints on debugging follow
            progress.write(
                f"note: torch.compile failed ({type(error).__name__}: {message}); this training "
                "goes on without it, more slowly"
            )
            run = losses_of
            return run(batch)

    return compiled


class Log:
    """The output of a training: a progress bar, TensorBoard, a line per evaluation.

    TensorBoard gets each loss; the learning rate; tokens per second; the norm of the gradients; the
    share of the time that steps waited for their batches; and, if the FLOPs of a step are known,
    the FLOP/s and their share of those of large matrix products on this device (mfu).
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.logged = trainer.step
        self.writer = SummaryWriter(trainer.log_dir, purge_step=trainer.step or None)
        self.bar = progress.bar(
            total=trainer.cfg.total_steps,
            initial=trainer.step,
            unit="step",
        )
        dtype = trainer.half or torch.float32
        self.ceiling = product_flops(trainer.device, dtype) if trainer.get_flops else None
        self.waited = self.flops = self.tokens = 0.0
        self.since = time.perf_counter()

    def batch(self, batch: dict[str, Tensor], waited: float) -> None:
        """Count a batch of this process, and the seconds spent waiting for it."""
        self.waited += waited
        self.tokens += batch["input_ids"].numel()
        if self.trainer.get_flops:
            self.flops += self.trainer.get_flops(batch)

    def steps(self, losses: dict[str, float], norm: Tensor | None) -> None:
        """Log the steps since the last call: means of losses, norm of the last gradients."""
        done = self.trainer.step - self.logged
        seconds = time.perf_counter() - self.since
        values = {f"train/{name}": value for name, value in losses.items()}
        values["train/lr"] = self.trainer.optimizer.get_lr()[0]
        values["train/tokens_per_second"] = self.tokens * self.trainer.world / seconds
        values["train/waiting_for_data"] = self.waited / seconds
        if norm is not None:
            values["train/gradient_norm"] = norm.item()
        if self.ceiling:
            values["train/tflops"] = self.flops * self.trainer.world / seconds / 1e12
            values["train/mfu"] = self.flops / seconds / self.ceiling
        self.waited = self.flops = self.tokens = 0.0
        self._write(values)
        self.bar.update(done)
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()})
        self.logged, self.since = self.trainer.step, time.perf_counter()

    def measures(self, measures: dict[str, float]) -> None:
        self._write({f"eval/{name}": value for name, value in measures.items()})
        text = ", ".join(f"{name} {value:.4g}" for name, value in measures.items())
        progress.write(f"step {self.trainer.step}/{self.trainer.cfg.total_steps}: {text}")
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
def _deferred_signals(world: int) -> Iterator[list[int]]:
    """Yield a list that Ctrl-C or SIGTERM is noted in, so that a step ends before it acts.

    A second one ends a lone process at once. Several get both from torchrun, which passes on what
    the terminal or Slurm has sent to all; it ends them after half a minute.
    """
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        if world == 1:
            utils.default_signals()
            os.write(2, b"stopping after this step; once more stops at once\n")  # print may not

    before = {number: signal.signal(number, note) for number in utils.STOPPING}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
