"""How fast jobs.predict reads pictures, against the evaluation loader on the same shard.

python -m benchmarks.bench_predict [--images 1000] [--rounds 3] [--size 224]
Two worker processes each; crops of scikit-learn's photographs, 500 x 375 pixels, in one shard. No model runs: reading
should not be slower than the loader's. The rounds take turns, the fastest of each counts.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.bench_shard import CORES, crops
from data_prep import shard
from pipeline.dataset.joined_split import open_split
from pipeline.inference import image_files
from pipeline.loader.batches import eval_batches

BATCH, WORKERS = 32, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = data_set(Path(folder), arguments.images)
        split = open_split(str(data), "train")
        found = image_files.find(sorted(data.glob("*.tar")))
        assert len(found) == len(split) == arguments.images
        readers: dict[str, Callable[[], Iterator[Any]]] = {
            "predict": lambda: image_files.batches(
                found, batch=BATCH, size=arguments.size, resize="square", workers=WORKERS, rank=0, world_size=1
            ),
            "evaluate": lambda: eval_batches(
                split, image_size=arguments.size, batch=BATCH, rank=0, world_size=1, workers=WORKERS
            ),
        }
        rates: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(arguments.rounds):
            for name, reader in readers.items():
                rates[name].append(arguments.images / seconds(reader))
    print("# images a second by round:", {name: [round(rate) for rate in values] for name, values in rates.items()})
    ours, peer = max(rates["predict"]), max(rates["evaluate"])
    report = {"claim": "reading pictures for jobs.predict against the evaluation loader", "ours": round(ours, 1)}
    report |= {"peer": round(peer, 1), "limit": round(peer, 1), "ratio": round(ours / peer, 3), "unit": "images/s"}
    print(json.dumps({**report, "machine": f"{CORES} cores"}))


def data_set(folder: Path, images: int) -> Path:
    jpegs = crops(min(images, 200))
    (folder / "raw" / "photo").mkdir(parents=True)
    for number in range(images):
        (folder / "raw" / "photo" / f"{number}.jpg").write_bytes(jpegs[number % len(jpegs)])
    assert shard.main([str(folder / "raw"), str(folder / "data"), "--workers", str(WORKERS)]) == 0
    return folder / "data"


def seconds(reader: Callable[[], Iterator[Any]]) -> float:
    began = time.perf_counter()
    for _ in reader():
        pass
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
