"""Other projects' checkpoint formats, told apart by what the path holds."""

from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.cli import UserError
from pipeline.config import ModelConfig
from pipeline.interop import huggingface, npz, timm
from pipeline.interop.weights import read_config

Weights = tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]


def load_weights(path: Path) -> Weights:
    """The model in an official .npz file, a timm folder or a transformers folder.

    Returns the configuration that gives that project's logits, the float32 weights with our names, and what else is
    known: "format", "classes" (0: no head), and where the format has them "labels" and "loss". Raises UserError.
    """
    if path.is_dir():
        settings = read_config(path)
        if "architecture" in settings:
            return timm.read(path)
        if settings.get("model_type") == "vit":
            return huggingface.read(path)
        raise UserError(
            f"{str(path / 'config.json')!r} has neither timm's 'architecture' nor transformers' 'model_type': 'vit': "
            "name the folder of a ViT of either"
        )
    if path.suffix == ".npz" and path.is_file():
        return npz.read(path)
    if not path.exists():
        raise UserError(f"{str(path)!r} does not exist: name an official .npz, a timm folder or a transformers folder")
    raise UserError(f"{str(path)!r} is no .npz file: name an official .npz, a timm folder or a transformers folder")
