"""How fast jobs.predict and jobs.suite read images, against the evaluation loader on shards of the same images.

python -m benchmarks.bench_predict [--images 1000] [--rounds 3] [--size 224] [--workers 2] [--forms tar,zip]
Crops of scikit-learn's photographs, 500 x 375 pixels; no model runs. jobs.predict reads the shard itself; jobs.suite
reads a test set as it is downloaded: a tar and a deflated zip of JPEGs, and PNGs in a folder, a tar, a deflated zip,
and with a border of 2 pixels cut off, as ObjectNet's. OpenCV writes these PNGs, with the filter Sub; png-adaptive is a
tar of PNGs that Pillow has written, which chooses among all filters, as libpng does.

The limit of a zip is the loader and inflating; that of PNGs, which the loader doesn't read, is decoding by OpenCV and
resizing. Bare loops in this process, times the number of workers, measure inflating and decoding. All take turns in
each round; the median counts. With --workers 0 everything happens in this process, and its CPU time counts: for a
machine with other work.
"""

import argparse
import io
import json
import statistics
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image as Pillow

from benchmarks.bench_shard import CORES, crops
from data_prep import shard
from data_prep.test_sets.catalogue import named
from data_prep.test_sets.read_set import read
from jobs.suite import labelled
from pipeline.dataset.joined_split import open_split
from pipeline.inference import image_files
from pipeline.inference.image_files import Picture
from pipeline.loader.batches import eval_batches
from pipeline.model.cpu import keep_freed_memory

BATCH = 32
WNID = "n01440764"  # any class of ImageNet-2012
FORMS = ("predict", "tar", "zip", "png-folder", "png-tar", "png-zip", "png-border", "png-adaptive")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--forms", default=",".join(FORMS))
    arguments = parser.parse_args()
    forms, workers, images = arguments.forms.split(","), arguments.workers, arguments.images
    clock = time.perf_counter if workers else time.process_time
    keep_freed_memory()  # as the commands do
    torch.set_num_threads(1)  # else torch's other threads, which wait for work, take the workers' time or are counted
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jpegs = crops(min(images, 200))
        shards = dataset(folder, jpegs, images)
        split = open_split(str(shards), "train")
        pictures = {form: listed(form, folder, jpegs, images, shards) for form in forms}
        assert all(len(found) == len(split) == images for found in pictures.values())
        readers: dict[str, Callable[[], Iterator[Any]]] = {
            form: lambda found=found: image_files.batches(  # type: ignore[misc]
                found, batch=BATCH, size=arguments.size, resize="square", workers=workers, rank=0, world_size=1
            )
            for form, found in pictures.items()
        }
        readers["evaluate"] = lambda: eval_batches(
            split, image_size=arguments.size, batch=BATCH, rank=0, world_size=1, workers=workers
        )
        rates: dict[str, list[float]] = {form: [] for form in readers}
        loops = bare_loops(forms, jpegs, arguments.size)
        bare: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(arguments.rounds):
            for form, reader in readers.items():
                rates[form].append(images / seconds(reader, clock))
            for loop, (files, action) in loops.items():
                bare[loop].append(max(workers, 1) * len(files) / seconds(lambda: map(action, files), clock))  # noqa: B023
    print("# images per second by round:", {form: [round(rate) for rate in found] for form, found in rates.items()})
    print("# bare loops times the workers:", {loop: [round(rate) for rate in found] for loop, found in bare.items()})
    peer = statistics.median(rates["evaluate"])
    for form in forms:
        ours = statistics.median(rates[form])
        most = peer
        if form == "zip":
            most = 1 / (1 / peer + 1 / statistics.median(bare["inflating JPEGs"]))
        elif form.startswith("png"):
            most = statistics.median(bare[f"decoding and resizing PNGs, {written_by(form)}"])
        report: dict[str, Any] = {"claim": f"reading images, {form}, against the evaluation loader"}
        report |= {"ours": round(ours, 1), "peer": round(peer, 1), "limit": round(most, 1)}
        report |= {
            "ratio": round(ours / peer, 3),
            "unit": "images/s" if workers else "images per CPU-second",
            "machine": f"{CORES} cores",
        }
        print(json.dumps(report))


def dataset(folder: Path, jpegs: Sequence[bytes], images: int) -> Path:
    """Shards of the images."""
    raw = folder / "raw" / WNID
    raw.mkdir(parents=True)
    for number in range(images):
        (raw / f"{number}.jpg").write_bytes(jpegs[number % len(jpegs)])
    assert shard.main([str(folder / "raw"), str(folder / "data"), "--workers", "2"]) == 0
    return folder / "data"


def listed(form: str, folder: Path, jpegs: Sequence[bytes], images: int, shards: Path) -> Sequence[Picture]:
    """The images as the command finds them: jobs.predict in the shards, jobs.suite in a download of this form."""
    if form == "predict":
        return image_files.find(sorted(shards.glob("*.tar")))
    files = [as_png(jpeg, form) for jpeg in jpegs] if form.startswith("png") else list(jpegs)
    ending = "png" if form.startswith("png") else "JPEG"
    members = ((f"sketch/{WNID}/{number}.{ending}", files[number % len(files)]) for number in range(images))
    place = folder / form
    place.mkdir()
    if form.endswith("zip"):
        download = place / "sketch.zip"
        with zipfile.ZipFile(download, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                archive.writestr(name, content)
    else:
        (place / "sketch" / WNID).mkdir(parents=True)
        for name, content in members:
            (place / name).write_bytes(content)
        download = place / "sketch"
        if form.endswith(("tar", "adaptive")):
            download = place / "sketch.tar"
            with tarfile.open(download, "w") as tar:
                tar.add(place / "sketch", "sketch")
    test_set = named("sketch")
    found = labelled(read(test_set, [download], folder, partial=True), [test_set.name], download).pictures
    return [picture._replace(border=2) for picture in found] if form.endswith("border") else found


def written_by(form: str) -> str:
    return "Pillow" if form == "png-adaptive" else "OpenCV"


def as_png(jpeg: bytes, form: str) -> bytes:
    if written_by(form) == "OpenCV":
        return cv2.imencode(".png", simplejpeg.decode_jpeg(jpeg, "BGR"))[1].tobytes()
    buffer = io.BytesIO()
    Pillow.fromarray(simplejpeg.decode_jpeg(jpeg, "RGB")).save(buffer, "PNG")
    return buffer.getvalue()


def seconds(reader: Callable[[], Iterator[Any]], clock: Callable[[], float]) -> float:
    began = clock()
    for _ in reader():
        pass
    return clock() - began


def bare_loops(
    forms: Sequence[str], jpegs: Sequence[bytes], size: int
) -> dict[str, tuple[list[bytes], Callable[[bytes], object]]]:
    """What the forms can't do without, by name: the files, and what is done to each."""

    def decoded(png: bytes) -> object:
        pixels_HWC = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR_RGB)
        return cv2.resize(pixels_HWC, (size, size), interpolation=cv2.INTER_LINEAR)  # type: ignore[arg-type]

    loops: dict[str, tuple[list[bytes], Callable[[bytes], object]]] = {}
    if "zip" in forms:
        loops["inflating JPEGs"] = [zlib.compress(jpeg) for jpeg in jpegs], zlib.decompress
    for form in forms:
        if form.startswith("png"):
            files, writer = [as_png(jpeg, form) for jpeg in jpegs], written_by(form)
            loops[f"decoding and resizing PNGs, {writer}"] = files, decoded
            loops[f"inflating PNGs, {writer}"] = [pixel_data(png) for png in files], zlib.decompress
    return loops


def pixel_data(png: bytes) -> bytes:
    """The zlib stream of the chunks IDAT."""
    parts, at = [], 8
    while at < len(png):
        size = int.from_bytes(png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            parts.append(png[at + 8 : at + 8 + size])
        at += 12 + size
    return b"".join(parts)


if __name__ == "__main__":
    main()
