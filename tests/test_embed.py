"""embed.py: vectors against the cosines they stand for, the file, the search, the map."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import embed
from binary.cache import SKIPPED
from features.extract import GROUPS, extract_features
from features.tfidf import weigh
from utils import UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def made(builds, tmp_path_factory):
    """A folder in which embed.py has run, and the binaries given to it."""
    cwd = tmp_path_factory.mktemp("embedded")
    files = [str(builds / build / "shapes") for build in ("O0", "O1", "O2")]
    run = subprocess.run(
        [sys.executable, str(ROOT / "embed.py"), *files, "--plot", "map.png", "--workers", "2"],
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return cwd, files


def test_products_are_near_the_mean_cosine(analyses):
    codes = tuple(extract_features(analyses[build]) for build in ("O0", "O2"))
    vectors = embed.embed(codes, 4096, 0)
    n = codes[0].functions
    total = np.zeros((n, codes[1].functions))
    used = [np.zeros(code.functions) for code in codes]
    for group in GROUPS:
        a, b = weigh(*(code.words[group] for code in codes))
        total += (a @ b.T).toarray()
        used[0] += np.diff(a.indptr) > 0
        used[1] += np.diff(b.indptr) > 0
    expected = total / np.sqrt(np.outer(*used))
    assert np.abs(vectors[:n] @ vectors[n:].T - expected).max() < 0.12
    assert np.corrcoef((vectors[:n] @ vectors[n:].T).ravel(), expected.ravel())[0, 1] > 0.98


def test_file_is_read_without_pickle(made):
    cwd, files = made
    with np.load(cwd / "embeddings.npz", allow_pickle=False) as arrays:
        assert set(arrays["file"].tolist()) == set(files)
        assert arrays["vector"].dtype == np.float32
        assert np.allclose(np.linalg.norm(arrays["vector"], axis=1), 1, atol=1e-5)
        assert {"main", "area"} <= set(arrays["name"].tolist())
        assert len(arrays["address"]) == len(arrays["vector"])


def test_wrong_outputs(tmp_path):
    (tmp_path / "a").write_text("a binary")
    for flags, reason in [
        ({"to": tmp_path / "a"}, "--to .* would replace .*, which is read"),
        ({"to": tmp_path}, "this is a folder"),
        ({"plot": tmp_path / "map.exe"}, r"--plot .*map\.exe: use a name that ends in \.png"),
        ({"plot": tmp_path / "map"}, "use a name that ends in"),
        ({"plot": tmp_path / "x.png", "to": tmp_path / "x.png"}, "--to and --plot would both"),
    ]:
        flags = {name: str(path) for name, path in flags.items()}
        with pytest.raises(UserError, match=reason):
            embed.main(str(tmp_path / "a"), outputDir=str(tmp_path / "o"), **flags)
    assert (tmp_path / "a").read_text() == "a binary"
    assert not (tmp_path / "o").exists()


def test_map_is_a_picture(made):
    assert (made[0] / "map.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_search_finds_the_other_builds(made, capsys):
    cwd, files = made
    embed.search("kind", str(cwd / "embeddings.npz"), files[0], 2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert {line.split()[1] for line in lines} == set(files[1:])
    assert all(line.endswith(" kind") for line in lines)


def test_search_of_what_is_there_thrice_or_never(made, tmp_path):
    file = str(made[0] / "embeddings.npz")
    with pytest.raises(UserError, match=r"^3 functions"):
        embed.search("main", file)
    with pytest.raises(UserError, match=re.escape("0 functions")):
        embed.search("0x7", file)
    (tmp_path / "x.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"the table of vectors .*x\.npz is damaged"):
        embed.search("main", str(tmp_path / "x.npz"))


def test_a_bad_file_costs_itself_only(made, tmp_path, capsys):
    cwd, files = made
    given = [files[0], str(tmp_path / "none"), files[1], files[0]]
    code = embed.main(*given, to=str(tmp_path / "x.npz"), outputDir=str(cwd / "output"))
    assert code == SKIPPED
    assert "none: No such file" in capsys.readouterr().err
    with np.load(tmp_path / "x.npz") as arrays, np.load(cwd / "embeddings.npz") as all_three:
        assert set(arrays["file"].tolist()) == {files[0], files[1]}
        kept = np.isin(all_three["file"], files[:2])
        assert arrays["name"].tolist() == all_three["name"][kept].tolist()
    with pytest.raises(UserError, match=r"cannot read .*none: No such file"):
        embed.main(given[1], to=str(tmp_path / "y.npz"), outputDir=str(cwd / "output"))
    assert not (tmp_path / "y.npz").exists()
