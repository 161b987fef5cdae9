"""train.py: settings, exact ends, saving and resuming, several processes."""

import functools
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import checkpoint
import train
import utils
from optim import optim4GPU
from utils import UserError

GOOD = dict(seed=1, batch_size=6, lr=0.01, n_epochs=2, warmup=0.1, save_steps=4, total_steps=10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "'seed' is -1"),
        ({"batch_size": 0}, "'batch_size' is 0"),
        ({"batch_size": "8"}, "'batch_size' is \"8\""),
        ({"lr": 0.0}, r"'lr' is 0\.0"),
        ({"lr": math.nan}, "'lr' is NaN"),
        ({"n_epochs": 0}, "'n_epochs' is 0"),
        ({"warmup": 1.01}, r"'warmup' is 1\.01"),
        ({"warmup": -0.1}, r"'warmup' is -0\.1"),
        ({"save_steps": 0}, "'save_steps' is 0"),
        ({"total_steps": 1.5}, r"'total_steps' is 1\.5"),
        ({"keep": 0}, "'keep' is 0"),
        ({"stuff": 1}, "unknown key 'stuff'"),
    ],
)
def test_config_faults(tmp_path, change, message):
    (tmp_path / "pretrain.json").write_text(json.dumps(GOOD | change))
    with pytest.raises(UserError, match=rf"pretrain\.json: {message}"):
        train.Config.from_json(tmp_path / "pretrain.json")


@pytest.mark.parametrize("key", GOOD)
def test_config_lacks_a_key(tmp_path, key):
    values = {name: value for name, value in GOOD.items() if name != key}
    (tmp_path / "pretrain.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"pretrain\.json: key '{key}' is missing"):
        train.Config.from_json(tmp_path / "pretrain.json")


def test_config_in_the_repository():
    for name in ("mrpc", "mnli", "samefunc"):
        cfg = train.Config.from_json(Path(train.__file__).parent / f"config/train_{name}.json")
        assert vars(cfg).keys() == GOOD.keys() | {"accumulate", "keep"}


class Line(nn.Module):
    """A small model; its dropout makes the random state matter."""

    def __init__(self, p_drop=0.5):
        super().__init__()
        self.fc = nn.Linear(4, 1)
        self.drop = nn.Dropout(p_drop)

    def forward(self, x):
        return self.fc(self.drop(x))[:, 0]


def get_batch(step, rank=0, world=1):
    rng = np.random.default_rng(step)
    x = rng.normal(size=(6, 4)).astype(np.float32)
    weights = rng.random(6).astype(np.float32)
    batch = {"input_ids": x, "y": x.sum(1), "weights": weights / weights.sum()}
    return {name: array[train.share(6, rank, world)] for name, array in batch.items()}


def get_losses(model, batch):
    error = model(batch["input_ids"]) - batch["y"]
    return {
        "squared": (error**2 * batch["weights"]).sum(),
        "absolute": (error.abs() * batch["weights"]).sum(),
    }


def evaluate(model):
    assert not model.training
    return {"weight": model.fc.weight.sum().item()}


def make_trainer(save_dir, batches=get_batch, losses=get_losses, p_drop=0.5, how=(), **changes):
    cfg = train.Config(**GOOD | changes).with_epochs(1000)
    torch.manual_seed(cfg.seed)
    model = Line(p_drop)
    settings = {"lr": cfg.lr, "total_steps": cfg.total_steps}
    device = torch.device("cpu")
    optimizer = optim4GPU(cfg, model)
    return train.Trainer(
        cfg, model, optimizer, batches, losses, evaluate, save_dir, device, settings, *how
    )


def weights(trainer):
    return torch.cat([p.flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize(
    ("n_epochs", "total_steps", "steps_per_epoch", "end"),
    [(2, 10, 3, 6), (2, 10, 5, 10), (2, 7, 5, 7), (1, 1, 9, 1)],
)
def test_exact_end(tmp_path, n_epochs, total_steps, steps_per_epoch, end):
    cfg = train.Config(**GOOD | {"n_epochs": n_epochs, "total_steps": total_steps})
    assert cfg.with_epochs(steps_per_epoch).total_steps == end
    asked, rates = [], []
    trainer = make_trainer(
        tmp_path, lambda k, *_: (asked.append(k), get_batch(k))[1], total_steps=end
    )
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: (rates.append(trainer.optimizer.get_lr()[0]), step())
    trainer.train()
    assert asked == list(range(end))
    # The schedule uses the real length: warm-up over a tenth, then down to 0 at the end.
    expected = [k / end / 0.1 if k / end < 0.1 else 1 - k / end for k in range(end)]
    assert rates == pytest.approx([0.01 * factor for factor in expected])
    saved = {int(path.stem.split("_")[-1]) for path in tmp_path.glob("model_steps_*.pt")}
    assert saved == {*range(4, end, 4), end}


def test_saved_model_is_the_model(tmp_path):
    trainer = make_trainer(tmp_path)
    measures = trainer.train()
    state = torch.load(tmp_path / "model_steps_10.pt", weights_only=True)
    assert torch.equal(state["fc.weight"], trainer.model.fc.weight)
    assert measures == {"weight": trainer.model.fc.weight.sum().item()}


class Crash(Exception):
    pass


def crash_at(step):
    def batches(k, *_):
        if k == step:
            raise Crash
        return get_batch(k)

    return batches


@pytest.mark.parametrize("step", [4, 6, 9])
def test_resumed_run_is_the_same_run(tmp_path, step):
    whole = make_trainer(tmp_path / "whole")
    whole.train()
    broken = make_trainer(tmp_path / "broken", crash_at(step))
    with pytest.raises(Crash):
        broken.train()
    again = make_trainer(tmp_path / "broken")
    torch.manual_seed(99)  # the global state must not matter
    assert again.start() is None
    assert again.step == step // 4 * 4
    measures = again.train()
    assert torch.equal(weights(again), weights(whole))
    finished = make_trainer(tmp_path / "broken")
    assert finished.start() == measures
    assert torch.equal(weights(finished), weights(whole))


def test_dropout_differs_from_step_to_step(tmp_path):
    seen = []

    def losses(model, batch):
        seen.append(model.drop(torch.ones(50)))
        return get_losses(model, batch)

    make_trainer(tmp_path, losses=losses).train()
    assert len({tuple(mask.tolist()) for mask in seen}) == 10


def files(folder):
    """Return relative path -> bytes of every file in a folder."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def aside(save_dir):
    """Return the folders that earlier trainings were moved to, sorted by name."""
    return sorted(save_dir.parent.glob(f"{save_dir.name}-before-*"))


@pytest.mark.parametrize("changes", [{"lr": 0.02}, {"total_steps": 9}])
def test_another_training_moves_aside_and_nothing_is_lost(tmp_path, capsys, changes):
    save_dir = tmp_path / "out"
    make_trainer(save_dir).train()
    before = files(save_dir)
    other = make_trainer(save_dir, **changes)
    assert other.start() is None
    assert (other.step, list(save_dir.iterdir())) == (0, [])
    (moved,) = aside(save_dir)
    assert re.fullmatch(r"out-before-\d{8}-\d{6}", moved.name)
    assert files(moved) == before
    (name, value), old = *changes.items(), {"lr": 0.01, "total_steps": 10}
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith(f"{save_dir} held a training with {name} {old[name]}, not {value}; ")
    assert said.endswith(f"now in {os.path.relpath(moved)}")
    other.train()
    alone = make_trainer(tmp_path / "alone", **changes)
    alone.train()
    assert torch.equal(weights(other), weights(alone))
    # The present training is moved aside, too, and both are kept.
    make_trainer(save_dir, lr=0.03).start()
    assert len(aside(save_dir)) == 2


def test_files_of_the_user_stay_where_they_are(tmp_path):
    save_dir = tmp_path / "out"
    make_trainer(save_dir).train()
    (save_dir / "mine.txt").write_text("stays")
    make_trainer(save_dir, lr=0.02).start()
    assert [path.name for path in save_dir.iterdir()] == ["mine.txt"]


def test_models_of_unknown_origin_move_aside(tmp_path):
    """A run killed between its first model and last.pt, or models that were copied there."""
    save_dir = tmp_path / "out"
    save_dir.mkdir()
    (save_dir / "model_steps_7.pt").write_bytes(b"who knows")
    assert make_trainer(save_dir).start() is None
    assert [path.name for path in aside(save_dir)[0].iterdir()] == ["model_steps_7.pt"]


def test_what_may_change_does_not_move_a_training(tmp_path):
    save_dir = tmp_path / "out"
    measures = make_trainer(save_dir).train()
    before = files(save_dir)
    assert make_trainer(save_dir, save_steps=5, keep=1, n_epochs=9).start() == measures
    assert files(save_dir) == before
    assert not aside(save_dir)


@pytest.mark.parametrize("reached", [10, 4])
def test_more_steps_are_a_continuation(tmp_path, capsys, reached):
    save_dir = tmp_path / "out"
    shorter = make_trainer(save_dir, crash_at(reached))
    if reached < 10:
        with pytest.raises(Crash):
            shorter.train()
    else:
        shorter.train()
    longer = make_trainer(save_dir, total_steps=20)
    assert longer.start() is None
    assert longer.step == reached
    said = f"{save_dir} holds step {reached} of this training with 10 steps; it continues to 20"
    assert said in capsys.readouterr().out
    rates = []
    step = longer.optimizer.step
    longer.optimizer.step = lambda: (rates.append(longer.optimizer.get_lr()[0]), step())
    longer.train()
    assert rates == pytest.approx([0.01 * (1 - k / 20) for k in range(reached, 20)])
    assert (save_dir / "model_steps_20.pt").exists()
    assert not aside(save_dir)
    assert make_trainer(save_dir, total_steps=20).start() is not None


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "list"])
def test_broken_last(tmp_path, content):
    if content == "list":
        torch.save([1], tmp_path / "last.pt")
    else:
        (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"last\.pt"):
        make_trainer(tmp_path).start()


@pytest.mark.parametrize("key", ["model", "optimizer", "scaler", "step", "measures"])
def test_last_of_something_else(tmp_path, key):
    make_trainer(tmp_path).train()
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    del last[key]
    torch.save(last, tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"last\.pt does not fit this training"):
        make_trainer(tmp_path).start()


@pytest.mark.parametrize("overwrite", [False, True])
def test_starting_anew(tmp_path, overwrite):
    save_dir = tmp_path / "out"
    make_trainer(save_dir).train()
    (save_dir / "mine.txt").write_text("stays")
    before = files(save_dir)
    again = make_trainer(save_dir)
    assert again.start(resume=False, overwrite=overwrite) is None
    assert again.step == 0
    assert list(files(save_dir)) == [Path("mine.txt")]
    kept = [files(folder) for folder in aside(save_dir)]
    del before[Path("mine.txt")]
    assert kept == ([] if overwrite else [before])


@pytest.mark.parametrize(
    ("bad_step", "good"),
    [(3, "no good model was saved before"), (4, "no good"), (6, "s_4.pt"), (10, "s_8.pt")],
)
def test_loss_that_is_not_finite(tmp_path, bad_step, good):
    calls = []

    def losses(model, batch):
        calls.append(0)
        values = get_losses(model, batch)
        return values | {"squared": values["squared"] * (math.inf if len(calls) == bad_step else 1)}

    message = f"the loss is not finite at step {bad_step}; .*{good}.*; lower lr"
    with pytest.raises(UserError, match=message):
        make_trainer(tmp_path, losses=losses).train()
    assert_only_good_models(tmp_path)
    assert not (tmp_path / f"model_steps_{bad_step}.pt").exists()


def assert_only_good_models(save_dir):
    for path in save_dir.glob("model_steps_*.pt"):
        assert torch.load(path, weights_only=True)["fc.weight"].isfinite().all()


def test_weights_that_break_after_a_finite_loss_are_not_saved(tmp_path):
    trainer = make_trainer(tmp_path)
    step = trainer.optimizer.step

    def broken_at_eight():
        step()
        if trainer.step == 7:
            trainer.model.fc.weight.data.fill_(math.nan)

    trainer.optimizer.step = broken_at_eight
    with pytest.raises(UserError, match=r"the model is not finite at step 8; .*model_steps_4\.pt"):
        trainer.train()
    assert_only_good_models(tmp_path)
    again = make_trainer(tmp_path)
    again.start()
    assert again.step == 4


@pytest.mark.parametrize("keep", [None, 1, 2, 9])
def test_keep(tmp_path, keep):
    whole = make_trainer(tmp_path / "whole", keep=keep, save_steps=2)
    whole.train()
    steps = [2, 4, 6, 8, 10][-(keep or 9) :]
    names = {f"model_steps_{step}.pt" for step in steps}
    assert {path.name for path in (tmp_path / "whole").glob("model_*")} == names
    broken = make_trainer(tmp_path / "broken", crash_at(7), save_steps=2)
    with pytest.raises(Crash):
        broken.train()
    (tmp_path / "broken/model_steps_x.pt").write_text("not ours")
    again = make_trainer(tmp_path / "broken", keep=keep, save_steps=2)  # these may change
    assert again.start() is None
    again.train()
    found = {path.name for path in (tmp_path / "broken").glob("model_*")}
    assert found == names | {"model_steps_x.pt"}
    assert torch.equal(weights(again), weights(whole))


HALF = ("float16",)


def overflow_at(*bad_steps):
    """Return losses whose gradients overflow at the given calls, like those in float16."""
    calls = []

    def losses(model, batch):
        calls.append(0)
        values = get_losses(model, batch)
        bad = len(calls) in bad_steps
        return {"squared": values["squared"].float() * (math.inf if bad else 1)}

    return losses


def make_half_trainer(save_dir, *arguments, **changes):
    """Return a trainer with an initial scale so small that nothing overflows by itself."""
    trainer = make_trainer(save_dir, *arguments, how=HALF, **changes)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2**8)
    return trainer


def test_float16_finds_a_scale(tmp_path):
    trainer = make_trainer(tmp_path, how=HALF)
    stepped = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: (stepped.append(trainer.step + 1), step())
    trainer.train()
    left_out = 10 - len(stepped)
    assert 0 < left_out < 6
    assert stepped == list(range(left_out + 1, 11))
    assert trainer.scaler.get_scale() == 2 ** (16 - left_out)


def test_float16_leaves_out_steps_that_overflow(tmp_path):
    plain = make_trainer(tmp_path / "plain", p_drop=0.0)
    plain.train()
    half = make_half_trainer(tmp_path / "half", p_drop=0.0)
    half.train()
    assert torch.allclose(weights(half), weights(plain), rtol=0.02, atol=1e-3)
    assert not torch.equal(weights(half), weights(plain))

    trainer = make_half_trainer(tmp_path / "bad", losses=overflow_at(3, 5))
    stepped = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda: (stepped.append(trainer.step + 1), step())
    trainer.train()
    assert stepped == [1, 2, 4, 6, 7, 8, 9, 10]
    assert trainer.scaler.get_scale() == 2**6
    assert weights(trainer).isfinite().all()


def test_float16_resumes_with_its_scale(tmp_path):
    whole = make_half_trainer(tmp_path / "whole", losses=overflow_at(3, 7))
    whole.train()
    broken = make_half_trainer(tmp_path / "broken", crash_at(5), losses=overflow_at(3))
    with pytest.raises(Crash):
        broken.train()
    again = make_trainer(tmp_path / "broken", losses=overflow_at(3), how=HALF)  # the 7th by now
    again.start()
    assert (again.step, again.scaler.get_scale()) == (4, 2**7)
    again.train()
    assert again.scaler.get_scale() == whole.scaler.get_scale() == 2**6
    assert torch.equal(weights(again), weights(whole))


def test_float16_that_always_overflows_stops(tmp_path):
    trainer = make_half_trainer(
        tmp_path, losses=overflow_at(*range(5, 100)), total_steps=60, save_steps=4
    )
    with pytest.raises(UserError, match=r"loss or a gradient is not finite at step 16; .*_12\.pt"):
        trainer.train()
    assert_only_good_models(tmp_path)


def test_out_of_memory_names_batch_size(tmp_path):
    def losses(model, batch):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(UserError, match="too small for batch_size 6; raise accumulate"):
        make_trainer(tmp_path, losses=losses).train()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_goes_on(tmp_path, number, capsys):
    whole = make_trainer(tmp_path / "whole")
    whole.train()

    calls = []

    def losses(model, batch):
        calls.append(0)
        if len(calls) == 6:
            signal.raise_signal(number)
        return get_losses(model, batch)

    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "stopped", losses=losses).train()
    assert signal.getsignal(number) == handler
    assert "saved at step 6; run the same command to continue" in capsys.readouterr().out
    again = make_trainer(tmp_path / "stopped")
    again.start()
    assert again.step == 6
    again.train()
    assert torch.equal(weights(again), weights(whole))


SECOND = """
import signal, sys, time
sys.path[:0] = {paths!r}
from test_train import get_losses, make_trainer

calls = []

def losses(model, batch):
    calls.append(0)
    if len(calls) == 6:
        signal.raise_signal(signal.SIGINT)
        print("goes on", flush=True)
        time.sleep(60)
    return get_losses(model, batch)

make_trainer({save_dir!r}, losses=losses).train()
"""


def test_a_second_signal_quits_at_once(tmp_path):
    paths = [str(Path(__file__).parent), str(Path(train.__file__).parent)]
    code = SECOND.format(paths=paths, save_dir=str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.stdout.readline() != "goes on\n":
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert error == "stopping after this step; once more stops at once\n"
    again = make_trainer(tmp_path)
    again.start()
    assert again.step == 4  # the earlier save is complete


def equal(one, two):
    """Assert that two checkpoints hold the same numbers, to the bit."""
    assert type(one) is type(two)
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert list(one) == list(two)
        for key in one:
            equal(one[key], two[key])
    elif isinstance(one, list):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            equal(a, b)
    else:
        assert one == two


KILL = """
import os, signal, sys
sys.path[:0] = {paths!r}
import test_train

def run(function, before, number, save_dir):
    calls, real = 0, getattr(os, function)

    def killing(*arguments):
        nonlocal calls
        calls += 1
        if calls == number and before:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*arguments)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, function, killing)
    trainer = test_train.make_trainer(save_dir)
    trainer.start()
    trainer.train()

for arguments in {runs!r}:  # each in a process of its own, which has nothing to import
    child = os.fork()
    if child == 0:
        run(*arguments)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
KILLS = {
    ("fsync", True, 1): 0,  # last.pt of step 4 is incomplete
    ("fsync", True, 2): 4,  # last.pt is of step 4, whose model is incomplete
    ("replace", False, 3): 8,  # last.pt is of step 8, whose model is not saved
}


def test_killed_while_saving(tmp_path):
    """At steps 4 and 8, last.pt is saved and then the model; kill it before or after each."""
    whole = make_trainer(tmp_path / "whole")
    whole.train()
    runs = [(*kill, str(tmp_path / str(number))) for number, kill in enumerate(KILLS)]
    paths = [str(Path(__file__).parent), str(Path(train.__file__).parent)]
    code = KILL.format(paths=paths, runs=runs)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ends = [line for line in done.stdout.splitlines() if not line.startswith("step ")]
    assert ends == [str(-signal.SIGKILL)] * 3
    for (function, *_, folder), reached in zip(runs, KILLS.values(), strict=True):
        save_dir = Path(folder)
        assert bool(list(save_dir.glob(".*.tmp"))) == (function == "fsync")
        again = make_trainer(save_dir)
        again.start()
        assert again.step == reached
        again.train()
        assert torch.equal(weights(again), weights(whole))
        utils.remove_leftovers(save_dir)
        saved = {path.name for path in save_dir.glob("*.pt")}
        assert saved == {path.name for path in (tmp_path / "whole").glob("*.pt")}
        for name in saved - {"last.pt"}:  # its bytes may differ
            assert (save_dir / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        equal(*(checkpoint.load_pt(place / "last.pt") for place in (save_dir, tmp_path / "whole")))
        assert not list(save_dir.glob(".*"))


def test_logs(tmp_path, capsys):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    losses = []

    def spied(model, batch):
        losses.append(get_losses(model, batch))
        return losses[-1]

    make_trainer(tmp_path, losses=spied).train()
    events = accumulator.EventAccumulator(str(tmp_path / "runs")).Reload()
    assert set(events.Tags()["scalars"]) == {
        *("train/squared", "train/absolute", "train/lr", "train/tokens_per_second"),
        *("train/waiting_for_data", "train/gradient_norm"),
        "eval/weight",
    }
    logged = events.Scalars("train/squared")
    assert [event.step for event in logged] == [4, 8, 10]
    mean = sum(loss["squared"].item() for loss in losses[4:8]) / 4
    assert logged[1].value == pytest.approx(mean, rel=1e-5)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step 4/10", "step 8/10", "step 10/10"]


RANK = """
import os, signal, sys, torch
sys.path[:0] = {paths!r}
from test_train import get_batch, get_losses, make_trainer
torch.set_num_threads(1)

calls = []

def stopped_at_five(model, batch):
    calls.append(0)
    if len(calls) == 6 and os.environ["RANK"] == "1":
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
    return get_losses(model, batch)

make_trainer({save_dir!r}, {changes}).train()
"""


COUNTING = """
import atexit, sys, torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

class Counted(torch.nn.parallel.DistributedDataParallel):
    syncs = 0

    def __init__(self, model):
        super().__init__(model)
        self.register_comm_hook(None, count)

def count(state, bucket):
    Counted.syncs += 1
    return allreduce_hook(state, bucket)

torch.nn.parallel.DistributedDataParallel = Counted
atexit.register(lambda: print(f"synchronised {Counted.syncs} times", file=sys.stderr))
"""


def start_ranks(save_dir, n, port, changes="p_drop=0.0", before=""):
    paths = [str(Path(__file__).parent), str(Path(train.__file__).parent)]
    code = before + RANK.format(paths=paths, save_dir=str(save_dir), changes=changes)
    address = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **address, "RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(n)
    ]
    return [(process.communicate(timeout=600)[1], process.returncode) for process in processes]


@pytest.fixture
def port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_do_the_training_of_one(tmp_path, port):
    one = make_trainer(tmp_path / "one", p_drop=0.0)
    one.train()
    for error, code in start_ranks(tmp_path / "two", 2, port):
        assert code == 0, error
    state = torch.load(tmp_path / "two/model_steps_10.pt", weights_only=True)
    assert torch.allclose(state["fc.weight"], one.model.fc.weight, rtol=1e-5, atol=1e-6)
    assert len(list((tmp_path / "two/runs").iterdir())) == 1
    # A run of two processes is resumed by one.
    again = make_trainer(tmp_path / "two", p_drop=0.0)
    assert again.start() is not None


def test_two_processes_that_are_stopped_go_on(tmp_path, port):
    """torchrun passes on a signal that the processes have already received."""
    changes = "losses=stopped_at_five, p_drop=0.0, total_steps=30, save_steps=30"
    for error, code in start_ranks(tmp_path / "two", 2, port, changes):
        assert code == -signal.SIGINT  # how Python ends after a KeyboardInterrupt
        assert "Error" not in error
    one = make_trainer(tmp_path / "one", p_drop=0.0, total_steps=30, save_steps=30)
    one.train()
    again = make_trainer(tmp_path / "two", p_drop=0.0, total_steps=30, save_steps=30)
    assert again.start() is None
    assert again.step == train.LOG_STEPS
    again.train()
    assert torch.allclose(weights(again), weights(one), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, parts):
    whole = make_trainer(tmp_path / "whole", p_drop=0.0)
    in_parts = make_trainer(tmp_path / "parts", p_drop=0.0, accumulate=parts)
    assert in_parts.train() == pytest.approx(whole.train(), rel=1e-5)
    assert torch.allclose(weights(in_parts), weights(whole), rtol=1e-5, atol=1e-6)


def test_two_processes_that_accumulate_synchronise_once_a_step(tmp_path, port):
    one = make_trainer(tmp_path / "one", p_drop=0.0)
    one.train()
    ended = start_ranks(tmp_path / "two", 2, port, "p_drop=0.0, accumulate=3", COUNTING)
    for error, code in ended:  # 10 steps of 3 parts; all gradients fit one bucket
        assert code == 0, error
        assert "synchronised 10 times" in error
    state = torch.load(tmp_path / "two/model_steps_10.pt", weights_only=True)
    assert torch.allclose(state["fc.weight"], one.model.fc.weight, rtol=1e-5, atol=1e-6)


def test_compiled_training_is_the_plain_one(tmp_path):
    plain = make_trainer(tmp_path / "plain", p_drop=0.0)
    compiled = make_trainer(tmp_path / "compiled", p_drop=0.0, how=("float32", True))
    assert compiled.train() == pytest.approx(plain.train(), rel=1e-5)
    assert torch.allclose(weights(compiled), weights(plain), rtol=1e-5, atol=1e-6)


def test_a_compiler_that_fails_costs_only_speed(tmp_path, monkeypatch, capsys):
    """As torch 2.11's did, on a GPU; errors of the model itself are still raised."""

    def failing(graph, inputs):
        raise AssertionError("no kernel for this")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=failing))
    trainer = make_trainer(tmp_path / "a", how=("float32", True))
    trainer.train()
    notes = [line for line in capsys.readouterr().out.splitlines() if "torch.compile" in line]
    assert len(notes) == 1  # not one for each step
    assert "no kernel for this" in notes[0]
    plain = make_trainer(tmp_path / "b")
    plain.train()
    assert torch.equal(weights(trainer), weights(plain))

    def broken(model, batch):
        raise ValueError("not the compiler's fault")

    with pytest.raises(ValueError, match="not the compiler's fault"):
        make_trainer(tmp_path / "c", losses=broken, how=("float32", True)).train()


def test_bfloat16_rounds_products_and_keeps_weights(tmp_path):
    seen = []

    def losses(model, batch):
        y = model(batch["input_ids"])
        seen.append((y.dtype, model.fc.weight.dtype))
        return {"squared": ((y.float() - batch["y"]) ** 2 * batch["weights"]).sum()}

    plain = make_trainer(tmp_path / "plain", losses=losses, p_drop=0.0)
    plain.train()
    rough = make_trainer(tmp_path / "rough", losses=losses, p_drop=0.0, how=("bfloat16",))
    rough.train()
    assert set(seen[:10]) == {(torch.float32, torch.float32)}
    assert set(seen[10:]) == {(torch.bfloat16, torch.float32)}
    assert torch.allclose(weights(rough), weights(plain), rtol=0.02, atol=1e-3)
    assert not torch.equal(weights(rough), weights(plain))


@pytest.mark.parametrize("dot", [False, True])
def test_best_precision_asks_the_processor(monkeypatch, dot):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: dot)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    expected = "bfloat16" if dot else "float32"
    assert train.best_precision(torch.device("cpu")) == expected


def test_batch_smaller_than_the_processes_times_accumulate(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "start_processes", lambda device: (0, 7))
    with pytest.raises(UserError, match="batch_size 6 is below 7 processes times"):
        make_trainer(tmp_path)


def test_one_process_can_be_insisted_on(monkeypatch, capsys):
    train.check_parallel(True)
    train.check_parallel(False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    train.check_parallel(False)
    assert capsys.readouterr().out == ""
    train.check_parallel(True)
    assert "note: one of 3 GPUs is used" in capsys.readouterr().out
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="torchrun started 2 processes"):
        train.check_parallel(False)


def test_batches_are_drawn_ahead_and_never_beyond_the_end(tmp_path):
    """The next batches are drawn in another thread while a step is computed."""
    drawn, ahead, threads = [], [], set()

    def batches(k, *_):
        drawn.append(k)
        threads.add(threading.current_thread().name)
        return get_batch(k)

    def losses(model, batch):
        deadline = time.monotonic() + 30
        wanted = min(len(ahead) + 1 + train.AHEAD, 10)
        while len(drawn) < wanted and time.monotonic() < deadline:
            time.sleep(0.001)
        ahead.append(len(drawn))
        return get_losses(model, batch)

    make_trainer(tmp_path, batches, losses=losses).train()
    assert drawn == list(range(10))
    assert ahead == [min(k + 1 + train.AHEAD, 10) for k in range(10)]
    assert threading.main_thread().name not in threads
    assert not [t for t in threading.enumerate() if t.name in threads]  # the thread has ended


def test_gradient_norm_and_flops_are_logged(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    norms = []
    trainer = make_trainer(tmp_path, p_drop=0.0)
    trainer.get_flops = lambda batch: 1e9 * len(batch["input_ids"])
    step = trainer.optimizer.step

    def spied():
        gradients = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
        norms.append(gradients.norm().item())
        step()

    trainer.optimizer.step = spied
    trainer.train()
    events = accumulator.EventAccumulator(str(tmp_path / "runs")).Reload()
    logged = [event.value for event in events.Scalars("train/gradient_norm")]
    assert logged == pytest.approx([norms[k] for k in (3, 7, 9)], rel=1e-5)
    for name in ("train/waiting_for_data", "train/mfu", "train/tflops"):
        assert all(event.value >= 0 for event in events.Scalars(name))
    rates = [events.Scalars(f"train/{name}")[0].value for name in ("tflops", "tokens_per_second")]
    assert rates[0] == pytest.approx(rates[1] / 4 * 1e9 / 1e12, rel=1e-3)  # 4 numbers an example


def test_the_ceiling_is_that_of_a_warm_card(monkeypatch):
    """A card that was idle takes 0.3 seconds until it multiplies at its full speed."""

    class Card:
        now = 0.0

        def __matmul__(self, other):
            Card.now += 0.004 if Card.now < 0.3 else 0.001
            return self

        __getitem__ = item = lambda self, *place: self

    monkeypatch.setattr(torch, "ones", lambda *size, **how: Card())
    monkeypatch.setattr(time, "perf_counter", lambda: Card.now)
    found = train.product_flops(torch.device("cuda"), torch.bfloat16)
    assert found == pytest.approx(2 * 8192**3 / 0.001)


def test_loss_weights(tmp_path):
    """With half the weight for one loss, only the gradients change: those of the weighted sum."""
    whole = make_trainer(tmp_path / "whole", p_drop=0.0)
    whole.loss_weights = {"absolute": 0.0}
    whole.train()
    alone = make_trainer(
        tmp_path / "alone",
        p_drop=0.0,
        losses=lambda m, b: {"squared": get_losses(m, b)["squared"]},
    )
    alone.train()
    assert torch.allclose(weights(whole), weights(alone), rtol=1e-6)


def test_flops_of_a_step_are_those_that_pytorch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    import models

    cfg = models.Config(
        dim=32, n_layers=3, n_heads=2, dim_ff=48, p_drop_hidden=0.0, p_drop_attn=0.0, max_len=20,
        n_segments=2, vocab_size=70,
    )  # fmt: skip
    model = models.BertModel4Pretrain(cfg)
    ids = torch.zeros(4, 20, dtype=torch.int64)
    math_kernel = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with math_kernel, FlopCounterMode(display=False) as counter:
        lm, clsf = model(ids, ids, None, ids[:, :5])
        (lm.sum() + clsf.sum()).backward()
    expected = counter.get_total_flops() / ids.numel()
    assert train.flops_per_token(cfg, 20, 5) == pytest.approx(expected, rel=0.02)
