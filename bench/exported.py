"""Do exported names help to match the functions that are not exported?

    python bench/exported.py --work FOLDER

diff.py matches functions that both files export by the same name, and everything else around them.
Such names are also the truth of bench/world.py, so that bench takes them away. This one matches the
same files with and without them. It judges only the functions that neither file exports, by the
symbols that the compared copies lack. Rows are those of bench/world.py in which both files have at
least MANY functions of either kind.
"""

import hashlib
import itertools
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import numpy as np
from shared import machine
from world import Row, World, f1, f1_interval, named, outcomes, rows, state, told_apart, units
from world_files import Defined, defined, original, spelled, stripped

import utils
from binary.exports import read_exports
from matching.anchors import known_pairs
from matching.functions import match_functions
from terminal.command_line import command_line

MANY = 20


def main(work: str, match: str = "", seconds: int = 0) -> None:
    """Print the table.

    Parameters
    ----------
    work : str
        The folder of bench/world.py.
    match : str
        Only rows whose names contain this.
    seconds : int
        Measure no row after this time. Default: no limit.
    """
    bench = World(Path(work))
    began = time.monotonic()
    results = []
    for row in [row for row in rows() if match in row.name]:
        key = f"{state()} {utils.sha256_of(__file__)} {row}"
        cell = bench.work / "rows" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        if not cell.exists():
            if seconds and time.monotonic() - began > seconds:
                print(f"stopped after {seconds} s; run the same command again to go on")
                break
            try:
                utils.write_json(cell, measure(bench, row))
            except utils.UserError as error:
                print(f"left out: {row.name}: {error}", flush=True)
                continue
            print(f"measured: {row.name}", file=sys.stderr, flush=True)
        found = json.loads(cell.read_text())
        if found["units"]:
            results.append((row, found))
    for text in table(results):
        print(text)


def measure(bench: World, row: Row) -> dict:
    """Match a pair with and without exported names; judge the functions that are not exported.

    Returns
    -------
    dict
        ``pairs``: number of functions that their exported names determine; ``units``: as in
        `world.outcomes`, without the names and with them; none if there are too few functions.
    """
    files = row.first, row.second
    copies = [str(stripped(file, bench.work)) for file in files]
    names = [{export.name for export in read_exports(copy)} for copy in copies]
    public = spelled({0: set().union(*names)})[0] if any(names) else set()
    local = [hidden(defined(original(file, bench.work)), public) for file in files]
    if min(map(len, [*names, *local])) < MANY:
        return {"pairs": 0, "units": []}
    codes = bench.code(files[0])[0], bench.code(files[1])[0]
    known = known_pairs(copies, codes)
    keys = told_apart(local, files[0].version == files[1].version)
    truth = [named(code, key) for code, key in zip(codes, keys, strict=True)]
    judged = []
    for anchors in (None, known):
        found = match_functions(*codes, bench.model, anchors)
        pairs = list(zip(found.a.tolist(), found.b.tolist(), strict=True))
        judged.append(outcomes(pairs, *truth)["units"])
    return {"pairs": len(known), "units": judged}


def hidden(found: dict[int, Defined], public: set[str]) -> dict[int, Defined]:
    """Return what a file defines, without the functions with these names."""
    return {address: what for address, what in found.items() if not what.names & public}


def table(results: list[tuple[Row, dict]]) -> list[str]:
    """Return the lines of a Markdown table, with a row for each pair and one for each group."""
    lines = [machine(), ""]
    lines.append("| pair | by name | not exported | F1 (95 %), no names | F1 (95 %), names |")
    lines.append("|---|---|---|---|---|")
    for group, inside in itertools.groupby(results, key=lambda item: item[0].group):
        inside = list(inside)
        lines += [line(row.name, [result]) for row, result in inside]
        lines.append(line(f"**{group}, all**", [result for _, result in inside]))
    if results:
        lines.append(line("**all**", [result for _, result in results]))
    return lines


def line(name: str, results: list[dict]) -> str:
    """Return a line of the table for one result, or for several together."""
    cells = [name, sum(result["pairs"] for result in results)]
    both = [
        np.concatenate([units({"units": result["units"][side]}) for result in results])
        for side in (0, 1)
    ]
    cells.append(both[0].sum(0)[2])
    for side in both:
        low, high = f1_interval(side)
        cells.append(f"{f1(side):.3f} ({low:.3f}-{high:.3f})")
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    command_line(main)
