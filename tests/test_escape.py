"""terminal/escape.py: output is harmless in terminals, spreadsheets and Markdown."""

import csv
import io
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terminal.escape import Escaped, csv_cell, markdown_text, printable
from terminal.style import cut, fit, relative

ROOT = Path(__file__).resolve().parent.parent
ATTACKS = [
    "\x1b]0;PWNED\x07\x1b[2J\x1b[31mred",
    'foo\r=HYPERLINK("http://x","c")',
    "\u2028\u202ertl\u202c",
    "\x08\x08\x08spoof",
    "\x9b31mC1csi",
    "a\nb\x0b\x0c\x85c",
    "zero\u200b\u200d\ufeffwidth",
    "\u2066isolate\u2069\u061c",
    "hangul\u3164filler\ufe0f\u034f",
    "tag\U000e0041\U000e0101",
    "\udcff\udcfe\ud800bad",
    " =1+1",
    "\t=1+1",
    "=cmd|' /C calc'!A0",
    "x;=1+1",
    "x;\t\"'@SUM(1)",
    "y\t=2+2",
    "＝1+1",  # noqa: RUF001
    "+1",
    "-1",
    "'=1+1",
    'a\r\n=1+2;"x',
    "](javascript:x) ![](http://x) <b> @user #1 **x** _y_ ~~z~~",
    "`code` ``` | cell \\| \\",
    "",
    " ",
]
texts = st.sampled_from(ATTACKS) | st.text(st.characters() | st.sampled_from("=;\"'`|\\\r\n\t\x1b"))
DOES_NOTHING = re.compile("[^\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufe0f\u3164\u034f]*")


@given(texts)
def test_printable_is_one_line_that_does_nothing(text):
    shown = printable(text)
    assert shown.isprintable()
    assert DOES_NOTHING.fullmatch(shown)
    shown.encode("utf-8")
    if text.isascii() and text.isprintable():
        assert shown == text


@given(st.binary(min_size=1, max_size=40))
def test_printable_names_of_files(name):
    text = printable(os.fsdecode(name))
    assert text.isprintable()
    text.encode("utf-8")
    if name.isascii() and name.decode().isprintable():
        assert text == name.decode()


@given(st.lists(texts))
def test_streams_take_line_ends_from_print_alone(names):
    out, err = Escaped(io.StringIO(), strict=True), Escaped(io.StringIO(), strict=False)
    for name in names:
        print("name", name.strip("\n") or "x", sep="\t", file=out)
        print(printable(name), file=err)
        err.writelines([name])
    lines = out.raw.getvalue().split("\n")
    assert len(lines) == len(names) + 1
    assert all(line.replace("\t", "").isprintable() for line in lines)
    assert re.sub("[\n\t]", "", err.raw.getvalue()).isprintable()


@given(st.lists(texts, min_size=1))
def test_no_spreadsheet_finds_a_formula_or_a_row(names):
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([["changed", csv_cell(name), 1] for name in names])
    assert len(file.getvalue().splitlines()) == len(names)  # splits at any kind of line end
    for delimiter in ",;\t":
        for row in csv.reader(file.getvalue().splitlines(), delimiter=delimiter):
            for cell in row:
                # Quotes that remain inside a cell do not hide a formula.
                assert not re.match(r"[\s\"]*[=+@＝＋－＠-]", cell), (delimiter, row)  # noqa: RUF001


@given(texts)
def test_markdown_shows_just_the_text(text):
    shown = markdown_text(text)
    if shown.startswith("`"):
        assert shown == f"`{text}`"
        assert not re.search(r"[`|\\\n]", text)
    else:
        inside = re.fullmatch("<code>(.*)</code>", shown)[1]
        plain = re.sub("&#[0-9]+;", "", inside)
        assert re.fullmatch("[A-Za-z0-9 .,()/$-]*", plain)
        back = re.sub("&#([0-9]+);", lambda match: chr(int(match[1])), inside)
        assert back == printable(text)


SCRIPT = r"""
import logging, sys, warnings
from terminal import progress
from terminal.command_line import command_line
from utils import UserError

EVIL = "e\x1b[2J\r\x08\u202e\u200bl"

def main(how: str) -> None:
    '''Do it.'''
    if how == "print":
        print(EVIL, EVIL + "\nerror: spoof")
    if how == "log":
        logging.warning(EVIL)
        warnings.warn(EVIL)
    if how == "error":
        raise UserError(EVIL + "\nerror: spoof")
    if how == "bug":
        raise ValueError(EVIL)
    if how == "bar":
        for _ in progress.bar(range(3), desc=EVIL, unit="x"):
            progress.write(EVIL)

command_line(main)
"""


@pytest.mark.parametrize(
    ("how", "code", "lines"),
    [
        ("print", 0, 1),
        ("log", 0, None),
        ("error", 1, 1),
        ("bug", 1, None),
    ],
)
def test_whatever_is_printed_does_nothing(how, code, lines):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert run.returncode == code
    shown = run.stdout + run.stderr
    assert shown.replace("\n", "").isprintable()
    assert lines is None or shown.count("\n") == lines
    assert r"e\x1b[2J\r\x08\u202e\u200bl" in shown


def in_terminal(*command, **environment):
    """Run a command in a terminal; return its output."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=theirs, stderr=theirs, env=os.environ | environment
    )
    os.close(theirs)
    received = b""
    try:
        while part := os.read(ours, 65536):
            received += part
    except OSError:  # raised by Linux when the other side is closed
        pass
    os.close(ours)
    process.wait()
    return received.decode()


def test_colour_is_shown_in_a_terminal_only():
    plain = r"error: e\x1b[2J\r\x08\u202e\u200bl\nerror: spoof"
    command = sys.executable, "-c", SCRIPT, "error"
    assert in_terminal(*command).endswith(f"\x1b[31m{plain}\x1b[0m\r\n")
    assert in_terminal(*command, NO_COLOR="1").endswith(f"{plain}\r\n")
    assert in_terminal(*command, TERM="dumb").endswith(f"{plain}\r\n")
    assert "\x1b[31m" in in_terminal(*command, NO_COLOR="")
    piped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (piped.stdout, piped.stderr) == ("", plain + "\n")


def test_the_first_word_comes_before_the_slow_imports(tmp_path):
    command = sys.executable, "gendata.py", "--path", str(tmp_path)
    assert in_terminal(*command).startswith("\r\x1b[Kloading libraries ...\r\x1b[K")
    piped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert piped.stderr.startswith("error: ")
    assert piped.returncode == 1


def test_paths_below_the_working_directory_are_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert relative(str(tmp_path / "a" / "b")) == os.path.join("a", "b")
    assert relative("../x/./y") == "../x/./y"
    assert relative(str(tmp_path.parent / "other")) == str(tmp_path.parent / "other")


@given(texts, st.integers(1, 40))
def test_long_texts_are_cut_at_the_end(text, width):
    shown = cut(text, width)
    assert shown.isprintable()
    assert len(shown) <= width
    assert shown == printable(text) or printable(text).startswith(shown.removesuffix("…"))
    assert cut(text, None) == printable(text)


@given(texts, st.none() | st.integers(0, 40))
def test_long_texts_are_shortened_in_the_middle(text, width):
    shown = fit(text, width)
    assert shown.isprintable()
    assert width is None or len(shown) <= max(width, 8)
    if "…" not in shown:
        assert shown == printable(text)
    else:
        begin, end = shown.split("…")[0], shown.split("…")[-1]
        assert printable(text).startswith(begin)
        assert printable(text).endswith(end)


def test_progress_bars_write_no_other_control_characters():
    received = in_terminal(sys.executable, "-c", SCRIPT, "bar")
    assert "3/3" in received
    assert received.count(r"e\x1b[2J\r\x08\u202e\u200bl") >= 4
    left = re.sub("\r|\n|\x1b\\[K|\x1b\\[A", "", received)  # a progress bar overwrites itself
    assert left.isprintable()
