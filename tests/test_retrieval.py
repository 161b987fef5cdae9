"""bench/retrieval.py: ranks in pools, intervals, which functions are asked about."""

from pathlib import Path
from types import SimpleNamespace

import chances
import names
import numpy as np
import pytest
import ranks
import retrieval
import rows
from conftest import compile_c
from recipes import RECIPES, TEST, VALIDATION

from binary import analysis
from encoder.calibration import Calibration
from utils import UserError


def drawn(nearer, ties, all_, pool, rng, times=8_000):
    """The same by drawing pools: recall@1, recall@10, reciprocal rank."""
    found = []
    for _ in range(times):
        # The others in an order by nearness: nearer, ties, further ones.
        others = rng.permutation(all_ - 1)[: pool - 1]
        place = rng.integers(ties + 1) + nearer
        rank = 1 + (others < place).sum()
        found.append([rank == 1, rank <= 10, 1 / rank])
    return np.mean(found, axis=0)


@pytest.mark.parametrize(
    ("nearer", "ties", "pool"), [(0, 0, 10), (3, 0, 10), (30, 0, 40), (5, 6, 20), (49, 0, 25)]
)
def test_pools_need_no_drawing(nearer, ties, pool):
    expected = drawn(nearer, ties, 50, pool, np.random.default_rng(0))
    found = ranks.pool_figures(np.array([nearer]), np.array([ties]), 50, pool)[0]
    assert found == pytest.approx(expected, abs=0.02)


def test_a_pool_of_everything_gives_the_plain_rank():
    found = ranks.pool_figures(np.array([0, 1, 9, 10]), np.zeros(4, np.int64), 60, 60)
    assert found[:, 0].tolist() == pytest.approx([1, 0, 0, 0])
    assert found[:, 1].tolist() == pytest.approx([1, 1, 1, 0])
    assert found[:, 2].tolist() == pytest.approx([1, 1 / 2, 1 / 10, 1 / 11])


@pytest.mark.parametrize("vector", [np.zeros(3), np.array([0.6, 0, 0.8])])
def test_one_vector_for_all_functions_scores_chance(vector):
    collection = np.tile(vector.astype(np.float32), (400, 1))
    nearer, ties = ranks.count_nearer(collection[:30], collection, np.arange(30))
    assert nearer.tolist() == [0] * 30
    assert ties.tolist() == [399] * 30
    for pool in (32, 400):
        found = ranks.pool_figures(nearer, ties, 400, pool).mean(0)
        harmonic = (1 / np.arange(1, pool + 1)).sum()
        assert found == pytest.approx([1 / pool, 10 / pool, harmonic / pool])


def test_minhash_compares_the_values_at_each_place():
    signature = np.random.default_rng(0).integers(0, 3, (5, 64)).astype(np.uint8)
    row = rows.MinHash(
        sha256=np.array(["a", "b"]),
        offsets=np.array([0, 2, 5]),
        address=np.array([16, 32, 16, 48, 64], np.uint64),
        signature=signature,
    )
    a = row.of_file("a", np.array([32, 99, 16], np.uint64))
    b = row.of_file("b", np.array([16, 48, 64], np.uint64))
    equal = (signature[[1, 0]][:, None] == signature[None, 2:]).mean(2)
    assert np.allclose((a @ b.T).toarray()[[0, 2]], equal)
    assert not a[[1]].nnz  # smda has no such function


def test_counts_are_those_of_a_sort():
    rng = np.random.default_rng(1)
    queries, collection = rng.normal(size=(20, 8)), rng.normal(size=(90, 8))
    target = rng.integers(90, size=20)
    nearer, ties = ranks.count_nearer(queries, collection, target)
    order = np.argsort(-(queries @ collection.T), axis=1)
    assert nearer.tolist() == np.argmax(order == target[:, None], axis=1).tolist()
    assert not ties.any()


def test_intervals_are_over_libraries_and_differences_are_paired():
    # Two libraries: one always found, one never. A mean of one half is not known any better for a
    # thousand queries than for two.
    library = np.repeat([0, 1], 500)
    figures = np.stack([1 - library.astype(float)])
    low, high = ranks.interval(ranks.resampled_means(figures, library))
    assert (low, high) == (0, 1)
    better = figures + 0.1
    difference = ranks.resampled_means(better, library) - ranks.resampled_means(figures, library)
    assert ranks.interval(difference) == pytest.approx((0.1, 0.1))
    # Seeds that differ widen it, where libraries do not.
    seeds = np.stack([np.zeros(1000), np.ones(1000)])
    assert ranks.interval(ranks.resampled_means(seeds, library)) == (0, 1)


def test_what_training_holds_in_any_build_is_left_out():
    builds = [(["a", "b", "", "c"], np.array([1, 2, 3, 4], np.uint64))]
    builds += [(["c", "a", "d"], np.array([5, 6, 7], np.uint64))]
    assert retrieval.unseen_names(builds, np.array([], np.uint64)) == {"a", "b", "c", "d"}
    assert retrieval.unseen_names(builds, np.array([6, 3], np.uint64)) == {"b", "c", "d"}
    assert retrieval.unseen_names(builds, np.array([2, 5, 7], np.uint64)) == {"a"}


O0, O3, CLANG = (("bookworm", *x) for x in (("gcc", "O0"), ("gcc", "O3"), ("clang", "O2")))


def library_of(functions, package="lmdb", settings=(O0, O3, CLANG)):
    """Builds of one file; functions: name -> (blocks, body) in each build, or None."""
    builds, known = [], {}
    for i, setting in enumerate(settings):
        build = retrieval.Build(package, setting, Path(f"lib{package}.so"), f"{package}{i}")
        here = {name: of[i] for name, of in functions.items() if of[i]}
        blocks, body = zip(*here.values(), strict=True)
        builds.append(build)
        known[build] = retrieval.Known(list(here), np.array(blocks), np.array(body, np.uint64))
    return builds, known


def task_of(between, *libraries):
    builds = [build for some, _ in libraries for build in some]
    known = {build: of for _, some in libraries for build, of in some.items()}
    asked = retrieval.not_seen(builds, known, np.array([99], np.uint64))
    task = retrieval.make_task(between, builds, known, asked)

    def name(function):
        return known[function[0]].name[function[1]]

    queries = {name(q): name(task.pool[t]) for q, t in zip(task.queries, task.target, strict=True)}
    assert len(queries) == len(task.queries)
    return queries, [name(function) for function in task.pool], task


def test_what_is_asked_and_what_is_searched():
    test = library_of(
        {
            "a": [(5, 1), (5, 2), None],
            "inlined": [(5, 3), None, (5, 4)],
            "small": [(2, 5), (9, 6), None],
            "in_training": [(5, 99), (5, 7), None],
            "twin1": [(5, 10), (5, 11), None],
            "twin2": [(5, 12), (5, 11), None],
            "same": [(5, 1), (5, 13), None],
            "": [(5, 20), (5, 21), (5, 22)],
        }
    )
    other = library_of({"b": [(4, 30), (4, 31), (4, 32)]}, "expat")
    queries, pool, task = task_of((O0, O3), test, other)
    # Of two with one body, the first is asked about, and the first is in the pool.
    assert queries == {"a": "a", "twin1": "twin1", "twin2": "twin1"}
    assert sorted(pool) == ["a", "b", "same", "small", "twin1"]
    assert {build.setting for build, _ in task.queries} == {O0}
    assert {build.setting for build, _ in task.pool} == {O3}
    assert task_of((O0, ("trixie", "gcc", "O2")), test, other)[:2] == ({}, [])


def test_what_is_kept_belongs_to_one_version_of_the_analysis(tmp_path, monkeypatch):
    def features_of(*_):
        code = SimpleNamespace(analysis=analysis.analysis_settings(), sizes=np.ones(1, np.int64))
        code.outline = SimpleNamespace(code=["mov"])
        return code

    monkeypatch.setattr(retrieval, "features_of", features_of)
    monkeypatch.setattr(retrieval, "source_names", lambda version: [version])
    build = retrieval.Build("lmdb", O0, Path("shapes"), "0" * 64)
    vectors = retrieval.Vectors({}, tmp_path, tmp_path)
    files = set()
    for version in ("1", "2", "1"):
        monkeypatch.setattr(analysis, "analysis_settings", lambda version=version: version)
        assert retrieval.known_of(build, tmp_path, tmp_path).name == [version]
        files.add(vectors.file(SimpleNamespace(identity="row"), "body only", build))
    assert len(files) == 2


def test_mixed_pairs_are_of_two_builds():
    test = library_of({f"f{i}": [(4, 3 * i + j) for j in (101, 102, 103)] for i in range(40)})
    queries, pool, task = task_of(None, test)
    assert queries == {name: name for name in pool}
    pairs = {
        (build.setting, task.pool[t][0].setting)
        for (build, _), t in zip(task.queries, task.target, strict=True)
    }
    assert len(pairs) == 6


def test_nothing_that_is_held_out_is_trained_on():
    names = retrieval.training_packages()
    assert not {*TEST, *VALIDATION} & set(names)
    assert {*TEST, *VALIDATION, *names} == set(RECIPES)
    assert len(TEST) >= 8
    assert len(VALIDATION) >= 8


def test_names_are_right_if_a_symbol_at_the_address_says_so(tmp_path):
    source = 'int f(int x) { return x; } int g(int) __attribute__((alias("f"))); int main() {}'
    program = compile_c(source, tmp_path / "static", "-static", "-no-pie")
    symbols = names.symbols_of(str(program))
    (at,) = (address for address, of in symbols.items() if "f" in of)
    assert symbols[at] == {"f", "g"}
    given = [(0.9, at, "g"), (0.8, at + 1, "x"), (0.7, at + 2, "y")]
    assert names.judge(given, {at: {"f", "g"}, at + 1: {"z"}}, {at, at + 1}) == (2, 1)
    for flags in (["-pie"], ["-static", "-no-pie", "-s"]):
        with pytest.raises(UserError, match=r"other has no symbols or no fixed address"):
            names.symbols_of(str(compile_c(source, tmp_path / "other", *flags)))


@pytest.mark.parametrize("option", [{"cells": "all"}, {"tasks": "mixed,speed"}])
def test_unknown_cells_and_tasks_are_named(tmp_path, option):
    with pytest.raises(UserError, match=r"--cells all: there are|--tasks speed: no such task"):
        retrieval.main(work=str(tmp_path), **option)


def test_chances_are_compared_with_what_is_right():
    """Half of the queries find themselves; the others' partner is not in the pool."""
    same = np.eye(300, dtype=np.float32)
    fitted = Calibration(scale=50.0, none=0.5)
    for chance, right in chances.answers(same, same, np.arange(300), fitted, 100):
        assert right.tolist() == [True] * 100 + [False] * 100
        assert (chance[right] > 0.99).all()
        assert (chance[~right] < 0.01).all()


def test_chances_of_an_unknown_task_or_without_analyses_are_refused(tmp_path):
    with pytest.raises(UserError, match="--task speed: no such task"):
        chances.main(task="speed")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="no held-out library has both builds of 'optimisation"):
        chances.main(packages=str(tmp_path), work=str(tmp_path))
