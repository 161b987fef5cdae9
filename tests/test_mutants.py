"""Files of every kind, changed by hypothesis: each is read, or refused in one sentence."""

import mutants
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.processes import limited_memory


@pytest.mark.parametrize("name", mutants.KINDS)
def test_whatever_is_changed_reading_ends_in_a_sentence(name, analyses, tmp_path):
    kind = mutants.KINDS[name]
    kind.make(tmp_path, analyses["O1"])
    kind.read(tmp_path)  # the good files
    memory = psutil.Process().memory_info().rss / 2**30 + 1
    ends = {"read": 0, "refused": 0}

    @settings(
        max_examples=300,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    @given(rng=st.randoms(use_true_random=True))
    def change(rng):
        with limited_memory(memory, "reading"):
            said = mutants.try_mutant(kind, tmp_path, rng)
        ends["refused" if said else "read"] += 1

    change()
    assert ends["refused"] > 20
    kind.read(tmp_path)
