"""The run folder: the names of its files, which are defined only here, and what startup reads and writes.

- ``config.json``: pipeline.config.schema.to_dict of the run, at the first start (rewritten if no checkpoint exists).
- ``run.json``: facts resolved from it: steps, classes, digests of the datasets, parent, code, packages.
- ``classes.json``: the class map, ``[{"wnid": ..., "name": ...}, ...]`` in index order.
- ``status.json``: state (running, stopped, finished, failed), step, steps, attempt and the latest metrics.

The modules named below document the other files.
"""

import dataclasses
import re
import time
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipeline.config import fields
from pipeline.config.schema import ModelConfig, RunConfig
from pipeline.config.serialize import flatten, from_file, to_dict
from pipeline.core.errors import UserError
from pipeline.core.files import check_can_make, read_json, write_json

CONFIG = "config.json"
FACTS = "run.json"
CLASSES = "classes.json"
STATUS = "status.json"
CHECKPOINTS = "checkpoints"  # step-00001000/ and so on: pipeline.checkpoint.format
META = "meta.json"  # in a checkpoint's folder: marks it as complete
RECORD = "tracking.json"  # records.py, as the next two
METRICS = "metrics.jsonl"
SYSTEM = "system"  # <node>.jsonl: the same format with metrics of a node; step counts the measurements
EVALUATION_LINES = "evaluations.jsonl"  # the same format, written by jobs.evaluate
EVALUATIONS = "evaluations"  # one folder per evaluation: evaluations.py
LEDGER = "ledger.txt"  # sample_ledger.py
DAMAGE = "damage.tsv"  # damage_record.py
OWNER = "owner.json"  # ownership.py
CODE = "code"  # packages and uncommitted changes, by attempt: provenance.py
PROFILE = "profile"  # pipeline.train.profiler
COLLECTIVES = "collectives"  # of a job that hung: pipeline.distributed.flight_recorder
NONFINITE = "nonfinite"  # batches of non-finite steps: pipeline.train.anomalies
MLFLOW = "mlflow.json"  # what MLflow has received: pipeline.tracking.sync, as the next three
MLFLOW_LOCK = ".mlflow.lock"
MLFLOW_LOG = "mlflow.log"
CURVES = "curves.png"
SLURM_STARTS = Path("slurm", "attempts.tsv")  # slurm/launch.sh
SLURM_FAILED = Path("slurm", "failed")  # slurm/rank.sh, or the heartbeat for a rank that hangs

FIXED = (CONFIG, FACTS, CLASSES)  # written at the first start
_DEFAULTS = flatten(to_dict(RunConfig()))


def is_run(path: Path) -> bool:
    """Whether ``path`` is a run folder: training has started in it, or Slurm has tried to start it.

    Other programs' models also have a config.json, and a sweep's folder has a tracking.json.
    """
    return (path / FACTS).is_file() or (path / CHECKPOINTS).is_dir() or (path / SLURM_STARTS).is_file()


def complete(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first. Folders with other names, such as copies, don't count."""
    paths = [path.parent for path in (run_dir / CHECKPOINTS).glob(f"step-*/{META}")]
    return sorted((path for path in paths if re.fullmatch(r"step-\d{8,}", path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's folder name."""
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
    fewer_nodes: str = ""  # "4 of 8 nodes" while a Slurm job trains on fewer nodes than it was given (slurm/nodes.sh)


def read_status(run_dir: Path) -> Status | None:
    path = run_dir / STATUS
    return from_file(Status, read_json(path), path) if path.is_file() else None


def write_status(run_dir: Path, status: Status) -> None:
    write_json(run_dir / STATUS, dataclasses.asdict(dataclasses.replace(status, time=time.time())))


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run folder as found at startup. Each file is read at most once, on first access.

    Open it once and pass it on; open it again to see later changes.
    """

    path: Path

    @cached_property
    def config(self) -> dict[str, Any] | None:
        """config.json; None before the first start. Raises UserError if it is damaged, as do the next ones."""
        return self._read(CONFIG)

    @cached_property
    def facts(self) -> dict[str, Any] | None:
        """run.json; None before the first start."""
        return self._read(FACTS)

    @cached_property
    def status(self) -> Status | None:
        return read_status(self.path)

    @cached_property
    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return complete(self.path)

    def _read(self, name: str) -> dict[str, Any] | None:
        return read_json(self.path / name) if (self.path / name).is_file() else None

    def check_config(self, config: RunConfig) -> None:
        """Raise UserError with the difference if the run in the folder can't be resumed with ``config``."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--run-dir {str(self.path)!r} is not a folder: name a new or an existing run folder")
        check_can_make(self.path, "--run-dir")
        missing = [name for name in FIXED if not (self.path / name).is_file()]
        if missing and (self.path / CHECKPOINTS).exists():
            raise UserError(
                f"--run-dir {str(self.path)!r} has checkpoints but no {', '.join(missing)}: put back a copy to resume "
                "the run, or name another folder"
            )
        if self.config is None:
            return
        # a field that the run's version didn't have yet has its default value
        old, new = flatten(to_dict(RunConfig())) | flatten(self.config), flatten(to_dict(config))
        free = fields.FREE | {key for key in fields.INHERITED if new[key] == _DEFAULTS[key]}
        changed = [key for key in sorted(old | new) if old.get(key) != new.get(key) and key not in free]
        if changed:
            difference = ", ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in changed)
            raise UserError(
                f"--run-dir {str(self.path)!r} contains a run with another configuration ({difference}): "
                "give the old values to resume it, or another --run-dir for a new run"
            )

    def check_facts(self, facts: dict[str, Any]) -> None:
        """Raise UserError if the dataset or the classes differ from those that the run started with."""
        for key, value in facts.items():
            old = (self.facts or {}).get(key, value)
            if old != value:
                raise UserError(
                    f"{key} was {old!r} when the run in {str(self.path)!r} started and is {value!r} now: "
                    "resume with the original data, or start a new run in another --run-dir"
                )

    def as_begun(self, config: RunConfig) -> RunConfig:
        """``config`` with the parent that the run started from: a run with a checkpoint reads no other weights.

        The input normalisation that the run inherited from the parent is restored too.
        """
        if not self.checkpoints or self.config is None:
            return config
        own, first = config.model, from_file(RunConfig, self.config, self.path / CONFIG)
        model = dataclasses.replace(
            own,
            mean=first.model.mean if own.mean == ModelConfig.mean else own.mean,
            std=first.model.std if own.std == ModelConfig.std else own.std,
        )
        return dataclasses.replace(config, parent=first.parent, model=model)

    def write_fixed(
        self, config: RunConfig, facts: dict[str, Any], classes: list[dict[str, str]], *, resumed: bool
    ) -> dict[str, Any]:
        """Write the fixed files at the first start; return the content of run.json. Rank 0 only.

        Unless ``resumed``, earlier starts left no checkpoint, and their records of parent and code are replaced.
        """
        if resumed and self.facts is not None:
            return self.facts
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / CLASSES, classes)
        write_json(self.path / FACTS, facts)
        write_json(self.path / CONFIG, to_dict(config))
        return facts


def retuned(config: RunConfig, before: dict[str, Any]) -> list[str]:
    """Changes from the configuration ``before`` (from to_dict) that affect what is learned, as text."""
    old, new = flatten(before), flatten(to_dict(config))
    return [f"{name} {old[name]} -> {new[name]}" for name in sorted(fields.RETUNED) if old.get(name) != new[name]]
