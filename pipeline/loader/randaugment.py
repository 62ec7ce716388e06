"""RandAugment (arXiv 1909.13719) as used by AugReg: 16 operations on an HWC uint8 RGB image.

The operations and constants are those of TensorFlow's EfficientNet code, which big_vision uses
(big_vision/pp/autoaugment.py), its contrast towards a wrong mean included, because the published models saw it.
Two differences, each at most one grey level: blends are rounded, not truncated, and Color's grey is OpenCV's.
Lengths in pixels are those of images of 224 pixels and grow with the image: as they are, magnitude 15 would move every
pixel out of a smaller image of 150.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

from pipeline.imaging.jpeg import Image

Random = np.random.Generator

FILL = (128, 128, 128)
SIDE = 224  # of the images for which lengths are given
CUTOUT = 40  # half the side of the mask at level 10, pixels
TRANSLATE = 100  # pixels at level 10
_LEVELS = np.arange(256)


def rand_augment(image: Image, layers: int, magnitude: float, random: Random) -> Image:
    """``layers`` operations, each drawn uniformly from OPERATIONS, at strength ``magnitude`` / 10."""
    for _ in range(layers):
        operation = list(OPERATIONS.values())[int(random.integers(len(OPERATIONS)))]
        image = operation(image, magnitude / 10, random)
    return image


def auto_contrast(image: Image) -> Image:
    """Per channel: the darkest value becomes 0, the brightest 255."""
    tables = np.empty((1, 256, 3), np.uint8)
    for channel in range(3):
        low, high, *_ = cv2.minMaxLoc(cv2.extractChannel(image, channel))
        scale = 255 / (high - low) if high > low else 1.0
        tables[0, :, channel] = np.clip((_LEVELS - (low if high > low else 0)) * scale + 1e-6, 0, 255)
    return cv2.LUT(image, tables)  # type: ignore[return-value]


def equalize(image: Image) -> Image:
    """Per channel: a histogram as flat as whole grey levels allow."""
    tables = np.empty((1, 256, 3), np.uint8)
    for channel in range(3):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).reshape(256).astype(np.int64)
        step = int(counts.sum() - counts[np.nonzero(counts)[0][-1]]) // 255
        if step:
            below = np.cumsum(counts) - counts
            table = (below + step // 2) // step
            table[0] = 0
            tables[0, :, channel] = np.clip(table, 0, 255)
        else:
            tables[0, :, channel] = _LEVELS
    return cv2.LUT(image, tables)  # type: ignore[return-value]


def invert(image: Image) -> Image:
    return cv2.bitwise_not(image)  # type: ignore[return-value]


def posterize(image: Image, bits: int) -> Image:
    """Keep the upper ``bits`` bits."""
    return _look_up(image, _LEVELS & (255 >> (8 - bits) << (8 - bits)))


def solarize(image: Image, threshold: int) -> Image:
    """Invert the values from ``threshold`` up."""
    return _look_up(image, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def solarize_add(image: Image, addition: int) -> Image:
    """Brighten the values below 128."""
    return _look_up(image, np.where(_LEVELS < 128, np.clip(_LEVELS + addition, 0, 255), _LEVELS))


def color(image: Image, factor: float) -> Image:
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, grey, 1 - factor, 0)  # type: ignore[return-value]


def contrast(image: Image, factor: float) -> Image:
    """Blend with a constant: pixels / 256, at most 255, which the reference takes for the mean grey (196 at 224 px)."""
    mean = int(min(255, image.shape[0] * image.shape[1] / 256))
    return _look_up(image, np.clip(np.rint(mean + factor * (_LEVELS - mean)), 0, 255))


def brightness(image: Image, factor: float) -> Image:
    return _look_up(image, np.clip(np.rint(factor * _LEVELS), 0, 255))


def sharpness(image: Image, factor: float) -> Image:
    """Blend with the image smoothed by (1 1 1, 1 5 1, 1 1 1) / 13; the border stays."""
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    smooth = cv2.filter2D(image, -1, kernel)
    smooth[0], smooth[-1], smooth[:, 0], smooth[:, -1] = image[0], image[-1], image[:, 0], image[:, -1]
    return cv2.addWeighted(image, factor, smooth, 1 - factor, 0)  # type: ignore[return-value]


def affine(image: Image, matrix: list[list[float]]) -> Image:
    """out(x, y) = image(matrix @ (x, y, 1)), the nearest pixel, FILL outside."""
    return cv2.warpAffine(  # type: ignore[return-value]
        image,
        np.array(matrix, np.float64),
        (image.shape[1], image.shape[0]),
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=FILL,
    )


def rotate(image: Image, degrees: float) -> Image:
    """About the image's centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = (image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2
    return affine(image, [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]])


def cutout(image: Image, half: int, row: int, column: int) -> Image:
    """FILL a square of side 2 x ``half`` about a pixel, as far as it is inside the image."""
    image = image.copy()
    image[max(0, row - half) : row + half, max(0, column - half) : column + half] = FILL[0]
    return image


def _look_up(image: Image, table: np.ndarray) -> Image:
    return cv2.LUT(image, table.astype(np.uint8))  # type: ignore[return-value]


def _enhance(strength: float) -> float:
    return strength * 1.8 + 0.1


def _signed(value: float, random: Random) -> float:
    return -value if random.random() < 0.5 else value


Operation = Callable[[Image, float, Random], Image]  # strength = magnitude / 10
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, s, r: auto_contrast(image),  # noqa: ARG005
    "Equalize": lambda image, s, r: equalize(image),  # noqa: ARG005
    "Invert": lambda image, s, r: invert(image),  # noqa: ARG005
    "Rotate": lambda image, s, r: rotate(image, _signed(30 * s, r)),
    "Posterize": lambda image, s, r: posterize(image, min(8, int(4 * s))),  # noqa: ARG005
    "Solarize": lambda image, s, r: solarize(image, int(256 * s)),  # noqa: ARG005
    "Color": lambda image, s, r: color(image, _enhance(s)),  # noqa: ARG005
    "Contrast": lambda image, s, r: contrast(image, _enhance(s)),  # noqa: ARG005
    "Brightness": lambda image, s, r: brightness(image, _enhance(s)),  # noqa: ARG005
    "Sharpness": lambda image, s, r: sharpness(image, _enhance(s)),  # noqa: ARG005
    "ShearX": lambda image, s, r: affine(image, [[1, _signed(0.3 * s, r), 0], [0, 1, 0]]),
    "ShearY": lambda image, s, r: affine(image, [[1, 0, 0], [_signed(0.3 * s, r), 1, 0]]),
    "TranslateX": lambda image, s, r: affine(
        image, [[1, 0, _signed(TRANSLATE * s * image.shape[1] / SIDE, r)], [0, 1, 0]]
    ),
    "TranslateY": lambda image, s, r: affine(
        image, [[1, 0, 0], [0, 1, _signed(TRANSLATE * s * image.shape[0] / SIDE, r)]]
    ),
    "Cutout": lambda image, s, r: cutout(
        image, int(CUTOUT * s * image.shape[0] / SIDE), int(r.integers(image.shape[0])), int(r.integers(image.shape[1]))
    ),
    "SolarizeAdd": lambda image, s, r: solarize_add(image, int(110 * s)),  # noqa: ARG005
}
