"""Write the result of a comparison as a BinDiff database, for its UI and its plugins.

The database refers to the two BinExport files beside it by their names without the suffix.
"""

import itertools
import os
import sqlite3
from collections import Counter
from pathlib import Path

import numpy as np

import utils
from binary.analysis import CALL
from features.extract import Features
from matching.alignment import align
from matching.result import Diff
from terminal.escape import printable

TABLES = """
CREATE TABLE file (id INTEGER PRIMARY KEY, filename TEXT, exefilename TEXT, hash CHARACTER(40),
    functions INT, libfunctions INT, calls INT, basicblocks INT, libbasicblocks INT, edges INT,
    libedges INT, instructions INT, libinstructions INT);
CREATE TABLE metadata (version TEXT, file1 INTEGER, file2 INTEGER, description TEXT, created DATE,
    modified DATE, similarity DOUBLE PRECISION, confidence DOUBLE PRECISION,
    FOREIGN KEY(file1) REFERENCES file(id), FOREIGN KEY(file2) REFERENCES file(id));
CREATE TABLE functionalgorithm (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE function (id INTEGER PRIMARY KEY, address1 BIGINT, name1 TEXT, address2 BIGINT,
    name2 TEXT, similarity DOUBLE PRECISION, confidence DOUBLE PRECISION, flags INTEGER,
    algorithm SMALLINT, evaluate BOOLEAN, commentsported BOOLEAN, basicblocks INTEGER,
    edges INTEGER, instructions INTEGER, UNIQUE(address1, address2),
    FOREIGN KEY(algorithm) REFERENCES functionalgorithm(id));
CREATE TABLE basicblockalgorithm (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE basicblock (id INTEGER PRIMARY KEY, functionid INT, address1 BIGINT,
    address2 BIGINT, algorithm SMALLINT, evaluate BOOLEAN,
    FOREIGN KEY(functionid) REFERENCES function(id),
    FOREIGN KEY(algorithm) REFERENCES basicblockalgorithm(id));
CREATE TABLE instruction (basicblockid INT, address1 BIGINT, address2 BIGINT,
    FOREIGN KEY(basicblockid) REFERENCES basicblock(id));
"""
# BinDiff's numbers for manual matches, the only kind that its own algorithms do not make
MANUAL, MANUAL_BLOCK = 19, 20
WHEN = "1970-01-01 00:00:00"  # the same inputs must give the same bytes
VERSION = "BinDiff 8"


def export_names(paths: tuple[str, str]) -> list[str]:
    """Return the names of both BinExport files, without the suffix."""
    # The database holds them, too, and can only hold text.
    names = [printable(Path(path).name) for path in paths]
    return (
        names
        if names[0] != names[1]
        else [f"{name}.{s}" for name, s in zip(names, ("old", "new"), strict=True)]
    )


def write_bindiff(
    file: str,
    paths: tuple[str, str],
    hashes: tuple[str, str],
    codes: tuple[Features, Features],
    diff: Diff,
) -> None:
    """Write BinDiff's database, whole or not at all."""
    database = sqlite3.connect(":memory:")
    database.executescript(TABLES)
    database.execute("INSERT INTO functionalgorithm VALUES (?, ?)", (MANUAL, "function: manual"))
    database.execute(
        "INSERT INTO basicblockalgorithm VALUES (?, ?)", (MANUAL_BLOCK, "basicBlock: manual")
    )
    for side, (code, name) in enumerate(zip(codes, export_names(paths), strict=True)):
        about = name, printable(os.path.basename(paths[side])), hashes[side]
        database.execute(
            f"INSERT INTO file VALUES ({', '.join('?' * 13)})", (side + 1, *about, *_sizes(code))
        )
    matched = [m.score for m in diff.functions if m.old and m.new]
    same = 2 * int(diff.same.sum()) / max(sum(c.analysis.code_blocks for c in codes), 1)
    sure = float(np.mean(matched)) if matched else 0.0
    database.execute(
        "INSERT INTO metadata VALUES (?, 1, 2, '', ?, ?, ?, ?)", (VERSION, WHEN, WHEN, same, sure)
    )
    _matches(database, codes, diff)
    database.commit()
    with utils.atomic_file(file, "wb") as stream:
        stream.write(database.serialize())
    database.close()


def _sizes(code: Features) -> tuple[int, ...]:
    analysis = code.analysis
    calls = int(((analysis.kind == CALL) & (analysis.edges[:, 0] < analysis.code_blocks)).sum())
    edges = int((analysis.kind != CALL).sum())
    return (
        *(code.functions, len(analysis.import_name), calls),
        *(analysis.code_blocks, 0, edges, 0, len(analysis.instruction_size), 0),
    )


def _matches(database: sqlite3.Connection, codes: tuple[Features, Features], diff: Diff) -> None:
    """Insert the matched functions, their matched blocks, and the instructions of those."""
    old, new = (code.analysis for code in codes)
    pair_of = {m.sides: i for i, m in enumerate(diff.functions, 1) if m.old and m.new}
    places = [_addresses(code) for code in codes]
    blocks: list[tuple[int, ...]] = []
    instructions: list[tuple[int, ...]] = []
    count: Counter[tuple[int, str]] = Counter()
    for a, b in zip(diff.blocks.a.tolist(), diff.blocks.b.tolist(), strict=True):
        function = pair_of.get((int(old.function[a]), int(new.function[b])))
        if function is None:  # BinDiff cannot express that a block moved to another function
            continue
        block = len(blocks) + 1
        where = _signed(old.address[a]), _signed(new.address[b])
        blocks.append((block, function, *where, MANUAL_BLOCK, 0))
        count[function, "blocks"] += 1
        lines = [an.instructions[x].split(b"\n") for an, x in ((old, a), (new, b))]
        mnemonics = [[line.partition(b" ")[0] for line in side] for side in lines]
        for tag, i, i_end, j, j_end in align(*mnemonics):
            if tag == "equal":
                addresses = zip(places[0][a][i:i_end], places[1][b][j:j_end], strict=True)
                instructions += [(block, *map(_signed, both)) for both in addresses]
                count[function, "instructions"] += i_end - i
    functions = []
    for f, match in enumerate(diff.functions, 1):
        if match.old and match.new:
            ends = match.old, match.new
            about = (value for end in ends for value in (_signed(end.address), end.symbol))
            likeness = 1 - match.change, match.score, 0, MANUAL, 0, 0
            counts = count[f, "blocks"], 0, count[f, "instructions"]
            functions.append((f, *about, *likeness, *counts))
    database.executemany(f"INSERT INTO function VALUES ({', '.join('?' * 14)})", functions)
    database.executemany("INSERT INTO basicblock VALUES (?, ?, ?, ?, ?, ?)", blocks)
    database.executemany("INSERT INTO instruction VALUES (?, ?, ?)", instructions)


def _addresses(code: Features) -> list[list[int]]:
    """Return the address of each instruction of each block."""
    found, at = [], 0
    sizes = code.analysis.instruction_size.tolist()
    for block in range(code.analysis.code_blocks):
        count = code.analysis.instructions[block].count(b"\n") + 1
        begin = int(code.analysis.address[block])
        found.append(list(itertools.accumulate(sizes[at : at + count - 1], initial=begin)))
        at += count
    return found


def _signed(address: int) -> int:
    """Return an address as a signed 64-bit number, as SQLite stores it."""
    return int(np.uint64(address).astype(np.int64))
