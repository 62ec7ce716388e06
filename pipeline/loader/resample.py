"""Antialiased bicubic resizing (pipeline.imaging.bicubic) of a whole image, or of a window of the result.

H height, W width, in pixels; images are RGB, uint8, HWC.
"""

import math

import numpy as np

from pipeline.imaging import jpeg as jpegs
from pipeline.imaging.bicubic import resize
from pipeline.imaging.jpeg import Image


def bicubic(image: Image, height: int, width: int) -> Image:
    """The image at ``height`` x ``width``."""
    out = np.empty((height, width, 3), np.uint8)
    resize(image, (0, 0, *image.shape[:2]), out)
    return out


def short_side_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after a resize of the short side to ``size``; the long side is rounded down, as torchvision."""
    if height <= width:
        return size, size * width // height
    return size * height // width, size


def middle_square(height: int, width: int, size: int) -> tuple[int, int]:
    """Top and left of the square of ``size`` in the middle of an image, rounded as torchvision's CenterCrop."""
    return round((height - size) / 2), round((width - size) / 2)


def resized_window(
    jpeg: bytes, top: int, left: int, size: int, out: Image, *, scaled: bool = False, check: bool = False
) -> None:
    """Fill ``out`` with the image whose short side was resized to ``size``, from ``top`` and ``left`` on.

    Only the part of the JPEG under the window and the filter's margin is decoded. ``scaled``: an image of at least
    twice ``size`` is first decoded at 1/2, 1/4 or 1/8. Raises ValueError if the bytes are not a JPEG; with ``check``
    also if the JPEG has a defect anywhere (:func:`pipeline.imaging.jpeg.defect`).
    """
    height, width = jpegs.size(jpeg)
    rows, columns = short_side_size(height, width, size)
    denominator = 1
    while scaled and denominator < 8 and min(height, width) >= 2 * denominator * size:
        denominator *= 2
    height, width = jpegs.scaled_size(height, width, denominator)
    y0, y1, above, below = _source(top, out.shape[0], rows, height)
    x0, x1, before, behind = _source(left, out.shape[1], columns, width)
    region = jpegs.decode_region(jpeg, (y0, x0, y1 - y0, x1 - x0), denominator, check=check)
    resize(region, (above, before, below, behind), out)


def _source(start: int, length: int, resized: int, original: int) -> tuple[int, int, float, float]:
    """Along one side: the pixels from, up to which the filter reads, and the window's edges relative to the first."""
    scale = original / resized
    margin = 2 * max(scale, 1.0) + 1  # half the width of the cubic filter, widened when shrinking, and a pixel
    first = max(0, math.floor(start * scale - margin))
    last = min(original, math.ceil((start + length) * scale + margin))
    return first, last, start * scale - first, min((start + length) * scale - first, last - first)
