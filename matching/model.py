"""The model that scores pairs of functions: its networks, and the file that holds them."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

import utils
from encoder.table import Encoder
from matching.candidates import EVIDENCE, MEASURES

PART = 1 << 17  # rows that a network scores at a time
DEFAULT = Path(__file__).resolve().parent.parent / "model" / "diff.safetensors"


@dataclasses.dataclass
class Network:
    """A perceptron with one hidden layer, K inputs and one output.

    Attributes
    ----------
    mean, scale : float32 (K,)
        Inputs are shifted and divided by these.
    w1 : float32 (H, K), b1 : float32 (H,), w2 : float32 (H,), b2 : float32 ()
    """

    mean: np.ndarray
    scale: np.ndarray
    w1: np.ndarray
    b1: np.ndarray
    w2: np.ndarray
    b2: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """float32 (n, K) -> (n,)"""
        # A part at a time: the hidden units of all would take most of the memory of a comparison.
        parts = np.split(x, range(PART, len(x), PART))
        return np.concatenate([self._score(part) for part in parts])

    def _score(self, x: np.ndarray) -> np.ndarray:
        hidden = ((x - self.mean) / self.scale) @ self.w1.T + self.b1
        return np.maximum(hidden, 0) @ self.w2 + self.b2


@dataclasses.dataclass
class Model:
    """What matching/train.py trains.

    Attributes
    ----------
    encoder : Encoder
    function : Network
        Scores the likeness of two functions.
    structure : Network
        Scores their likeness and what their surroundings say.
    """

    encoder: Encoder
    function: Network
    structure: Network


PARTS = {"encoder": Encoder, "function": Network, "structure": Network}


def read_model(path: str | os.PathLike[str] = DEFAULT) -> Model:
    """Read what matching/train.py wrote.

    Raises
    ------
    utils.UserError
        No such file, or none of matching/train.py's.
    """
    try:
        arrays = safetensors.numpy.load_file(path)
        model = Model(
            **{
                name: kind(**{f.name: arrays[f"{name}.{f.name}"] for f in dataclasses.fields(kind)})
                for name, kind in PARTS.items()
            }
        )
        inputs = model.function.w1.shape[1:] + model.structure.w1.shape[1:]
        if inputs != (MEASURES, EVIDENCE):
            raise KeyError(f"it measures other things than the {MEASURES} and {EVIDENCE} of today")
        shapes = {len(model.encoder.words), len(model.encoder.idf), len(model.encoder.table)}
        if len(shapes) > 1 or model.encoder.table.ndim != 2:
            raise KeyError("its encoder is no table of words")
    except OSError as error:
        raise utils.UserError(f"cannot read the model {path}: {error.strerror or error}") from error
    except (safetensors.SafetensorError, KeyError) as error:
        raise utils.UserError(
            f"{path} is no model that matching/train.py wrote ({error}); leave --model_file out to "
            "use the one that comes with this repository"
        ) from error
    return model


def write_model(model: Model, path: str | os.PathLike[str], card: dict[str, str]) -> None:
    """Write a model as safetensors, with ``card`` as JSON in its metadata.

    One text, for safetensors writes several in any order, and equal trainings give equal bytes.
    """
    arrays = {
        f"{name}.{field.name}": np.ascontiguousarray(getattr(getattr(model, name), field.name))
        for name, kind in PARTS.items()
        for field in dataclasses.fields(kind)
    }
    with utils.atomic_file(path, "wb") as file:
        file.write(safetensors.numpy.save(arrays, metadata={"card": json.dumps(card)}))
