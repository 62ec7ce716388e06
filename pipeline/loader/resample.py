"""Antialiased bicubic resizing as Pillow (and so torchvision) does it, of a whole image or of a window of the result.

H height, W width, in pixels; images are RGB, uint8, HWC.
"""

import math

import numpy as np
from PIL import Image as Pillow

from pipeline.imaging import jpeg as jpegs
from pipeline.imaging.jpeg import Image


def bicubic(image: Image, height: int, width: int) -> Image:
    """The image at ``height`` x ``width``."""
    return np.asarray(Pillow.fromarray(image).resize((width, height), Pillow.Resampling.BICUBIC))


def short_side_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after a resize of the short side to ``size``; the long side is rounded down, as torchvision."""
    if height <= width:
        return size, size * width // height
    return size * height // width, size


def middle_square(height: int, width: int, size: int) -> tuple[int, int]:
    """Top and left of the square of ``size`` in the middle of an image, rounded as torchvision's CenterCrop."""
    return round((height - size) / 2), round((width - size) / 2)


def resized_window(jpeg: bytes, window: tuple[int, int, int, int], size: int, *, scaled: bool = False) -> Image:
    """The pixels of ``window`` (top, left, height, width) of the image whose short side was resized to ``size``.

    Only the part of the JPEG under the window and the filter's margin is decoded. ``scaled``: an image of at least
    twice ``size`` is first decoded at 1/2, 1/4 or 1/8. Raises ValueError when the bytes are not a JPEG.
    """
    height, width = jpegs.size(jpeg)
    rows, columns = short_side_size(height, width, size)
    denominator = 1
    while scaled and denominator < 8 and min(height, width) >= 2 * denominator * size:
        denominator *= 2
    height, width = jpegs.scaled_size(height, width, denominator)
    top, left, window_height, window_width = window
    y0, y1, above, below = _source(top, window_height, rows, height)
    x0, x1, before, behind = _source(left, window_width, columns, width)
    region = jpegs.decode_region(jpeg, (y0, x0, y1 - y0, x1 - x0), denominator)
    return np.asarray(
        Pillow.fromarray(region).resize(
            (window_width, window_height), Pillow.Resampling.BICUBIC, (before, above, behind, below)
        )
    )


def _source(start: int, length: int, resized: int, original: int) -> tuple[int, int, float, float]:
    """Along one side: the pixels from, up to which the filter reads, and the window's edges relative to the first."""
    scale = original / resized
    margin = 2 * max(scale, 1.0) + 1  # half the width of the cubic filter, widened when shrinking, and a pixel
    first = max(0, math.floor(start * scale - margin))
    last = min(original, math.ceil((start + length) * scale + margin))
    return first, last, start * scale - first, min((start + length) * scale - first, last - first)
