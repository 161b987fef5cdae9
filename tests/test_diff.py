"""diff.py and what it stands on: features, candidates, matching, the page and the scripts."""

import ast
import base64
import csv
import dataclasses
import functools
import io
import itertools
import json
import platform
import re
import shutil
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import networkx
import numpy as np
import pytest
import scipy.sparse
from conftest import SOURCE, compile_c
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn.feature_extraction.text import TfidfTransformer

import diff
from binary.addresses import IN_MEMORY
from binary.architectures import ARCHITECTURES
from binary.disassemble import analyse
from features.extract import _read_instruction, extract_features
from features.normalised import normal_line
from features.tfidf import hashed, weigh
from matching.anchors import pairs_by_texts, read_anchors
from matching.blocks import IDENTICAL_SIZE, _depths, _match, _within, match_blocks
from matching.candidates import INLINED, MEASURES, OWN, SAME, Candidates, find_candidates
from matching.changes import CHANGED, IDENTICAL, ORDER, STATUS, compare
from matching.evidence import EVIDENCE, Evidence
from matching.exports.records import as_csv
from matching.exports.scripts import PIE_BASE, naming_script
from matching.functions import Matches, assign, match_candidates, match_functions
from matching.kinds import KINDS
from matching.model import read_model, write_model
from matching.page.make import make_page
from terminal.escape import Escaped
from utils import UsageError, UserError

ROOT = Path(__file__).resolve().parent.parent
PATCHED = SOURCE.replace("sum / 2;", "sum > 100000 ? 7 * sum : sum / 2 - 1234;")


@pytest.fixture(scope="module")
def model():
    return read_model()


@pytest.fixture(scope="module")
def codes(analyses):
    return {build: extract_features(analysis) for build, analysis in analyses.items()}


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    binary = compile_c(PATCHED, tmp_path_factory.mktemp("patched") / "shapes", "-O1")
    return extract_features(analyse(binary))


def names_of(code, functions):
    return [code.analysis.function_name[f] for f in functions]


def test_a_stripped_copy_is_identical(codes, model):
    first, second = codes["O1"], codes["O1-stripped"]
    found = compare(first, second, model)
    # A function's own address may be that of the padding before it, where no symbol says better.
    begin = [
        {f: code.analysis.address[code.analysis.function == f].min() for f in range(code.functions)}
        for code in (first, second)
    ]
    for row in found.functions:
        if row["status"] == IDENTICAL:
            assert begin[0][row["sides"][0]] == begin[1][row["sides"][1]]
    names = {first.analysis.function_name[row["sides"][0]]: row for row in found.functions}
    for name in ("area", "kind", "copy", "usage", "compare"):
        assert names[name]["status"] == IDENTICAL
    # Without symbols, angr takes what the linker puts behind main for a part of it.
    assert begin[0][names["main"]["sides"][0]] == begin[1][names["main"]["sides"][1]]
    assert names["main"]["change"] < 0.1
    address = [code.analysis.address for code in (first, second)]
    at = address[0][found.blocks.a] == address[1][found.blocks.b]
    assert at.mean() > 0.95
    assert found.same[at].all()


def test_the_patched_function_is_the_changed_one(codes, patched, model):
    found = compare(codes["O1"], patched, model)
    rows = [row for row in found.functions if row["status"] == CHANGED]
    assert names_of(codes["O1"], [row["sides"][0] for row in rows]) == ["area"]
    assert names_of(patched, [row["sides"][1] for row in rows]) == ["area"]
    assert found.functions[0] == rows[0], "changed ones come first"
    assert 0 < rows[0]["change"] < 1


def test_the_likeliest_edits_come_first(codes, model):
    first, second = codes["O0"], codes["O2"]
    found = compare(first, second, model)
    function = first.analysis.function, second.analysis.function
    same = list(zip(found.blocks.a[found.same], found.blocks.b[found.same], strict=True))
    order = []
    for row in found.functions:
        a, b = row["sides"]
        total = (len(first.blocks[a]) if a >= 0 else 0) + (len(second.blocks[b]) if b >= 0 else 0)
        inside = sum(function[0][x] == a and function[1][y] == b for x, y in same)
        assert row["differing"] == total - 2 * inside
        assert row["change"] == pytest.approx(row["differing"] / total, abs=1e-4)
        order.append((ORDER.index(row["status"]), -row["rank"]))
        assert bool(row["kinds"]) == (row["status"] == CHANGED)
        assert set(row["kinds"]) <= set(KINDS)
    assert order == sorted(order)
    assert len({row["status"] for row in found.functions}) > 1


def test_names_are_not_looked_at(codes, model):
    first, second = codes["O0"], codes["O2"]
    renamed = dataclasses.replace(
        second,
        analysis=dataclasses.replace(
            second.analysis,
            function_name=[f"f{i}" for i in range(len(second.analysis.function_name))],
        ),
    )
    one, other = (match_functions(first, code, model) for code in (second, renamed))
    for field in ("a", "b", "score"):
        assert np.array_equal(getattr(one, field), getattr(other, field))


@pytest.mark.parametrize(("old", "new"), [("O0", "O1"), ("O0", "O2"), ("O1", "O3-noplt")])
def test_optimised_functions_are_found_one_to_one(codes, model, old, new):
    first, second = codes[old], codes[new]
    functions = match_functions(first, second, model)
    blocks = match_blocks(first, second, functions)
    for found in (functions, blocks):
        assert len(set(found.a.tolist())) == len(found.a)
        assert len(set(found.b.tolist())) == len(found.b)
        assert ((found.score >= 0) & (found.score <= 1)).all()
    pairs = set(zip(names_of(first, functions.a), names_of(second, functions.b), strict=True))
    assert {(name, name) for name in ("main", "kind", "copy", "usage")} <= pairs


def test_blocks_match_inside_matched_functions_or_where_they_were_inlined(codes, model):
    first, second = codes["O0"], codes["O2"]
    functions = match_functions(first, second, model)
    blocks = match_blocks(first, second, functions)
    partner = dict(zip(functions.a.tolist(), functions.b.tolist(), strict=True))
    back = {b: a for a, b in partner.items()}
    for a, b in zip(blocks.a, blocks.b, strict=True):
        f, g = int(first.analysis.function[a]), int(second.analysis.function[b])
        assert partner.get(f) == g or f not in partner or g not in back


def test_identical_blocks_match_where_no_function_does(codes):
    """Each at most once, and only blocks that are the only ones of their kind."""
    first, second = codes["O1"], codes["O1-stripped"]
    nothing = Matches(*(np.empty(0, kind) for kind in (np.int64, np.int64, np.float32)))
    blocks = match_blocks(first, second, nothing)
    forms = first.forms, second.forms
    assert len(blocks.a) > 10
    for a, b in zip(blocks.a, blocks.b, strict=True):
        assert forms[0][a] == forms[1][b]
        assert forms[0].count(forms[0][a]) == forms[1].count(forms[1][b]) == 1


def test_anchors_hold(codes, model):
    first, second = codes["O0"], codes["O1"]
    f = first.analysis.function_name.index("area")
    g = second.analysis.function_name.index("kind")
    found = match_functions(first, second, model, np.array([[f, g]]))
    pairs = dict(zip(found.a.tolist(), found.b.tolist(), strict=True))
    assert pairs[f] == g
    assert found.score[found.a == f] > 0.99


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0x1", "line 1: '0x1' is no pair"),
        ("# known\n\n12 0x13", "line 3: '12 0x13' is no pair"),
        ("0x1 0x2", "no function of the old binary begins at 0x1"),
        ("{main} 0x2", "no function of the new binary begins at 0x2"),
        ("{main} {main}\n{main} {area}", "a function stands in two pairs"),
    ],
)
def test_anchors_that_cannot_be(codes, tmp_path, text, reason):
    code = codes["O0"]
    at = {n: hex(a) for n, a in zip(*(code.analysis.function_name, code.analysis.function_address))}  # noqa: B905
    (tmp_path / "anchors").write_text(text.format(main=at["main"], area=at["area"]))
    with pytest.raises(UserError, match=re.escape(reason)):
        read_anchors(str(tmp_path / "anchors"), (code, code))


# ------------------------------------------------------------------------- what is written

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "=cmd|' /C calc'!A0",
    '");os.system("',
    "\x1b[2J\x1b]0;title\x07\r\n=1+1;=2+2",
    "\u202e\u200b\x9b31m\udcff",
    "a\n\x85\u2028b",
    "x;=1+1",
    "\t@SUM(1)",
]


@pytest.fixture
def hostile(codes, model):
    """Two builds whose symbols are attacks, and their diff."""
    renamed = []
    for build in ("O0", "O1"):
        analysis = codes[build].analysis
        names = list(itertools.islice(itertools.cycle(HOSTILE), len(analysis.function_name)))
        analysis = dataclasses.replace(analysis, function_name=names)
        renamed.append(dataclasses.replace(codes[build], analysis=analysis))
    return tuple(renamed), compare(*renamed, model)


def test_no_name_ends_the_page_s_data(hostile):
    codes, found = hostile
    page = make_page(("</title><b>", "b"), codes, found)
    data = re.findall('<script type="text/plain" id="(.*?)">(.*?)</script>', page, re.S)
    assert all(re.fullmatch("[A-Za-z0-9+/=]+", packed) for _, packed in data)
    index = json.loads(zlib.decompress(base64.b64decode(dict(data)["index"])))
    assert index["functions"][0][0][1] == HOSTILE[0]
    assert index["paths"] == ["</title><b>", "b"]
    # All else is the page's own, whatever the binaries hold.
    empty = dataclasses.replace(found, functions=[])
    pages = page, make_page(("", ""), codes, empty)
    own, other = (re.sub(">[A-Za-z0-9+/=]+</script>", "", text) for text in pages)
    assert own == other


@pytest.mark.parametrize("tool", ["ghidra", "ida"])
def test_naming_scripts_hold_names_as_data(hostile, builds, tool):
    codes, found = hostile
    script = naming_script(tool, str(builds / "O1" / "shapes"), codes, found)
    tree = ast.parse(script)
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
    }
    assert values["NAMES"]
    assert all(re.fullmatch("[A-Za-z0-9_.$]*", name) for _, name, _ in values["NAMES"])
    # a position-independent executable's places count from its beginning
    header = (builds / "O1" / "shapes").read_bytes()[16]
    assert values["RELATIVE"] == (header == 3)
    starts = set(codes[1].analysis.function_address.tolist())
    base = PIE_BASE if values["RELATIVE"] else 0
    assert {place + base for place, _, _ in values["NAMES"]} <= starts


def test_no_cell_is_a_formula(hostile):
    codes, found = hostile
    lines = as_csv(codes, found).splitlines()
    assert len(lines) == len(found.functions) + 1
    names = {row["old name"] for row in csv.DictReader(lines)}
    assert any("cmd" in name for name in names)
    for delimiter in ",;\t":
        for row in csv.reader(lines, delimiter=delimiter):
            assert not any(re.match(r"[\s\"]*[=+@-]", cell) for cell in row)


def test_no_name_acts_in_the_terminal(hostile, monkeypatch):
    codes, found = hostile
    monkeypatch.setattr(sys, "stdout", Escaped(io.StringIO(), strict=True))
    diff.summary(("\x1b[2J\nold", "n\x85ew"), codes, found, 100, 0.1)
    shown = sys.stdout.raw.getvalue()
    assert re.sub("[\n\t]", "", shown).isprintable()
    assert r"\x1b[2J\nold" in shown
    changed = sum(row["status"] == CHANGED for row in found.functions)
    starts = shown.count("\n     where they begin is said by: ")
    assert starts <= 2
    assert shown.count("\n") == 2 + starts + len(STATUS) + 1 + bool(changed) + changed + 2


def test_command_line(builds, tmp_path):
    run = subprocess.run(
        [
            *(sys.executable, str(ROOT / "diff.py")),
            *(str(builds / "O1" / "shapes"), str(builds / "O1-stripped" / "shapes")),
            *("--html", "r.html", "--json", "r.json", "--csv", "r.csv", "--ghidra", "g.py"),
            *("--ida", "i.py", "--workers", "1"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    written = json.loads((tmp_path / "r.json").read_text())
    statuses = Counter(row["status"] for row in written["functions"])
    for name in STATUS:
        assert re.search(rf"^ *{statuses[name]} functions {name}$", run.stdout, re.M)
    assert statuses["identical"] > 5
    assert sum(1 for _ in (tmp_path / "r.csv").open()) == 1 + len(written["functions"])
    assert all((tmp_path / file).stat().st_size for file in ("r.html", "g.py", "i.py"))


@pytest.mark.parametrize("which", ["missing", "text"])
def test_mistakes_are_one_sentence(builds, tmp_path, which):
    (tmp_path / "text").write_text("no program")
    run = subprocess.run(
        [sys.executable, str(ROOT / "diff.py"), str(builds / "O1" / "shapes"), which],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert which in run.stderr
    assert "Traceback" not in run.stderr


def test_a_flag_that_would_be_ignored_is_refused(builds):
    file = str(builds / "O0" / "shapes")
    with pytest.raises(UsageError, match="--min_score is for --ghidra and --ida"):
        diff.main(file, file, min_score=0.9, csv="x.csv")


@pytest.mark.parametrize("flag", ["html", "json", "csv", "ghidra", "ida"])
def test_no_output_replaces_what_is_read(builds, tmp_path, flag):
    old, new = tmp_path / "old", builds / "O1" / "shapes"
    shutil.copy(builds / "O0" / "shapes", old)
    for path, reason in [
        (old, "would replace .*/old, which is an input"),
        (tmp_path, "is a folder"),
    ]:
        with pytest.raises(UserError, match=f"--{flag} .*{reason}"):
            diff.main(str(old), str(new), outputDir=str(tmp_path / "o"), **{flag: str(path)})
    export = tmp_path / "old.BinExport"
    shutil.copy(old, export)
    with pytest.raises(UserError, match=r"would replace .*old\.BinExport, which is an input"):
        diff.main(str(old), str(export), binexport=str(tmp_path), outputDir=str(tmp_path / "o"))
    assert old.read_bytes() == export.read_bytes() == (builds / "O0" / "shapes").read_bytes()
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x08\0\0\0\0\0\0\0{}      "])
def test_no_model(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(UserError, match=r"no model that matching/train\.py wrote"):
        read_model(tmp_path / "m")


def test_a_model_that_measures_other_things(tmp_path, model):
    """Such as one that an earlier matching/train.py wrote."""
    cut = dataclasses.replace(model.neighbours, w1=model.neighbours.w1[:, 1:])
    write_model(dataclasses.replace(model, neighbours=cut), tmp_path / "m", {})
    with pytest.raises(UserError, match=r"networks have \(32, 30\) inputs, not \(32, 31\)"):
        read_model(tmp_path / "m")


# ---------------------------------------------------------------------------------- the parts

bags = st.lists(st.dictionaries(st.integers(0, 12), st.integers(1, 5)), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(bags, bags)
def test_weights_are_scikit_learns(one, other):
    first, second = (
        hashed(Counter(b).elements() for b in one),
        hashed(Counter(b).elements() for b in other),
    )
    a, b = weigh(first, second)
    expected = TfidfTransformer(sublinear_tf=True).fit_transform(
        scipy.sparse.vstack([first, second])
    )
    assert abs(scipy.sparse.vstack([a, b]) - expected).max() < 1e-5


def test_the_words_of_a_block_are_those_of_its_instructions(codes):
    code = codes["O2"]
    for block in range(0, code.analysis.code_blocks, 7):
        lines = code.analysis.instructions[block].decode().split("\n")
        mnemonics = [line.partition(" ")[0] for line in lines]
        assert code.block_words["token"][block].sum() == 2 * len(lines)
        for kind, words in (
            ("token", mnemonics),
            ("gram", [*itertools.pairwise(mnemonics)]),
        ):
            expected = hashed([words])
            part = code.block_words[kind][block].multiply(expected > 0)
            # Another word may have the same hash.
            assert (part - expected).min() >= 0
            assert part.sum() - expected.sum() <= 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.randoms(use_true_random=False))
def test_assignment_is_the_best(n, m, random):
    a, b = np.divmod(np.arange(n * m), m)
    score = np.array([random.random() for _ in a], np.float32)
    candidates = Candidates(a, b, (n, m), np.empty((n * m, 0), np.float32))
    found = assign(candidates, score, 0.4)
    cut = np.where(score >= 0.4, score, 0).reshape(n, m)
    best = cut[linear_sum_assignment(cut, maximize=True)].sum()
    assert found.score.sum() == pytest.approx(best, abs=1e-5)
    assert len(set(found.a.tolist())) == len(found.a) == len(set(found.b.tolist()))


def test_evidence_says_how_alike_matched_functions_are(codes, model):
    first, second = codes["O1"], codes["O2"]
    candidates = find_candidates(first, second, model.encoder)
    names = [code.analysis.function_name for code in (first, second)]
    pairs = zip(candidates.a, candidates.b, strict=True)
    right = np.array([names[0][a] == names[1][b] for a, b in pairs])
    logit = np.where(right, 30, -30).astype(np.float32)
    found = Evidence(first, second).columns(candidates, logit, logit)
    assert found.shape == (len(right), len(EVIDENCE))
    own = candidates.measures[:, [MEASURES.index(name) for name in OWN]]
    distance = found[:, [EVIDENCE.index(f"{name}, less the typical") for name in OWN]]
    typical = found[:, [EVIDENCE.index(f"typical {name}") for name in OWN]]
    assert np.allclose(typical, own[right].mean(0), atol=1e-4)
    assert np.allclose(distance + typical, own, atol=1e-6)


def test_of_functions_that_are_about_as_likely_the_same_code_matches(codes, model):
    code = codes["O2"]
    rng = np.random.default_rng(0)
    undecided = SimpleNamespace(
        similarity=lambda measures: np.zeros(len(measures), np.float32),
        neighbours=lambda evidence: rng.random(len(evidence), np.float32),
    )
    candidates = find_candidates(code, code, model.encoder)
    nothing_known = np.zeros(len(candidates.a), bool)
    around = Evidence(code, code)
    found = match_candidates(candidates, around, undecided, nothing_known, threshold=0)
    whole = [[code.forms[b] for b in inside] for inside in code.blocks]
    sizes = [sum(map(len, function)) for function in whole]
    large = [f for f in found.a.tolist() if sizes[f] >= IDENTICAL_SIZE]
    assert len(large) > 8
    partner = dict(zip(found.a.tolist(), found.b.tolist(), strict=True))
    assert all(whole[f] == whole[partner[f]] for f in large)
    small = [f for f, size in enumerate(sizes) if size < IDENTICAL_SIZE]
    assert not around.same_code(candidates)[np.isin(candidates.a, small)].any()


@pytest.mark.parametrize("what", ["code", "surroundings"])
def test_twins_in_words_match_by(what):
    """Of the second binary, blocks 0 and 1 have changed places; block 2 branches to one of them."""
    words = [scipy.sparse.csr_matrix(np.array([[1.0, 0], [1, 0], [0, 1]]))] * 2
    forms = [np.array([0, 1, 2]), np.array([1, 0, 2])] if what == "code" else [np.zeros(3)] * 2
    flow = [np.zeros((3, 3)), np.zeros((3, 3))]
    if what == "surroundings":
        flow[0][2, 0] = flow[1][2, 1] = 1
    edges = [scipy.sparse.csr_matrix(m) for m in flow]
    blocks = np.arange(3)
    a, b, score = _match(blocks, blocks, words, forms, edges, 0.2)
    assert dict(zip(a.tolist(), b.tolist(), strict=True)) == {0: 1, 1: 0, 2: 2}
    assert np.all((score > 0.9) & (score <= 1))


def test_what_looks_hopeless_matches_as_an_anchor_only(codes, model):
    def always(score):
        return lambda inputs: np.full(len(inputs), score, np.float32)

    first, second = codes["O1"], codes["O2"]
    unlike = dataclasses.replace(model, similarity=always(-20), neighbours=always(20))
    anchor = first.analysis.function_name.index("area"), second.analysis.function_name.index("kind")
    for anchors in (None, np.array([anchor])):
        found = match_functions(first, second, unlike, anchors)
        pairs = set(zip(found.a.tolist(), found.b.tolist(), strict=True))
        assert (anchor in pairs) == (anchors is not None)
        none = np.zeros((0, 2), np.int64)
        certain = pairs_by_texts((first, second), none if anchors is None else anchors)
        # The same code is no question of likeness, nor are the same texts.
        for f, g in pairs - set(map(tuple, certain.tolist())):
            assert [first.forms[b] for b in first.blocks[f]] == [
                second.forms[b] for b in second.blocks[g]
            ]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.randoms(use_true_random=False))
def test_edges_within_some_blocks(n, random):
    dense = np.array([[random.choice((0, 0, 1, 2)) for _ in range(n)] for _ in range(n)])
    blocks = np.array(random.sample(range(n), random.randint(1, n)))
    found = _within(scipy.sparse.csr_matrix(dense), blocks)
    assert np.array_equal(found.toarray(), dense[blocks][:, blocks])


@given(st.integers(1, 7), st.randoms(use_true_random=False))
def test_depths_are_shortest_paths(n, random):
    edges = [(i, j) for i in range(n) for j in range(n) if random.random() < 0.25]
    graph = networkx.DiGraph(edges)
    graph.add_nodes_from(range(n))
    last = [i for i in range(n) if graph.out_degree(i) == 0] or [n - 1]
    behind = scipy.sparse.csr_matrix(networkx.to_numpy_array(graph, range(n)))
    depths = _depths(behind, behind.T.tocsr())
    for found, way, start in zip(depths, (graph, graph.reverse()), ([0], last), strict=True):
        distance = networkx.multi_source_dijkstra_path_length(way, start)
        furthest = max(distance.values())
        expected = [distance.get(i, furthest) / max(furthest, 1) for i in range(n)]
        assert found.tolist() == expected


def test_starting_imports_nothing_large():
    """Of a second that comparing two small binaries takes, imports are the greater part."""
    code = "import sys, diff; print({'angr', 'torch', 'scipy.optimize'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_measures_are_cosines(codes, model):
    first, second = codes["O0"], codes["O2"]
    found = find_candidates(first, second, model.encoder)
    assert found.measures.shape == (len(found.a), len(MEASURES))
    for column, (one, other) in enumerate(SAME + INLINED):
        a, b = weigh(first.words[one], second.words[other])
        expected = (a @ b.T).toarray()[found.a, found.b]
        assert np.allclose(found.measures[:, column], expected, atol=1e-5)


def test_what_computes_nothing_is_no_difference():
    for line in ("endbr64", "nop", "nop word ptr cs:[rax + rax]", "bti c"):
        assert normal_line(line) == ""
    assert normal_line("notrack jmp rax") == normal_line("jmp rax")
    marks = ((0, "@"),)
    assert normal_line("notrack jmp qword ptr [rip + 0x20]", marks) == "jmp qword ptr [rip@]"


def test_landing_pads_leave_functions_identical(tmp_path, model):
    if platform.machine() != "x86_64":
        pytest.skip("-fcf-protection is of x86")
    codes = []
    for protection in ("none", "full"):
        flags = "-O2", "-fno-jump-tables", f"-fcf-protection={protection}"
        binary = compile_c(SOURCE, tmp_path / protection / "shapes", *flags)
        codes.append(extract_features(analyse(binary)))
    pads = [b"\n".join(code.analysis.instructions).count(b"endbr64") for code in codes]
    assert pads[1] >= pads[0] + 6  # those of the C runtime are in both
    found = compare(*codes, model)
    names = [code.analysis.function_name for code in codes]
    same = {
        tuple(name[f] for name, f in zip(names, row["sides"], strict=True))
        for row in found.functions
        if row["status"] == IDENTICAL
    }
    ours = ("main", "area", "usage", "kind", "copy", "compare")
    assert {(name, name) for name in ours} <= same


def test_words_say_what_classes_drop():
    line = functools.partial(_read_instruction, ARCHITECTURES["x86_64"])
    assert line(b"cmp dword ptr [rbx + 0x38], 0x2f") == ("cmp", "cmp mn", ["+0x38"], [0x2F])
    assert line(b"mov eax, dword ptr [rbp - 0x14]") == ("mov", "mov rm", [], [])
    assert line(b"lea rax, [rdi + rcx*4 + 8]")[2] == ["+8"]
    assert line(b"jmp 0x401000")[3] == []
    assert line(b"ret") == ("ret", "ret ", [], [])


def test_addresses_are_no_difference():
    marks = ((0, "@"),)
    assert normal_line("jne 0x401234", marks) == "jne @"
    assert normal_line("lea rdi, [rip + 0x2f31]", marks) == "lea rdi, [rip@]"
    assert normal_line("ldr x1, [x0, #0x348]", marks) == "ldr x1, [x0@]"
    assert normal_line("ldr x1, [x0]", ((IN_MEMORY, "@"),)) == "ldr x1, [x0@]"
    assert normal_line("lw $v0, ($at)", ((IN_MEMORY, "@"),)) == "lw $v0, @($at)"
    assert normal_line("lw $v0, -0x7fe8($gp)", marks) == "lw $v0, @($gp)"
    assert normal_line("mov edi, 0x409010", marks) == "mov edi, @"
    assert normal_line("mov edi, 0x10") == "mov edi, 0x10"
    assert normal_line("mov dword ptr [rax*4 + 0x409010], 0x10", marks).endswith("[rax*4@], 0x10")
