"""Turn the words of a command line into the arguments of a function, guided by its type hints.

Fire assigns words to parameters. By itself it would also evaluate each word as a Python value (9.10
becomes the number 9.1, and `build#1` becomes `build`), mistake a file name that begins with a dash
for a flag, and accept a flag that is given twice. So we put a mark in front of every value, which
makes fire pass it on unchanged. Then pydantic converts the value to the type of its parameter.
"""

import contextlib
import difflib
import functools
import inspect
import io
import re
import shlex
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import fire
import pydantic

from terminal.help import describe_bounds, describe_kind
from utils import UsageError, either

MARK = "\0"  # put in front of values; the operating system allows no argument that contains it
NUMBER = re.compile(r"-\.?[0-9]")  # begins with a dash, but is not a flag
BOOLEAN = ("true", "false")


def bind(
    function: Callable[..., Any], words: Sequence[str], commands: Sequence[str] = ()
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Split ``words`` into positional and named arguments, still as text.

    A parameter without a default can be given by position or as a flag, one with a default only as
    a flag: ``--name value`` or ``--name=value``; ``--name`` or ``--noname`` if it is a bool. All
    words after ``--`` are values.

    Raises
    ------
    utils.UsageError
        A flag that is unknown, given twice or without its value; too many or too few values. If the
        function takes no values, the first one may have been meant as one of ``commands``.
    """
    bound: tuple[tuple[str, ...], dict[str, str]] = ((), {})

    @functools.wraps(function)
    def record(*args: str, **kwargs: str) -> None:
        nonlocal bound
        args = tuple(arg.removeprefix(MARK) for arg in args)
        bound = args, {name: arg.removeprefix(MARK) for name, arg in kwargs.items()}

    signature = inspect.signature(function)
    parameters = sorted(map(_flag_only, signature.parameters.values()), key=lambda p: p.kind)
    vars(record)["__signature__"] = signature.replace(parameters=parameters)
    fire.decorators.SetParseFn(str)(record)
    takes_values = any(p.kind is not p.KEYWORD_ONLY for p in parameters)
    if commands and not takes_values and words and not words[0].startswith("-"):
        raise UsageError(_no_command(words[0], commands))
    marked = _marked(words, signature.parameters, takes_values, commands)
    _check_number(marked, parameters, commands)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            fire.Fire(record, command=marked)
    except fire.core.FireExit as error:
        reason = error.trace.elements[-1].ErrorAsStr().replace(MARK, "")
        raise UsageError(reason) from error
    return bound


def _check_number(
    marked: Sequence[str], parameters: Sequence[inspect.Parameter], commands: Sequence[str]
) -> None:
    """Refuse a missing value or flag, and one value too many."""
    flags = {word[2 : word.index("=")] for word in marked if not word.startswith(MARK)}
    values = [word.removeprefix(MARK) for word in marked if word.startswith(MARK)]
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    takes = "takes " + " ".join(name.upper() for name in names) if names else "has only flags"
    open_names = [name for name in names if name not in flags]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        values = values[: len(open_names)]
    if len(values) > len(open_names):
        surplus = values[len(open_names)]
        if not commands or names:
            raise UsageError(f"one value too many: {shlex.quote(surplus)}; this command {takes}")
        if surplus in commands:
            raise UsageError(f"the command {surplus} must come before all flags")
        raise UsageError(_no_command(surplus, commands))
    if len(values) < len(open_names):
        raise UsageError(f"{open_names[len(values)].upper()} is missing; this command {takes}")
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name not in flags:
            raise UsageError(f"--{p.name} must be given")


def _no_command(word: str, commands: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, commands, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"there is no command {shlex.quote(word)}, only {either(commands, 'and')}{hint}"


def _flag_only(parameter: inspect.Parameter) -> inspect.Parameter:
    """Make a parameter with a default keyword-only: it can be given only as a flag."""
    if parameter.default is parameter.empty:
        return parameter
    return parameter.replace(kind=parameter.KEYWORD_ONLY)


def _marked(
    words: Sequence[str], parameters: Any, takes_values: bool, commands: Sequence[str]
) -> list[str]:
    """Return the words for fire: each is ``--flag=`` with a marked value, or a marked value."""
    flags = [n for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    given: set[str] = set()
    marked: list[str] = []
    waiting = deque(words)
    while waiting:
        word = waiting.popleft()
        if word == "--":
            return marked + [MARK + word for word in waiting]
        if not _is_flag(word):
            marked.append(MARK + word)
            continue
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        negated = name.removeprefix("no")
        if name not in flags and negated in flags and is_bool(parameters[negated]) and not equals:
            name, equals, value = negated, "=", "false"
        if name not in flags or not flag.startswith("--"):
            near = difflib.get_close_matches(name, flags, 1)
            hint = f"; did you mean --{near[0]}?" if near else ""
            raise UsageError(f"unknown flag {flag}{hint}")
        if name in given:
            raise UsageError(f"--{name} is given twice")
        given.add(name)
        if not equals and is_bool(parameters[name]):
            typed = bool(waiting) and waiting[0].lower() in BOOLEAN
            value = waiting.popleft() if typed else "true"
            surplus = waiting[0] if waiting and not _is_flag(waiting[0]) else "--"
            if not typed and not takes_values and surplus not in ("--", *commands):
                raise UsageError(f"--{name} {shlex.quote(surplus)}: give true or false")
        elif not equals:
            if not waiting or _is_flag(waiting[0]) or waiting[0] == "--":
                raise UsageError(
                    f"--{name} needs a value; write one that begins with a dash as --{name}=-..."
                )
            value = waiting.popleft()
        marked.append(f"--{name}={MARK}{value}")
    return marked


def _is_flag(word: str) -> bool:
    return word.startswith("-") and word != "-" and not NUMBER.match(word)


def is_bool(parameter: inspect.Parameter) -> bool:
    """Whether a parameter is a switch, i.e. needs no value."""
    return parameter.annotation in (bool, bool | None)


def call(function: Callable[..., Any], args: tuple[str, ...], kwargs: dict[str, str]) -> Any:
    """Convert the arguments to the types of the function's parameters, and call it.

    Raises
    ------
    utils.UsageError
        A value cannot be converted to the type of its parameter.
    """
    try:
        return pydantic.validate_call(config={"allow_inf_nan": False})(function)(*args, **kwargs)
    except pydantic.ValidationError as error:
        if error.title != function.__qualname__:  # raised inside the function
            raise
        parameters = inspect.signature(function).parameters
        names = list(parameters)
        reasons = []
        for problem in error.errors():
            name = problem["loc"][0]
            if isinstance(name, int):
                name = names[min(name, len(names) - 1)]
            hint = parameters[name].annotation
            wanted = describe_kind(hint) + describe_bounds(hint)
            if problem["type"] == "finite_number":
                wanted = wanted.replace("a number", "a finite number")
            reasons.append(f"--{name} {shlex.quote(str(problem['input']))}: give {wanted}")
        raise UsageError("; ".join(dict.fromkeys(reasons))) from error


def names_of(values: str | Sequence[str]) -> list[str]:
    """Split a text such as ``chroot,ls`` at commas; return a list as it is."""
    return values.split(",") if isinstance(values, str) else list(values)
