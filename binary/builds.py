"""Find the builds of each program in a folder."""

import fnmatch
import os
import stat
from collections import Counter
from pathlib import Path

import utils

HINT = (
    "build the sample binaries with `python experiment_data/build_coreutils.py`, or name a folder "
    "of your own with --path, laid out as <path>/<build>/<biname>"
)


def find_programs(path: str, names: list[str]) -> dict[str, list[dict[str, str]]]:
    """Return program -> its builds, in the order of ``names``; a pattern's programs are sorted.

    A program that is named must have two builds. A pattern skips programs with only one.
    A name may begin with a slash, as in the setting ``biname="/chroot"`` of DeepBinDiff's scripts.
    """
    names = [name.removeprefix("/") for name in names]
    found: Counter[str] = Counter()
    if any(is_pattern(name) for name in names):
        utils.check_folder(path, "path", HINT)
        folders = sorted(Path(path).iterdir())
        files = (file for folder in folders if folder.is_dir() for file in folder.iterdir())
        found.update(file.name for file in files if _why_refused(file) is None)
    programs = {}
    for name in names:
        matching = [name]
        if is_pattern(name):
            matching = sorted(f for f, n in found.items() if n > 1 and fnmatch.fnmatchcase(f, name))
            if not matching:
                raise utils.UserError(
                    f"--biname {name!r}: no two folders in {path} hold a file with such a name"
                )
        for program in matching:
            programs[program] = find_binaries(path, program)
    return programs


def is_pattern(name: str) -> bool:
    """Whether a --biname is a pattern for file names, as in a shell."""
    return any(char in name for char in "*?[")


def find_binaries(path: str, biname: str) -> list[dict[str, str]]:
    """Return path, build (its folder's name) and sha256 of each ``path/<build>/<biname>``, sorted.

    Raises
    ------
    UserError
        There are fewer than two.
    """
    biname = biname.removeprefix("/")
    if biname != Path(biname).name or biname in ("", ".", ".."):
        raise utils.UserError(f"--biname {biname!r} must be a file name, not a path")
    utils.check_folder(path, "path", HINT)
    files = [file for file in _builds(path, biname) if _why_refused(file) is None]
    if not files:
        raise utils.UserError(f"no folder in {path} holds {biname}; {HINT}")
    if len(files) == 1:
        raise utils.UserError(
            f"only one folder in {path} holds {biname} ({files[0]}); a pair needs two"
        )
    return [{"path": str(f), "build": f.parent.name, "sha256": utils.sha256_of(f)} for f in files]


def find_refused(path: str, biname: str) -> dict[str, str]:
    """Return path -> reason for each ``path/<build>/<biname>`` that cannot be read as a file."""
    reasons = {str(file): _why_refused(file) for file in _builds(path, biname)}
    return {file: reason for file, reason in reasons.items() if reason is not None}


def _builds(path: str, biname: str) -> list[Path]:
    files = (folder / biname for folder in sorted(Path(path).iterdir()))
    return [file for file in files if os.path.lexists(file)]


def _why_refused(file: Path) -> str | None:
    try:
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):  # opening a FIFO would wait forever
            return f"it is a {'directory' if stat.S_ISDIR(mode) else 'special file'}"
        with file.open("rb") as content:
            content.read(1)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return None
