"""Images to classify: files, folders and tars -> batches of uint8 images, decoded in worker processes.

B batch, H W pixels, C channels.
"""

import io
import os
import signal
import tarfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset

from pipeline.core import retry
from pipeline.core.errors import UserError, printable
from pipeline.core.files import check_local
from pipeline.imaging import jpeg as jpegs
from pipeline.imaging.file_names import READABLE_ENDINGS, counted_endings, ending
from pipeline.imaging.jpeg import Image
from pipeline.imaging.rgb import to_rgb
from pipeline.loader.eval_geometry import geometry
from pipeline.loader.resample import bicubic, middle_square, short_side_size
from pipeline.loader.shared_memory import Slots
from pipeline.loader.transforms import central_crop, eval_image
from pipeline.loader.workers import load, slots_for

ORIENTATION = 0x0112  # EXIF tag


class Picture(NamedTuple):
    """The location of an image's bytes."""

    name: str  # shown to users: the file, or ``TAR/member``
    file: Path
    offset: int = 0
    size: int = -1  # bytes; -1: to the end of the file
    error: str = ""  # why it can't be read, if already known
    deflated: bool = False  # the bytes are a raw deflate stream, as in a zip
    border: int = 0  # pixels cut off each side first


class PictureBatch(NamedTuple):
    """Consecutive images, without unreadable ones. Indices refer to the list of images."""

    images_BHWC: torch.Tensor  # uint8
    kept: list[int]  # index of each image
    bad: list[tuple[int, str]]  # index and reason


def find(inputs: Sequence[Path]) -> list[Picture]:
    """The images of files, folders (and the tars in them) and tars, in order. Raises UserError if one has none."""
    pictures: list[Picture] = []
    for path in inputs:
        check_local(path, "IMAGE")
        if not path.exists():
            raise UserError(f"IMAGE {str(path)!r} does not exist: name an image, a folder of images or a tar of them")
        found = list(_in_folder(path) if path.is_dir() else _in_file(path))
        if not found:
            others = counted_endings(others_in(path)) if path.is_dir() else ""
            has = f"; it has {others}" if others else ""
            raise UserError(
                f"IMAGE {str(path)!r} contains no images ({', '.join(sorted(READABLE_ENDINGS))}{has}): name another "
                "path, or convert the images"
            )
        pictures += found
    return pictures


def others_in(folder: Path) -> list[str]:
    """Names of the files in a folder that ``find`` skips because they end neither as an image nor as a tar."""
    visible = (file.name for file in _files_in(folder))
    return [name for name in visible if ending(name) not in READABLE_ENDINGS and not name.endswith(".tar")]


def _files_in(folder: Path) -> Iterator[Path]:
    """All files in a folder and the folders in it, in order, without hidden ones."""
    for path, folders, files in os.walk(folder, followlinks=True):
        above = {parent.resolve() for parent in (Path(path), *Path(path).parents) if parent.is_relative_to(folder)}
        folders[:] = sorted(name for name in folders if Path(path, name).resolve() not in above)  # no link to a parent
        yield from (Path(path, name) for name in sorted(files) if not name.startswith("."))


def _in_folder(folder: Path) -> Iterator[Picture]:
    for file in _files_in(folder):
        if file.suffix == ".tar":
            try:
                yield from _in_tar(file)
            except (OSError, tarfile.TarError) as error:  # one of many: reported like an unreadable image
                yield Picture(printable(str(file)), file, error=f"it can't be read as a tar ({error})")
        elif ending(file.name) in READABLE_ENDINGS:
            yield from _in_file(file)


def _in_file(file: Path) -> Iterator[Picture]:
    """Whether a file is a tar. Any other file counts as an image, whatever its extension."""
    if file.suffix != ".tar":
        if file.name.endswith((".tar.gz", ".tgz")):
            raise UserError(f"IMAGE {str(file)!r} is compressed, so its images can't be listed: decompress it first")
        if ending(file.name) == "zip":
            raise UserError(f"IMAGE {str(file)!r} is a zip, which is not read: unpack it, and name the folder")
        yield Picture(printable(str(file)), file)
        return
    try:
        yield from _in_tar(file)
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"IMAGE {str(file)!r} can't be read as a tar ({error}): name another one") from error


def _in_tar(file: Path) -> Iterator[Picture]:
    """The images in a tar. Raises OSError or TarError, possibly after the first images."""
    with tarfile.open(file, "r:") as tar:
        for member in tar:
            name = Path(member.name)
            if member.isfile() and ending(name.name) in READABLE_ENDINGS and not name.name.startswith("."):
                yield Picture(printable(f"{file}/{member.name}"), file, member.offset_data, member.size)
            tar.members = []  # type: ignore[attr-defined]  # it would remember each


def read(picture: Picture) -> bytes:
    """An image's bytes. Raises OSError, and ValueError if it is known to be unreadable."""
    if picture.error:
        raise ValueError(picture.error)

    def whole() -> bytes:
        with picture.file.open("rb") as file:
            file.seek(picture.offset)
            return file.read(picture.size)

    data = retry.steadily(whole, picture.file)
    if not picture.deflated:
        return data
    try:
        return zlib.decompress(data, -zlib.MAX_WBITS)
    except zlib.error as error:
        raise ValueError(f"it can't be unpacked ({error})") from None


def prepared(data: bytes, size: int, resize: str, border: int = 0, *, upright: bool = False) -> Image:
    """The model's input image, as in evaluation. Raises ValueError if the bytes can't be decoded completely.

    ``upright``: rotate by the EXIF orientation first, like the images of a dataset made with --upright.
    """
    if data[:2] != b"\xff\xd8" or border:
        return _by_pillow(data, size, resize, border, upright=upright)
    try:
        jpegs.size(data)
    except ValueError:  # CMYK or unusual chroma sampling: not in datasets, since data_prep.shard re-encodes such images
        return _by_pillow(data, size, resize, upright=upright)
    try:
        image = eval_image(data, size, resize, check=True)
    except ValueError as error:
        raise ValueError(
            "the JPEG is cut short: its image data end early"
            if jpegs.is_cut(str(error))
            else f"the JPEG is damaged: {error}"
        ) from None
    if upright and _orientation(data) != 1:
        return _by_pillow(data, size, resize, upright=True)
    return image


def _orientation(data: bytes) -> int:
    """The EXIF orientation of a JPEG, 1 if it has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Pillow.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return int(image.getexif().get(ORIENTATION, 1))


def _by_pillow(data: bytes, size: int, resize: str, border: int = 0, *, upright: bool) -> Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata in readable images
            with Pillow.open(io.BytesIO(data)) as image:
                jpegs.check_size(image.height, image.width)
                pixels_HWC = np.asarray(to_rgb(ImageOps.exif_transpose(image) if upright else image))
    except Exception as error:  # Pillow's decoders raise many types on damaged bytes
        reason = "Pillow does not recognise it as an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(reason) from None
    if border:
        pixels_HWC = np.ascontiguousarray(pixels_HWC[border:-border, border:-border])
        if not pixels_HWC.size:
            raise ValueError(f"it has no pixels without its border of {border}")
    height, width = pixels_HWC.shape[:2]
    how = geometry(resize)
    if how.interpolation == "bicubic" and how.crop is None:
        return bicubic(pixels_HWC, size, size)
    if how.interpolation == "bicubic":
        rows, columns = short_side_size(height, width, how.short_side(size))
        top, left = middle_square(rows, columns, size)
        return bicubic(pixels_HWC, rows, columns)[top : top + size, left : left + size]
    top, left, rows, columns = (0, 0, height, width) if how.crop is None else central_crop(height, width, how.crop)
    return cv2.resize(  # type: ignore[return-value]
        pixels_HWC[top : top + rows, left : left + columns], (size, size), interpolation=cv2.INTER_LINEAR
    )


Filled = tuple[int, list[int], list[tuple[int, str]]]  # slot, and as in PictureBatch: kept, bad


@dataclass(frozen=True)
class PictureBatches(Dataset[Filled]):
    """Item (k, slot): the k-th batch of this rank, which gets the rank-th of every ``world_size`` batches."""

    pictures: Sequence[Picture]
    batch: int
    rank: int
    world_size: int
    size: int
    resize: str
    upright: bool
    slots: Slots

    def __getitem__(self, item: tuple[int, int]) -> Filled:
        index, slot = item
        images_BHWC = self.slots[slot]
        kept: list[int] = []
        bad: list[tuple[int, str]] = []
        first = (index * self.world_size + self.rank) * self.batch
        for place in range(first, min(first + self.batch, len(self.pictures))):
            try:
                images_BHWC[len(kept)] = self._prepared(self.pictures[place])
                kept.append(place)
            except (ValueError, OSError) as error:
                bad.append((place, " ".join(str(error).split())))
        return slot, kept, bad

    def _prepared(self, picture: Picture) -> Image:
        return prepared(read(picture), self.size, self.resize, picture.border, upright=self.upright)


def batches(
    pictures: Sequence[Picture],
    *,
    batch: int,
    size: int,
    resize: str,
    workers: int,
    rank: int,
    world_size: int,
    upright: bool = False,
) -> Iterator[PictureBatch]:
    """This rank's batches: the rank-th of every ``world_size``, in order. ``workers`` 0: decode in this process."""
    batch = min(batch, len(pictures))  # else memory would be reserved for images that don't exist
    indices = range(len(range(rank, -(-len(pictures) // batch), world_size)))
    slots = slots_for(indices, workers, batch, size)
    items = PictureBatches(pictures, batch, rank, world_size, size, resize, upright, slots)
    for slot, kept, bad in load(items, indices, slots, workers, ignoring=[signal.SIGINT], setting="--workers"):
        yield PictureBatch(slots.copy_out(slot, len(kept)), kept, bad)
