"""What a training run holds while it runs."""

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
from pipeline.tracking.tracker import Tracker
from pipeline.train.detectors import Spikes
from pipeline.train.stopwatch import Stopwatch


@dataclass
class Progress:
    """What changes while a run goes on."""

    step: int  # finished optimizer steps
    metrics: dict[str, float]  # the latest of each
    skipped: int = 0  # of them, left out because their gradient was no number
    rollbacks: int = 0  # times that such a step led back to the last checkpoint
    undone: int = 0  # steps whose work that has cost
    restored: int = 0  # the step after which that was last: the weights have nothing of what lies before it any more
    saved: dict[int, float] = field(default_factory=dict)  # checkpoint of this attempt -> seconds of training by then
    spikes: Spikes = field(default_factory=Spikes)
    own: list[list[float]] = field(default_factory=list)  # Step.own of the steps since the last line
    told: float = -math.inf  # when status.json was written last, by the monotonic clock


@dataclass(frozen=True)
class Job:
    """What a configuration means on this machine, checked. No rank has met another yet."""

    data: JoinedSplit
    held_out: JoinedSplit | None
    steps: int
    ranks: Ranks
    facts: dict[str, Any]  # of the training data, for run.json and each checkpoint
    folder: RunFolder  # as it was before this start
    given: frozenset[str] = frozenset()  # fields that the user gave

    @property
    def status(self) -> Status | None:
        """Of the attempt before."""
        return self.folder.status

    @property
    def all_facts(self) -> dict[str, Any]:
        """Those of the evaluation data as well, for run.json."""
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
    meta: Meta | None  # of the checkpoint that it goes on from
    attempt: int  # 1 is the first
    fence: Fence | None  # of rank 0
    tracker: Tracker | None  # of rank 0
    damages: Damages | None  # of rank 0
