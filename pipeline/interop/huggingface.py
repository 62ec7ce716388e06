"""transformers' ViT folders: ``config.json``, ``model.safetensors``, ``preprocessor_config.json``.

The names written are those of transformers 4, which version 5 reads and writes too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config.schema import ModelConfig, Resize
from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.core.tensor_files import save_tensors
from pipeline.interop.read_files import check_normalisation, read_config, read_object, read_tensors
from pipeline.loader.transforms import CENTRAL
from pipeline.model.state_dict import model_config
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
_ATTENTION = ("query", "key", "value")  # ours are one matrix


def read(folder: Path) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]:
    """Configuration, float32 state with our names, {"format", "classes", "labels", "loss", "resize"}. Raises UserError.

    Reads ViTForImageClassification and ViTModel, whose pooler is our pre_logits layer.
    """
    settings = read_config(folder)
    if settings.get("qkv_bias", True) is not True:
        raise UserError(f"{str(folder / 'config.json')!r} has qkv_bias false: choose a ViT as published")
    preprocessor, resize = folder / "preprocessor_config.json", "square"
    if preprocessor.is_file():
        inputs = read_object(preprocessor)
        resize = "central" if inputs.get("do_center_crop") else "square"
        check_normalisation(folder, inputs.get("image_mean"), inputs.get("image_std"))
        for step in ("do_rescale", "do_normalize"):
            if inputs.get(step) is False:
                raise UserError(
                    f"{str(preprocessor)!r} has {step} false, and our inputs are from -1 to 1: choose a ViT "
                    "trained on these, as Google's are"
                )
    theirs = read_tensors(folder, ("model.safetensors", "pytorch_model.bin"))
    theirs = {name.removeprefix("vit."): tensor for name, tensor in theirs.items()}
    try:
        state = _to_state(theirs, int(settings["num_hidden_layers"]))
        heads = int(settings["num_attention_heads"])
    except KeyError as error:
        raise UserError(f"{str(folder)!r} lacks {error}: it holds no ViT of transformers") from None
    if "pre_logits.fc.weight" in state and settings.get("pooler_act", "tanh") != "tanh":
        raise UserError(f"{str(folder / 'config.json')!r} has pooler_act {settings['pooler_act']!r}: ours is tanh")
    activation = str(settings.get("hidden_act", "gelu"))
    config, classes = model_config(
        state,
        heads=heads,
        source=str(folder),
        gelu={"gelu": "exact", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh", "gelu_fast": "tanh"}.get(
            activation, activation
        ),
        norm_eps=float(settings.get("layer_norm_eps", 1e-12)),
    )
    names = settings.get("id2label") or {}
    labels = [names[str(index)] for index in range(classes)] if len(names) == classes and classes else None
    if labels == [f"LABEL_{index}" for index in range(classes)]:  # what transformers writes where nobody named them
        labels = None
    loss = "sigmoid" if settings.get("problem_type") == "multi_label_classification" else "softmax"
    facts = {"labels": labels, "loss": loss, "resize": resize}
    return config, state, {"format": "huggingface", "classes": classes, **facts}


def write(
    folder: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    labels: Sequence[str],
    *,
    loss: str = "softmax",
    resize: Resize = "square",
) -> None:
    """Write a folder that ``AutoModelForImageClassification.from_pretrained(FOLDER)`` loads. Raises UserError.

    ``resize``: what the run does to evaluation images (pipeline.loader.transforms.eval_image), in transformers' words.
    """
    if config.pre_logits:
        raise UserError(
            "model.pre_logits True has no place in transformers' ViTForImageClassification: export to npz, onnx or "
            "safetensors, or fine-tune first (fine-tuning removes the layer)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    sizes = ARCHITECTURES[config.variant]
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _from_state(state, sizes.depth).items()}
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
    write_json(folder / "config.json", settings)
    write_json(folder / "preprocessor_config.json", _preprocessor(config.image_size, resize))


def _preprocessor(size: int, resize: Resize) -> dict[str, Any]:
    square = {"height": size, "width": size}
    geometry: dict[str, Any]
    if resize == "square":  # a direct resize to the square
        geometry = {"image_processor_type": "ViTImageProcessor", "size": square}
    else:  # transformers 4's ViTImageProcessor can't crop
        crop = {"do_center_crop": True, "crop_size": square}
        short_side = {"shortest_edge": round(size * CENTRAL)}
        geometry = {"image_processor_type": "BitImageProcessor", "size": short_side, **crop, "do_convert_rgb": True}
    return {
        **geometry,
        "do_resize": True,
        "resample": 2,  # PIL's number of bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def _to_state(theirs: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    state = {}
    for ours, name in _TOP.items():
        for ending in ("",) if ours in ("cls_token", "pos_embed") else (".weight", ".bias"):
            state[ours + ending] = theirs[name + ending]
    for index in range(depth):
        layer = f"encoder.layer.{index}"
        for ending in (".weight", ".bias"):
            for ours, name in _BLOCK.items():
                state[f"blocks.{index}.{ours}{ending}"] = theirs[f"{layer}.{name}{ending}"]
            parts = [theirs[f"{layer}.attention.attention.{part}{ending}"] for part in _ATTENTION]
            state[f"blocks.{index}.attn.qkv{ending}"] = torch.cat(parts)
    # ViTForImageClassification has no pooler, and ignores one in its file
    ours, name = ("head", "classifier") if "classifier.weight" in theirs else ("pre_logits.fc", "pooler.dense")
    if f"{name}.weight" in theirs:
        state |= {f"{ours}{ending}": theirs[f"{name}{ending}"] for ending in (".weight", ".bias")}
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
