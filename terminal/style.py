"""Colour and width of the output on a terminal."""

import os
import shutil
import sys
from typing import Any

from terminal.escape import printable, raw

STYLES = {"red": 31, "green": 32, "yellow": 33, "bold": 1}  # of ECMA-48, "select graphic rendition"


def say(text: str, style: str, stream: Any = None) -> None:
    """Print a line, in colour if the output is a terminal that shows it.

    References
    ----------
    https://no-color.org: if the environment variable NO_COLOR is not empty, use no colour.
    """
    stream = stream or sys.stdout
    plain = not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if plain:
        print(printable(text), file=stream)
    else:
        raw(stream).write(f"\x1b[{STYLES[style]}m{printable(text)}\x1b[0m\n")


def columns() -> int | None:
    """Return the width of the terminal in characters; None if the output is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def relative(path: str) -> str:
    """Return a path relative to the working directory if it lies inside, else unchanged."""
    short = os.path.relpath(path)
    return path if short.startswith("..") or not os.path.isabs(path) else short


def cut(text: str, width: int | None) -> str:
    """Cut a text after ``width`` characters; None leaves it whole."""
    text = printable(text)
    return text if width is None or len(text) <= width else text[: width - 1] + "…"


def fit(text: str, width: int | None) -> str:
    """Shorten a text in its middle to ``width`` characters, at least 8; None leaves it whole."""
    text = printable(text)
    if width is None or len(text) <= max(width, 8):
        return text
    kept = max(width, 8) - 1
    return f"{text[: kept - kept // 2]}…{text[-(kept // 2) :]}"
