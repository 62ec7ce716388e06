"""Starting a fine-tune: from a run, an official .npz, timm's and transformers' folders, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.config.schema import ModelConfig, RunConfig
from pipeline.config.serialize import from_dict
from pipeline.core.errors import UserError
from pipeline.interop import huggingface, npz, timm
from pipeline.model.transfer import resize_pos_embed, transfer
from pipeline.model.vit import VisionTransformer
from pipeline.runs.folder import RunFolder, Status, complete, write_status
from pipeline.train.initial_weights import Parent, inherit, read_parent
from pipeline.train.setup import prepare
from tests.helpers.models import random_model

LABELS = [f"class{index}" for index in range(7)]


@pytest.fixture(scope="module")
def parent() -> VisionTransformer:
    return random_model(ModelConfig("tiny", 32), 7)


def finetune(path: object, **model: object) -> tuple[VisionTransformer, dict[str, object]]:
    config = RunConfig(stage="finetune", parent=str(path), model=ModelConfig("tiny", 48, **model))  # type: ignore[arg-type]
    parent = read_parent(config)
    assert parent is not None
    child = VisionTransformer(inherit(config, parent).model, 10)
    transfer(parent.weights, child)
    return child, parent.lineage


def check(child: VisionTransformer, parent: VisionTransformer) -> None:
    ours, theirs = child.state_dict(), parent.state_dict()
    for name, tensor in theirs.items():
        if name == "pos_embed":
            assert torch.equal(ours[name], resize_pos_embed(tensor, 6))
        elif not name.startswith("head."):
            assert torch.equal(ours[name], tensor), name
    assert not ours["head.weight"].any()


def write_npz(parent: VisionTransformer, folder: Path) -> Path:
    npz.write(folder / "parent.npz", parent.config, parent.state_dict())
    return folder / "parent.npz"


def write_timm(parent: VisionTransformer, folder: Path) -> Path:
    timm.write(folder / "timm", parent.config, parent.state_dict(), LABELS)
    return folder / "timm"


def write_huggingface(parent: VisionTransformer, folder: Path) -> Path:
    huggingface.write(folder / "hf", parent.config, parent.state_dict(), LABELS)
    return folder / "hf"


@pytest.mark.parametrize("write", [write_npz, write_timm, write_huggingface])
def test_weights_of_others(parent: VisionTransformer, tmp_path: Path, caplog: pytest.LogCaptureFixture, write) -> None:  # type: ignore[no-untyped-def]
    path = write(parent, tmp_path)
    child, lineage = finetune(path)
    check(child, parent)
    assert lineage == {"weights": str(path)}
    assert not caplog.records


def test_other_settings_of_the_parent_are_pointed_out(
    parent: VisionTransformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = dataclasses.replace(parent.config, gelu="exact", norm_eps=1e-12)
    huggingface.write(tmp_path / "hf", config, parent.state_dict(), LABELS)
    child, _ = finetune(tmp_path / "hf")
    check(child, parent)
    assert "--model.gelu exact --model.norm_eps 1e-12 keeps them" in caplog.text
    caplog.clear()
    finetune(tmp_path / "hf", gelu="exact", norm_eps=1e-12)
    assert not caplog.records


def test_the_weights_of_an_unfinished_run_are_pointed_out(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    config = RunConfig(stage="finetune", parent=str(run))
    assert read_parent(config) is not None
    assert not caplog.records
    write_status(run, Status("stopped", 60, 400, 1, 0.0, {}))
    assert read_parent(config) is not None
    assert f"--parent '{run}' is not finished: these are its weights after step 60 of 400" in caplog.text
    caplog.clear()
    newest = complete(run)[-1]
    assert read_parent(dataclasses.replace(config, parent=str(newest))) is not None  # a checkpoint, on purpose
    assert not caplog.records


def test_scratch_changes_nothing() -> None:
    config = RunConfig(stage="finetune", parent="scratch", model=ModelConfig("tiny", 48))
    assert read_parent(config) is None
    assert inherit(config, None) == config


def test_what_is_no_parent(tmp_path: Path) -> None:
    cases = [("", "--parent is missing"), (tmp_path / "gone", "does not exist"), (tmp_path, "config.json")]
    for path, said in cases:
        with pytest.raises(UserError) as error:
            finetune(path)
        assert said in str(error.value)
    big = random_model(ModelConfig("b32", 32), 3)
    npz.write(tmp_path / "b32.npz", big.config, big.state_dict())
    with pytest.raises(UserError) as error:
        finetune(tmp_path / "b32.npz")
    assert "model.variant is 'tiny'" in str(error.value)
    assert "b32" in str(error.value)


def test_a_start_that_left_no_checkpoint_leaves_no_parent(tmp_path: Path) -> None:
    def start(parent: str, *, resumed: bool) -> None:
        config = RunConfig(run_dir=tmp_path, stage="finetune", parent=parent)
        RunFolder(tmp_path).write_fixed(config, {"parent": {"weights": parent}}, [], resumed=resumed)

    def told() -> list[str]:
        run, config = (json.loads((tmp_path / name).read_text()) for name in ("run.json", "config.json"))
        return [run["parent"]["weights"], config["parent"]]

    start("first", resumed=False)
    start("second", resumed=False)
    assert told() == ["second", "second"]
    start("third", resumed=True)
    assert told() == ["second", "second"]


def test_another_parent_of_a_begun_run_is_pointed_out(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "run")
    tree = json.loads((tmp_path / "run" / "config.json").read_text()) | {"stage": "finetune", "parent": "first"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(tree))
    config = dataclasses.replace(from_dict(RunConfig, tree), run_dir=tmp_path / "run")
    prepare(dataclasses.replace(config, parent=str(tmp_path / "first")))  # the same by another name
    assert "--parent" not in caplog.text
    prepare(dataclasses.replace(config, parent="second"))
    assert "--parent 'second' is ignored" in caplog.text


def test_a_parent_s_normalisation_travels_with_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    model = ModelConfig("tiny", 32, mean=mean, std=std)
    config = RunConfig(stage="finetune", parent="parent", model=ModelConfig("tiny", 48))
    found = inherit(config, Parent(model, {}, {})).model
    assert (found.mean, found.std, found.image_size) == (mean, std, 48)
    assert not caplog.records
    own = dataclasses.replace(config.model, mean=(0.4, 0.4, 0.4))
    assert inherit(dataclasses.replace(config, model=own), Parent(model, {}, {})).model == own
    assert "--model.mean 0.485 0.456 0.406 --model.std 0.229 0.224 0.225 keeps them" in caplog.text
    # a resumed run keeps what it inherited, without its parent
    begun = dataclasses.replace(config, run_dir=tmp_path, model=found)
    RunFolder(tmp_path).write_fixed(begun, {}, [], resumed=False)
    again = dataclasses.replace(begun, model=ModelConfig("tiny", 48))
    RunFolder(tmp_path).check_config(again)
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000001" / "meta.json").write_text("{}")
    assert RunFolder(tmp_path).as_begun(again) == begun
    with pytest.raises(UserError, match=r"model\.mean"):
        RunFolder(tmp_path).check_config(dataclasses.replace(again, model=own))


def test_a_parent_of_another_structure_is_one_line_with_the_options() -> None:
    parent = ModelConfig("tiny", 32, layer_scale=1e-4, class_position=False, position_resize="bicubic")
    config = RunConfig(stage="finetune", parent="parent", model=ModelConfig("tiny", 48))
    with pytest.raises(UserError) as error:
        inherit(config, Parent(parent, {}, {}))
    assert "--model.layer_scale 0.0001 --model.class_position False --model.position_resize bicubic" in str(error.value)
