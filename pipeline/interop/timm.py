"""timm's model folders (``config.json`` + ``model.safetensors``, what ``create_model("local-dir:FOLDER")`` loads).

Our parameter names are timm's, so only the configuration is translated.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.config.schema import ModelConfig, Resize
from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.core.tensor_files import save_tensors
from pipeline.interop.read_files import check_normalisation, read_config, read_tensors
from pipeline.loader.transforms import CENTRAL
from pipeline.model.state_dict import model_config
from pipeline.model.vit import ARCHITECTURES

# timm's entry points that build our variants. The tiny model is B/16's with other sizes.
ENTRY_POINTS = {
    "b16": "vit_base_patch16_224",
    "b32": "vit_base_patch32_224",
    "l16": "vit_large_patch16_224",
    "l32": "vit_large_patch32_224",
    "tiny": "vit_base_patch16_224",
}
# What may stand in model_args: sizes, which the tensors show too, and what doesn't change the logits.
_HARMLESS = {
    "img_size", "patch_size", "embed_dim", "depth", "mlp_ratio", "num_classes", "drop_rate", "proj_drop_rate",
    "pos_drop_rate", "attn_drop_rate", "drop_path_rate", "patch_drop_rate", "dynamic_img_size", "weight_init",
}  # fmt: skip


def read(folder: Path) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]:
    """Configuration, float32 state, {"format", "classes", "labels", "descriptions", "resize"}. Raises UserError.

    A folder without ``act_layer`` means timm's default, the exact GELU: ``config.gelu`` says so. A central crop of any
    share below 1, such as 0.9, is read as our central crop, 7/8; one of the whole short side as the squashed square, as
    Google evaluates these weights. The interpolation is ours, bilinear, whatever the folder says.
    """
    settings = read_config(folder)
    architecture = str(settings.get("architecture", "")).split(".")[0]
    if not architecture.startswith(("vit_base_patch", "vit_large_patch")):
        raise UserError(
            f"{str(folder / 'config.json')!r} has architecture {architecture!r}: choose a vit_base_patch16, "
            "vit_base_patch32, vit_large_patch16 or vit_large_patch32 model of timm"
        )
    arguments = dict(settings.get("model_args") or {})
    gelu = arguments.pop("act_layer", "gelu")
    heads = arguments.pop("num_heads", 12 if architecture.startswith("vit_base") else 16)
    pooling = arguments.pop("global_pool", settings.get("global_pool", "token"))
    if arguments.get("in_chans") == 3:  # which timm's own save_for_hf writes
        del arguments["in_chans"]
    if pooling != "token" or not arguments.keys() <= _HARMLESS:
        unusual = sorted(arguments.keys() - _HARMLESS) or [f"global_pool={pooling}"]
        raise UserError(f"{str(folder / 'config.json')!r} has model_args {unusual}: choose a ViT as published")
    pretrained = settings.get("pretrained_cfg") or {}
    check_normalisation(folder, pretrained.get("mean"), pretrained.get("std"))
    state = read_tensors(folder, ("model.safetensors", "pytorch_model.bin"))
    config, classes = model_config(
        state,
        heads=heads,
        source=str(folder),
        gelu={"gelu": "exact", "gelu_tanh": "tanh"}.get(gelu, str(gelu)),
    )
    labels, texts = settings.get("label_names"), settings.get("label_descriptions") or {}
    if isinstance(labels, dict):  # by index, which timm reads too
        labels = [labels[str(index)] for index in range(len(labels))]
    if labels and len(labels) != classes:
        raise UserError(
            f"{str(folder / 'config.json')!r} has {len(labels)} label_names, the weights {classes} classes: mend or "
            "remove label_names"
        )
    names = [texts.get(label, label) for label in labels] if labels else None
    squashed = pretrained.get("crop_mode") == "squash" or (pretrained.get("crop_pct") or 0.875) >= 1.0
    facts = {"labels": labels, "descriptions": names, "resize": "square" if squashed else "central"}
    return config, state, {"format": "timm", "classes": classes, **facts}


def write(
    folder: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    labels: Sequence[str],
    *,
    descriptions: Sequence[str] = (),
    resize: Resize = "square",
) -> None:
    """Write a folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads. Raises UserError.

    ``resize``: what the run does to evaluation images (pipeline.loader.transforms.eval_image), in timm's words.
    """
    if config.pre_logits:
        raise UserError(
            "model.pre_logits True has no place in timm's ViT: export to npz, onnx or safetensors, or fine-tune first "
            "(fine-tuning removes the layer)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    sizes = ARCHITECTURES[config.variant]
    classes = len(state["head.bias"])
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
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
        },
        "pretrained_cfg": {
            "tag": "",
            "input_size": size,
            "fixed_input_size": True,
            "interpolation": "bilinear",
            # squash: a direct resize to the square; center: short side to size / crop_pct, then the middle
            "crop_pct": 1.0 if resize == "square" else 1 / CENTRAL,
            "crop_mode": "squash" if resize == "square" else "center",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        "label_names": list(labels),
    }
    if descriptions:
        settings["label_descriptions"] = dict(zip(labels, descriptions, strict=True))
    write_json(folder / "config.json", settings)
