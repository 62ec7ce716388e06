"""One JPEG's bytes -> one square uint8 image, for training (crop, flip, augmentation) or evaluation (resize).

H height, W width, C the three channels, in pixels; all images are RGB, uint8, HWC. Everything random is a function of
the sample's seed.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np

from pipeline.config.schema import Augmentation, DataConfig, Decode, RunConfig
from pipeline.imaging import jpeg as jpegs
from pipeline.imaging.bicubic import resize
from pipeline.imaging.jpeg import Box, Image
from pipeline.loader.eval_geometry import CENTRAL, geometry
from pipeline.loader.randaugment import rand_augment
from pipeline.loader.resample import bicubic, middle_square, resized_window, short_side_size
from pipeline.loader.splitmix import Draws
from pipeline.loader.three_augment import color_jitter, three_augment
from pipeline.loader.timm_randaugment import timm_rand_augment

Random = np.random.Generator

ASPECT = (3 / 4, 4 / 3)  # Inception crop: log-uniform; AugReg, arXiv 2106.10270 section 3
_LOG_ASPECT = math.log(ASPECT[0]), math.log(ASPECT[1])
_BORDER = 4  # pixels reflected around the image by the simple random crop (DeiT III's augment.py)
_ATTEMPTS = 10  # Inception's (and torchvision's) number of tries before the central crop


class Augment(NamedTuple):
    layers: int  # of RandAugment
    magnitude: int
    mixup: float  # alpha; applied to the batch by pipeline.train.mixup


AUGREG = {  # AugReg's settings (arXiv 2106.10270, section 3)
    "light1": Augment(2, 0, 0.0),
    "light2": Augment(2, 10, 0.2),
    "medium1": Augment(2, 15, 0.2),
    "medium2": Augment(2, 15, 0.5),
    "strong1": Augment(2, 20, 0.5),
    "strong2": Augment(2, 20, 0.8),
}


@dataclass(frozen=True)
class TrainTransform:
    """What happens to each training image."""

    size: int  # side of the result
    augment: Augmentation = "none"  # mixup is applied to the batch, not here
    crop: Literal["inception", "resize", "simple"] = "inception"  # resize: short side to CENTRAL x size, then a square
    min_area: float = 0.05  # smallest fraction of the image that an Inception crop covers
    flip: bool = True
    erasing: float = 0.0  # probability of random erasing
    decode: Decode = "region"
    color_jitter: float = 0.0
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __call__(self, jpeg: bytes, seed: int, out: Image) -> None:
        """Write the image into ``out``, size x size x 3. Raises ValueError if the bytes are not a JPEG."""
        draws = Draws(seed)
        height, width = jpegs.size(jpeg)
        if self.crop == "simple":
            simple_crop(jpeg, height, width, out, draws, scaled=self.decode == "scaled")
        else:
            if self.crop == "inception":
                box = inception_crop(height, width, self.min_area, draws)
            else:
                box = resized_crop(height, width, draws)
            pixels = decode_box(jpeg, box, self.size, self.decode)
            if self.interpolation == "bicubic":
                resize(pixels, (0, 0, *pixels.shape[:2]), out)
            else:
                cv2.resize(pixels, out.shape[:2], out, interpolation=cv2.INTER_LINEAR)
        if self.flip and draws.random() < 0.5:
            cv2.flip(out, 1, out)
        self._augment(out, draws, seed)

    def _augment(self, out: Image, draws: Draws, seed: int) -> None:
        """In place, after crop and flip. NumPy's generators take 40 us to seed (docs/results.md): only if needed."""
        if self.augment == "3-augment":
            three_augment(out, draws)
        elif self.augment == "rand-m9-mstd0.5-inc1":
            out[:] = timm_rand_augment(out, np.random.Generator(np.random.SFC64(seed)))
        elif self.augment != "none":
            layers, magnitude, _ = AUGREG[self.augment]
            out[:] = rand_augment(out, layers, magnitude, np.random.Generator(np.random.SFC64(seed)))
        if self.color_jitter > 0:
            color_jitter(out, self.color_jitter, draws)
        if self.erasing > 0 and draws.random() < self.erasing:
            erase(out, np.random.Generator(np.random.SFC64([seed, 1])))


def train_transform(config: RunConfig) -> TrainTransform:
    """What a run does to its training images."""
    data = config.data
    return TrainTransform(
        config.model.image_size,
        data.augment,
        crop=data.crop,
        min_area=data.min_area,
        flip=data.flip,
        erasing=data.erasing,
        decode=data.decode,
        color_jitter=data.color_jitter,
        interpolation=data.interpolation,
    )


def mixup_alpha(data: DataConfig) -> float:
    """data.mixup, or what data.augment's name includes."""
    if data.mixup is not None:
        return data.mixup
    return AUGREG[data.augment].mixup if data.augment in AUGREG else 0.0


def decode_box(jpeg: bytes, box: Box, size: int, how: Decode = "region") -> Image:
    """The pixels of ``box``; with ``how`` scaled, a box of at least twice ``size`` comes at 1/2, 1/4 or 1/8."""
    top, left, height, width = box
    if how == "full":
        return jpegs.decode(jpeg)[top : top + height, left : left + width]
    denominator = 1
    if how == "scaled":
        while denominator < 8 and min(height, width) >= 2 * denominator * size:
            denominator *= 2
    # rounded inwards, so that the region is inside the scaled image
    scaled = (top // denominator, left // denominator, height // denominator, width // denominator)
    return jpegs.decode_region(jpeg, scaled, denominator)


def eval_image(jpeg: bytes, size: int, resize: str = "square", *, check: bool = False) -> Image:
    """``square``: direct resize to ``size``, as google-research/vision_transformer evaluates.

    ``central``: short side to 8/7 of ``size``, then the central square, as big_vision does. Both bilinear.
    ``bicubic``: short side to ``size``, antialiased, then the central square, as torchvision's Resize and CenterCrop.
    Other models' names: pipeline.loader.eval_geometry.

    Raises ValueError if the bytes are not a JPEG; with ``check`` also if the JPEG has a defect anywhere, with the text
    of :func:`pipeline.imaging.jpeg.defect`.
    """
    how = geometry(resize)
    height, width = jpegs.size(jpeg)
    if how.interpolation == "bicubic" and how.crop is not None:
        short = how.short_side(size)
        rows, columns = short_side_size(height, width, short)
        out = np.empty((size, size, 3), np.uint8)
        resized_window(jpeg, *middle_square(rows, columns, size), short, out, check=check)
        return out
    box = (0, 0, height, width) if how.crop is None else central_crop(height, width, how.crop)
    pixels = jpegs.decode_region(jpeg, box, check=check)
    if how.interpolation == "bicubic":
        return bicubic(pixels, size, size)
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


def inception_crop(height: int, width: int, min_area: float, draws: Draws) -> Box:
    """A random box: area uniform from ``min_area`` to 1, log-aspect uniform in ASPECT.

    After ten tries that don't fit the image, the largest central crop whose aspect is in bounds.
    """
    for _ in range(_ATTEMPTS):
        area = height * width * draws.uniform(min_area, 1.0)
        aspect = math.exp(draws.uniform(*_LOG_ASPECT))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = draws.integers(height - crop_height + 1)
            return top, draws.integers(width - crop_width + 1), crop_height, crop_width
    crop_height = min(height, max(1, round(width / ASPECT[0])))
    crop_width = min(width, max(1, round(height * ASPECT[1])))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def resized_crop(height: int, width: int, draws: Draws) -> Box:
    """The box that a resize of the short side to CENTRAL x size and a random size x size crop would show."""
    side = max(1, round(min(height, width) / CENTRAL))
    return draws.integers(height - side + 1), draws.integers(width - side + 1), side, side


def simple_crop(jpeg: bytes, height: int, width: int, out: Image, draws: Draws, *, scaled: bool = False) -> None:
    """Fill ``out``, a square: short side to its size, _BORDER pixels reflected at each border, then a random crop."""
    size = len(out)
    rows, columns = short_side_size(height, width, size)
    top = draws.integers(rows + 2 * _BORDER - size + 1) - _BORDER
    left = draws.integers(columns + 2 * _BORDER - size + 1) - _BORDER
    above, below = max(-top, 0), max(top + size - rows, 0)
    before, behind = max(-left, 0), max(left + size - columns, 0)
    inside = out[above : size - below, before : size - behind]
    resized_window(jpeg, top + above, left + before, size, inside, scaled=scaled)
    if above or below or before or behind:
        cv2.copyMakeBorder(inside.copy(), above, below, before, behind, cv2.BORDER_REFLECT_101, out)


def central_crop(height: int, width: int, crop: float = 1 / CENTRAL) -> Box:
    """The middle square whose side is ``crop`` of the short side."""
    side = max(1, round(min(height, width) * crop))
    return (height - side) // 2, (width - side) // 2, side, side


def erase(image: Image, random: Random) -> None:
    """Random erasing, in place: noise over 2 to 33 % of the area, aspect 0.3 to 3.3 (arXiv 1708.04896, section 3.2)."""
    height, width = image.shape[:2]
    for _ in range(_ATTEMPTS):
        area = height * width * random.uniform(0.02, 0.33)
        aspect = math.exp(random.uniform(math.log(0.3), math.log(3.3)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(random.integers(height - h + 1)), int(random.integers(width - w + 1))
            image[top : top + h, left : left + w] = random.integers(0, 256, (h, w, 3), np.uint8)
            return
