"""Shared fixtures: tiny programs, compiled once per session, and a tiny BERT."""

import contextlib
import csv
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from terminal.arguments import bind, call
from terminal.command_line import exit_codes

ROOT = Path(__file__).resolve().parent.parent

# No deadline: a test must not fail because the machine is busy.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


def pytest_xdist_auto_num_workers():
    """Start one process more than there are CPUs, because some tests only wait for others."""
    return os.cpu_count() + 1


def run_script(cwd, script, *arguments):
    """Run one of our scripts in ``cwd``; return exit code, standard output and errors."""
    done = subprocess.run(
        [sys.executable, ROOT / script, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def typed(function, *words) -> int:
    """Call a script's function as its command line does, but in this process: its exit code."""
    with pytest.raises(SystemExit) as end, exit_codes():
        sys.exit(call(function, *bind(function, [str(word) for word in words])) or 0)
    return end.value.code


def tiny_bert(vocab_size=None, **changes):
    """Return the sizes of a BERT that is quick to run; no two of them are equal."""
    import models

    sizes = dict(dim=24, n_layers=2, n_heads=3, dim_ff=40, p_drop_hidden=0.1, p_drop_attn=0.1)
    sizes |= dict(max_len=32, n_segments=2, vocab_size=vocab_size)
    return models.Config(**(sizes | changes))


def shake(model):
    """Change all weights, since initial biases are 0, and initial attention is nearly uniform."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


def read_pairs(file):
    """Return the rows of a TSV file of samefunc.py, without its header."""
    with open(file, newline="") as lines:
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        assert next(rows) == ["label", "text_a", "text_b", "origin_a", "origin_b"]
        return list(rows)


SOURCE = r"""
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct point { int x, y; };

__attribute__((noinline)) int area(const struct point *p, int n) {
    int sum = 0;
    for (int i = 0; i < n; i++)
        sum += p[i].x * p[(i + 1) % n].y - p[i].y * p[(i + 1) % n].x;
    return sum / 2;
}

__attribute__((noinline)) void usage(int status) {
    if (status != 0)
        fprintf(stderr, "Try '--help' for more information.\n");
    else
        puts("Usage: shapes [OPTION]... FILE with a very long explanation");
    exit(status);
}

__attribute__((noinline)) int kind(const char *s) {
    switch (s[0]) {
    case 'a': return 10;
    case 'b': return 21;
    case 'c': return 35;
    case 'd': return strlen(s);
    case 'e': return 51;
    case 'f': return 67;
    default: return isalpha((unsigned char) s[0]) ? 1 : -1;
    }
}

__attribute__((noinline)) char *copy(const char *s) {
    char *t = malloc(strlen(s) + 1);
    if (t == NULL) {
        fprintf(stderr, "virtual memory exhausted\n");
        abort();
    }
    return strcpy(t, s);
}

static int compare(const void *a, const void *b) { return *(const int *) a - *(const int *) b; }

int main(int argc, char **argv) {
    struct point p[4] = {{0, 0}, {2, 0}, {2, 2}, {0, 2}};
    int kinds[16], n = 0;
    if (argc < 2)
        usage(1);
    for (int i = 1; i < argc && n < 16; i++) {
        char *t = copy(argv[i]);
        kinds[n++] = kind(t);
        free(t);
    }
    qsort(kinds, n, sizeof kinds[0], compare);
    printf("the area is %d and the first kind [MASK] %d\n", area(p, 4), kinds[0]);
    return 0;
}
"""

PATCHED = SOURCE.replace("sum / 2;", "sum > 100000 ? 7 * sum : sum / 2 - 1234;")  # in area

# A program of a few blocks, with strings that try to be more than words.
TINY = r"""
extern int puts(const char *);
extern void exit(int);
extern int getchar(void);

__attribute__((noinline)) int kind(int c) {
    switch (c) {
    case 'a': return 10;
    case 'b': return 21;
    case 'c': return 35;
    case 'd': return c * 3;
    default: return -1;
    }
}

void _start(void) {
    int n = 0;
    for (int c = getchar(); c >= 0; c = getchar())
        n += kind(c);
    if (n > 3)
        puts("[MASK]");
    else if (n > 1)
        puts("first line\nsecond\n\n[SEP] third\ttab");
    else if (n)
        puts("control \x01\x1b[31m \xe2\x80\xa8 \xff characters");
    else
        puts("##pieces [PAD] [UNK] of a longer text");
    exit(n);
}
"""
SMALL = ["-nostartfiles", "-fno-asynchronous-unwind-tables", "-Wl,-z,noseparate-code", "-s"]
SIZES = dict(dim=8, n_layers=1, n_heads=2, dim_ff=8, p_drop_hidden=0.1, p_drop_attn=0.1)
SIZES |= dict(max_len=12, n_segments=2)  # sizes of a BERT

BUILDS = {
    "O0": ["-O0"],
    "O1": ["-O1"],
    "O2": ["-O2", "-fno-pie", "-no-pie"],
    "O3-noplt": ["-O3", "-fno-plt"],
}


# Fields of a made-up Analysis: no instructions, variables, addresses taken or pointers.
NO_DATA = {
    "first_instruction": np.zeros(1, np.int64),
    "instruction_form": np.zeros(0, np.int32),
    "form": [],
    "operand_string": np.zeros(0, np.int32),
    "variable_block": np.zeros(0, np.int32),
    "variable_address": np.zeros(0, np.uint64),
    "variable_name": [],
    "taker_block": np.zeros(0, np.int32),
    "taken_block": np.zeros(0, np.int32),
    "pointer_address": np.zeros(0, np.uint64),
    "pointer_block": np.zeros(0, np.int32),
    "label_pointer": np.zeros(0, np.int32),
    "label": [],
}


def gendata_py(cwd, *arguments, check=True):
    """Run gendata.py in ``cwd``, but in this process; it must not fail if ``check``."""
    import gendata

    commands = {"show": gendata.show, "text": gendata.text}
    first, *others = arguments or [""]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        if first in commands:
            code = typed(commands[first], *others)
        else:
            code = typed(gendata.main, *arguments)
    if check:
        assert code == 0, err.getvalue()
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def bytes_of(folder: Path) -> dict[str, str]:
    """Return name -> SHA-256 of all files in a folder."""
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }


def pack(path: Path, files: dict[str, str], folder: str = "coreutils-1.2") -> Path:
    """Write a tarball with ``files`` in one folder."""
    with tarfile.open(path, "w:xz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size, info.mode = len(text), 0o755
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


def analysis_of(blocks, edges):
    """Make an Analysis of (address, entry of angr's function, last instruction) and edges."""
    entries = sorted({entry for _, entry, _ in blocks})
    n = len(blocks)
    from binary.analysis import Analysis

    return Analysis(
        address=np.array([a for a, _, _ in blocks] + [0], np.uint64),
        function=np.array([entries.index(e) for _, e, _ in blocks] + [len(entries)], np.int32),
        edges=np.array([edge[:2] for edge in edges], np.int32).reshape(-1, 2),
        kind=np.array([edge[2] for edge in edges], np.uint8),
        returns=np.zeros(n + 1, bool),
        function_address=np.array([*entries, 0], np.uint64),
        function_name=[f"f{e:x}" for e in entries] + ["puts"],
        import_name=["puts"],
        string_block=np.zeros(0, np.int32),
        string=[],
        **NO_DATA,
        instructions=[text.encode() for _, _, text in blocks] + [b""],
    )


def compile_c(source: str, target: Path, *flags: str) -> Path:
    """Compile C source text into ``target``; skip the test where there is no compiler."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler (cc)")
    target.parent.mkdir(parents=True, exist_ok=True)
    file = target.with_suffix(".c")
    file.write_text(source)
    subprocess.run(["cc", "-g", *flags, "-o", str(target), str(file)], check=True)
    file.unlink()
    return target


def words(analysis, block: int) -> list[str]:
    """Return a block's tokens."""
    from binary.tokens import tokenise

    return tokenise(analysis).words()[block]


@pytest.fixture(scope="session")
def builds(tmp_path_factory) -> Path:
    """A folder with <build>/shapes for each of BUILDS, and a stripped copy of one of them."""
    folder = tmp_path_factory.mktemp("binaries")
    for name, flags in BUILDS.items():
        compile_c(SOURCE, folder / name / "shapes", *flags)
    (folder / "O1-stripped").mkdir()
    target = folder / "O1-stripped" / "shapes"
    subprocess.run(["strip", "-o", str(target), str(folder / "O1" / "shapes")], check=True)
    return folder


@pytest.fixture(scope="session")
def analyses(builds):
    """Build name -> its Analysis."""
    from binary.disassemble import analyse

    return {f.name: analyse(f / "shapes") for f in sorted(builds.iterdir())}


@pytest.fixture(scope="session")
def paired(builds, analyses, tmp_path_factory) -> Path:
    """A folder with output/ and data/: gendata.py's pairs of a program and of one for validation.

    `shapes` has all builds of `builds`; `held`, a program of a package that is set aside, has two.
    """
    import utils
    from binary.analysis import cache_file, save_analysis
    from experiment_data.recipes import VALIDATION

    folder = tmp_path_factory.mktemp("paired")
    held = {"O0": f"{VALIDATION[0]}-bookworm-O0", "O3-noplt": f"{VALIDATION[0]}-bookworm-O3"}
    for build, analysis in analyses.items():
        file = builds / build / "shapes"
        save_analysis(analysis, cache_file(folder / "output", utils.sha256_of(file)))
        for name, place in (("shapes", f"shapes-1.0-{build}"), ("held", held.get(build))):
            if place:
                copy = folder / "binaries" / place / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)
    gendata_py(folder, "--path", "binaries", "--biname", "*", "--workers", "1")
    return folder


@pytest.fixture(scope="session")
def codes(analyses):
    """Build name -> its Features."""
    from features.extract import extract_features

    return {build: extract_features(analysis) for build, analysis in analyses.items()}


@pytest.fixture(scope="session")
def patched_file(tmp_path_factory) -> Path:
    """The program with the patch, built with -O1."""
    return compile_c(PATCHED, tmp_path_factory.mktemp("patched") / "shapes", "-O1")


@pytest.fixture(scope="session")
def patched(patched_file):
    """The Features of the program with the patch."""
    from binary.disassemble import analyse
    from features.extract import extract_features

    return extract_features(analyse(patched_file))


@pytest.fixture(scope="session")
def model():
    """The matcher's model, as diff.py reads it."""
    from matching.model import read_model

    return read_model()
