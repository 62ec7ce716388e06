"""Crops, resizes and region decoding on photographs and on sizes that photographs don't have."""

import dataclasses
import math
from typing import get_args

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.recipes import PRETRAIN
from pipeline.config.schema import Augmentation, Decode
from pipeline.imaging import jpeg
from pipeline.imaging.jpeg import Image
from pipeline.loader import transforms
from pipeline.loader.splitmix import Draws
from pipeline.loader.transforms import (
    AUGREG,
    TrainTransform,
    central_crop,
    decode_box,
    erase,
    eval_image,
    inception_crop,
    train_transform,
)
from tests.helpers.jpegs import encode


def test_the_region_decoder_was_built() -> None:
    """The tests' machine has a compiler and libjpeg-turbo's headers (.ci/install)."""
    assert jpeg.HAS_REGION_DECODER


@settings(max_examples=150)
@given(
    st.integers(1, 150),
    st.integers(1, 150),
    st.sampled_from(["444", "422", "420", "440", "411", "gray"]),
    st.data(),
)
def test_a_region_is_cut_out_of_the_whole_image_bit_for_bit(
    height: int, width: int, kind: str, data: st.DataObject
) -> None:
    data_jpeg = encode(height, width, kind if kind != "gray" else "420", kind != "gray")
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    box = (top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left)))
    whole = jpeg.decode(data_jpeg)
    assert whole.shape == (height, width, 3)
    region = jpeg.decode_region(data_jpeg, box)
    assert (region == whole[top : top + box[2], left : left + box[3]]).all()


def test_without_the_extension_the_pixels_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(120, 90)
    transform, outs = TrainTransform(32), []
    for _ in range(2):
        images = np.empty((8, 32, 32, 3), np.uint8)
        for seed, image in enumerate(images):
            transform(data, seed, image)
        outs.append(images)
        monkeypatch.setattr(jpeg, "_jpeg", None)
    assert (outs[0] == outs[1]).all()


def test_bytes_that_are_no_jpeg_raise() -> None:
    for data in (b"", b"not a jpeg", encode(40, 40)[:100]):
        with pytest.raises(ValueError):  # noqa: PT011  (libjpeg-turbo's own words)
            TrainTransform(16)(data, 0, np.empty((16, 16, 3), np.uint8))


@pytest.mark.parametrize("how", get_args(Decode))
def test_a_header_that_promises_too_many_pixels_is_damage(how: Decode) -> None:
    data = bytearray(simplejpeg.encode_jpeg(np.zeros((48, 64, 3), np.uint8)))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\x41\x2c\x40\xc8"
    with pytest.raises(ValueError, match="16584 x 16684 pixels, more than"):
        TrainTransform(16, decode=how)(bytes(data), 0, np.empty((16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="16584 x 16684 pixels, more than"):
        eval_image(bytes(data), 16)


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.05, 1.0), st.integers(0, 2**63))
def test_an_inception_crop_lies_inside_the_image(height: int, width: int, min_area: float, seed: int) -> None:
    top, left, h, w = inception_crop(height, width, min_area, Draws(seed))
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h > 0
    assert w > 0


def test_inception_crops_have_the_published_areas_and_aspects() -> None:
    draws = Draws(0)
    boxes = np.array([inception_crop(400, 400, 0.05, draws) for _ in range(4000)])
    area, aspect = boxes[:, 2] * boxes[:, 3] / (400 * 400), boxes[:, 3] / boxes[:, 2]
    assert area.min() == pytest.approx(0.05, abs=0.005)
    assert 0.95 < area.max() <= 1.0
    assert aspect.min() >= 0.74
    assert aspect.max() <= 1.35
    assert np.log(aspect).mean() == pytest.approx(0, abs=0.02)  # log-uniform: wide as often as tall
    for side in (0, 1):  # they lie anywhere, up to the edges
        free = 400 - boxes[:, side + 2]
        small = free > 0
        place = boxes[small, side] / free[small]
        assert (place.min(), place.max(), place.mean()) == (0, 1, pytest.approx(0.5, abs=0.02))
    # uniform area, as far as crops near the whole image fit it
    assert np.histogram(area, [0.05, 0.25, 0.45])[0] == pytest.approx([950, 950], rel=0.15)


def test_a_long_image_gets_the_central_crop_of_the_widest_aspect() -> None:
    assert inception_crop(10, 1000, 0.9, Draws(0)) == (0, 493, 10, 13)
    assert inception_crop(1000, 10, 0.9, Draws(0)) == (493, 0, 13, 10)


def train(transform: TrainTransform, data: bytes, seed: int) -> Image:
    out = np.empty((transform.size, transform.size, 3), np.uint8)
    transform(data, seed, out)
    return out


def test_the_other_crop_is_a_square_of_seven_eighths_anywhere() -> None:
    data = encode(64, 72)
    whole = jpeg.decode(data)
    transform = TrainTransform(56, crop="resize", flip=False)  # 7/8 of 64: nothing is resized
    squares = {whole[top : top + 56, left : left + 56].tobytes(): (top, left) for top in range(9) for left in range(17)}
    places = {squares[train(transform, data, seed).tobytes()] for seed in range(300)}
    assert {top for top, _ in places} == set(range(9))
    assert {left for _, left in places} == set(range(17))


def test_a_sample_is_a_function_of_its_seed() -> None:
    data = encode(200, 150)
    for augment in get_args(Augmentation):
        transform = TrainTransform(64, augment, erasing=0.5, color_jitter=0.3)
        assert (train(transform, data, 3) == train(transform, data, 3)).all()
        assert (train(transform, data, 3) != train(transform, data, 4)).any()


def test_flip_mirrors_half_of_the_images() -> None:
    data = encode(80, 80)
    plain, mirrored = TrainTransform(80, flip=False), TrainTransform(80)
    turned = 0
    for seed in range(200):
        one, two = train(plain, data, seed), train(mirrored, data, seed)
        turned += (two == one[:, ::-1]).all() and (two != one).any()
        assert (two == one).all() or (two == one[:, ::-1]).all()
    assert 75 < turned < 125


def test_the_whole_image_at_its_own_size_is_the_decoded_image() -> None:
    data = encode(48, 48)
    assert (train(TrainTransform(48, min_area=1.0, flip=False), data, 0) == jpeg.decode(data)).all()
    assert (eval_image(data, 48) == jpeg.decode(data)).all()


def test_evaluation_square_and_central() -> None:
    data = encode(70, 105)
    whole = jpeg.decode(data)
    assert (eval_image(data, 35) == cv2.resize(whole, (35, 35), interpolation=cv2.INTER_LINEAR)).all()
    side = round(70 / (8 / 7))
    top, left = (70 - side) // 2, (105 - side) // 2
    assert central_crop(70, 105) == (top, left, side, side)
    expected = cv2.resize(whole[top : top + side, left : left + side], (40, 40), interpolation=cv2.INTER_LINEAR)
    assert (eval_image(data, 40, "central") == expected).all()


def test_scaled_decoding_shows_the_same_region_with_fewer_pixels() -> None:
    data = encode(640, 800)
    box = (80, 160, 480, 400)
    full, scaled = decode_box(data, box, 100, "full"), decode_box(data, box, 100, "scaled")
    assert full.shape == (480, 400, 3)
    assert scaled.shape == (120, 100, 3)
    expected = cv2.resize(full, (100, 120), interpolation=cv2.INTER_AREA)
    difference, shifted = (np.abs(scaled.astype(int) - np.roll(expected, by, 1)).mean() for by in (0, 1))
    assert difference < shifted / 3  # another filter, the same place
    assert decode_box(data, box, 300, "scaled").shape == full.shape
    assert decode_box(data, box, 20, "scaled").shape == (60, 50, 3), "JPEGs are decoded at an eighth at the smallest"


def test_large_originals_are_decoded_smaller_where_the_run_says_so() -> None:
    photo = encode(1280, 1600)
    run = PRETRAIN["tiny"].config
    images: dict[str, Image] = {}
    for how in get_args(Decode):
        config = dataclasses.replace(run, data=dataclasses.replace(run.data, decode=how))
        images[how] = np.empty((32, 32, 3), np.uint8)
        train_transform(config)(photo, 0, images[how])
    assert (images["region"] == images["full"]).all()
    assert (images["region"] != images["scaled"]).any()


def test_augmentation_and_erasing_happen_as_often_as_the_run_says() -> None:
    data = encode(48, 48)
    whole = jpeg.decode(data)

    def changed(augment: str, erasing: float) -> int:
        transform = TrainTransform(48, augment, min_area=1.0, flip=False, erasing=erasing)
        return sum(bool((train(transform, data, seed) != whole).any()) for seed in range(200))

    assert changed("none", 0.0) == 0
    assert 35 < changed("none", 0.3) < 85
    assert changed("none", 1.0) == 200
    assert changed("strong1", 0.0) > 150


def test_a_run_transforms_as_it_is_told() -> None:
    run = PRETRAIN["tiny"].config
    data = dataclasses.replace(
        run.data, augment="light2", crop="resize", min_area=0.3, flip=not run.data.flip, erasing=0.4, decode="full"
    )
    assert train_transform(dataclasses.replace(run, data=data)) == TrainTransform(
        32, "light2", "resize", 0.3, not run.data.flip, 0.4, "full"
    )


def test_erasing_leaves_most_of_the_image() -> None:
    image = np.full((64, 64, 3), 100, np.uint8)
    erase(image, np.random.default_rng(1))
    share = (image != 100).any(-1).mean()
    assert 0.015 < share < 0.34


def test_the_published_settings() -> None:
    assert {name: tuple(setting) for name, setting in AUGREG.items()} == {
        "light1": (2, 0, 0.0),
        "light2": (2, 10, 0.2),
        "medium1": (2, 15, 0.2),
        "medium2": (2, 15, 0.5),
        "strong1": (2, 20, 0.5),
        "strong2": (2, 20, 0.8),
    }
    assert math.isclose(transforms.CENTRAL, 256 / 224)
