"""Run a script's function with the arguments of the command line, and end with an exit code.

Exit codes of all scripts:

    0    everything is done
    1    an error, reported in one sentence; results finished before are kept
    2    usage: the command itself is wrong (unknown flag, not a number, an output that is an input)
    3    done, but some inputs were skipped, each with a reason
    4    diff.py found what `--fail_on` asks for
    130  interrupted by Ctrl-C or SIGTERM; run the same command again to continue
"""

import contextlib
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from terminal import VERSION, progress
from terminal.arguments import bind, call
from terminal.escape import escape_output
from terminal.help import help_text
from terminal.style import say
from utils import DISK_ERRORS, FULL, STOPPING, UsageError, UserError, default_signals, either

ERROR, USAGE, PARTLY, FOUND, INTERRUPTED = 1, 2, 3, 4, 130  # exit codes


def command_line(main: Callable[..., Any], **commands: Callable[..., Any]) -> None:
    """Run ``main``, or the command named by the first argument, and exit.

    A ``main`` without parameters only stands for its commands and is never called; its docstring
    is the script's help.
    Arguments are checked against the type hints before anything runs. If the function returns an
    integer, this is the exit code.
    """
    escape_output()
    threading.excepthook = _report_of_thread
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:  # ignored in a shell's background jobs
            signal.signal(number, _stop)
    progress.clear_notice()
    with exit_codes():
        code = call(*parse(main, commands))
        sys.stdout.flush()
        sys.exit(code or 0)


def parse(
    main: Callable[..., Any], commands: Mapping[str, Callable[..., Any]]
) -> tuple[Callable[..., Any], tuple[str, ...], dict[str, str]]:
    """Return the function that the command line names, and its arguments, still as text.

    With ``--help`` (``-h``) or ``--version``, print that and exit.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the working directory was removed; change to another one") from error
    script, words = sys.argv[0], sys.argv[1:]
    module = sys.modules["__main__"].__spec__
    if module is not None:
        script = f"-m {module.name}"
    elif os.path.isabs(script):
        script = min(script, os.path.relpath(script), key=len)
    function, others = main, commands
    if words and words[0] in commands:
        function, others = commands[words[0]], {}
        script, words = f"{script} {words[0]}", words[1:]
    asked = words[: words.index("--")] if "--" in words else words
    if "--help" in asked or "-h" in asked:
        for line in help_text(script, function, others).splitlines():
            print(line)
        sys.exit(0)
    if "--version" in asked:
        print(script, VERSION)
        sys.exit(0)
    only_commands = others and not inspect.signature(function).parameters
    if only_commands and (not words or words[0].startswith("-")):
        raise UsageError(f"say what to do: {either(list(others))}")
    return function, *bind(function, words, list(others))


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turn an exception that ends a script into one line on stderr and an exit code.

    A `UserError` becomes one line. Ctrl-C and SIGTERM give exit code 130; a second one ends the
    process at once. Any other exception is a bug in this project and keeps its traceback.
    """
    try:
        yield
    except UsageError as error:
        _fail(f"{error} (--help says more)", USAGE)
    except UserError as error:
        _fail(str(error), ERROR)
    except KeyboardInterrupt:
        print(
            "interrupted; finished results are kept; run the same command again to continue",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader closed the pipe: `python gendata.py show 0 | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:  # from a print to a file, or from a library that writes by itself
        if error.errno not in FULL:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(f"cannot write {error.filename or 'the output'}: {DISK_ERRORS[error.errno]}", ERROR)


def _fail(reason: str, code: int) -> None:
    progress.clear_notice()
    say(f"error: {reason}", "red", sys.stderr)
    sys.exit(code)


def _report_of_thread(args: Any) -> None:
    """Do not report a full disk: TensorBoard raises the error again in the main thread."""
    if not (isinstance(args.exc_value, OSError) and args.exc_value.errno in FULL):
        threading.__excepthook__(args)


def _stop(number: int, frame: Any) -> None:
    default_signals()
    raise KeyboardInterrupt
