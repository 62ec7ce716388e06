"""The peers of bench_loader.py, each with its usual image transforms: a function of (split, size, batch, workers) that
returns a function that starts the reader. A peer that isn't installed raises ImportError.
"""

import io
import math
import random
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pipeline.dataset.joined_split import JoinedSplit
from pipeline.imaging import jpeg

Reader = Callable[[], Iterator[Any]]


def pil_transform(image: Image.Image, size: int) -> torch.Tensor:
    """torchvision's RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize on a PIL image."""
    image = image.convert("RGB")
    image = image.crop(random_box(*image.size)).resize((size, size), Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    return pixels.sub_(0.5).div_(0.5)


def random_box(width: int, height: int) -> tuple[int, int, int, int]:
    """RandomResizedCrop's box: left, top, right, bottom."""
    for _ in range(10):
        area = width * height * random.uniform(0.05, 1.0)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    return 0, 0, width, height


def tars(split: JoinedSplit) -> list[str]:
    return [str(split.folder / item.file_name) for item in split.shards]


def webdataset(split: JoinedSplit, size: int, batch: int, workers: int) -> Reader:
    import webdataset as wds

    def start() -> Iterator[Any]:
        data = wds.WebDataset(tars(split), shardshuffle=len(split.shards), resampled=True).shuffle(100).decode("pil")
        data = data.to_tuple("jpg", "cls").map_tuple(lambda image: pil_transform(image, size), lambda label: label)
        return iter(DataLoader(data.batched(batch), batch_size=None, num_workers=workers, prefetch_factor=4))

    return start


def dali(split: JoinedSplit, size: int, batch: int, workers: int) -> Reader:
    from nvidia.dali import fn, pipeline_def, types

    index = Path(tempfile.mkdtemp())
    paths = []
    for item in split.shards:  # DALI's index, derived from ours without reading the tars again
        rows = np.flatnonzero(split.parts[0].shard == item.shard)
        lines = [f"jpg {split.parts[0].offset[row]} {split.parts[0].size[row]} {row}.jpg" for row in rows.tolist()]
        lines.insert(0, f"v1.2 {len(rows)}")
        paths.append(index / f"{item.shard}.idx")
        paths[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")

    @pipeline_def(batch_size=batch, num_threads=workers, device_id=None, seed=0)
    def graph() -> Any:
        files = fn.readers.webdataset(
            paths=tars(split), index_paths=[str(path) for path in paths], ext=["jpg"], random_shuffle=True,
            missing_component_behavior="error",
        )  # fmt: skip
        images = fn.decoders.image_random_crop(
            files, device="cpu", output_type=types.RGB, random_area=[0.05, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        images = fn.resize(images, size=(size, size), interp_type=types.INTERP_LINEAR, antialias=False)
        mirror = fn.random.coin_flip()
        return fn.crop_mirror_normalize(images, mirror=mirror, mean=[127.5] * 3, std=[127.5] * 3, output_layout="CHW")

    def start() -> Iterator[Any]:
        pipe = graph()
        pipe.build()
        while True:
            yield pipe.run()

    return start


def streaming(split: JoinedSplit, size: int, batch: int, workers: int) -> Reader:
    # its vision part isn't used, and requires a torchvision that matches the installed torch
    sys.modules.setdefault("streaming.vision", types.ModuleType("streaming.vision"))
    from streaming import MDSWriter, StreamingDataset

    folder = Path(tempfile.mkdtemp())
    with MDSWriter(out=str(folder), columns={"jpg": "bytes", "cls": "int"}) as out:
        for row in range(len(split)):
            out.write({"jpg": split.read(row), "cls": int(split.label[row])})

    class Photos(StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            item = super().__getitem__(at)
            return pil_transform(Image.open(io.BytesIO(item["jpg"])), size), item["cls"]

    def start() -> Iterator[Any]:
        data = Photos(local=str(folder), shuffle=True, batch_size=batch, epoch_size=100 * len(split))
        return iter(DataLoader(data, batch_size=batch, num_workers=workers, prefetch_factor=4))

    return start


def litdata(split: JoinedSplit, size: int, batch: int, workers: int) -> Reader:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    folder = Path(tempfile.mkdtemp())
    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    repeats = 20  # an epoch long enough to measure in
    for number in range(repeats * len(split)):
        row = number % len(split)
        writer[number] = {"jpg": split.read(row), "cls": int(split.label[row])}
    writer.done()
    writer.merge()

    class Photos(StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            item = super().__getitem__(at)
            return pil_transform(Image.open(io.BytesIO(item["jpg"])), size), item["cls"]

    def start() -> Iterator[Any]:
        data = Photos(str(folder), shuffle=True)
        return iter(StreamingDataLoader(data, batch_size=batch, num_workers=workers, prefetch_factor=4))

    return start


def spdl(split: JoinedSplit, size: int, batch: int, workers: int) -> Reader:
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    spdl.io.demux_image(split.read(0))  # raises if FFmpeg's libraries are missing

    def rows() -> Iterator[list[int]]:
        generator = np.random.default_rng(0)
        while True:
            yield generator.integers(len(split), size=batch).tolist()

    def load(chosen: list[int]) -> Any:
        """SPDL's usual path: FFmpeg decodes and scales; its filter graph crops."""
        frames = []
        for row in chosen:
            data = split.read(row)
            height, width = jpeg.size(data)
            left, top, right, bottom = random_box(width, height)
            packets = spdl.io.demux_image(data)
            crop = f"crop={right - left}:{bottom - top}:{left}:{top}:exact=1"
            flip = ",hflip" if random.random() < 0.5 else ""
            description = f"{crop},scale={size}:{size}:flags=bilinear{flip},format=pix_fmts=rgb24"
            frames.append(spdl.io.decode_packets(packets, filter_desc=description))
        return spdl.io.to_numpy(spdl.io.convert_frames(frames))

    def start() -> Iterator[Any]:
        pipe = (PipelineBuilder().add_source(rows()).pipe(load, concurrency=workers).add_sink(4)).build(
            num_threads=workers
        )
        with pipe.auto_stop():
            yield from pipe

    return start


PEERS: dict[str, Callable[[JoinedSplit, int, int, int], Reader]] = {
    "webdataset": webdataset,
    "dali": dali,
    "streaming": streaming,
    "litdata": litdata,
    "spdl": spdl,
}
