"""gendata.py on a real Dask scheduler with two workers, one of which is killed meanwhile."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, bytes_of, gendata_py

import gendata
from binary.cache import analyse_one
from jobs.run import run_all
from terminal.command_line import PARTLY
from utils import UserError

PATIENCE = 900  # seconds until a test here fails


def wait_for(condition, what):
    end = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < end, f"waited {PATIENCE} s for {what}"
        time.sleep(0.02)
    return result


def children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(p) for task in tasks for p in (task / "children").read_text().split()]
    except OSError:
        return []


def worker_of(nanny: subprocess.Popen) -> int | None:
    """The worker process that a nanny watches; its other child is multiprocessing's tracker."""
    for pid in children(nanny.pid):
        if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text():
            return pid
    return None


def holds_json(file: Path) -> bool:
    """Whether the file is whole: dask opens it first and writes to it afterwards."""
    try:
        json.loads(file.read_text())
    except json.JSONDecodeError:
        return False
    return True


@contextmanager
def cluster(folder: Path, workers: int, **environment: str):
    """Start a scheduler and workers as processes; yield the address and the nannies."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    file = folder / "scheduler.json"
    started = []

    def start(part, *arguments):
        command = [sys.executable, "-m", f"distributed.cli.dask_{part}", "--host", "127.0.0.1"]
        command += ["--no-dashboard", "--scheduler-file", str(file), *arguments]
        with (folder / f"{len(started)}.log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        started.append(process)
        return process

    try:
        start("scheduler", "--port", "0")
        wait_for(lambda: file.exists() and holds_json(file), "the scheduler")
        spill = ["--nthreads", "1", "--local-directory", str(folder)]
        nannies = [start("worker", *spill) for _ in range(workers)]  # they join in some seconds
        yield json.loads(file.read_text())["address"], nannies
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGTERM)
        for process in started:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def test_a_worker_is_killed_and_the_bytes_are_those_of_a_local_run(builds, tmp_path):
    for build in ("O0", "O1", "O1-stripped", "O2"):
        shutil.copytree(builds / build, tmp_path / "binaries" / build)
    (tmp_path / "binaries" / "broken").mkdir()
    (tmp_path / "binaries" / "broken" / "shapes").write_bytes(b"no program at all")
    arguments = ["--biname", "shapes", "--path", "binaries"]
    local = ["--outputDir", "local/output", "--data", "local/data", "--workers", 2]
    on_cluster = ["--outputDir", "far/output", "--data", "far/data", "--cluster"]
    run = gendata_py(tmp_path, *arguments, *local, check=False)
    assert run.returncode == PARTLY, run.stderr

    (tmp_path / "dask").mkdir()
    with cluster(tmp_path / "dask", 2, DASK_DISTRIBUTED__WORKER__DAEMON="False") as (
        address,
        nannies,
    ):
        command = [sys.executable, str(ROOT / "gendata.py"), *arguments, *on_cluster, address]
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_for(lambda: list(tmp_path.glob("far/output/*.npz")), "the first analysis")
        assert process.poll() is None
        victim = wait_for(lambda: worker_of(nannies[0]), "the worker")
        os.kill(victim, signal.SIGKILL)
        out, err = process.communicate(timeout=PATIENCE)
        again = wait_for(lambda: worker_of(nannies[0]), "the worker to come back")
        assert again != victim
    assert process.returncode == PARTLY, err
    assert "Traceback" not in err
    assert "binaries/broken/shapes" in err
    assert "pairs          6 in far/data/" in out
    assert bytes_of(tmp_path / "far") == bytes_of(tmp_path / "local")


def test_a_binary_that_kills_its_workers_costs_itself_only(builds, tmp_path):
    for build in ("O0", "O1", "O1-stripped", "O2"):
        shutil.copytree(builds / build, tmp_path / "binaries" / build)
    (tmp_path / "dask").mkdir()
    tries_once = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    with cluster(tmp_path / "dask", 1, DASK_DISTRIBUTED__WORKER__DAEMON="False", **tries_once) as (
        address,
        (nanny,),
    ):
        command = [sys.executable, str(ROOT / "gendata.py"), "--biname", "shapes"]
        command += ["--path", "binaries", "--cluster", address]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: list(tmp_path.glob("output/*")), "a job")
        os.kill(wait_for(lambda: worker_of(nanny), "the worker"), signal.SIGKILL)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == PARTLY, err
    assert "all workers that tried it died" in err
    assert "Traceback" not in err
    assert (tmp_path / "data" / "0" / "pair.json").exists()


def test_a_missing_scheduler_or_worker_is_reported(builds, tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.cluster.PATIENCE", 1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no Dask scheduler answers at --cluster tcp"):
        gendata.main(biname="shapes", path=str(builds), cluster="tcp://127.0.0.1:1")
    (tmp_path / "dask").mkdir()
    none = cluster(tmp_path / "dask", 0)
    with none as (address, _), pytest.raises(UserError, match="has no workers"):
        gendata.main(biname="shapes", path=str(builds), cluster=address)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("environment", "remedy"),
    [
        ({"PYTHONPATH": ""}, "PYTHONPATH=."),
        ({"DASK_DISTRIBUTED__WORKER__DAEMON": "True"}, "DASK_DISTRIBUTED__WORKER__DAEMON=False"),
    ],
)
def test_workers_that_cannot_import_the_project_are_reported(builds, tmp_path, environment, remedy):
    (tmp_path / "binaries").symlink_to(builds)
    (tmp_path / "dask").mkdir()
    with cluster(tmp_path / "dask", 1, **environment) as (address, _):
        arguments = ["--biname", "shapes", "--path", "binaries", "--cluster", address]
        run = gendata_py(tmp_path, *arguments, check=False)
    assert run.returncode == 1
    assert remedy in run.stderr
    assert not list(tmp_path.glob("output/*"))


def test_without_dask_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "jobs.cluster", raising=False)
    with pytest.raises(UserError, match=r"pip install -r requirements-cluster\.txt"):
        run_all(analyse_one, iter([]), 0, "binaries", 1, (60, 1), "tcp://127.0.0.1:1", str)
