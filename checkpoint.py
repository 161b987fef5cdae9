"""Models in files: our own .pt files, read without ever running what a file holds."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils import UserError, atomic_file

NAMED = 3  # how many keys at fault an error names


def save_pt(content: Any, path: str | os.PathLike[str]) -> None:
    """Write tensors, numbers and strings in dicts and lists, so that `load_pt` can read them."""
    with atomic_file(path, "wb") as file:
        torch.save(content, file)


def load_pt(path: str | os.PathLike[str]) -> Any:
    """Read a .pt file onto the CPU. Only plain data is accepted; no code of the file is run.

    Raises
    ------
    utils.UserError
        No such file; truncated, foreign or hostile content.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                # torch never compresses; a small file that unpacks to terabytes does.
                with zipfile.ZipFile(file) as archive:
                    if any(entry.compress_type for entry in archive.infolist()):
                        raise UserError(f"{path} is a compressed archive and no file of PyTorch's")
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # zipfile's and torch's readers fail in many ways on broken files
        raise UserError(
            f"{path} is damaged, or holds more than tensors and plain values; nothing in it was "
            "run; give a .pt file that the training wrote"
        ) from error


def load_model_file(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a plain state dict (``model_steps_<k>.pt``) into ``model``, every key matching.

    Raises
    ------
    utils.UserError
        What `load_pt` raises; no state dict; keys that are missing, unexpected or of another
        shape. The model is left as it was.
    """
    state = load_pt(path)
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise UserError(f"{path} is no state dict of a model (a dict of names and tensors)")
    own = model.state_dict()
    faults = {
        "lacks": [key for key in own if key not in state],
        "has unknown": [key for key in state if key not in own],
        "has another shape for": [
            f"{key} ({_shape(state[key])} instead of {_shape(own[key])})"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
    }
    reasons = [f"{what} {_some(keys)}" for what, keys in faults.items() if keys]
    if reasons:
        raise UserError(f"{path} does not fit the model: it {'; it '.join(reasons)}")
    model.load_state_dict(state)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(keys[:NAMED]) + more
