"""A reader whose worker is killed: python -m tests.loader.killed_worker DATASET [busy].

A process of its own: torch raises in a signal handler, which would hit whatever pytest is doing just then.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.dataset.joined_split import open_split
from pipeline.loader.batches import Batch, train_batches
from pipeline.loader.transforms import TrainTransform


def batches(data: Path) -> Iterator[Batch]:
    return train_batches(
        open_split(data, "train"), TrainTransform(16), seed=3, global_batch=32, micro_batch=8, rank=0, world_size=1,
        workers=2, start_step=0, stop_step=100_000,
    )  # fmt: skip


def main() -> None:
    data, busy = Path(sys.argv[1]), sys.argv[2:] == ["busy"]
    reader = batches(data)
    next(reader)
    worker = multiprocessing.active_children()[0]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    print(f"killed {worker.pid}", flush=True)
    if busy:
        time.sleep(0.5)
        print("elsewhere", flush=True)
    try:
        for _ in reader:
            pass
    except RuntimeError as error:
        print(error)
    another = batches(data)
    next(another)
    raise ValueError("something else, while workers are there")


if __name__ == "__main__":
    main()
