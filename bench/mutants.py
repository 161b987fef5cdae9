"""Damage files of all kinds that this project reads, to test the code that reads them.

A kind is a folder of good files, one of which is changed, and a function that reads them. Changes
follow the file's format: other types, shapes and values of arrays, other keys and values in JSON,
tensors that are not finite, missing or repeated lines. Files of any format may also get flipped
bits or another length. Reading must either succeed or fail with one sentence (`utils.UserError`).
tests/test_mutants.py, bench/stress.py and bench/broken_inputs.py use this.
"""

import dataclasses
import io
import json
import random
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import checkpoint
import models
import pretrain
import utils
from binary.analysis import Analysis, load_analysis, save_analysis
from binary.tokens import tokenise
from corpus.ids import read_corpus
from encoder import index
from encoder.calibration import Calibration
from encoder.encoder import read_encoder
from features.extract import Features, extract_features
from formats.huggingface import read_folder
from matching import model as matching_model
from matching.anchors import read_anchors
from matching.networks import MatchingConfig
from pairs.folder import FORMAT_VERSION, Build, Counts, PairInfo, WalkSettings
from pairs.text import read_binary, read_pair
from pairs.walks import save_walks
from tasks.catalogue import Samefunc
from tasks.tables import read_examples
from terminal.escape import printable
from tokenization import SPECIAL_TOKENS, CorpusTokenizer

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 2000  # maximum number of characters of an error message
WORDS = ["mov", "push", "call", "reg8", "imme", "##a", "a"]
SIZES = dict(dim=8, n_layers=1, n_heads=2, dim_ff=8, p_drop_hidden=0.1, p_drop_attn=0.1)
SIZES |= dict(max_len=12, n_segments=2, vocab_size=len(SPECIAL_TOKENS) + len(WORDS))
VALUES = (None, True, False, -1, 0, 1, 2**31, 10**30, 1e300, -0.5, float("nan"), float("inf"))
VALUES += ("", "x", "a\nb", "\x1b[31m", "../../x", "\ud800", [], {}, [[]], {"a": {}})
DTYPES = ("i1", "u1", "i2", "u2", "i4", "i8", "u8", ">i4", "f2", "f4", "f8", "?", "U3", "S3", "c8")
LINES = (b"", b" ", b"\t", b"\r", b"\0", b"\xff\xfe", b"\x1b[2J", "\u2028".encode(), b"x" * 70000)


# ------------------------------------------------------------------------------ changes of files


def change_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip bits, or truncate, remove, repeat or zero a part."""
    data = bytearray(content)
    how = rng.randrange(6)
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((1, 4, 64, 4096)))
    if how == 0:
        return bytes(data[:start])
    if how == 1:
        return bytes(data[:start] + data[end:])
    if how == 2:
        return bytes(data[:end] + data[start:])
    if how == 3:
        return bytes(data[:start] + bytes(end - start) + data[end:])
    for _ in range(rng.choice((1, 2, 16)) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def change_array(values: np.ndarray, rng: random.Random) -> np.ndarray:
    """Change the type, shape, length, order or numbers of an array."""
    how = rng.randrange(8)
    with np.errstate(all="ignore"):
        if how == 0:
            return values.astype(rng.choice(DTYPES), casting="unsafe")
        if how == 1:
            return rng.choice((values.reshape(-1), values[None], values[..., None], values.T))
        if how == 2:
            return values[: rng.randrange(len(values) + 1)] if values.ndim else values[None]
        if how == 3 and values.ndim and len(values):
            return np.concatenate([values, values[-rng.randrange(1, 4) :]])
        if how == 4 and values.ndim:
            return values[::-1]
        if not values.size or values.dtype.kind not in "iufb":
            return values
        values = np.array(values)
        odd = [0, 1, -1, 255, 2**31 - 1, -(2**31), 2**63 - 1, values.size, values.max(), 1e30]
        odd += [np.nan, np.inf] if values.dtype.kind == "f" else []
        place = rng.randrange(values.size) if how < 7 else slice(None)
        values.reshape(-1)[place] = np.array(rng.choice(odd)).astype(values.dtype)
        return values


def change_npz(content: bytes, rng: random.Random) -> bytes:
    """Change, remove, repeat or enlarge one array of an .npz; or change any bytes."""
    if rng.random() < 0.2:
        return change_bytes(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    at = rng.randrange(len(members))
    name, data = members[at]
    how = rng.random()
    if how < 0.7:
        values = change_array(np.load(io.BytesIO(data)), rng)
        out = io.BytesIO()
        np.save(out, values)
        members[at] = name, out.getvalue()
    elif how < 0.8:
        shape = rng.choice(("10000000000000", "-1", "1000000000, 1000000000", "0"))
        header = f"{{'descr': '<i4', 'fortran_order': False, 'shape': ({shape},), }}\n".encode()
        start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header))
        members[at] = name, start + header + data[-rng.randrange(1, 99) :]
    elif how < 0.9:
        del members[at]
    else:
        members.append((name, change_bytes(data, rng)))
    return zipped(members, zipfile.ZIP_DEFLATED)


def zipped(members: list[tuple[str, bytes]], method: int) -> bytes:
    """Return a zip file of these members; two may have the same name."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members:
            archive.fp.flush()
            entry = zipfile.ZipInfo(name)
            entry.compress_type = method
            archive.NameToInfo.pop(name, None)
            archive.writestr(entry, data)
    return out.getvalue()


def change_json(content: bytes, rng: random.Random) -> bytes:
    """Replace or remove a value of a JSON, repeat a key, nest brackets, or write a long number."""
    how = rng.random()
    if how < 0.15:
        return change_bytes(content, rng)
    said = json.loads(content)
    if how < 0.2:
        return rng.choice((b"[" * 100_000, b'{"a":' * 100_000, b"", b"null", b"[]", b'"x"'))
    holder, key = rng.choice(list(places(said)))
    if how < 0.3:
        holder[key] = "\0hole\0"
        hole = rng.choice(("9" * 5000, "1e999", "[" * 5000 + "]" * 5000, '{"a": 1, "a": 2}'))
        return json.dumps(said).replace(json.dumps("\0hole\0"), hole).encode()
    if how < 0.45:
        del holder[key]
    elif how < 0.55 and isinstance(holder, dict):
        holder["\0twice\0"] = holder[key]
        return json.dumps(said).replace(json.dumps("\0twice\0"), json.dumps(key)).encode()
    elif how < 0.65 and isinstance(holder, dict):
        holder[rng.choice(("", "x", "a\nb", f"{key}s"))] = holder.pop(key)
    else:
        holder[key] = rng.choice(VALUES)
    return json.dumps(said).encode()


def places(said: dict | list) -> list[tuple[dict | list, str | int]]:
    """Return container and key of each value, at any depth of dictionaries and lists."""
    found = []
    for key in list(said) if isinstance(said, dict) else range(len(said)):
        found.append((said, key))
        if isinstance(said[key], dict | list):
            found += places(said[key])
    return found


def change_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Change the header of a .safetensors, or a number."""
    if rng.random() < 0.2:
        return change_bytes(content, rng)
    (size,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + size], bytearray(content[8 + size :])
    if rng.random() < 0.5:
        header = change_json(header, rng)
    else:
        at = 4 * rng.randrange(len(data) // 4)
        odd = (np.nan, np.inf, -np.inf, 3e38, 0, -1)
        data[at : at + 4] = np.array([rng.choice(odd)], "f4").tobytes()
    length = rng.choice((len(header),) * 9 + (2**63, 0, len(header) + 1))
    return struct.pack("<Q", length) + header + bytes(data)


def change_pt(content: bytes, rng: random.Random) -> bytes:
    """Change a key, type, shape or number of a state dict; or bytes of one of the zip's members."""
    how = rng.random()
    if how < 0.2:
        return change_bytes(content, rng)
    if how < 0.5:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
        at = rng.randrange(len(members))
        members[at] = members[at][0], change_bytes(members[at][1], rng)
        return zipped(members, rng.choice((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED,)))
    content = torch.load(io.BytesIO(content), weights_only=True)
    state, key = rng.choice(places(content))
    value = state[key]
    if not isinstance(value, torch.Tensor):
        value = torch.tensor(0.5)
    odd = torch.tensor(rng.choice((float("nan"), float("inf"), 3e38)))
    state[key] = rng.choice(
        (
            value.half(),
            value.long(),
            value.to(torch.complex64),
            value.bool(),
            value.to_sparse(),
            value[None],
            value[:0] if value.ndim else value,
            value.flatten(),
            torch.where(torch.arange(value.numel()).reshape(value.shape) == 0, odd, value),
            torch.zeros(1).expand(10**6, 10**6),
            torch.empty(value.shape, device="meta"),
            "text",
            None,
            [value],
            {"a": value},
        )
    )
    if rng.random() < 0.3 and isinstance(state, dict):
        state[rng.choice((f"{key}.x", 5, "a\nb"))] = state.pop(key)
    out = io.BytesIO()
    torch.save(rng.choice((content,) * 9 + ([content],)), out)
    return out.getvalue()


def change_lines(content: bytes, rng: random.Random) -> bytes:
    """Remove, repeat, insert or damage a line of a text, or change all line ends."""
    if rng.random() < 0.2:
        return change_bytes(content, rng)
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    how = rng.randrange(6)
    if how == 0:
        del lines[at]
    elif how == 1:
        lines.insert(at, rng.choice(lines))
    elif how == 2:
        lines.insert(at, rng.choice(LINES))
    elif how == 3:
        cut = rng.randrange(len(lines[at]) + 1)
        lines[at] = lines[at][:cut] + rng.choice(LINES) + lines[at][cut:]
    elif how == 4:
        return content.replace(b"\n", rng.choice((b"\r\n", b"\r", b"", b"\n\n")))
    else:
        lines[at] = lines[at].replace(b"\t", b"", 1).replace(b"0x", b"0y", 1)
    return b"\n".join(lines)


def change_parquet(content: bytes, rng: random.Random) -> bytes:
    """Change a column of a Parquet file or its metadata; or any bytes."""
    if rng.random() < 0.3:
        return change_bytes(content, rng)
    table = pyarrow.parquet.read_table(io.BytesIO(content))
    about = dict(table.schema.metadata)
    name = rng.choice(table.column_names)
    place = table.column_names.index(name)
    how = rng.randrange(7)
    if how == 0:
        table = table.drop_columns([name])
    elif how == 1:
        table = table.slice(0, rng.randrange(len(table)))
    elif how == 2:
        column = rng.choice(
            (
                pa.array([None] * len(table), pa.int32()),
                pa.array(["x\n\x1b"] * len(table)),
                pa.array([-1] * len(table), pa.int64()),
                pa.array([[0.5]] * len(table), pa.list_(pa.float32())),
                pa.array([float("nan")] * len(table)),
            )
        )
        table = table.set_column(place, name, column)
    elif how == 3:
        table = table.set_column(place, rng.choice(("x", name)), table[rng.randrange(4)])
    else:
        key = rng.choice(list(about))
        about[key] = rng.choice((b"", b"\xff", b"2", b"x\ny"))
        if how == 5:
            del about[key]
    out = io.BytesIO()
    pyarrow.parquet.write_table(table.replace_schema_metadata(about), out)
    return out.getvalue()


# ------------------------------------------------------------------------------- kinds of files


@dataclasses.dataclass(frozen=True)
class Kind:
    """How to make good files, change one of them, and read them.

    Attributes
    ----------
    make : callable
        (folder, a small analysis) writes good files into the folder.
    changes : dict of str to callable
        Name of a file -> function that changes its content.
    read : callable
        (folder) reads all files as the scripts do.
    """

    make: Callable[[Path, Analysis], None]
    changes: dict[str, Callable[[bytes, random.Random], bytes]]
    read: Callable[[Path], object]


def make_analysis(folder: Path, analysis: Analysis) -> None:
    save_analysis(analysis, folder / "a.npz")


def use_analysis(folder: Path) -> None:
    """Read an analysis as dataprocess.py does, and as a comparison does."""
    read_binary.cache_clear()
    read_binary(folder / "a.npz")
    analysis = load_analysis(folder / "a.npz")
    tokenise(analysis)
    extract_features(analysis).places  # noqa: B018 - accessing it computes it


def make_pair(folder: Path, analysis: Analysis) -> None:
    make_analysis(folder, analysis)
    blocks = np.array([0, 1, 2, analysis.blocks, analysis.blocks + 1], np.int32)
    save_walks(folder / "walks.npz", blocks, np.array([0, 3, 5]))
    counts = Counts(2 * analysis.blocks, 9, 1, 5, 2, 2, 1, 50, [0, 0, 1, 1])
    info = PairInfo(
        format_version=FORMAT_VERSION,
        pair=0,
        program="p",
        split="train",
        binaries=[Build("b/O0/p", "O0", "0" * 64)] * 2,
        analysis="analysis",
        tokens=1,
        analyses=["a.npz"] * 2,
        settings=WalkSettings("control_flow", 1, 2, 2),
        seed=0,
        counts=counts,
    )
    utils.write_json(folder / "pair.json", dataclasses.asdict(info))


def write_corpus(folder: Path, _: Analysis) -> None:
    sentences = ["mov reg8 imme", "call a", "", "push reg8", "mov imme", ""]
    (folder / "corpus.txt").write_text("".join(f"{line}\n" for line in sentences))
    about = {"program": "p", "split": "train", "builds": [{"sha256": "a"}, {"sha256": "b"}]}
    utils.write_json(
        folder / "corpus.json",
        {
            "corpus_sha256": utils.sha256_of(folder / "corpus.txt"),
            "pairs": [{**about, "documents": 1}, {**about, "documents": 1}],
        },
    )
    write_vocab(folder)
    use_corpus(folder)


def write_vocab(folder: Path) -> None:
    (folder / "vocab.txt").write_text("".join(f"{t}\n" for t in (*SPECIAL_TOKENS, *WORDS)))


def use_corpus(folder: Path) -> None:
    tokenizer = CorpusTokenizer(folder / "vocab.txt")
    corpus = read_corpus(folder / "corpus.txt", tokenizer, "v")
    corpus.count_tokens(np.ones(len(corpus.documents) - 1, bool), len(tokenizer.vocab))


def make_index(folder: Path, _: Analysis) -> None:
    binary = index.Binary("b/O0/p", "0" * 64, "x86")
    columns = np.arange(3, dtype=np.uint64), ["f", "g", "h"], np.arange(3), np.eye(3, 4)
    index.add(folder, "encoder", binary, *columns)


def use_index(folder: Path) -> None:
    table = index.read(folder, "encoder", 4)
    found, *_ = index.nearest(
        table, table.vector.astype(np.float32), 2, Calibration(scale=10.0, none=0.5)
    )
    for function in found.ravel().tolist():
        table.name_of(function)


def make_encoder(folder: Path, _: Analysis) -> None:
    shutil.copy(ROOT / "model/encoder.safetensors", folder)


def make_scores(folder: Path, _: Analysis) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for name, numbers in matching_model.SCHEMA.items():
        shape = [n if isinstance(n, int) else 3 for n in numbers.shape]
        arrays[name] = rng.random(shape).astype(numbers.dtypes[0])
    networks = [
        matching_model.Network(
            **{
                field.name: arrays[f"{name}.{field.name}"]
                for field in dataclasses.fields(matching_model.Network)
            }
        )
        for name in ("similarity", "neighbours")
    ]
    make_encoder(folder, _)
    model = matching_model.Model(read_encoder(folder / "encoder.safetensors"), *networks)
    matching_model.write_model(model, folder / "m.safetensors", {"what": "a test"})


def use_scores(folder: Path) -> None:
    model = matching_model.read_model(folder / "m.safetensors")
    for network in (model.similarity, model.neighbours):
        if not np.isfinite(network(np.ones((2, len(network.mean)), np.float32))).all():
            raise AssertionError("the scores are not finite")


def make_model(folder: Path, _: Analysis) -> None:
    write_vocab(folder)
    sizes = models.Config(**SIZES)
    torch.manual_seed(0)
    checkpoint.save_pt(models.BertModel4Pretrain(sizes).state_dict(), folder / "model.pt")
    info = checkpoint.ModelInfo(
        model=sizes,
        tokenizer="corpus",
        vocab_sha256=utils.sha256_of(folder / "vocab.txt"),
        max_len=12,
    )
    utils.write_json(folder / "model.json", dataclasses.asdict(info))


def use_model(folder: Path) -> None:
    checkpoint.load_pretrained(folder / "model.pt")


def make_folder(folder: Path, analysis: Analysis) -> None:
    make_model(folder, analysis)
    checkpoint.export_model(str(folder / "model.pt"), str(folder / "hf"))
    for file in (folder / "hf").iterdir():
        shutil.move(file, folder / file.name)
    (folder / "hf").rmdir()


def use_folder(folder: Path) -> None:
    foreign = read_folder(folder)
    if any("\n" in token or "\r" in token or not token for token in foreign.vocab):
        raise AssertionError("a token contains a line end")


def make_configs(folder: Path, _: Analysis) -> None:
    for name in ("bert_tiny", "pretrain", "contrast"):
        shutil.copy(ROOT / f"config/{name}.json", folder)


def use_configs(folder: Path) -> None:
    models.Config.from_json(folder / "bert_tiny.json")
    pretrain.Config.from_json(folder / "pretrain.json")
    utils.read_config(MatchingConfig, folder / "contrast.json")


def make_anchors(folder: Path, analysis: Analysis) -> None:
    make_analysis(folder, analysis)
    starts = analysis.function_address[: min(4, analysis.code_functions)].tolist()
    lines = ["# known"] + [f"0x{a:x}  0x{a:x}  # same" for a in starts]
    (folder / "anchors.txt").write_text("".join(f"{line}\n" for line in lines))


def use_anchors(folder: Path) -> None:
    analysis = load_analysis(folder / "a.npz")
    features = Features(analysis, [[]] * analysis.code_functions, *[None] * 6)
    read_anchors(str(folder / "anchors.txt"), (features, features))


def make_table(folder: Path, _: Analysis) -> None:
    rows = ["label\ttext_a\ttext_b", "same\tmov a\tcall a", "different\ta\tb"]
    (folder / "t.tsv").write_text("".join(f"{row}\n" for row in rows))


def use_table(folder: Path) -> None:
    for labelled in (True, False):
        read_examples(Samefunc, folder / "t.tsv", labelled)


KINDS = {
    "analysis": Kind(make_analysis, {"a.npz": change_npz}, use_analysis),
    "walks": Kind(make_pair, {"walks.npz": change_npz}, lambda f: read_pair(f, str(f))),
    "pair.json": Kind(make_pair, {"pair.json": change_json}, lambda f: read_pair(f, str(f))),
    "corpus": Kind(
        write_corpus, {"corpus.txt": change_lines, "corpus.json": change_json}, use_corpus
    ),
    "token ids": Kind(
        write_corpus,
        {
            "corpus.ids/key.json": change_json,
            "corpus.ids/tokens.bin": change_bytes,
            "corpus.ids/sentences.bin": change_bytes,
            "corpus.ids/documents.bin": change_bytes,
        },
        use_corpus,
    ),
    "vocabulary": Kind(
        lambda folder, _: write_vocab(folder),
        {"vocab.txt": change_lines},
        lambda folder: CorpusTokenizer(folder / "vocab.txt"),
    ),
    "index": Kind(make_index, {f"{'0' * 64}.parquet": change_parquet}, use_index),
    "model of search.py": Kind(
        make_encoder,
        {"encoder.safetensors": change_safetensors},
        lambda folder: read_encoder(folder / "encoder.safetensors"),
    ),
    "model of diff.py": Kind(make_scores, {"m.safetensors": change_safetensors}, use_scores),
    ".pt": Kind(make_model, {"model.pt": change_pt, "model.json": change_json}, use_model),
    "Hugging Face folder": Kind(
        make_folder,
        {
            "config.json": change_json,
            "model.safetensors": change_safetensors,
            "tokenizer.json": change_json,
            "tokenizer_config.json": change_json,
            "vocab.txt": change_lines,
        },
        use_folder,
    ),
    "settings": Kind(
        make_configs,
        dict.fromkeys(("bert_tiny.json", "pretrain.json", "contrast.json"), change_json),
        use_configs,
    ),
    "anchors": Kind(make_anchors, {"anchors.txt": change_lines}, use_anchors),
    "TSV": Kind(make_table, {"t.tsv": change_lines}, use_table),
}


def try_mutant(kind: Kind, folder: Path, rng: random.Random) -> str | None:
    """Change one file of a folder, read the folder, and restore the file.

    Returns
    -------
    str or None
        The error that a user would see, if there is one.

    Raises
    ------
    AssertionError
        Reading failed with anything but a `utils.UserError` of one sentence.
    """
    name = rng.choice(sorted(kind.changes))
    file = folder / name
    good = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    changed = kind.changes[name](good[file], rng)
    file.unlink()  # do not overwrite it: a process may have mapped it into memory
    file.write_bytes(changed)
    try:
        kind.read(folder)
        return None
    except utils.UserError as error:
        said = printable(error)  # as it is shown
        if not said or len(said) > LONGEST:
            raise AssertionError(f"{name}: {said[:200]!r} is not one sentence") from error
        return said
    except Exception as error:
        raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
    finally:
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            if path not in good or path.read_bytes() != good[path]:
                path.unlink()
        for path, content in good.items():
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
