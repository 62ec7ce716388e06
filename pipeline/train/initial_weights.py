"""Starting a fine-tune: from a run of ours, from somebody else's weights, or from scratch."""

import json
from pathlib import Path
from typing import Any

from pipeline.checkpoint import format as checkpoint
from pipeline.config.schema import ModelConfig, RunConfig
from pipeline.core.cli import UserError
from pipeline.core.files import check_local
from pipeline.interop.load import load_weights
from pipeline.interop.trained_model import is_run
from pipeline.model.transfer import transfer
from pipeline.model.vit import VisionTransformer

SCRATCH = "scratch"


def start_from_parent(config: RunConfig, model: VisionTransformer) -> dict[str, Any]:
    """Fill ``model`` with the parent's weights; return the lineage for run.json.

    Raises UserError where there is no parent, or its architecture is another.
    """
    if not config.parent:
        raise UserError(
            "--parent is missing: name the pretraining run's folder, an official .npz, a timm or transformers folder, "
            f"or {SCRATCH!r} to train from random weights"
        )
    if config.parent == SCRATCH:
        return {}
    path = Path(config.parent)
    check_local(path, "--parent")
    if not path.exists():
        raise UserError(
            f"--parent {config.parent!r} does not exist: name a run folder, an official .npz, a timm or transformers "
            f"folder, or {SCRATCH!r}"
        )
    if is_run(path):
        source = checkpoint.resolve(path)
        parent, _, weights = checkpoint.read_model(source)
        lineage = _lineage(source)
        architecture = parent.model
    else:
        architecture, weights, _ = load_weights(path)
        lineage = {"weights": str(path)}
    check_architecture(config, architecture)
    transfer(weights, model)
    return lineage


def check_architecture(config: RunConfig, parent: ModelConfig) -> None:
    if parent.variant != config.model.variant:
        raise UserError(
            f"model.variant is {config.model.variant!r} but --parent {config.parent!r} is a {parent.variant!r}: "
            f"use the recipe of {parent.variant} or another parent"
        )
    differing = [name for name in ("gelu", "norm_eps") if getattr(parent, name) != getattr(config.model, name)]
    if differing:  # it can be trained, but the parent's features are not quite what the model now computes
        remedy = " ".join(f"--model.{name} {getattr(parent, name)}" for name in differing)
        print(f"warning: --parent {config.parent!r} was trained with other settings: {remedy} keeps them", flush=True)


def _lineage(source: Path) -> dict[str, Any]:
    """Where the weights come from, by the parent's run folder."""
    run_dir = source.absolute().parent.parent
    meta = checkpoint.read_meta(source)
    lineage = {"run_dir": str(run_dir), "step": meta.step, "dataset_digest": meta.dataset_digest}
    mlflow = run_dir / "mlflow.json"
    if mlflow.is_file():
        lineage["mlflow_run_id"] = json.loads(mlflow.read_text()).get("run_id")
    return lineage
