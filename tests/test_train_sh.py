"""train.sh: settings in the environment become flags, and arguments override them."""

import subprocess

from conftest import ROOT


def flags(tmp_path, *arguments, **settings):
    """Run train.sh with a fake Python that prints its arguments; return them."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && echo 0 || printf "%s\\n" "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["sh", ROOT / "train.sh", *arguments],
        env={"PATH": "/usr/bin:/bin", "python": str(python), **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    script, *words = done.stdout.splitlines()
    assert script == "pretrain.py"
    return words


def test_each_flag_is_given_once(tmp_path):
    words = flags(tmp_path)
    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        "--train_cfg": "config/pretrain.json",
        "--model_cfg": "config/bert_tiny.json",
        "--data_file": "data/corpus.txt",
        "--vocab": "vocab/vocab.txt",
        "--save_dir": "out",
        "--max_len": "64",
        "--max_pred": "16",
        "--mask_prob": "0.25",
    }


def test_arguments_override_the_environment(tmp_path):
    words = flags(tmp_path, "--max_len", "128", "--vocab=my words", data_file="a b/c.txt")
    assert words.count("--max_len") == 1
    assert words[words.index("--max_len") + 1] == "128"
    assert "--vocab" not in words
    assert "--vocab=my words" in words
    assert words[words.index("--data_file") + 1] == "a b/c.txt"
