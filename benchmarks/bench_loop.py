"""What the training loop costs over bare steps: learning rate, seeds, table of ranks, checks, metrics, run folder.

python benchmarks/bench_loop.py [--steps 100] [--rounds 5]
Bare steps (the same engine: forward, backward, step) and the real loop take turns; waiting for data is left out. The
cost is absolute, so it is put against a step of 100 ms, a short one for a GPU.
"""

import argparse
import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path

os.environ["VIT_MLFLOW"] = "off"  # a process of its own; here it would only disturb the measurement

import torch

from benchmarks.bench_learning import digits
from pipeline.data import normalise
from pipeline.examine import Progress
from pipeline.losses import loss as loss_of
from pipeline.preempt import StopRequest
from pipeline.recipes import tiny
from pipeline.report import Screen
from pipeline.start import Run, prepare, start
from pipeline.train import loop

REFERENCE = 0.1  # seconds of a step
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        run = begin(Path(scratch), arguments.steps * arguments.rounds + 1)
        progress, stop = Progress(0, {}), StopRequest()
        bare, ours = [], []
        go_on(run, progress, stop, 1)
        for _ in range(arguments.rounds):
            bare.append(bare_steps(run, arguments.steps))
            ours.append(go_on(run, progress, stop, arguments.steps))
        run.saver.finish()
        if run.tracker is not None:
            run.tracker.close("FINISHED")
    cost = min(ours) - min(bare)  # others may use the machine
    print(f"# bare {[round(1000 * x, 2) for x in bare]} ms, loop {[round(1000 * x, 2) for x in ours]} ms a step")
    report = {
        "claim": "cost of the training loop over bare steps",
        "ours": round(1000 * cost, 3),
        "peer": 0.0,
        "limit": 1000 * REFERENCE * 0.01,
        "ratio": round(cost / REFERENCE, 5),
        "unit": "ms a step; the ratio is of a step of 100 ms",
        "machine": "1 thread, 1 rank",
    }
    print(json.dumps(report))


def begin(scratch: Path, steps: int) -> Run:
    recipe = tiny()
    config = dataclasses.replace(
        recipe,
        run_dir=scratch / "run",
        model=dataclasses.replace(recipe.model, image_size=16),
        data=dataclasses.replace(recipe.data, train=(str(digits(scratch)),), eval_split="none", workers=0),
        schedule=dataclasses.replace(recipe.schedule, steps=steps),
        train=dataclasses.replace(recipe.train, global_batch=BATCH, micro_batch=BATCH, log_every=50),
        checkpoint=dataclasses.replace(recipe.checkpoint, every=0, background=False),
    )
    return start(config, prepare(config))


def go_on(run: Run, progress: Progress, stop: StopRequest, steps: int) -> float:
    """Seconds a step of the real loop, without waiting for data and without the checkpoint at its end."""
    until = dataclasses.replace(
        run, start_step=progress.step, job=dataclasses.replace(run.job, steps=progress.step + steps)
    )
    before = dict(run.clock.seconds)
    began = time.perf_counter()
    with Screen(0, steps, speaks=False) as screen:
        loop(until, progress, stop, screen)
    seconds = time.perf_counter() - began
    aside = sum(run.clock.seconds[part] - before[part] for part in ("data", "evaluation", "checkpoint"))
    return (seconds - aside) / steps


def bare_steps(run: Run, steps: int) -> float:
    """Seconds a step of the same engine and nothing else, on one batch of the same size."""
    images = torch.zeros(BATCH, 16, 16, 3, dtype=torch.uint8)
    labels = torch.zeros(BATCH, dtype=torch.int64)
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
