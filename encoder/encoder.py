"""The encoder as search.py uses it: from functions to vectors of length 1, in NumPy alone.

It computes the same as `encoder.network.Network`, but importing torch would take longer than most
comparisons do. The weights are read from a file that `python -m encoder.train` has written.
"""

import dataclasses
import functools
import hashlib
import os
from pathlib import Path

import numpy as np

from encoder.calibration import Calibration
from encoder.file import LAYERS, OWN, PREFIX, schema
from encoder.inputs import (
    AROUND,
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
from features.extract import Features
from features.positions import read_positions
from features.words import LONGEST, ranges
from files.arrays import Damage, check_arrays, weights_of

DEFAULT = Path(__file__).resolve().parent.parent / "model" / "encoder.safetensors"
TOGETHER = 512  # functions whose inputs are made at a time; limits the memory
ROWS = 768  # positions computed at a time: large products are faster, but must stay in the cache
SCORES = 1 << 14  # attention scores per head computed at a time, so that they stay in the cache
SAFE = 60.0  # exp of smaller numbers neither overflows nor vanishes in float32


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
        functions = len(inputs.offsets) - 1
        parts = [
            self._learned(inputs, start, min(start + TOGETHER, functions), names, around)
            for start in range(0, functions, TOGETHER)
        ]
        learned = np.concatenate([np.empty((0, self.dimensions - SKETCH), np.float32), *parts])
        groups = (names | ~NAMES) & (around | ~AROUND)
        exact = self.weights["share"] * sketch(inputs, groups)
        return _unit(np.concatenate([_unit(learned), exact], axis=1))

    def _learned(
        self, inputs: Inputs, first: int, end: int, names: bool, around: bool
    ) -> np.ndarray:
        """Return the learned part of the functions first..end - 1, of any length, (n, D)."""
        w = self.weights
        table = w["transformer.embed.words.weight"]
        width = table.shape[1]
        groups = (names | ~NAMES) & (around | ~AROUND)
        bags = inputs.bags[first * len(GROUPS) : end * len(GROUPS)] @ table
        bags = bags.reshape(-1, len(GROUPS), width) * groups[:, None]
        vectors = (bags * w["gain"]).sum(1)
        context = np.stack([bags[:, of].sum(1) for of in (NEAR, UP)], 1)

        # Most positions have no name, and an instruction that others have, too: the same input.
        offsets = inputs.offsets[first : end + 1]
        at = slice(offsets[0], offsets[-1])
        lines, row = np.unique(inputs.line[at], return_inverse=True)
        x = inputs.of_line[lines] @ table
        if names:
            texts = inputs.names[at]
            named = np.flatnonzero(np.diff(texts.indptr))
            x = np.concatenate([x, x[row[named]] + texts[named] @ table])
            row[named] = len(lines) + np.arange(len(named))
        segment = w["transformer.embed.seg_embed.weight"]
        x = np.concatenate([(context + segment[1:]).reshape(-1, width), x + segment[0]])
        row += CONTEXT * (end - first)
        h = _norm(x, w, "transformer.embed.norm")

        offsets, length = offsets - offsets[0], np.diff(offsets)
        for some in _chunks(length):
            place = np.arange(CONTEXT + int(length[some].max()))
            mask = place < length[some][:, None] + CONTEXT
            of_place = np.zeros(mask.shape, np.int64)  # for padding, any row
            of_place[:, :CONTEXT] = CONTEXT * some[:, None] + np.arange(CONTEXT)
            of_place[:, CONTEXT:][mask[:, CONTEXT:]] = row[ranges(offsets[some], length[some])]
            mask &= (place >= CONTEXT) | around
            mask[:, 0] |= ~mask.any(1)
            read = mask.astype(np.float32)
            states = self._states(h[of_place], read)
            pooled = (read[:, None] @ states)[:, 0] / read.sum(1, keepdims=True)
            vectors[some] += pooled @ w["out.weight"].T
        return vectors

    def _states(self, h: np.ndarray, read: np.ndarray) -> np.ndarray:
        """Return the hidden states of the last block, float32 (n, S, D).

        Parameters
        ----------
        h : float32 (n, S, D)
            The first block's input.
        read : float32 (n, S)
            1 for positions that are read, 0 for the others.
        """
        n, length, width = h.shape
        turns = _turns(width // self.heads, self.heads)[:length]
        together = max(1, SCORES // length**2)
        h = h.reshape(-1, width)
        for layer in range(self.layers):
            name = f"{PREFIX}{layer}."
            matrix, bias = self._projections[layer]
            qkv = (h @ matrix).reshape(n, length, -1)
            qkv += bias
            qkv.view(np.complex64)[:, :, :width] *= turns  # rotate queries and keys
            if not read.all():
                qkv[:, :, 2 * width :] *= read[:, :, None]  # values
            heads = qkv.reshape(n, length, 3, self.heads, -1)
            mixed = np.empty((n, length, self.heads, width // self.heads), np.float32)
            for start in range(0, n, together):
                some = slice(start, start + together)
                q, k, v = (heads[some, :, part].swapaxes(1, 2) for part in range(3))
                scores = q @ k.swapaxes(2, 3)
                if scores.max() > SAFE or scores.min() < -SAFE:
                    scores += np.where(read[some], np.float32(0), -np.float32(np.inf))[
                        :, None, None
                    ]
                    scores -= scores.max(-1, keepdims=True)
                np.exp(scores, out=scores)
                part = scores @ v  # divided by the sums afterwards, because it has fewer elements
                part /= scores @ read[some, None, :, None]
                mixed[some] = part.swapaxes(1, 2)
            h = self._add(h, self._linear(mixed.reshape(-1, width), f"{name}proj"), f"{name}norm1")
            inner = _gelu(self._linear(h, f"{name}pwff.fc1"))
            h = self._add(h, self._linear(inner, f"{name}pwff.fc2"), f"{name}norm2")
        return h.reshape(n, length, width)

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
    """Group functions of similar length, at most ROWS positions with padding in each group."""
    order = np.argsort(length, kind="stable")
    chunks, start = [], 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end - start + 1) * int(length[order[end]] + CONTEXT) <= ROWS:
            end += 1
        chunks.append(order[start:end])
        start = end
    return chunks


def read_encoder(path: str | os.PathLike[str] = DEFAULT) -> Encoder:
    """Read an encoder.

    Raises
    ------
    utils.UserError
        The file is missing or damaged, or `classify.py functions` did not write it.
    """
    with weights_of(path, "encoder", "classify.py functions") as arrays:
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
