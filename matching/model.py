"""The model that scores pairs of functions: its networks and its file."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

import utils
from encoder.table import WordVectors
from features.extract import GROUPS
from features.tfidf import DIMENSIONS
from files.arrays import Damage, Numbers, check_arrays, weights_of
from matching.candidates import MEASURES
from matching.evidence import EVIDENCE

PART = 1 << 17  # number of rows that a network scores at a time
DEFAULT = Path(__file__).resolve().parent.parent / "model" / "diff.safetensors"


@dataclasses.dataclass
class Network:
    """A perceptron with one hidden layer, K inputs and one output.

    Attributes
    ----------
    mean, scale : float32 (K,)
        The inputs are standardised: minus ``mean``, divided by ``scale``.
    w1 : float32 (H, K), b1 : float32 (H,), w2 : float32 (H,), b2 : float32 () or (1,)
    """

    mean: np.ndarray
    scale: np.ndarray
    w1: np.ndarray
    b1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """float32 (n, K) -> (n,)"""
        # In parts: all hidden units at once would need most of the memory of a comparison.
        parts = np.split(x, range(PART, len(x), PART))
        return np.concatenate([self._score(part) for part in parts])

    def _score(self, x: np.ndarray) -> np.ndarray:
        hidden = ((x - self.mean) / self.scale) @ self.w1.T + self.b1
        return np.maximum(hidden, 0) @ self.w2 + self.b2


@dataclasses.dataclass
class Model:
    """The model that matching/train.py trains.

    Attributes
    ----------
    encoder : WordVectors
    similarity : Network
        Scores two functions by their measures, see `matching.candidates.MEASURES`.
    neighbours : Network
        Scores them by the matches around them, see `matching.evidence.EVIDENCE`.
    """

    encoder: WordVectors
    similarity: Network
    neighbours: Network


MOST = 1e6  # larger absolute weights can make scores infinite or NaN
SCHEMA = {
    "encoder.words": Numbers("i4", "V", below=len(GROUPS) * DIMENSIONS),
    "encoder.idf": Numbers("f4", "V", most=MOST),
    "encoder.table": Numbers("f2", "V", "D"),
}
for _name, _inputs in (("similarity", len(MEASURES)), ("neighbours", len(EVIDENCE))):
    SCHEMA |= {
        f"{_name}.mean": Numbers("f4", _inputs, most=MOST),
        f"{_name}.scale": Numbers("f4", _inputs, above=1 / MOST),
        f"{_name}.w1": Numbers("f4", f"hidden {_name}", _inputs, most=MOST),
        f"{_name}.b1": Numbers("f4", f"hidden {_name}", most=MOST),
        f"{_name}.w2": Numbers("f4", f"hidden {_name}", most=MOST),
        f"{_name}.b2": Numbers("f4", 1, most=MOST),
    }
PARTS = {"encoder": WordVectors, "similarity": Network, "neighbours": Network}


def read_model(path: str | os.PathLike[str] = DEFAULT) -> Model:
    """Read what matching/train.py wrote.

    Raises
    ------
    utils.UserError
        The file does not exist, or matching/train.py did not write it.
    """
    remedy = "; leave --model_file out to use the one that comes with this repository"
    with weights_of(path, "model", "matching/train.py", remedy) as arrays:
        networks = ("similarity", "neighbours")
        inputs = tuple(size for name in networks for size in arrays[f"{name}.w1"].shape[1:])
        expected = len(MEASURES), len(EVIDENCE)
        if inputs != expected:
            raise Damage(f"its networks have {inputs} inputs, not {expected}")
        check_arrays(arrays, SCHEMA)
        if (np.diff(arrays["encoder.words"]) <= 0).any():
            raise Damage("'encoder.words' is not sorted")
    return Model(
        **{
            name: kind(**{f.name: arrays[f"{name}.{f.name}"] for f in dataclasses.fields(kind)})
            for name, kind in PARTS.items()
        }
    )


def write_model(model: Model, path: str | os.PathLike[str], card: dict[str, str]) -> None:
    """Write a model as safetensors, with ``card`` as JSON in its metadata.

    The card is one entry, because safetensors writes several in random order, and the same training
    must give the same bytes.
    """
    arrays = {
        f"{name}.{field.name}": np.ascontiguousarray(getattr(getattr(model, name), field.name))
        for name, kind in PARTS.items()
        for field in dataclasses.fields(kind)
    }
    with utils.atomic_file(path, "wb") as file:
        file.write(safetensors.numpy.save(arrays, metadata={"card": json.dumps(card)}))
