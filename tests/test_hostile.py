"""Broken, odd and malicious files: only the file itself is skipped, and nothing harmful gets in."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SIZES, SMALL, TINY, compile_c

import checkpoint
import classify
import gendata
import models
import pretrain
import train
import utils
from binary.analysis import load_analysis
from binary.builds import find_refused
from binary.cache import analyse_one
from binary.tokens import tokenise
from corpus.ids import read_corpus
from formats.huggingface import read_vocab
from jobs.processes import in_processes
from pairs.folder import is_made, read_info
from pairs.text import check_word, read_pair
from tasks.catalogue import Mrpc
from tasks.task import TASKS
from terminal.command_line import PARTLY
from terminal.escape import printable
from tokenization import SPECIAL_TOKENS, CorpusTokenizer
from utils import UserError

PROGRAM = "tiny"


STATIC = r"""
static long call(long number, long a, const char *b, long c) {
    __asm__ volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return number;
}
void _start(void) {
    if (call(1, 1, "a static program says hello\n", 28) < 0)
        call(60, 1, "", 0);
    call(60, 0, "", 0);
    __builtin_unreachable();
}
"""

MODULE = r"""
extern int _printk(const char *, ...);
__attribute__((section(".modinfo"), used)) static const char license[] = "license=GPL";
int init_module(void) { _printk("hello from a kernel module\n"); return 0; }
void cleanup_module(void) { _printk("goodbye from a kernel module\n"); }
"""

REFUSED = {
    "archive": "is a static archive: unpack it (ar x)",
    "empty": "is empty",
    "directory": "it is a directory",
    "fifo": "it is a special file",
    "unreadable": "it cannot be read: Input/output error",
    "dangling": "it cannot be read: No such file",
    "script": "is not an executable",
    "header": "cannot be loaded",
    "sparse": "is not an executable",
}
ANALYSED = {"O0", "O2", "static", "shared", "object", "module", "symbols"}
ODD_NAMES = {
    b"with blank": "with blank",
    b"new\nline": r"new\nline",
    b"\xff\xfe": r"\xff\xfe",
    b"[MASK]": "[MASK]",
    b"$(touch pwned); touch pwned": "$(touch pwned); touch pwned",
}


def snapshot(folder):
    """Return the names and types of everything in a folder."""
    return {
        os.path.join(base, name): os.lstat(os.path.join(base, name)).st_mode
        for base, folders, files in os.walk(os.fsencode(folder))
        for name in folders + files
    }


def script(name, cwd, *arguments, timeout=1800):
    done = subprocess.run(
        [sys.executable, str(ROOT / name), *arguments],
        cwd=cwd,
        capture_output=True,
        check=False,
        timeout=timeout,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A folder with odd builds where gendata.py ran; its exit code, output, and prior content."""
    cwd = tmp_path_factory.mktemp("odd")
    binaries = cwd / "binaries"

    def build(name):
        folder = os.path.join(os.fsencode(binaries), os.fsencode(name))
        os.makedirs(folder)
        return Path(os.fsdecode(folder)) / PROGRAM

    for level in ("O0", "O2"):
        compile_c(TINY, build(level), f"-{level}", *SMALL)
    elf = (binaries / "O0" / PROGRAM).read_bytes()
    compile_c(STATIC, build("static"), "-O1", "-static", "-nostdlib", "-s")
    compile_c(TINY, build("shared"), "-O1", "-shared", "-fPIC", "-nostdlib")
    compile_c(TINY, build("object"), "-O1", "-c")
    compile_c(MODULE, build("module"), "-O1", "-c", "-mcmodel=kernel", "-fno-pic")
    assert elf.count(b"getchar\0") == 1
    build("symbols").write_bytes(elf.replace(b"getchar\0", b"[MASK]\n\0"))
    for name in ODD_NAMES:
        build(name).write_bytes(elf + b"of another content: " + name)

    build("empty").touch()
    build("directory").mkdir()
    os.mkfifo(build("fifo"))
    build("unreadable").symlink_to("/proc/self/mem")  # not even root reads its first byte
    build("dangling").symlink_to("nothing")
    build("script").write_text("#!/bin/sh\ntouch pwned\n")
    subprocess.run(["ar", "rc", build("archive"), binaries / "object" / PROGRAM], check=True)
    build("header").write_bytes(elf[:20])
    with build("sparse").open("wb") as file:
        file.truncate(4 << 30)
    before = snapshot(cwd)
    arguments = ["--biname", PROGRAM, "--path", "binaries", "--workers", "2", "--time_limit", "100"]
    return cwd, script("gendata.py", cwd, *arguments), before, arguments


def test_each_odd_file_is_analysed_or_refused_with_its_reason(odd):
    cwd, (code, out, err), _, _ = odd
    assert code == PARTLY, err
    skipped = dict(re.findall(r"^skipped binaries/(.+?)/tiny:? (.+)$", err, re.M))
    assert skipped.keys() == REFUSED.keys()
    for name, reason in REFUSED.items():
        assert reason in skipped[name]
    builds = [
        [build["build"] for build in json.loads(file.read_text())["binaries"]]
        for file in (cwd / "data").glob("*/pair.json")
    ]
    names = ANALYSED | set(ODD_NAMES.values())
    assert {name for pair in builds for name in pair} == names
    assert len(builds) == len(names) * (len(names) - 1) // 2
    assert f"{len(REFUSED)} skipped" in out


def test_a_program_without_imports_is_named(odd):
    _, (_, out, _), _, _ = odd
    assert re.findall("note: (.+) imports nothing", out) == ["binaries/static/tiny"]


def test_nothing_is_written_anywhere_else(odd):
    cwd, _, before, _ = odd
    after = snapshot(cwd)
    new = {os.path.relpath(name, os.fsencode(cwd)).split(b"/")[0] for name in after.keys() - before}
    assert new <= {b"data", b"output", b"vocab"}
    assert {name: what for name, what in after.items() if name in before} == before


def test_names_and_contents_get_no_meaning_in_corpus_and_vocabulary(odd):
    cwd, _, _, _ = odd
    code, _, err = script("dataprocess.py", cwd)
    assert (code, err) == (0, "")
    vocab = (cwd / "vocab/vocab.txt").read_text().splitlines()
    assert vocab[:5] == list(SPECIAL_TOKENS)
    words = vocab[5:]
    assert not [word for word in words if not re.fullmatch(r"(##)?[A-Za-z0-9_.@$?-]+", word)]
    assert {"mask", "third", "pieces", "_MASK__", "puts"} <= set(words)
    text = (cwd / "data/corpus.txt").read_text()
    assert set(re.split("[ \t\n]", text)) - {""} <= set(words)
    about = json.loads((cwd / "data/corpus.json").read_text())
    assert text.count("\n\n") == about["documents"]
    assert len(re.findall(r"^.+$", text, re.M)) == about["sentences"]
    assert text.isascii()
    assert text.isprintable() is False
    assert set(re.findall(r"[^!-~]", text)) == {" ", "\t", "\n"}


def test_a_pair_of_odd_names_can_be_shown(odd):
    cwd, _, _, _ = odd
    pairs = {
        tuple(build["build"] for build in json.loads(file.read_text())["binaries"]): file.parent
        for file in (cwd / "data").glob("*/pair.json")
    }
    number = next(pairs[pair].name for pair in pairs if r"\xff\xfe" in pair)
    code, out, _ = script("gendata.py", cwd, "show", number)
    assert code == 0
    assert r"\xff\xfe" in out.splitlines()[0]


@pytest.mark.parametrize("name", [b"with blank", b"new\nline", b"\xff\xfe"])
def test_programs_may_have_odd_names(odd, tmp_path, name):
    for build in ("O0", "O2"):
        (tmp_path / "binaries" / build).mkdir(parents=True)
        shutil.copy(
            odd[0] / "binaries" / build / PROGRAM,
            os.path.join(os.fsencode(tmp_path), b"binaries", build.encode(), name),
        )
    (tmp_path / "output").symlink_to(odd[0] / "output")
    code, _, err = script("gendata.py", tmp_path, "--biname", name, "--path", "binaries")
    assert (code, err) == (0, "")
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["0"]
    pair = json.loads((tmp_path / "data/0/pair.json").read_text())
    assert pair["program"] == printable(os.fsdecode(name))
    code, _, err = script("dataprocess.py", tmp_path)
    assert (code, err) == (0, "")


def test_a_file_without_permission_is_skipped_with_its_reason():
    """Root may read everything, so it becomes nobody meanwhile."""
    before = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        file = Path(folder, "build", PROGRAM)
        file.parent.mkdir()
        file.touch(mode=0)
        try:
            if before == 0:
                os.seteuid(65534)
            reasons = find_refused(folder, PROGRAM)
        finally:
            os.seteuid(before)
    assert reasons == {str(file): "it cannot be read: Permission denied"}


# ------------------------------------------------------------------------------------ mutants


N_MUTANTS = 200


def mutate(content, number, seed):
    """Return copies with 1 to 64 bits flipped; every tenth copy is also truncated.

    In every other copy, the flips are in the first KiB, where the headers are.
    """
    rng = np.random.default_rng(seed)
    made = []
    for i in range(number):
        data = np.frombuffer(content, np.uint8).copy()
        where = rng.integers(min(len(data), 1024) if i % 2 else len(data), size=2 ** (i % 7))
        data[where] ^= np.uint8(1) << rng.integers(8, size=len(where)).astype(np.uint8)
        made.append(data.tobytes()[: rng.integers(len(data)) if i % 10 == 0 else None])
    return made


def test_mutants_of_a_binary_are_analysed_or_refused(odd, tmp_path):
    elf = (odd[0] / "binaries/O0" / PROGRAM).read_bytes()
    files = {}
    for i, content in enumerate([*mutate(elf, N_MUTANTS, seed=1), elf]):
        file = tmp_path / "binaries" / str(i) / PROGRAM
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        files[str(i)] = file
    before = snapshot(tmp_path / "binaries")
    jobs = ((key, (str(file), tmp_path / "output" / key)) for key, file in files.items())
    limits = {"time_limit": 8, "memory_limit": 2}  # some jobs exceed them
    errors = dict(in_processes(analyse_one, jobs, len(files), 2, "mutants", **limits))
    assert errors.keys() == files.keys()
    assert errors[str(N_MUTANTS)] is None  # the pool still works at the end
    assert snapshot(tmp_path / "binaries") == before
    good = {key for key, error in errors.items() if error is None}
    utils.remove_leftovers(tmp_path / "output")  # left by stopped workers
    assert {file.name for file in (tmp_path / "output").iterdir()} == good
    assert 20 < len(good) < N_MUTANTS  # both outcomes occur
    for key, error in errors.items():
        reasons = (str(files[key]), "the worker process died", "took longer", "took more than")
        assert error is None or any(reason in error for reason in reasons), error
    for key in good:
        check(load_analysis(tmp_path / "output" / key))


def check(analysis):
    """No token can be mistaken for anything else. (Loading has checked that the arrays fit.)"""
    assert analysis.code_blocks > 0
    tokens = tokenise(analysis)
    assert (np.diff(tokens.offsets) > 0).all()
    assert not analysis.edges.size or analysis.edges.max() < analysis.blocks
    for word in tokens.dictionary:
        check_word(word)


# -------------------------------------------------------------------------------- every JSON

ODD_VALUES = [None, True, -1, 10**30, 1.5, float("nan"), "x", [], {}]


def places(value, path=()):
    """Yield the path of every value in a JSON, including the whole."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def changed(content, path, value):
    """Return JSON text with another value at ``path``, or without it if the value is ``...``."""
    if not path:
        return json.dumps(value)
    content = json.loads(json.dumps(content))
    at = content
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(content)


def variants(content):
    for path in places(content):
        for value in [*ODD_VALUES, *([...] if path else [])]:
            yield path, changed(content, path, value)


def assert_checked(file, read):
    """Replace every value in ``file`` by odd ones: ``read`` accepts it, or says what is wrong."""
    content = file.read_text()
    messages = []
    for path, text in variants(json.loads(content)):
        file.write_text(text)
        try:
            read()
        except UserError as error:
            messages.append(str(error))
        except Exception as error:
            raise AssertionError(f"{file.name} with another {path}: {text}") from error
    file.write_text(content)
    read()
    assert messages
    for message in messages:
        assert file.name in message
        assert "\n" not in message


def test_odd_values_in_training_settings_are_refused(tmp_path):
    for name, kind in (("pretrain", pretrain.Config), ("train_samefunc", train.Config)):
        file = tmp_path / "train.json"
        content = json.loads((ROOT / f"config/{name}.json").read_text())
        file.write_text(json.dumps(content | {"keep": 3, "accumulate": 1}))
        assert_checked(file, lambda file=file, kind=kind: kind.from_json(file).with_epochs(10))


def test_odd_values_in_model_sizes_are_refused(tmp_path):
    file = tmp_path / "model.json"
    file.write_text(json.dumps(SIZES | {"vocab_size": 9, "init_std": 0.02}))

    def read():
        sizes = models.Config.from_json(file)
        if sizes.vocab_size is not None:  # None: as large as the vocabulary
            models.BertModel4Pretrain(sizes)

    assert_checked(file, read)


@pytest.fixture
def pretrained(tmp_path):
    """A model with random weights, in the files that pretrain.py writes."""
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("".join(f"{token}\n" for token in [*SPECIAL_TOKENS, "mov", "push", "call"]))
    sizes = models.Config(**SIZES, vocab_size=8)
    torch.manual_seed(0)
    checkpoint.save_pt(models.BertModel4Pretrain(sizes).state_dict(), tmp_path / "model.pt")
    info = checkpoint.ModelInfo(
        model=sizes, tokenizer="corpus", vocab_sha256=utils.sha256_of(vocab), max_len=12
    )
    utils.write_json(tmp_path / "model.json", dataclasses.asdict(info))
    return tmp_path / "model.pt"


def test_odd_values_in_model_json_are_refused(pretrained, capsys):
    assert_checked(
        pretrained.with_name("model.json"),
        lambda: naming("model.json", pretrain.predict, str(pretrained), "mov [MASK]"),
    )


def naming(name, function, *arguments):
    """The error names the wrong file: this one, or one that it does not fit."""
    try:
        function(*arguments)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def test_odd_values_in_a_classifiers_json_are_refused(pretrained):
    vocab = pretrained.with_name("vocab.txt")
    for task in ("mrpc", "samefunc"):
        info = classify.ClassifierInfo(
            task=task,
            model=models.Config(**SIZES, vocab_size=8),
            tokenizer="corpus",
            vocab_sha256=utils.sha256_of(vocab),
            max_len=12,
        )
        utils.write_json(pretrained.with_name("model.json"), dataclasses.asdict(info))
        network = TASKS[task].network(info.model, 2)
        checkpoint.save_pt(network.state_dict(), pretrained)
        assert_checked(
            pretrained.with_name("model.json"),
            lambda task=task: naming("model.json", classify.load_classifier, str(pretrained), task),
        )


def test_odd_values_in_a_hugging_face_config_are_refused(pretrained, tmp_path):
    checkpoint.export_model(str(pretrained), str(tmp_path / "theirs"))
    file = tmp_path / "theirs/config.json"

    def read():
        classify.read_start(str(file.parent), None, None, Mrpc)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.import_model(str(file.parent), folder + "/ours")

    assert_checked(file, read)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_odd_values_in_a_hugging_face_tokenizer_are_refused(pretrained, tmp_path, name):
    checkpoint.export_model(str(pretrained), str(tmp_path / "theirs"))
    file = tmp_path / "theirs" / name
    if name == "tokenizer_config.json":
        (file.parent / "tokenizer.json").unlink()
    for path, text in itertools.islice(variants(json.loads(file.read_text())), 0, None, 3):
        file.write_text(text)
        try:
            read_vocab(file.parent, 8)
        except UserError as error:
            assert "\n" not in str(error), path  # noqa: PT017


def test_odd_values_in_corpus_json_are_refused(odd, tmp_path):
    script("dataprocess.py", odd[0])
    for name in ("vocab/vocab.txt", "data/corpus.txt", "data/corpus.json"):
        shutil.copy(odd[0] / name, tmp_path)
    file = tmp_path / "corpus.json"
    about = json.loads(file.read_text())
    kept = about | {"pairs": about["pairs"][:1], "documents": about["pairs"][0]["documents"]}
    documents = (tmp_path / "corpus.txt").read_text().split("\n\n")[: kept["documents"]]
    (tmp_path / "corpus.txt").write_text("".join(f"{text}\n\n" for text in documents))
    kept["corpus_sha256"] = utils.sha256_of(tmp_path / "corpus.txt")
    file.write_text(json.dumps(kept))
    tokenizer = CorpusTokenizer(tmp_path / "vocab.txt")
    assert_checked(file, lambda: read_corpus(tmp_path / "corpus.txt", tokenizer, "v"))


def test_odd_values_in_pair_json_are_refused(odd, tmp_path, capsys):
    """gendata.py makes a pair with a broken pair.json again; dataprocess.py and show refuse it."""
    shutil.copytree(odd[0] / "data/0", tmp_path / "data/0")
    file = tmp_path / "data/0/pair.json"
    content = json.loads(file.read_text())
    wanted = dataclasses.replace(read_info(file.parent), counts=None)
    assert is_made(tmp_path / "data", wanted)
    for path, text in variants(content):
        file.write_text(text)
        for number, read in enumerate(
            [
                lambda: gendata.show(0, str(odd[0] / "output"), str(tmp_path / "data")),
                lambda: read_pair(file.parent, str(odd[0] / "output")),
                lambda: gendata.report(str(tmp_path / "data"), [0], 0, 0, 2, {}, 1.0),
            ]
        ):
            if number == 2 and not is_made(tmp_path / "data", wanted):
                continue  # it is written again
            try:
                read()
            except UserError as error:
                assert "\n" not in str(error), (path, text)  # noqa: PT017
            except Exception as error:
                raise AssertionError(f"{number}: pair.json with another {path}: {text}") from error
