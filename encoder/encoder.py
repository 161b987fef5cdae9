"""The encoder as search.py uses it: from functions to vectors of length 1, in NumPy alone.

It computes the same as `encoder.network.Network`, but importing torch would take longer than most
comparisons do. The weights are read from a file that `python -m encoder.train` has written.
"""

import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

import utils
from encoder.calibration import Calibration
from encoder.inputs import (
    AROUND,
    BUCKETS,
    CONTEXT,
    GROUPS,
    NAMES,
    NEAR,
    SKETCH,
    UP,
    Inputs,
    Vocabulary,
    look_up,
    sketch,
)
from features.extract import Features, ranges
from features.positions import LONGEST, read_positions
from files.arrays import Damage, Numbers, check_arrays, weights_of

DEFAULT = Path(__file__).resolve().parent.parent / "model" / "encoder.safetensors"
SCORES = 1 << 15  # attention scores per head computed at a time, so that they stay in the cache
SAFE = 60.0  # exp of smaller numbers neither overflows nor vanishes in float32
LAYERS = 12  # maximum number of blocks
MOST = 1e4  # larger weights would overflow
PREFIX = "transformer.blocks."
OWN = {"words", "idf", "heads", "calibration"}  # arrays that are not weights


@dataclasses.dataclass
class Encoder:
    """A trained encoder.

    Attributes
    ----------
    vocabulary : Vocabulary
        The words that have a vector of their own.
    heads : int
        Number of attention heads.
    weights : dict of str to float32 array
        Names and shapes as in the state dict of `encoder.network.Network`.
    calibration : Calibration
        Turns cosines into the chance that a name is right.
    identity : str
        16 hexadecimal digits of a hash of all the above: vectors of encoders that differ in
        it cannot be compared.
    """

    vocabulary: Vocabulary
    heads: int
    weights: dict[str, np.ndarray]
    calibration: Calibration
    identity: str

    @property
    def dimensions(self) -> int:
        """Length of the vectors."""
        return self.weights["gain"].shape[1] + SKETCH

    def __call__(
        self,
        code: Features,
        names: bool = True,
        around: bool = True,
        functions: np.ndarray | None = None,
    ) -> np.ndarray:
        """Encode the F functions of a binary.

        Parameters
        ----------
        code : Features
        names : bool
            Use imports and strings.
        around : bool
            Use words of callees and callers.
        functions : int64 (n,), optional
            Encode only these functions.

        Returns
        -------
        float32 (F, D + SKETCH), or (n, D + SKETCH)
            Vectors of length 1.
        """
        inputs = look_up(read_positions(code), self.vocabulary)
        return self.encode(inputs if functions is None else inputs.only(functions), names, around)

    def encode(self, inputs: Inputs, names: bool = True, around: bool = True) -> np.ndarray:
        """Encode functions whose words are already looked up; otherwise like `__call__`."""
        w = self.weights
        table = w["transformer.embed.words.weight"]
        functions, width = len(inputs.offsets) - 1, table.shape[1]
        groups = (names | ~NAMES) & (around | ~AROUND)
        read = groups.astype(np.float32)[:, None]
        vectors = np.empty((functions, width), np.float32)
        context = np.empty((functions, 2, width), np.float32)
        for start in range(0, functions, 1024):
            rows = slice(start * len(GROUPS), (start + 1024) * len(GROUPS))
            bags = (inputs.bags[rows] @ table).reshape(-1, len(GROUPS), width) * read
            vectors[start : start + 1024] = (bags * w["gain"]).sum(1)
            context[start : start + 1024] = np.stack(
                [bags[:, groups].sum(1) for groups in (NEAR, UP)], 1
            )
        lines = inputs.of_line @ table
        length = np.diff(inputs.offsets)
        for some in _chunks(length):
            at = ranges(inputs.offsets[some], length[some])
            x = np.zeros((len(some), CONTEXT + int(length[some].max()), width), np.float32)
            row = np.repeat(np.arange(len(some)), length[some])
            column = (
                CONTEXT
                + np.arange(len(at))
                - np.repeat(np.cumsum(length[some]) - length[some], length[some])
            )
            x[:, :CONTEXT] = context[some]
            x[row, column] = lines[inputs.line[at]]
            if names:
                x[row, column] += inputs.names[at] @ table
            place = np.arange(x.shape[1])
            mask = (place < length[some][:, None] + CONTEXT) & ((place >= CONTEXT) | around)
            mask[:, 0] |= ~mask.any(1)
            segment = np.where(place < CONTEXT, place + 1, 0)
            h = self._states(x + w["transformer.embed.seg_embed.weight"][segment], mask)
            pooled = np.einsum("nsd,ns->nd", h, mask.astype(np.float32)) / mask.sum(1)[:, None]
            vectors[some] += pooled @ w["out.weight"].T
        vectors = np.concatenate([_unit(vectors), w["share"] * sketch(inputs, groups)], axis=1)
        return _unit(vectors)

    def _states(self, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """float32 (n, S, D), bool (n, S) -> the hidden states of the last block, (n, S, D)"""
        n, length, width = x.shape
        turns = _turns(width // self.heads, self.heads)[:length]
        read = mask.astype(np.float32)
        h = _norm(x.reshape(-1, width), self.weights, "transformer.embed.norm")
        for layer in range(self.layers):
            name = f"{PREFIX}{layer}."
            matrix, bias = self._projections[layer]
            qkv = (h @ matrix).reshape(n, length, -1)
            qkv += bias
            qkv.view(np.complex64)[:, :, :width] *= turns  # rotate queries and keys
            if not mask.all():
                qkv[:, :, 2 * width :] *= read[:, :, None]  # values
            heads = qkv.reshape(n, length, 3, self.heads, -1)
            q, k, v = (heads[:, :, part].swapaxes(1, 2) for part in range(3))
            scores = q @ k.swapaxes(2, 3)
            if _longest(q) * _longest(k) > SAFE:
                scores += np.where(mask, np.float32(0), -np.float32(np.inf))[:, None, None]
                scores -= scores.max(-1, keepdims=True)
            np.exp(scores, out=scores)
            mixed = scores @ v  # divided by the sums afterwards, because it has fewer elements
            mixed /= scores @ read[:, None, :, None]
            mixed = mixed.swapaxes(1, 2).reshape(-1, width)
            h = self._add(h, self._linear(mixed, f"{name}proj"), f"{name}norm1")
            inner = _gelu(self._linear(h, f"{name}pwff.fc1"))
            h = self._add(h, self._linear(inner, f"{name}pwff.fc2"), f"{name}norm2")
        return h.reshape(x.shape)

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        y = x @ self.weights[f"{name}.weight"].T
        y += self.weights[f"{name}.bias"]
        return y

    def _add(self, x: np.ndarray, y: np.ndarray, name: str) -> np.ndarray:
        y += x
        return _norm(y, self.weights, name)

    @functools.cached_property
    def _projections(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each block, one matrix and bias for the (already scaled) queries, keys and values."""
        found = []
        for layer in range(self.layers):
            parts = [f"{PREFIX}{layer}.attn.proj_{part}" for part in "qkv"]
            matrix = np.concatenate([self.weights[f"{part}.weight"] for part in parts]).T.copy()
            bias = np.concatenate([self.weights[f"{part}.bias"] for part in parts])
            width = len(matrix)
            each = width // self.heads
            # Put the two elements that are rotated together side by side, as a complex number.
            pairs = np.arange(2 * width).reshape(-1, 2, each // 2).swapaxes(1, 2).ravel()
            for array in (matrix, bias):
                array[..., :width] *= np.float32(each**-0.5)
                array[..., : 2 * width] = array[..., pairs]
            found.append((matrix, bias))
        return found

    @functools.cached_property
    def layers(self) -> int:
        """Number of blocks."""
        return sum(key.endswith("pwff.fc1.bias") for key in self.weights)


def _unit(x: np.ndarray) -> np.ndarray:
    """Scale vectors (m, D) to length 1."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _longest(x: np.ndarray) -> float:
    """Return the length of the longest of the vectors (..., W)."""
    return float(np.einsum("nhsw,nhsw->nhs", x, x).max()) ** 0.5


def _norm(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Layer normalisation of float32 (m, D)."""
    width = x.shape[-1]
    x = x - (x @ np.full((width, 1), 1 / width, np.float32))
    variance = np.einsum("md,md->m", x, x)[:, None] / width
    x *= 1 / np.sqrt(variance + 1e-12)
    x *= w[f"{name}.gamma"]
    x += w[f"{name}.beta"]
    return x


def _gelu(x: np.ndarray) -> np.ndarray:
    """The gelu approximated by tanh, at most 0.0005 off.

    References
    ----------
    Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016, https://arxiv.org/abs/1606.08415
    """
    inner = x * x
    inner *= np.float32(0.044715)
    inner += 1
    inner *= x
    inner *= np.float32((2 / np.pi) ** 0.5)
    np.tanh(inner, out=inner)
    inner += 1
    inner *= x
    inner *= np.float32(0.5)
    return inner


@functools.lru_cache(1)
def _turns(width: int, heads: int) -> np.ndarray:
    """Return `models.rotate` of queries and keys as factors by position, complex64 (S, H * W)."""
    half = width // 2
    angle = np.arange(CONTEXT + LONGEST)[:, None] * 10000 ** (np.arange(half) / -half)
    return np.tile(np.exp(1j * angle), 2 * heads).astype(np.complex64)


def _chunks(length: np.ndarray) -> list[np.ndarray]:
    """Group functions of similar length, so few that their scores fit in the processor's cache."""
    order = np.argsort(length, kind="stable")
    chunks, start = [], 0
    while start < len(order):
        end = start + 1
        while (
            end < len(order)
            and (end - start + 1) * int(length[order[end]] + CONTEXT) ** 2 <= SCORES
        ):
            end += 1
        chunks.append(order[start:end])
        start = end
    return chunks


def schema(layers: int) -> dict[str, Numbers]:
    """Return the schema of the file of an encoder with this number of blocks."""
    found = {
        "words": Numbers("i4", "V"),
        "idf": Numbers("f4", "V + 1", most=MOST),
        "heads": Numbers("i4", 1, above=0),
        "calibration": Numbers("f4", 2, most=MOST),
        "transformer.embed.words.weight": Numbers("f2", f"V + {BUCKETS}", "D"),
        "transformer.embed.seg_embed.weight": Numbers("f2", 3, "D"),
        "gain": Numbers("f2", len(GROUPS), "D"),
        "out.weight": Numbers("f2", "D", "D"),
        "share": Numbers("f2", 1),
    }
    norms = ["transformer.embed.norm"]
    for layer in range(layers):
        name = f"{PREFIX}{layer}."
        linear = [f"attn.proj_{part}" for part in "qkv"] + ["proj", "pwff.fc1", "pwff.fc2"]
        for part in linear:
            after, before = ("FF" if part == f"pwff.fc{i}" else "D" for i in (1, 2))
            found[f"{name}{part}.weight"] = Numbers("f2", after, before)
            found[f"{name}{part}.bias"] = Numbers("f2", after)
        norms += [f"{name}norm1", f"{name}norm2"]
    for name in norms:
        found |= {f"{name}.{part}": Numbers("f2", "D") for part in ("gamma", "beta")}
    return found


def read_encoder(path: str | os.PathLike[str] = DEFAULT) -> Encoder:
    """Read an encoder.

    Raises
    ------
    utils.UserError
        The file is missing or damaged, or encoder/train.py did not write it.
    """
    with weights_of(path, "encoder", "encoder/train.py") as arrays:
        layers = sum(key.endswith("pwff.fc1.bias") for key in arrays)
        if not 0 < layers <= LAYERS:
            raise Damage(f"it has {layers} blocks")
        expected = schema(layers)
        check_arrays(arrays, expected)
        words, heads = arrays["words"], int(arrays["heads"][0])
        if (np.diff(words) <= 0).any() or (words < 0).any():
            raise Damage("'words' is not sorted")
        width = arrays["gain"].shape[1]
        if width % heads or width // heads % 2:
            raise Damage(f"{heads} heads of a width of {width}")
        weights = {name: arrays[name].astype(np.float32) for name in expected.keys() - OWN}
        if not all(np.isfinite(array).all() for array in weights.values()):
            raise Damage("a number is not finite")
    content = hashlib.sha256()
    for name in sorted(expected):
        content.update(np.ascontiguousarray(arrays[name]).tobytes())
    identity = content.hexdigest()[:16]
    calibration = Calibration(*arrays["calibration"].tolist())
    return Encoder(Vocabulary(words, arrays["idf"]), heads, weights, calibration, identity)


def packages_of(path: str | os.PathLike[str]) -> set[str]:
    """Return the packages that an encoder has learned from, by its card.

    Raises
    ------
    utils.UserError
        The file has no card.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            card = utils.parse_json((file.metadata() or {})["card"], path)
        return set(card["packages"].split())
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, AttributeError):
        raise utils.UserError(
            f"{path} does not say which packages it has learned from; encoder/train.py writes that"
        ) from None


def write_encoder(
    weights: dict[str, np.ndarray],
    vocabulary: Vocabulary,
    heads: int,
    calibration: Calibration,
    path: str | os.PathLike[str],
    card: dict[str, Any],
) -> None:
    """Write an encoder as safetensors, with weights in half precision.

    Parameters
    ----------
    weights : dict of str to array
        The state dict of `encoder.network.Network`; what only training needs is left out.
    vocabulary, heads, calibration
        As in `Encoder`.
    path : path-like
    card : dict
        How it was trained; stored as JSON in the file's metadata.
    """
    layers = sum(key.endswith("pwff.fc1.bias") for key in weights)
    own = {
        "words": vocabulary.words,
        "idf": vocabulary.idf,
        "heads": np.array([heads], np.int32),
        "calibration": np.array([calibration.scale, calibration.none], np.float32),
    }
    kept = {
        name: np.ascontiguousarray(weights[name].astype(np.float16))
        for name in schema(layers).keys() - OWN
    }
    with utils.atomic_file(path, "wb") as file:
        metadata = {"card": json.dumps(card)}
        file.write(safetensors.numpy.save(dict(sorted((own | kept).items())), metadata=metadata))
