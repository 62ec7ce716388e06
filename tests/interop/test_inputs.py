"""Each field of another project's files about inputs and classes is honoured or refused in one line.

Honoured: the logits of an image are those of the same weights in a folder of ours, after preparing the image as the
folder says, from the definition of each step. The weights are random, so a field that is ignored shows.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipeline.config.schema import ModelConfig
from pipeline.core.errors import UserError
from pipeline.interop import huggingface, npz, timm, trained_model
from pipeline.interop.load import load_weights
from pipeline.model.preprocess import normalise
from pipeline.model.vit import VisionTransformer
from tests.helpers.junk import HOSTILE, JUNK
from tests.helpers.models import random_model

SIZE, CLASSES = 48, 3
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), np.uint8))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = random_model(ModelConfig("tiny", SIZE), CLASSES)
    folder = tmp_path_factory.mktemp("folders")
    timm.write(folder / "timm", model.config, model.state_dict(), ["a", "b", "c"])
    huggingface.write(folder / "hf", model.config, model.state_dict(), ["a", "b", "c"])
    npz.write(folder / "model.npz", model.config, model.state_dict())
    torch.save({"model": model.state_dict()}, folder / "deit.pth")
    return folder


def changed(written: Path, tmp_path: Path, kind: str, file: str, change: Any) -> Path:
    """The folder with another ``file``; the weights are linked."""
    folder = tmp_path / kind
    folder.mkdir(exist_ok=True)
    for source in (written / kind).iterdir():
        (folder / source.name).unlink(missing_ok=True)
        (folder / source.name).symlink_to(source)
    tree = json.loads((folder / file).read_text())
    tree = change(tree) or tree
    (folder / file).unlink()
    (folder / file).write_text(json.dumps(tree))
    return folder


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """As timm 0.5 and 0.6 wrote it: one dict, class names as ``labels``."""
    inner = tree.pop("pretrained_cfg")
    tree["labels"] = tree.pop("label_names")
    return {**inner, **tree}


@pytest.mark.parametrize("form", [lambda tree: tree, flat])
def test_timm_s_mean_labels_and_interpolation_nested_and_flat(written: Path, tmp_path: Path, form: Any) -> None:
    def change(tree: dict[str, Any]) -> dict[str, Any]:
        inner = tree["pretrained_cfg"]
        inner |= {"mean": IMAGENET[0], "std": IMAGENET[1], "interpolation": "bicubic", "crop_pct": 0.9}
        inner |= {"crop_mode": "center"}
        return form(tree)

    found = trained_model.load(changed(written, tmp_path, "timm", "config.json", change))
    known = found.description
    assert [list(known.model.mean), list(known.model.std)] == list(IMAGENET)
    assert known.resize == f"central-{SIZE / math.floor(SIZE / 0.9):g}-bicubic"
    assert [entry.wnid for entry in known.classes] == ["a", "b", "c"]


def test_timm_s_defaults_are_timm_s(written: Path, tmp_path: Path) -> None:
    def bare(tree: dict[str, Any]) -> None:
        tree["pretrained_cfg"] = {}

    known = trained_model.load(changed(written, tmp_path, "timm", "config.json", bare)).description
    assert [list(known.model.mean), list(known.model.std)] == list(IMAGENET)
    assert known.resize.endswith("bicubic")


def test_names_in_pretrained_cfg(written: Path, tmp_path: Path) -> None:
    def change(tree: dict[str, Any]) -> None:
        tree["pretrained_cfg"]["label_names"] = [*tree.pop("label_names")][::-1]

    known = trained_model.load(changed(written, tmp_path, "timm", "config.json", change)).description
    assert [entry.wnid for entry in known.classes] == ["c", "b", "a"]


UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
finite = st.floats(0.01, 2.0)
triples = st.lists(finite, min_size=3, max_size=3)


@settings(max_examples=25, deadline=None, suppress_health_check=UNCHECKED)
@given(
    mean=st.one_of(finite, triples), std=st.one_of(finite, triples), factor=finite, rescale=st.booleans(),
    normalised=st.booleans(),
)  # fmt: skip
def test_transformers_steps_are_its_own(
    written: Path, tmp_path: Path, mean: Any, std: Any, factor: float, rescale: bool, normalised: bool
) -> None:
    """Rescale, subtract, divide: each when it is switched on, by definition in float64."""
    fields = {"image_mean": mean, "image_std": std, "rescale_factor": factor / 255}
    fields |= {"do_rescale": rescale, "do_normalize": normalised}
    folder = changed(written, tmp_path, "hf", "preprocessor_config.json", lambda tree: {**tree, **fields})
    config, _, _ = load_weights(folder)
    expected = PIXELS.double().permute(0, 3, 1, 2) * (factor / 255 if rescale else 1)
    if normalised:
        m, s = (torch.tensor(value if isinstance(value, list) else [value] * 3).double() for value in (mean, std))
        expected = (expected - m.view(3, 1, 1)) / s.view(3, 1, 1)
    found = normalise(PIXELS, torch.float64, config)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("fields", "resize"),
    [
        ({"size": SIZE}, "square"),
        ({"size": {"height": SIZE, "width": SIZE}, "resample": 3}, "square-bicubic"),
        ({"size": {"shortest_edge": SIZE}, "do_center_crop": True, "crop_size": SIZE}, "central-1-bilinear"),
        ({"size": {"shortest_edge": SIZE}, "do_center_crop": True, "resample": 3}, "bicubic"),
        ({"size": {"shortest_edge": 64}, "do_center_crop": True, "resample": 3}, "central-0.75-bicubic"),
        (
            {"size": {"shortest_edge": 55}, "do_center_crop": True, "crop_size": {"height": SIZE, "width": SIZE}},
            "central",
        ),
    ],
)
def test_transformers_geometry(written: Path, tmp_path: Path, fields: dict[str, Any], resize: str) -> None:
    folder = changed(written, tmp_path, "hf", "preprocessor_config.json", lambda tree: {**tree, **fields})
    assert load_weights(folder)[2]["resize"] == resize


REFUSED = [
    ("timm", "config.json", {"model_args.img_size": [32, 72]}, "only square"),
    ("timm", "config.json", {"pretrained_cfg.input_size": [3, 32, 72]}, "only square"),
    ("timm", "config.json", {"pretrained_cfg.input_size": [3, 56, 56]}, "input_size 56"),
    ("timm", "config.json", {"pretrained_cfg.input_size": [1, SIZE, SIZE]}, "three channels"),
    ("timm", "config.json", {"pretrained_cfg.mean": [0.5]}, "mean"),
    ("timm", "config.json", {"pretrained_cfg.std": [0.5, 0, 0.5]}, "std"),
    ("timm", "config.json", {"pretrained_cfg.crop_mode": "border"}, "crop_mode"),
    ("timm", "config.json", {"pretrained_cfg.crop_mode": "center", "pretrained_cfg.crop_pct": 1.2}, "crop"),
    ("timm", "config.json", {"pretrained_cfg.interpolation": "lanczos"}, "lanczos"),
    ("timm", "config.json", {"model_args.class_token": False}, "class_token"),
    ("timm", "config.json", {"model_args.qkv_bias": False}, "qkv_bias"),
    ("timm", "config.json", {"model_args.pre_norm": True}, "pre_norm"),
    ("timm", "config.json", {"model_args.norm_layer": "rmsnorm"}, "norm_layer"),
    ("timm", "config.json", {"model_args.global_pool": "avg"}, "global_pool"),
    ("timm", "config.json", {"model_args.no_embed_class": True}, "no_embed_class"),
    ("timm", "config.json", {"model_args.reg_tokens": 4}, "reg_token"),
    ("timm", "config.json", {"model_args.act_layer": "quick_gelu"}, "act_layer"),
    ("timm", "config.json", {"model_args.invented": 3}, "invented"),
    ("timm", "config.json", {"architecture": "vit_base_patch16_clip_224"}, "architecture"),
    ("timm", "config.json", {"num_classes": 5}, "num_classes"),
    ("timm", "config.json", {"label_names": {"0": "a", "2": "b", "3": "c"}}, "label_names"),
    ("hf", "config.json", {"image_size": [32, 72]}, "only square"),
    ("hf", "config.json", {"image_size": 32}, "image_size 32"),
    ("hf", "config.json", {"patch_size": 16}, "patch_size 16"),
    ("hf", "config.json", {"num_channels": 1}, "num_channels"),
    ("hf", "config.json", {"qkv_bias": False}, "qkv_bias"),
    ("hf", "config.json", {"hidden_act": "quick_gelu"}, "quick_gelu"),
    ("hf", "config.json", {"problem_type": "regression"}, "regression"),
    ("hf", "config.json", {"id2label": {"0": "a", "1": "b"}}, "id2label"),
    ("hf", "config.json", {"id2label": {"0": "a", "1": "b", "3": "c"}}, "id2label"),
    ("hf", "config.json", {"num_labels": 2, "id2label": None}, "num_labels"),
    ("hf", "config.json", {"model_type": "dinov2"}, "--parent"),
    ("hf", "preprocessor_config.json", {"size": {"height": 32, "width": 72}}, "only square"),
    ("hf", "preprocessor_config.json", {"size": {"height": 56, "width": 56}}, "size 56"),
    ("hf", "preprocessor_config.json", {"size": {"shortest_edge": 48}}, "do_center_crop"),
    ("hf", "preprocessor_config.json", {"size": {"shortest_edge": 48, "longest_edge": 90}}, "longest_edge"),
    ("hf", "preprocessor_config.json", {"do_center_crop": True, "crop_size": 32}, "crop_size 32"),
    ("hf", "preprocessor_config.json", {"size": 56, "do_center_crop": True, "crop_size": 48}, "squashes"),
    ("hf", "preprocessor_config.json", {"do_resize": False}, "do_resize"),
    ("hf", "preprocessor_config.json", {"resample": 1}, "lanczos"),
    ("hf", "preprocessor_config.json", {"rescale_factor": 0}, "rescale_factor"),
    ("hf", "preprocessor_config.json", {"image_std": [0, 1, 1]}, "image_std"),
    ("hf", "preprocessor_config.json", {"do_pad": True}, "do_pad"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "file", "fields", "part"), REFUSED)
def test_what_cannot_be_honoured_is_refused_in_one_line(
    written: Path, tmp_path: Path, kind: str, file: str, fields: dict[str, Any], part: str
) -> None:
    def change(tree: dict[str, Any]) -> None:
        for name, value in fields.items():
            *path, last = name.split(".")
            (tree[path[0]] if path else tree)[last] = value

    with pytest.raises(UserError, match=str(tmp_path)) as error:
        load_weights(changed(written, tmp_path, kind, file, change))
    assert part in str(error.value)
    assert str(error.value).isprintable()


FIELDS = ("mean", "std", "input_size", "crop_pct", "crop_mode", "interpolation")
ARGUMENTS = ("img_size", "num_heads", "act_layer", "reg_tokens", "init_values")
KEYS = [
    ("timm", "config.json", ["model_args", "pretrained_cfg", "label_names", "num_classes", "global_pool"]),
    ("timm", "config.json", ["pretrained_cfg." + name for name in FIELDS]),
    ("timm", "config.json", ["model_args." + name for name in ARGUMENTS]),
    (
        "hf",
        "config.json",
        [
            "image_size",
            "patch_size",
            "hidden_act",
            "layer_norm_eps",
            "id2label",
            "problem_type",
            "num_attention_heads",
        ],
    ),
    (
        "hf",
        "preprocessor_config.json",
        [
            "size",
            "crop_size",
            "resample",
            "rescale_factor",
            "image_mean",
            "image_std",
            "do_center_crop",
        ],
    ),
]


def with_field(name: str, value: Any) -> Any:
    """A change that sets ``name``, a key or "outer key.inner key"."""

    def change(tree: dict[str, Any]) -> None:
        *path, last = name.split(".") if name in ALL_NAMES else [name]
        (tree[path[0]] if path else tree)[last] = value

    return change


def check_read_or_refused(folder: Path) -> None:
    """Never another exception, and what is read can be run: a finite mean, a known geometry, a name for each class."""
    try:
        known = trained_model.load(folder).description
    except UserError as error:
        assert str(error).isprintable()  # noqa: PT017 - either outcome is right
        return
    assert normalise(PIXELS, torch.float32, known.model).isfinite().all()
    assert len(known.classes) == CLASSES
    trained_model.describe(known, "timm")


EACH_FIELD = [(kind, file, name) for kind, file, names in KEYS for name in names]
ALL_NAMES = {name for _, _, name in EACH_FIELD}


@pytest.mark.parametrize(("kind", "file", "name"), EACH_FIELD)
@pytest.mark.parametrize("value", ["\n", {"\x1b": "\u202e"}, ["\r", "\x85", "\ud800"]])
def test_control_characters_in_any_field(
    written: Path, tmp_path: Path, kind: str, file: str, name: str, value: Any
) -> None:
    check_read_or_refused(changed(written, tmp_path, kind, file, with_field(name, value)))


@pytest.mark.parametrize(("kind", "file", "names"), KEYS)
@settings(max_examples=40, deadline=None, suppress_health_check=UNCHECKED)
@given(data=st.data())
def test_any_value_of_any_field_is_read_or_refused(
    written: Path, tmp_path: Path, kind: str, file: str, names: list[str], data: st.DataObject
) -> None:
    name, value = data.draw(st.sampled_from(names)), data.draw(JUNK)
    check_read_or_refused(changed(written, tmp_path, kind, file, with_field(name, value)))


@pytest.mark.parametrize(("kind", "file"), [
    ("timm", "config.json"), ("hf", "config.json"), ("hf", "preprocessor_config.json"),
])  # fmt: skip
@pytest.mark.parametrize("place", ["", "model_args", "pretrained_cfg"])
@settings(max_examples=10, deadline=None, suppress_health_check=UNCHECKED)
@example(name="\n", value=1)
@example(name="\ud800", value=1)
@given(name=HOSTILE, value=JUNK)
def test_any_name_of_a_field(
    written: Path, tmp_path: Path, kind: str, file: str, place: str, name: str, value: Any
) -> None:
    def change(tree: dict[str, Any]) -> None:
        tree.get(place, tree)[name] = value

    check_read_or_refused(changed(written, tmp_path, kind, file, change))


def test_a_file_of_facebookresearch_has_imagenet_s_inputs(written: Path) -> None:
    config, state, facts = load_weights(written / "deit.pth")
    assert [list(config.mean), list(config.std), config.gelu] == [*IMAGENET, "exact"]
    assert facts["resize"] == "central-0.875-bicubic"
    assert state["head.bias"].shape == (CLASSES,)


def test_deit3_s_names_and_mae_s_decoder(tmp_path: Path) -> None:
    config = ModelConfig("tiny", SIZE, layer_scale=1e-4, class_position=False)
    state = random_model(config, CLASSES).state_dict()
    theirs = {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): t for name, t in state.items()}
    torch.save({"model": theirs}, tmp_path / "deit_3_base_224_1k.pth")
    found, ours, facts = load_weights(tmp_path / "deit_3_base_224_1k.pth")
    assert (found.layer_scale, found.class_position, facts["resize"]) == (1e-4, False, "bicubic")
    assert all(torch.equal(ours[name], tensor) for name, tensor in state.items())
    torch.save(
        {"model": {**theirs, "decoder_pos_embed": theirs["pos_embed"], "mask_token": theirs["cls_token"]}},
        tmp_path / "mae.pth",
    )
    with pytest.raises(UserError, match="decoder_pos_embed"):
        load_weights(tmp_path / "mae.pth")
    assert "head.bias" not in load_weights(tmp_path / "mae.pth", trunk=True)[1]
    torch.save({"model": {**theirs, "dist_token": theirs["cls_token"]}}, tmp_path / "distilled.pth")
    with pytest.raises(UserError, match="dist_token"):
        load_weights(tmp_path / "distilled.pth", trunk=True)


@pytest.mark.parametrize("name", ["pos_embedding", "Transformer/pos_embedding"])
@pytest.mark.parametrize("entry", [True, False])
def test_big_vision_s_position_embedding(written: Path, tmp_path: Path, name: str, entry: bool) -> None:
    """Without an entry for the class token as it saves them today: the class token has its part then."""
    with np.load(written / "model.npz") as file:
        arrays = {f"params/{key}": file[key] for key in file.files}
    position = arrays.pop("params/Transformer/posembed_input/pos_embedding")
    arrays[f"params/{name}"] = position if entry else position[:, 1:]
    arrays["params/cls"] = arrays["params/cls"] + (0 if entry else position[:, :1])
    np.savez(tmp_path / "big.npz", **arrays)
    config, state, _ = load_weights(tmp_path / "big.npz")
    assert config.class_position == entry
    model, same = VisionTransformer(config, CLASSES).eval(), random_model(ModelConfig("tiny", SIZE), CLASSES).eval()
    model.load_state_dict(state)
    x = normalise(PIXELS, torch.float32)
    torch.testing.assert_close(model(x), same(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["timm", "hf", "npz"])
@pytest.mark.parametrize("config", [
    ModelConfig("tiny", SIZE, gelu="tanh", layer_scale=0.1, class_position=False, mean=(0.4, 0.5, 0.6)),
    ModelConfig("tiny", SIZE, registers=4, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
])  # fmt: skip
def test_deit3_and_registers_in_the_formats_that_have_room(tmp_path: Path, form: str, config: ModelConfig) -> None:
    model = random_model(config, CLASSES).eval()
    state = model.state_dict()
    write = {
        "timm": lambda: timm.write(tmp_path / "out", config, state, ["a", "b", "c"], resize="central-0.75-bicubic"),
        "hf": lambda: huggingface.write(
            tmp_path / "out", config, state, ["a", "b", "c"], resize="central-0.75-bicubic"
        ),
        "npz": lambda: npz.write(tmp_path / "out.npz", config, state),
    }[form]
    if config.registers and form != "timm":
        with pytest.raises(UserError, match="reg_token"):
            write()
        return
    write()
    found, theirs, facts = load_weights(tmp_path / ("out.npz" if form == "npz" else "out"))
    other = VisionTransformer(found, CLASSES).eval()
    other.load_state_dict(theirs)
    x = normalise(PIXELS, torch.float32)
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=2e-5)
    if form != "npz":
        assert (found.mean, found.std, facts["resize"]) == (config.mean, config.std, "central-0.75-bicubic")
    if form == "timm":
        assert (found.layer_scale, found.class_position, found.registers) == (
            config.layer_scale, config.class_position, config.registers,
        )  # fmt: skip


def test_parents_of_other_kinds(written: Path, tmp_path: Path) -> None:
    """ViT-MAE with its decoder, DINOv2's names with LayerScale and registers; an unsupported tensor is named."""
    theirs = load_file(written / "hf" / "model.safetensors")
    expected = load_weights(written / "hf")[1]

    def folder(kind: str, tensors: dict[str, torch.Tensor]) -> Path:
        place = tmp_path / kind
        place.mkdir()
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, place / "model.safetensors")
        tree = json.loads((written / "hf" / "config.json").read_text()) | {"model_type": kind}
        (place / "config.json").write_text(json.dumps(tree))
        return place

    extra = theirs["vit.embeddings.cls_token"]
    mae = folder("vit_mae", {**theirs, "decoder.mask_token": extra})
    config, state, _ = load_weights(mae, trunk=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items() if not name.startswith("head."))
    names = {"layernorm_before": "norm1", "layernorm_after": "norm2", "intermediate.dense": "mlp.fc1"}
    dino = {}
    for name, tensor in theirs.items():
        new = name.replace("vit.", "dinov2_with_registers.")
        for old, other in names.items():
            new = new.replace(old, other)
        new = new if "attention" in new else new.replace("output.dense", "mlp.fc2")
        dino[new] = tensor
    for layer in range(6):
        for number in (1, 2):
            dino[f"dinov2_with_registers.encoder.layer.{layer}.layer_scale{number}.lambda1"] = torch.full((128,), 0.5)
    dino["dinov2_with_registers.embeddings.register_tokens"] = torch.ones(1, 4, 128)
    config, state, _ = load_weights(folder("dinov2_with_registers", dino), trunk=True)
    assert (config.layer_scale > 0, config.registers, config.class_position) == (True, 4, True)
    assert torch.equal(state["blocks.5.mlp.fc2.weight"], expected["blocks.5.mlp.fc2.weight"])
    with pytest.raises(UserError, match="distillation_token"):
        load_weights(folder("deit", {**theirs, "vit.embeddings.distillation_token": extra}), trunk=True)


def without(state: dict[str, torch.Tensor], part: str, **others: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors whose names lack ``part``, and ``others``, whose names have __ for a full stop."""
    kept = {name: tensor for name, tensor in state.items() if part not in name}
    return kept | {name.replace("__", "."): tensor for name, tensor in others.items()}


@pytest.mark.parametrize("trunk", [True, False])
@pytest.mark.parametrize(("form", "part", "others", "named"), [
    ("pth", "-", {"dist_token": torch.zeros(1, 1, 128)}, "'dist_token'"),
    ("pth", "pos_embed", {"rope_embed__periods": torch.ones(16)}, "'pos_embed', but 'rope_embed.periods' (1 such)"),
    ("pth", "mlp.fc1", {"blocks__0__mlp__w12__weight": torch.ones(688, 128)}, "'blocks.0.mlp.w12.weight' (1 such)"),
    ("pth", "patch_embed.proj.weight", {"patch_embed__proj__weight": torch.ones(128, 3, 14, 14)},
     "patch_embed.proj.weight has shape [128, 3, 14, 14]"),
    ("timm", "-", {"dist_token": torch.zeros(1, 1, 128)}, "'dist_token'"),
    ("timm", "pos_embed", {"rope__freqs": torch.ones(16)}, "'pos_embed', but 'rope.freqs' (1 such)"),
    ("timm", "mlp.fc1", {"blocks__0__mlp__fc1_g__weight": torch.ones(8, 8)}, "'blocks.0.mlp.fc1_g.weight' (1 such)"),
    ("timm", "patch_embed.proj.weight", {"patch_embed__proj__weight": torch.ones(128, 3, 14, 14)},
     "patch_embed.proj.weight has shape [128, 3, 14, 14]"),
    ("hf", "-", {"vit__embeddings__distillation_token": torch.zeros(1, 1, 128)}, "'embeddings.distillation_token'"),
    ("hf", "position_embeddings", {}, "'embeddings.position_embeddings'"),
    ("hf", "-", {"vit__encoder__layer__0__mlp__weights_in__weight": torch.ones(8, 8)},
     "'encoder.layer.0.mlp.weights_in.weight'"),
    ("hf", "patch_embeddings.projection.weight",
     {"vit__embeddings__patch_embeddings__projection__weight": torch.ones(128, 3, 14, 14)},
     "patch_embed.proj.weight has shape [128, 3, 14, 14]"),
])  # fmt: skip
def test_what_no_model_of_ours_has_is_refused_by_the_name_of_a_tensor(
    written: Path, tmp_path: Path, form: str, part: str, others: dict[str, torch.Tensor], named: str, trunk: bool
) -> None:
    """Distillation tokens, rotary positions, SwiGLU and patches of 14 pixels."""
    if form == "pth":
        path = tmp_path / "other.pth"
        torch.save({"model": without(torch.load(written / "deit.pth")["model"], part, **others)}, path)
    else:
        path = changed(written, tmp_path, form, "config.json", lambda tree: tree)
        tensors = without(load_file(written / form / "model.safetensors"), part, **others)
        (path / "model.safetensors").unlink()
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path / "model.safetensors")
    with pytest.raises(UserError, match=re.escape(named)) as refused:
        load_weights(path, trunk=trunk)
    assert "\n" not in str(refused.value)
