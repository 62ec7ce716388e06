"""Each operation against its definition, written anew here in numpy on single pixels or with Pillow."""

import math

import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import ImageOps

from pipeline.imaging.jpeg import Image
from pipeline.loader import randaugment as ra
from pipeline.loader.randaugment import OPERATIONS, rand_augment


@pytest.fixture(scope="module")
def image() -> Image:
    """A photograph's corner, 40 x 56 pixels, its values squeezed so that contrast operations have something to do."""
    from sklearn.datasets import load_sample_image  # slow to import

    return (load_sample_image("china.jpg")[200:240, 300:356] // 2 + 40).astype(np.uint8)


def pillow(image: Image) -> PillowImage.Image:
    return PillowImage.fromarray(image)


def test_there_are_the_sixteen_of_the_published_models() -> None:
    assert list(OPERATIONS) == [
        "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast", "Brightness",
        "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout", "SolarizeAdd",
    ]  # fmt: skip


def test_invert_solarize_posterize_are_pillows(image: Image) -> None:
    assert (ra.invert(image) == np.asarray(ImageOps.invert(pillow(image)))).all()
    for threshold in (0, 77, 128, 256):
        assert (ra.solarize(image, threshold) == np.asarray(ImageOps.solarize(pillow(image), threshold))).all()
    for bits in (1, 4, 8):
        assert (ra.posterize(image, bits) == np.asarray(ImageOps.posterize(pillow(image), bits))).all()
    assert (ra.posterize(image, 0) == 0).all()


def test_auto_contrast_stretches_each_channel(image: Image) -> None:
    ours = ra.auto_contrast(image).astype(int)
    low, high = image.min((0, 1)).astype(float), image.max((0, 1)).astype(float)
    expected = np.floor(np.clip((image - low) * 255 / (high - low), 0, 255))
    assert np.abs(ours - expected).max() <= 1
    assert (ours.min((0, 1)) == 0).all()
    assert (ours.max((0, 1)) == 255).all()
    flat = np.full((5, 5, 3), 90, np.uint8)
    assert (ra.auto_contrast(flat) == flat).all()


def test_equalize_is_pillows(image: Image) -> None:
    assert (ra.equalize(image) == np.asarray(ImageOps.equalize(pillow(image)))).all()
    flat = np.full((5, 5, 3), 90, np.uint8)
    assert (ra.equalize(flat) == flat).all()


def test_solarize_add_brightens_the_dark_half(image: Image) -> None:
    expected = np.where(image < 128, np.minimum(image.astype(int) + 60, 255), image)
    assert (ra.solarize_add(image, 60) == expected).all()


@pytest.mark.parametrize("factor", [0.1, 0.7, 1.0, 1.9])
def test_blends(image: Image, factor: float) -> None:
    exact = image.astype(float)

    def blend(other: np.ndarray) -> np.ndarray:
        return np.clip(other + factor * (exact - other), 0, 255)

    grey = (exact @ [0.299, 0.587, 0.114])[..., None]
    assert np.abs(ra.color(image, factor) - blend(grey)).max() <= 1
    assert np.abs(ra.brightness(image, factor) - blend(np.zeros(()))).max() <= 0.5
    # the reference takes (pixels / 256), cut off at 255, for the mean grey: 40 x 56 / 256 = 8
    assert np.abs(ra.contrast(image, factor) - blend(np.full((), 8.0))).max() <= 0.5

    smooth = exact.copy()
    for y in range(1, image.shape[0] - 1):
        for x in range(1, image.shape[1] - 1):
            smooth[y, x] = (exact[y - 1 : y + 2, x - 1 : x + 2].sum((0, 1)) + 4 * exact[y, x]) / 13
    assert np.abs(ra.sharpness(image, factor) - blend(smooth)).max() <= 2
    assert (ra.sharpness(image, factor)[0] == image[0]).all()


@pytest.mark.parametrize("degrees", [-30.0, 11.0, 45.0])
def test_rotate_takes_the_nearest_pixel_about_the_centre(image: Image, degrees: float) -> None:
    height, width = image.shape[:2]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    ours, exact, close = ra.rotate(image, degrees), 0, 0
    for y in range(height):
        for x in range(width):
            dx, dy = x - (width - 1) / 2, y - (height - 1) / 2
            u, v = cos * dx - sin * dy + (width - 1) / 2, sin * dx + cos * dy + (height - 1) / 2
            candidates = {(math.floor(v + e), math.floor(u + f)) for e in (0.45, 0.55) for f in (0.45, 0.55)}
            values = [
                image[v] if 0 <= v[0] < height and 0 <= v[1] < width else np.array(ra.FILL, np.uint8)
                for v in candidates
            ]
            close += any((ours[y, x] == value).all() for value in values)
            exact += 1
    assert close >= 0.99 * exact  # what lies on the edge between two pixels may go either way


def test_shear_and_translate_move_rows_and_columns(image: Image) -> None:
    height, width = image.shape[:2]
    moved = ra.affine(image, [[1, 0, 7], [0, 1, 0]])
    assert (moved[:, : width - 7] == image[:, 7:]).all()
    assert (moved[:, width - 7 :] == 128).all()
    moved = ra.affine(image, [[1, 0, 0], [0, 1, -5]])
    assert (moved[5:] == image[: height - 5]).all()
    assert (moved[:5] == 128).all()
    sheared = ra.affine(image, [[1, 0.5, 0], [0, 1, 0]])
    for y in range(0, height, 2):
        shift = y // 2
        assert (sheared[y, : width - shift] == image[y, shift:]).all()


def test_cutout_fills_a_square_as_far_as_it_is_inside(image: Image) -> None:
    ours = ra.cutout(image, 6, 3, 50)
    expected = image.copy()
    expected[0:9, 44:56] = 128
    assert (ours == expected).all()
    assert (ra.cutout(image, 0, 3, 50) == image).all()


def test_strengths_are_the_published_constants(image: Image) -> None:
    """Each operation at magnitude 10 (strength 1), its sign left open where it is drawn."""

    def one_of(name: str, *candidates: Image) -> bool:
        ours = OPERATIONS[name](image, 1.0, np.random.default_rng(0))
        return any((ours == candidate).all() for candidate in candidates)

    assert one_of("Rotate", ra.rotate(image, 30), ra.rotate(image, -30))
    assert one_of("Posterize", ra.posterize(image, 4))
    assert one_of("Solarize", ra.solarize(image, 256))
    assert one_of("SolarizeAdd", ra.solarize_add(image, 110))
    for name, operation in (
        ("Color", ra.color), ("Contrast", ra.contrast), ("Brightness", ra.brightness), ("Sharpness", ra.sharpness),
    ):  # fmt: skip
        assert one_of(name, operation(image, 1.8 + 0.1))
    assert one_of("ShearX", *(ra.affine(image, [[1, s, 0], [0, 1, 0]]) for s in (0.3, -0.3)))
    assert one_of("ShearY", *(ra.affine(image, [[1, 0, 0], [s, 1, 0]]) for s in (0.3, -0.3)))


def test_lengths_are_the_published_ones_at_224_pixels_and_grow_with_the_image() -> None:
    for side, moved, half in ((224, 100, 40), (112, 50, 20)):
        image = np.random.default_rng(side).integers(0, 128, (side, side, 3), np.uint8)
        for name, axis in (("TranslateX", 1), ("TranslateY", 0)):
            shifted = OPERATIONS[name](image, 1.0, np.random.default_rng(0))
            empty = (shifted == 128).all(-1).all(1 - axis)
            assert empty.sum() == moved
            kept = np.compress(~empty, shifted, axis)
            assert (
                any((kept == part).all() for part in np.split(image, [side - moved], axis)[:1])
                or (kept == np.split(image, [moved], axis)[1]).all()
            )
        hidden = (OPERATIONS["Cutout"](image, 1.0, np.random.default_rng(3)) == 128).all(-1)
        rows, columns = np.flatnonzero(hidden.any(1)), np.flatnonzero(hidden.any(0))
        assert hidden[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert half <= max(len(rows), len(columns)) <= 2 * half


def test_magnitude_0_is_not_the_identity(image: Image) -> None:
    assert (OPERATIONS["Posterize"](image, 0.0, np.random.default_rng(0)) == 0).all()
    assert (OPERATIONS["Solarize"](image, 0.0, np.random.default_rng(0)) == 255 - image).all()


def test_what_is_drawn_depends_on_the_generator_alone(image: Image) -> None:
    before = image.copy()
    first = [rand_augment(image, 2, 5, np.random.default_rng(seed)) for seed in range(60)]
    again = [rand_augment(image, 2, 5, np.random.default_rng(seed)) for seed in range(60)]
    assert all((one == two).all() for one, two in zip(first, again, strict=True))
    assert len({one.tobytes() for one in first}) > 30
    assert (image == before).all()
    assert all(one.shape == image.shape and one.dtype == np.uint8 for one in first)
