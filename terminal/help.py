"""Write the help of a script from the signature and the numpydoc docstring of its function."""

import inspect
import os
import shutil
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from utils import either

NAMES = {str: "text", bool: "switch", Path: "path"}
KINDS = {int: "a whole number", float: "a number", bool: "true or false"}
BOUNDS = (("ge", "at least {}"), ("gt", "above {}"), ("le", "at most {}"), ("lt", "below {}"))
NOTES = """\
--flag value and --flag=value mean the same; a switch needs no value: --flag or --noflag.
All words after -- are values, e.g. a file name that begins with a dash.
Exit codes: 0 done, 1 error, 2 usage, 3 some inputs skipped, 4 --fail_on found it, 130 interrupted.
"""
WIDTH = 100  # maximum width of the text


def help_text(
    script: str, function: Callable[..., Any], commands: Mapping[str, Callable[..., Any]]
) -> str:
    """Return the text that ``--help`` prints.

    Parameters
    ----------
    script : str
        The script as it was called, and the command if there is one: "gendata.py show".
    function : callable
        The first paragraph of its docstring says what it does, the section Parameters what each
        flag means.
    commands : mapping of str to callable
        The script's commands, each with its own help.
    """
    width = min(WIDTH, shutil.get_terminal_size().columns)
    docstring = inspect.cleandoc(function.__doc__ or "")
    texts = dict(parameter_texts(docstring))
    parameters = inspect.signature(function).parameters.values()
    values = [p for p in parameters if p.default is p.empty and p.kind is not p.KEYWORD_ONLY]
    names = [p.name.upper() + "..." * (p.kind is p.VAR_POSITIONAL) for p in values]
    flags = [p for p in parameters if p not in values]
    needed = [f"--{p.name} {p.name.upper()}" for p in flags if p.default is p.empty]
    usage = ["python", script, *["[--flag value]..."] * bool(flags), *needed, *names]
    lines = [
        f"usage: {' '.join(usage)}",
        *(f"       python {script} {name} --help" for name in commands),
        "",
    ]
    about = docstring.split("\n\n")[0].replace("\n", " ")
    lines += [*_wrap(about, width), ""]
    for name, parameter in zip(names, values, strict=True):
        lines += _entry(
            name, describe_type(parameter.annotation), texts.get(parameter.name, ""), width
        )
    for flag in flags:
        kind = describe_type(flag.annotation) + describe_default(flag.default)
        kind += describe_bounds(flag.annotation)
        lines += _entry(f"--{flag.name}", kind, texts.get(flag.name, ""), width)
    for name, command in commands.items():
        first = inspect.cleandoc(command.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        lines += _entry(f"{script} {name}", "command", first, width)
    if any(value.kind is value.POSITIONAL_OR_KEYWORD for value in values):
        lines += ["", f"{names[0]} may also be given as a flag: --{values[0].name} {names[0]}"]
    notes = [line for note in NOTES.splitlines() for line in _wrap(note, width)]
    return "\n".join([*lines, "", *notes, ""])


def _entry(name: str, kind: str, text: str, width: int) -> list[str]:
    return [f"  {name}  {kind}", *_wrap(text, width, " " * 6)]


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    """Break a text into lines only at blanks, so that names and flags stay whole."""
    wrapper = textwrap.TextWrapper(
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapper.wrap(text)


def parameter_texts(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield each parameter of a numpydoc docstring, with its text in one line.

    Parameters
    ----------
    docstring : str
        Without indentation. Parameters that share an entry (``old, new : str``) get the same text.
    """
    lines = docstring.splitlines()
    if "Parameters" not in lines:
        return
    names: list[str] = []
    text: list[str] = []
    for line in [*lines[lines.index("Parameters") + 2 :], "end"]:
        if line.startswith(" "):
            text.append(line.strip())
        elif line:
            yield from ((name, " ".join(text)) for name in names)
            before, colon, _ = line.partition(" : ")
            if not colon:  # the next section's title, or the end
                return
            names, text = [name.strip().lstrip("*") for name in before.split(",")], []


def describe_type(hint: Any) -> str:
    """Return a type hint in words: "int", "text", "train|eval"."""
    if get_origin(hint) is Annotated:
        return describe_type(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        if any(get_origin(kind) in (list, tuple) for kind in kinds):
            return "list, with commas between"
        return " or ".join(map(describe_type, kinds))
    return NAMES.get(hint) or str(getattr(hint, "__name__", hint))


def describe_kind(hint: Any) -> str:
    """Return what a value of this type may be, as a part of a sentence: "a whole number"."""
    if get_origin(hint) is Annotated:
        return describe_kind(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return either(list(map(str, get_args(hint))))
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return either(list(map(describe_kind, kinds)))
    return KINDS.get(hint, describe_type(hint))


def describe_bounds(hint: Any) -> str:
    """Return the bounds of a number in brackets: " (at least 0, below 1)"."""
    hints = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else [hint]
    metadata = [data for kind in hints for data in getattr(kind, "__metadata__", ())]
    flat = [part for data in metadata for part in getattr(data, "metadata", [data])]
    bounds = [
        words.format(getattr(part, key))
        for key, words in BOUNDS
        for part in flat
        if getattr(part, key, None) is not None
    ]
    if describe_type(hint) == "int":
        bounds = [bound.replace("above 0", "at least 1") for bound in bounds]
    return f" ({', '.join(bounds)})" if bounds else ""


def describe_default(value: Any) -> str:
    """Return a comma and the default as a user would type it."""
    if value is inspect.Parameter.empty:
        return ", must be given"
    if value is None or value == "" or value == ():
        return ", optional"
    if isinstance(value, bool):
        return ", on" if value else ", off"
    if isinstance(value, list | tuple):
        return ", " + ",".join(map(str, value))
    if isinstance(value, str | Path) and os.path.isabs(value):
        relative = os.path.relpath(value)
        value = value if relative.startswith("..") else relative
    return f", {value:g}" if isinstance(value, float) else f", {value}"
