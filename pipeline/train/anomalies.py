"""What a step's numbers lead to: the run goes on, leaves the step out, goes back to a checkpoint, or stops.

Every rank knows the same of a step (:class:`pipeline.train.watch.Step`) and so comes to the same end without asking.
"""

import math
from dataclasses import dataclass, field

import torch.distributed

from pipeline.core.cli import UserError
from pipeline.loader.damage import Damage
from pipeline.train import watch
from pipeline.train.console import Screen
from pipeline.train.setup import Run, resume
from pipeline.train.watch import Spikes, Step


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


def examine(run: Run, progress: Progress, done: Step, screen: Screen) -> None:
    """Look at a step's numbers; collective where they are none. Raises NonFiniteError where those may not pass."""
    if done.damaged:
        examine_damage(run, progress.step, done, screen)
    progress.own.append(done.own)
    if done.finite:
        if spike := progress.spikes.see(done.loss):
            screen.line(f"warning: step {progress.step}: {spike}")
        return
    report = watch.describe_nonfinite(done, progress.step, run.heartbeat.hosts)
    if (rank := run.job.ranks.rank) in done.culprits:
        all_keys = run.job.data.sample_keys()
        keys = [all_keys[row] for batch in done.fed for row in batch.samples_B.tolist()]
        path = watch.dump(run.config.run_dir / "nonfinite", progress.step, rank, done.fed, keys)
        print(f"warning: {report}; rank {rank}'s samples {', '.join(keys)} are kept in {path}", flush=True)
    torch.distributed.barrier()  # a rank that leaves before would take those that still write with it
    limits = run.config.train
    if done.skipped and progress.skipped < limits.skip_nonfinite:
        progress.skipped += 1
        screen.line(f"warning: {report}; the step is left out, {progress.skipped} so far")
    elif progress.rollbacks < limits.rollback_nonfinite:
        go_back(run, progress, report, screen)
    else:
        raise watch.NonFiniteError(
            f"{report}. Training has diverged: resume from the last checkpoint with a lower optim.lr or optim.clip 1, "
            f"or let it leave out such steps ({progress.skipped + 1} so far, train.skip_nonfinite "
            f"{limits.skip_nonfinite}) or go back ({progress.rollbacks} times so far, train.rollback_nonfinite "
            f"{limits.rollback_nonfinite})"
        )


def go_back(run: Run, progress: Progress, report: str, screen: Screen) -> None:
    """Put the last checkpoint's weights and moments back; collective. Raises NonFiniteError where there is none.

    The run goes on with the next step's samples and learning rate, as PaLM's did (arXiv 2204.02311, section 5.1): the
    same samples from the same weights would only lead to the same end. No step is counted, and no sample seen, twice.
    """
    with run.clock.time("checkpoint"):
        run.saver.finish()
        meta = resume(run.config, run.engine, run.job.ranks)
    if meta is None:
        raise watch.NonFiniteError(f"{report}. There is no checkpoint yet to go back to: lower optim.lr")
    lost = progress.step - max(meta.step, progress.restored)  # what an earlier time has undone is counted already
    progress.restored = progress.step
    progress.rollbacks += 1
    progress.undone += lost
    run.clock.undo(progress.saved.get(meta.step, 0.0))
    screen.line(
        f"warning: {report}; back to the weights of step {meta.step}, {lost} steps are undone ({progress.rollbacks} of "
        f"{run.config.train.rollback_nonfinite} times)"
    )


def examine_damage(run: Run, step: int, done: Step, screen: Screen) -> None:
    """Report the samples that didn't decode; collective. Raises UserError, on all ranks, past the run's budget."""
    own = [item for batch in done.fed for item in batch.damaged]
    everyone: list[list[Damage]] = [[] for _ in range(run.job.ranks.world_size)]
    torch.distributed.all_gather_object(everyone, own)
    verdict = [""]
    if run.damages is not None:
        for item in run.damages.see(step, [item for rank in everyone for item in rank]):
            screen.line(f"warning: step {step}: {item}; another stands in")
        if len(run.damages.samples) > run.config.data.damage_budget:
            verdict = [run.damages.summary()]
    torch.distributed.broadcast_object_list(verdict)
    if verdict[0]:
        raise UserError(
            f"data.train {run.job.data.name!r}: {verdict[0]}; data.damage_budget allows "
            f"{run.config.data.damage_budget}: check the data set with python -m data_prep.verify"
        )
