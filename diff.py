"""Which functions and basic blocks of two binaries correspond, and what changed.

    python diff.py OLD NEW
    python diff.py OLD NEW --html report.html --json diff.json --csv diff.csv

Symbols are used to show names, never to match. Neither binary is executed.
"""

if __name__ == "__main__":
    from terminal.early import answer

    answer(__file__)  # --help and words on wrong flags need not wait for the imports below

import itertools
import time
from typing import Annotated

from pydantic import Field, PositiveInt

import utils
from features.extract import Features, read_binaries
from jobs.processes import MEMORY_LIMIT, TIME_LIMIT, Limit, limited_memory
from matching.anchors import read_anchors
from matching.changes import CHANGED, STATUS, Diff, compare, describe
from matching.exports import as_csv, as_json, naming_script, write
from matching.model import DEFAULT, read_model
from matching.page.make import make_page
from terminal.command_line import command_line

outputDir = "output/"  # analysed binaries, shared with gendata.py
workers = 2  # processes


def main(
    old: str,
    new: str,
    model_file: str = str(DEFAULT),
    html: str | None = None,
    json: str | None = None,
    csv: str | None = None,
    anchors: str | None = None,
    ghidra: str | None = None,
    ida: str | None = None,
    top: Annotated[int, Field(ge=0)] = 10,
    outputDir: str = outputDir,
    workers: PositiveInt = workers,
    time_limit: Limit = TIME_LIMIT,
    memory_limit: Limit = MEMORY_LIMIT,
) -> None:
    """Compare two binaries: which functions and blocks correspond, and what changed.

    Parameters
    ----------
    old : str
        An executable that angr reads (ELF, PE, Mach-O).
    new : str
        Another build or version of it.
    model_file : str
        The model to compare with, written by matching/train.py.
    html : str
        Write a page with both control-flow graphs of every function here.
    json : str
        Write all matches of functions and blocks here, as JSON.
    csv : str
        Write all matches of functions here, as CSV.
    anchors : str
        File of known pairs of functions, one a line: their addresses in old and new, such as
        0x401000 0x401230. What follows a # is a comment.
    ghidra : str
        Write a script for Ghidra here that gives the functions of new their names in old.
    ida : str
        Write a script for IDA here that does the same.
    top : int
        How many changed functions are printed.
    outputDir : str
        Where analysed binaries are cached.
    workers : int
        Processes that work at the same time.
    time_limit : float
        Seconds of processor time that the analysis of one file may take.
    memory_limit : float
        GiB of memory that it may take, and that the comparison may take.
    """
    began = time.perf_counter()
    outputs = {"html": html, "json": json, "csv": csv, "ghidra": ghidra, "ida": ida}
    inputs = (old, new, model_file, anchors)
    utils.check_outputs(outputs, inputs, {"outputDir": outputDir})
    model = read_model(model_file)
    codes = read_binaries((old, new), outputDir, workers, (time_limit, memory_limit))
    with limited_memory(memory_limit, f"comparing {old} with {new}"):
        known = read_anchors(anchors, codes) if anchors else None
        diff = compare(*codes, model, known)
        if html:
            write(html, make_page((old, new), codes, diff))
        if json:
            utils.write_json(json, as_json((old, new), codes, diff))
        if csv:
            write(csv, as_csv(codes, diff))
        for tool, file in (("ghidra", ghidra), ("ida", ida)):
            if file:
                write(file, naming_script(tool, new, codes, diff))
    summary((old, new), codes, diff, top, time.perf_counter() - began)


def summary(
    paths: tuple[str, str], codes: tuple[Features, ...], diff: Diff, top: int, seconds: float
) -> None:
    """Print what was found, and the most changed functions."""
    for which, path, code in zip(("old", "new"), paths, codes, strict=True):
        print(
            f"{which}  {path}: {code.functions:,} functions, {code.analysis.code_blocks:,} blocks"
        )
    for status, name in enumerate(STATUS):
        print(f"{sum(row['status'] == status for row in diff.functions):6,} functions {name}")
    n = len(diff.blocks.a)
    print(f"{n:6,} blocks matched, {int(diff.same.sum()):,} of them identical")
    changed = [row for row in diff.functions if row["status"] == CHANGED]
    if changed and top:
        print(
            "most changed (blocks without an identical partner, their share, score of the match):"
        )
    for row in itertools.islice(changed, top):
        a, b = (describe(c, f) for c, f in zip(codes, row["sides"], strict=True))
        place = f"{a['address']} {a['name']} -> {b['address']} {b['name']}"
        share = max(row["change"], 0.01)
        print(f"{row['differing']:6,}  {share:4.0%}  {row['score']:.2f}  {place}")
    print(f"{seconds:.1f} seconds")


if __name__ == "__main__":
    command_line(main)
