"""The .npz files of google-research/vision_transformer and big_vision.

Two namings are read: the published one, whose modules in a block are numbered 0/1/2/3, and that of current Flax
(LayerNorm_1, MultiHeadDotProductAttention_0, MlpBlock_0), each with or without a ``params/`` prefix. The published one
is written, since timm and Flax's own converter read it.

Letters of the shape suffixes: D width, N heads, K width of a head, H W patch rows and columns, I O channels in and out.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config.schema import ModelConfig
from pipeline.core.errors import UserError
from pipeline.core.files import appearing
from pipeline.interop.inputs import says_imagenet
from pipeline.model.state_dict import model_config, plain
from pipeline.model.vit import ARCHITECTURES

Arrays = Mapping[str, NDArray[Any]]

# Current Flax's module names in a block -> the published ones.
_PUBLISHED = {
    "LayerNorm_1": "LayerNorm_2",
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "MlpBlock_0": "MlpBlock_3",
}
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/([^/]+)/(.+)")


def read(path: Path) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Any]]:
    """Configuration, float32 state with our names, and {"format", "classes"} of a file. Raises UserError."""
    arrays = _published_names(_load(path))
    try:
        state = _to_state(arrays)
        heads = arrays["Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"].shape[1]
    except KeyError as error:
        raise UserError(f"{str(path)!r} has no array {error}: it is not an official ViT file") from None
    config, classes = model_config(state, heads=heads, source=str(path))
    _check_arrays(arrays, _to_arrays(state, heads), str(path))
    return config, state, {"format": "npz", "classes": classes, "imagenet": says_imagenet(path.name, path.parent.name)}


def write(path: Path, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """Write a state with our names as a published file (202 arrays for B with pre_logits, 200 without), atomically."""
    with appearing(path) as aside, aside.open("wb") as file:
        arrays = _to_arrays(plain(state, config, "the official .npz"), ARCHITECTURES[config.variant].heads)
        np.savez(file, **{name: np.ascontiguousarray(array) for name, array in arrays.items()})  # type: ignore[arg-type]


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: _decoded(archive[name]) for name in archive.files}
    except ValueError as error:
        if "pickle" not in str(error):
            raise UserError(f"{str(path)!r} can't be read as .npz ({error}): download it again") from error
        raise UserError(  # numpy's message recommends loading it anyway
            f"{str(path)!r} contains pickled objects, which can run code and are not loaded: save it "
            "again with arrays of numbers only"
        ) from None
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{str(path)!r} can't be read as .npz ({error}): download it again") from error


def _decoded(array: NDArray[Any]) -> np.ndarray[Any, np.dtype[Any]]:
    """Convert to float32. big_vision's bfloat16 is two opaque bytes to numpy: the upper half of a float32."""
    if array.dtype == np.dtype("V2"):
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def _published_names(arrays: Arrays) -> dict[str, NDArray[Any]]:
    for prefix in ("opt/target/", "params/"):  # the file may also contain optimizer state
        own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        arrays = own or arrays
    current = any("/MultiHeadDotProductAttention_0/" in name for name in arrays)
    renamed = {}
    for name, array in arrays.items():
        match = _BLOCK.fullmatch(name)
        if match and current:
            name = f"Transformer/encoderblock_{match[1]}/{_PUBLISHED.get(match[2], match[2])}/{match[3]}"  # noqa: PLW2901
        renamed[name] = array
    for name in ("pos_embedding", "Transformer/pos_embedding"):  # big_vision since 2022, and before
        if name in renamed:
            renamed["Transformer/posembed_input/pos_embedding"] = renamed.pop(name)
    return renamed


def _to_state(arrays: Arrays) -> dict[str, Tensor]:
    state = {
        "cls_token": arrays["cls"],
        "pos_embed": arrays["Transformer/posembed_input/pos_embedding"],
        "patch_embed.proj.weight": arrays["embedding/kernel"].transpose(3, 2, 0, 1),  # HWIO -> OIHW
        "patch_embed.proj.bias": arrays["embedding/bias"],
        **_norm(arrays, "Transformer/encoder_norm", "norm"),
    }
    depth = len({match[1] for name in arrays if (match := _BLOCK.fullmatch(name))})
    for index in range(depth):
        theirs, ours = f"Transformer/encoderblock_{index}", f"blocks.{index}"
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        qkv = [arrays[f"{attention}/{part}/kernel"] for part in ("query", "key", "value")]  # each DNK
        out_NKD = arrays[f"{attention}/out/kernel"]
        state |= {
            **_norm(arrays, f"{theirs}/LayerNorm_0", f"{ours}.norm1"),
            f"{ours}.attn.qkv.weight": np.concatenate([kernel.reshape(len(kernel), -1).T for kernel in qkv]),
            f"{ours}.attn.qkv.bias": np.concatenate(
                [arrays[f"{attention}/{part}/bias"].reshape(-1) for part in ("query", "key", "value")]
            ),
            f"{ours}.attn.proj.weight": out_NKD.reshape(-1, out_NKD.shape[-1]).T,
            f"{ours}.attn.proj.bias": arrays[f"{attention}/out/bias"],
            **_norm(arrays, f"{theirs}/LayerNorm_2", f"{ours}.norm2"),
            **_dense(arrays, f"{theirs}/MlpBlock_3/Dense_0", f"{ours}.mlp.fc1"),
            **_dense(arrays, f"{theirs}/MlpBlock_3/Dense_1", f"{ours}.mlp.fc2"),
        }
    if "pre_logits/kernel" in arrays:
        state |= _dense(arrays, "pre_logits", "pre_logits.fc")
    if "head/kernel" in arrays:
        state |= _dense(arrays, "head", "head")
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()}


def _dense(arrays: Arrays, theirs: str, ours: str) -> dict[str, NDArray[Any]]:
    return {f"{ours}.weight": arrays[f"{theirs}/kernel"].T, f"{ours}.bias": arrays[f"{theirs}/bias"]}


def _norm(arrays: Arrays, theirs: str, ours: str) -> dict[str, NDArray[Any]]:
    return {f"{ours}.weight": arrays[f"{theirs}/scale"], f"{ours}.bias": arrays[f"{theirs}/bias"]}


def _check_arrays(arrays: Arrays, expected: Arrays, source: str) -> None:
    """Raise UserError if the file has other arrays or shapes than its state would be written with.

    Reshaping to our layout would hide such differences.
    """
    if unknown := sorted(arrays.keys() - expected.keys()):
        raise UserError(
            f"{source!r} is not a ViT as published: {len(unknown)} unknown arrays {unknown[:2]}; choose another file"
        )
    for name, array in arrays.items():
        if array.shape != expected[name].shape:
            raise UserError(
                f"{source!r} has {name} of shape {list(array.shape)} instead of {list(expected[name].shape)}: choose "
                "another file"
            )


def _to_arrays(state: Mapping[str, Tensor], heads: int) -> dict[str, NDArray[Any]]:
    """The arrays of a published file, as views of the state if possible."""
    tensors = {name: tensor.detach().float().cpu().numpy() for name, tensor in state.items()}
    arrays: dict[str, NDArray[Any]] = {
        "cls": tensors["cls_token"],
        "Transformer/posembed_input/pos_embedding": tensors["pos_embed"],
        "embedding/kernel": tensors["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": tensors["patch_embed.proj.bias"],
    }

    def norm(ours: str, theirs: str) -> None:
        arrays.update({f"{theirs}/scale": tensors[f"{ours}.weight"], f"{theirs}/bias": tensors[f"{ours}.bias"]})

    def dense(ours: str, theirs: str) -> None:
        arrays.update({f"{theirs}/kernel": tensors[f"{ours}.weight"].T, f"{theirs}/bias": tensors[f"{ours}.bias"]})

    norm("norm", "Transformer/encoder_norm")
    depth = sum(name.endswith(".attn.qkv.weight") for name in tensors)
    for index in range(depth):
        ours, theirs = f"blocks.{index}", f"Transformer/encoderblock_{index}"
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        width = tensors["cls_token"].shape[-1]
        weights, biases = tensors[f"{ours}.attn.qkv.weight"], tensors[f"{ours}.attn.qkv.bias"]
        for part, name in enumerate(("query", "key", "value")):
            rows = slice(part * width, (part + 1) * width)
            arrays[f"{attention}/{name}/kernel"] = weights[rows].T.reshape(width, heads, -1)
            arrays[f"{attention}/{name}/bias"] = biases[rows].reshape(heads, -1)
        arrays[f"{attention}/out/kernel"] = tensors[f"{ours}.attn.proj.weight"].T.reshape(heads, -1, width)
        arrays[f"{attention}/out/bias"] = tensors[f"{ours}.attn.proj.bias"]
        norm(f"{ours}.norm1", f"{theirs}/LayerNorm_0")
        norm(f"{ours}.norm2", f"{theirs}/LayerNorm_2")
        dense(f"{ours}.mlp.fc1", f"{theirs}/MlpBlock_3/Dense_0")
        dense(f"{ours}.mlp.fc2", f"{theirs}/MlpBlock_3/Dense_1")
    if "pre_logits.fc.weight" in tensors:
        dense("pre_logits.fc", "pre_logits")
    if "head.weight" in tensors:
        dense("head", "head")
    return arrays
