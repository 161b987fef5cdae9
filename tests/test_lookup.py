"""binary/lookup.py: a function by its address or name, and what to type instead."""

import dataclasses

import pytest
from conftest import analysis_of

from binary.lookup import find_function
from utils import UserError

# A function of two blocks, one of one block, and a gap of 16 bytes between them.
BLOCKS = [(0x1000, 0x1000, "call"), (0x1008, 0x1000, "ret"), (0x1020, 0x1020, "ret")]


def made(*names):
    analysis = analysis_of(BLOCKS, [])
    return dataclasses.replace(
        analysis, function_name=[*names, "puts"], code=[b"12345678", b"12345678", b"1234", b""]
    )


@pytest.mark.parametrize(
    ("asked", "function"), [("quote", 0), ("0x1000", 0), ("0X1020", 1), ("area", 1)]
)
def test_a_function_is_found_by_its_address_or_name(asked, function):
    assert find_function(made("quote", "area"), "f", asked) == function


def test_a_function_is_found_by_its_name_in_the_source():
    analysis = made("_ZN5shape4areaEi", "_ZN5shape4areaEc")
    for asked in ("shape::area(char)", "_ZN5shape4areaEc"):
        assert find_function(analysis, "f", asked) == 1
    with pytest.raises(UserError, match=r"did you mean shape::area\(int\)"):
        find_function(analysis, "f", "shape::area(int")


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("0x100b", "no function begins at 0x100b: it lies in quote (0x1000)"),
        ("0x1021", "no function begins at 0x1021: it lies in area\\x1b[2J (0x1020)"),
        (
            "0x1018",
            "no function begins at 0x1018; the nearest functions are quote (0x1000) and "
            "area\\x1b[2J (0x1020)",
        ),
        (
            "0xfff",
            "no function begins at 0xfff: it lies outside the code, which is at 0x1000 to 0x1024",
        ),
        ("0x1024", "no function begins at 0x1024: it lies outside the code"),
        ("0x" + "f" * 20, "no function begins at 0x" + "f" * 20 + ": it lies outside the code"),
        ("quoet", "no function is called quoet; did you mean quote"),
        ("puts", "no function is called puts; give a function's address, such as 0x401230"),
        ("", "no function is called '';"),
        ("\x1b]0;", "no function is called \\x1b]0;;"),
    ],
)
def test_what_is_near_is_offered(asked, reason):
    with pytest.raises(UserError) as error:
        find_function(made("quote", "area\x1b[2J"), "some file", asked)
    assert str(error.value).startswith(f"some file: {reason}")


def test_functions_of_one_name_are_told_apart_by_their_addresses():
    with pytest.raises(UserError, match=r"2 functions are called copy; .* 0x1000 and 0x1020"):
        find_function(made("copy", "copy"), "f", "copy")


def test_addresses_of_a_kernel():
    high = 0xFFFFFFFF81000000
    analysis = made("quote", "area")
    analysis.address[:] += high
    analysis.function_address[:] += high
    with pytest.raises(UserError, match="0xffffffff8100100b: it lies in quote"):
        find_function(analysis, "vmlinux", "0xffffffff8100100b")
    with pytest.raises(UserError, match="outside the code, which is at 0xffffffff81001000 to"):
        find_function(analysis, "vmlinux", "0x1000")
