"""samefunc.py: labels are true, splits are disjoint, nothing gives a label away."""

import dataclasses
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT, SOURCE, compile_c, gendata_py, read_pairs, run_script, typed

import samefunc
from binary.disassemble import analyse
from binary.tokens import tokenise
from pairs.binaries import read_pairs as read_infos
from samefunc import Function
from utils import UserError

# Programs with own functions besides those of SOURCE, which all of them share.
OWN = """
__attribute__((noinline)) int {name}_{i}(int *x, int n) {{
    int s = {i};
    for (int k = 0; k < n; k++) {{
        if (x[k] > {i}) s += x[k] {op} 3;
        else if (x[k] < -{i}) s -= x[k];
        for (int j = 0; j < k; j++) s {op}= j + x[j] * {i};
    }}
    return s;
}}
"""


def run(cwd, arguments, **changed):
    flags = [f"--{name}={value}" for name, value in (arguments | changed).items()]
    return run_script(cwd, "samefunc.py", *flags)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with three programs in four builds each, and the data of samefunc.py."""
    cwd = tmp_path_factory.mktemp("samefunc")
    for number, name in enumerate(("alpha", "beta", "gamma")):
        own = "".join(OWN.format(name=name, i=i + 7 * number, op="+-^|&*"[i % 6]) for i in range(6))
        for build in ("O0", "O1", "O2", "Os"):
            compile_c(SOURCE + own, cwd / "binaries" / build / name, f"-{build}")
    gendata_py(cwd, "--path", "binaries", "--biname", "alpha,beta,gamma", "--num_walks", 1)
    sizes = {"train_pairs": 60, "other_pairs": 20, "min_blocks": 3}
    arguments = {"train": "alpha", "dev": "beta", "test": "gamma", **sizes}
    return cwd, arguments, run(cwd, arguments)


def rows_of(cwd, split):
    return read_pairs(cwd / "data/samefunc" / f"{split}.tsv")


def test_labels_agree_with_the_named_functions(made):
    cwd, _, (code, out, err) = made
    assert (code, err) == (0, "")
    assert "data/samefunc/train.tsv: 60 pairs" in out
    for split, program, n in (("train", "alpha", 60), ("dev", "beta", 20), ("test", "gamma", 20)):
        rows = rows_of(cwd, split)
        assert Counter(row[0] for row in rows) == {"same": n // 2, "different": n // 2}
        assert len({tuple(row) for row in rows}) == n
        for label, text_a, text_b, *origins in rows:
            (p, build_a, name_a), (q, build_b, name_b) = (origin.split("/") for origin in origins)
            assert p == q == program
            assert build_a != build_b
            assert (label == "same") == (name_a == name_b)
            assert text_a != text_b


def test_texts_are_the_functions(made):
    cwd, _, _ = made
    analyses = {}
    for _, text_a, _, origin, _ in rows_of(cwd, "test"):
        program, build, name = origin.split("/")
        file = cwd / "binaries" / build / program
        if file not in analyses:
            analyses[file] = analyse(file)
        analysis = analyses[file]
        inside = np.flatnonzero(analysis.function == analysis.function_name.index(name))
        assert len(inside) >= 3
        texts = tokenise(analysis).words()
        assert text_a == " ".join(word for b in inside for word in texts[b])


def test_splits_share_no_name(made):
    cwd, _, _ = made
    names = {
        split: {origin.split("/")[2] for row in rows_of(cwd, split) for origin in row[3:]}
        for split in ("train", "dev", "test")
    }
    assert {"usage", "kind", "main"} & names["train"]
    assert all(name.startswith("beta_") for name in names["dev"])
    assert all(name.startswith("gamma_") for name in names["test"])


def test_no_symbol_in_the_text(made):
    cwd, _, _ = made
    for split in ("train", "dev", "test"):
        for row in rows_of(cwd, split):
            words = set(row[1].split()) | set(row[2].split())
            # (usage, kind and area are words of a message, too)
            assert not {"main", "copy", "compare"} & words
            assert not [w for w in words if w.startswith(("alpha_", "beta_", "gamma_"))]


def test_same_bytes_again_and_other_bytes_with_another_seed(made):
    cwd, arguments, _ = made
    files = sorted((cwd / "data/samefunc").iterdir())
    before = [file.read_bytes() for file in files]
    run(cwd, arguments)
    assert [file.read_bytes() for file in files] == before
    run(cwd, arguments, seed=1, to="other")
    assert (cwd / "other/train.tsv").read_bytes() != (files[2]).read_bytes()


def test_without_names_of_programs_the_splits_are_those_of_gendata(made):
    cwd, arguments, _ = made
    assert run(cwd, {**dict(list(arguments.items())[3:]), "to": "default"})[0] == 0
    of = {"train": "train", "dev": "validation", "test": "test"}
    splits = {info.program: info.split for info in read_infos(str(cwd / "data"))}
    assert len(splits) == 3
    for table, split in of.items():
        rows = read_pairs(cwd / "default" / f"{table}.tsv")
        assert {splits[origin.split("/")[0]] for row in rows for origin in row[3:]} == {split}


def test_wrong_commands_are_refused_in_one_sentence(made, monkeypatch, capsys):
    cwd, arguments, _ = made
    monkeypatch.chdir(cwd)
    for wrong, message in [
        ({"dev": "alpha"}, "alpha is in two splits; name the programs of all three"),
        ({"test": "delta"}, "--test delta: data holds no pair of this program; run `python"),
        ({"data": "none"}, "--data none: there is no such folder; run `python gendata.py` first"),
        ({"outputDir": "none"}, "is missing; give gendata.py's outputDir"),
        ({"to": "data"}, "--to data would replace data/0, which is an input"),
        ({"to": "data/0"}, "--to data/0 would replace data/0, which is an input"),
        ({"to": "output/x"}, "--to output/x lies in output/, which is an input"),
        ({"train_pairs": 4000}, "ask for fewer pairs, or give more builds or programs"),
    ]:
        flags = [f"--{name}={value}" for name, value in (arguments | wrong).items()]
        code = typed(samefunc.main, *flags)
        err = capsys.readouterr().err
        assert code == (2 if "two splits" in message or "an input" in message else 1)
        assert message in err
        assert "Traceback" not in err


def make(name, build, size, text=None):
    texts = (text or f"{name} {build} {size}",) * 2
    return Function("p", build, 1, name, 9, size, texts, frozenset())


def test_sizes_do_not_tell_the_label():
    """A negative's second function is one of those nearest in size to the positive's second."""
    rng = np.random.default_rng(0)
    functions = [
        make(f"f{i}", build, int(size) + 1)
        for i, size in enumerate(rng.lognormal(5, 1.5, 500))
        for build in ("a", "b", "c")
        for size in [size * rng.lognormal(0, 0.5)]
    ]
    rows = samefunc.draw(functions, 4000, np.random.default_rng(1))
    ratio = {label: [] for label in samefunc.LABELS}
    for label, first, second, *_ in rows:
        sizes = [int(text.split()[-1]) for text in (first, second)]
        ratio[label].append(abs(np.log(sizes[0] / sizes[1])))
    same, different = (np.sort(ratio[label]) for label in samefunc.LABELS)
    # The best guess from the ratio alone is hardly better than a coin.
    edges = np.quantile(np.concatenate([same, different]), np.linspace(0, 1, 50))
    gap = abs(np.searchsorted(same, edges) - np.searchsorted(different, edges)).max() / len(same)
    assert 0.5 + gap / 2 < 0.55


def test_what_pairs_are_made_of():
    functions = [
        make("whole", "a", 9),
        make("twice", "a", 9),
        make("twice", "a", 8),
        make("twice", "b", 8),
        make("cut.part.0", "a", 9),
        make("_start", "a", 9),
        make("earlier", "a", 9),
        dataclasses.replace(make("small", "a", 1), blocks=2),
        make("", "a", 9),
    ]
    chosen = samefunc.choose(functions, {"earlier"}, min_blocks=3)
    assert [(f.symbol, f.build) for f in chosen] == [("whole", "a"), ("twice", "b")]


def test_equal_texts_make_no_pair():
    functions = [make(n, b, 9, text="mov ret") for n in "xy" for b in "ab"]
    with pytest.raises(UserError, match="give only 0 pairs, not 2"):
        samefunc.draw(functions, 2, np.random.default_rng(0))


def test_neither_side_is_imported():
    code = "import sys, samefunc; print({'torch', 'tensorflow', 'sklearn'} & set(sys.modules))"
    result = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
    assert json.dumps(result.strip()) == '"set()"'
