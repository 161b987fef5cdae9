"""Files of every kind, changed by hypothesis: each is read, or refused in one sentence."""

import importlib.util
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.processes import limited_memory

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("mutants", ROOT / "bench/mutants.py")
mutants = importlib.util.module_from_spec(spec)
sys.modules["mutants"] = mutants
spec.loader.exec_module(mutants)


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
