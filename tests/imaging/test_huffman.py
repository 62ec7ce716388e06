"""The region decoder's own reader of Huffman codes: the same pixels as libjpeg-turbo's, whatever the bytes."""

import io
import re
from collections.abc import Callable

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from pipeline.imaging import jpeg
from pipeline.imaging.jpeg import Box, Image
from pipeline.imaging.jpeg_header import without_oddities
from tests.helpers.jpegs import encode, is_read_by_us


def noise(height: int, width: int, seed: int = 0) -> Image:
    """Every coefficient of every block: long codes, and blocks without an end marker."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def pillow(pixels: Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def smooth(height: int, width: int) -> Image:
    return simplejpeg.decode_jpeg(encode(height, width))  # type: ignore[no-any-return]


def cut(pixels: Image, box: Box) -> Image:
    top, left, height, width = box
    return pixels[top : top + height, left : left + width]


def damaged(good: bytes, seed: int, damages: int, first: int, longest: int) -> bytes:
    """With bytes changed, or fewer than ``longest`` left out, at so many places from ``first`` on."""
    random, bad = np.random.default_rng(seed), bytearray(good)
    for _ in range(damages):
        at = int(random.integers(first, len(bad)))
        if random.random() < 0.3:
            del bad[at : at + int(random.integers(1, longest))]
        else:
            bad[at] = int(random.choice([0, 0xFF, 0xD0, 0xD9, int(random.integers(256))]))
    return bytes(bad)


BOXES: list[Box] = [
    (0, 0, 200, 300),
    (0, 0, 8, 8),
    (97, 131, 64, 80),
    (150, 250, 50, 50),
    (33, 0, 1, 300),
    (199, 299, 1, 1),
]


@pytest.mark.parametrize("picture", [noise, smooth])
@pytest.mark.parametrize(
    "options",
    [
        {"quality": 100, "subsampling": 0},
        {"quality": 100, "optimize": True},
        {"quality": 95, "subsampling": 1, "optimize": True},
        {"quality": 5},
        {"quality": 90, "progressive": True},
        {"quality": 90, "restart_marker_rows": 1},
        {"quality": 90, "restart_marker_blocks": 7},
        {"quality": 100, "restart_marker_blocks": 50, "optimize": True},
        {"quality": 90, "restart_marker_blocks": 1},
    ],
    ids=str,
)
def test_the_pixels_are_those_of_a_whole_decode(
    picture: Callable[[int, int], Image], options: dict[str, object]
) -> None:
    data = pillow(picture(200, 300), **options)
    whole = jpeg.decode(data)
    for box in BOXES:
        assert (jpeg.decode_region(data, box) == cut(whole, box)).all(), box
        assert is_read_by_us(data, box) == ("progressive" not in options)


@settings(max_examples=200)
@given(
    st.sampled_from(["plain", "rows", "blocks"]),
    st.integers(0, 2**32),
    st.integers(1, 6),
    st.sampled_from(BOXES[:5]),
)
def test_damaged_bytes_give_what_libjpeg_turbo_makes_of_them(kind: str, seed: int, damages: int, box: Box) -> None:
    more = {"plain": {}, "rows": {"restart_marker_rows": 1}, "blocks": {"restart_marker_blocks": 5}}[kind]
    good = pillow(smooth(200, 300), quality=85, **more)
    bad = damaged(good, seed, damages, good.find(b"\xff\xda") + 14, 200)
    try:
        whole = jpeg.decode(bad)
    except ValueError:
        return  # a marker that libjpeg-turbo stops at, if it gets there
    assert (jpeg.decode_region(bad, box) == cut(whole, box)).all()


@pytest.mark.parametrize("denominator", [2, 4, 8])
def test_scaled_pixels_are_those_of_a_whole_scaled_decode(denominator: int) -> None:
    for data in (pillow(noise(203, 301)), pillow(smooth(203, 301), restart_marker_blocks=3)):
        height, width = jpeg.scaled_size(203, 301, denominator)
        whole = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, min_factor=1)
        assert whole.shape == (height, width, 3)
        box = (height // 3, width // 3, height // 2, width // 2)
        assert (jpeg.decode_region(data, box, denominator) == cut(whole, box)).all()


def test_a_grey_image_of_a_component_with_factors() -> None:
    """Its blocks are 8 x 8 pixels whatever the factors say."""
    data = bytearray(simplejpeg.encode_jpeg(np.ascontiguousarray(smooth(120, 90)[:, :, :1]), 90, "GRAY", "Gray"))
    data[data.find(b"\xff\xc0") + 11] = 0x22
    whole = jpeg.decode(bytes(data))
    for box in ((0, 0, 120, 90), (40, 30, 33, 21), (111, 81, 9, 9)):
        assert (jpeg.decode_region(bytes(data), box) == cut(whole, box)).all()


@settings(max_examples=300)
@given(
    st.sampled_from(["plain", "rows", "blocks", "optimised", "444", "progressive"]),
    st.integers(0, 2**32),
    st.integers(0, 2),
)
def test_what_is_called_sound_is_what_libjpeg_turbo_has_nothing_to_say_about(
    kind: str, seed: int, damages: int
) -> None:
    options: dict[str, dict[str, object]] = {
        "plain": {},
        "rows": {"restart_marker_rows": 1},
        "blocks": {"restart_marker_blocks": 5},
        "optimised": {"optimize": True},
        "444": {"subsampling": 0},
        "progressive": {"progressive": True},
    }
    data = damaged(pillow(smooth(120, 90), **options[kind]), seed, damages, 2, 50)
    if not damages:
        assert jpeg.is_sound(data) == (kind != "progressive")
    if jpeg.is_sound(data):
        plain = without_oddities(data)  # warnings about the header don't count
        simplejpeg.decode_jpeg(plain, "RGB", strict=True)  # raises for what libjpeg-turbo warns of
        simplejpeg.decode_jpeg(plain, "GRAY", strict=True, min_height=1, min_width=1)


@settings(max_examples=300)
@given(
    st.sampled_from(
        [
            {},
            {"restart_marker_rows": 1},
            {"restart_marker_blocks": 5},
            {"optimize": True},
            {"subsampling": 0},
            {"progressive": True},
        ]
    ),
    st.booleans(),
    st.integers(0, 2**32),
    st.integers(0, 2),
    st.sampled_from([(0, 0, 120, 90), (0, 0, 8, 8), (50, 41, 20, 30), (119, 89, 1, 1)]),
)
def test_a_checked_decode_decides_as_a_check_beside_it(
    options: dict[str, object], grey: bool, seed: int, damages: int, box: Box
) -> None:
    pixels = smooth(120, 90)
    good = pillow(pixels[:, :, 0] if grey else pixels, **options)
    bad = damaged(good, seed, damages, good.find(b"\xff\xda") + 14, 50)
    defect = jpeg.defect(bad)
    if jpeg.is_sound(bad):
        assert is_read_by_us(bad, box, check=True)
    if defect:
        with pytest.raises(ValueError, match=re.escape(defect)):
            jpeg.decode_region(bad, box, check=True)
    else:
        unchecked = jpeg.decode_region(bad, box).copy()
        assert (jpeg.decode_region(bad, box, check=True) == unchecked).all()


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"restart_marker_blocks": 1}], ids=str)
@pytest.mark.parametrize("box", [(0, 0, 40, 56), (0, 0, 8, 8), (16, 24, 1, 1)])
def test_a_checked_decode_finds_damage_outside_the_region(options: dict[str, object], box: Box) -> None:
    good = pillow(noise(40, 56), **options)
    assert (jpeg.decode_region(good, box, check=True) == cut(jpeg.decode(good), box)).all()
    assert is_read_by_us(good, box, check=True)
    for end in range(good.find(b"\xff\xda") + 14, len(good) - 1):
        with pytest.raises(ValueError, match=r"[Pp]remature end"):
            jpeg.decode_region(good[:end], box, check=True)
    assert not is_read_by_us(good[:-2] + b"xx" + good[-2:], box, check=True)
    assert is_read_by_us(good + b"behind the image", box, check=True)


def test_what_is_no_whole_jpeg_is_not_sound() -> None:
    good = pillow(smooth(64, 64))
    assert jpeg.is_sound(good)
    scan = good.find(b"\xff\xda")
    for bad in (b"", good[:2], good[:scan], good[:-2], good[:-30] + b"\xff\xd9", good[:-2] + b"xx\xff\xd9", good[:-1]):
        assert not jpeg.is_sound(bad)


Codes = dict[int, str]  # symbol -> its bits


def tables(data: bytes) -> tuple[Codes, Codes]:
    """The DC and AC codes of a grey JPEG."""
    found: dict[int, Codes] = {}
    at = 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if data[at + 1] == 0xC4:
            counts, symbols = data[at + 5 : at + 21], iter(data[at + 21 : end])
            code, codes = 0, {}
            for length, count in enumerate(counts, 1):
                for _ in range(count):
                    codes[next(symbols)] = f"{code:0{length}b}"
                    code += 1
                code <<= 1
            found[data[at + 4]] = codes
        at = end
    return found[0x00], found[0x10]


def packed(bits: str) -> bytes:
    """As the data of a scan."""
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")


@settings(max_examples=50)
@given(st.text("01", min_size=600, max_size=600))
def test_a_coefficient_beyond_the_64th_is_left_to_libjpeg_turbo(rest: str) -> None:
    """Here with an end of block right behind it, which libjpeg-turbo takes for the next block's."""
    grey = pillow(smooth(8, 64)[:, :, 0])
    dc, ac = tables(grey)
    bits = dc[3] + "101" + (ac[0x01] + "1") * 58 + (ac[0x05] + "11111") * 3 + ac[0x21] + "1" + ac[0x00] + rest
    data = grey[: grey.find(b"\xff\xda") + 10] + packed(bits) + b"\xff\xd9"
    assert (jpeg.decode_region(data, (0, 0, 8, 64)) == jpeg.decode(data)).all()
    assert not is_read_by_us(data, (0, 0, 8, 64))
    assert not jpeg.is_sound(data)


def test_a_file_that_ends_behind_a_marker_s_first_byte() -> None:
    """Its 0xFF is no data: libjpeg-turbo goes on with zeros."""
    grey = pillow(noise(8, 64)[:, :, 0], quality=100)
    scan = grey.find(b"\xff\xda") + 10
    ends = [at for at in range(scan, len(grey) - 1) if grey[at : at + 2] == b"\xff\0"]
    assert ends
    for at in ends:
        data = grey[: at + 1]
        for box in ((0, 0, 8, 64), (0, 0, 8, 30), (0, 0, 8, 8)):
            assert (jpeg.decode_region(data, box) == cut(jpeg.decode(data), box)).all()


def test_a_denominator_that_libjpeg_turbo_lacks_is_refused() -> None:
    for denominator in (0, 3, 16, -1):
        with pytest.raises(ValueError, match="must be 1, 2, 4 or 8"):
            jpeg.decode_region(pillow(smooth(16, 16)), (0, 0, 8, 8), denominator)
