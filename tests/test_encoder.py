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
from conftest import ROOT, typed
from safetensors import safe_open

import classify
import dataprocess
import pretrain
import utils
from binary.analysis import load_analysis
from encoder import collect, objectives
from encoder import corpus as corpora
from encoder import train as encoder_train
from encoder.calibration import Calibration
from encoder.corpus import read_functions
from encoder.encoder import read_encoder
from encoder.file import write_encoder
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
from encoder.objectives import OBJECTIVES, Data, Same
from encoder.train import Config, Stage, programs_of
from experiment_data.recipes import RECIPES, package_of
from features.operations import operations
from features.positions import read_positions
from features.tfidf import DIMENSIONS
from features.words import LONGEST, WORD_KINDS
from pairs.binaries import binaries_of, read_pairs
from pairs.folder import read_info
from pairs.walks import load_walks

SPARSE = ("of_line", "names", "bags")
HOW = Calibration(scale=20.0, none=0.8)


@pytest.fixture(scope="module")
def positions(codes):
    return {build: read_positions(code) for build, code in codes.items()}


@pytest.fixture(scope="module")
def functions_file(paired, tmp_path_factory):
    """What `dataprocess.py functions` writes, and what it says."""
    return made_of(paired, tmp_path_factory.mktemp("functions") / "functions.npz")


def made_of(paired, to, workers=1) -> Path:
    where = ("--data", paired / "data", "--outputDir", paired / "output", "--to", to)
    assert typed(dataprocess.functions, *where, "--workers", workers, "--words", 4000) == 0
    return to


@pytest.fixture(scope="module")
def functions(functions_file):
    return read_functions(functions_file)


@pytest.fixture(scope="module")
def corpus(functions):
    """The builds of one package, with symbols, and a stripped one."""
    return functions.split("train")


@pytest.fixture(scope="module")
def small():
    cfg = utils.read_config(Config, ROOT / "config/encoder.json")
    return dataclasses.replace(cfg.model, dim=32, n_heads=2, dim_ff=48)


@pytest.fixture(scope="module")
def data(corpus, functions):
    return Data(corpus, look_up(corpus.positions, functions.vocabulary), programs_of(corpus))


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
        rows = Same.draw(data, 24, np.random.default_rng(step))
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
    network = Network(small, data.inputs.bags.shape[1])
    objective = OBJECTIVES[key]
    rows = objective.draw(data, 24, np.random.default_rng(0))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = objective.loss(network, data, rows, View())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-6:]) < 0.98 * np.mean(losses[:6])
    assert network.table.grad is not None
    assert all(p.grad.any() for p in network.transformer.blocks.parameters())


def test_without_symbols_nothing_is_the_same(data):
    bare = dataclasses.replace(data.corpus, name=[""] * len(data.corpus.name))
    with pytest.raises(utils.UserError, match="give builds with symbols"):
        Same.draw(data._replace(corpus=bare), 24, np.random.default_rng(0))


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


def pair(number, program, split, *builds):
    """What `take_part` and `binaries_of` read of a pair."""
    return SimpleNamespace(
        pair=number,
        program=program,
        split=split,
        binaries=[SimpleNamespace(build=build, sha256=sha256) for build, sha256 in builds],
        analyses=[f"{sha256}.npz" for _, sha256 in builds],
    )


def test_what_is_set_aside_for_the_test_is_never_read(tmp_path, monkeypatch):
    sed, other = ("sed-bookworm-O0", "a"), ("sed-bookworm-O2", "b")
    again = ("sed-bullseye-O2", "b")
    pairs = [
        pair(0, "x", "validation", ("expat-2-O0", "e"), ("expat-2-O1", "f")),
        pair(1, "p", "test", ("tiff-4-O0", "c"), ("tiff-4-O1", "d")),
        pair(2, "sed", "train", sed, other),
        pair(3, "sed", "train", sed, again),
    ]
    for name in "abef":  # not those of the test
        (tmp_path / f"{name}.npz").touch()
    monkeypatch.setattr("pairs.binaries.find_pairs", lambda data: (pairs, []))
    monkeypatch.setattr("pairs.binaries.read_info", lambda pair: pair)
    pairs = read_pairs("data", "train", "validation")
    found = binaries_of(pairs, tmp_path)
    assert [(b.program, b.sha256) for b in found] == [
        ("sed", "a"), ("sed", "b"), ("x", "e"), ("x", "f")
    ]  # fmt: skip
    assert found == binaries_of(pairs[::-1], tmp_path)
    assert [b.package for b in found] == ["sed", "sed", "expat", "expat"]


def test_parts_of_the_packages_share_no_package_but_those_for_validation():
    pairs = [
        pair(i, package, "train", (f"{package}-9-O0", "a"), (f"{package}-9-O1", "b"))
        for i, package in enumerate([*RECIPES, "mine"])
    ]
    pairs.append(pair(len(pairs), "x", "validation", ("expat-2-O0", "e"), ("expat-2-O1", "f")))
    parts = [{p.pair for p in collect.take_part(pairs, k, 2)} for k in (1, 2)]
    assert parts[0] & parts[1] == {len(pairs) - 1}
    assert parts[0] | parts[1] == {p.pair for p in pairs}
    packages = [{pairs[i].binaries[0].build for i in part - {len(pairs) - 1}} for part in parts]
    packages = [{package_of(build) for build in part} for part in packages]
    assert not packages[0] & packages[1]
    assert abs(len(packages[0]) - len(packages[1])) <= 1
    assert collect.take_part(pairs, 1, 1) == pairs


def test_the_file_holds_the_functions_of_each_split(functions, corpus, codes, paired, tmp_path):
    held = functions.split("validation")
    assert {build.program for build in corpus.builds} == {"shapes"}
    assert [build.build for build in held.builds] == ["expat-bookworm-O0", "expat-bookworm-O3"]
    for part, build, name in ((corpus, corpus.builds[0], "O0"), (held, held.builds[1], "O3-noplt")):
        alone = read_positions(codes[name])
        assert build.last - build.first == codes[name].functions
        at = slice(part.positions.offsets[build.first], part.positions.offsets[build.last])
        assert (
            part.positions.of_line[part.positions.line[at]] != alone.of_line[alone.line]
        ).nnz == 0
        assert (part.positions.names[at] != alone.names).nnz == 0
        assert (part.positions.bags[build.first : build.last] != alone.bags).nnz == 0
    again = made_of(paired, tmp_path / "again.npz", workers=2).read_bytes()
    assert again == made_of(paired, tmp_path / "once.npz").read_bytes()


def test_walks_cross_between_builds(corpus, functions, paired):
    """Their positions are those of the blocks that gendata.py walked."""
    walks = corpus.walks
    assert len(walks) == len(functions.corpus.walks)  # those for validation are not read
    owner = np.searchsorted(corpus.first_block, walks.block, side="right") - 1
    for walk in range(len(walks)):
        builds = np.unique(owner[walks.offsets[walk] : walks.offsets[walk + 1]])
        assert len(builds) == 2
        at = walks.positions(walk, corpus.first_block, walk, 20)
        assert len(at) <= 20
        inside = np.searchsorted(corpus.positions.offsets, at, side="right") - 1  # functions
        ends = [build.last for build in corpus.builds]
        assert {*np.searchsorted(ends, inside, side="right")} <= {*builds.tolist()}
    # A block of the first pair is where its analysis says.
    info = read_info(paired / "data" / "0")
    block, _ = load_walks(paired / "data/0/walks.npz")
    analyses = [load_analysis(paired / "output" / name) for name in info.analyses]
    assert block.max() < sum(analysis.blocks for analysis in analyses)
    build = corpus.builds[0]
    for own in range(analyses[0].code_blocks):
        begin, size = (x[build.first_block + own] for x in (walks.begin, walks.size))
        function = build.first + analyses[0].function[own]
        first, last = corpus.positions.offsets[function : function + 2]
        assert size == 0 or first <= begin <= begin + size <= last


def test_a_part_of_the_corpus_keeps_walks_between_its_builds(corpus):
    part = corpus.only(corpus.builds[1:3])
    assert 0 < len(part.walks) < len(corpus.walks)
    assert part.name == corpus.name[corpus.builds[1].first : corpus.builds[2].last]
    met = set()
    for whole in (corpus, part):
        walks = whole.walks
        for walk in range(len(walks)):
            at = walks.positions(walk, whole.first_block, 0, 999)
            lines = tuple(whole.positions.line[at].tolist())
            met.add(lines) if whole is corpus else None
            assert lines in met


@pytest.mark.parametrize("held", [False, True])
def test_without_pairs_for_validation_nothing_is_measured(functions, capsys, held):
    builds = [b for b in functions.corpus.builds if held or b.split == "train"]
    only = dataclasses.replace(functions, corpus=functions.corpus.only(builds))
    # All of the program for validation is in training, too, so nothing is left to measure.
    assert encoder_train.prepare(only).judge is None
    assert "will be guesses" in capsys.readouterr().out
    with pytest.raises(utils.UserError, match="no program has two builds"):
        encoder_train.prepare(
            dataclasses.replace(functions, corpus=functions.corpus.only(builds[:1]))
        )


def test_the_commands_train_and_go_on(functions_file, small, tmp_path, monkeypatch, capfd):
    """Pre-training and fine-tuning; the same again gives the same bytes."""
    monkeypatch.chdir(tmp_path)
    number_contents(monkeypatch)
    stage = dict(seed=0, batch_size=16, lr=1e-3, words_lr=1e-3, n_epochs=99, warmup=0.5)
    stage |= dict(save_steps=4, total_steps=4)
    before = dict(name="before", objectives={"masked": 1.0, "walks": 1.0, "twins": 1.0})
    stages = [
        stage | dict(name="bag", objectives={"same": 1.0}, transformer=False),
        stage | dict(name="same", objectives={"same": 1.0}),
    ]
    cfg = dict(model=dataclasses.asdict(small), pretraining=[stage | before], fine_tuning=stages)
    Path("cfg.json").write_text(json.dumps(cfg))
    how = dict(data_file=str(functions_file), train_cfg="cfg.json")
    pretrained = "pre 1/0-before/model_steps_4.pt"
    assert not pretrain.functions(**how, save_dir="pre 1")
    for save_dir, to in (("one", "a"), ("one", "b.again"), ("two", "c")):
        classify.functions(pretrained, **how, save_dir=save_dir, to=to)
    said = capfd.readouterr().out
    assert f"next: python classify.py functions --pretrain_file '{pretrained}'" in said
    assert said.count("is finished; --resume False") == 2
    assert Path("a").read_bytes() == Path("b.again").read_bytes() == Path("c").read_bytes()
    with safe_open("a", "np") as file:
        card = json.loads(file.metadata()["card"])
    assert card["packages"] == "shapes"  # not what is set aside
    assert card["builds"] == "5"
    assert "recall_all" in card["validation"]
    classify.functions(**how, save_dir="three", to="d")
    assert read_encoder("d").identity != read_encoder("a").identity

    Path("cfg.json").write_text(json.dumps(cfg | {"model": cfg["model"] | {"n_layers": 1}}))
    with pytest.raises(utils.UserError, match="has other sizes than 'model' in the settings"):
        classify.functions(pretrained, **how, save_dir="four", to="e")
    with pytest.raises(utils.UserError, match=r"pretrain.py functions` writes one"):
        classify.functions("none.pt", **how, save_dir="four", to="e")
    assert not Path("e").exists()


def test_pretraining_refuses_what_needs_symbols(small):
    stage = dict(name="s", objectives={"same": 1.0}, seed=0, batch_size=16, lr=1e-3, words_lr=1e-3)
    stage |= dict(n_epochs=9, warmup=0.5, save_steps=4, total_steps=4)
    with pytest.raises(ValueError, match="'same', which needs symbols"):
        Config(model=small, pretraining=[Stage(**stage)], fine_tuning=[Stage(**stage)])


@pytest.fixture
def trained_rows(functions_file, small, tmp_path, monkeypatch):
    """Return a function that trains rows and returns the folder of their models."""
    stage = dict(seed=0, batch_size=16, lr=1e-3, words_lr=1e-3, n_epochs=99, warmup=0.5)
    stage |= dict(name="same", save_steps=4, total_steps=4, objectives={"same": 1.0})
    before = stage | dict(objectives={"masked": 1.0})
    cfg = dict(model=dataclasses.asdict(small), pretraining=[before], fine_tuning=[stage])
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    monkeypatch.chdir(tmp_path)

    def train(how: str, rows: str):
        command = [sys.executable, ROOT / "bench/encoder_rows.py", "train", *how.split()]
        command += ["--data_file", functions_file]
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
            batch_size=4,
            lr=1.0,
            words_lr=1.0,
            n_epochs=1,
            warmup=0.0,
            save_steps=1,
            total_steps=1,
        )


@pytest.mark.parametrize(
    ("name", "edit", "why"),
    [
        ("begin", lambda x: np.append(x[:-1], 2**31 - 1), "a block ends after the last"),
        ("size", lambda x: np.append(x[:-1], 2**31 - 1), "a block ends after the last"),
        ("offsets", lambda x: np.append(x[:1], np.full(len(x) - 1, x[-1])), "more than 256"),
        ("words", lambda x: x[::-1], "'words' is not sorted"),
        ("bags word", lambda x: x[::-1], "'bags word' is not sorted"),
        ("bags count", lambda x: 0 * x, "'bags count' holds 0.0"),
        ("blocks", lambda x: -x, "'blocks' holds -"),
        ("idf", lambda x: x * 1e30, "'idf' holds .*more than 10000"),
        ("analysis_offsets", lambda x: x[:1], "'analysis_offsets' has the shape"),
        ("split", lambda x: x[::-1], "neither for training nor for validation"),
    ],
)
def test_a_damaged_file_of_functions_is_refused(functions_file, tmp_path, name, edit, why):
    """Damage that the arrays' shapes do not tell."""
    with np.load(functions_file) as file:
        arrays = dict(file)
    edited = np.ascontiguousarray(edit(arrays[name])).astype(arrays[name].dtype)
    np.savez_compressed(tmp_path / "f.npz", **arrays | {name: edited})
    with pytest.raises(utils.UserError, match=rf"f\.npz is damaged \(.*{why}.*make it with"):
        read_functions(tmp_path / "f.npz")


def test_parts_without_a_package_are_refused(paired, tmp_path, capsys):
    """There is one package to train on."""
    where = ("--data", paired / "data", "--to", tmp_path / "f.npz", "--outputDir")
    assert typed(dataprocess.functions, *where, paired / "output", "--part", "2/2") == 1
    assert "--part 2/2: " in (said := capsys.readouterr().err)
    assert "has too few packages" in said
    for part in ("2/1", "0/1", "x"):
        assert typed(dataprocess.functions, *where, paired / "output", "--part", part) == 2
        assert f"--part {part}: give the number of the part" in capsys.readouterr().err
    assert typed(dataprocess.functions, *where, tmp_path / "none") == 1
    assert "is missing; give gendata.py's outputDir" in capsys.readouterr().err
    assert not (tmp_path / "f.npz").exists()


def test_an_analysis_outside_of_the_folder_is_not_read(paired, tmp_path, capsys):
    """Not even if a pair.json says so."""
    shutil.copytree(paired / "data", tmp_path / "data")
    info = tmp_path / "data/0/pair.json"
    said = json.loads(info.read_text())
    said["analyses"][0] = f"../output/{said['analyses'][0]}"
    info.write_text(json.dumps(said))
    for copy in ("output/inside", "output/output"):
        without_words = shutil.ignore_patterns("positions")
        shutil.copytree(paired / "output", tmp_path / copy, ignore=without_words)
    where = ("--data", tmp_path / "data", "--outputDir", tmp_path / "output/inside")
    assert typed(dataprocess.functions, *where, "--to", tmp_path / "f.npz", "--workers", 1) == 0
    made = [path.name for path in (tmp_path / "output").glob("*/positions")]
    assert made == ["positions"]


@pytest.mark.parametrize("name", ["../x", "", "a/b", "\x1b[31m"])
def test_names_of_stages_stay_in_the_folder(name):
    with pytest.raises(ValueError, match="'name' must be 1 to 50 letters"):
        stage_of(name=name)


def test_batches_too_small_to_compare_are_refused():
    with pytest.raises(ValueError, match=r"batch_size(.|\n)*greater than or equal to 4"):
        stage_of(batch_size=3)


def test_settings_that_the_training_would_ignore_are_refused(small):
    with pytest.raises(ValueError, match=r"accumulate(.|\n)*Input should be 1"):
        stage_of(accumulate=2)
    learned = dataclasses.replace(small, positions="learned")
    before = stage_of(objectives={"masked": 1.0})
    with pytest.raises(ValueError, match=r"'model\.positions' must be"):
        Config(model=learned, pretraining=[before], fine_tuning=[stage_of()])
    assert Config(model=small, pretraining=[before], fine_tuning=[stage_of()])


def stage_of(**changes) -> Stage:
    values = dict(name="x", objectives={"same": 1.0}, seed=0, batch_size=4, lr=1.0, words_lr=1.0)
    values |= dict(n_epochs=1, warmup=0.0, save_steps=1, total_steps=1)
    return Stage(**values | changes)


def test_a_batch_without_masked_instructions_has_no_loss(data, small, monkeypatch):
    monkeypatch.setattr(objectives, "MASKED", 0.0)
    network = Network(small, data.inputs.bags.shape[1])
    for objective in (OBJECTIVES["masked"], OBJECTIVES["walks"]):
        rows = objective.draw(data, 4, np.random.default_rng(0))
        loss = objective.loss(network, data, rows, View())
        loss.backward()
        assert loss.item() == 0


def test_a_stage_never_takes_the_place_of_the_model_it_starts_from(
    functions_file, small, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    stage = dataclasses.asdict(stage_of())
    cfg = dict(model=dataclasses.asdict(small), fine_tuning=[stage])
    cfg["pretraining"] = [stage | {"objectives": {"twins": 1.0}}]
    Path("cfg.json").write_text(json.dumps(cfg))
    Path("out/0-x").mkdir(parents=True)
    Path("out/0-x/model_steps_1.pt").write_text("weights")
    how = dict(data_file=str(functions_file), train_cfg="cfg.json", save_dir="out", to="e")
    with pytest.raises(utils.UserError, match=r"--save_dir out/0-x would replace out/0-x/model"):
        classify.functions("out/0-x/model_steps_1.pt", **how, overwrite=True)
    assert Path("out/0-x/model_steps_1.pt").read_text() == "weights"
    Path("pre").mkdir()
    Path("pre/model_steps_1.pt").write_text("weights")
    how["data_file"] = "none"  # the model is looked at before the functions are read
    with pytest.raises(utils.UserError, match=r"pretrain.py functions` writes it beside"):
        classify.functions("pre/model_steps_1.pt", **how)


def test_one_process_trains(functions_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(utils.UserError, match="torchrun started 2 processes"):
        pretrain.functions(str(functions_file), str(ROOT / "config/encoder.json"))


def test_a_file_that_could_not_be_read_is_not_written(functions, monkeypatch, tmp_path):
    monkeypatch.setattr(corpora, "LARGEST", 1000)
    with pytest.raises(utils.UserError, match="can be read; give fewer builds"):
        corpora.write_functions(tmp_path / "functions.npz", functions)
    assert not (tmp_path / "functions.npz").exists()


def number_contents(monkeypatch):
    """Let no two functions have the same instructions.

    The programs of both splits are the same here, so all would be left out of the measures.
    """
    monkeypatch.setattr(
        corpora,
        "_digests",
        lambda positions: np.arange(n := len(positions.offsets))[1:] + 1000 * n,
    )


def test_few_pairs_for_validation_are_reported(functions, monkeypatch, capsys):
    number_contents(monkeypatch)
    judge = encoder_train.prepare(functions).judge
    assert 0 < len(judge.pairs) <= 30
    assert f"there are {len(judge.pairs)} pairs of functions for validation; with" in (
        capsys.readouterr().out
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
