"""Images per second from JPEG shards to batches: this loader, its peers, and the limit of decoding whole images.

python -m benchmarks.bench_loader [--photos TAR_OF_TARS] [--images 1000] [--rounds 5] [--restart]
    [--readers ours,webdataset,...]
Every reader has two workers and makes crops of 224 px with flips; all alternate in one run. Without --photos, many
crops of scikit-learn's two photographs are re-encoded. The limit is twice a bare single-process loop of header, whole
decode, crop and resize. Peers that aren't installed are listed. A profile of this loader's parts follows.
"""

import argparse
import gc
import json
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from sklearn.datasets import load_sample_images
from torch.utils.data import get_worker_info

from benchmarks import loader_peers
from data_prep import shard
from pipeline.dataset.joined_split import JoinedSplit, open_split
from pipeline.imaging import jpeg
from pipeline.loader import transforms
from pipeline.loader.batches import train_batches
from pipeline.loader.splitmix import Draws
from pipeline.loader.transforms import TrainTransform, inception_crop
from pipeline.model.cpu import keep_freed_memory

SIZE, BATCH, WORKERS = 224, 50, 2
Reader = Callable[[], Iterator[Any]]  # batches of BATCH images without end, or at least as many as are asked for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--restart", action="store_true", help="shards with restart markers, for all readers")
    parser.add_argument("--readers", default=",".join([*OURS, "webdataset", "dali", "streaming", "litdata", "spdl"]))
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    keep_freed_memory()  # as training does, for all readers
    with tempfile.TemporaryDirectory() as scratch:
        data = data_set(arguments.photos, Path(scratch), *(["--restart"] if arguments.restart else []))
        split = open_split(data, "train")
        readers, absent = choose(arguments.readers.split(","), split, arguments.images)
        rates: dict[str, list[float]] = {name: [] for name in ["bare", *readers]}
        for _ in range(arguments.rounds):
            rates["bare"].append(bare(split, arguments.images))
            for name, reader in readers.items():
                rates[name].append(rate(reader, arguments.images))
        show(rates, absent)
        profile(split, arguments.images)


def data_set(photos: Path | None, scratch: Path, *more: str) -> Path:
    raw = photos or crops_of_photographs(scratch / "photos")
    options = ["--samples-per-shard", "50", "--workers", "2", *more]
    if shard.main([str(raw), str(scratch / "data"), *options]):
        raise RuntimeError("data_prep.shard failed")
    return scratch / "data"


def crops_of_photographs(folder: Path) -> Path:
    """200 JPEGs of about 500 x 375 pixels, ImageNet's usual size."""
    (folder / "photo").mkdir(parents=True)
    random, photos = np.random.default_rng(0), load_sample_images().images
    for number in range(200):
        photo = photos[number % 2]
        top, left = random.integers(photo.shape[0] - 375), random.integers(photo.shape[1] - 500)
        pixels = np.ascontiguousarray(photo[top : top + 375, left : left + 500])
        (folder / "photo" / f"{number}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels, 92, "RGB", "420"))
    return folder


def choose(names: list[str], split: JoinedSplit, images: int) -> tuple[dict[str, Reader], dict[str, str]]:
    """The readers to measure, and why others aren't."""
    readers: dict[str, Reader] = {}
    absent: dict[str, str] = {}
    for name in names:
        if name in OURS:
            readers[name] = lambda transform=OURS[name]: ours(split, transform, images)
            continue
        try:
            readers[name] = loader_peers.PEERS[name](split, SIZE, BATCH, WORKERS)
            next(iter(readers[name]()))
        except Exception as error:
            readers.pop(name, None)
            absent[name] = f"{type(error).__name__}: {error}"
    return readers, absent


OURS = {
    "ours": TrainTransform(SIZE),
    "full": TrainTransform(SIZE, decode="full"),
    "randaugment": TrainTransform(SIZE, "medium1"),
    "simple": TrainTransform(SIZE, crop="simple"),  # crop and flip of DeiT III, bicubic
    "3-augment": TrainTransform(SIZE, "3-augment", crop="simple", color_jitter=0.3),  # its pretraining
}


def ours(split: JoinedSplit, transform: TrainTransform, images: int) -> Iterator[Any]:
    return train_batches(
        split,
        transform,
        seed=0,
        global_batch=BATCH,
        micro_batch=BATCH,
        rank=0,
        world_size=1,
        workers=WORKERS,
        start_step=0,
        stop_step=images // BATCH + 1,
    )


def bare(split: JoinedSplit, images: int) -> float:
    """Images per second of one process: header, crop, whole decode, resize; the bytes are in memory."""
    files = [split.read(row) for row in range(len(split))]
    draws = Draws(0)
    out = np.empty((SIZE, SIZE, 3), np.uint8)
    started = time.perf_counter()
    for number in range(images):
        data = files[number % len(files)]
        top, left, height, width = inception_crop(*jpeg.size(data), 0.05, draws)
        cv2.resize(jpeg.decode(data)[top : top + height, left : left + width], (SIZE, SIZE), out)
    return images / (time.perf_counter() - started)


def rate(reader: Reader, images: int) -> float:
    """Images per second from the first batch, when the workers are running, to the last."""
    batches = iter(reader())
    next(batches)
    started = time.perf_counter()
    for _ in range(images // BATCH):
        next(batches)
    seconds = time.perf_counter() - started
    del batches
    gc.collect()  # the reader's workers end before the next one starts
    return images // BATCH * BATCH / seconds


def show(rates: dict[str, list[float]], absent: dict[str, str]) -> None:
    middle = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"# {name:12} {middle[name]:7.0f} images/s   {sorted(round(value) for value in values)}")
    for name, why in absent.items():
        print(f"# {name:12} not measured: {why.splitlines()[0][:160]}")
    limit = WORKERS * middle["bare"]
    pairs = [("ours", name) for name in middle if name not in ("bare", *OURS)] if "ours" in middle else []
    pairs += [("ours", "full"), ("randaugment", "ours"), ("3-augment", "simple"), ("3-augment", "ours")]
    claims = [("ours", "limit", limit)] if "ours" in middle else []
    claims += [(a, b, middle[b]) for a, b in pairs if a in middle and b in middle]
    for name, peer, figure in claims:
        report = {
            "claim": f"loader, {name} against {peer}",
            "ours": round(middle[name], 1),
            "peer": round(figure, 1),
            "limit": round(limit, 1),
            "ratio": round(middle[name] / figure, 3),
            "unit": "images/s, two workers",
            "machine": f"{os.cpu_count()} cores",
        }
        print(json.dumps(report))


def cpu(batches: Iterator[Any]) -> float:
    """CPU seconds of this process and its workers until all batches are read."""
    before = os.times()
    for _ in batches:
        pass
    gc.collect()  # the workers end, and count
    return sum(os.times()[:4]) - sum(before[:4])


def profile(split: JoinedSplit, images: int) -> None:
    """CPU time of decoding and resizing in the workers, and all other CPU time, in microseconds per image."""
    inside = np.frombuffer(mmap.mmap(-1, 8 * WORKERS), np.float64)  # seconds, by worker
    whole = (transforms.decode_box, cv2.resize)
    transforms.decode_box, cv2.resize = (timed(function, inside) for function in whole)
    spent, decoded = [], []
    for count in (images, 4 * images):  # the difference: starting workers cancels
        inside[:] = 0
        spent.append(cpu(ours(split, TrainTransform(SIZE), count)))
        decoded.append(inside.sum())
    transforms.decode_box, cv2.resize = whole
    all_us, inner_us = (1e6 * (more - less) / (3 * images) for less, more in (spent, decoded))
    print(f"# CPU per image: {all_us:.0f} us, of which decode and resize {inner_us:.0f} us")
    report = {
        "claim": "loader, CPU time outside decode and resize (target at most 0.1)",
        "ours": round(all_us - inner_us, 1),
        "peer": round(inner_us, 1),
        "limit": 0.1,
        "ratio": round(1 - inner_us / all_us, 3),
        "unit": "us per image",
        "machine": f"{os.cpu_count()} cores",
    }
    print(json.dumps(report))


def timed(function: Callable[..., Any], inside: npt.NDArray[np.float64]) -> Callable[..., Any]:
    """``function``, which also adds its CPU seconds to its loader worker's sum."""

    def call(*args: Any, **options: Any) -> Any:
        began = time.process_time()
        result = function(*args, **options)
        inside[get_worker_info().id] += time.process_time() - began
        return result

    return call


if __name__ == "__main__":
    main()
