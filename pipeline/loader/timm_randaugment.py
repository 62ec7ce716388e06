"""timm's RandAugment rand-m9-mstd0.5-inc1, which DeiT uses for fine-tuning, on an HWC uint8 RGB image.

randaugment.py is AugReg's. This one differs: operations grow stronger with the magnitude (inc1), each is applied
with probability 1/2, the magnitude is drawn anew for each (mean 9, standard deviation 0.5, cut to 0 to 10), geometry is
bicubic, and there is no Cutout. Pillow does the work, so the pixels are timm's.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image as Pillow
from PIL import ImageEnhance, ImageOps

from pipeline.imaging.jpeg import Image

Random = np.random.Generator

LAYERS, MAGNITUDE, DEVIATION, PROBABILITY, MOST = 2, 9.0, 0.5, 0.5, 10.0
FILL = (124, 116, 104)  # ImageNet's mean, 255 x (0.485, 0.456, 0.406)
TRANSLATE = 0.45  # of the image's side at level 10


def timm_rand_augment(image: Image, random: Random) -> Image:
    """Up to LAYERS operations, drawn uniformly from OPERATIONS."""
    pillow = Pillow.fromarray(image)
    for index in random.integers(len(OPERATIONS), size=LAYERS).tolist():
        applied, level = random.random() < PROBABILITY, random.normal(MAGNITUDE, DEVIATION)
        sign = 1.0 if random.random() < 0.5 else -1.0
        if applied:
            pillow = list(OPERATIONS.values())[index](pillow, min(max(level, 0.0), MOST) / 10, sign)
    return np.asarray(pillow)


def _affine(image: Pillow.Image, matrix: tuple[float, float, float, float, float, float]) -> Pillow.Image:
    """out(x, y) = image(matrix @ (x, y, 1)), FILL outside."""
    return image.transform(
        image.size, Pillow.Transform.AFFINE, matrix, resample=Pillow.Resampling.BICUBIC, fillcolor=FILL
    )


def _enhance(kind: Callable[[Pillow.Image], ImageEnhance._Enhance], image: Pillow.Image, by: float) -> Pillow.Image:
    """Blend by 1 + ``by``, at least 0.1, with the image without the property."""
    return kind(image).enhance(max(0.1, 1.0 + by))


def _posterize(image: Pillow.Image, bits: int) -> Pillow.Image:
    """Keep the upper ``bits`` bits; 0: black, which newer Pillows refuse."""
    return image.point([value & ~(255 >> bits) for value in range(256)] * 3)


def _solarize_add(image: Pillow.Image, addition: int) -> Pillow.Image:
    """Brighten the values below 128."""
    return image.point([min(255, value + addition) if value < 128 else value for value in range(256)] * 3)


Operation = Callable[[Pillow.Image, float, float], Pillow.Image]  # level from 0 to 1, sign
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, level, sign: ImageOps.autocontrast(image),  # noqa: ARG005
    "Equalize": lambda image, level, sign: ImageOps.equalize(image),  # noqa: ARG005
    "Invert": lambda image, level, sign: ImageOps.invert(image),  # noqa: ARG005
    "Rotate": lambda image, level, sign: image.rotate(
        sign * 30 * level, resample=Pillow.Resampling.BICUBIC, fillcolor=FILL
    ),
    "Posterize": lambda image, level, sign: _posterize(image, 4 - int(4 * level)),  # noqa: ARG005
    "Solarize": lambda image, level, sign: ImageOps.solarize(image, 256 - min(256, int(256 * level))),  # noqa: ARG005
    "SolarizeAdd": lambda image, level, sign: _solarize_add(image, min(128, int(110 * level))),  # noqa: ARG005
    "Color": lambda image, level, sign: _enhance(ImageEnhance.Color, image, sign * 0.9 * level),
    "Contrast": lambda image, level, sign: _enhance(ImageEnhance.Contrast, image, sign * 0.9 * level),
    "Brightness": lambda image, level, sign: _enhance(ImageEnhance.Brightness, image, sign * 0.9 * level),
    "Sharpness": lambda image, level, sign: _enhance(ImageEnhance.Sharpness, image, sign * 0.9 * level),
    "ShearX": lambda image, level, sign: _affine(image, (1, sign * 0.3 * level, 0, 0, 1, 0)),
    "ShearY": lambda image, level, sign: _affine(image, (1, 0, 0, sign * 0.3 * level, 1, 0)),
    "TranslateX": lambda image, level, sign: _affine(image, (1, 0, sign * TRANSLATE * level * image.width, 0, 1, 0)),
    "TranslateY": lambda image, level, sign: _affine(image, (1, 0, 0, 0, 1, sign * TRANSLATE * level * image.height)),
}
