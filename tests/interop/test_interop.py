"""The official .npz layout, against a reference that copies the weights one head at a time; folders of others."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config.schema import ModelConfig
from pipeline.core.errors import UserError
from pipeline.interop import huggingface, npz, timm, trained_model
from pipeline.interop.load import load_weights
from pipeline.model.vit import ARCHITECTURES
from tests.helpers.models import random_model

KEY = "Transformer/encoderblock_3/MultiHeadDotProductAttention_1/key/kernel"  # of heads x their width, by position
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


def with_optimizer(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"opt/target/{name}": array for name, array in arrays.items()} | {"opt/state/step": np.array(3)}


@pytest.mark.parametrize("layout", [dict, current_flax, big_vision, with_optimizer])
def test_every_layout_is_read(example: Example, tmp_path: Path, layout) -> None:  # type: ignore[no-untyped-def]
    config, state, arrays = example
    np.savez(tmp_path / "theirs.npz", **layout(arrays))
    found, ours, facts = load_weights(tmp_path / "theirs.npz")
    assert found == config
    assert facts["classes"] == 7
    assert ours.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(ours[name], tensor), name


def test_files_without_pre_logits_or_head_are_read(tmp_path: Path) -> None:
    """As AugReg's and those of features alone are."""
    model = random_model(ModelConfig("tiny", 32), 7)
    headless = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head.")}
    npz.write(tmp_path / "ours.npz", model.config, model.state_dict())
    npz.write(tmp_path / "headless.npz", model.config, headless)
    for path, classes in ((tmp_path / "ours.npz", 7), (tmp_path / "headless.npz", 0)):
        config, state, facts = load_weights(path)
        assert (config, facts["classes"]) == (model.config, classes)
        assert state.keys() == (model.state_dict() if classes else headless).keys()


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
        (lambda arrays: arrays.update({"head/kernel": np.array([{}], dtype=object)}), "contains pickled objects"),
        (lambda arrays: arrays.update({"MAPHead_0/probe": arrays["cls"]}), "1 unknown arrays ['MAPHead_0/probe']"),
        (lambda arrays: arrays.update({KEY: arrays[KEY].transpose(0, 2, 1)}), f"{KEY} of shape [128, 32, 4] instead"),
    ],
)
def test_a_file_that_is_none_is_named(example: Example, tmp_path: Path, change, part: str) -> None:  # type: ignore[no-untyped-def]
    arrays = dict(example[2])
    change(arrays)
    np.savez(tmp_path / "broken.npz", **arrays)
    with pytest.raises(UserError, match=r"broken\.npz") as error:
        npz.read(tmp_path / "broken.npz")
    assert part in str(error.value)


def folders_of(tmp_path: Path) -> tuple[Path, Path]:
    """A timm and a transformers folder of one model with three classes."""
    model = random_model(ModelConfig("tiny", 32), 3)
    timm.write(tmp_path / "timm", model.config, model.state_dict(), ["a", "b", "c"])
    huggingface.write(tmp_path / "hf", model.config, model.state_dict(), ["a", "b", "c"])
    return tmp_path / "timm", tmp_path / "hf"


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))


def test_what_timm_s_own_saving_adds_is_read(tmp_path: Path) -> None:
    folder, _ = folders_of(tmp_path)
    changed(folder / "config.json", lambda it: it["model_args"].update(in_chans=3, num_classes=3, global_pool="token"))
    changed(folder / "config.json", lambda it: it.update(label_names={"0": "x", "1": "y", "2": "z"}))
    assert load_weights(folder)[2]["labels"] == ["x", "y", "z"]


def test_what_transformers_own_saving_adds_is_read(tmp_path: Path) -> None:
    _, folder = folders_of(tmp_path)
    expected = load_weights(folder)[1]
    tensors = load_file(folder / "model.safetensors")
    width = len(tensors["vit.layernorm.bias"])
    pooler = {"vit.pooler.dense.weight": torch.ones(width, width), "vit.pooler.dense.bias": torch.ones(width)}
    (folder / "model.safetensors").unlink()
    both = {**tensors, **pooler}  # the class of models with a classifier has no pooler
    names = sorted(both)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: both[name] for name in part}, folder / f"model-{number}.safetensors")
        weight_map |= dict.fromkeys(part, f"model-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    changed(folder / "config.json", lambda it: it.update(id2label={str(n): f"LABEL_{n}" for n in range(3)}))
    config, state, facts = load_weights(folder)
    assert not config.pre_logits
    assert facts["labels"] is None
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("kind", "file", "change", "part"),
    [
        (0, "config.json", lambda it: it["model_args"].update(in_chans=4), "in_chans"),
        (0, "config.json", lambda it: it.update(label_names=["a"]), "1 label_names"),
        (0, "config.json", lambda it: it.update(label_descriptions=["a"]), "differs from its project's format"),
        (0, "config.json", lambda it: it.update(model_args=["a"]), "differs from its project's format"),
        (1, "config.json", lambda it: it.update(id2label={"1": "a", "2": "b", "3": "c"}), "id2label for 3"),
        (1, "config.json", lambda it: it.update(layer_norm_eps=None), "differs from its project's format"),
        (1, "preprocessor_config.json", lambda it: it.update(do_resize=False), "do_resize false"),
        (1, "preprocessor_config.json", lambda it: it.update(image_mean=[0.4, 0.4]), "image_mean"),
    ],
)
def test_a_folder_that_isn_t_as_written_is_one_line(  # type: ignore[no-untyped-def]
    tmp_path: Path, kind: int, file: str, change, part: str
) -> None:
    folder = folders_of(tmp_path)[kind]
    changed(folder / file, change)
    with pytest.raises(UserError, match=str(folder)) as error:
        load_weights(folder)
    assert part in str(error.value)


def test_a_training_s_checkpoint_is_no_model(tmp_path: Path) -> None:
    folder, _ = folders_of(tmp_path)
    torch.save({"state_dict": load_file(folder / "model.safetensors")}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds more than tensors"):
        load_weights(folder)


def test_a_pickle_that_could_run_code_is_refused_without_advice_to_load_it(tmp_path: Path) -> None:
    folder, _ = folders_of(tmp_path)
    torch.save(torch.nn.Linear(2, 2), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="can run code and is not loaded") as error:
        load_weights(folder)
    assert "weights_only" not in str(error.value)


def test_a_pickled_npz_is_refused_without_advice_to_load_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "B_16.npz", cls=np.array([{"not": "a tensor"}], dtype=object))
    with pytest.raises(UserError, match=r"B_16.npz' contains pickled objects, which can run code") as error:
        npz.read(tmp_path / "B_16.npz")
    assert not re.search("unsafe|allow_pickle|download it again", str(error.value))


def test_a_part_that_was_not_downloaded_is_named(tmp_path: Path) -> None:
    _, folder = folders_of(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"cls_token": "model-1.safetensors"}})
    )
    with pytest.raises(UserError, match=r"hf/model-1.safetensors', which .* lists, is missing"):
        load_weights(folder)


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    _, folder = folders_of(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.to(torch.int8) for name, tensor in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(UserError, match="quantized"):
        load_weights(folder)


def test_a_description_speaks_only_of_the_model_beside_it(example: Example, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    np.savez(tmp_path / "out" / "other.npz", **example[2])
    (tmp_path / "out" / "model.json").write_text("{}")
    assert len(trained_model.load(tmp_path / "out" / "other.npz").description.classes) == 7


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda it: it.update(label_names=["c", "b", "a"]), "other classes"),
        (lambda it: it["pretrained_cfg"].update(crop_mode="center", crop_pct=0.875), "other resize"),
    ],
)
def test_a_model_saved_over_an_export_is_not_described_by_it(tmp_path: Path, change, part: str) -> None:  # type: ignore[no-untyped-def]
    folder, _ = folders_of(tmp_path)
    named = tuple(trained_model.Named(letter, letter) for letter in "abc")
    described = trained_model.describe(trained_model.Description(ModelConfig("tiny", 32), named), "timm")
    (folder / "model.json").write_text(json.dumps(described))
    assert trained_model.load(folder).description.classes == named
    (folder / "model.json").write_text(json.dumps(described | {"model": {"variant": "tiny", "image_size": 48}}))
    with pytest.raises(UserError, match="other image_size"):
        trained_model.load(folder)
    (folder / "model.json").write_text(json.dumps(described))
    changed(folder / "config.json", change)
    with pytest.raises(UserError, match=f"{part}.* remove model.json"):
        trained_model.load(folder)
