"""Checkpoints: their files, which are complete or broken, and reading them. pipeline.checkpoint.saver writes them.

``RUN/checkpoints/step-00001000/`` holds ``meta.json`` and ``state-000.safetensors`` ...: float32 master weights as
``param/<name>`` and optimizer moments as ``exp_avg/<name>`` and so on, unsharded, distributed over the files. It does
not depend on the number of ranks or the ZeRO stage it was saved with, so a run can resume with any others.
``meta.json`` is written last and lists the files' sizes and hashes: it marks a complete checkpoint.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch

from pipeline.config.schema import RunConfig
from pipeline.config.serialize import from_dict, from_file
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, xxh3_128
from pipeline.engine import state_keys
from pipeline.runs.folder import META
from pipeline.runs.folder import complete as complete  # noqa: PLC0414 - looked for here

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Meta:
    """meta.json of a checkpoint."""

    format_version: int
    step: int  # finished optimizer steps
    samples: int  # training samples seen
    optimizer_steps: int  # the optimizer's own counter: lower than step if steps were skipped
    config: dict[str, Any]  # pipeline.config.schema.to_dict of the run
    classes: int
    classes_digest: str
    dataset_digest: str  # of the training dataset
    world_size: int  # number of ranks that saved it; informational
    files: dict[str, dict[str, Any]]  # name -> {"bytes": int, "xxh3_128": str}
    skipped: int = 0  # steps skipped because their gradient was non-finite
    metrics: dict[str, float] = field(default_factory=dict)  # from an evaluation at exactly this step
    rollbacks: int = 0  # number of roll-backs to an earlier checkpoint after such steps
    undone: int = 0  # steps whose updates were lost by roll-backs


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, and its meta.json, which is read once."""

    path: Path
    meta: Meta

    def state(self) -> "State":
        return State(self.path, self.meta)


def newest(checkpoints: Sequence[Path], *, hashes: bool = False) -> Checkpoint | None:
    """The last checkpoint whose files have the right size (and content); broken ones are skipped with a warning."""
    for path in reversed(checkpoints):
        try:
            return _read_sound(path, hashes=hashes)
        except UserError as error:
            logger.warning("checkpoint %s is skipped: %s", path, error)
    return None


def read_meta(checkpoint: Path) -> Meta:
    """Raise UserError if ``checkpoint`` isn't a complete checkpoint, or has another format version."""
    path = checkpoint / META
    try:
        meta = from_dict(Meta, read_json(path))
        listed = [(entry["bytes"], entry["xxh3_128"]) for entry in meta.files.values()]
        number = checkpoint.name.removeprefix("step-")  # a copy may have another name
        if not listed or (number.isdecimal() and int(number) != meta.step):
            raise ValueError(f"its meta.json is of step {meta.step} with {len(listed)} files")
    except (UserError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{str(checkpoint)!r} is not a complete checkpoint ({error}): name another one") from error
    if meta.format_version != FORMAT_VERSION:
        raise UserError(f"{str(path)!r} has format_version {meta.format_version}, this code reads {FORMAT_VERSION}")
    return meta


def _read_sound(checkpoint: Path, *, hashes: bool) -> Checkpoint:
    """Raise UserError unless the files have the sizes (and hashes) that meta.json lists."""
    found = Checkpoint(checkpoint, read_meta(checkpoint))
    _check_files(found, hashes=hashes)
    return found


def _check_files(checkpoint: Checkpoint, *, hashes: bool) -> None:
    for name, expected in checkpoint.meta.files.items():
        path, fault = checkpoint.path / name, ""
        try:
            if path.stat().st_size != expected["bytes"]:
                fault = f"{name} is not {expected['bytes']} bytes long"
            elif hashes and xxh3_128(path) != expected["xxh3_128"]:
                fault = f"{name} does not have the hash it was saved with"
        except FileNotFoundError:  # also if a training deletes the checkpoint just now
            fault = f"{name} is missing"
        if fault:
            raise UserError(f"checkpoint {str(checkpoint.path)!r} is broken ({fault}): name another one of its run")


class State(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint by key, read on access. CPU, float32."""

    def __init__(self, checkpoint: Path, meta: Meta | None = None):
        """``meta``: content of meta.json, if already read."""
        names = sorted((meta or read_meta(checkpoint)).files)
        self._files = [safetensors.safe_open(checkpoint / name, framework="pt") for name in names]
        self._where = {key: file for file in self._files for key in file.keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118

    def __getitem__(self, key: str) -> torch.Tensor:
        return self._where[key].get_tensor(key)  # type: ignore[no-any-return,no-untyped-call]

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def read_model(run_or_checkpoint: Path, *, average: bool = False) -> tuple[RunConfig, int, dict[str, torch.Tensor]]:
    """The run's configuration, number of classes and float32 weights, from its newest checkpoint or a named one.

    Raises UserError as :func:`read_weights`.
    """
    found = find(run_or_checkpoint)
    weights = read_weights(found, average=average)
    return from_file(RunConfig, found.meta.config, found.path / META), found.meta.classes, weights


def read_weights(checkpoint: Checkpoint, *, average: bool = False) -> dict[str, torch.Tensor]:
    """The float32 weights, or with ``average`` their running average. Raises UserError if they are broken."""
    _check_files(checkpoint, hashes=True)
    prefix = (state_keys.AVERAGE if average else state_keys.MASTER) + "/"
    state = checkpoint.state()
    if not any(key.startswith(prefix) for key in state):
        raise UserError(
            f"{str(checkpoint.path)!r} contains no averaged weights: train with --train.average, or use the last"
        )
    return {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}


def is_checkpoint(path: Path) -> bool:
    return (path / META).is_file()


def find(run_or_checkpoint: Path) -> Checkpoint:
    """A checkpoint by its folder, or the newest sound one of a run. Raises UserError if there is none."""
    if is_checkpoint(run_or_checkpoint):
        return _read_sound(run_or_checkpoint, hashes=False)
    if not run_or_checkpoint.is_dir():
        raise UserError(f"{str(run_or_checkpoint)!r} does not exist: name a run folder or a checkpoint in it")
    found = newest(complete(run_or_checkpoint))
    if found is None:
        raise UserError(
            f"{str(run_or_checkpoint)!r} has no complete checkpoint: name a run folder that has checkpoints/step-*/"
        )
    return found
