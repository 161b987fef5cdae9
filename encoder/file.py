"""The file of an encoder: its arrays, how it is written, and what its card says."""

import json
import os
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

import utils
from encoder.calibration import Calibration
from encoder.inputs import BUCKETS, GROUPS, Vocabulary
from files.arrays import Numbers

LAYERS = 12  # maximum number of blocks
MOST = 1e4  # larger weights would overflow
PREFIX = "transformer.blocks."
OWN = {"words", "idf", "heads", "calibration"}  # arrays that are not weights


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
            f"{path} does not say which packages it has learned from; `classify.py functions` "
            "writes encoders that do"
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
