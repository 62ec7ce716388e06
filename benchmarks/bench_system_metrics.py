"""Cost of sampling the node's load (system metrics) per training step: steps with and without it, by turns, in one run.

python -m benchmarks.bench_system_metrics [--steps 100] [--rounds 20] [--often 300]
A sample every 30 s is too rare for its cost to show, so samples are taken ``often`` times as often as in a training,
and the difference is divided by ``often``. Without a GPU, NVML's part of a sample is missing.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

os.environ["VIT_MLFLOW"] = "off"  # a separate process that would disturb the measurement

import torch

from benchmarks.bench_learning import digits
from benchmarks.bench_loop import begin, go_on
from pipeline.tracking import system_metrics
from pipeline.tracking.system_metrics import Sampler
from pipeline.train.state import Progress
from pipeline.train.stop_signals import StopRequest

LIMIT = 0.005  # share of the step's time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100, help="per turn")
    parser.add_argument("--rounds", type=int, default=20, help="pairs of turns")
    parser.add_argument("--often", type=float, default=300.0, help="samples for each one of a training")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    period, system_metrics.PERIOD = system_metrics.PERIOD, system_metrics.PERIOD / arguments.often
    with tempfile.TemporaryDirectory() as scratch:
        run = begin(Path(scratch), digits(Path(scratch)), 2 * arguments.steps * arguments.rounds + arguments.steps)
        assert run.sampler is not None
        run.sampler.stop()
        progress, stop = Progress(0, {}), StopRequest()
        go_on(run, progress, stop, arguments.steps)  # warms up

        def turn(sampled: bool) -> float:
            """Seconds per step."""
            sampler = Sampler(Path(scratch) / "sampled", "node", 1)
            if sampled:
                sampler.start()
            whole, waited = go_on(run, progress, stop, arguments.steps)
            sampler.stop()
            return (whole - waited) / arguments.steps

        pairs = []
        for number in range(arguments.rounds):
            first = turn(sampled=number % 2 == 1)
            second = turn(sampled=number % 2 == 0)
            pairs.append((first, second) if number % 2 == 0 else (second, first))  # without, with
        run.saver.finish()
        samples = (Path(scratch) / "sampled" / "system" / "node.jsonl").read_bytes().count(b"\n")
        if run.tracker is not None:
            run.tracker.close("FINISHED")
    without = statistics.median(pair[0] for pair in pairs)
    shares = [(on - off) / off for off, on in pairs]
    error = statistics.stdev(shares) / len(shares) ** 0.5 if len(shares) > 1 else 0.0
    print(
        f"# a sample every {system_metrics.PERIOD:g} s, {samples} in all: {statistics.fmean(shares):+.2%} of a step of "
        f"{1000 * without:.2f} ms (standard error {error:.2%}, median {statistics.median(shares):+.2%}), "
        f"by pair {[f'{share:+.1%}' for share in shares]}"
    )
    cost = statistics.fmean(shares) / arguments.often
    report = {
        "claim": f"share of a step spent on system metrics, one sample every {period:g} s",
        "ours": cost,
        "peer": 0.0,
        "limit": LIMIT,
        "ratio": cost / LIMIT,
        "unit": f"share of step time; standard error {error / arguments.often:.6f}",
        "machine": "1 thread, 1 rank, no GPU" if not torch.cuda.is_available() else "1 thread, 1 rank",
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
