"""What happens between a command line and a script's function, and how a script ends.

Exit codes of all scripts:

    0    all is done
    1    an error, said in one sentence; what was finished before is kept
    2    usage: the command itself is wrong (unknown flag, no number, an output that is an input)
    3    done, but some inputs were skipped, each with its reason
    4    diff.py found what `--fail-on` asks for
    130  interrupted by Ctrl-C or SIGTERM; the same command goes on
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from terminal import arguments
from utils import DISK_ERRORS, FULL, STOPPING, UsageError, UserError, default_signals

ERROR, USAGE, PARTLY, FOUND, INTERRUPTED = 1, 2, 3, 4, 130


def command_line(main: Callable[..., Any], **commands: Callable[..., Any]) -> None:
    """Run ``main``, or the command that the first argument names, and exit.

    Arguments are checked against the type hints before anything runs. A `UserError` becomes one
    line on stderr; an integer that the function returns is the exit code. Ctrl-C and SIGTERM end
    it with exit code 130; a second one ends the process at once. Every other exception is our own
    mistake and keeps its traceback.
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold any bytes
    threading.excepthook = _report_of_thread
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as a shell's background jobs have it
            signal.signal(number, _stop)
    function, words = main, sys.argv[1:]
    if words and words[0] in commands:
        function, words = commands[words[0]], words[1:]
    try:
        args, kwargs = arguments.bind(function, words)
        code = arguments.call(function, args, kwargs)
        sys.stdout.flush()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        code = USAGE
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = ERROR
    except KeyboardInterrupt:
        print(
            "interrupted; what was finished is kept, and the same command goes on", file=sys.stderr
        )
        code = INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough: `python gendata.py show 0 | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:  # of a print into a file, or of a library that writes by itself
        if error.errno not in FULL:
            raise
        print(
            f"error: cannot write {error.filename or 'the output'}: {DISK_ERRORS[error.errno]}",
            file=sys.stderr,
        )
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ERROR
    sys.exit(code or 0)


def _report_of_thread(args: Any) -> None:
    """Keep quiet of a full disk: TensorBoard's thread raises it again where its owner writes."""
    if not (isinstance(args.exc_value, OSError) and args.exc_value.errno in FULL):
        threading.__excepthook__(args)


def _stop(number: int, frame: Any) -> None:
    default_signals()
    raise KeyboardInterrupt
