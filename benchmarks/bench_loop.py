"""Overhead of the training loop over bare steps, and the loss when loader and steps run concurrently.

python -m benchmarks.bench_loop [--steps 100] [--rounds 5] [--photos TAR_OF_TARS]
Bare steps (the same engine: forward, backward, step) and the real loop (learning rate, seeds, table of ranks, checks,
metrics, run folder) alternate; waiting for data is excluded. The overhead is absolute, so it is compared with a step of
100 ms, which is short for a GPU.

Then the real loop reads photographs with a worker process, and its model only waits, as for a GPU: once longer and once
shorter than the loader needs per batch. The target is the speed of the slower of the two.
"""

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["VIT_MLFLOW"] = "off"  # a separate process that would disturb the measurement

import torch

from benchmarks.bench_learning import digits
from benchmarks.bench_loader import data_set
from pipeline.config.recipes import PRETRAIN
from pipeline.core.progress import Bar
from pipeline.loader.batches import train_batches
from pipeline.loader.transforms import train_transform
from pipeline.model.losses import loss as loss_of
from pipeline.model.preprocess import normalise
from pipeline.train.loop import loop
from pipeline.train.setup import prepare, start
from pipeline.train.state import Progress, Run
from pipeline.train.stop_signals import StopRequest

REFERENCE = 0.1  # seconds of a step
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        run = begin(Path(scratch), digits(Path(scratch)), arguments.steps * arguments.rounds + 1)
        progress, stop = Progress(0, {}), StopRequest()
        bare, ours = [], []
        go_on(run, progress, stop, 1)
        for _ in range(arguments.rounds):
            bare.append(bare_steps(run, arguments.steps))
            whole, waited = go_on(run, progress, stop, arguments.steps)
            ours.append((whole - waited) / arguments.steps)
        run.saver.finish()
        if run.tracker is not None:
            run.tracker.close("FINISHED")
    cost = min(ours) - min(bare)  # minima, since others may use the machine
    print(f"# bare {[round(1000 * x, 2) for x in bare]} ms, loop {[round(1000 * x, 2) for x in ours]} ms per step")
    report = {
        "claim": "cost of the training loop over bare steps",
        "ours": round(1000 * cost, 3),
        "peer": 0.0,
        "limit": 1000 * REFERENCE * 0.01,
        "ratio": round(cost / REFERENCE, 5),
        "unit": "ms per step; the ratio is relative to a step of 100 ms",
        "machine": "1 thread, 1 rank",
    }
    print(json.dumps(report))
    with tempfile.TemporaryDirectory() as scratch:
        photos = data_set(arguments.photos, Path(scratch))
        for share in (1.5, 0.5):
            together(photos, Path(scratch) / f"run-{share}", share, arguments.rounds)


def together(photos: Path, folder: Path, share: float, rounds: int) -> None:
    """The real loop with a loader; each step waits ``share`` times as long as the loader alone needs per batch."""
    run = begin(folder, photos, 10_000, batch=64, workers=1)
    progress, stop = Progress(0, {}), StopRequest()

    def loader(batches: int) -> float:
        began = time.perf_counter()
        for _ in train_batches(
            run.job.data, train_transform(run.config), seed=0, global_batch=64, micro_batch=64, rank=0, world_size=1,
            workers=1, start_step=0, stop_step=batches,
        ):  # fmt: skip
            pass
        return time.perf_counter() - began

    def loop_with_loader(steps: int) -> float:
        return go_on(run, progress, stop, steps)[0]

    wait = 0.0
    run.engine.module.forward = lambda x_BCHW: waited_for(wait, x_BCHW, run.engine.module)
    wait = max(0.0, share * each(loader) - bare_steps(run, 40, 64))
    alone, step, both = [], [], []
    for _ in range(rounds):
        alone.append(each(loader))
        step.append(bare_steps(run, 40, 64))
        both.append(each(loop_with_loader))
    slower = max(statistics.median(alone), statistics.median(step))
    print(
        f"# loader alone {[round(1000 * x, 1) for x in alone]}, steps alone {[round(1000 * x, 1) for x in step]}, "
        f"both {[round(1000 * x, 1) for x in both]} ms per batch of 64"
    )
    report = {
        "claim": f"loader and steps together, against the slower, {'steps' if share > 1 else 'loader'} (target 0.98)",
        "ours": round(64 / statistics.median(both), 1),
        "peer": round(64 / slower, 1),
        "limit": round(64 / slower, 1),
        "ratio": round(slower / statistics.median(both), 3),
        "unit": "images/s",
        "machine": "1 rank of 1 thread, 1 worker",
    }
    print(json.dumps(report))
    run.saver.finish()


def waited_for(seconds: float, x_BCHW: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """Logits after ``seconds`` without computation; every parameter has a gradient of zero."""
    time.sleep(seconds)
    zero = torch.stack([parameter.sum() for parameter in model.parameters()]).sum() * 0
    return x_BCHW.new_zeros(len(x_BCHW), model.classes) + zero


def each(seconds: Callable[[int], float]) -> float:
    """Seconds per batch without startup; ``seconds`` returns the time for a number of batches."""
    return (seconds(60) - seconds(20)) / 40


def begin(scratch: Path, data: Path, steps: int, *, batch: int = BATCH, workers: int = 0) -> Run:
    recipe = PRETRAIN["tiny"].config
    config = dataclasses.replace(
        recipe,
        run_dir=scratch / "run",
        model=dataclasses.replace(recipe.model, image_size=16),
        data=dataclasses.replace(recipe.data, train=(str(data),), eval_split="none", workers=workers),
        schedule=dataclasses.replace(recipe.schedule, steps=steps),
        train=dataclasses.replace(recipe.train, global_batch=batch, micro_batch=batch, log_every=50),
        checkpoint=dataclasses.replace(recipe.checkpoint, every=0, background=False),
    )
    return start(config, prepare(config))


def go_on(run: Run, progress: Progress, stop: StopRequest, steps: int) -> tuple[float, float]:
    """Seconds of the real loop without the final checkpoint, and the part spent waiting for data."""
    until = dataclasses.replace(
        run, start_step=progress.step, job=dataclasses.replace(run.job, steps=progress.step + steps)
    )
    before = dict(run.clock.seconds)
    began = time.perf_counter()
    with Bar("training", steps, "steps", shown=False) as bar:
        loop(until, progress, stop, bar)
    seconds = time.perf_counter() - began
    part = {name: run.clock.seconds[name] - before[name] for name in before}
    return seconds - part["evaluation"] - part["checkpoint"], part["data"]


def bare_steps(run: Run, steps: int, batch: int = BATCH) -> float:
    """Seconds per step of the same engine alone, on one batch of the same size."""
    images = torch.zeros(batch, 16, 16, 3, dtype=torch.uint8)
    labels = torch.zeros(batch, dtype=torch.int64)
    engine = run.engine
    engine.train()
    began = time.perf_counter()
    for _ in range(steps):
        loss = loss_of("softmax", engine(normalise(images, torch.float32)).float(), labels)
        engine.backward(loss)
        engine.step()
    return (time.perf_counter() - began) / steps


if __name__ == "__main__":
    main()
