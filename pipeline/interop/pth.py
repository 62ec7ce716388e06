"""facebookresearch's checkpoints (DeiT, DeiT III, MAE): a .pth file with the weights under "model", in timm's names.

Such a file doesn't state how inputs are prepared. The values here are those of its projects' evaluation code: the exact
GELU, epsilon 1e-6, ImageNet's mean and standard deviation, bicubic resizing with a crop ratio of 1.0 (DeiT III, which
has LayerScale) or 7/8.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.config.schema import ModelConfig
from pipeline.interop.inputs import IMAGENET_MEAN, IMAGENET_STD, says_imagenet
from pipeline.interop.read_files import read_tensors
from pipeline.model.state_dict import model_config

ENDINGS = (".pth", ".pt")
_HEADS = ("head.", "fc_norm.")
_MAE = ("decoder_", "mask_token")  # parts of MAE's pretraining model outside its encoder


def read(path: Path, *, trunk: bool = False) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]:
    """Configuration, float32 state with our names, {"format", "classes", "resize", "imagenet"}. Raises UserError.

    ``trunk``: only the weights that fine-tuning starts from, without the head or MAE's decoder.
    """
    theirs = read_tensors(path.parent, (path.name,), key="model")
    state = {
        name.replace(".gamma_1", ".ls1.gamma").replace(".gamma_2", ".ls2.gamma"): tensor
        for name, tensor in theirs.items()
        if not (trunk and name.startswith(_HEADS + _MAE))
    }
    base = ModelConfig(gelu="exact", position_resize="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    config, classes = model_config(state, heads=None, source=str(path), base=base)
    facts = {
        "format": "pth",
        "classes": classes,
        "resize": "bicubic" if config.layer_scale else "central-0.875-bicubic",
        "imagenet": says_imagenet(path.name, path.parent.name) or path.stem.endswith("_1k"),
    }
    return config, state, facts
