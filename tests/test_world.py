"""The bench on real files: what it strips, and what it counts as right."""

import subprocess
from collections import Counter

import numpy as np
import world

SOURCE = "static __attribute__((noinline)) int twice(int x) { return x * 2; }\n"
SOURCE += "int four(int x) { return twice(twice(x)); }\n"


def test_strip_leaves_what_strip_leaves(tmp_path):
    file, copy = tmp_path / "a.so", tmp_path / "stripped.so"
    (tmp_path / "a.c").write_text(SOURCE)
    subprocess.run(
        ["gcc", "-g", "-O1", "-shared", "-fPIC", "a.c", "-o", "a.so"], cwd=tmp_path, check=True
    )
    assert {"twice", "four"} <= set().union(*world.symbols(file).values())
    copy.write_bytes(world.strip(file.read_bytes()))
    names = set().union(*world.symbols(copy).values())
    assert "four" in names  # that one is exported
    assert "twice" not in names
    assert b"twice" not in copy.read_bytes()
    said = subprocess.run(["readelf", "-SsW", copy], capture_output=True, text=True, check=True)
    assert " .dynsym " in said.stdout
    assert " .symtab " not in said.stdout
    assert " .debug" not in said.stdout


def test_names_are_compared_without_parameters_and_numbers():
    for name, expected in {
        "std::vector<int, A<char> >::at(unsigned long) const": "std::vector<int, A<char> >::at",
        "f(void (*)(int))": "f",
        "(anonymous namespace)::g(int)": "{anonymous}::g",
        "__pyx_pw_7msgpack_9_cmsgpack_6Packer_5pack": "__pyx_pw_msgpack__cmsgpack_Packer_pack",
        "__pyx_f_4file_2pack(_object*, long)": "__pyx_f_file_pack",
        "plain": "plain",
    }.items():
        assert world.source_name(name) == expected
    found = world.spelled({1: {"_ZN5shape4areaEi"}, 2: {"sort.part.0"}, 3: {"sort.isra.0"}})
    assert found == {1: {"shape::area"}, 2: {"sort"}, 3: {"sort"}}


def test_outcomes_count_each_function_once():
    old = world.Names({0: {"a"}, 1: {"b"}, 2: {"c"}, 3: {"gone"}}, Counter(["a", "b", "c", "gone"]))
    new = world.Names({0: {"a"}, 1: {"c"}, 2: {"new"}}, Counter(["a", "b", "c", "new"]))
    found = world.outcomes([(0, 0), (1, 1), (3, 2), (9, 9)], old, new)
    right, said, true = np.array(found["units"]).sum(0)
    assert (right, said, true) == (1, 3, 3)  # a; b and gone are wrong; b and c are missed
    assert found["unclear"] == 1  # gone may be called new today
    assert world.f1(np.array(found["units"])) == 2 * 1 / (3 + 3)
    low, high = world.f1_interval(np.array(found["units"]))
    assert 0 <= low <= 1 / 3 <= high <= 1
