"""Checkpoints: their files, which are complete or broken, and reading them. pipeline.checkpoint.saver writes them.

``RUN/checkpoints/step-00001000/`` holds ``meta.json`` and ``state-000.safetensors`` ...: float32 master weights as
``param/<name>`` and optimizer moments as ``exp_avg/<name>`` and so on, full-sized, dealt over the files. Nothing in it
depends on the number of ranks or the ZeRO stage it was saved under, so any can resume from it. ``meta.json`` is written
last and lists the files' sizes and hashes: it is the mark of a complete checkpoint.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch

from pipeline.config.schema import RunConfig
from pipeline.config.serialize import from_dict
from pipeline.core.errors import UserError
from pipeline.core.files import xxh3_128
from pipeline.engine import state_keys
from pipeline.runs.folder import complete as complete  # noqa: PLC0414 - looked for here

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Meta:
    """meta.json of a checkpoint."""

    format_version: int
    step: int  # optimizer steps done
    samples: int  # training samples seen
    optimizer_steps: int  # the optimizer's own counter: lower than step where steps were skipped
    config: dict[str, Any]  # pipeline.config.schema.to_dict of the run
    classes: int
    classes_digest: str
    dataset_digest: str  # of the training data set
    world_size: int  # it was saved under; for people only
    files: dict[str, dict[str, Any]]  # name -> {"bytes": int, "xxh3_128": str}
    skipped: int = 0  # steps left out because their gradient was no number
    metrics: dict[str, float] = field(default_factory=dict)  # of an evaluation at this very step
    rollbacks: int = 0  # times that such a step led back to the checkpoint before
    undone: int = 0  # steps whose work that has cost


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def latest(run_dir: Path, *, hashes: bool = False) -> Path | None:
    """The newest checkpoint whose files have the right size (and content); broken ones are passed over, said aloud."""
    for path in reversed(complete(run_dir)):
        fault = find_fault(path, hashes=hashes)
        if fault is None:
            return path
        logger.warning("checkpoint %s is passed over: %s", path, fault)
    return None


def read_meta(checkpoint: Path) -> Meta:
    """Raises UserError where ``checkpoint`` is no complete checkpoint or of another version."""
    path = checkpoint / "meta.json"
    try:
        meta = Meta(**json.loads(path.read_text(encoding="utf-8")))
        listed = [(entry["bytes"], entry["xxh3_128"]) for entry in meta.files.values()]
        number = checkpoint.name.removeprefix("step-")  # a copy may have a name of its own
        if not listed or (number.isdecimal() and int(number) != meta.step):
            raise ValueError(f"its meta.json is of step {meta.step} with {len(listed)} files")
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:  # also of bytes that are no text
        raise UserError(f"{str(checkpoint)!r} is not a complete checkpoint ({error}): name another one") from error
    if meta.format_version != FORMAT_VERSION:
        raise UserError(f"{str(path)!r} has format_version {meta.format_version}, this code reads {FORMAT_VERSION}")
    return meta


def find_fault(checkpoint: Path, *, hashes: bool) -> str | None:
    """What is wrong with a checkpoint's files: None where they have the sizes (and hashes) that meta.json lists."""
    try:
        meta = read_meta(checkpoint)
    except UserError as error:
        return str(error)
    for name, expected in meta.files.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != expected["bytes"]:
            return f"{name} is missing or not {expected['bytes']} bytes long"
        if hashes and xxh3_128(path) != expected["xxh3_128"]:
            return f"{name} does not have the hash it was saved with"
    return None


class State(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint by key, read when asked for. CPU, float32."""

    def __init__(self, checkpoint: Path):
        self._files = [
            safetensors.safe_open(checkpoint / name, framework="pt") for name in sorted(read_meta(checkpoint).files)
        ]
        self._where = {key: file for file in self._files for key in file.keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._where[key].get_tensor(key)  # type: ignore[no-any-return,no-untyped-call]

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def read_model(run_or_checkpoint: Path, *, average: bool = False) -> tuple[RunConfig, int, dict[str, torch.Tensor]]:
    """The run's configuration, number of classes and float32 weights, from its newest checkpoint or a named one.

    ``average``: the running average of the weights instead. Raises UserError where there is none.
    """
    checkpoint = resolve(run_or_checkpoint)
    _refuse_broken(checkpoint, hashes=True)
    meta = read_meta(checkpoint)
    prefix = (state_keys.AVERAGE if average else state_keys.MASTER) + "/"
    state = State(checkpoint)
    if not any(key.startswith(prefix) for key in state):
        raise UserError(f"{str(checkpoint)!r} holds no averaged weights: train with --train.average, or use the last")
    weights = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
    return from_dict(RunConfig, meta.config), meta.classes, weights


def resolve(run_or_checkpoint: Path) -> Path:
    """A checkpoint's folder from itself or from its run's folder. Raises UserError where there is no sound one."""
    if (run_or_checkpoint / "meta.json").is_file():
        _refuse_broken(run_or_checkpoint, hashes=False)
        return run_or_checkpoint
    if not run_or_checkpoint.is_dir():
        raise UserError(f"{str(run_or_checkpoint)!r} does not exist: name a run folder or a checkpoint in it")
    checkpoint = latest(run_or_checkpoint)
    if checkpoint is None:
        raise UserError(
            f"{str(run_or_checkpoint)!r} has no complete checkpoint: name a run folder that has checkpoints/step-*/"
        )
    return checkpoint


def _refuse_broken(checkpoint: Path, *, hashes: bool) -> None:
    if fault := find_fault(checkpoint, hashes=hashes):
        raise UserError(f"checkpoint {str(checkpoint)!r} is broken ({fault}): name another one of its run")
