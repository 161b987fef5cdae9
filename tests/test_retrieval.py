"""bench/retrieval.py: ranks in pools, intervals, which functions are asked about."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
import ranks

from features.outline import unseen_names


def drawn(nearer, ties, all_, pool, rng, times=20_000):
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
    assert found == pytest.approx(expected, abs=0.015)


def test_the_whole_collection_as_pool_is_the_plain_rank():
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
    assert unseen_names(builds, np.array([], np.uint64)) == {"a", "b", "c", "d"}
    assert unseen_names(builds, np.array([6, 3], np.uint64)) == {"b", "c", "d"}
    assert unseen_names(builds, np.array([2, 5, 7], np.uint64)) == {"a"}
