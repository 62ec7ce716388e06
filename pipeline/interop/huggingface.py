"""transformers' ViT folders: ``config.json``, ``model.safetensors``, ``preprocessor_config.json``.

The names written are those of transformers 4, which version 5 reads and writes too.
"""

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
from pipeline.interop.inputs import Triple, check_size, labels_of, refuse_unknown, says_imagenet, side, triple
from pipeline.interop.model_files import SETTINGS
from pipeline.interop.read_files import read_config, read_object, read_tensors
from pipeline.loader.eval_geometry import geometry, name_of
from pipeline.model.state_dict import model_config, plain
from pipeline.model.vit import ARCHITECTURES

_TOP = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_ATTENTION = ("query", "key", "value")  # one matrix in our state


# DINOv2's names within a layer -> ViT's
_DINOV2 = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_PREFIXES = ("vit.", "deit.", "dinov2.", "dinov2_with_registers.")
TRUNKS = (
    "vit_mae",
    "vit_msn",
    "deit",
    "dinov2",
    "dinov2_with_registers",
)  # accepted as parents only
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # PIL's numbers
# Fields of config.json that change the function, and the values that our model implements
_SETTINGS: dict[str, list[Any]] = {
    "qkv_bias": [True], "num_channels": [3], "pooler_act": ["tanh", None], "use_swiglu_ffn": [False],
}  # fmt: skip
# Fields of preprocessor_config.json that are read below, or have no effect on RGB images as we decode them
_PREPROCESSOR = {
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std", "do_convert_rgb", "image_processor_type", "feature_extractor_type", "processor_class",
    "data_format", "input_data_format", "default_to_square", "_valid_processor_keys", "return_tensors", "device",
    "disable_grouping", "auto_map", "image_seq_length",
}  # fmt: skip


def read(folder: Path, *, trunk: bool = False) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]:
    """Configuration, float32 state with our names, {"format", "classes", "labels", "loss", "resize"}. Raises UserError.

    Reads ViTForImageClassification and ViTModel, whose pooler is our pre_logits layer. ``trunk``: only the weights
    that fine-tuning starts from, without head, classes and geometry; also accepts ViT-MAE, and DINOv2 of our sizes.
    """
    source = str(folder / SETTINGS)
    settings = read_config(folder)
    kind = str(settings["model_type"])
    if kind != "vit" and not trunk:
        raise UserError(
            f"{source!r} has model_type {kind!r}, which has no head on the class token: use it as a --parent, or "
            "choose a ViTForImageClassification"
        )
    refuse_unknown({name: settings[name] for name in _SETTINGS if name in settings}, _SETTINGS, "a", source)
    theirs = read_tensors(folder, ("model.safetensors", "pytorch_model.bin"))
    try:
        state = _to_state(_vit_names(theirs), int(settings["num_hidden_layers"]), str(folder), trunk=trunk)
        heads = int(settings["num_attention_heads"])
    except KeyError as error:
        raise UserError(f"{str(folder)!r} has no {error}: it is not a transformers ViT folder") from None
    activation = str(settings.get("hidden_act", "gelu"))
    gelu = {"gelu": "exact", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh", "gelu_fast": "tanh"}.get(activation)
    if gelu is None:
        raise UserError(
            f"{source!r} has activation {activation!r} (hidden_act), which is not a GELU: choose a ViT as published"
        )
    preprocessor = folder / "preprocessor_config.json"
    inputs = read_object(preprocessor) if preprocessor.is_file() else {}
    mean, std = _normalisation(inputs, str(preprocessor))
    base = ModelConfig(
        gelu="exact" if gelu == "exact" else "tanh",
        norm_eps=float(settings.get("layer_norm_eps", 1e-6 if kind.startswith("dinov2") else 1e-12)),
        mean=mean,
        std=std,
    )
    config, classes = model_config(state, heads=heads, source=str(folder), base=base)
    for name, own in (("image_size", config.image_size), ("patch_size", ARCHITECTURES[config.variant].patch)):
        if settings.get(name) is not None:
            check_size(side(settings[name], name, source), own, name, source)
    facts: dict[str, Any] = {"format": "huggingface", "classes": classes}
    if trunk:
        return config, state, facts
    facts["resize"] = _resize(inputs, config.image_size, str(preprocessor)) if inputs else "square"
    facts["imagenet"] = says_imagenet(settings.get("_name_or_path"), folder.name)
    return config, state, facts | _outputs(settings, classes, source)


def _vit_names(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of related models to those of transformers' ViT, without prefix."""
    named = {}
    for name, tensor in theirs.items():
        name = next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)  # noqa: PLW2901
        match = re.fullmatch(r"(encoder\.layer\.\d+\.)(norm1|norm2|mlp\.fc1|mlp\.fc2)(\.\w+)", name)
        named[f"{match[1]}{_DINOV2[match[2]]}{match[3]}" if match else name] = tensor
    return named


def _normalisation(inputs: Mapping[str, Any], source: str) -> tuple[Triple, Triple]:
    """Mean and standard deviation for pixels from 0 to 1, including the rescaling from 0 to 255."""
    refuse_unknown({name: value for name, value in inputs.items() if name not in _PREPROCESSOR}, {}, "a", source)
    factor = inputs.get("rescale_factor", 1 / 255) if inputs.get("do_rescale", True) else 1.0
    if not isinstance(factor, (int, float)) or not 1e-6 <= factor <= 1e3:  # beyond these limits float32 overflows
        raise UserError(
            f"{source!r} has rescale_factor {factor!r}: it must be a number from 1e-06 to 1000, such as 1/255"
        )
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if inputs.get("do_normalize", True):
        mean = triple(inputs.get("image_mean", 0.5), "image_mean", source)
        std = triple(inputs.get("image_std", 0.5), "image_std", source)
    scale = factor * 255
    if abs(scale - 1) < 1e-6:
        return mean, std
    red, green, blue = (value / scale for value in mean)
    return (red, green, blue), (std[0] / scale, std[1] / scale, std[2] / scale)


def _resize(inputs: Mapping[str, Any], image_size: int, source: str) -> str:
    """The name of the geometry (eval_geometry). A size of one number means a square, as in ViT's processor."""
    if inputs.get("do_resize") is False:
        raise UserError(f"{source!r} has do_resize false, but input images have any size: set do_resize true")
    resample = inputs.get("resample", 2)
    interpolation = _RESAMPLE.get(resample, resample) if isinstance(resample, int) else str(resample)
    size = inputs.get("size", image_size)
    short = size.get("shortest_edge") if isinstance(size, dict) else None
    if isinstance(size, dict) and short is None:
        size = [size.get("height"), size.get("width")]
    elif isinstance(size, dict) and len(size) > 1:
        raise UserError(f"{source!r} has size {size!r}: give shortest_edge alone, or height and width")
    resized = side(size if short is None else short, "size", source)
    if not inputs.get("do_center_crop"):
        if short is not None:
            raise UserError(f"{source!r} has size {size!r} without do_center_crop, so images would not be square")
        check_size(resized, image_size, "size", source)
        return name_of(None, str(interpolation), image_size, source)
    crop = inputs.get("crop_size", image_size)
    crop = [crop.get("height"), crop.get("width")] if isinstance(crop, dict) else crop
    check_size(side(crop, "crop_size", source), image_size, "crop_size", source)
    if short is None and resized != image_size:
        raise UserError(
            f"{source!r} squashes images to {resized} x {resized} and then crops the middle {image_size}: only crops "
            "after resizing the short side are supported (shortest_edge)"
        )
    return name_of(image_size / resized if short is not None else None, str(interpolation), image_size, source)


def _outputs(settings: Mapping[str, Any], classes: int, source: str) -> dict[str, Any]:
    """The class names, and the loss that the head was trained with."""
    problem = settings.get("problem_type")
    losses = {None: "softmax", "single_label_classification": "softmax", "multi_label_classification": "sigmoid"}
    if problem not in losses or (problem is None and classes == 1):
        raise UserError(
            f"{source!r} has problem_type {problem!r} with {classes} outputs, which is a regression or unknown: "
            "choose a classifier"
        )
    number = settings.get("num_labels")
    if classes and number not in (None, classes):
        raise UserError(f"{source!r} has num_labels {number!r}, but the head has {classes}: correct num_labels")
    labels = labels_of(settings.get("id2label") if classes else None, classes, "id2label", source)
    if labels == [f"LABEL_{index}" for index in range(classes)]:  # transformers' default names
        labels = None
    return {"labels": labels, "loss": losses[problem]}


def write(
    folder: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    labels: Sequence[str],
    *,
    loss: str = "softmax",
    resize: str = "square",
) -> None:
    """Write a folder that ``AutoModelForImageClassification.from_pretrained(FOLDER)`` loads. Raises UserError.

    ``resize``: the run's evaluation geometry (pipeline.loader.transforms.eval_image), written in transformers' terms.
    """
    if config.pre_logits:
        raise UserError(
            "model.pre_logits True is not supported by transformers' ViTForImageClassification: export to npz, onnx "
            "or safetensors, or fine-tune first (fine-tuning removes the layer)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    sizes = ARCHITECTURES[config.variant]
    published = _from_state(plain(state, config, "transformers' ViT"), sizes.depth)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in published.items()}
    save_tensors(tensors, folder / "model.safetensors")
    settings = {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.mlp,
        "hidden_act": "gelu_pytorch_tanh" if config.gelu == "tanh" else "gelu",
        "layer_norm_eps": config.norm_eps,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "qkv_bias": True,
        "image_size": config.image_size,
        "patch_size": sizes.patch,
        "num_channels": 3,
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": "multi_label_classification" if loss == "sigmoid" else "single_label_classification",
        "torch_dtype": "float32",
    }
    write_json(folder / SETTINGS, settings)
    write_json(folder / "preprocessor_config.json", _preprocessor(config, resize))


def _preprocessor(config: ModelConfig, resize: str) -> dict[str, Any]:
    how, size = geometry(resize), config.image_size
    square = {"height": size, "width": size}
    fields: dict[str, Any]
    if how.crop is None:  # a direct resize to the square
        fields = {"image_processor_type": "ViTImageProcessor", "size": square}
    else:  # transformers 4's ViTImageProcessor can't crop
        crop = {"do_center_crop": True, "crop_size": square}
        short_side = {"shortest_edge": how.short_side(size)}
        fields = {"image_processor_type": "BitImageProcessor", "size": short_side, **crop, "do_convert_rgb": True}
    return {
        **fields,
        "do_resize": True,
        "resample": {name: number for number, name in _RESAMPLE.items()}[how.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
    }


def _to_state(theirs: dict[str, Tensor], depth: int, source: str, *, trunk: bool) -> dict[str, Tensor]:
    """The state with our names. Raises KeyError for a missing tensor, UserError for one that would be ignored."""
    state = {}
    for ours, name in _TOP.items():
        for ending in ("",) if ours in ("cls_token", "pos_embed") else (".weight", ".bias"):
            state[ours + ending] = theirs.pop(name + ending)
    for index in range(depth):
        layer = f"encoder.layer.{index}"
        for ending in (".weight", ".bias"):
            for ours, name in _BLOCK.items():
                state[f"blocks.{index}.{ours}{ending}"] = theirs.pop(f"{layer}.{name}{ending}")
            parts = [theirs.pop(f"{layer}.attention.attention.{part}{ending}") for part in _ATTENTION]
            state[f"blocks.{index}.attn.qkv{ending}"] = torch.cat(parts)
        for number in (1, 2):  # DINOv2
            if f"{layer}.layer_scale{number}.lambda1" in theirs:
                state[f"blocks.{index}.ls{number}.gamma"] = theirs.pop(f"{layer}.layer_scale{number}.lambda1")
    if "embeddings.register_tokens" in theirs:
        state["reg_token"] = theirs.pop("embeddings.register_tokens")
    # ViTForImageClassification has no pooler and ignores one in its file
    ours, name = ("head", "classifier") if "classifier.weight" in theirs else ("pre_logits.fc", "pooler.dense")
    if f"{name}.weight" in theirs and not trunk:
        state |= {f"{ours}{ending}": theirs.pop(f"{name}{ending}") for ending in (".weight", ".bias")}
    dropped = ("pooler.", "embeddings.mask_token", *(("classifier.", "decoder.", "head.") if trunk else ()))
    if unknown := [name for name in sorted(theirs) if not name.startswith(dropped)]:
        raise UserError(
            f"{source!r} has {len(unknown)} tensors that a published ViT lacks, such as {unknown[0]!r}: choose another"
        )
    return state


def _from_state(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    theirs = {}
    for ours, name in _TOP.items():
        for ending in ("",) if ours in ("cls_token", "pos_embed") else (".weight", ".bias"):
            theirs[f"vit.{name}{ending}"] = state[ours + ending]
    for index in range(depth):
        layer = f"vit.encoder.layer.{index}"
        for ending in (".weight", ".bias"):
            for ours, name in _BLOCK.items():
                theirs[f"{layer}.{name}{ending}"] = state[f"blocks.{index}.{ours}{ending}"]
            parts = state[f"blocks.{index}.attn.qkv{ending}"].chunk(3)
            for name, tensor in zip(_ATTENTION, parts, strict=True):
                theirs[f"{layer}.attention.attention.{name}{ending}"] = tensor
    for ending in (".weight", ".bias"):
        theirs[f"classifier{ending}"] = state[f"head{ending}"]
    return theirs
