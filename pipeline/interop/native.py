"""Our own folder of weights: ``model.safetensors`` under our names, and ``model.json`` with the configuration.

It can hold every configuration, including pre_logits and other GELUs, and nothing in it can run code.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.config.schema import ModelConfig
from pipeline.config.serialize import from_file
from pipeline.core.files import read_json
from pipeline.core.tensor_files import save_tensors
from pipeline.interop.read_files import read_tensors
from pipeline.model.state_dict import check_tensors

DESCRIPTION = "model.json"  # in each folder that jobs.export writes; see pipeline.interop.trained_model


def read(folder: Path) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]:
    """Configuration, float32 state, and {"format", "classes"} of a folder. Raises UserError."""
    state = read_tensors(folder, ("model.safetensors",))
    path = folder / DESCRIPTION
    remedy = "export the model again"
    config = from_file(ModelConfig, read_json(path, remedy).get("model"), path, remedy, "model.")
    classes = len(state["head.bias"]) if "head.bias" in state else 0
    check_tensors(state, config, classes, str(folder))
    return config, state, {"format": "safetensors", "classes": classes}


def write(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write the weights; pipeline.interop.trained_model writes ``model.json``."""
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}
    save_tensors(tensors, folder / "model.safetensors")
