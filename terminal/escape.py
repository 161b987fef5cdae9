"""What is shown cannot act: names and strings of binaries and files, made harmless for each reader.

A symbol may hold the bytes that clear a terminal, move its cursor, rename its window or turn the
direction of writing round; a spreadsheet takes a cell that begins with ``=`` for a formula; text in
Markdown may be a link. One function for each kind of reader is here.
"""

import re
import sys
from typing import Any

# Unicode calls these printable, though nothing of them is seen (Default_Ignorable_Code_Point).
INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
FORMULA = re.compile(r"""(^|;)(?=[\s"']*[=+@＝＋－＠-])""")  # noqa: RUF001 - some spreadsheets know both


class _Escapes(dict[int, str]):
    """For `str.translate`: what is shown instead of a character."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of a file's name that is not UTF-8
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
    """Return a text, or a file's name, as one line that does nothing but stand there.

    Control characters, line ends, marks of direction, characters without width and bytes that are
    not UTF-8 become ``\\x1b``, ``\\n``, ``\\u202e``, ``\\xff``.
    """
    return str(text).translate(ONE_LINE)


class Escaped:
    """A text stream on which nothing acts but the ends of lines, and tabs.

    Parameters
    ----------
    stream : text stream
    strict : bool
        Take a line's end for one only if it is written by itself, as `print` does: those inside of
        what is printed belong to some name.
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
    """Let all that this process prints, logs and reports go through `Escaped`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Escaped):
            stream.reconfigure(errors="backslashreplace")  # what the terminal's encoding lacks
            setattr(sys, name, Escaped(stream, strict=name == "stdout"))


def raw(stream: Any) -> Any:
    """Return the stream itself, for colours and progress bars, whose texts are escaped before."""
    return stream.raw if isinstance(stream, Escaped) else stream


def csv_cell(text: str) -> str:
    """Return a text for a cell of a CSV file, in which no spreadsheet finds a formula or a new row.

    A quotation mark goes before what would be a formula at the beginning of a cell; also behind a
    semicolon, at which some spreadsheets split whatever the quotes around it say.

    References
    ----------
    OWASP, "CSV Injection", https://owasp.org/www-community/attacks/CSV_Injection
    """
    return FORMULA.sub(r"\1'", printable(text))


def markdown_text(text: str) -> str:
    """Return a text for one line of Markdown, or a cell of a table, as code that says just this.

    Inside of code there are no links, images, HTML, mentions or emphasis. What could end the code
    or the cell is written as HTML's character references.
    """
    text = printable(text)
    if text.strip() == text and text and not re.search(r"[`|\\]", text):
        return f"`{text}`"
    escaped = re.sub(r"[^A-Za-z0-9 .,()/$-]", lambda match: f"&#{ord(match[0])};", text)
    return f"<code>{escaped}</code>"
