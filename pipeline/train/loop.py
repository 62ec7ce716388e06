"""Training, pretraining and fine-tuning alike: one rank's run from start to exit code."""

import faulthandler
import logging
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Collection
from contextlib import nullcontext, suppress
from typing import Literal, NoReturn

import torch
import torch.distributed

from pipeline.config.schedule import learning_rate
from pipeline.config.schema import RunConfig
from pipeline.core.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_REQUEUE, UserError
from pipeline.core.files import flush
from pipeline.core.log import ONCE
from pipeline.core.progress import Bar
from pipeline.core.retry import UnreadableError
from pipeline.distributed import process_group
from pipeline.evaluation.accuracy import evaluate
from pipeline.loader.batches import Ahead, train_batches
from pipeline.loader.transforms import train_transform
from pipeline.model.preprocess import DTYPES
from pipeline.runs import folder as run_folder
from pipeline.runs import sample_ledger
from pipeline.runs.folder import DAMAGE, LEDGER, METRICS
from pipeline.runs.goodput import account, lost_steps, summary
from pipeline.runs.records import read_lines, read_record
from pipeline.train import anomalies, detectors
from pipeline.train.anomalies import examine
from pipeline.train.console import expectation, finished_line, headline, progress_line
from pipeline.train.profiler import profile
from pipeline.train.setup import prepare, start
from pipeline.train.state import Progress, Run
from pipeline.train.step import Step, train_step
from pipeline.train.stop_signals import StopRequest
from pipeline.train.watchdog import Watchdog

logger = logging.getLogger(__name__)

Outcome = Literal["finished", "stopped", "failed"]
TOLD_EVERY = 5.0  # seconds between writes of status.json, each of which waits for the disk
MLFLOW_STATUS: dict[Outcome, Literal["FINISHED", "FAILED", "KILLED"]] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
}


def train(config: RunConfig, given: Collection[str] = ()) -> int:
    """Train ``config`` on this rank until it is finished or asked to stop; resume the run in the run folder, if any.

    ``given``: the fields that the user gave; each one without effect is reported.
    Returns the exit code. 0: finished. Stopped early with everything saved: 130 by Ctrl-C, 75 by another signal.
    """
    job = prepare(config, given)
    if job.status is not None and job.status.state == "finished":
        logger.info("%s", finished_line(config.run_dir, job.status.step, job.status.metrics), extra=ONCE)
        return EXIT_DONE
    stop = StopRequest()
    run = start(config, job)
    progress = Progress(run.start_step, dict(job.status.metrics) if job.status else {})
    if run.meta is not None:
        progress.skipped, progress.rollbacks, progress.undone = run.meta.skipped, run.meta.rollbacks, run.meta.undone
    try:
        with Bar("training", job.steps, "steps", start=run.start_step, shown=job.ranks.rank == 0, lines=False) as bar:
            logger.info("%s", headline(run), extra=ONCE)
            if too_long := expectation(run):
                logger.warning("%s", too_long, extra=ONCE)
            outcome = loop(run, progress, stop, bar)
            run.heartbeat.mark("checkpoint")
            run.saver.finish()
            if run.sampler is not None:  # before rank 0 sends the last of them
                run.sampler.stop()
            torch.distributed.barrier()
    except BaseException as error:
        fail(run, progress, error)
        raise
    run.heartbeat.mark("end")
    close(run, progress, outcome)
    heartbeat = run.heartbeat  # rank 0's store stays until no rank asks it any more, which the last barrier ensures
    try:
        torch.distributed.barrier()  # the other ranks' heartbeats end here too, since rank 0 has closed
    except RuntimeError as error:
        leave(run, error, f"after its last step: {heartbeat.fail(error)}")
    heartbeat.stop()
    run.engine.destroy()
    del run
    process_group.finish()
    if outcome == "finished":
        return EXIT_DONE
    return EXIT_INTERRUPTED if stop.interrupted else EXIT_REQUEUE


def loop(run: Run, progress: Progress, stop: StopRequest, bar: Bar) -> Outcome:
    """Take optimizer steps until the run is finished or any rank is asked to stop."""
    config, engine, steps = run.config, run.engine, run.job.steps
    batches = Ahead(
        train_batches(
            run.job.data,
            train_transform(config),
            seed=config.train.seed,
            global_batch=config.train.global_batch,
            micro_batch=config.train.micro_batch,
            rank=run.job.ranks.rank,
            world_size=run.job.ranks.world_size,
            workers=config.data.workers,
            start_step=run.start_step,
            stop_step=steps,
            weights=config.data.weights,
        )
    )
    watchdog = Watchdog(config.train.step_timeout)
    result: dict[str, float] | None = {}
    with (
        profile(config.run_dir, config.train.profile if run.tracker else 0) as tick,
        sample_ledger.appending(config.run_dir, wanted=run.tracker is not None) as note,
    ):
        while progress.step < steps:
            watchdog.feed()
            lr = learning_rate(config.schedule, config.optim.lr, progress.step, steps)
            engine.set_learning_rate(lr)
            wishes = {"stop": stop.requested, "save": run.saver.due(progress.step + 1, steps)}
            run.heartbeat.mark("data", progress.step + 1)
            done = train_step(
                config,
                engine,
                batches,
                progress.step,
                run.job.ranks,
                run.device,
                run.clock,
                settle=run.saver.settle,
                mark=run.heartbeat.mark,
                **wishes,
            )
            run.heartbeat.mark("records")
            progress.step += 1
            note(progress.step, done.ledger)
            if done.repeated:
                logger.warning(
                    "step %d had a non-finite gradient, perhaps by cuDNN's attention kernel; repeated with flash, it "
                    "is %s (--train.attention flash uses flash for the whole run)",
                    progress.step,
                    "finite" if done.finite else "non-finite, too",
                    extra=ONCE,
                )
            examine(run, progress, done)
            if config.train.average:
                engine.update_average(config.train.average)
            tick()
            bar.update(progress.step, f"loss {done.loss:.4f}")
            first = progress.step == run.start_step + 1  # logged, because it shows how long the run will take
            if first or due(progress.step, config.train.log_every, steps) or done.stopping:
                log_step(run, progress, done, lr)
            result = {}
            if progress.step < steps and due(progress.step, config.train.eval_every, steps) and not done.stopping:
                result = evaluate_now(run, progress, stop)
            if done.save or done.stopping:
                save(run, progress, result or {})
            if done.stopping and (progress.step < steps or run.job.held_out is not None):
                names = ", ".join(run.heartbeat.name(rank) for rank in done.stopping)
                logger.info("asked to stop: %s", names, extra=ONCE)
                return "stopped"
    if run.start_step < steps or not (run.meta and run.meta.metrics):  # else evaluated before it was resumed
        run.heartbeat.mark("checkpoint")
        run.saver.finish()  # complete the last checkpoint first: a failing evaluation must not cost it
        watchdog.feed()
        result = evaluate_now(run, progress, stop)
        if result is None:
            return "stopped"
        if result and run.tracker is not None:
            run.saver.add_metrics(steps, result)
    return "finished"


def due(step: int, every: int, steps: int) -> bool:
    return step == steps or (every > 0 and step % every == 0)


def save(run: Run, progress: Progress, result: dict[str, float]) -> None:
    """Start a checkpoint of this step; collective. ``result``: metrics of an evaluation at this step."""
    progress.saved[progress.step] = run.clock.seconds["training"]
    counts = {"skipped": progress.skipped, "rollbacks": progress.rollbacks, "undone": progress.undone}
    run.heartbeat.mark("checkpoint")
    with run.clock.time("checkpoint"):
        if run.tracker is not None:  # a resumed run doesn't log again what was logged before the checkpoint
            flush(run.config.run_dir / LEDGER)
            write_status(run, progress, "running")
        run.saver.save(run.engine, progress.step, counts=counts, metrics=result)


def incidents(run: Run, progress: Progress) -> dict[str, float]:
    """Counts of what went wrong in the run so far; only those above zero."""
    counts = {
        "watch/skipped_steps": float(progress.skipped),
        "watch/rollbacks": float(progress.rollbacks),
        "watch/undone_steps": float(progress.undone),
        "watch/loss_spikes": float(progress.spikes.count),
        **(run.damages.metrics() if run.damages else {}),
    }
    return {name: count for name, count in counts.items() if count}


def log_step(run: Run, progress: Progress, done: Step, lr: float) -> None:
    """Write metrics of the steps since the last line to the run folder and the log."""
    fresh = {
        "train/loss": done.loss,
        "train/lr": lr,
        "train/grad_norm": done.norm,
        **run.clock.lap(),
        **incidents(run, progress),
    }
    for line in detectors.stragglers(progress.own, fresh["speed/step_seconds"], run.heartbeat.hosts):
        logger.warning("%s", line, extra=ONCE)
    progress.own.clear()
    record(run, progress, fresh)
    if time.monotonic() - progress.told >= TOLD_EVERY:
        progress.told = time.monotonic()
        write_status(run, progress, "running")
    logger.info("%s", progress_line(fresh, progress.step, run.job.steps), extra=ONCE)


class StoppedError(Exception):
    """A rank was asked to stop in the middle of an evaluation."""


def evaluate_now(run: Run, progress: Progress, stop: StopRequest) -> dict[str, float] | None:
    """Metrics on the held-out split, if there is one, of the weights and their running average; collective.

    None if a rank was asked to stop meanwhile: an evaluation may take longer than the time that remains for saving.
    """
    config, ranks, held_out = run.config, run.job.ranks, run.job.held_out
    if held_out is None:
        return {}

    def reduce(sums: torch.Tensor) -> torch.Tensor:
        torch.distributed.all_reduce(sums)
        return sums

    def forward(x_BCHW: torch.Tensor) -> torch.Tensor:  # called equally often on each rank
        run.heartbeat.mark("evaluation")
        asked = torch.tensor(float(stop.requested), device=run.device)
        torch.distributed.all_reduce(asked)
        if asked.item():
            raise StoppedError
        return run.engine(x_BCHW)

    def metrics(prefix: str) -> dict[str, float]:
        run.engine.eval()
        with run.engine.uncompiled():
            result = evaluate(
                forward,
                held_out,
                model=config.model,
                batch=config.train.eval_batch,
                loss=config.train.loss,
                workers=config.data.workers,
                resize=config.data.eval_resize,
                device=run.device,
                dtype=DTYPES[config.train.dtype],
                rank=ranks.rank,
                world_size=ranks.world_size,
                reduce=reduce,
            )
        kind = "averaged weights" if "average" in prefix else "evaluation"
        logger.info("step %d  %s: %s", progress.step, kind, result, extra=ONCE)
        return result.metrics(prefix)

    run.heartbeat.mark("evaluation")
    try:
        with run.clock.time("evaluation"):
            fresh = metrics("eval/")
            if config.train.average:
                with run.engine.averaged_weights():
                    fresh |= metrics("eval_average/")
    except StoppedError:
        logger.info("asked to stop: the evaluation of step %d is skipped", progress.step, extra=ONCE)
        return None
    record(run, progress, fresh | run.clock.account())  # the last training line doesn't include the evaluation's time
    return fresh


def record(run: Run, progress: Progress, fresh: dict[str, float]) -> None:
    """Write metrics of this step to the run folder, from which MLflow gets them. Raises FencedError."""
    progress.metrics |= fresh
    if run.tracker is not None and run.fence is not None:
        run.fence.check()
        run.tracker.log(progress.step, progress.step * run.config.train.global_batch, fresh)


def write_status(run: Run, progress: Progress, state: Literal["running", "stopped", "finished", "failed"]) -> None:
    """Write status.json. An error in writing stops neither training nor the report of an earlier failure."""
    if run.fence is not None and run.fence.holds():
        fewer_nodes = os.environ.get("FEWER_NODES", "") if state == "running" else ""
        status = run_folder.Status(state, progress.step, run.job.steps, run.attempt, 0.0, progress.metrics, fewer_nodes)
        with suppress(OSError) if state in ("running", "failed") else nullcontext():
            run_folder.write_status(run.config.run_dir, status)


def close(run: Run, progress: Progress, outcome: Outcome) -> None:
    """Record how the attempt ended, and where its time went."""
    faulthandler.cancel_dump_traceback_later()
    if run.sampler is not None:
        run.sampler.stop()
    write_status(run, progress, outcome)
    if run.tracker is not None and run.fence is not None and run.fence.holds():
        run.tracker.close(MLFLOW_STATUS[outcome])
        lines, _ = read_lines(run.config.run_dir / METRICS)
        history = read_record(run.config.run_dir)
        where = ""
        if history:
            lost = lost_steps(lines, history.attempts)
            where = summary(account(lines, history.attempts), len(history.attempts) - 1, lost)
        if damage := run.damages.summary() if run.damages else "":
            logger.warning("%s; %s names each", damage, run.config.run_dir / DAMAGE)
        logger.info("%s after step %d of %d: %s; %s", outcome, progress.step, run.job.steps, run.config.run_dir, where)
        if outcome == "stopped":
            logger.info("saved at step %d; run the same command to resume", progress.step)


def fail(run: Run, progress: Progress, error: BaseException) -> None:
    """Record a failure; with several ranks, name the one that failed first, and end this process."""
    faulthandler.dump_traceback_later(run.config.train.step_timeout, exit=True)
    alone = isinstance(error, UnreadableError)  # a disk error that other ranks may not have
    same = isinstance(error, (anomalies.NonFiniteError, UserError)) and not alone  # raised on every rank
    if same:
        run.heartbeat.stop()  # another rank's exit is expected then, and must not end this one before its report
    cause = "the same on every rank" if same else run.heartbeat.fail(error)
    close(run, progress, "failed")
    if run.job.ranks.world_size > 1 and isinstance(error, Exception) and (alone or not isinstance(error, UserError)):
        leave(run, error, f"after step {progress.step}: {cause}")


def leave(run: Run, error: Exception, why: str) -> NoReturn:
    """End this process at once: a broken process group may hang or abort when the interpreter shuts down."""
    what = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error)).rstrip()
    logger.error("%s", what)
    logger.error("rank %d exits %s", run.job.ranks.rank, why)
    sys.stdout.flush()
    sys.stderr.flush()
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(1)
