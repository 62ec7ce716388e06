"""How a run reacts to a step's numbers: it continues, skips the step, rolls back to a checkpoint, or stops.

Every rank has the same numbers of a step (:class:`pipeline.train.step.Step`) and so reaches the same decision alone.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch.distributed

from pipeline.core.errors import UserError
from pipeline.core.log import ONCE
from pipeline.core.tensor_files import save_tensors
from pipeline.loader.batches import Batch
from pipeline.loader.damage import Damage
from pipeline.runs.folder import NONFINITE, RunFolder
from pipeline.train.resume import resume
from pipeline.train.state import Progress, Run
from pipeline.train.step import Step

logger = logging.getLogger(__name__)


def examine(run: Run, progress: Progress, done: Step) -> None:
    """Check a step's numbers; collective if they are non-finite. Raises NonFiniteError if the run must stop."""
    if done.damaged:
        examine_damage(run, progress.step, done)
    progress.own.append(done.own)
    if done.finite:
        if spike := progress.spikes.see(done.loss):
            logger.warning("step %d: %s", progress.step, spike, extra=ONCE)
        return
    report = describe_nonfinite(done, progress.step, run.heartbeat.hosts)
    if (rank := run.job.ranks.rank) in done.culprits:
        all_keys = run.job.data.sample_keys()
        keys = [all_keys[row] for batch in done.fed for row in batch.samples_B.tolist()]
        path = dump(run.config.run_dir / NONFINITE, progress.step, rank, done.fed, keys)
        logger.warning("%s; rank %d's samples %s are kept in %s", report, rank, ", ".join(keys), path)
    torch.distributed.barrier()  # a rank that exits earlier would end those that are still writing
    limits = run.config.train
    if done.skipped and progress.skipped < limits.skip_nonfinite:
        progress.skipped += 1
        logger.warning("%s; the step is skipped, %d so far", report, progress.skipped, extra=ONCE)
    elif progress.rollbacks < limits.rollback_nonfinite:
        go_back(run, progress, report)
    else:
        raise NonFiniteError(
            f"{report}. Training has diverged: resume from the last checkpoint with a lower optim.lr or optim.clip 1, "
            f"or let it skip such steps ({progress.skipped + 1} so far, train.skip_nonfinite "
            f"{limits.skip_nonfinite}) or roll back ({progress.rollbacks} times so far, train.rollback_nonfinite "
            f"{limits.rollback_nonfinite})"
        )


def go_back(run: Run, progress: Progress, report: str) -> None:
    """Restore the last checkpoint's weights and moments; collective. Raises NonFiniteError if there is no checkpoint.

    The run continues with the next step's samples and learning rate, as PaLM's did (arXiv 2204.02311, section 5.1): the
    same samples from the same weights would only diverge again. No step is counted, and no sample seen, twice.
    """
    with run.clock.time("checkpoint"):
        run.saver.finish()
        meta = resume(RunFolder(run.config.run_dir), run.engine, run.job.ranks)
    if meta is None:
        raise NonFiniteError(f"{report}. There is no checkpoint yet to roll back to: lower optim.lr")
    lost = progress.step - max(meta.step, progress.restored)  # steps undone by an earlier roll-back are counted already
    progress.restored = progress.step
    progress.rollbacks += 1
    progress.undone += lost
    run.clock.undo(progress.saved.get(meta.step, 0.0))
    logger.warning(
        "%s; rolled back to the weights of step %d, %d steps are undone (roll-back %d of %d)",
        report,
        meta.step,
        lost,
        progress.rollbacks,
        run.config.train.rollback_nonfinite,
        extra=ONCE,
    )


def examine_damage(run: Run, step: int, done: Step) -> None:
    """Log the samples that didn't decode; collective. Raises UserError, on all ranks, if they exceed the budget."""
    own = [item for batch in done.fed for item in batch.damaged]
    everyone: list[list[Damage]] = [[] for _ in range(run.job.ranks.world_size)]
    torch.distributed.all_gather_object(everyone, own)
    verdict = [""]
    if run.damages is not None:
        for item in run.damages.see(step, [item for rank in everyone for item in rank]):
            logger.warning("step %d: %s; another sample replaces it", step, item)
        if len(run.damages.samples) > run.config.data.damage_budget:
            verdict = [run.damages.summary()]
    torch.distributed.broadcast_object_list(verdict)
    if verdict[0]:
        raise UserError(
            f"data.train {run.job.data.name!r}: {verdict[0]}; data.damage_budget allows "
            f"{run.config.data.damage_budget}: check the dataset with python -m data_prep.verify"
        )


class NonFiniteError(RuntimeError):
    """Training has met a non-finite loss or gradient, and may not skip it."""


def describe_nonfinite(done: Step, step: int, hosts: Sequence[str]) -> str:
    """One line: what happened at ``step`` (counted from 1), and on which ranks."""
    named = ", ".join(f"rank {rank} on {hosts[rank]} (loss {done.losses[rank]:.4g})" for rank in done.culprits)
    where = named if any(not math.isfinite(loss) for loss in done.losses) else "all ranks' losses are finite"
    return f"step {step}: loss {done.loss:.4g}, gradient norm {done.norm:.4g}: {where}"


def dump(folder: Path, step: int, rank: int, batches: Sequence[Batch], keys: Sequence[str]) -> Path:
    """Write the images (uint8), labels and rows that this rank got in ``step``, with the samples' keys as metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}-rank-{rank:03d}.safetensors"
    tensors = {
        "images_BHWC": torch.cat([batch.images_BHWC for batch in batches]),
        "labels_B": torch.cat([batch.labels_B for batch in batches]),
        "samples_B": torch.cat([batch.samples_B for batch in batches]),
    }
    save_tensors(tensors, path, {"keys": "\n".join(keys)})
    return path
