"""One rank that hashes its batches: python -m tests.loader.batch_program SOURCE OUT CACHE LIMIT WORKERS STEPS.

Writes OUT/rank-R.txt, a line a sample: step, row, label, hash of the pixels.
"""

import hashlib
import os
import sys
from pathlib import Path

from pipeline.core.retry import Patience
from pipeline.dataset.joined_split import open_split
from pipeline.dataset.shard_cache import Cache
from pipeline.loader.batches import train_batches
from pipeline.loader.transforms import TrainTransform

GLOBAL_BATCH = 64


def main() -> None:
    source, out, cache, limit, workers, steps = sys.argv[1:]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    patience = Patience(seconds=60, pause=0.01, longest_pause=0.1, stall=0.3)
    split = open_split(source, "train", cache=Cache(Path(cache) / "shards", int(limit), patience, lease=1.0))
    with (Path(out) / f"rank-{rank}.txt").open("w") as file:
        for batch in train_batches(
            split, TrainTransform(24, augment="medium1"), seed=5, global_batch=GLOBAL_BATCH, micro_batch=32, rank=rank,
            world_size=world, workers=int(workers), start_step=0, stop_step=int(steps),
        ):  # fmt: skip
            rows, labels = batch.samples_B.tolist(), batch.labels_B.tolist()
            for row, label, image in zip(rows, labels, batch.images_BHWC.numpy(), strict=True):
                print(batch.step, row, label, hashlib.sha256(image.tobytes()).hexdigest(), file=file)


if __name__ == "__main__":
    main()
