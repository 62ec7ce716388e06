"""Reading the files of a model folder: JSON and tensors, without ever unpickling code."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.interop.model_files import SETTINGS


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises UserError."""
    return read_object(folder / SETTINGS)


def read_object(path: Path) -> dict[str, Any]:
    """Read a file with one JSON object. Raises UserError."""
    return read_json(path, "download it again, or name another timm or transformers folder")


def read_tensors(folder: Path, names: Sequence[str], *, key: str = "") -> dict[str, Tensor]:
    """The float32 tensors of the first of ``names`` that exists, in one or several parts. Raises UserError.

    ``key``: in a pickled file, take the value of this key if present.
    """
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None and (index := folder / "model.safetensors.index.json").is_file():
        parts = sorted(set(read_object(index).get("weight_map", {}).values()))
        if not parts or not all(isinstance(part, str) and part == Path(part).name for part in parts):
            raise UserError(f"{str(index)!r} has no weight_map of files beside it: download it again")
        missing = next((part for part in parts if not (folder / part).is_file()), None)
        if missing is not None:
            raise UserError(
                f"{str(folder / missing)!r}, which {index.name} lists, is missing: download it into this folder"
            )
        return {name: tensor for part in parts for name, tensor in read_tensors(folder, [part]).items()}
    if path is None:
        raise UserError(f"{str(folder)!r} has no {' or '.join(names)}: download the weights beside config.json")
    tensors: Any
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's message recommends loading it anyway
        raise UserError(
            f"{str(path)!r} is damaged, or pickled with more than tensors, which can run code and is not loaded: "
            "download it again, or save the model's tensors as model.safetensors"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{str(path)!r} can't be read ({error}): download it again") from error
    if key and isinstance(tensors, dict) and isinstance(tensors.get(key), dict):
        tensors = tensors[key]
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise UserError(
            f"{str(path)!r} holds more than tensors, as training checkpoints do: save only the model's tensors"
        )
    if any(tensor.dtype in (torch.int8, torch.uint8) for tensor in tensors.values()):
        raise UserError(f"{str(path)!r} holds quantized weights: choose the model in float32, float16 or bfloat16")
    return {name: tensor.float() for name, tensor in tensors.items()}
