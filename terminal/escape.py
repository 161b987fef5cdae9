"""Escape names and strings from binaries and files, so that showing them is harmless.

A symbol may contain bytes that clear a terminal, move its cursor, rename its window or reverse the
direction of writing; a spreadsheet evaluates a cell that begins with ``=``; text in Markdown may
become a link. There is one function for each kind of output.
"""

import os
import re
import sys
from typing import Any

# Printable according to Unicode, but invisible (Default_Ignorable_Code_Point).
INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
FORMULA = re.compile(r"""(^|;)(?=[\s"']*[=+@＝＋－＠-])""")  # noqa: RUF001 - some accept both forms


class _Escapes(dict[int, str]):
    """For `str.translate`: the text to show for each character."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if 0xDC80 <= code <= 0xDCFF:  # how Python represents non-UTF-8 bytes of a file name
            shown = f"\\x{code - 0xDC00:02x}"
        elif character.isprintable() and not INVISIBLE.match(character):
            shown = character
        else:
            shown = character.encode("unicode_escape").decode("ascii")
        self[code] = shown
        return shown


ONE_LINE = _Escapes()
LINES = _Escapes({ord("\n"): "\n", ord("\t"): "\t"})
TABS = _Escapes({ord("\t"): "\t"})


def printable(text: Any) -> str:
    """Return a text or file name as one harmless line.

    Control characters, line ends, marks of direction, characters without width and bytes that are
    not UTF-8 become ``\\x1b``, ``\\n``, ``\\u202e``, ``\\xff``.
    """
    return str(text).translate(ONE_LINE)


class Escaped:
    """A text stream that escapes all control characters except line ends and tabs.

    Parameters
    ----------
    stream : text stream
    strict : bool
        Accept a line end only if it is written by itself, as `print` does. One inside a printed
        text is escaped: it belongs to some name.
    """

    def __init__(self, stream: Any, strict: bool) -> None:
        self.raw = stream
        self.strict = strict

    def write(self, text: str) -> int:
        own = self.strict and text.strip("\n") != ""
        self.raw.write(text.translate(TABS if own else LINES))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def escape_output() -> None:
    """Send everything that this process prints, logs and reports through `Escaped`."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, _nowhere(number))
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Escaped):
            stream.reconfigure(errors="backslashreplace")  # if the terminal's encoding is not UTF-8
            setattr(sys, name, Escaped(stream, strict=name == "stdout"))


def _nowhere(number: int) -> Any:
    """Open the null device as a standard stream that is closed, as by ``>&-`` in a shell.

    Otherwise the next file that is opened would get its number, and what libraries print would go
    to that file.
    """
    handle = os.open(os.devnull, os.O_RDWR)
    if handle != number:
        os.dup2(handle, number)
        os.close(handle)
    os.set_inheritable(number, True)
    return open(number, "w" if number else "r", closefd=False)


def raw(stream: Any) -> Any:
    """Return the unescaped stream, for colours and progress bars; their texts must be escaped."""
    return stream.raw if isinstance(stream, Escaped) else stream


def csv_cell(text: str) -> str:
    """Return a text for a cell of a CSV file that no spreadsheet takes for a formula or a new row.

    An apostrophe is put before anything that would be a formula at the beginning of a cell, or
    after a semicolon, because some spreadsheets split there even inside quotes.

    References
    ----------
    OWASP, "CSV Injection", https://owasp.org/www-community/attacks/CSV_Injection
    """
    return FORMULA.sub(r"\1'", printable(text))


def markdown_text(text: str) -> str:
    """Return a text as code for one line of Markdown or a cell of a table.

    Inside code there are no links, images, HTML, mentions or emphasis. Characters that could end
    the code or the cell become HTML character references.
    """
    text = printable(text)
    if text.strip() == text and text and not re.search(r"[`|\\]", text):
        return f"`{text}`"
    escaped = re.sub(r"[^A-Za-z0-9 .,()/$-]", lambda match: f"&#{ord(match[0])};", text)
    return f"<code>{escaped}</code>"
