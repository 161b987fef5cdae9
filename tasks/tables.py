"""Tables of examples: tab-separated files with a header."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
from torch import nn

from utils import UserError


class Task:
    """Columns and labels of a TSV file.

    Attributes
    ----------
    labels : tuple of str
        Of two labels the last one is the positive one.
    label, text_a, text_b : str
        Names of columns in the header; ``text_b`` is None for single texts.
    tokenizer : {"corpus", "bert"}
        How texts are read, where no pre-trained model says it.
    network : type
        `Classifier`, [CLS] over both texts, or `compare.Comparer`, a vector for each.
    """

    labels: tuple[str, ...]
    label: str
    text_a: str
    text_b: str | None
    tokenizer: Literal["corpus", "bert"]
    network: type[nn.Module]


@dataclasses.dataclass
class Examples:
    """The rows of a TSV file; ``text_b`` and ``label`` (index into the task's) may be None."""

    text_a: list[str]
    text_b: list[str] | None
    label: np.ndarray | None


def read_examples(task: type[Task], file: str | Path, labelled: bool) -> Examples:
    """Read a TSV file of GLUE's kind: a header, no quoting, every line as many columns.

    Raises
    ------
    UserError
        No such file, an empty one, a header without the task's columns, a line with another number
        of columns, an unknown label, bytes that are no UTF-8: named with the line's number.
    """
    try:
        lines = Path(file).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    if lines[-1] == b"":
        lines.pop()
    if len(lines) < 2:
        raise UserError(f"{file} holds no examples; it needs a header and a line for each example")
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
    names = [task.text_a, task.text_b, task.label if labelled else None]
    missing = [name for name in names if name is not None and name not in header]
    if missing:
        raise UserError(
            f"{file}:1: no column '{missing[0]}' in the header ({', '.join(header)}); "
            f"{task.__name__.lower()} needs it"
        )
    a, b, label = (None if n is None else [row[header.index(n)] for row in rows] for n in names)
    if labelled:
        for number, value in enumerate(label, 2):
            if value not in task.labels:
                raise UserError(
                    f"{file}:{number}: unknown label '{value}'; the labels are "
                    f"{', '.join(task.labels)}"
                )
        label = np.array([task.labels.index(value) for value in label])
    return Examples(a, b, label)
