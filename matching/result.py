"""The result of a comparison: functions and blocks of OLD and NEW, and what became of them."""

import dataclasses
from typing import Annotated, Any

import numpy as np
import pydantic

from binary.demangle import demangle
from features.extract import Features
from matching.functions import Matches

STATUS = ("changed", "only in old", "only in new", "identical", "compiled differently")
CHANGED, ONLY_OLD, ONLY_NEW, IDENTICAL, RECOMPILED = STATUS
ORDER = (CHANGED, RECOMPILED, ONLY_OLD, ONLY_NEW, IDENTICAL)  # order of the list

# In JSON, addresses are strings, because JavaScript would round numbers.
Address = Annotated[
    int, pydantic.PlainSerializer(hex), pydantic.BeforeValidator(lambda text: int(text, 16))
]


@dataclasses.dataclass(frozen=True)
class Function:
    """A function of one binary.

    Attributes
    ----------
    address : int
    name : str
        Its symbol, demangled if possible, or a name made from the address.
    symbol : str
        The symbol as in the binary.
    blocks : int
        Number of basic blocks.
    number : int
        Which function of `Features` it is; JSON does not contain it, so -1 if read from there.
    """

    address: Address
    name: str
    symbol: str
    blocks: int
    number: Annotated[int, pydantic.Field(exclude=True)] = -1


@dataclasses.dataclass(frozen=True)
class FunctionMatch:
    """Two matched functions, or one without a partner.

    Attributes
    ----------
    status : str
        One of `STATUS`.
    score : float
        Confidence of the match, 0 to 1.
    differing : int
        Number of basic blocks in both functions that have no identical partner.
    change : float
        The same as a share of their blocks, 0 to 1.
    rank : float
        The higher, the more likely a human changed it; the list is sorted by it.
    kinds : tuple of str
        Kinds of change, see `matching.kinds`.
    old, new : Function or None
    inlined : tuple of Function
        For a function in only one binary: functions of the other that likely contain its code.
    """

    status: str
    score: float
    differing: int
    change: float
    rank: float
    kinds: tuple[str, ...]
    old: Function | None
    new: Function | None
    inlined: tuple[Function, ...] = ()

    @property
    def sides(self) -> tuple[int, int]:
        """The numbers of the functions of OLD and NEW; -1 for none."""
        return self.old.number if self.old else -1, self.new.number if self.new else -1

    @property
    def explanation(self) -> str:
        """The kinds of change, or the functions into which the code was likely inlined."""
        names = ", ".join(function.name for function in self.inlined)
        inlined = f"likely inlined {'into' if self.old else 'in'} {names}" if names else ""
        return ", ".join(self.kinds) or inlined

    def record(self) -> dict[str, Any]:
        """Return one flat record; ``pandas.DataFrame`` takes a list of them."""
        flat = {
            "status": self.status,
            "score": self.score,
            "differing": self.differing,
            "change": self.change,
            "rank": self.rank,
            "kinds": ", ".join(self.kinds),
            "inlined": ", ".join(function.name for function in self.inlined),
        }
        for side, function in (("old", self.old), ("new", self.new)):
            for field in ("address", "name", "symbol", "blocks"):
                flat[f"{side}_{field}"] = getattr(function, field, None)
        return flat


@dataclasses.dataclass(frozen=True)
class BlockMatch:
    """Two matched basic blocks: addresses, confidence, and whether they are the same."""

    old: int
    new: int
    score: float
    identical: bool


@dataclasses.dataclass
class Diff:
    """The result of comparing two binaries.

    Attributes
    ----------
    functions : list of FunctionMatch
        Each function of both binaries once. Changed functions come first, by falling rank.
    blocks : Matches
        Code blocks of OLD and NEW.
    same : bool (n,)
        Which of the matched blocks are the same code.
    """

    functions: list[FunctionMatch]
    blocks: Matches
    same: np.ndarray


def functions_of(code: Features) -> list[Function]:
    """Return the functions of a binary, in their order there."""
    symbols = code.analysis.function_name[: code.functions]
    addresses = code.analysis.function_address[: code.functions].tolist()
    sizes = map(len, code.blocks)
    columns = addresses, demangle(symbols), symbols, sizes, range(code.functions)
    return [Function(*values) for values in zip(*columns, strict=True)]


def block_matches(codes: tuple[Features, ...], diff: Diff) -> list[BlockMatch]:
    """Return the matched basic blocks."""
    old, new = (code.analysis.address for code in codes)
    found = diff.blocks.a, diff.blocks.b, diff.blocks.score, diff.same
    return [
        BlockMatch(int(old[a]), int(new[b]), round(float(score), 4), bool(same))
        for a, b, score, same in zip(*found, strict=True)
    ]
