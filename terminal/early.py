"""What a script says before its slow imports begin."""

from pathlib import Path

from terminal import progress
from terminal.arguments import call
from terminal.command_line import exit_codes, parse
from terminal.escape import escape_output
from terminal.signatures import Names


def answer(script: str) -> None:
    """Print the help or the version, or what is wrong with the arguments, and exit; or return.

    Scripts call this first, so that nobody waits for angr or torch to learn of a mistyped flag.

    Parameters
    ----------
    script : str
        The script's ``__file__``.
    """
    escape_output()
    main, commands = Names(Path(script)).functions()
    with exit_codes():
        function, args, kwargs = parse(main, commands)
        call(function, args, kwargs)  # converts the arguments; it has no body here
    progress.notice("loading libraries ...")
