"""What benches share: the day and machine for the head of a table, commands, an ablation."""

import dataclasses
import datetime
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import scipy.sparse

from features.positions import BAG, WORD_KINDS, Positions
from features.tfidf import DIMENSIONS
from utils import UserError


def machine() -> str:
    """Return today's date, the processor, the number of cores, and the version of Python."""
    python = platform.python_version()
    return f"{datetime.date.today()}, {processor()}, {os.cpu_count()} cores, Python {python}"


def processor() -> str:
    """Return the processor's name, if Linux knows it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()


def run(command: list[str], folder: Path | None = None) -> None:
    """Run a command in a folder; if it fails, raise a UserError with its error messages."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")


def without_operations(positions: Positions) -> Positions:
    """Return the encoder's input without the words that all processors share."""

    def rest(matrix: scipy.sparse.csr_matrix, left_out: int) -> scipy.sparse.csr_matrix:
        kept = matrix.indices // DIMENSIONS != left_out
        offsets = np.append(0, np.cumsum(kept))[matrix.indptr]
        return scipy.sparse.csr_matrix(
            (matrix.data[kept], matrix.indices[kept], offsets), matrix.shape
        )

    return dataclasses.replace(
        positions,
        of_line=rest(positions.of_line, WORD_KINDS.index("operation")),
        bags=rest(positions.bags, list(BAG).index("operation")),
    )
