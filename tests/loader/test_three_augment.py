"""3-Augment and colour jitter against Pillow and scipy, and how often each happens."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageEnhance, ImageOps
from scipy import ndimage

from pipeline.imaging.jpeg import Image
from pipeline.loader import three_augment as ta
from pipeline.loader.splitmix import Draws


@pytest.fixture(scope="module")
def image() -> Image:
    rows, columns = np.mgrid[:48, :56]
    waves = 127 + 100 * np.sin(rows / 5)[..., None] * np.cos(columns[..., None] / np.array([3, 7, 11]))
    return np.clip(waves + np.random.default_rng(0).integers(-20, 20, waves.shape), 0, 255).astype(np.uint8)


def done(operation: Callable[..., None], image: Image, *arguments: object) -> Image:
    """What an operation in place makes of a copy."""
    out = image.copy()
    operation(out, *arguments)
    return out


def far(ours: Image, theirs: object) -> int:
    """The largest difference of a pixel, grey levels."""
    return int(np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).max())


class Fixed(Draws):
    """Draws that are known: the choice, then the values given in [0, 1)."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def random(self) -> float:
        return self.values.pop(0)


def test_the_three_are_greyscale_solarisation_and_blur(image: Image) -> None:
    pillow = Pillow.fromarray(image)
    assert far(done(ta.three_augment, image, Fixed(0.0)), pillow.convert("L").convert("RGB")) <= 1
    assert far(done(ta.three_augment, image, Fixed(0.34)), ImageOps.solarize(pillow)) == 0
    for drawn in (0.0, 0.3, 0.999):
        sigma = 0.1 + 1.9 * drawn
        expected = ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="nearest")
        assert np.abs(done(ta.three_augment, image, Fixed(0.67, drawn)) - expected).max() <= 1


def test_each_of_the_three_comes_as_often(image: Image) -> None:
    grey, solarized = done(ta.greyscale, image), np.asarray(ImageOps.solarize(Pillow.fromarray(image)))
    seen: Counter[str] = Counter()
    for seed in range(1500):
        out = done(ta.three_augment, image, Draws(seed))
        seen["grey" if (out == grey).all() else "solarized" if (out == solarized).all() else "blurred"] += 1
    assert all(count == pytest.approx(500, abs=70) for count in seen.values())
    assert len(seen) == 3


@pytest.mark.parametrize("factor", [0.7, 0.95, 1.0, 1.3])
def test_each_jitter_is_pillows(image: Image, factor: float) -> None:
    pillow = Pillow.fromarray(image)
    assert far(done(ta.brightness, image, factor), ImageEnhance.Brightness(pillow).enhance(factor)) <= 1
    assert far(done(ta.contrast, image, factor), ImageEnhance.Contrast(pillow).enhance(factor)) <= 1
    assert far(done(ta.saturation, image, factor), ImageEnhance.Color(pillow).enhance(factor)) <= 1


def test_jitter_does_all_three_in_each_order_with_factors_about_one(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: Counter[tuple[str, ...]] = Counter()
    factors: list[float] = []
    steps: list[str] = []
    for name in ("brightness", "contrast", "saturation"):

        def note(_: Image, factor: float, name: str = name) -> None:
            steps.append(name)
            factors.append(factor)

        monkeypatch.setattr(ta, name, note)
    for seed in range(1200):
        steps.clear()
        ta.color_jitter(image, 0.3, Draws(seed))
        orders[tuple(steps)] += 1
    assert len(orders) == 6
    assert all(count == pytest.approx(200, abs=50) for count in orders.values())
    assert (min(factors), max(factors)) == (pytest.approx(0.7, abs=0.01), pytest.approx(1.3, abs=0.01))
    assert np.mean(factors) == pytest.approx(1, abs=0.01)
