"""Progress on stderr, where that is a terminal: what a pipe or a file gets holds none of it."""

import os
import sys
from typing import Any

from terminal.escape import printable, raw

ERASE = "\r\x1b[K"  # back to the beginning of the line, and the line is empty


def bar(items: Any = None, *, desc: str | None = None, **about: Any) -> Any:
    """Return tqdm's progress bar over ``items``, whose description cannot act in the terminal.

    Parameters
    ----------
    items : iterable, optional
    desc : str
        What is counted.
    **about
        As for `tqdm.tqdm`: total, unit, ...
    """
    from tqdm import tqdm  # late: --help needs none

    desc = desc if desc is None else printable(desc)
    return tqdm(items, desc=desc, file=raw(sys.stderr), disable=None, dynamic_ncols=True, **about)


def write(text: str) -> None:
    """Print a line above the progress bars."""
    from tqdm import tqdm

    with tqdm.external_write_mode(file=raw(sys.stderr)):
        print(text, flush=True)


def notice(text: str) -> None:
    """Show what is going on, until the next output."""
    _show(printable(text))


def line(text: str) -> None:
    """Show a line that stays."""
    _show(printable(text) + "\n")


def clear_notice() -> None:
    """Take a notice away."""
    _show("")


def _show(text: str) -> None:
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        stream = raw(sys.stderr)
        stream.write(ERASE + text)
        stream.flush()
