"""The official .npz layout, against a reference that copies the weights one head at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.cli import UserError
from pipeline.config import ModelConfig
from pipeline.interop import load_weights, npz
from pipeline.model import ARCHITECTURES
from tests.test_model import random_model

NORMS = {"norm1": "LayerNorm_0", "norm2": "LayerNorm_2"}


def published(state: dict[str, torch.Tensor], heads: int, depth: int) -> dict[str, np.ndarray]:
    """Arrays as google-research/vision_transformer publishes them, from the definition of each."""
    a = {name: tensor.numpy() for name, tensor in state.items()}
    width = a["cls_token"].shape[-1]
    head = width // heads
    patch = a["patch_embed.proj.weight"].shape[-1]
    kernel = np.empty((patch, patch, 3, width), np.float32)  # H W I O
    for row in range(patch):
        for column in range(patch):
            kernel[row, column] = a["patch_embed.proj.weight"][:, :, row, column].T
    arrays = {
        "cls": a["cls_token"],
        "embedding/kernel": kernel,
        "embedding/bias": a["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": a["pos_embed"],
        "Transformer/encoder_norm/scale": a["norm.weight"],
        "Transformer/encoder_norm/bias": a["norm.bias"],
        "pre_logits/kernel": a["pre_logits.fc.weight"].T,
        "pre_logits/bias": a["pre_logits.fc.bias"],
        "head/kernel": a["head.weight"].T,
        "head/bias": a["head.bias"],
    }
    for block in range(depth):
        ours, theirs = f"blocks.{block}", f"Transformer/encoderblock_{block}"
        for name, published_name in NORMS.items():
            arrays[f"{theirs}/{published_name}/scale"] = a[f"{ours}.{name}.weight"]
            arrays[f"{theirs}/{published_name}/bias"] = a[f"{ours}.{name}.bias"]
        for number, name in enumerate(("query", "key", "value")):
            kernel, bias = np.empty((width, heads, head), np.float32), np.empty((heads, head), np.float32)
            for index in range(heads):
                first = number * width + index * head
                kernel[:, index] = a[f"{ours}.attn.qkv.weight"][first : first + head].T
                bias[index] = a[f"{ours}.attn.qkv.bias"][first : first + head]
            arrays[f"{theirs}/MultiHeadDotProductAttention_1/{name}/kernel"] = kernel
            arrays[f"{theirs}/MultiHeadDotProductAttention_1/{name}/bias"] = bias
        out = np.empty((heads, head, width), np.float32)
        for index in range(heads):
            out[index] = a[f"{ours}.attn.proj.weight"][:, index * head : (index + 1) * head].T
        arrays[f"{theirs}/MultiHeadDotProductAttention_1/out/kernel"] = out
        arrays[f"{theirs}/MultiHeadDotProductAttention_1/out/bias"] = a[f"{ours}.attn.proj.bias"]
        for number in (0, 1):
            arrays[f"{theirs}/MlpBlock_3/Dense_{number}/kernel"] = a[f"{ours}.mlp.fc{number + 1}.weight"].T
            arrays[f"{theirs}/MlpBlock_3/Dense_{number}/bias"] = a[f"{ours}.mlp.fc{number + 1}.bias"]
    return arrays


@pytest.fixture(scope="module")
def example() -> tuple[ModelConfig, dict[str, torch.Tensor], dict[str, np.ndarray]]:
    model = random_model(ModelConfig("tiny", 32, pre_logits=True), 7)
    state = model.state_dict()
    sizes = ARCHITECTURES["tiny"]
    return model.config, state, published(state, sizes.heads, sizes.depth)


Example = tuple[ModelConfig, dict[str, torch.Tensor], dict[str, np.ndarray]]


def test_what_is_written_is_the_published_layout(example: Example, tmp_path: Path) -> None:
    config, state, arrays = example
    npz.write(tmp_path / "ours.npz", config, state)
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as file:
        assert set(file.files) == set(arrays)
        assert len(file.files) == 16 * 6 + 10
        for name, array in arrays.items():
            assert file[name].shape == array.shape, name
            assert (file[name] == array).all(), name


def current_flax(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = {"LayerNorm_2": "LayerNorm_1", "DotProductAttention_1": "DotProductAttention_0", "Block_3": "Block_0"}
    renamed = {}
    for name, array in arrays.items():
        for old, new in names.items():
            name = name.replace(old, new)  # noqa: PLW2901
        renamed[name] = array
    return renamed


def big_vision(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    renamed = {f"params/{name}": array for name, array in current_flax(arrays).items()}
    renamed["params/pos_embedding"] = renamed.pop("params/Transformer/posembed_input/pos_embedding")
    return renamed


@pytest.mark.parametrize("layout", [dict, current_flax, big_vision])
def test_every_layout_is_read(example: Example, tmp_path: Path, layout) -> None:  # type: ignore[no-untyped-def]
    config, state, arrays = example
    np.savez(tmp_path / "theirs.npz", **layout(arrays))
    found, ours, facts = load_weights(tmp_path / "theirs.npz")
    assert found == config
    assert facts["classes"] == 7
    assert ours.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(ours[name], tensor), name


def test_bfloat16_arrays_are_read(example: Example, tmp_path: Path) -> None:
    _, state, arrays = example
    halves = {
        name: (np.ascontiguousarray(array).view(np.uint32) >> 16).astype(np.uint16).view("V2")
        for name, array in arrays.items()
    }
    np.savez(tmp_path / "theirs.npz", **halves)
    _, ours, _ = npz.read(tmp_path / "theirs.npz")
    for name, tensor in state.items():
        torch.testing.assert_close(ours[name], tensor, rtol=2**-7, atol=0)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda arrays: arrays.pop("cls"), "no array 'cls'"),
        (lambda arrays: arrays.update({"cls": arrays["cls"][..., :-1]}), "of shape"),
        (lambda arrays: arrays.update({"head/kernel": np.array([{}], dtype=object)}), "download it again"),
    ],
)
def test_a_file_that_is_none_is_named(example: Example, tmp_path: Path, change, part: str) -> None:  # type: ignore[no-untyped-def]
    arrays = dict(example[2])
    change(arrays)
    np.savez(tmp_path / "broken.npz", **arrays)
    with pytest.raises(UserError, match=r"broken\.npz") as error:
        npz.read(tmp_path / "broken.npz")
    assert part in str(error.value)
