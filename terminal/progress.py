"""Progress on stderr, where that is a terminal: what a pipe or a file gets holds none of it."""

import sys

ERASE = "\r\x1b[K"  # back to the beginning of the line, and the line is empty


def notice(text: str) -> None:
    """Show what is going on, until the next output."""
    if sys.stderr.isatty():
        sys.stderr.write(ERASE + text)
        sys.stderr.flush()


def clear_notice() -> None:
    """Take a notice away."""
    if sys.stderr.isatty():
        sys.stderr.write(ERASE)
        sys.stderr.flush()
