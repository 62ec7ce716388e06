"""JPEGs made for a test, and which decoder reads them."""

import cv2
import numpy as np
import simplejpeg

from pipeline.imaging import _jpeg
from pipeline.imaging.jpeg import Box


def encode(height: int, width: int, subsampling: str = "420", colour: bool = True, seed: int = 0) -> bytes:
    """Smooth noise, so that chroma and luma both vary everywhere."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), np.uint8)
    pixels = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    if not colour:
        return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels[:, :, :1]), 90, "GRAY", "Gray")  # type: ignore[no-any-return]
    return simplejpeg.encode_jpeg(pixels, 90, "RGB", subsampling)  # type: ignore[no-any-return]


def is_read_by_us(data: bytes, box: Box, *, check: bool = False) -> bool:
    """Whether the region decoder reads ``box`` with its own Huffman decoder, not libjpeg-turbo's.

    ``check``: and finds that all of the image's data is sound.
    """
    return _jpeg.decode(data, 1, *box, np.empty(1 << 20, np.uint8), check)[3]
