"""Answer --help and wrong arguments before a script's slow imports."""

from pathlib import Path

from terminal import progress
from terminal.arguments import call
from terminal.command_line import exit_codes, parse
from terminal.escape import escape_output
from terminal.signatures import Names


def answer(script: str) -> None:
    """Print the help, the version or a usage error, and exit; return if there is none of these.

    Scripts call this first, so that nobody waits for angr or torch to learn about a mistyped flag.

    Parameters
    ----------
    script : str
        The script's ``__file__``.
    """
    escape_output()
    main, commands = Names(Path(script)).functions()
    with exit_codes():
        function, args, kwargs = parse(main, commands)
        call(function, args, kwargs)  # only checks the arguments: the function has no body here
    progress.notice("loading libraries ...")
