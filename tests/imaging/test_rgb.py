"""Any mode as RGB."""

import numpy as np
from PIL import Image

from pipeline.imaging.rgb import to_rgb


def test_sixteen_bit_grey_keeps_its_high_byte_with_and_without_a_transparent_colour() -> None:
    grey_HW = np.array([[0, 256, 32768, 65535]], np.uint16)
    image = Image.fromarray(grey_HW)
    expected = np.repeat((grey_HW >> 8)[:, :, None], 3, axis=2)
    assert (np.asarray(to_rgb(image)) == expected).all()
    image.info["transparency"] = 256
    assert (np.asarray(to_rgb(image)) == expected).all()


def test_transparent_pixels_are_white() -> None:
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert np.asarray(to_rgb(image)).tolist() == [[[255, 255, 255], [10, 20, 30]]]
