"""Bicubic resizing in C against Pillow's, one axis after the other, on images that overshoot black and white."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from pipeline.imaging import bicubic
from pipeline.imaging.bicubic import MOST_SHRUNK, resize
from pipeline.imaging.jpeg import Image

Box = tuple[float, float, float, float]


def pillows(image: Image, box: Box, height: int, width: int) -> npt.NDArray[np.int_]:
    """Rows first, as Pillow resizes unless the height shrinks far more than the width."""
    top, left, bottom, right = box
    kind = Pillow.Resampling.BICUBIC
    rows = Pillow.fromarray(image).resize((width, len(image)), kind, (left, 0, right, len(image)))
    return np.asarray(rows.resize((width, height), kind, (0, top, width, bottom))).astype(int)


def resized(image: Image, box: Box, height: int, width: int) -> npt.NDArray[np.int_]:
    out = np.empty((height, width, 3), np.uint8)
    resize(image, box, out)
    return out.astype(int)


def test_the_extension_was_built() -> None:
    """The tests' machine has a compiler (.ci/install)."""
    assert bicubic.HAS_EXTENSION


@settings(max_examples=150)
@given(st.tuples(*[st.integers(1, 150)] * 2), st.tuples(*[st.integers(1, 90)] * 2), st.integers(1, 9), st.data())
def test_each_pixel_is_pillows_but_for_one_level(
    old: tuple[int, int], new: tuple[int, int], square: int, data: st.DataObject
) -> None:
    """Squares of black, white and noise: sharp edges, where what lies beyond black and white is cut off."""
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    squares = random.integers(0, 2, (old[0] // square + 1, old[1] // square + 1, 3)) * 255
    image = np.ascontiguousarray(squares.repeat(square, 0).repeat(square, 1)[: old[0], : old[1]].astype(np.uint8))
    image[: old[0] // 3] = random.integers(0, 256, (old[0] // 3, old[1], 3))
    box = [0.0, 0.0, *map(float, old)]
    for side in (0, 1):  # a quarter of a pixel is exact in Pillow's float32
        edges = sorted(data.draw(st.lists(st.integers(0, 4 * old[side]), min_size=2, max_size=2, unique=True)))
        box[side], box[side + 2] = (edge / 4 for edge in edges)
    top, left, bottom, right = box
    new = tuple(max(side, int(length / MOST_SHRUNK) + 1) for side, length in zip(new, old, strict=True))  # type: ignore[assignment]
    difference = resized(image, (top, left, bottom, right), *new) - pillows(image, (top, left, bottom, right), *new)
    assert np.abs(difference).max() <= 1


def test_an_image_at_its_own_size_and_one_of_a_single_colour_stay_as_they_are() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 45, 3), np.uint8)
    assert (resized(noise, (0, 0, 37, 45), 37, 45) == noise).all()
    assert (resized(noise, (3, 4, 30, 44), 27, 40) == noise[3:30, 4:44]).all()
    for value in range(256):
        plain = np.full((40, 40, 3), value, np.uint8)
        for side in (5, 9, 24, 31, 77):
            assert (resized(plain, (0, 0, 40, 40), side, side) == value).all()


def test_the_rows_of_source_and_result_may_lie_apart() -> None:
    wide = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    frame = np.zeros((30, 30, 3), np.uint8)
    resize(wide[5:35, 10:50], (0, 0, 30, 40), frame[3:20, 2:25])
    expected = resized(np.ascontiguousarray(wide[5:35, 10:50]), (0, 0, 30, 40), 17, 23)
    assert (frame[3:20, 2:25] == expected).all()
    frame[3:20, 2:25] = 0
    assert not frame.any()


def test_pillow_does_what_the_extension_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    tenth = np.asarray(Pillow.fromarray(noise).resize((9, 9), Pillow.Resampling.BICUBIC))
    assert (resized(noise, (0, 0, 90, 90), 9, 9) == tenth).all()
    by_extension = resized(noise, (1.5, 2.25, 80.0, 70.5), 40, 30)
    monkeypatch.setattr(bicubic, "_bicubic", None)
    assert np.abs(resized(noise, (1.5, 2.25, 80.0, 70.5), 40, 30) - by_extension).max() <= 1


def test_what_makes_no_sense_is_refused() -> None:
    image, out = np.zeros((8, 8, 3), np.uint8), np.empty((4, 4, 3), np.uint8)
    for box in ((0, 0, 9, 8), (-0.5, 0, 8, 8), (4, 4, 4, 8), (0, float("nan"), 8, 8)):
        with pytest.raises(ValueError, match="outside"):
            resize(image, box, out)
    for wrong in (image[:, :, :1], image[:, ::2], image[:0], image[..., ::-1]):
        with pytest.raises(ValueError, match="not RGB"):
            resize(wrong, (0, 0, 4, 4), out)
    assert bicubic._bicubic is not None
    with pytest.raises((ValueError, BufferError)):
        bicubic._bicubic.resize(image, 0, 0, 8, 8, out.astype(np.float32))  # type: ignore[arg-type]
