"""Antialiased bicubic resizing as Pillow (and so torchvision) does it, of a box of an HWC uint8 RGB image.

A C extension (_bicubic.c) does it, several times faster than Pillow and within one grey level of it. Pillow is used if
no compiler was available, and if an image is shrunk so much that the extension's 16 bits would not suffice.
"""

import numpy as np
from PIL import Image as Pillow

from pipeline.imaging.jpeg import Image

try:
    from pipeline.imaging import _bicubic
except ImportError:
    _bicubic = None  # type: ignore[assignment]

HAS_EXTENSION = _bicubic is not None
MOST_SHRUNK = 8.0  # pixels of the box per pixel of the result; the sums of more differ by more than a grey level


def resize(image: Image, box: tuple[float, float, float, float], out: Image) -> None:
    """Fill ``out`` with the part of ``image`` in ``box``: top, left, bottom, right in pixels, whole or not.

    The rows of both may lie apart, as those of a slice do. Pixels of the image beside the box count, as far as the
    filter reaches. Raises ValueError when the box is not inside the image.
    """
    top, left, bottom, right = box
    height, width = out.shape[:2]
    if _bicubic is not None and max((bottom - top) / height, (right - left) / width) <= MOST_SHRUNK:
        _bicubic.resize(image, top, left, bottom, right, out)
    else:
        pillow = Pillow.fromarray(image)
        out[:] = np.asarray(pillow.resize((width, height), Pillow.Resampling.BICUBIC, (left, top, right, bottom)))
