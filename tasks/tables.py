"""Tables of examples: tab-separated files with a header."""

from pathlib import Path

import numpy as np

from tasks.task import Examples, Task
from utils import SHOWN, UserError, open_regular


def read_examples(task: type[Task], file: str | Path, labelled: bool) -> Examples:
    """Read a TSV file in GLUE's format: a header, no quoting, the same columns in every line.

    Rows whose label is ``task.no_label`` are left out; their number is printed.

    Raises
    ------
    UserError
        No such file, an empty one, a header without the task's columns, a line with another number
        of columns, an unknown label, bytes that are not UTF-8. The message has the line's number.
    """
    try:
        with open_regular(file) as opened:
            lines = opened.read().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    if lines[-1] == b"":
        lines.pop()
    if len(lines) < 2:
        raise UserError(f"{file} has no examples; it needs a header and a line for each example")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(line.removesuffix(b"\r").decode("utf-8").split("\t"))
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file}:{number}: byte {error.start + 1} is not UTF-8; save it as UTF-8"
            ) from error
        if len(rows[-1]) != len(rows[0]):
            raise UserError(
                f"{file}:{number}: {len(rows[-1])} columns, but the header has {len(rows[0])}; "
                "columns are separated by tabs"
            )
    header, *rows = rows
    numbers = list(range(2, len(lines) + 1))
    names = [task.text_a, task.text_b, task.label if labelled else None]
    missing = [name for name in names if name is not None and name not in header]
    if missing:
        raise UserError(
            f"{file}:1: no column '{missing[0]}' in the header ({', '.join(header)[:SHOWN]}); "
            f"{task.__name__.lower()} needs it"
        )
    if labelled and task.no_label is not None:
        at = header.index(task.label)
        known = [i for i, row in enumerate(rows) if row[at] != task.no_label]
        if len(known) < len(rows):
            print(f"{file}: left out {len(rows) - len(known):,} rows labelled '{task.no_label}'")
        rows, numbers = [rows[i] for i in known], [numbers[i] for i in known]
        if not rows:
            raise UserError(f"{file} has no row with one of the labels {', '.join(task.labels)}")

    def column(name: str) -> list[str]:
        return [row[header.index(name)] for row in rows]

    text_b = None if task.text_b is None else column(task.text_b)
    label = None
    if labelled:
        values = column(task.label)
        for number, value in zip(numbers, values, strict=True):
            if value not in task.labels:
                raise UserError(
                    f"{file}:{number}: unknown label '{value[:SHOWN]}'; the labels are "
                    f"{', '.join(task.labels)}"
                )
        label = np.array([task.labels.index(value) for value in values])
    return Examples(column(task.text_a), text_b, label)
