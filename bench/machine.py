"""The day and the machine that a bench runs on, for the head of its table."""

import datetime
import os
import platform
from pathlib import Path


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
