"""gendata.py: which pairs it makes, and what a broken, changed or killed run leaves."""

import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT, SOURCE, bytes_of, compile_c, gendata_py, run_script
from hypothesis import given, settings
from hypothesis import strategies as st

import dataprocess
import gendata
from binary.analysis import cache_file, load_analysis, save_analysis
from binary.builds import find_binaries, find_programs
from binary.disassemble import analyse
from binary.tokens import tokenise
from jobs.processes import in_processes
from pairs.folder import read_info
from pairs.merge import merge
from pairs.walks import WALKS, load_walks
from terminal.command_line import PARTLY
from utils import UserError


@pytest.fixture(scope="module")
def made(builds, tmp_path_factory):
    """A folder in which gendata.py has run once, and what it printed."""
    cwd = tmp_path_factory.mktemp("made")
    (cwd / "binaries").symlink_to(builds)
    arguments = ["--biname", "shapes", "--path", "binaries", "--workers", 2]
    code, out, err = run_script(cwd, "gendata.py", *arguments)
    assert (code, "Traceback" in err) == (0, False), err
    return cwd, out


def test_every_pair_in_sorted_order(made):
    cwd, _ = made
    names = ["O0", "O1", "O1-stripped", "O2", "O3-noplt"]
    expected = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    assert sorted(int(f.name) for f in (cwd / "data").iterdir()) == list(range(len(expected)))
    for n, pair in enumerate(expected):
        written = json.loads((cwd / "data" / str(n) / "pair.json").read_text())
        assert tuple(b["build"] for b in written["binaries"]) == pair
        for binary in written["binaries"]:
            content = (cwd / binary["path"]).read_bytes()
            assert binary["sha256"] == hashlib.sha256(content).hexdigest()


def test_programs_are_paired_with_themselves_only(builds, made, tmp_path):
    for name, program in (("O0", "b"), ("O1", "b"), ("O1", "a"), ("O2", "a"), ("O3-noplt", "a")):
        (tmp_path / "binaries" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "binaries" / name / program).symlink_to(builds / name / "shapes")
    # the same content is already cached
    (tmp_path / "output").symlink_to(made[0] / "output")
    gendata_py(tmp_path, "--biname", "b,a", "--path", "binaries", "--workers", 2)
    written = [
        json.loads((tmp_path / "data" / str(n) / "pair.json").read_text())
        for n in range(len(list((tmp_path / "data").iterdir())))
    ]
    assert [
        (p["program"], *(Path(b["path"]).parts[-2:] for b in p["binaries"])) for p in written
    ] == [
        ("b", ("O0", "b"), ("O1", "b")),
        ("a", ("O1", "a"), ("O2", "a")),
        ("a", ("O1", "a"), ("O3-noplt", "a")),
        ("a", ("O2", "a"), ("O3-noplt", "a")),
    ]


def test_pair_folders_hold_the_documented_files(made):
    cwd, _ = made
    for folder in (cwd / "data").iterdir():
        files = ["dictionary.txt", "pair.json", "walks.npz"]
        assert sorted(f.name for f in folder.iterdir()) == files
        pair = json.loads((folder / "pair.json").read_text())
        analyses = [load_analysis(cwd / "output" / name) for name in pair["analyses"]]
        expected = [cache_file(".", b["sha256"]).name for b in pair["binaries"]]
        assert pair["analyses"] == expected
        with np.load(folder / "walks.npz") as walks:
            assert {k: str(walks[k].dtype) for k in walks} == {"step": "int16", "length": "int32"}
        dictionary = (folder / "dictionary.txt").read_text().splitlines()
        texts = [words for analysis in analyses for words in tokenise(analysis).words()]
        assert dictionary == sorted({word for words in texts for word in words})
        blocks, start = load_walks(folder / "walks.npz")
        assert start[-1] == len(blocks) == pair["counts"]["visits"]
        lengths = np.diff(start)
        assert 1 <= lengths.min() <= lengths.max() <= 64
        merged = merge(*analyses)
        visits = np.bincount(blocks, minlength=len(merged.binary))
        assert visits[merged.has_code].min() >= 2
        counts = pair["counts"]
        assert counts["blocks"] == sum(analysis.blocks for analysis in analyses)
        assert counts["tokens"] == sum(len(texts[block]) for block in blocks)
        assert counts["walks"] == sum(-(-n // 16) for n in lengths.tolist())
        assert counts["documents"] == len(lengths)
        both = [len(set(merged.binary[p].tolist())) for p in np.split(blocks, start[1:-1])]
        assert counts["documents_in_both"] == both.count(2) > 0
        assert counts["document_lengths"] == np.bincount(lengths).tolist()


def test_a_summary_is_printed(made):
    _, out = made
    for what in ("binaries", "pairs", "blocks", "edges", "merged", "walks", "tokens", "seconds"):
        assert what in out
    assert "100 or more" in out  # few pairs: a recommendation


def test_same_bytes_for_any_number_of_workers(made, tmp_path):
    cwd, _ = made
    arguments = ["--biname", "shapes", "--path", "binaries", "--data", tmp_path / "data"]
    gendata_py(cwd, *arguments, "--workers", 1, "--outputDir", tmp_path / "output")
    assert bytes_of(tmp_path / "output") == bytes_of(cwd / "output")
    assert bytes_of(tmp_path / "data") == bytes_of(cwd / "data")


def test_second_run_keeps_and_completes(made, tmp_path):
    cwd = tmp_path
    shutil.copytree(made[0], cwd, dirs_exist_ok=True, symlinks=True)
    before = bytes_of(cwd / "data")
    times = {f: f.stat().st_mtime_ns for f in (cwd / "data").rglob("*") if f.is_file()}
    shutil.rmtree(cwd / "data" / "3")
    (cwd / "data" / "5" / "pair.json").unlink()
    run = gendata_py(cwd, "--biname", "shapes", "--path", "binaries")
    assert "8 of them already there" in run.stdout
    assert bytes_of(cwd / "data") == before
    for file, before_it in times.items():
        if file.parent.name not in ("3", "5"):
            assert file.stat().st_mtime_ns == before_it


def test_other_settings_make_other_walks_and_stale_pairs_go(made, tmp_path):
    cwd = tmp_path
    shutil.copytree(made[0], cwd, dirs_exist_ok=True, symlinks=True)
    before = bytes_of(cwd / "data")
    gendata_py(cwd, "--biname", "shapes", "--path", "binaries", "--seed", 1)
    after = bytes_of(cwd / "data")
    assert before.keys() == after.keys()
    for name in after:
        assert (before[name] == after[name]) == name.endswith("dictionary.txt"), name

    (cwd / "binaries").unlink()
    for build in ("O0", "O2"):
        shutil.copytree(made[0] / "binaries" / build, cwd / "binaries" / build)
    run = gendata_py(cwd, "--biname", "shapes", "--path", "binaries")
    assert "removed 10 pair folders" in run.stdout  # the remaining one had seed 1
    assert [f.name for f in (cwd / "data").iterdir()] == ["0"]


def test_other_tokens_make_the_pairs_again_but_disassemble_nothing(made, tmp_path, monkeypatch):
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True, symlinks=True)
    monkeypatch.chdir(tmp_path)
    analysed = {file: file.stat().st_mtime_ns for file in Path("output").iterdir()}
    before = bytes_of(Path("data"))
    monkeypatch.setattr(gendata, "TOKENS", 99)
    gendata._read.cache_clear()
    monkeypatch.setattr("binary.tokens.string_words", lambda literal: [])
    assert gendata.main("shapes", "binaries", workers=1) == 0
    assert analysed == {file: file.stat().st_mtime_ns for file in Path("output").iterdir()}
    after = bytes_of(Path("data"))
    for name in before:
        assert (before[name] == after[name]) == name.endswith("walks.npz"), name
    assert "exhausted" in (made[0] / "data/0/dictionary.txt").read_text()
    assert "exhausted" not in Path("data/0/dictionary.txt").read_text()


def test_killed_run_leaves_whole_pairs_and_goes_on(made, tmp_path):
    (tmp_path / "binaries").symlink_to(made[0] / "binaries")
    command = [sys.executable, str(ROOT / "gendata.py"), "--biname", "shapes", "--path", "binaries"]
    process = subprocess.Popen(
        [*command, "--workers", "2"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not list(tmp_path.glob("output/*.npz")):  # at least one analysis; others are running
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    whole = bytes_of(made[0] / "output")
    for file in (tmp_path / "output").glob("*.npz"):
        assert hashlib.sha256(file.read_bytes()).hexdigest() == whole[file.name]
    gendata_py(tmp_path, "--biname", "shapes", "--path", "binaries")
    assert bytes_of(tmp_path / "output") == whole
    assert bytes_of(tmp_path / "data") == bytes_of(made[0] / "data")


def test_a_new_build_costs_one_analysis(made, tmp_path):
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True, symlinks=True)
    (tmp_path / "binaries").unlink()
    shutil.copytree(made[0] / "binaries", tmp_path / "binaries")
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "output").iterdir()}
    compile_c(SOURCE, tmp_path / "binaries" / "O1a" / "shapes", "-Os")
    gendata_py(tmp_path, "--biname", "shapes", "--path", "binaries")
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "output").iterdir()}
    assert len(after) == len(times) + 1
    assert times.items() <= after.items()
    assert len(list(tmp_path.glob("data/*/pair.json"))) == 15


def test_a_run_that_is_stopped_mixes_no_settings(made, tmp_path, monkeypatch):
    """All pairs of the earlier settings are removed before the first new one is made."""
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True, symlinks=True)
    (tmp_path / "data/99").symlink_to(made[0] / "data/0")  # a link is removed, not followed
    (tmp_path / "data/mine").mkdir()
    monkeypatch.chdir(tmp_path)
    before = bytes_of(made[0])

    def stopped(function, jobs, total, workers, what, *limits, sizes):
        if what == "pairs":
            raise KeyboardInterrupt
        yield from ()

    monkeypatch.setattr("jobs.run.in_processes", stopped)
    with pytest.raises(KeyboardInterrupt):
        gendata.main("shapes", "binaries", seed=1, workers=1)
    assert os.listdir("data") == ["mine"]
    assert bytes_of(made[0]) == before
    with pytest.raises(UserError, match="no finished pair"):
        dataprocess.main()


write_pair = gendata.write_pair


def write_pair_but_the_third(pair, *arguments):
    if pair.pair == 3:
        os._exit(1)
    write_pair(pair, *arguments)


def test_a_pair_that_fails_costs_itself_only(made, tmp_path, monkeypatch, capsys):
    (tmp_path / "data/3").mkdir(parents=True)
    monkeypatch.chdir(made[0])

    monkeypatch.setattr(gendata, "write_pair", write_pair_but_the_third)
    code = gendata.main("shapes", "binaries", data=str(tmp_path / "data"), workers=1)
    assert code == PARTLY
    assert "skipped pair 3: the worker process died (exit code 1)" in capsys.readouterr().err
    expected = bytes_of(made[0] / "data")
    assert bytes_of(tmp_path / "data") == {k: v for k, v in expected.items() if k[:2] != "3/"}


def test_walks_of_a_pair_stay_when_its_number_moves(made, tmp_path):
    cwd = tmp_path
    for build in ("O0", "O2"):
        shutil.copytree(made[0] / "binaries" / build, cwd / "binaries" / build)
    gendata_py(cwd, "--biname", "shapes", "--path", "binaries", "--outputDir", made[0] / "output")
    numbers = {
        tuple(b["build"] for b in json.loads(f.read_text())["binaries"]): f.parent
        for f in (made[0] / "data").glob("*/pair.json")
    }
    before = numbers["O0", "O2"] / "walks.npz"
    assert (cwd / "data" / "0" / "walks.npz").read_bytes() == before.read_bytes()


def test_a_broken_binary_costs_its_pairs_only(made, tmp_path):
    cwd = tmp_path
    shutil.copytree(made[0] / "binaries", cwd / "binaries")
    (cwd / "binaries" / "O1a").mkdir()
    (cwd / "binaries" / "O1a" / "shapes").write_bytes(b"not a program at all")
    (cwd / "binaries" / "empty-folder").mkdir()
    run = gendata_py(cwd, "--biname", "shapes", "--path", "binaries", check=False)
    assert run.returncode == PARTLY
    assert "binaries/O1a/shapes" in run.stderr
    assert "not an executable" in run.stderr
    builds = [
        {b["build"] for b in json.loads(f.read_text())["binaries"]}
        for f in (cwd / "data").glob("*/pair.json")
    ]
    assert len(builds) == 10
    assert not any("O1a" in pair for pair in builds)


def test_no_binaries_prints_the_command_that_makes_them(tmp_path):
    run = gendata_py(tmp_path, "--path", "nothere", check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("error: --path nothere: there is no such folder; build ")
    assert "python experiment_data/build_coreutils.py" in run.stderr
    assert not (tmp_path / "data").exists()


def test_one_binary_is_too_few(made, tmp_path):
    shutil.copytree(made[0] / "binaries" / "O0", tmp_path / "binaries" / "O0")
    with pytest.raises(UserError, match="needs two"):
        find_binaries(str(tmp_path / "binaries"), "shapes")


@pytest.mark.parametrize("name", ["../shapes", "O0/shapes", "", "..", "/", "//shapes", "/.."])
def test_biname_is_no_path(made, name):
    with pytest.raises(UserError, match="file name"):
        find_binaries(str(made[0] / "binaries"), name)


def test_biname_with_the_slash_of_this_lineage(tmp_path):
    """Its settings say ``biname="/chroot"``, which it appends to each build's folder."""
    for build in ("a", "b"):
        for name in ("chroot", "ls"):
            file = tmp_path / build / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(build)
    programs = find_programs(str(tmp_path), ["/chroot", "/l*"])
    assert programs == find_programs(str(tmp_path), ["chroot", "l*"])
    assert list(programs) == ["chroot", "ls"]
    assert [build["path"] for build in programs["chroot"]] == [
        str(tmp_path / build / "chroot") for build in ("a", "b")
    ]


@pytest.mark.parametrize("flag", ["--num_walks", "--walk_length", "--sentences", "--workers"])
def test_settings_out_of_range_are_refused(tmp_path, flag):
    run = gendata_py(tmp_path, flag, 0, check=False)
    assert run.returncode == 2
    assert flag in run.stderr


@pytest.mark.parametrize(
    ("how", "limits", "error"),
    [
        ("exits", {}, "the worker process died (exit code 7)"),
        ("crashes", {}, "the worker process died (SIGKILL)"),
        (
            "computes",
            {"time_limit": 2},
            "took longer than 2 seconds of processor time (--time_limit)",
        ),
        ("waits", {"time_limit": 0.1}, "waited for longer than 2 seconds"),
        ("eats", {"memory_limit": 1}, "took more than 1 GiB of memory (--memory_limit)"),
    ],
)
def test_a_worker_that_misbehaves_costs_its_own_job(how, limits, error):
    jobs = [(key, (key,)) for key in ("fine", how, "fine too")]
    errors = dict(in_processes(misbehave, iter(jobs), len(jobs), 2, "tests", **limits))
    assert errors == {"fine": None, how: error, "fine too": None}


def test_time_that_a_job_waits_does_not_count():
    jobs = [(key, (0.5,)) for key in range(2)]
    assert dict(in_processes(time.sleep, iter(jobs), 2, 2, "tests", time_limit=0.2)) == {
        0: None,
        1: None,
    }


def test_jobs_are_yielded_as_they_end_and_the_rest_can_be_stopped(tmp_path):
    jobs = [("long", (600,)), ("short", (0,)), ("next", (600,))]
    results = in_processes(time.sleep, iter(jobs), 3, 2, "tests")
    assert next(results) == ("short", None)
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < 60
    assert not multiprocessing.active_children()


def misbehave(how):
    if how == "exits":
        os._exit(7)
    if how == "crashes":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "computes":
        while True:
            pass
    if how == "waits":
        time.sleep(600)
    if how == "eats":
        eaten = bytearray(b"x") * (5 * 2**28)
        time.sleep(600 * len(eaten))


ALONE = """
import os, sys, time
from jobs import processes

def job(file):
    with open(file, "w") as out:
        out.write(f"{os.getpid()}\\n")
    time.sleep(60)

jobs = ((file, (file,)) for file in sys.argv[1:])
list(processes.in_processes(job, jobs, 2, 2, "tests"))
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
    files = [tmp_path / "a", tmp_path / "b"]
    parent = subprocess.Popen([sys.executable, "-c", ALONE, *map(str, files)], cwd=ROOT)
    while not all(file.exists() and file.read_text().endswith("\n") for file in files):
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    workers = [int(file.read_text()) for file in files]
    for _ in range(600):
        if not any(psutil.pid_exists(worker) for worker in workers):
            return
        time.sleep(0.05)
    raise AssertionError("the workers go on")


def test_show_prints_every_block_of_a_pair(made):
    cwd, _ = made
    out = gendata_py(cwd, "show", 0).stdout
    assert "[0] O0, [1] O1" in out
    pair = json.loads((cwd / "data" / "0" / "pair.json").read_text())
    assert out.count("\nblock ") == pair["counts"]["blocks"]
    assert out.count(" = block ") == 2 * pair["counts"]["merged"]
    assert "push rbp" in out
    assert "tokens: push reg8" in out or "tokens: endbr64 push reg8" in out
    assert "in area" in out
    assert gendata_py(cwd, "show", 99, check=False).returncode == 1


def test_cached_analyses_are_keyed_by_content_and_version(monkeypatch):
    one = cache_file("output", "a" * 64)
    assert one != cache_file("output", "b" * 64)
    monkeypatch.setattr("binary.analysis.analysis_settings", lambda: "another version")
    assert one != cache_file("output", "a" * 64)


# ------------------------------------------------------------------------------ many programs


def folder_of(programs: dict[str, str], builds: Path, folder: Path) -> Path:
    """Make <build>/<program> for each letter in a program's builds, all with different content."""
    for program, letters in programs.items():
        for letter in letters:
            file = folder / "binaries" / letter / program
            file.parent.mkdir(parents=True, exist_ok=True)
            # bytes after the end of an ELF file do not matter
            file.write_bytes(
                (builds / "O1" / "shapes").read_bytes() + f"{program}{letter}".encode()
            )
    return folder


def read_pairs(cwd: Path) -> list[dict]:
    pairs = [json.loads(f.read_text()) for f in (cwd / "data").glob("*/pair.json")]
    return sorted(pairs, key=lambda pair: pair["pair"])


def fake_analyses(monkeypatch, cwd: Path, builds: Path) -> None:
    """Let gendata.main use one analysis for all files, because analysing takes seconds."""
    analysis = analyse(builds / "O1" / "shapes")

    def analyse_all(binaries, output_dir, *_):
        for binary in binaries:
            save_analysis(analysis, cache_file(output_dir, binary["sha256"]))
        return {}

    monkeypatch.setattr(gendata, "analyse_all", analyse_all)
    monkeypatch.chdir(cwd)


def test_pattern_and_numbers_over_all_programs(builds, tmp_path, monkeypatch, capsys):
    programs = {"sort": "abc", "ls": "abcd", "l1": "ab", "once": "d"}
    folder_of(programs, builds, tmp_path)
    fake_analyses(monkeypatch, tmp_path, builds)
    assert gendata.main(biname="*", path="binaries", workers=2) == 0
    pairs = read_pairs(tmp_path)
    assert [p["pair"] for p in pairs] == list(range(1 + 6 + 3))
    found = [(p["program"], *(b["build"] for b in p["binaries"])) for p in pairs]
    expected = [
        (program, *pair)
        for program in ("l1", "ls", "sort")
        for pair in itertools.combinations(programs[program], 2)
    ]
    assert found == expected
    assert "programs       3: 1 train" in capsys.readouterr().out
    gendata.main(biname="l*", path="binaries", workers=1)
    assert {p["program"] for p in read_pairs(tmp_path)} == {"l1", "ls"}
    assert "removed 3 pair folders" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--biname 'x\*'"):
        gendata.main(biname="x*", path="binaries")
    with pytest.raises(UserError, match="only one folder in binaries holds once"):
        gendata.main(biname="once", path="binaries")


def test_limited_pairs_stay_and_use_all_builds(builds, tmp_path, monkeypatch):
    folder_of({"ls": "abcdefg", "cp": "abc"}, builds, tmp_path)
    fake_analyses(monkeypatch, tmp_path, builds)
    gendata.main(biname=["ls", "cp"], path="binaries", pairs=5, workers=2)
    pairs = read_pairs(tmp_path)
    assert [p["program"] for p in pairs] == ["ls"] * 5 + ["cp"] * 3
    used = {b["build"] for p in pairs if p["program"] == "ls" for b in p["binaries"]}
    assert used == set("abcdefg")
    before = bytes_of(tmp_path / "data")
    gendata.main(biname=["ls", "cp"], path="binaries", pairs=5, workers=1)
    assert bytes_of(tmp_path / "data") == before
    gendata.main(biname=["ls", "cp"], path="binaries", pairs=5, workers=1, seed=1)
    others = [[b["build"] for b in p["binaries"]] for p in read_pairs(tmp_path)]
    assert others != [[b["build"] for b in p["binaries"]] for p in pairs]


@given(st.integers(2, 40), st.integers(1, 900), st.integers(0, 5))
def test_chosen_pairs_cover_all_builds_first(builds, limit, seed):
    everything = list(itertools.combinations(range(builds), 2))
    chosen = list(gendata.choose_pairs(builds, limit, [seed]))
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(everything)
    assert len(chosen) == min(limit, len(everything))
    assert chosen == list(gendata.choose_pairs(builds, limit, [seed]))
    used = Counter(build for pair in chosen for build in pair)
    if limit >= -(-builds // 2):
        assert len(used) == builds
    if limit >= builds and builds > 2:
        assert min(used.values()) >= 2
    assert list(gendata.choose_pairs(builds, None, [seed])) == everything


def test_every_pair_may_be_chosen():
    drawn = Counter(p for seed in range(400) for p in gendata.choose_pairs(9, 18, [seed]))
    assert len(drawn) == 36
    assert min(drawn.values()) > 100  # 200 expected of each; a ninth of that is ten deviations


def test_drawing_pairs_of_many_builds_needs_no_list_of_all():
    chosen = list(gendata.choose_pairs(1_000_000, 20, [0]))
    assert len(set(chosen)) == 20
    assert all(0 <= a < b < 1_000_000 for a, b in chosen)


names = st.lists(st.text("abcdefgh", min_size=1, max_size=4), min_size=1, max_size=30, unique=True)


@given(names, st.integers(0, 99))
@settings(max_examples=200)
def test_split_has_all_parts_where_there_are_enough_programs(programs, seed):
    split = gendata.split_programs(dict.fromkeys(programs), 0.1, 0.1, seed)
    assert set(split) == set(programs)
    wanted = {"train", "validation", "test"}
    assert set(split.values()) == (wanted if len(programs) >= 3 else set(split.values()))
    assert set(split.values()) == {1: {"train"}, 2: {"train", "validation"}}.get(
        len(programs), wanted
    )
    assert split == gendata.split_programs(dict.fromkeys(programs[::-1]), 0.1, 0.1, seed)
    without = gendata.split_programs(dict.fromkeys(programs), 0.0, 0.0, seed)
    assert set(without.values()) == {"train"}


def test_split_stays_when_programs_join_and_has_the_shares_asked_for():
    programs = [f"program{n}" for n in range(4000)]
    few = gendata.split_programs(dict.fromkeys(programs[:500]), 0.1, 0.2, 0)
    split = gendata.split_programs(dict.fromkeys(programs), 0.1, 0.2, 0)
    assert all(split[program] == where for program, where in few.items())
    counts = Counter(split.values())
    assert abs(counts["validation"] - 400) < 100  # five standard deviations
    assert abs(counts["test"] - 800) < 130
    assert split != gendata.split_programs(dict.fromkeys(programs), 0.1, 0.2, 1)


def test_packages_that_are_set_aside_decide_the_split(builds, tmp_path, monkeypatch, capsys):
    folder_of({"p": ["tiff-9-O0", "tiff-9-O2"], "q": "ab", "r": "ab"}, builds, tmp_path)
    fake_analyses(monkeypatch, tmp_path, builds)
    gendata.main(biname="?", path="binaries", workers=1)
    written = {p["program"]: p["split"] for p in read_pairs(tmp_path)}
    assert written == {"p": "test", "q": "train", "r": "train"}
    assert "sets 1 of the programs aside" in capsys.readouterr().out
    # There must be something to train on.
    assert set(gendata.split_programs({"p": "test", "q": "test"}, 0.1, 0.1, 0).values()) == {
        "train",
        "validation",
    }


def test_split_is_written_and_shares_are_checked(builds, tmp_path, monkeypatch):
    folder_of(dict.fromkeys("pqrst", "ab"), builds, tmp_path)
    fake_analyses(monkeypatch, tmp_path, builds)
    gendata.main(biname="?", path="binaries", workers=1, validation=0.3, test=0.3)
    written = {p["program"]: p["split"] for p in read_pairs(tmp_path)}
    assert written == gendata.split_programs(dict.fromkeys("pqrst"), 0.3, 0.3, 0)
    with pytest.raises(UserError, match="leave no program to train on"):
        gendata.main(biname="?", path="binaries", validation=0.5, test=0.5)


def test_pairs_are_never_all_in_memory(monkeypatch):
    """Jobs are taken from the iterator only as fast as others end."""
    monkeypatch.setattr("jobs.processes.AHEAD", 5)
    taken = 0

    def jobs():
        nonlocal taken
        for number in range(50):
            taken += 1
            yield number, (0,)

    ended = []
    for key_and_error in in_processes(misbehave, jobs(), 50, 2, "t"):
        ended.append(key_and_error)  # in the order in which they end
        assert taken <= len(ended) + 5
    assert sorted(ended) == [(number, None) for number in range(50)]
    assert taken == 50


def test_a_second_writer_of_the_same_pair_does_no_harm(made, tmp_path):
    cwd = tmp_path
    shutil.copytree(made[0], cwd, dirs_exist_ok=True, symlinks=True)
    before = bytes_of(cwd / "data")
    info = dataclasses.replace(read_info(cwd / "data" / "2"), counts=None)
    gendata.write_pair(info, str(cwd / "output"), str(cwd / "data"))
    assert bytes_of(cwd / "data") == before


def test_walks_as_text_are_what_the_corpus_holds(made, tmp_path):
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True, symlinks=True)
    gendata_py(tmp_path, "text", 3)
    assert [f.parent.name for f in (tmp_path / "data").glob("*/walks.txt")] == ["3"]
    gendata_py(tmp_path, "--biname", "shapes", "--path", "binaries", "--text", "True")
    texts = [(tmp_path / "data" / str(n) / "walks.txt").read_text() for n in range(10)]
    subprocess.run([sys.executable, ROOT / "dataprocess.py"], cwd=tmp_path, check=True)
    documents = "".join(texts).split("\n\n")[:-1]
    corpus = (tmp_path / "data/corpus.txt").read_text().split("\n\n")[:-1]
    assert corpus == list(dict.fromkeys(documents))  # without the copies
    info = json.loads((tmp_path / "data/3/pair.json").read_text())
    assert len(texts[3].split()) == info["counts"]["tokens"]
    assert set(texts[3].split()) <= set((tmp_path / "data/3/dictionary.txt").read_text().split())


def test_another_kind_of_walk_is_a_function_with_a_name(builds, tmp_path, monkeypatch):
    def lonely(graph, num_walks, most, seed):
        blocks = np.flatnonzero(graph.has_code)[:most].astype(np.int32)
        return blocks, np.arange(len(blocks) + 1)

    folder_of({"ls": "ab"}, builds, tmp_path)
    fake_analyses(monkeypatch, tmp_path, builds)
    monkeypatch.setitem(WALKS, "lonely", lonely)
    for walk, longest in (("lonely", 1), ("deepwalk", 6), ("control_flow", 6)):
        gendata.main("ls", path="binaries", walk=walk, walk_length=3, sentences=2, workers=1)
        info = read_info(tmp_path / "data" / "0")
        assert info.settings.walk == walk
        assert len(info.counts.document_lengths) == longest + 1
    with pytest.raises(UserError, match="--walk 'none': choose from control_flow"):
        gendata.main("ls", path="binaries", walk="none")
