"""A simulated day of the sample order of 1,024 ranks over ImageNet-21K; the cost of opening and seeking 14 M samples.

python -m benchmarks.bench_order [--rate 300] [--index FOLDER]
No image is read. A day is 86,400 s of 1,024 ranks at --rate images/s each. Checks for every epoch: the windows of all
lanes cover the samples without gaps or overlap, and the shards are permuted. For the first, a middle and the last
epoch: every micro-batch of every rank is requested as by its loader, and each sample occurs exactly once. Then the run
is resumed at random steps on other numbers of ranks. Without --index, an index of 14,197,122 rows is created first
(half a minute). The limits are the project's targets: 2 s, 200 MB, 10 ms.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep import tables as arrow_tables
from pipeline.dataset import format as dataset_format
from pipeline.loader.order import Order, micro_batch_positions

SAMPLES, SHARD = 14_197_122, 4096  # ImageNet-21K, fall 2011; the default of data_prep.shard
RANKS, GLOBAL_BATCH, MICRO_BATCH = 1024, 4096, 4
DAY = 86_400  # seconds
SEEKS = 1000
OPEN = """
import sys, time
from pathlib import Path
import numpy as np
import pipeline.loader.batches
from pipeline.loader.order import Order
from pipeline.dataset.index import read_rows

def memory(what):
    return next(int(line.split()[1]) / 1e3 for line in open("/proc/self/status") if line.startswith(what))

folder, samples, shard = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
Path("/proc/self/clear_refs").write_text("5")  # reset the peak
before, began = memory("VmRSS"), time.perf_counter()
rows = read_rows(folder, "train", samples, "digest")
order = Order((shard,) * (samples // shard) + (samples % shard,), 0)
first = rows[order.rows(np.arange(128))[1]]
first["offset"].sum()
print(time.perf_counter() - began, memory("VmHWM") - before, memory("RssAnon"))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=300.0)
    parser.add_argument("--index", type=Path)
    arguments = parser.parse_args()
    order = Order(shard_sizes(), 0)
    epochs = int(DAY * RANKS * arguments.rate / SAMPLES) + 1
    began = time.perf_counter()
    for epoch in range(epochs):
        check_structure(order, epoch)
    structure = time.perf_counter() - began
    began = time.perf_counter()
    whole = sorted({0, epochs // 2, epochs - 1})
    for epoch in whole:
        check_each_once(order, epoch)
    enumerated = time.perf_counter() - began
    began = time.perf_counter()
    resumes = check_resumes(order, epochs)
    resumed = time.perf_counter() - began
    claim = f"a day of {RANKS} ranks at {arguments.rate:g} img/s: order of {epochs} epochs"
    report(f"{claim}, structure", structure, None, "s")
    report(f"{claim}, {len(whole)} of them enumerated by all ranks", enumerated, None, "s")
    report(f"{claim}, {resumes} resumes on other ranks", resumed, None, "s")
    seek(order, epochs)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.index or make_index(Path(scratch) / "data")
        opening(folder, Path(scratch) / "cache")


def shard_sizes() -> tuple[int, ...]:
    return (SHARD,) * (SAMPLES // SHARD) + (SAMPLES % SHARD,)


def check_structure(order: Order, epoch: int) -> None:
    """Windows tile the epoch (each is permuted in itself, as tests/loader/test_order.py shows for any size)."""
    positions = np.arange(min(order.lanes, order.samples))  # the first of each lane
    depths = range(0, order.samples // order.lanes + 1, order.window)
    every = np.concatenate([positions + depth * order.lanes for depth in depths])
    starts, inside, lengths = order._windows(every[every < order.samples])
    assert (inside == 0).all()
    by_start = np.argsort(starts)
    assert starts[by_start[0]] == 0
    assert ((starts + lengths)[by_start] == np.append(starts[by_start[1:]], order.samples)).all()
    permuted, ends = order._lay(epoch)
    assert (np.sort(permuted) == np.arange(len(order.shard_samples))).all()
    assert ends[-1] == order.samples


def check_each_once(order: Order, epoch: int) -> None:
    """The steps of the epoch, one rank after another."""
    first, last = epoch * SAMPLES // GLOBAL_BATCH, ((epoch + 1) * SAMPLES - 1) // GLOBAL_BATCH
    count = np.zeros(SAMPLES, np.int8)
    for start in range(first, last + 1, 64):  # steps per block, limited by memory
        steps = range(start, min(start + 64, last + 1))
        positions = np.concatenate([rank_positions(step, rank, RANKS) for step in steps for rank in range(RANKS)])
        epochs, rows = order.rows(positions)
        np.add.at(count, rows[epochs == epoch], 1)
    assert (count == 1).all()


def rank_positions(step: int, rank: int, world: int) -> np.ndarray:
    micro = GLOBAL_BATCH // world
    return micro_batch_positions(step, 0, global_batch=GLOBAL_BATCH, micro_batch=micro, rank=rank, world_size=world)


def check_resumes(order: Order, epochs: int) -> int:
    """Random steps on 8 to 2,048 ranks have the same samples as on 1,024."""
    random = np.random.default_rng(0)
    steps = random.integers(epochs * SAMPLES // GLOBAL_BATCH, size=100).tolist()
    for step in steps:
        whole = np.sort(order.rows(np.arange(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH))[1])
        world = int(random.choice([8, 64, 512, 1024, 2048]))
        parts = [order.rows(rank_positions(step, rank, world))[1] for rank in range(world)]
        assert (np.sort(np.concatenate(parts)) == whole).all()
    return len(steps)


def seek(order: Order, epochs: int) -> None:
    """A rank's micro-batch of 64 at a random step of the day: what the first batch after a resume requests."""
    random, walls, cpus = np.random.default_rng(1), [], []
    for _ in range(SEEKS):
        start = int(random.integers(epochs * SAMPLES))
        wall, cpu = time.perf_counter(), time.process_time()
        order.rows(start + RANKS * np.arange(64))
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    report(f"seek, median of {SEEKS}", float(np.median(walls)) * 1e3, 10.0, "ms")
    report(f"seek, worst of {SEEKS}", max(walls) * 1e3, 10.0, "ms")
    report(f"seek, worst of {SEEKS}, CPU time", max(cpus) * 1e3, 10.0, "ms")


def opening(folder: Path, cache: Path) -> None:
    """In a new process each time: first without the cached records, then with them."""
    for name in ("first time", "cached"):
        done = subprocess.run(
            [sys.executable, "-c", OPEN, str(folder), str(SAMPLES), str(SHARD)],
            env=os.environ | {"VIT_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
            capture_output=True, encoding="utf-8", check=True, cwd=Path(__file__).parents[1],
        )  # fmt: skip
        seconds, peak, _ = map(float, done.stdout.split())
        report(f"open 14.2 M samples and look up 128, {name}", seconds, 2.0, "s")
        report(f"open 14.2 M samples, {name}: peak beyond the imports, shared file pages included", peak, 200.0, "MB")


def make_index(folder: Path) -> Path:
    """index.parquet with random sizes and labels, written as data_prep.shard writes it."""
    folder.mkdir()
    random = np.random.default_rng(0)

    def tables():  # type: ignore[no-untyped-def]
        for shard, samples in enumerate(shard_sizes()):
            size = random.integers(20_000, 200_000, samples).astype(np.int32)
            label = random.integers(0, 21_841, samples).astype(np.int32)
            columns = {
                "key": pa.array([f"n{wnid:08d}_{number}" for number, wnid in enumerate(label.tolist())]),
                "split": pa.DictionaryArray.from_arrays(pa.array(np.zeros(samples, np.int8)), pa.array(["train"])),
                "shard": pa.array(np.full(samples, shard, np.int32)),
                "offset": pa.array(np.cumsum(size.astype(np.int64) + 2048) - size),
                "size": pa.array(size),
                "label": pa.array(label),
                "width": pa.array(np.full(samples, 500, np.int32)),
                "height": pa.array(np.full(samples, 375, np.int32)),
                "orientation": pa.array(np.ones(samples, np.uint8)),
                "recoded": pa.DictionaryArray.from_arrays(pa.array(np.zeros(samples, np.int8)), pa.array([""])),
                "xxh3_64": pa.array(random.integers(0, 2**63, samples).astype(np.uint64)),
            }
            yield pa.table(columns, schema=dataset_format.INDEX_SCHEMA)

    arrow_tables.write_parquet(folder / "index.parquet", dataset_format.INDEX_SCHEMA, tables())
    return folder


def report(claim: str, ours: float, limit: float | None, unit: str) -> None:
    ratio = None if limit is None else round(ours / limit, 4)
    machine = f"{os.cpu_count()} cores {platform.machine()}"
    line = {"claim": claim, "ours": round(ours, 4), "peer": None, "limit": limit, "ratio": ratio, "unit": unit}
    print(json.dumps({**line, "machine": machine}), flush=True)


if __name__ == "__main__":
    main()
