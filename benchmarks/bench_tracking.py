"""Overhead of logging at 20 steps per second, against mlflow.log_metrics and accelerate's tracker.

python -m benchmarks.bench_tracking [--steps 400] [--rounds 3]
A step is a pause of 50 ms; every step logs the metrics of a training run. Ours runs with its sync process to sqlite,
the peers write to sqlite themselves. The result is the call's share of the step time.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
import mlflow
from accelerate.tracking import MLflowTracker

from pipeline.tracking.tracker import open_tracker

STEP = 0.05  # seconds
LIMIT = 0.005  # share of the step's time
NAMES = (
    "train/loss", "train/lr", "train/grad_norm", "speed/images_per_second", "speed/step_seconds", "speed/mfu",
    "speed/data_wait", "watch/skipped_steps", "watch/loss_spikes",
)  # fmt: skip


def share(log: Callable[[int, dict[str, float]], object], steps: int) -> float:
    """Mean seconds in ``log`` over the seconds of a step."""
    seconds = []
    for step in range(1, steps + 1):
        time.sleep(STEP)
        metrics = {name: step / (index + 1) for index, name in enumerate(NAMES)}
        began = time.perf_counter()
        log(step, metrics)
        seconds.append(time.perf_counter() - began)
    return statistics.fmean(seconds) / STEP


def ours(run_dir: Path, steps: int) -> float:
    tracker = open_tracker(run_dir, experiment="bench", name="ours", params={}, tags={})
    found = share(lambda step, metrics: tracker.log(step, step * 8, metrics), steps)
    tracker.close("KILLED")
    return found


def straight(experiment: str, steps: int) -> float:
    mlflow.set_experiment(experiment)
    with mlflow.start_run():
        return share(lambda step, metrics: mlflow.log_metrics(metrics, step=step), steps)


def accelerate(experiment: str, folder: str, steps: int) -> float:
    tracker = MLflowTracker(experiment, logging_dir=folder)
    tracker.start()
    found = share(lambda step, metrics: tracker.log(metrics, step=step), steps)
    tracker.finish()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[str, list[float]] = {"ours": [], "mlflow.log_metrics": [], "accelerate": []}
    for turn in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            mlflow.set_tracking_uri(f"sqlite:///{scratch}/peers.db")  # sets the variable, too
            os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch}/ours.db"
            found["ours"].append(ours(Path(scratch) / "run", arguments.steps))
            found["mlflow.log_metrics"].append(straight(f"straight-{turn}", arguments.steps))
            found["accelerate"].append(accelerate(f"accelerate-{turn}", scratch, arguments.steps))
    print("# share of a 50 ms step, by round:", {name: [f"{value:.3%}" for value in found[name]] for name in found})
    own = statistics.median(found["ours"])
    for name in ("mlflow.log_metrics", "accelerate"):
        peer_share = statistics.median(found[name])
        result = {
            "claim": f"share of a 50 ms step spent logging; peer: {name}",
            "ours": own,
            "peer": peer_share,
            "limit": LIMIT,
            "ratio": own / peer_share,
            "unit": "share of step time",
            "machine": f"{os.cpu_count()} cores",
        }
        print(json.dumps(result))
    if own > LIMIT:
        raise SystemExit(f"logging takes {own:.2%} of the step, more than {LIMIT:.1%}")


if __name__ == "__main__":
    main()
