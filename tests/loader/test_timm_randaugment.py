"""timm's RandAugment: each operation's strength against its definition, and how often it is applied."""

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageEnhance, ImageOps

from pipeline.imaging.jpeg import Image
from pipeline.loader.timm_randaugment import OPERATIONS, timm_rand_augment


@pytest.fixture(scope="module")
def image() -> Image:
    rows, columns = np.mgrid[:40, :40]
    waves = 127 + 100 * np.sin(rows / 5)[..., None] * np.cos(columns[..., None] / np.array([3, 7, 11]))
    return np.clip(waves + np.random.default_rng(0).integers(-20, 20, waves.shape), 0, 255).astype(np.uint8)


def test_there_are_timms_fifteen() -> None:
    assert list(OPERATIONS) == [
        "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast",
        "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY",
    ]  # fmt: skip


def test_strengths_at_magnitude_nine(image: Image) -> None:
    """What rand-m9-inc1 means, by timm's tables of levels."""
    pillow = Pillow.fromarray(image)
    bicubic, fill = Pillow.Resampling.BICUBIC, (124, 116, 104)
    affine = Pillow.Transform.AFFINE
    expected = {
        "AutoContrast": ImageOps.autocontrast(pillow),
        "Equalize": ImageOps.equalize(pillow),
        "Invert": ImageOps.invert(pillow),
        "Rotate": pillow.rotate(-27, bicubic, fillcolor=fill),
        "Posterize": ImageOps.posterize(pillow, 1),
        "Solarize": ImageOps.solarize(pillow, 26),
        "SolarizeAdd": np.where(image < 128, np.minimum(image.astype(int) + 99, 255), image),
        "Color": ImageEnhance.Color(pillow).enhance(1 - 0.81),
        "Contrast": ImageEnhance.Contrast(pillow).enhance(1 - 0.81),
        "Brightness": ImageEnhance.Brightness(pillow).enhance(1 - 0.81),
        "Sharpness": ImageEnhance.Sharpness(pillow).enhance(1 - 0.81),
        "ShearX": pillow.transform((40, 40), affine, (1, -0.27, 0, 0, 1, 0), bicubic, fillcolor=fill),
        "ShearY": pillow.transform((40, 40), affine, (1, 0, 0, -0.27, 1, 0), bicubic, fillcolor=fill),
        "TranslateX": pillow.transform((40, 40), affine, (1, 0, -(0.45 * 0.9 * 40), 0, 1, 0), bicubic, fillcolor=fill),
        "TranslateY": pillow.transform((40, 40), affine, (1, 0, 0, 0, 1, -(0.45 * 0.9 * 40)), bicubic, fillcolor=fill),
    }  # fmt: skip
    for name, operation in OPERATIONS.items():
        assert (np.asarray(operation(pillow, 0.9, -1.0)) == np.asarray(expected[name])).all(), name
    assert (np.asarray(OPERATIONS["Brightness"](pillow, 1.0, -1.0)) == np.asarray(
        ImageEnhance.Brightness(pillow).enhance(0.1))).all()  # never black  # fmt: skip


def test_the_strongest_posterisation_is_black(image: Image) -> None:
    assert not np.asarray(OPERATIONS["Posterize"](Pillow.fromarray(image), 1.0, 1.0)).any()


def test_two_operations_each_applied_half_of_the_time(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[float] = []
    signs: list[float] = []

    def note(pillow: Pillow.Image, level: float, sign: float) -> Pillow.Image:
        levels.append(level)
        signs.append(sign)
        return pillow

    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, note)
    for seed in range(1000):
        assert (timm_rand_augment(image, np.random.Generator(np.random.SFC64(seed))) == image).all()
    assert len(levels) == pytest.approx(1000, abs=100)
    assert np.mean(signs) == pytest.approx(0, abs=0.1)
    assert max(levels) <= 1
    assert np.median(levels) == pytest.approx(0.9, abs=0.01)
    assert np.percentile(levels, 16) == pytest.approx(0.85, abs=0.01)  # a standard deviation below
