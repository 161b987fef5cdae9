"""What benches share: the day and machine for the head of a table, and running commands."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

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
