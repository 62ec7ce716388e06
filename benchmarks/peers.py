"""Importing timm and transformers, to compare logits with them. Neither is needed for anything else."""

import importlib
from functools import cache
from types import ModuleType

import torch

_TORCHVISION_OPS = ("nms", "qnms")  # what torchvision looks up while it is imported


def import_peer(name: str) -> ModuleType:
    """``timm`` or ``transformers``. Raises ImportError if it isn't installed."""
    _make_torchvision_importable()
    return importlib.import_module(name)


@cache
def _make_torchvision_importable() -> None:
    """Declare the operators without which a torchvision built for another torch (CUDA with CPU) fails to import.

    They do nothing: no ViT uses them. A working torchvision is not changed.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for operator in _TORCHVISION_OPS:
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        _keep.append(library)  # the declarations live as long as it does
    except ImportError:
        pass  # timm reports it


_keep: list[torch.library.Library] = []
