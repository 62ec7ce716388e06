"""One JPEG's bytes -> one square uint8 image, for training (Inception crop and flip) or evaluation (resize).

H height, W width, C the three channels, in pixels; all images are RGB, uint8.
"""

import math

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

Image = npt.NDArray[np.uint8]  # HWC

AREA = (0.05, 1.0)  # fraction of the image that a crop covers; AugReg, arXiv 2106.10270 section 3
ASPECT = (3 / 4, 4 / 3)
_ATTEMPTS = 10  # Inception's (and torchvision's) number of tries before the central crop


def decode(jpeg: bytes) -> Image:
    """RGB pixels. Raises ValueError where the bytes are no JPEG."""
    return simplejpeg.decode_jpeg(jpeg, "RGB", strict=False)  # type: ignore[no-any-return]


def train_image(jpeg: bytes, size: int, seed: int) -> Image:
    """Inception crop, bilinear resize to ``size`` square, horizontal flip half of the time."""
    random = np.random.Generator(np.random.SFC64(seed))
    image = decode(jpeg)
    top, left, height, width = inception_crop(image.shape[0], image.shape[1], random)
    flip = random.random() < 0.5
    crop = cv2.resize(image[top : top + height, left : left + width], (size, size), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(crop[:, ::-1]) if flip else crop  # type: ignore[return-value]


def eval_image(jpeg: bytes, size: int) -> Image:
    """Direct resize to ``size`` square, bilinear, as google-research/vision_transformer evaluates."""
    return cv2.resize(decode(jpeg), (size, size), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


def inception_crop(height: int, width: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """A random crop's (top, left, height, width): area uniform in AREA, log-aspect uniform in ASPECT.

    After ten tries that don't fit the image, the largest central crop whose aspect is in bounds.
    """
    for _ in range(_ATTEMPTS):
        area = height * width * random.uniform(*AREA)
        aspect = math.exp(random.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(random.integers(height - crop_height + 1))
            return top, int(random.integers(width - crop_width + 1)), crop_height, crop_width
    crop_height = min(height, max(1, round(width / ASPECT[0])))
    crop_width = min(width, max(1, round(height * ASPECT[1])))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width
