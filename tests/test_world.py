"""The bench on real files: what it strips, and what it counts as right."""

import io
import itertools
import os
import subprocess
import time
from types import SimpleNamespace

import numpy as np
import pytest
import truth
import world
import world_files
from elftools.elf.elffile import ELFFile
from zig import SOURCE as SMALL
from zig import zig

SOURCE = """\
#include <string.h>
__attribute__((noinline)) static int twice(int x, int unused) { return x * 2 + (unused & 0); }
int four(int x) { return twice(twice(x, 7), 7); }
__attribute__((noinline)) static int cut(const char *s) {
    if (!s) __builtin_abort();
    return strlen(s) * 3;
}
int three(const char *s) { return cut(s) + cut(s + 1); }
int four_again(int x) __attribute__((alias("four")));
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    (folder / "a.c").write_text(SOURCE)
    command = ["gcc", "-g", "-O2", "-shared", "-fPIC", "a.c", "-o", "a.so"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "a.so"


def names(file):
    return set().union(*(d.names for d in world_files.defined(file).values()))


def test_strip_leaves_what_strip_leaves(library):
    file, copy = library, library.with_suffix(".stripped")
    assert {"twice", "four", "cut"} <= names(file)
    copy.write_bytes(world_files.strip(file.read_bytes()))
    assert "four" in names(copy)  # that one is exported
    assert "twice" not in names(copy)
    assert b"twice" not in copy.read_bytes()
    said = subprocess.run(["readelf", "-SsW", copy], capture_output=True, text=True, check=True)
    assert " .dynsym " in said.stdout
    assert " .symtab " not in said.stdout
    assert " .debug" not in said.stdout


def test_definitions_are_those_of_the_source(library):
    """What the compiler made of a function has its name and line, whatever its symbol says."""
    said = subprocess.run(["nm", library], capture_output=True, text=True, check=True).stdout
    symbols = {
        line.split()[2]: int(line.split()[0], 16)
        for line in said.splitlines()
        if "t" in line.lower().split()[-2]
    }
    made = [name for name in symbols if name.startswith("twice.")]
    assert made, "gcc made a copy: " + said
    found = truth.definitions(ELFFile(io.BytesIO(library.read_bytes())))
    assert found[symbols[made[0]]] == {("twice", "a.c", 2)}
    assert found[symbols["four"]] == {("four", "a.c", 3)}
    everything = set().union(*found.values())
    assert {name for name, _, _ in everything} == {"twice", "four", "cut", "three"}
    lines = SOURCE.splitlines()
    assert all(name in lines[line - 1] for name, _, line in everything)
    defined = world_files.defined(library)
    assert defined[symbols["four"]] == ({"four"}, {"a.c:3"}), "not by its other symbol, four_again"


def test_names_in_files_for_macos(tmp_path):
    (tmp_path / "a.c").write_text(SMALL)
    dylib, copy = tmp_path / "a.dylib", tmp_path / "stripped.dylib"
    zig(
        "aarch64-macos",
        "-g0",
        "-O1",
        "-shared",
        "-undefined",
        "dynamic_lookup",
        tmp_path / "a.c",
        "-o",
        dylib,
    )
    content = bytearray(dylib.read_bytes())
    content[12] = 8  # a bundle, as Python's extension modules are
    dylib.write_bytes(content)
    assert {"_choose", "_first", "_third"} <= names(dylib)
    copy.write_bytes(world_files.strip(dylib.read_bytes()))
    assert "_choose" in names(copy)
    assert not {"_first", "_third"} & names(copy)
    assert b"_third" not in copy.read_bytes()


def test_names_are_compared_without_parameters_and_numbers():
    for name, expected in {
        "std::vector<int, A<char> >::at(unsigned long) const": "std::vector<int, A<char> >::at",
        "f(void (*)(int))": "f",
        "(anonymous namespace)::g(int)": "{anonymous}::g",
        "__pyx_pw_7msgpack_9_cmsgpack_6Packer_5pack": "__pyx_pw_msgpack__cmsgpack_Packer_pack",
        "__pyx_f_4file_2pack(_object*, long)": "__pyx_f_file_pack",
        "plain": "plain",
        "unsigned long a::max<char, 4ul>(long long)": "a::max<char, 4>",
        "int f<void (*)(int)>(int (*)())": "f<void (*)(int)>",
        "f(int)::local::g(char)": "f(int)::local::g",
        "decltype(auto) f<2u>(int) const &": "f<2>",
        "a::operator()<int>(int) const": "a::operator()<int>",
        "virtual thunk to a::g(int)": "thunk a::g",
        "main.(*T).String": "main.(*T).String",
        "type:.eq.[2]interface {}": "type:.eq.[2]interface {}",
        "g<int>(" + 500 * "x": "g<int>",  # a name that was cut off
        "core::fmt::Formatter::pad::h0123456789abcdef": "core::fmt::Formatter::pad",
    }.items():
        assert world_files.source_name(name) == expected
    found = world_files.spelled({1: {"_ZN5shape4areaEi"}, 2: {"sort.part.0"}, 3: {"sort.isra.0"}})
    assert found == {1: {"shape::area"}, 2: {"sort"}, 3: {"sort"}}


def called(*functions, extra=()):
    """Names of functions 0, 1, 2... and of others that the analysis has missed."""
    sets = [frozenset(names.split()) for names in functions]
    return world.Names(dict(enumerate(sets)), [*sets, *(frozenset([name]) for name in extra)])


def test_outcomes_count_each_function_once():
    old, new = called("a", "b", "c", "gone"), called("a", "c", "new", extra=["b"])
    found = world.outcomes([(0, 0), (1, 1), (3, 2), (9, 9)], old, new)
    right, said, true = np.array(found["units"]).sum(0)
    assert (right, said, true) == (1, 3, 3)  # a; b and gone are wrong; b and c are missed
    assert found["unclear"] == 1  # gone may be called new today
    assert world.f1(np.array(found["units"])) == 2 * 1 / (3 + 3)
    low, high = world.f1_interval(np.array(found["units"]))
    assert 0 <= low <= 1 / 3 <= high <= 1


def test_folded_functions_are_right_with_each_of_their_sources():
    """The linker folded a and b of the old file; a function with several names is missed once."""
    old, new = called("a b", "open open64"), called("a", "b", "open64 open")
    for partner in (0, 1):
        found = world.outcomes([(0, partner), (1, 2)], old, new)
        assert np.array(found["units"]).sum(0).tolist() == [2, 2, 2]
    found = world.outcomes([], old, new)
    assert np.array(found["units"]).tolist() == [[0, 0, 1]] * 2


def test_lines_tell_functions_of_one_name_apart_within_a_version():
    """Between versions lines move, and those of the standard library depend on the compiler."""

    def found(header):
        places = (("f", "a.c:3"), ("f", "b.c:9"), ("std::g", f"map.h:{header}"), ("h", ""))
        return {
            16 * at: world_files.Defined(frozenset([name]), frozenset([place] if place else []))
            for at, (name, place) in enumerate(places)
        }

    both = found(158), found(165)
    for keys in world.told_apart(list(both), True):
        assert [*keys.values()] == [{"f a.c:3"}, {"f b.c:9"}, {"std::g"}, {"h"}]
    for keys in world.told_apart(list(both), False):
        assert [*keys.values()] == [{"f"}, {"f"}, {"std::g"}, {"h"}]


def test_names_are_those_of_the_functions_that_were_found():
    addresses = np.array([0x400010, 0x400021])  # as mapped; the second is Thumb code
    code = SimpleNamespace(functions=2, analysis=SimpleNamespace(function_address=addresses))
    keys = {0x10: frozenset(["f"]), 0x20: frozenset(["g"]), 0x30: frozenset(["h"])}
    names = world.named(code, keys)
    assert names.of == {0: {"f"}, 1: {"g"}}
    assert names.all == [{"f"}, {"g"}, {"h"}]


def test_a_peer_that_takes_too_long_is_left_out():
    assert world.within(60, lambda n: [n], 3) == [3]
    assert world.within(0.1, lambda n: [time.sleep(n)], 60) == []
    with pytest.raises(EOFError):
        world.within(60, lambda: os._exit(1))


def test_the_rows_of_a_group_follow_each_other():
    groups = [row.group for row in world.rows()]
    assert len(set(groups)) == 1 + sum(a != b for a, b in itertools.pairwise(groups))
