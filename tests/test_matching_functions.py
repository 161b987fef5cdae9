"""matching/: candidates, evidence, and functions matched one to one."""

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from features.tfidf import weigh
from matching.anchors import pairs_by_texts, read_anchors
from matching.blocks import IDENTICAL_SIZE, match_blocks
from matching.candidates import INLINED, MEASURES, OWN, SAME, Candidates, find_candidates
from matching.evidence import EVIDENCE, Evidence
from matching.functions import assign, match_candidates, match_functions
from utils import UserError


def names_of(code, functions):
    return [code.analysis.function_name[f] for f in functions]


def test_names_do_not_change_the_matches(codes, model):
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


def test_anchors_are_matched_as_given(codes, model):
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
        ("0x1", "line 1: '0x1' is not a pair"),
        ("# known\n\n12 0x13", "line 3: '12 0x13' is not a pair"),
        ("0x1 0x2", "no function of the old binary begins at 0x1"),
        ("{main} 0x2", "no function of the new binary begins at 0x2"),
        ("{main} {main}\n{main} {area}", "a function is in two pairs"),
    ],
)
def test_impossible_anchors_are_refused(codes, tmp_path, text, reason):
    code = codes["O0"]
    at = {n: hex(a) for n, a in zip(*(code.analysis.function_name, code.analysis.function_address))}  # noqa: B905
    (tmp_path / "anchors").write_text(text.format(main=at["main"], area=at["area"]))
    with pytest.raises(UserError, match=re.escape(reason)):
        read_anchors(str(tmp_path / "anchors"), (code, code))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.randoms(use_true_random=False))
def test_assignment_has_the_highest_sum(n, m, random):
    a, b = np.divmod(np.arange(n * m), m)
    score = np.array([random.random() for _ in a], np.float32)
    candidates = Candidates(a, b, (n, m), np.empty((n * m, 0), np.float32))
    found = assign(candidates, score, 0.4)
    cut = np.where(score >= 0.4, score, 0).reshape(n, m)
    best = cut[linear_sum_assignment(cut, maximize=True)].sum()
    assert found.score.sum() == pytest.approx(best, abs=1e-5)
    assert len(set(found.a.tolist())) == len(found.a) == len(set(found.b.tolist()))


def test_measures_are_cosines(codes, model):
    first, second = codes["O0"], codes["O2"]
    found = find_candidates(first, second, model.encoder)
    assert found.measures.shape == (len(found.a), len(MEASURES))
    for column, (one, other) in enumerate(SAME + INLINED):
        a, b = weigh(first.words[one], second.words[other])
        expected = (a @ b.T).toarray()[found.a, found.b]
        assert np.allclose(found.measures[:, column], expected, atol=1e-5)


def test_known_pairs_are_candidates_that_are_not_encoded_unless_their_code_differs(codes, model):
    code = codes["O2"]
    n = code.functions
    every = np.stack([np.arange(n), np.arange(n)], 1)

    def encode(code, functions):
        asked.append(functions)
        return model.encoder(code, functions=functions)

    for known, different in ((every, every[:3]), (every[1:], every[:0]), (every[:0], every[:0])):
        asked: list[np.ndarray] = []
        found = find_candidates(code, code, encode, known, different)
        assert [len(functions) for functions in asked] == [n - len(known) + len(different)] * 2
        pairs = set(zip(found.a.tolist(), found.b.tolist(), strict=True))
        assert set(map(tuple, known.tolist())) <= pairs
    cosine = found.measures[:, MEASURES.index("encoder's cosine")]
    assert np.allclose(cosine[found.a == found.b], 1, atol=1e-3)


def test_evidence_has_each_measure_less_its_typical_value(codes, model):
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


def test_identical_code_decides_between_equally_likely_functions(codes, model):
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


def test_hopeless_candidates_match_only_as_anchors(codes, model):
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
        # Functions with the same code, or the same texts, match without a score.
        for f, g in pairs - set(map(tuple, certain.tolist())):
            assert [first.forms[b] for b in first.blocks[f]] == [
                second.forms[b] for b in second.blocks[g]
            ]
