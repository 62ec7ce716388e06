"""Starting a fine-tuning: from a run, from published weights, or from scratch."""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.checkpoint import format as checkpoint
from pipeline.checkpoint.format import Checkpoint
from pipeline.config.fields import INHERITED
from pipeline.config.schema import ModelConfig, RunConfig
from pipeline.config.serialize import from_file
from pipeline.core.errors import UserError
from pipeline.core.files import check_local, read_json
from pipeline.core.log import ONCE
from pipeline.interop import hub_models
from pipeline.interop.load import load_weights
from pipeline.interop.trained_model import is_run_or_checkpoint
from pipeline.model.vit import grid_size
from pipeline.runs.folder import META, MLFLOW, is_run, read_status

logger = logging.getLogger(__name__)

SCRATCH = "scratch"


_STRUCTURE = ("layer_scale", "class_position", "registers")  # fields that change which tensors a model has
_HALVES = (ModelConfig.mean, ModelConfig.std)


@dataclass(frozen=True)
class Parent:
    """A model to start from."""

    model: ModelConfig
    weights: Mapping[str, Tensor]  # our names
    lineage: dict[str, Any]  # for run.json


def read_parent(config: RunConfig) -> Parent | None:
    """The parent that ``config`` names; None to train from random weights. Raises UserError if there is none."""
    if not config.parent:
        raise UserError(
            "--parent is missing: name the pretraining run's folder, an official .npz, a timm or transformers folder, "
            f"hf://OWNER/NAME, or {SCRATCH!r} to train from random weights"
        )
    if config.parent == SCRATCH:
        return None
    address = hub_models.parse(config.parent, "--parent")
    if address is not None:
        found = hub_models.fetch(address, "--parent")
        model, weights, _ = load_weights(found.folder, trunk=True)
        return Parent(model, weights, {"weights": found.name, "sha256": found.sha256})
    path = Path(config.parent)
    check_local(path, "--parent")
    if not path.exists():
        raise UserError(
            f"--parent {config.parent!r} does not exist: name a run folder, an official .npz, a timm or transformers "
            f"folder, hf://OWNER/NAME, or {SCRATCH!r}"
        )
    if is_run_or_checkpoint(path):
        source = checkpoint.find(path)
        if is_run(path) and (status := read_status(path)) and status.state != "finished":
            logger.warning(
                "--parent %r is not finished: these are its weights after step %d of %d",
                config.parent,
                source.meta.step,
                status.steps,
                extra=ONCE,
            )
        model = from_file(RunConfig, source.meta.config, source.path / META).model
        return Parent(model, checkpoint.read_weights(source), _lineage(source))
    model, weights, _ = load_weights(path, trunk=True)
    return Parent(model, weights, {"weights": str(path)})


def inherit(config: RunConfig, parent: Parent | None, given: Collection[str] = ()) -> RunConfig:
    """``config`` with the parent's input normalisation, unless one was ``given`` or differs from the default of 0.5.

    Warns if the model differs in settings that change the features. Raises UserError if the architecture differs.
    """
    if parent is None:
        return config
    own, theirs = config.model, parent.model
    if theirs.variant != own.variant:
        raise UserError(
            f"model.variant is {own.variant!r} but --parent {config.parent!r} is a {theirs.variant!r}: "
            f"use the recipe of {theirs.variant} or another parent"
        )
    if _structure(own) != _structure(theirs):
        resize = " --model.position_resize bicubic" if theirs.position_resize == "bicubic" else ""
        raise UserError(
            f"--parent {config.parent!r} has a different structure than the model: add "
            f"{_options(theirs, _STRUCTURE, own)}{resize} to keep the parent's"
        )
    if (own.mean, own.std) == _HALVES and not INHERITED & set(given):
        own = replace(own, mean=theirs.mean, std=theirs.std)
    differing = [name for name in ("gelu", "norm_eps", "mean", "std") if getattr(own, name) != getattr(theirs, name)]
    if differing:  # it can be trained, but the model computes slightly different features than the parent
        keeps = _options(theirs, differing)
        logger.warning("--parent %r was trained with other settings: %s keeps them", config.parent, keeps, extra=ONCE)
    if "model.position_resize" in given and grid_size(own) == grid_size(theirs):
        logger.warning(
            "model.position_resize %s has no effect: --parent %r has the same number of patches; leave it out",
            own.position_resize,
            config.parent,
            extra=ONCE,
        )
    return replace(config, model=own)


def _structure(model: ModelConfig) -> tuple[bool, bool, int]:
    return model.layer_scale > 0, model.class_position, model.registers


def _options(theirs: ModelConfig, names: Iterable[str], own: ModelConfig | None = None) -> str:
    """Command-line options that set ``names`` as in ``theirs``, except those that ``own`` already has."""
    options = []
    for name in names:
        value = getattr(theirs, name)
        if own is None or getattr(own, name) != value:
            words = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            options.append(f"--model.{name} {words}")
    return " ".join(options)


def _lineage(source: Checkpoint) -> dict[str, Any]:
    """The weights' lineage, from the parent's run folder."""
    run_dir = source.path.absolute().parent.parent
    lineage = {"run_dir": str(run_dir), "step": source.meta.step, "dataset_digest": source.meta.dataset_digest}
    mlflow = run_dir / MLFLOW
    if mlflow.is_file():
        lineage["mlflow_run_id"] = read_json(mlflow).get("run_id")
    return lineage
