"""timm's model folders (``config.json`` + ``model.safetensors``), which ``create_model("local-dir:FOLDER")`` loads.

Our parameter names are timm's, so only the configuration is translated.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config.schema import ModelConfig
from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.core.tensor_files import save_tensors
from pipeline.interop.inputs import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    check_size,
    labels_of,
    refuse_unknown,
    says_imagenet,
    side,
    triple,
)
from pipeline.interop.model_files import SETTINGS
from pipeline.interop.read_files import read_config, read_tensors
from pipeline.loader.eval_geometry import NAMES, geometry, name_of
from pipeline.model.state_dict import model_config
from pipeline.model.vit import ARCHITECTURES

# timm's entry points for our variants. The tiny model uses B/16's with other sizes.
ENTRY_POINTS = {
    "b16": "vit_base_patch16_224",
    "b32": "vit_base_patch32_224",
    "l16": "vit_large_patch16_224",
    "l32": "vit_large_patch32_224",
    "tiny": "vit_base_patch16_224",
}
_ARCHITECTURE = re.compile(r"(vit|deit|deit3)_(base|large)_patch(16|32)_\d+(_in21k|_dino|_sam|_mae)?")
# Values of model_args that don't change the function, or that the tensors also show.
_ANY = {
    "img_size", "patch_size", "embed_dim", "depth", "mlp_ratio", "num_classes", "drop_rate", "proj_drop_rate",
    "pos_drop_rate", "attn_drop_rate", "drop_path_rate", "patch_drop_rate", "dynamic_img_size", "dynamic_img_pad",
    "weight_init", "fix_init", "representation_size", "init_values",
}  # fmt: skip
_ARGUMENTS: dict[str, list[Any]] = {
    "in_chans": [3], "qkv_bias": [True], "proj_bias": [True], "class_token": [True], "final_norm": [True],
    "pos_embed": ["learn"],
}  # fmt: skip
_INTERPOLATION = "bicubic"  # timm's defaults of a pretrained_cfg: PretrainedCfg in models/_pretrained.py
_CROP = 0.875


def read(folder: Path, *, trunk: bool = False) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]:
    """Configuration, float32 state, {"format", "classes", "labels", "descriptions", "resize", "imagenet"}.

    Reads pretrained_cfg nested, and flat as timm 0.5 and 0.6 wrote it. ``trunk``: only the weights that fine-tuning
    starts from, without head, classes and geometry. Missing values have timm's defaults: the exact GELU, ImageNet's
    mean and standard deviation, a bicubic resize with a crop of 7/8. Raises UserError.
    """
    source = str(folder / SETTINGS)
    settings = read_config(folder)
    architecture = str(settings["architecture"]).split(".")[0]
    if not _ARCHITECTURE.fullmatch(architecture):
        raise UserError(
            f"{source!r} has architecture {architecture!r}: choose a vit_base_patch16, vit_base_patch32, "
            "vit_large_patch16 or vit_large_patch32 model of timm, or a deit or deit3 of these sizes"
        )
    pretrained = settings if settings.get("pretrained_cfg") is None else settings["pretrained_cfg"]
    arguments = dict(settings.get("model_args") or {})
    gelu = {"gelu": "exact", "gelu_tanh": "tanh"}.get(str(arguments.pop("act_layer", None) or "gelu"))
    heads = arguments.pop("num_heads", 16 if "_large_" in architecture else 12)
    pooling = arguments.pop("global_pool", settings.get("global_pool", "token"))
    bare = arguments.pop("no_embed_class", architecture.startswith("deit3"))
    registers = arguments.pop("reg_tokens", 0)
    if gelu is None:
        raise UserError(
            f"{source!r} has model_args act_layer {settings['model_args']['act_layer']!r}, which is not a GELU: "
            "choose a ViT as published"
        )
    if pooling != "token" and not trunk:
        raise UserError(
            f"{source!r} has model_args global_pool {pooling!r}: choose a ViT with its head on the class token"
        )
    refuse_unknown({k: v for k, v in arguments.items() if k not in _ANY}, _ARGUMENTS, "model_args", source)
    state = read_tensors(folder, ("model.safetensors", "pytorch_model.bin"))
    if trunk:
        state = {name: t for name, t in state.items() if not name.startswith(("head.", "fc_norm.", "pre_logits."))}
        if "norm.weight" not in state:  # with average pooling the norm belongs to the head, which is dropped
            raise UserError(
                f"{str(folder)!r} has no tensor norm.weight (global_pool {pooling!r}): choose another parent"
            )
    if registers and not bare:
        _take_out_positions_of(registers, state)
    base = ModelConfig(
        gelu="exact" if gelu == "exact" else "tanh",
        layer_scale=float(arguments.get("init_values") or 0.0),
        position_resize="bicubic" if architecture.startswith("deit") else "bilinear",
        mean=triple(pretrained.get("mean", IMAGENET_MEAN), "mean", source),
        std=triple(pretrained.get("std", IMAGENET_STD), "std", source),
    )
    config, classes = model_config(state, heads=heads, source=str(folder), base=base)
    if config.class_position == bool(bare) or config.registers != registers:
        raise UserError(
            f"{source!r} has no_embed_class {bare!r} and reg_tokens {registers!r}, but pos_embed has "
            f"{state['pos_embed'].shape[1]} entries and reg_token {config.registers}: correct model_args"
        )
    for name, stated in (("img_size", arguments.get("img_size")), ("input_size", pretrained.get("input_size"))):
        if stated is not None:
            check_size(side(stated, name, source), config.image_size, name, source)
    facts: dict[str, Any] = {"format": "timm", "classes": classes}
    if trunk:
        return config, state, facts
    tag = (architecture, settings["architecture"], pretrained.get("tag"), pretrained.get("hf_hub_id"), folder.name)
    facts["imagenet"] = says_imagenet(*tag)
    return config, state, facts | _labels(settings, pretrained, classes, source) | _resize(pretrained, config, source)


def _take_out_positions_of(registers: int, state: dict[str, Tensor]) -> None:
    """Add timm's position embeddings of the registers, which we don't have, to the registers, in place."""
    entries = state["pos_embed"]
    state["reg_token"] = state["reg_token"] + entries[:, 1 : 1 + registers]
    state["pos_embed"] = torch.cat([entries[:, :1], entries[:, 1 + registers :]], dim=1)


def _labels(settings: Mapping[str, Any], pretrained: Mapping[str, Any], classes: int, source: str) -> dict[str, Any]:
    stated = {
        name: tree[name]
        for name, tree in (("labels", settings), ("label_names", pretrained), ("label_names", settings))
        if tree.get(name)
    }
    number = settings.get("num_classes", pretrained.get("num_classes", classes))
    if classes and number != classes:
        raise UserError(f"{source!r} has num_classes {number!r}, but the head has {classes}: correct num_classes")
    field = "label_names" if "label_names" in stated else "labels"
    labels = labels_of(stated.get(field), classes, field, source)
    texts = settings.get("label_descriptions") or pretrained.get("label_descriptions") or {}
    names = [texts.get(label, label) for label in labels] if labels else None
    return {"labels": labels, "descriptions": names}


def _resize(pretrained: Mapping[str, Any], config: ModelConfig, source: str) -> dict[str, str]:
    """Geometry of timm.data.create_transform: short side to floor(size / crop_pct), then a center crop; or squash."""
    mode = pretrained.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise UserError(f"{source!r} has crop_mode {mode!r}: only center and squash are supported")
    size, share = config.image_size, float(pretrained.get("crop_pct") or _CROP)
    short = math.floor(size / share) if share > 0 else 0
    if mode == "squash" and short != size:
        raise UserError(
            f"{source!r} has crop_mode squash with crop_pct {share:g}: only crop_pct 1 is supported with it"
        )
    crop = None if mode == "squash" else size / short if short else 0.0
    interpolation = pretrained.get("interpolation") or _INTERPOLATION
    return {"resize": name_of(crop, str(interpolation), size, source)}


def write(
    folder: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    labels: Sequence[str],
    *,
    descriptions: Sequence[str] = (),
    resize: str = "square",
) -> None:
    """Write a folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads. Raises UserError.

    ``resize``: the run's evaluation geometry (pipeline.loader.transforms.eval_image), written in timm's terms.
    """
    if config.pre_logits:
        raise UserError(
            "model.pre_logits True is not supported by timm's ViT: export to npz, onnx or safetensors, or fine-tune "
            "first (fine-tuning removes the layer)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    sizes = ARCHITECTURES[config.variant]
    classes = len(state["head.bias"])
    how = geometry(resize)
    crop_pct = how.crop or 1.0
    if how.crop and resize not in NAMES:  # half a pixel is added, as timm rounds the short side down
        crop_pct = config.image_size / (how.short_side(config.image_size) + 0.5)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if config.registers and config.class_position:  # timm has position embeddings for registers too: zeros
        first, patches = tensors["pos_embed"][:, :1], tensors["pos_embed"][:, 1:]
        tensors["pos_embed"] = torch.cat([first, torch.zeros_like(tensors["reg_token"]), patches], dim=1)
    structure = {"init_values": config.layer_scale or None, "no_embed_class": not config.class_position}
    structure["reg_tokens"] = config.registers
    save_tensors(tensors, folder / "model.safetensors")
    size = [3, config.image_size, config.image_size]
    settings = {
        "architecture": ENTRY_POINTS[config.variant],
        "num_classes": classes,
        "num_features": sizes.width,
        "global_pool": "token",
        "model_args": {
            "act_layer": "gelu_tanh" if config.gelu == "tanh" else "gelu",
            "img_size": config.image_size,
            "patch_size": sizes.patch,
            "embed_dim": sizes.width,
            "depth": sizes.depth,
            "num_heads": sizes.heads,
            "mlp_ratio": sizes.mlp / sizes.width,
            **{name: value for name, value in structure.items() if value},
        },
        "pretrained_cfg": {
            "tag": "",
            "input_size": size,
            "fixed_input_size": True,
            "interpolation": how.interpolation,
            # squash: resize directly to the square; center: short side to size / crop_pct, then a center crop
            "crop_pct": crop_pct,
            "crop_mode": "center" if how.crop else "squash",
            "mean": list(config.mean),
            "std": list(config.std),
            "num_classes": classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        "label_names": list(labels),
    }
    if descriptions:
        settings["label_descriptions"] = dict(zip(labels, descriptions, strict=True))
    write_json(folder / SETTINGS, settings)
