"""3-Augment and colour jitter as used by DeiT III (arXiv 2204.07118, section 3; facebookresearch/deit,
augment.py), on an HWC uint8 RGB image, in place.

Done by OpenCV, several times faster than Pillow, which the source uses. Each operation is within one grey level of its
definition; the blur is a true Gaussian, which Pillow approximates by three box blurs.
"""

import cv2
import numpy as np

from pipeline.imaging.jpeg import Image
from pipeline.loader.splitmix import Draws

RADIUS = (0.1, 2.0)  # standard deviation of the blur, pixels, whatever the size of the image
REACH = 3.5  # radius of the blur in standard deviations: pixels beyond it add at most a tenth of a grey level
RED, GREEN, BLUE = LUMA = 0.299, 0.587, 0.114  # ITU-R 601


def three_augment(image: Image, draws: Draws) -> None:
    """Exactly one of greyscale, solarisation and blur, each with probability 1/3; in place."""
    choice = draws.integers(3)
    if choice == 0:
        greyscale(image)
    elif choice == 1:
        solarize(image)
    else:
        blur(image, draws.uniform(*RADIUS))


def color_jitter(image: Image, strength: float, draws: Draws) -> None:
    """Brightness, contrast and saturation in random order, each by a factor uniform in 1 -+ ``strength``; in place."""
    steps = [brightness, contrast, saturation]
    for count in (3, 2, 1):
        step = steps.pop(draws.integers(count))
        step(image, draws.uniform(max(0.0, 1 - strength), 1 + strength))


def greyscale(image: Image) -> None:
    """Luma in all three channels."""
    cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB, image)


def solarize(image: Image) -> None:
    """Invert the values from 128 on: whichever is darker of a value and its inverse."""
    cv2.min(image, cv2.bitwise_not(image), image)


def blur(image: Image, sigma: float) -> None:
    """Gaussian of standard deviation ``sigma`` pixels, out to REACH of them; the border is continued outwards."""
    kernel = cv2.getGaussianKernel(2 * int(REACH * sigma + 0.5) + 1, sigma)
    cv2.sepFilter2D(image, -1, kernel, kernel, image, borderType=cv2.BORDER_REPLICATE)


def brightness(image: Image, factor: float) -> None:
    """Blend with black."""
    cv2.convertScaleAbs(image, image, factor)


def contrast(image: Image, factor: float) -> None:
    """Blend with the mean of the image's luma, rounded."""
    red, green, blue, _ = cv2.mean(image)
    grey = int(RED * red + GREEN * green + BLUE * blue + 0.5)
    cv2.addWeighted(image, factor, image, 0, (1 - factor) * grey, image)


def saturation(image: Image, factor: float) -> None:
    """Blend with the greyscale image."""
    red, green, blue = ((1 - factor) * share for share in LUMA)
    to_red, to_green, to_blue = (factor + red, green, blue), (red, factor + green, blue), (red, green, factor + blue)
    cv2.transform(image, np.array((to_red, to_green, to_blue)), image)
