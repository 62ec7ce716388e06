"""Training, pretraining and fine-tuning alike: one rank's run from start to exit code."""

import faulthandler
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed
import torch.nn.functional as F

from pipeline import checkpoint, distributed, rundir
from pipeline import engine as ds
from pipeline.cli import EXIT_DONE, EXIT_REQUEUE, UserError
from pipeline.config import RunConfig, accumulation, flatten, to_dict, total_steps
from pipeline.data import Batch, Split, normalise, open_split, train_batches
from pipeline.distributed import Ranks
from pipeline.evaluate import Result, evaluate
from pipeline.fence import claim
from pipeline.losses import loss as loss_of
from pipeline.metrics import Stopwatch, duration
from pipeline.mixing import mixup, mixup_lambda
from pipeline.model import VisionTransformer, initialise
from pipeline.parent import start_from_parent
from pipeline.preempt import StopRequest
from pipeline.provenance import describe_code
from pipeline.schedule import learning_rate
from pipeline.shards import read_classes
from pipeline.tracking import Tracker, open_tracker
from pipeline.transforms import AUGMENT, TrainTransform

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MLFLOW_STATUS: dict[str, Literal["FINISHED", "FAILED", "KILLED"]] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
}


def train(config: RunConfig) -> int:
    """Run ``config`` on this rank until it is finished or asked to stop; resume what the run folder holds.

    Returns the exit code: 0 finished, 75 stopped early with everything saved.
    """
    # Everything a user can get wrong is checked before the ranks meet, so that it costs one line and no waiting.
    data, held_out = open_data(config)
    steps = total_steps(config.schedule, len(data), config.train.global_batch)
    ranks = distributed.ranks_from_environment(os.environ)
    ds.deepspeed_config(config, ranks.world_size)
    facts = {
        "classes": data.info.classes,
        "classes_digest": data.info.classes_digest,
        "dataset_digest": data.info.digest,
    }
    rundir.check_config(config)
    rundir.check_facts(config.run_dir, facts)
    status = rundir.read_status(config.run_dir)
    if status is not None and status.state == "finished":
        print(f"{config.run_dir} is finished: {status.step} steps, {status.metrics}", flush=True)
        return EXIT_DONE
    model = VisionTransformer(config.model, data.info.classes, loss=config.train.loss)
    initialise(model, config.train.seed)
    resuming = bool(checkpoint.complete(config.run_dir))
    lineage = start_from_parent(config, model) if config.stage == "finetune" and not resuming else {}

    stop = StopRequest()
    leader = ranks.rank == 0
    fence = claim(config.run_dir, os.environ) if leader else None
    device = distributed.start(ranks)
    engine = ds.build_engine(config, model.to(device), ranks.world_size)
    start_step = resume(config, engine, leader)
    attempt = (status.attempt if status else 0) + 1
    tracker = None
    if leader:
        run = {**facts, "samples": len(data), "steps": steps, "parent": lineage, "code": describe_code()}
        run = rundir.start(config, run, read_classes(data.folder).select(["wnid", "name"]).to_pylist())
        tracker = start_tracking(config, run, start_step, ranks.world_size)
        print(headline(config, data, ranks, device, steps, start_step), flush=True)

    metrics: dict[str, float] = dict(status.metrics) if status else {}
    batches = train_batches(
        data,
        TrainTransform(
            config.model.image_size, config.data.augment, min_area=config.data.min_area, flip=config.data.flip
        ),
        seed=config.train.seed,
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        rank=ranks.rank,
        world_size=ranks.world_size,
        workers=config.data.workers,
        start_step=start_step,
        stop_step=steps,
    )
    watch = Stopwatch(config.train.global_batch, ranks.world_size)
    step = start_step
    outcome: Literal["finished", "stopped", "failed"] = "finished"
    try:
        while step < steps:
            faulthandler.dump_traceback_later(config.train.step_timeout, exit=True)
            lr = learning_rate(config.schedule, config.optim.lr, step, steps)
            ds.set_learning_rate(engine, lr)
            loss, norm, stopping = train_step(config, engine, batches, step, ranks, device, watch, stop.requested)
            step += 1
            check_finite(loss, norm, step, engine)
            if step % config.train.log_every == 0 or step == steps or stopping:
                fresh = {"train/loss": loss, "train/lr": lr, "train/grad_norm": norm, **watch.lap()}
                metrics |= fresh
                if tracker is not None and fence is not None:
                    fence.check()
                    tracker.log(step, step * config.train.global_batch, fresh)
                    rundir.write_status(config.run_dir, rundir.Status("running", step, steps, attempt, 0.0, metrics))
                    print(progress_line(fresh, step, steps), flush=True)
            began = time.perf_counter()
            if held_out is not None and due(step, config.train.eval_every, steps) and not stopping:
                result = evaluate_engine(config, engine, held_out, ranks, device)
                metrics |= result.metrics()
                if tracker is not None:
                    tracker.log(step, step * config.train.global_batch, result.metrics())
                    print(f"step {step}  evaluation: {result}", flush=True)
            if due(step, config.checkpoint.every, steps) or stopping:
                checkpoint.save(config.run_dir, engine, config, step=step, facts=facts, fence=fence)
            watch.paused += time.perf_counter() - began
            if stopping and step < steps:
                outcome = "stopped"
                break
    except BaseException:
        outcome = "failed"
        raise
    finally:
        faulthandler.cancel_dump_traceback_later()
        if tracker is not None and fence is not None and fence.holds():
            rundir.write_status(config.run_dir, rundir.Status(outcome, step, steps, attempt, 0.0, metrics))
            tracker.close(MLFLOW_STATUS[outcome])
    if leader:
        print(f"{outcome} after step {step} of {steps}: {config.run_dir}", flush=True)
    engine.destroy()
    del engine, model
    distributed.finish()
    return EXIT_DONE if outcome == "finished" else EXIT_REQUEUE


def train_step(
    config: RunConfig,
    engine: Any,
    batches: Iterator[Batch],
    step: int,
    ranks: Ranks,
    device: torch.device,
    watch: Stopwatch,
    stop_requested: bool,
) -> tuple[float, float, bool]:
    """One optimizer step. Returns the global batch's mean loss, the gradient norm, and whether any rank has to stop."""
    engine.train()
    # Dropout is a function of (seed, step, rank), so that a resumed run draws what the uninterrupted one would.
    torch.manual_seed((config.train.seed * 1_000_003 + step) * 65_537 + ranks.rank)
    passes = accumulation(config.train, ranks.world_size)
    lam = mixup_lambda(config.train.seed, step, AUGMENT[config.data.augment].mixup)
    total = torch.zeros((), device=device)
    norm = None
    for _ in range(passes):
        began = time.perf_counter()
        batch = next(batches)
        watch.waited += time.perf_counter() - began
        assert batch.step == step, (batch.step, step)
        x_BCHW = normalise(batch.images_BHWC.to(device, non_blocking=True), DTYPES[config.train.dtype])
        targets = batch.labels_B.to(device, non_blocking=True)
        if lam < 1.0:
            x_BCHW, targets = mixup(x_BCHW, F.one_hot(targets, engine.module.classes).float(), lam)
        loss = loss_of(config.train.loss, engine(x_BCHW).float(), targets)
        engine.backward(loss)
        if config.train.zero_stage == 0 and engine.is_gradient_accumulation_boundary():
            norm = ds.grad_norm(engine)
        engine.step()
        total += loss.detach() / passes
    watch.steps += 1
    summed = torch.stack([total.double(), torch.tensor(float(stop_requested), device=device, dtype=torch.float64)])
    torch.distributed.all_reduce(summed)
    loss_sum, stopping = summed.tolist()
    if norm is None:
        norm = ds.grad_norm(engine)
    return loss_sum / ranks.world_size, float("nan") if norm is None else norm, stopping > 0


def check_finite(loss: float, norm: float, step: int, engine: Any) -> None:
    """Stop where a step was poisoned, or skipped by DeepSpeed: neither may pass in silence."""
    if not (abs(loss) < float("inf") and abs(norm) < float("inf")) or engine.skipped_steps:
        raise RuntimeError(
            f"step {step}: loss {loss}, gradient norm {norm}, {engine.skipped_steps} skipped step(s): training has "
            "diverged; resume from the last checkpoint with a lower optim.lr or with optim.clip 1"
        )


def open_data(config: RunConfig) -> tuple[Split, Split | None]:
    """The training split and the evaluation split, if there is one. Raises UserError where they don't fit."""
    if config.run_dir == Path():
        raise UserError("--run-dir is missing: name the folder of a new run, or of one to resume")
    if config.data.train is None:
        raise UserError("--data.train is missing: name the training data set's folder, made by data_prep.shard")
    data = open_split(config.data.train, config.data.train_split)
    folder = config.data.eval or config.data.train
    if config.data.eval is None and config.data.eval_split not in data.info.samples:
        return data, None
    held_out = open_split(folder, config.data.eval_split)
    if held_out.info.classes_digest != data.info.classes_digest:
        raise UserError(
            f"data.eval {str(folder)!r} has another class map ({held_out.info.classes} classes, digest "
            f"{held_out.info.classes_digest}) than data.train ({data.info.classes}, {data.info.classes_digest}): "
            "shard it with --classes of the training data set"
        )
    return data, held_out


def resume(config: RunConfig, engine: Any, leader: bool) -> int:
    """Load the newest sound checkpoint of the run folder, if any; collective. Returns its step, or 0."""
    choice: list[Path | None] = [checkpoint.latest(config.run_dir, hashes=True) if leader else None]
    torch.distributed.broadcast_object_list(choice)
    if choice[0] is None:
        return 0
    return checkpoint.load(choice[0], engine, config).step


def evaluate_engine(config: RunConfig, engine: Any, held_out: Split, ranks: Ranks, device: torch.device) -> Result:
    def reduce(sums: torch.Tensor) -> torch.Tensor:
        torch.distributed.all_reduce(sums)
        return sums

    engine.eval()
    return evaluate(
        engine,
        held_out,
        image_size=config.model.image_size,
        batch=config.train.eval_batch,
        loss=config.train.loss,
        workers=config.data.workers,
        device=device,
        dtype=DTYPES[config.train.dtype],
        rank=ranks.rank,
        world_size=ranks.world_size,
        reduce=reduce,
    )


def due(step: int, every: int, steps: int) -> bool:
    return step == steps or (every > 0 and step % every == 0)


def start_tracking(config: RunConfig, run: dict[str, Any], start_step: int, world_size: int) -> Tracker:
    assert config.data.train is not None
    lineage = {f"parent_{key}": str(value) for key, value in run["parent"].items()}
    return open_tracker(
        config.run_dir,
        experiment=config.experiment,
        name=config.name or config.run_dir.name,
        params=flatten(to_dict(config)),
        tags={"recipe": config.recipe, "stage": config.stage, "dataset_digest": run["dataset_digest"], **lineage},
        artifacts=[config.run_dir / "config.json", config.run_dir / "run.json", config.data.train / "dataset.json"],
        start_step=start_step,
        devices=world_size,
        epoch_samples=run["samples"],
    )


def headline(config: RunConfig, data: Split, ranks: Ranks, device: torch.device, steps: int, start: int) -> str:
    batch, passes = config.train, accumulation(config.train, ranks.world_size)
    return (
        f"{config.stage} {config.recipe}: {f'resumes after step {start}' if start else 'starts'}, {steps} steps of "
        f"{batch.global_batch} samples ({batch.micro_batch} x {ranks.world_size} rank(s) x {passes}), {len(data):,} "
        f"samples, {data.info.classes:,} classes, {config.model.variant} at {config.model.image_size} px, "
        f"ZeRO-{config.train.zero_stage} {config.train.dtype} on {device.type}, started by {ranks.launcher}"
    )


def progress_line(metrics: dict[str, float], step: int, steps: int) -> str:
    return (
        f"step {step}/{steps}  loss {metrics['train/loss']:.4f}  lr {metrics['train/lr']:.2e}  "
        f"grad {metrics['train/grad_norm']:.3f}  {metrics['speed/images_per_second']:.0f} img/s  "
        f"data wait {metrics['speed/data_wait']:.1%}  ETA {duration((steps - step) * metrics['speed/step_seconds'])}"
    )
