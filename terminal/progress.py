"""Show progress on stderr if it is a terminal; pipes and files get none of it."""

import os
import sys
from typing import Any

from terminal.escape import printable, raw

ERASE = "\r\x1b[K"  # go back to the beginning of the line and clear it


def bar(items: Any = None, *, desc: str | None = None, **about: Any) -> Any:
    """Return tqdm's progress bar over ``items``, with an escaped description.

    Parameters
    ----------
    items : iterable, optional
    desc : str
        What is counted.
    **about
        Arguments of `tqdm.tqdm`: total, unit, ...
    """
    from tqdm import tqdm  # imported here because --help does not need it

    desc = desc if desc is None else printable(desc)
    return tqdm(items, desc=desc, file=raw(sys.stderr), disable=None, dynamic_ncols=True, **about)


def write(text: str) -> None:
    """Print a line above the progress bars."""
    from tqdm import tqdm

    with tqdm.external_write_mode(file=raw(sys.stderr)):
        print(text, flush=True)


def notice(text: str) -> None:
    """Show a message that the next output replaces."""
    _show(printable(text))


def line(text: str) -> None:
    """Show a line that stays."""
    _show(printable(text) + "\n")


def clear_notice() -> None:
    """Remove the message of `notice`."""
    _show("")


def _show(text: str) -> None:
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        stream = raw(sys.stderr)
        stream.write(ERASE + text)
        stream.flush()
