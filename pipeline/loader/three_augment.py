"""3-Augment and colour jitter as DeiT III trains with them (arXiv 2204.07118, section 3; facebookresearch/deit,
augment.py), on an HWC uint8 RGB image.

Done by OpenCV, several times faster than Pillow, which the source uses. Each operation is within one grey level of its
definition; the blur is a true Gaussian, which Pillow approximates by three box blurs.
"""

import cv2
import numpy as np

from pipeline.imaging.jpeg import Image
from pipeline.loader.splitmix import Draws

THRESHOLD = 128  # of solarisation
RADIUS = (0.1, 2.0)  # standard deviation of the blur, pixels, whatever the size of the image
_LEVELS = np.arange(256)
_SOLARIZED = np.where(_LEVELS < THRESHOLD, _LEVELS, 255 - _LEVELS).astype(np.uint8)


def three_augment(image: Image, draws: Draws) -> Image:
    """Exactly one of greyscale, solarisation and blur, each with probability 1/3."""
    choice = draws.integers(3)
    if choice == 0:
        return greyscale(image)
    if choice == 1:
        return cv2.LUT(image, _SOLARIZED)  # type: ignore[return-value]
    return blur(image, draws.uniform(*RADIUS))


def color_jitter(image: Image, strength: float, draws: Draws) -> Image:
    """Brightness, contrast and saturation in random order, each by a factor uniform in 1 -+ ``strength``."""
    steps = [brightness, contrast, saturation]
    for count in (3, 2, 1):
        step = steps.pop(draws.integers(count))
        image = step(image, draws.uniform(max(0.0, 1 - strength), 1 + strength))
    return image


def greyscale(image: Image) -> Image:
    """ITU-R 601 luma in all three channels."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)  # type: ignore[return-value]


def blur(image: Image, sigma: float) -> Image:
    """Gaussian of standard deviation ``sigma`` pixels, out to four of them; the border is continued outwards."""
    side = 2 * int(4 * sigma + 0.5) + 1
    return cv2.GaussianBlur(  # type: ignore[return-value]
        image, (side, side), sigma, borderType=cv2.BORDER_REPLICATE
    )


def brightness(image: Image, factor: float) -> Image:
    """Blend with black."""
    return _blend_with_grey(image, factor, 0)


def contrast(image: Image, factor: float) -> Image:
    """Blend with the mean of the image's luma, rounded."""
    return _blend_with_grey(image, factor, int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5))


def saturation(image: Image, factor: float) -> Image:
    """Blend with the greyscale image."""
    return cv2.addWeighted(image, factor, greyscale(image), 1 - factor, 0)  # type: ignore[return-value]


def _blend_with_grey(image: Image, factor: float, grey: int) -> Image:
    table = np.clip(np.rint(grey + factor * (_LEVELS - grey)), 0, 255).astype(np.uint8)
    return cv2.LUT(image, table)  # type: ignore[return-value]
