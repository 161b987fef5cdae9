"""Command lines: a function receives exactly what was typed."""

import importlib
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field, PositiveInt

from terminal import VERSION
from terminal.arguments import bind, call, names_of
from terminal.command_line import parse
from terminal.help import describe_default, describe_type, help_text, parameter_texts
from terminal.signatures import Names
from utils import UsageError

ROOT = Path(__file__).resolve().parent.parent

NAMES = [
    "9.1",
    "9.10",
    "build#1",
    "1e3",
    "0x10",
    "a,b",
    "None",
    "True",
    "[x]",
    "-",
    "'x'",
    "{a: 1}",
]
NAMES += [
    "(1, 2)",
    "x=1",
    "",
    " ",
    "a b",
    "\\",
    "None#",
    "1_000",
    "\udcff",
    "--",
    "-x",
    "--to",
    "-h",
]
words = st.sampled_from(NAMES) | st.text(st.characters(exclude_characters="\0"))


def many(*files: str, to: str = "t", list: str | list[str] = (), on: bool = False):
    return files, to, list, on


def two(old: str, new: str, count: Annotated[int, Field(ge=1)] = 2, share: float | None = None):
    return old, new, count, share


def received(function, *typed):
    return call(function, *bind(function, typed))


@given(st.lists(words))
@example(NAMES)
def test_values_after_dashes_arrive_as_typed(typed):
    assert received(many, "--", *typed)[0] == tuple(typed)


@given(st.lists(words.filter(lambda word: not word.startswith("-") or word == "-")))
def test_values_arrive_as_typed(typed):
    assert received(many, *typed)[0] == tuple(typed)
    assert received(many, "--on", "--to=x", *typed)[0] == tuple(typed) or typed[0].lower() == "true"


ECHO = """
from terminal.command_line import command_line

def main(*files: str, to: str = "t") -> None:
    '''Do it.'''
    print(ascii(files), ascii(to))

command_line(main)
"""


def test_words_of_a_real_command_line_arrive_as_typed():
    names = [name.replace("\0", "") for name in NAMES]
    run = subprocess.run(
        [sys.executable, "-c", ECHO, "9.10", "--to", "1e3", "a,b", "--", *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.stdout == f"{('9.10', 'a,b', *names)!a} '1e3'\n"


@given(words, words)
def test_flags_arrive_as_typed(to, old):
    assert received(many, f"--to={to}")[1] == to
    assert received(two, f"--old={old}", "--new", "b")[0] == old
    if not to.startswith("-") or to == "-":
        assert received(many, "--to", to, "x")[:2] == (("x",), to)
        assert received(many, "--list", to)[2] == to


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], "^OLD is missing; this command takes OLD NEW"),
        (["--old", "a"], "^NEW is missing; this command takes OLD NEW"),
        # A parameter with a default is a flag only.
        (["a", "b", "3 4"], "^one value too many: '3 4'; this command takes OLD NEW"),
        (["--old", "a", "b", "c"], "one value too many: c"),
        (["a", "b", "--cuont", "1"], "unknown flag --cuont; did you mean --count"),
        (["a", "b", "-c", "1"], "unknown flag -c"),
        (["a", "b", "--count"], "--count needs a value"),
        (["a", "b", "--count", "--share", "1"], "--count needs a value"),
        (["a", "b", "--count", "1", "--count=2"], "--count is given twice"),
        (["a", "b", "--count", "1e3"], r"^--count 1e3: give a whole number \(at least 1\)$"),
        (["a", "b", "--count", "0"], r"^--count 0: give a whole number \(at least 1\)$"),
        (["a", "b", "--count="], "^--count '': give a whole number"),
        (["a", "b", "--share", "nan"], "^--share nan: give a finite number$"),
    ],
)
def test_wrong_usage_is_explained(typed, message):
    with pytest.raises(UsageError, match=message):
        received(two, *typed)


def test_a_missing_required_flag_is_named():
    def query(binary: str, *, function: str, top: int = 1):
        pass

    with pytest.raises(UsageError, match=r"^--function must be given$"):
        received(query, "a", "--top", "2")


@pytest.mark.parametrize(
    ("typed", "on"),
    [
        (["--on"], True),
        (["--on", "true"], True),
        (["--on", "False"], False),
        (["--on=False"], False),
        (["--noon"], False),
        ([], False),
    ],
)
def test_switches_may_stand_before_or_after_values(typed, on):
    assert received(many, *typed, "x") == (("x",), "t", (), on)
    assert received(many, "x", *typed) == (("x",), "t", (), on)


def test_a_switch_takes_only_true_or_false():
    def main(resume: bool = True):
        return resume

    with pytest.raises(UsageError, match=r"^--resume 'may be': give true or false$"):
        received(main, "--resume", "may be")
    assert received(main, "--resume", "false") is False
    with pytest.raises(UsageError, match=r"^one value too many: x; this command has only flags$"):
        received(main, "--resume", "true", "x")


def test_a_wrong_command_is_noticed_before_its_flags():
    with pytest.raises(UsageError, match=r"^there is no command evl, only eval and predict; did"):
        bind(lambda resume=True: resume, ["evl", "--x"], ["eval", "predict"])


def test_numbers_and_choices_are_converted_and_checked():
    def main(seed: int = 0, mode: Literal["train", "eval"] = "train"):
        return seed, mode

    assert received(main, "--seed", "-1", "--mode=eval") == (-1, "eval")
    with pytest.raises(UsageError, match=r"^--mode predict: give train or eval$"):
        received(main, "--mode", "predict")


def test_lists_are_split_at_commas():
    assert names_of("chroot,9.10") == ["chroot", "9.10"]
    assert names_of(("a,b", "c")) == ["a,b", "c"]


SCRIPTS = sorted(
    str(file.relative_to(ROOT))
    for folder in (".", "matching", "bench", "experiment_data")
    for file in (ROOT / folder).glob("*.py")
    if "    command_line(main" in file.read_text()
)
EARLY = [script for script in SCRIPTS if "answer(__file__)" in (ROOT / script).read_text()]
SLOW = {"torch", "angr", "scipy", "sklearn", "numpy", "tensorflow", "matplotlib", "numba", "rich"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_flag_with_its_text(script):
    main, commands = Names(ROOT / script).functions()
    for name, function in {"": main, **commands}.items():
        others = {} if name else commands
        shown = " ".join(help_text(script, function, others).split())
        assert not re.search("Annotated|Optional|Union|typing|FieldInfo|Ellipsis", shown)
        first = inspect.cleandoc(function.__doc__).split("\n\n")[0]
        assert " ".join(first.split()) in shown
        parameters = inspect.signature(function).parameters
        texts = dict(parameter_texts(inspect.cleandoc(function.__doc__)))
        assert texts.keys() == parameters.keys()
        assert all(texts.values())
        for parameter, text in texts.items():
            flag = parameters[parameter].default is not inspect.Parameter.empty
            title = f"(--{parameter} |{parameter.upper()})"
            assert re.search(f"{title}.*?{re.escape(text)}", shown), parameter
            if flag and isinstance(parameters[parameter].default, int | float | str):
                default = describe_default(parameters[parameter].default)
                assert re.search(f"{title}.*?{re.escape(default)} ", shown), parameter
        for command, does in others.items():
            assert re.search(f"{command} command {does.__doc__.split()[0]}", shown)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_value_of_any_flag_is_explained_in_plain_words(script):
    main, commands = Names(ROOT / script).functions()
    for function in (main, *commands.values()):
        parameters = inspect.signature(function).parameters.values()
        needed = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
        for p in parameters:
            shown = describe_type(p.annotation)
            if p.default is p.empty or shown in ("text", "path", "list, with commas between"):
                continue
            given = [f"--{n.name}=1" for n in needed]
            with pytest.raises(UsageError) as error:
                received(function, *given, f"--{p.name}=many of it")
            said = f"--{p.name} 'many of it': give (a (whole )?number|true or false|.+ or .+)"
            assert re.fullmatch(rf"{said}( \(.*\))?", str(error.value))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_mistyped_command_is_answered_by_those_that_exist(script, monkeypatch):
    main, commands = Names(ROOT / script).functions()
    for command in commands:
        if any(p.default is p.empty for p in inspect.signature(main).parameters.values()):
            continue
        monkeypatch.setattr(sys, "argv", [script, f"{command}x", "0"])
        with pytest.raises(UsageError) as error:
            parse(main, commands)
        assert str(error.value).startswith(f"there is no command {command}x, only ")
        assert str(error.value).endswith(f"; did you mean {command}?")
        assert all(re.search(rf"\b{name}\b", str(error.value)) for name in commands)
        monkeypatch.setattr(sys, "argv", [script])
        if not inspect.signature(main).parameters:
            with pytest.raises(UsageError, match=f"^say what to do: .*{command}"):
                parse(main, commands)
        else:
            monkeypatch.setattr(sys, "argv", [script, "--", command])
            with pytest.raises(UsageError, match=f"^the command {command} must come before all"):
                parse(main, commands)


def test_help_speaks_of_types_and_defaults_as_people_do():
    def main(
        *files: str,
        count: Annotated[int, Field(ge=1)] = 2,
        share: Annotated[float, Field(gt=0, lt=1)] = 0.1,
        size: PositiveInt | None = None,
        mode: Literal["train", "eval"] = "train",
        names: str | list[str] = ("a", "b"),
        check: bool = True,
        model: Path = ROOT / "model/diff.safetensors",
        to: str = "",
    ) -> None:
        """Do it.

        Parameters
        ----------
        count, share : int, float
            How much of it.
        """

    shown = help_text("x.py", main, {})
    assert "usage: python x.py [--flag value]... FILES..." in shown
    assert "  --count  int, 2 (at least 1)\n      How much of it.\n" in shown
    assert "  --share  float, 0.1 (above 0, below 1)\n      How much of it.\n" in shown
    assert "  --size  int, optional (at least 1)\n" in shown
    assert "  --mode  train|eval, train\n" in shown
    assert "  --names  list, with commas between, a,b\n" in shown
    assert "  --check  switch, on\n" in shown
    model = os.path.relpath(ROOT / "model/diff.safetensors")
    assert f"  --model  path, {model}\n" in shown
    assert "  --to  text, optional\n" in shown


@pytest.mark.parametrize("script", EARLY)
def test_help_imports_nothing_slow(script, tmp_path):
    as_module = ["-m", script.removesuffix(".py").replace("/", ".")]
    command = as_module if "/" in script else [ROOT / script]
    for argument in ("--help", "-h", "--version", "--wrong"):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", *command, argument],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        imported = set(re.findall(r"\| +([a-z0-9_]+)$", done.stderr, re.M))
        assert "fire" in imported
        assert not imported & SLOW
        assert done.returncode == (2 if argument == "--wrong" else 0)
        if argument == "--version":
            assert done.stdout.split()[-1] == VERSION
        elif argument == "--wrong":
            only_commands = script in ("checkpoint.py", "search.py")
            fault = "say what to do: " if only_commands else "unknown flag --wrong"
            assert re.search(f"^error: {fault}", done.stderr, re.M)
        else:
            assert done.stdout.startswith("usage: python ")


@pytest.mark.parametrize("script", EARLY)
def test_signatures_read_from_the_text_are_the_real_ones(script):
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    main, commands = Names(ROOT / script).functions()
    for function in (main, *commands.values()):
        real = getattr(module, function.__name__)
        assert str(inspect.signature(function)) == str(inspect.signature(real))
        assert function.__doc__ == real.__doc__


TINY = """
import sys, threading
from typing import Annotated
from pydantic import Field
import utils
from terminal.command_line import command_line

def main(count: Annotated[int, Field(ge=1)] = 2, name: str = "x"):
    '''Do it.'''
    if name == "mistake":
        raise utils.UserError("the name is a mistake; give another")
    if name == "thread":
        for error in (OSError(28, "No space left on device"), ZeroDivisionError("seen")):
            thread = threading.Thread(target=fail, args=(error,))
            thread.start()
            thread.join()
    if name == "bug":
        raise ZeroDivisionError("ours")
    if name == "stop":
        raise KeyboardInterrupt
    print(count, name)
    return 3 if name == "three" else None

def fail(error):
    raise error

def other(flag: bool = False):
    print("other", flag)

command_line(main, other=other)
"""


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        ([], 0, "2 x\n", ""),
        (["--count", "5", "--name", "7"], 0, "5 7\n", ""),
        (["other", "--flag"], 0, "other True\n", ""),
        (["--name", "three"], 3, "2 three\n", ""),
        (["--name", "mistake"], 1, "", "error: the name is a mistake; give another\n"),
        (
            ["--name", "stop"],
            130,
            "",
            "interrupted; finished results are kept; run the same command again to continue\n",
        ),
        (
            ["--count", "0"],
            2,
            "",
            "error: --count 0: give a whole number (at least 1) (--help says more)\n",
        ),
    ],
)
def test_exit_codes_and_outputs_are_as_documented(arguments, code, out, err):
    done = run_script(arguments)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


WAITING = """
import os, sys, time
from terminal.command_line import command_line

def main(stubborn: bool = False):
    try:
        print("begins", flush=True)
        time.sleep(60)
    finally:
        if stubborn:
            print("cleans up", flush=True)
            time.sleep(60)

command_line(main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stubborn", [False, True])
def test_signals_let_a_program_clean_up(number, stubborn):
    """Ctrl-C and SIGTERM let a program clean up; a second one ends it at once."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, *["--stubborn"] * stubborn],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "begins\n"
    process.send_signal(number)
    if stubborn:
        assert process.stdout.readline() == "cleans up\n"
        process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == (-number if stubborn else 130)
    assert error == "" if stubborn else error.startswith("interrupted; ")


CLOSED = """
import os
from terminal.command_line import command_line

def main(file: str):
    with open(file, "w") as out:
        print("to nobody", flush=True)
        os.write(1, b"nor this")
        os.write(2, b"nor that")
        out.write("its own")
    return 3

command_line(main)
"""


def test_closed_streams_do_no_harm(tmp_path):
    """As by >&- in a shell: otherwise the file would have got the number of such a stream."""
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(CLOSED)} made"
    for closed in (">&-", "2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            f"{command} {closed}",
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            shell=True,
            capture_output=True,
        )
        assert done.returncode == 3
        assert (tmp_path / "made").read_text() == "its own"


def test_a_removed_working_directory_is_reported(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'diff.py'))} a b"
    done = subprocess.run(
        f"rmdir ../gone && {command}",
        cwd=gone,
        shell=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == "error: the working directory was removed; change to another one\n"
    assert done.returncode == 1


def test_a_full_disk_is_reported_for_printed_output(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", TINY], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write the output: the disk is full")
    assert done.stderr.count("\n") == 1


def test_command_line_keeps_the_traceback_of_our_own_mistakes():
    done = run_script(["--name", "bug"])
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_full_disk_is_not_told_by_a_thread_too():
    done = run_script(["--name", "thread"])
    assert done.returncode == 0
    assert "No space" not in done.stderr
    assert "ZeroDivisionError: seen" in done.stderr


def test_command_line_refuses_an_unknown_flag_before_anything_runs():
    done = run_script(["--nmae", "y"])
    assert done.returncode == 2
    assert done.stdout == ""
    assert "nmae" in done.stderr


def run_script(arguments):
    return subprocess.run(
        [sys.executable, "-c", TINY, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
