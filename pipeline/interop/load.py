"""Loading other projects' checkpoint formats; the path's content decides which."""

from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.config.schema import ModelConfig
from pipeline.core.errors import UserError
from pipeline.interop import huggingface, native, npz, pth, timm
from pipeline.interop.model_files import GRAPHS, SETTINGS
from pipeline.interop.read_files import read_config

Weights = tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]


KINDS = (
    "a run folder, a checkpoint in it, an official .npz or .pth, a timm or transformers folder, hf://OWNER/NAME on the "
    "Hub, or a folder written by vit export"
)


def load_weights(path: Path, *, trunk: bool = False) -> Weights:
    """The model in an official .npz file, a facebookresearch .pth, a timm or transformers folder or an export of ours.

    Returns the configuration that gives that project's logits, the float32 weights with our names, and further facts:
    "format", "classes" (0: no head), and if the format has them "labels", "descriptions", "loss", "resize" and
    "imagenet" (whether it states that its classes are ImageNet-1K's). ``trunk``: only the weights that fine-tuning
    starts from, which accepts more models than evaluation does. Raises UserError.
    """
    try:
        if path.is_dir():
            return _load_folder(path, trunk=trunk)
        if path.suffix == ".npz" and path.is_file():
            return npz.read(path)
        if path.suffix in pth.ENDINGS and path.is_file():
            return pth.read(path, trunk=trunk)
    except UserError:
        raise
    except (
        TypeError,
        ValueError,
        KeyError,
        AttributeError,
        IndexError,
        OverflowError,
    ) as error:  # a field with an unexpected type or shape
        raise UserError(
            f"{str(path)!r} can't be read ({type(error).__name__}: {error}): it differs from its project's format; "
            "download it again"
        ) from error
    if not path.exists():
        raise UserError(f"{str(path)!r} does not exist: name {KINDS}")
    raise UserError(f"{str(path)!r} is not a .npz or .pth file: name {KINDS}")


def _load_folder(path: Path, *, trunk: bool) -> Weights:
    if (path / SETTINGS).exists():
        settings = read_config(path)
        if "architecture" in settings:
            return timm.read(path, trunk=trunk)
        if settings.get("model_type") in ("vit", *huggingface.TRUNKS):
            return huggingface.read(path, trunk=trunk)
        raise UserError(
            f"{str(path / SETTINGS)!r} has neither timm's 'architecture' nor transformers' 'model_type': 'vit': "
            "name the folder of a ViT of either"
        )
    if (path / "model.npz").is_file():
        return npz.read(path / "model.npz")
    if (path / native.DESCRIPTION).is_file() and not any((path / name).exists() for name in GRAPHS):
        return native.read(path)
    if any((path / name).exists() for name in GRAPHS):
        raise UserError(
            f"{str(path)!r} holds a compiled graph, from which weights can't be read: name the run or another "
            "export of it"
        )
    raise UserError(f"{str(path)!r} has no config.json, model.npz or {native.DESCRIPTION}: name {KINDS}")
