"""python -m tests.tracking.program RUN --steps N [...]: it logs as a training does, without one's imports."""

import argparse
import math
import signal
import time
from pathlib import Path

from pipeline.core.files import write_json
from pipeline.tracking.tracker import open_tracker


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--end", default="FINISHED")
    parser.add_argument("--until", default="", help="text in mlflow.log to wait for before the end")
    parser.add_argument("--drift", type=float, default=0.0)
    options = parser.parse_args()
    options.run_dir.mkdir(parents=True, exist_ok=True)
    write_json(options.run_dir / "config.json", {"stage": "pretrain", "recipe": "tiny"})
    tracker = open_tracker(
        options.run_dir,
        experiment="outages",
        name=options.run_dir.name,
        params={"optim.lr": 0.1},
        tags={"team": "vision"},
        artifacts=[options.run_dir / "config.json"],
        start_step=options.start,
        epoch_samples=100,
    )
    print(f"started {time.time()}", flush=True)
    took = []
    for step in range(options.start + 1, options.steps + 1):
        begin = time.perf_counter()
        metrics = {"train/loss": 1 / step + options.drift, "train/norm": math.inf if step == 3 else float(step)}
        tracker.log(step, step * 8, metrics | {"train/odd": math.nan if step % 7 == 0 else -0.5})
        took.append(time.perf_counter() - begin)
        if step % 10 == 0:
            print(f"step {step}", flush=True)
        time.sleep(options.pause)
    print(f"mean log {sum(took) / len(took)}, slowest log {max(took)}", flush=True)
    if options.end == "HANG":
        signal.pause()
    while options.until and options.until not in (options.run_dir / "mlflow.log").read_text():
        time.sleep(0.1)
    tracker.close(options.end)
    print("closed", flush=True)


if __name__ == "__main__":
    main()
