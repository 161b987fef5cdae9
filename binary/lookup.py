"""Find the function that a user names by its address or its symbol."""

import difflib
import re

import numpy as np

import utils
from binary.analysis import Analysis
from binary.demangle import demangle
from terminal.escape import printable
from terminal.style import fit

NEAR = 3  # names or addresses that a message offers
SHOWN = 60  # characters of a name in a message
HEXADECIMAL = re.compile("0[xX][0-9a-fA-F]+")


def find_function(analysis: Analysis, path: str, asked: str) -> int:
    """Return the index of the function with this address, such as 0x401230, or this name.

    The name may be the symbol, or what it says in the source, such as shape::area(int).

    Raises
    ------
    utils.UserError
        There is none, or more than one. The message offers the nearest ones.
    """
    starts = analysis.function_address[: analysis.code_functions].tolist()
    symbols = analysis.function_name[: analysis.code_functions]
    names = demangle(symbols)
    pairs = zip(symbols, names, strict=True)
    found = [f for f, (symbol, name) in enumerate(pairs) if asked in (symbol, name)]
    if not found and HEXADECIMAL.fullmatch(asked):
        address = int(asked, 16)
        if address in starts:
            return starts.index(address)
        raise utils.UserError(f"{path}: {describe_address(analysis, address)}")
    if len(found) == 1:
        return found[0]
    if found:
        where = utils.either([f"0x{starts[f]:x}" for f in found[:NEAR]], "and")
        raise utils.UserError(
            f"{path}: {len(found)} functions are called {_short(asked)}; name one by its address, "
            f"such as {where}"
        )
    near = difflib.get_close_matches(asked, sorted({*symbols, *names}), NEAR)
    hint = (
        f"did you mean {utils.either([_short(name) for name in near])}"
        if near
        else ("give a function's address, such as 0x401230, or its name")
    )
    raise utils.UserError(f"{path}: no function is called {_short(asked)}; {hint}")


def describe_address(analysis: Analysis, address: int) -> str:
    """Say what lies at an address where no function begins, and which functions are near."""
    at = f"no function begins at 0x{address:x}"
    begin = analysis.address[: analysis.code_blocks].astype(np.uint64)
    end = begin + np.array(list(map(len, analysis.code[: analysis.code_blocks])), np.uint64)
    inside = np.flatnonzero((begin <= address) & (address < end))
    if len(inside):
        return f"{at}: it lies in {_named(analysis, int(analysis.function[inside[0]]))}"
    if not begin.min() <= address < end.max():
        return f"{at}: it lies outside the code, which is at 0x{begin.min():x} to 0x{end.max():x}"
    starts = analysis.function_address[: analysis.code_functions]
    after = int(np.searchsorted(starts, address))
    near = [_named(analysis, f) for f in (after - 1, after) if 0 <= f < len(starts)]
    return f"{at}; the nearest functions are {utils.either(near, 'and')}"


def _named(analysis: Analysis, function: int) -> str:
    address = int(analysis.function_address[function])
    return f"{_short(analysis.function_name[function])} (0x{address:x})"


def _short(name: str) -> str:
    return fit(printable(name), SHOWN) or "''"
