"""samefunc.py twins: twins are right, held-out programs are not read, no symbols are needed."""

import shutil
import subprocess

import pytest
from conftest import SOURCE, compile_c, read_pairs, run_script
from hypothesis import given
from hypothesis import strategies as st

import samefunc
from binary.analysis import save_analysis
from binary.disassemble import analyse
from pairs.twins import find_twins

BUILDS = ("O0", "O1", "O2")
# Functions that no name distinguishes, beside those of SOURCE.
OWN = """
__attribute__((noinline)) int plain_{i}(int *x, int n) {{
    int s = {i};
    for (int k = 0; k < n; k++)
        for (int j = 0; j < k; j++) s {op}= j + x[j] * {i};
    return s;
}}
"""


def run_twins(cwd, *arguments):
    return run_script(cwd, "samefunc.py", "twins", *arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two stripped programs in three builds, their pairs, and the twins of one of the programs."""
    cwd = tmp_path_factory.mktemp("twins")
    own = "".join(OWN.format(i=i + 2, op="+-^"[i]) for i in range(3))
    for program in ("alpha", "beta"):
        for build in BUILDS:
            named = cwd / "named" / build / program
            source = SOURCE.replace("virtual memory", program) + own
            compile_c(source, named, f"-{build}")
            bare = cwd / "binaries" / build / program
            bare.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(named, bare)
            subprocess.run(["strip", bare], check=True)
    made = run_script(
        *(cwd, "gendata.py", "--path", "binaries", "--biname", "*"),
        *("--validation", 0.5, "--test", 0, "--workers", 2),
    )
    assert made[0] == 0, made
    return cwd, run_twins(cwd, "--min_blocks", 1)


def rows_of(cwd, file="data/twins.tsv"):
    return read_pairs(cwd / file)


def symbols(file):
    """Return address -> name by nm; angr maps such binaries 0x400000 higher."""
    lines = subprocess.run(["nm", file], capture_output=True, text=True, check=True).stdout
    parts = [line.split() for line in lines.splitlines()]
    found = {int(p[0], 16): p[2] for p in parts if len(p) == 3 and p[1] in "tT"}
    return found | {address + 0x400000: name for address, name in found.items()}


def test_twins_have_one_name(made):
    cwd, (code, out, err) = made
    assert (code, err) == (0, "")
    rows = rows_of(cwd)
    assert f"data/twins.tsv: {len(rows)} rows of 3 pairs of 1 program" in out
    programs = {origin.split("/")[0] for row in rows for origin in row[3:]}
    assert len(programs) == 1  # the other one is for validation
    names = {b: symbols(cwd / "named" / b / next(iter(programs))) for b in BUILDS}
    seen = set()
    for number, (label, text_a, text_b, *origins) in enumerate(rows):
        assert label == ("same", "different")[number % 2]
        (_, build_a, a), (_, build_b, b) = (origin.split("/") for origin in origins)
        assert build_a != build_b
        assert text_a != text_b
        one, other = names[build_a].get(int(a, 16)), names[build_b].get(int(b, 16))
        assert (one == other) == (label == "same")
        seen.add(one)
    assert {"usage", "copy"} <= seen  # they have their own strings
    assert not any(name and name.startswith("plain") for name in seen)


def test_every_name_is_left_out_of_some_rows(made):
    cwd, _ = made
    rows = rows_of(cwd)
    names = {"fprintf", "puts", "exit", "malloc", "strlen", "usage", "information", "exhausted"}
    with_names = [bool(names & {*row[1].split(), *row[2].split()}) for row in rows[::2]]
    assert 0 < sum(with_names) < len(with_names)
    assert any("str" in row[1].split() for row in rows)  # a string's place stays


def test_same_bytes_again_and_other_bytes_with_another_seed(made):
    cwd, _ = made
    again = ["--min_blocks", 1, "--to"]
    assert run_twins(cwd, *again, "again.tsv")[0] == 0
    assert run_twins(cwd, *again, "other.tsv", "--seed", 1)[0] == 0
    first = (cwd / "data/twins.tsv").read_bytes()
    assert (cwd / "again.tsv").read_bytes() == first != (cwd / "other.tsv").read_bytes()


def test_rows_are_as_many_of_each_pair(made):
    cwd, _ = made
    assert run_twins(cwd, "--min_blocks", 1, "--rows", 6, "--to", "few.tsv")[0] == 0
    rows = rows_of(cwd, "few.tsv")
    builds = {tuple(sorted(origin.split("/")[1] for origin in row[3:])) for row in rows}
    assert (len(rows), len(builds)) == (6, 3)


def test_bad_input_is_one_sentence(made, tmp_path):
    cwd, _ = made
    code, out, err = run_twins(tmp_path)
    assert (code, out) == (1, "")
    assert err.startswith("error: --data data: there is no such folder; run `python gendata.py`")
    (tmp_path / "data").mkdir()
    code, _, err = run_twins(tmp_path)
    assert code == 1
    assert "data holds no pair to train on; run `python gendata.py` first" in err
    code, _, err = run_twins(cwd, "--min_blocks", 1000, "--to", "none.tsv")
    assert code == 1
    assert "in the 3 training pairs in data, no functions share" in err
    assert not (cwd / "none.tsv").exists()
    code, _, err = run_script(
        cwd, "samefunc.py", "twins", "--outputDir", "elsewhere", "--to", "none.tsv"
    )
    assert code == 1
    assert "is missing; give gendata.py's outputDir" in err


def function(*names):
    return samefunc.Function("p", "b", 1, "", 1, 1, ("mov", "mov"), frozenset(names))


def twins_of(*builds):
    return find_twins(*map(samefunc.unique_names, builds))


def test_most_votes_win():
    first = [function("a", "b", "c"), function("d"), function("often"), function("e")]
    second = [function("c", "d", "often"), function("a", "b"), function("e"), function("often")]
    # a and b outvote c. But c and d disagree about function 0 of the second; "often" does not vote.
    assert twins_of(first, second) == [(0, 1), (3, 2)]


sets = st.lists(st.frozensets(st.sampled_from("abcdefgh")), max_size=6)


@given(sets, sets)
def test_twins_are_one_to_one_and_symmetric(first, second):
    one, other = ([function(*names) for names in functions] for functions in (first, second))
    found = twins_of(one, other)
    for side in (0, 1):
        assert len({pair[side] for pair in found}) == len(found)
    for i, j in found:
        assert first[i] & second[j]
    turned = {(j, i) for i, j in twins_of(other, one)}
    # With equal votes the lower number wins; otherwise the result is the same from both sides.
    tied = {pair for pair in turned ^ set(found)}
    assert all(_is_tied(first, second, *pair) for pair in tied)


def _is_tied(first, second, i, j):
    only = [
        {n: k for k, names in enumerate(side) for n in names if sum(n in s for s in side) == 1}
        for side in (first, second)
    ]
    votes = {}
    for name in only[0].keys() & only[1].keys():
        pair = only[0][name], only[1][name]
        votes[pair] = votes.get(pair, 0) + 1
    rivals = [n for (a, b), n in votes.items() if (a == i) != (b == j)]
    return any(n == votes.get((i, j), 0) for n in rivals) or len(set(votes.values())) < len(votes)


def test_names_are_words_of_strings_and_imports(tmp_path):
    binary = compile_c(SOURCE, tmp_path / "b", "-O1")
    analysis = analyse(binary)
    file = tmp_path / "b.npz"
    save_analysis(analysis, file)
    functions = {f.symbol: f for f in samefunc.read_functions(file, "b", "O1")}
    usage = functions["usage"]
    assert {"puts", "exit", "information", "explanation"} <= usage.names
    whole, bare = (text.split() for text in usage.texts)
    assert [word for word in whole if word not in usage.names] == bare
    assert {"call", "str"} <= set(bare)
    assert not functions["area"].names
    assert functions["area"].texts[0] == functions["area"].texts[1]
