"""The run folder, which explains itself: config.json, run.json, classes.json, status.json, metrics.jsonl, checkpoints/.

- ``config.json``: pipeline.config.schema.to_dict of the run, as it first started (anew where no checkpoint was kept).
- ``run.json``: what the configuration resolved to: steps, classes, digests of the data sets, parent, code, packages.
- ``classes.json``: the class map, ``[{"wnid": ..., "name": ...}, ...]`` in index order.
- ``status.json``: state (running, stopped, finished, failed), step, steps, attempt and the latest metrics.
"""

import dataclasses
import json
import re
import time
from pathlib import Path
from typing import Any, Literal

from pipeline.config import fields
from pipeline.config.schema import ModelConfig, RunConfig
from pipeline.config.serialize import flatten, to_dict
from pipeline.core.errors import UserError
from pipeline.core.files import check_can_make, read_json, write_json

FIXED_FILES = ("config.json", "run.json", "classes.json")  # written at the first start
_DEFAULTS = flatten(to_dict(RunConfig()))


def complete(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first. A folder of another name, such as a copy, is none."""
    paths = [path.parent for path in (run_dir / "checkpoints").glob("step-*/meta.json")]
    return sorted((path for path in paths if re.fullmatch(r"step-\d{8,}", path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """By its folder's name."""
    return int(checkpoint.name.removeprefix("step-"))


@dataclasses.dataclass(frozen=True)
class Status:
    """status.json."""

    state: Literal["running", "stopped", "finished", "failed"]
    step: int
    steps: int
    attempt: int  # starts of this run so far
    time: float  # unix seconds of this status
    metrics: dict[str, float]  # the latest of each


def read_status(run_dir: Path) -> Status | None:
    path = run_dir / "status.json"
    try:
        return Status(**read_json(path)) if path.is_file() else None
    except TypeError as error:
        raise UserError(f"{str(path)!r} is damaged ({error}): put back a copy of it") from error


def write_status(run_dir: Path, status: Status) -> None:
    write_json(run_dir / "status.json", dataclasses.asdict(dataclasses.replace(status, time=time.time())))


def check_config(config: RunConfig) -> None:
    """Compare with the run that the folder holds. Raises UserError with the difference where it may not be resumed."""
    path = config.run_dir / "config.json"
    if config.run_dir.exists() and not config.run_dir.is_dir():
        raise UserError(f"--run-dir {str(config.run_dir)!r} is not a folder: name a new or an existing run folder")
    check_can_make(config.run_dir, "--run-dir")
    missing = [name for name in FIXED_FILES if not (config.run_dir / name).is_file()]
    if missing and (config.run_dir / "checkpoints").exists():
        raise UserError(
            f"--run-dir {str(config.run_dir)!r} has checkpoints but no {', '.join(missing)}: put back a copy to resume "
            "the run, or name another folder"
        )
    if not path.is_file():
        return
    # a field that the run's version didn't have yet stood for what is now its default
    old, new = flatten(to_dict(RunConfig())) | flatten(read_json(path)), flatten(to_dict(config))
    free = fields.FREE | {key for key in fields.INHERITED if new[key] == _DEFAULTS[key]}
    changed = [key for key in sorted(old | new) if old.get(key) != new.get(key) and key not in free]
    if changed:
        difference = ", ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in changed)
        raise UserError(
            f"--run-dir {str(config.run_dir)!r} holds a run with another configuration ({difference}): "
            "give the old values to resume it, or another --run-dir to start anew"
        )


def retuned(config: RunConfig, before: dict[str, Any]) -> list[str]:
    """What this start changes of the configuration ``before`` (to_dict's) that changes what is learned, in words."""
    old, new = flatten(before), flatten(to_dict(config))
    return [f"{name} {old[name]} -> {new[name]}" for name in sorted(fields.RETUNED) if old.get(name) != new[name]]


def as_begun(config: RunConfig) -> RunConfig:
    """``config`` with the parent that the run in its folder began from: with a checkpoint, it looks at no other.

    Also with the input normalisation that the run inherited from it.
    """
    if not complete(config.run_dir):
        return config
    begun = read_json(config.run_dir / "config.json")
    own, first = config.model, begun.get("model", {})
    model = dataclasses.replace(
        own,
        mean=tuple(first.get("mean", own.mean)) if own.mean == ModelConfig.mean else own.mean,
        std=tuple(first.get("std", own.std)) if own.std == ModelConfig.std else own.std,
    )
    return dataclasses.replace(config, parent=begun.get("parent", config.parent), model=model)


def check_facts(run_dir: Path, facts: dict[str, Any]) -> None:
    """Compare what the data resolve to with the run's start. Raises UserError where the data set or classes changed."""
    path = run_dir / "run.json"
    if not path.is_file():
        return
    old = read_json(path)
    for key, value in facts.items():
        if old.get(key, value) != value:
            raise UserError(
                f"{key} was {old.get(key)!r} when the run in {str(run_dir)!r} started and is {value!r} now: "
                "resume with the data it started with, or start anew in another --run-dir"
            )


def start(config: RunConfig, run: dict[str, Any], classes: list[dict[str, str]], *, resumed: bool) -> dict[str, Any]:
    """Write the folder's fixed files at the first start; return run.json's content. Rank 0 only.

    Where nothing is ``resumed``, an earlier start has left nothing, and what it wrote of its parent and code is void.
    """
    config.run_dir.mkdir(parents=True, exist_ok=True)
    if not resumed or not (config.run_dir / "config.json").exists():
        write_json(config.run_dir / "classes.json", classes)
        write_json(config.run_dir / "run.json", run)
        write_json(config.run_dir / "config.json", to_dict(config))
    return json.loads((config.run_dir / "run.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
