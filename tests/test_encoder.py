"""The encoder: what it reads, that numpy computes what torch does, that training teaches it."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import encoder_rows
import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors import safe_open

import utils
from encoder import corpus as corpora
from encoder import train as encoder_train
from encoder.calibration import Calibration
from encoder.encoder import read_encoder, write_encoder
from encoder.inputs import (
    AROUND,
    GROUPS,
    NAMES,
    OFFSET,
    SKETCH,
    Vocabulary,
    choose_words,
    look_up,
    signs,
    sketch,
)
from encoder.network import Network, View
from encoder.objectives import OBJECTIVES, Data, Same, draw
from encoder.train import Config, Stage, find_files, programs_of, take_part
from experiment_data.recipes import RECIPES, TEST, VALIDATION, package_of
from features.operations import operations
from features.positions import LONGEST, WORD_KINDS, read_positions
from features.tfidf import DIMENSIONS

SPARSE = ("of_line", "names", "bags")
HOW = Calibration(scale=20.0, none=0.8)


@pytest.fixture(scope="module")
def positions(codes):
    return {build: read_positions(code) for build, code in codes.items()}


@pytest.fixture(scope="module")
def corpus(builds, analyses, tmp_path_factory):
    """All builds with symbols as builds of one package."""
    from binary.analysis import cache_file, save_analysis

    output = tmp_path_factory.mktemp("output")
    files = []
    for build, analysis in analyses.items():
        if "stripped" not in build:
            path = builds / build / "shapes"
            save_analysis(analysis, cache_file(output, utils.sha256_of(path)))
            files.append(("shapes", str(path)))
    made = corpora.read_corpus(files, output)
    made.output = output
    again = corpora.read_corpus(files, output)  # now from what was kept
    assert made.name == again.name
    assert (made.positions.bags != again.positions.bags).nnz == 0
    return made


@pytest.fixture(scope="module")
def small():
    cfg = utils.read_config(Config, ROOT / "config/encoder.json")
    return dataclasses.replace(cfg.model, dim=32, n_heads=2, dim_ff=48)


@pytest.fixture(scope="module")
def data(corpus):
    vocabulary = choose_words([[corpus.positions]], 4000)
    return Data(corpus, look_up(corpus.positions, vocabulary), programs_of(corpus))


def test_a_stripped_copy_gives_the_same_input(positions):
    whole, stripped = positions["O1"], positions["O1-stripped"]
    assert whole.line.tobytes() == stripped.line.tobytes()
    assert whole.offsets.tobytes() == stripped.offsets.tobytes()
    for name in SPARSE:
        a, b = getattr(whole, name), getattr(stripped, name)
        for part in ("indptr", "indices", "data"):
            assert getattr(a, part).tobytes() == getattr(b, part).tobytes()


def test_positions_are_the_instructions_that_do_something(codes, positions):
    code, found = codes["O2"], positions["O2"]
    names = code.analysis.function_name
    for function in ("area", "usage", "main"):
        f = names.index(function)
        lines = [
            line
            for block in code.blocks[f]
            for line in code.analysis.instructions[block].split(b"\n")
            if not line.startswith((b"nop", b"endbr", b"cs nop", b"data16"))
        ][:LONGEST]
        at = range(found.offsets[f], found.offsets[f + 1])
        assert [code.lines.texts[found.line[i]] for i in at] == lines
    # What usage says stands where it says it.
    f = names.index("usage")
    own = found.names[found.offsets[f] : found.offsets[f + 1]]
    kind = WORD_KINDS.index("name") * DIMENSIONS
    words = code.words["name"][f].indices + kind
    assert set(own.indices) == set(words)
    assert 0 < (np.diff(own.indptr) > 0).sum() < own.shape[0]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["movzx eax, byte ptr [rdi]", "ldrb w0, [x0]", "lbu a0, 0(a0)"], ("load 1",)),
        (["mov qword ptr [rax], rdx", "str x0, [x1]", "sw $a0, 4($sp)"], ("store 4",)),
        (["jne 0x40", "b.eq #0x40", "cbz x0, #0x40", "bnez a0, 8"], ("branch if equal",)),
        (["jg 0x40", "b.le #0x40", "jle 0x40", "bgt #4"], ("branch if less or equal",)),
        (["call 0x40", "bl #0x40", "bleq #0x40", "jalr $t9", "blr x3"], ("call",)),
        (["jmp 0x40", "b #0x40", "jmp rax"], ("jump",)),
        (["add rax, rdx", "add x0, x1, #4", "addiu $a0, $a0, 1"], ("add",)),
        (["add rax, qword ptr [rdi]"], ("load 4", "add")),
        (["addsd xmm0, xmm1", "fadd d0, d0, d1", "add.d $f0, $f2, $f4"], ("float add",)),
        (["setne al", "cset w0, ne", "cmovg eax, edx", "csel x0, x1, x2, eq"], ("select",)),
    ],
)
def test_processors_share_words(lines, words):
    for line in lines:
        mnemonic, _, rest = line.partition(" ")
        assert operations(mnemonic, rest) == words, line


def test_words_of_one_package_alone_are_not_learned(positions):
    found = choose_words([[positions["O0"]], [positions["O2"]]], 10**6)
    in_both = [set(found.words.tolist()) for _ in "12"]
    for package, words in zip(("O0", "O2"), in_both, strict=True):
        bags = positions[package].bags
        words.intersection_update(_numbers(bags.indices).tolist())
    assert in_both[0] == in_both[1] == set(found.words.tolist())
    assert len(choose_words([[positions["O0"]], [positions["O2"]]], 50).words) == 50


def _numbers(indices):
    group, column = np.divmod(indices, DIMENSIONS)
    return OFFSET[group] + column


def test_bags_are_weighed_by_tfidf(positions):
    found = positions["O0"]
    vocabulary = choose_words([[found]], 10**6)
    inputs = look_up(found, vocabulary)
    g = GROUPS.index("name")
    rows = inputs.bags[g :: len(GROUPS)]
    counts = found.bags[:, g * DIMENSIONS : (g + 1) * DIMENSIONS]
    for f in range(counts.shape[0]):
        row = vocabulary.row(counts[f].indices + WORD_KINDS.index("name") * DIMENSIONS)
        weight = (1 + np.log(counts[f].data)) * vocabulary.idf[
            np.minimum(row, len(vocabulary.words))
        ]
        expected = np.zeros(vocabulary.rows)
        np.add.at(expected, row, weight / max(np.linalg.norm(weight), 1e-9))
        assert np.allclose(rows[f].toarray()[0], expected, atol=1e-6)


def test_a_sketch_keeps_cosines_of_exact_words(positions):
    """Also of words that are not in the vocabulary."""
    found = positions["O2"]
    empty = Vocabulary(np.zeros(0, np.int32), np.ones(1, np.float32))
    inputs = look_up(found, empty)
    read = NAMES & ~AROUND
    group = GROUPS.index("name")
    counts = found.bags[:, group * DIMENSIONS : (group + 1) * DIMENSIONS]
    weighed = counts.toarray()[:, np.unique(counts.indices)]
    weighed = np.where(weighed > 0, 1 + np.log(np.maximum(weighed, 1)), 0)
    weighed /= np.maximum(np.linalg.norm(weighed, axis=1, keepdims=True), 1e-9)
    expected = weighed @ weighed.T
    vectors = sketch(inputs, read)
    named = expected.diagonal() > 0
    assert named.any()
    assert not named.all()
    assert not vectors[~named].any()
    error = (vectors @ vectors.T - expected)[np.ix_(named, named)]
    assert np.abs(error).max() < 6 / SKETCH**0.5  # standard deviations
    assert np.abs(error).mean() < 1 / SKETCH**0.5
    assert np.array_equal(sketch(inputs.only(np.arange(5)), read), vectors[:5])


def test_signs_are_fair_and_stay_the_same():
    found = signs(np.arange(1000))
    assert set(np.unique(found)) == {-1.0, 1.0}
    assert abs(found.mean()) < 6 / found.size**0.5
    # The first output of splitmix64 from 0 is 0xE220A8397B1DCDAF; its lowest byte comes first.
    first = np.unpackbits(np.array([0xAF, 0xCD, 0x1D, 0x7B, 0x39, 0xA8, 0x20, 0xE2], np.uint8))
    assert np.array_equal(found[0, :64] > 0, first.astype(bool))


@pytest.mark.parametrize("sharper", [1, 200])  # exp of the larger scores would overflow
def test_numpy_computes_what_torch_does(data, small, corpus, codes, tmp_path, sharper):
    torch.manual_seed(1)
    words = np.sort(np.unique(_numbers(corpus.positions.bags.indices)))[::2].astype(np.int32)
    vocabulary = Vocabulary(words, np.ones(len(words) + 1, np.float32))
    network = Network(small, vocabulary.rows).eval()
    for name, value in network.named_parameters():
        if not name.startswith("transformer.embed.words"):
            value.data += 0.2 * torch.randn_like(value)
        if "proj_q" in name:
            value.data *= sharper
        value.data = value.data.half().float()
    state = {name: value.numpy() for name, value in network.state_dict().items()}
    write_encoder(state, vocabulary, small.n_heads, HOW, tmp_path / "e", {})
    encoder = read_encoder(tmp_path / "e")
    positions = read_positions(codes["O3-noplt"])
    inputs = look_up(positions, vocabulary)
    functions = np.arange(len(positions.offsets) - 1)
    found = {}
    for names in (True, False):
        for around in (True, False):
            with torch.inference_mode():
                expected = network(inputs, functions, View(names, around)).numpy()
            vectors = encoder(codes["O3-noplt"], names, around)
            assert np.allclose(vectors, expected, atol=1e-3)
            assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
            found[names, around] = vectors
    some = np.array([3, 0, len(functions) - 1])
    alone = encoder(codes["O3-noplt"], functions=some)
    assert np.allclose(alone, found[True, True][some], atol=1e-5)
    assert not np.allclose(found[True, True], found[False, True], atol=1e-2)
    assert not np.allclose(found[True, True], found[True, False], atol=1e-2)


def test_without_names_no_name_is_read(codes, small, tmp_path):
    """Other imports and strings give the same vectors then."""
    torch.manual_seed(2)
    words = np.arange(0, len(WORD_KINDS) * DIMENSIONS, 97, dtype=np.int32)
    vocabulary = Vocabulary(words, np.ones(len(words) + 1, np.float32))
    network = Network(small, vocabulary.rows)
    torch.nn.init.normal_(network.out.weight)
    state = {name: value.numpy() for name, value in network.state_dict().items()}
    write_encoder(state, vocabulary, small.n_heads, HOW, tmp_path / "e", {})
    encoder = read_encoder(tmp_path / "e")
    code = codes["O1"]
    others = {name: m[:, ::-1] if name.startswith("name") else m for name, m in code.words.items()}
    blocks = {**code.block_words, "name": code.block_words["name"][:, ::-1].tocsr()}
    other = dataclasses.replace(code, words=others, block_words=blocks)
    assert np.array_equal(encoder(code, names=False), encoder(other, names=False))
    assert not np.allclose(encoder(code), encoder(other), atol=1e-2)


def test_twins_are_the_same_by_symbols_and_need_none(corpus):
    a, b = corpus.builds[0], corpus.builds[2]
    twins = {tuple(pair) for pair in corpus.twins(a, b).tolist()}
    assert len(twins) >= 3
    same = {tuple(pair) for pair in corpus.same(a, b).tolist()}
    named = {pair for pair in twins if corpus.name[pair[0]] and corpus.name[pair[1]]}
    assert named <= same
    nameless = dataclasses.replace(corpus, name=[""] * len(corpus.name))
    assert {tuple(pair) for pair in nameless.twins(a, b).tolist()} == twins
    assert not len(nameless.same(a, b))


def test_rows_without_a_partner_are_of_the_same_builds(data):
    for step in range(5):
        rows = draw(data, Same, 24, np.random.default_rng(step))
        both = rows[(rows >= 0).all(1)]
        assert len(both)
        label = data.corpus.label[both]
        assert (label[:, 0] == label[:, 1]).all()
        for side in (0, 1):
            assert len(np.unique(rows[rows[:, side] >= 0, side])) == (rows[:, side] >= 0).sum()
        assert (rows >= -1).all()
        assert (rows >= 0).any(1).all()


@pytest.mark.parametrize("key", sorted(OBJECTIVES))
def test_objectives_are_learned(data, small, key):
    """A few steps on one batch lower its loss, and every trained part has a gradient."""
    torch.manual_seed(0)
    small = dataclasses.replace(small, p_drop_hidden=0.0)
    network = Network(small, choose_words([[data.corpus.positions]], 4000).rows)
    objective = OBJECTIVES[key]
    rows = draw(data, objective, 24, np.random.default_rng(0))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        loss = objective.loss(network, data, rows, View())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.98 * np.mean(losses[:3])
    assert network.table.grad is not None
    assert all(p.grad.any() for p in network.transformer.blocks.parameters())


def test_a_stage_may_learn_from_few_packages(corpus):
    builds = [
        dataclasses.replace(build, package=package, build=f"{package}-{i}")
        for i, build in enumerate(corpus.builds[:2])
        for package in ("sed", "gzip", "zlib", "less")
        if package != "less" or i == 0  # a package in one build only does not count
    ]
    several = dataclasses.replace(corpus, builds=builds)
    all_of_them = programs_of(several)
    assert len(all_of_them) == 3
    few = programs_of(several, packages=2)
    assert len(few) == 2
    assert all(program in all_of_them for program in few)


def test_names_of_builds_say_the_package():
    assert package_of("libtasn1-6-bookworm-O2") == "libtasn1-6"
    assert package_of("libpng1.6-bookworm-clang-O0") == "libpng1.6"
    assert package_of("coreutils-8.30-O2") == "coreutils"


def test_what_is_set_aside_for_the_test_is_never_read(tmp_path):
    for folder in (f"{TEST[0]}-bookworm-O0", "sed-bookworm-O0", "sed-bookworm-O2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "program").write_text(folder)
    files = find_files([str(tmp_path)])
    assert [package for package, _ in files] == ["sed", "sed"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(utils.UserError, match="no builds under"):
        find_files([str(tmp_path / "empty")])
    with pytest.raises(utils.UserError, match=r"^--path .*/none: there is no such folder"):
        find_files([str(tmp_path), str(tmp_path / "none")])


def test_parts_of_the_packages_share_no_package_but_those_for_validation():
    files = [(package, f"{package}-{i}") for package in (*RECIPES, "mine") for i in (1, 2)]
    parts = [take_part(files, k, 2) for k in (1, 2)]
    learned = [{package for package, _ in part} - {*VALIDATION} for part in parts]
    assert not learned[0] & learned[1]
    assert learned[0] | learned[1] == {*RECIPES, "mine"} - {*VALIDATION}
    assert abs(len(learned[0]) - len(learned[1])) <= 1
    for part in parts:
        assert [file for file in files if file[0] in VALIDATION] == [
            file for file in part if file[0] in VALIDATION
        ]
    assert take_part(files, 1, 1) == files
    with pytest.raises(utils.UsageError, match="--part 3/2"):
        encoder_train.main(path="none", part="3/2")


def test_builds_that_only_choose_are_not_enough(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(encoder_train, "analyse_files", lambda files, *_: (files, {}))
    (tmp_path / "builds" / f"{VALIDATION[0]}-1.0-O0").mkdir(parents=True)
    (tmp_path / "builds" / f"{VALIDATION[0]}-1.0-O0" / "program").write_text("x")
    settings = str(ROOT / "config" / "encoder.json")
    with pytest.raises(utils.UserError, match=f"builds has builds of {VALIDATION[0]} only, which"):
        encoder_train.main(path="builds", train_cfg=settings, to="to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("pairs", [0, 1])
def test_without_pairs_for_validation_nothing_is_measured(monkeypatch, capsys, pairs):
    judge = SimpleNamespace(pairs=np.zeros((pairs, 2)))
    for name, made in (("choose_words", 0), ("by_package", 0), ("look_up", 0), ("Judge", judge)):
        monkeypatch.setattr(encoder_train, name, lambda *_, made=made: made)
    monkeypatch.setattr(encoder_train, "programs_of", lambda _: [["a", "b"]])
    cfg, corpus = SimpleNamespace(words=1), SimpleNamespace(positions=None)
    assert encoder_train.prepare(cfg, corpus, corpus).judge is (judge if pairs else None)
    assert ("will be guesses" in capsys.readouterr().out) == (not pairs)


def test_the_command_trains_and_goes_on(builds, corpus, small, tmp_path, monkeypatch, capfd):
    """All stages, from cached analyses; the same again gives the same bytes."""
    monkeypatch.chdir(tmp_path)
    for build in ("O0", "O1", "O2"):
        (tmp_path / f"b/shapes-1.0-{build}").mkdir(parents=True)
        shutil.copy(builds / build / "shapes", tmp_path / f"b/shapes-1.0-{build}")
    (tmp_path / f"b/{VALIDATION[0]}-bookworm-O0").mkdir()
    (tmp_path / f"b/{VALIDATION[0]}-bookworm-O3").mkdir()
    for level, build in (("O0", "O0"), ("O3", "O3-noplt")):
        shutil.copy(builds / build / "shapes", tmp_path / f"b/{VALIDATION[0]}-bookworm-{level}")
    stage = dict(seed=0, batch_size=16, lr=1e-3, words_lr=1e-3, n_epochs=99, warmup=0.5)
    stage |= dict(save_steps=4, total_steps=4)
    stages = [
        stage | dict(name="bag", objectives={"same": 1.0}, transformer=False),
        stage | dict(name="before", objectives={"masked": 1.0, "twins": 1.0}),
        stage | dict(name="same", objectives={"same": 1.0}),
    ]
    cfg = dict(words=500, model=dataclasses.asdict(small), stages=stages)
    Path("cfg.json").write_text(json.dumps(cfg))
    how = dict(path="b", train_cfg="cfg.json", outputDir=str(corpus.output), workers=1)
    for save_dir, to in (("one", "a"), ("one", "b.again"), ("two", "c")):
        assert encoder_train.main(**how, save_dir=save_dir, to=to) == 0
    said = capfd.readouterr().out
    assert said.count("is finished; --resume False") == 3
    assert Path("a").read_bytes() == Path("b.again").read_bytes() == Path("c").read_bytes()
    with safe_open("a", "np") as file:
        card = json.loads(file.metadata()["card"])
    assert card["packages"] == "shapes"  # not what is set aside
    assert card["builds"] == "3"
    assert "recall_all" in card["validation"]
    assert read_encoder("a").calibration.scale > 0


@pytest.fixture
def trained_rows(builds, corpus, small, tmp_path, monkeypatch):
    """Return a function that packs builds, trains rows, and returns the folder of their models."""
    for build in ("O0", "O1", "O2"):
        (tmp_path / f"b/shapes-1.0-{build}").mkdir(parents=True)
        shutil.copy(builds / build / "shapes", tmp_path / f"b/shapes-1.0-{build}")
    for level, build in (("O0", "O0"), ("O3", "O3-noplt")):
        (tmp_path / f"b/{VALIDATION[0]}-bookworm-{level}").mkdir()
        shutil.copy(builds / build / "shapes", tmp_path / f"b/{VALIDATION[0]}-bookworm-{level}")
    stage = dict(seed=0, batch_size=16, lr=1e-3, words_lr=1e-3, n_epochs=99, warmup=0.5)
    stage |= dict(name="same", save_steps=4, total_steps=4, objectives={"same": 1.0})
    cfg = dict(words=500, model=dataclasses.asdict(small), stages=[stage])
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    monkeypatch.chdir(tmp_path)
    encoder_rows.pack("b", str(corpus.output))

    def train(how: str, rows: str):
        command = [sys.executable, ROOT / "bench/encoder_rows.py", "train", *how.split()]
        # A fork of this process could hang: torch has started threads.
        subprocess.run([*command, "--train_cfg", "cfg.json", "--rows", rows], check=True)
        encoder_rows.unpack(to="models")
        return tmp_path / "models"

    return train


def test_rows_are_packed_and_trained_at_once(trained_rows):
    """Both seeds of a row have the same number of steps, and other weights."""
    models = trained_rows("--minutes 0.01", "few-labels-long half-1 no-neutral")
    names = [f"{row}-seed0" for row in ("few-labels-long", "no-neutral", "half-1")]
    names.insert(1, "few-labels-long-seed1")
    found = [read_encoder(models / f"{name}.safetensors").identity for name in names]
    assert len({*found[:3]}) == 3
    assert found[3] == found[0]  # as there is one package only
    said = [(models / f"{name}.txt").read_text() for name in names[:2]]
    assert all("stages of [8, 8] steps" in text for text in said)
    assert all("recall_body" in text for text in said)


def test_a_row_continues_another(trained_rows):
    """With --steps, stages that two rows share are trained once."""
    models = trained_rows("--steps 2 --at_once 6", "pretrained-longer-few-labels pretrained-only")
    for seed in range(3):
        said = (models / f"pretrained-longer-few-labels-seed{seed}.txt").read_text()
        assert f"gpu/work/pretrained-only-seed{seed}/0-0 is finished" in said


def test_unknown_objectives_are_refused():
    with pytest.raises(ValueError, match="'objectives' must be some of"):
        Stage(
            name="x",
            objectives={"guess": 1.0},
            seed=0,
            batch_size=1,
            lr=1.0,
            words_lr=1.0,
            n_epochs=1,
            warmup=0.0,
            save_steps=1,
            total_steps=1,
        )


@pytest.mark.parametrize("damage", ["none", "noise", "nan", "order", "shape", "missing"])
def test_a_damaged_file_is_named(small, tmp_path, damage):
    vocabulary = Vocabulary(np.array([3, 5, 9], np.int32), np.ones(4, np.float32))
    network = Network(small, vocabulary.rows)
    state = {name: value.numpy().copy() for name, value in network.state_dict().items()}
    if damage == "nan":
        state["gain"][0, 0] = np.nan
    if damage == "order":
        vocabulary.words[:] = [5, 3, 9]
    if damage == "shape":
        state["out.weight"] = state["out.weight"][:-1]
    file = tmp_path / "e"
    if damage != "missing":
        write_encoder(state, vocabulary, small.n_heads, HOW, file, {"what": "a test"})
    if damage == "noise":
        file.write_bytes(b"\x10" + bytes(50))
    if damage == "none":
        assert read_encoder(file).identity == read_encoder(file).identity
        assert len(read_encoder(file).identity) == 16
    else:
        with pytest.raises(utils.UserError, match=str(file)):
            read_encoder(file)


def test_numpy_alone_is_imported():
    code = "import sys, encoder.encoder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
