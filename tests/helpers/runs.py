"""Run folders as training leaves them, written in milliseconds: with a checkpoint to export, with curves to compare."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jobs import export
from pipeline.checkpoint.format import FORMAT_VERSION, Meta
from pipeline.compare.read_runs import Run, find_run_folders, read_run
from pipeline.config.recipes import PRETRAIN
from pipeline.config.schema import DataConfig, ModelConfig
from pipeline.config.serialize import flatten, to_dict
from pipeline.core.files import write_json, xxh3_128
from pipeline.model.vit import VisionTransformer
from pipeline.runs.folder import METRICS
from pipeline.runs.records import Attempt, Line, Record, write_record
from pipeline.runs.records import to_json as line_to_json
from tests.helpers.models import random_model

CLASSES = 10
OWN_CLASSES = tuple(f"n{index}" for index in range(CLASSES))


def make_run(
    run: Path,
    model_config: ModelConfig,
    *,
    resize: str = "square",
    loss: str = "softmax",
    weights: Mapping[str, torch.Tensor] | None = None,
    average: bool = False,
    wnids: Sequence[str] = OWN_CLASSES,
    upright: bool = False,
) -> VisionTransformer:
    """A run folder with one checkpoint, in the files that training writes.

    ``weights``: random ones if None; ``upright``: whether the training dataset was made with --upright.
    """
    model = random_model(model_config, len(wnids)).eval()
    if weights:
        model.load_state_dict(dict(weights))
    checkpoint = run / "checkpoints" / "step-00000007"
    checkpoint.mkdir(parents=True)
    path = checkpoint / "state-000.safetensors"
    state = {f"param/{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {f"average/{name}": tensor / 2 for name, tensor in model.state_dict().items()} if average else {}
    save_file(state, path)
    tiny = PRETRAIN["tiny"].config
    train = replace(tiny.train, loss=loss)  # type: ignore[arg-type]
    data = DataConfig(eval_resize=resize)  # type: ignore[arg-type]
    config = to_dict(replace(tiny, model=model_config, data=data, train=train, run_dir=run, parent=str(run)))
    config["data"]["train"] = [str(run.parent / "shards" / "mine")]
    files = {path.name: {"bytes": path.stat().st_size, "xxh3_128": xxh3_128(path)}}
    metrics = {"eval/top1": 0.5} | ({"eval_average/top1": 0.625} if average else {})
    meta = Meta(FORMAT_VERSION, 7, 70, 7, config, len(wnids), "c", "digest-of-data", 1, files, 0, metrics)
    (checkpoint / "meta.json").write_text(json.dumps(asdict(meta)))
    classes = [{"wnid": wnid, "name": f"name {index}"} for index, wnid in enumerate(wnids)]
    (run / "classes.json").write_text(json.dumps(classes))
    datasets = [{"context": "train", "upright": upright}, {"context": "eval", "upright": False}]
    parent = {"run_dir": str(run.parent / "the-parent"), "step": 3}
    (run / "run.json").write_text(json.dumps({"parent": parent, "datasets": datasets}))
    return model


def run_export(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    """Run ``vit export ARGS`` in this process; return its exit code."""
    monkeypatch.setattr("sys.argv", ["export", *map(str, args)])
    return export.main()


def write_run(
    folder: Path, *, seed: int = 0, top1: float = 0.8, lr: float = 1e-3, stage: str = "pretrain",
    recipe: str = "b16", parent: Path | None = None, classes: int = 10, size: int = 224,
    experiment: str = "vit", **tags: str,
) -> Path:  # fmt: skip
    """Write a finished run: config, lineage, record and the metrics of ten steps. No checkpoint."""
    folder.mkdir(parents=True)
    tree = {"stage": stage, "recipe": recipe, "optim": {"lr": lr}, "train": {"seed": seed}, "run_dir": str(folder)}
    tree["model"] = {"image_size": size}
    write_json(folder / "config.json", tree)
    lineage = {"run_dir": str(parent)} if parent else {}
    write_json(folder / "run.json", {"classes": classes, "dataset_digest": "d" * 32, "parent": lineage})
    tags |= {f"parent_{name}": value for name, value in lineage.items()}
    ended = [Attempt(1, 0, 100.0, 1, {}, "FINISHED", 111.0)]
    write_record(folder, Record(uuid.uuid4().hex, experiment, folder.name, flatten(tree), tags, attempts=ended))
    lines = [
        Line(step, 8 * step, 100.0 + step, 1, {
            "train/loss": 2 / step, "eval/top1": top1 * step / 10, "speed/images_per_second": 100.0 + seed,
            "progress/samples": 8.0 * step, "progress/device_hours": step / 60, "progress/epochs": step / 5,
            "progress/goodput": 0.9,
        })
        for step in range(1, 11)
    ]  # fmt: skip
    (folder / METRICS).write_bytes(b"".join(map(line_to_json, lines)))
    return folder


def read_runs(folder: Path) -> list[Run]:
    """All runs below ``folder``, as jobs.compare reads them."""
    return [read_run(path) for path in find_run_folders([folder])]
