"""The state of a training run."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed

from pipeline.checkpoint.format import Meta
from pipeline.checkpoint.saver import Saver
from pipeline.config.schema import RunConfig
from pipeline.dataset.joined_split import JoinedSplit
from pipeline.distributed.heartbeat import Heartbeat
from pipeline.distributed.ranks import Ranks
from pipeline.engine.deepspeed_engine import Engine
from pipeline.runs.damage_record import Damages
from pipeline.runs.folder import RunFolder, Status
from pipeline.runs.ownership import Fence
from pipeline.tracking.system_metrics import Sampler
from pipeline.tracking.tracker import Tracker
from pipeline.train.detectors import Spikes
from pipeline.train.stopwatch import Stopwatch


@dataclass
class Progress:
    """The part of the state that changes from step to step."""

    step: int  # finished optimizer steps
    metrics: dict[str, float]  # the latest of each
    skipped: int = 0  # of them, skipped because their gradient was non-finite
    rollbacks: int = 0  # number of roll-backs to the last checkpoint after such steps
    undone: int = 0  # steps whose updates were lost by roll-backs
    restored: int = 0  # step of the last roll-back: updates between the checkpoint and this step are lost
    saved: dict[int, float] = field(default_factory=dict)  # this attempt's checkpoints: step -> training seconds
    spikes: Spikes = field(default_factory=Spikes)
    own: list[list[float]] = field(default_factory=list)  # Step.own of the steps since the last line
    told: float = -math.inf  # when status.json was written last, by the monotonic clock


@dataclass(frozen=True)
class Job:
    """A checked configuration with its data, before the ranks meet."""

    data: JoinedSplit
    held_out: JoinedSplit | None
    steps: int
    ranks: Ranks
    facts: dict[str, Any]  # of the training data, for run.json and each checkpoint
    folder: RunFolder  # as it was before this start
    given: frozenset[str] = frozenset()  # fields that the user gave

    @property
    def status(self) -> Status | None:
        """The previous attempt's status."""
        return self.folder.status

    @property
    def all_facts(self) -> dict[str, Any]:
        """The facts of training and evaluation data, for run.json."""
        return {**self.facts, "eval_digest": self.held_out.digest if self.held_out else ""}


@dataclass(frozen=True)
class Run:
    """One rank's attempt at a run."""

    config: RunConfig
    job: Job
    device: torch.device
    engine: Engine
    heartbeat: Heartbeat
    saver: Saver
    clock: Stopwatch
    start_step: int
    meta: Meta | None  # of the checkpoint that the attempt resumes from
    attempt: int  # 1 is the first
    fence: Fence | None  # on rank 0 only
    tracker: Tracker | None  # on rank 0 only
    sampler: Sampler | None  # on the first rank of each node
    damages: Damages | None  # on rank 0 only
