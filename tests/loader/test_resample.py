"""Bicubic resizing against Pillow's own, of whole images and of windows, and the crops of DeiT III made of it."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image as Pillow

from pipeline.imaging import jpeg
from pipeline.imaging.jpeg import Image
from pipeline.inference.image_files import prepared
from pipeline.loader.resample import resized_window, short_side_size
from pipeline.loader.splitmix import Draws
from pipeline.loader.transforms import TrainTransform, eval_image, inception_crop


def photo(height: int, width: int) -> bytes:
    """A JPEG with edges and noise."""
    rows, columns = np.mgrid[:height, :width]
    waves = 127 + 100 * np.sin(rows / 7)[..., None] * np.cos(columns[..., None] / np.array([5, 9, 13]))
    noise = np.random.default_rng(0).integers(-20, 20, waves.shape)
    return simplejpeg.encode_jpeg(np.clip(waves + noise, 0, 255).astype(np.uint8), 95, "RGB", "444")


def whole(data: bytes, size: int) -> Image:
    """Decoded, its short side resized to ``size``, by Pillow alone."""
    height, width = jpeg.size(data)
    rows, columns = short_side_size(height, width, size)
    resized = Pillow.fromarray(jpeg.decode(data)).resize((columns, rows), Pillow.Resampling.BICUBIC)
    return np.asarray(resized)


def test_the_long_side_is_rounded_down() -> None:
    assert short_side_size(375, 500, 224) == (224, 298)  # 298.67
    assert short_side_size(500, 375, 224) == (298, 224)
    assert short_side_size(100, 100, 384) == (384, 384)


def window_of(data: bytes, window: tuple[int, int, int, int], size: int, *, scaled: bool = False) -> Image:
    top, left, height, width = window
    out = np.empty((height, width, 3), np.uint8)
    resized_window(data, top, left, size, out, scaled=scaled)
    return out


@pytest.mark.parametrize(("height", "width", "size"), [(375, 500, 224), (120, 90, 64), (50, 41, 64), (64, 64, 64)])
def test_a_window_is_cut_out_of_the_whole(height: int, width: int, size: int) -> None:
    data = photo(height, width)
    expected = whole(data, size)
    rows, columns = expected.shape[:2]
    for window in ((0, 0, size, size), (rows - size, columns - size, size, size), (3, 2, size - 9, size - 7)):
        top, left, h, w = window
        part = window_of(data, window, size).astype(int)
        assert part.shape == (h, w, 3)
        assert np.abs(part - expected[top : top + h, left : left + w]).max() <= 1  # Pillow's box is float32


def test_a_large_original_may_be_decoded_small() -> None:
    data = photo(600, 500)
    full = window_of(data, (0, 0, 100, 100), 100).astype(int)
    small = window_of(data, (0, 0, 100, 100), 100, scaled=True).astype(int)
    assert 0 < np.abs(full - small).mean() < 3


def test_evaluation_takes_the_middle_square() -> None:
    data = photo(150, 181)
    expected = whole(data, 96)
    left = round((expected.shape[1] - 96) / 2)
    assert np.abs(eval_image(data, 96, "bicubic").astype(int) - expected[:, left : left + 96]).max() <= 1
    png = Pillow.fromarray(jpeg.decode(data))
    assert np.abs(prepared(_png(png), 96, "bicubic").astype(int) - expected[:, left : left + 96]).max() <= 1


def _png(image: Pillow.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_simple_crops_are_those_of_the_padded_image_and_reach_every_place() -> None:
    data = photo(64, 70)  # resized to 32 x 35, and 4 pixels on each side: 9 x 12 places
    padded = np.pad(whole(data, 32), ((4, 4), (4, 4), (0, 0)), mode="reflect").astype(int)
    crops = {
        (top, left): padded[top : top + 32, left : left + 32] for top in range(9) for left in range(12)
    }  # fmt: skip
    transform = TrainTransform(32, crop="simple", flip=False)
    out, places = np.empty((32, 32, 3), np.uint8), set()
    for seed in range(700):
        transform(data, seed, out)
        (place,) = [place for place, crop in crops.items() if np.abs(out - crop).max() <= 1]
        places.add(place)
    assert places == set(crops)


def test_inception_crops_are_resized_as_asked() -> None:
    data = photo(100, 140)
    linear, cubic = np.empty((2, 48, 48, 3), np.uint8)
    TrainTransform(48, flip=False)(data, 5, linear)
    TrainTransform(48, flip=False, interpolation="bicubic")(data, 5, cubic)
    assert (linear != cubic).any()
    top, left, h, w = inception_crop(100, 140, 0.05, Draws(5))
    region = Pillow.fromarray(jpeg.decode(data)[top : top + h, left : left + w])
    assert np.abs(cubic - np.asarray(region.resize((48, 48), Pillow.Resampling.BICUBIC)).astype(int)).max() <= 1
