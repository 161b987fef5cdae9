"""The model that scores pairs of functions: its networks and its file."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

import utils
from encoder.encoder import Encoder, read_encoder
from files.arrays import Damage, Numbers, check_arrays, weights_of
from matching.candidates import MEASURES
from matching.evidence import EVIDENCE

PART = 1 << 17  # number of rows that a network scores at a time
DEFAULT = Path(__file__).resolve().parent.parent / "model" / "diff.safetensors"
ENCODER = "encoder.safetensors"  # beside the model


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
    encoder : encoder.encoder.Encoder
        Its own file lies beside the model's.
    similarity : Network
        Scores two functions by their measures, see `matching.candidates.MEASURES`.
    neighbours : Network
        Scores them by the matches around them, see `matching.evidence.EVIDENCE`.
    """

    encoder: Encoder
    similarity: Network
    neighbours: Network


MOST = 1e6  # larger absolute weights can make scores infinite or NaN
SCHEMA = {"encoder": Numbers("u1", 8)}  # its identity
for _name, _inputs in (("similarity", len(MEASURES)), ("neighbours", len(EVIDENCE))):
    SCHEMA |= {
        f"{_name}.mean": Numbers("f4", _inputs, most=MOST),
        f"{_name}.scale": Numbers("f4", _inputs, above=1 / MOST),
        f"{_name}.w1": Numbers("f4", f"hidden {_name}", _inputs, most=MOST),
        f"{_name}.b1": Numbers("f4", f"hidden {_name}", most=MOST),
        f"{_name}.w2": Numbers("f4", f"hidden {_name}", most=MOST),
        f"{_name}.b2": Numbers("f4", 1, most=MOST),
    }
NETWORKS = "similarity", "neighbours"


def read_model(path: str | os.PathLike[str] = DEFAULT) -> Model:
    """Read what matching/train.py wrote, and the encoder beside it.

    Raises
    ------
    utils.UserError
        A file does not exist, something else wrote it, or the networks learned from the vectors of
        another encoder.
    """
    remedy = "; leave --model_file out to use the one that comes with this repository"
    with weights_of(path, "model", "matching/train.py", remedy) as arrays:
        inputs = tuple(size for name in NETWORKS for size in arrays[f"{name}.w1"].shape[1:])
        expected = len(MEASURES), len(EVIDENCE)
        if inputs != expected:
            raise Damage(f"its networks have {inputs} inputs, not {expected}")
        check_arrays(arrays, SCHEMA)
    beside = Path(path).with_name(ENCODER)
    encoder = read_encoder(beside)
    learned_from = arrays["encoder"].tobytes().hex()
    if encoder.identity != learned_from:
        raise utils.UserError(
            f"{path} was trained with another encoder ({learned_from}) than {beside} "
            f"({encoder.identity}); train it anew by `python -m matching.train --to {path}`"
        )
    networks = (
        Network(**{f.name: arrays[f"{name}.{f.name}"] for f in dataclasses.fields(Network)})
        for name in NETWORKS
    )
    return Model(encoder, *networks)


def write_model(model: Model, path: str | os.PathLike[str], card: dict[str, str]) -> None:
    """Write a model's networks as safetensors, with ``card`` as JSON in its metadata.

    The card is one entry, because safetensors writes several in random order, and the same training
    must give the same bytes.
    """
    arrays = {
        f"{name}.{field.name}": np.ascontiguousarray(getattr(getattr(model, name), field.name))
        for name in NETWORKS
        for field in dataclasses.fields(Network)
    }
    identity = bytes.fromhex(model.encoder.identity)
    arrays["encoder"] = np.frombuffer(identity, np.uint8)
    with utils.atomic_file(path, "wb") as file:
        file.write(safetensors.numpy.save(arrays, metadata={"card": json.dumps(card)}))
