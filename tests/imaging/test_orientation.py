"""EXIF's orientation in each form that cameras and editors write, against the value that was put in.

Exif 2.3 (section 4.6.4) asks for a SHORT; TIFF 6.0 (section 2) has the other integer types.
"""

import io
import struct

import pytest
from PIL import Image

from data_prep.images.jpeg_header import jpeg_header
from data_prep.images.prepare import ImageOptions, prepare

TYPES = {
    "BYTE": (1, "B"),
    "SHORT": (3, "H"),
    "LONG": (4, "I"),
    "SBYTE": (6, "b"),
    "SSHORT": (8, "h"),
    "SLONG": (9, "i"),
}


def encoded(form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 24), (200, 30, 90)).save(buffer, form, **options)
    return buffer.getvalue()


def tiff(order: str, kind: str, value: int, *, first: int = 8, magic: bytes | None = None) -> bytes:
    """A directory of two entries at byte ``first``: XResolution (a RATIONAL elsewhere) and the orientation."""
    code, item = TYPES[kind]
    inline = struct.pack(order + item, value).ljust(4, b"\0")
    head = (
        (b"II" if order == "<" else b"MM") + (magic or struct.pack(order + "H", 42)) + struct.pack(order + "I", first)
    )
    entries = struct.pack(order + "HHHI", 2, 0x011A, 5, 1) + struct.pack(order + "I", first + 30)
    entries += struct.pack(order + "HHI", 0x0112, code, 1) + inline
    return head.ljust(first, b"\0") + entries + struct.pack(order + "III", 0, 72, 1)


def with_exif(jpeg: bytes, body: bytes) -> bytes:
    segment = b"Exif\0\0" + body
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("value", range(10))
def test_each_integer_type_in_both_byte_orders(order: str, kind: str, value: int) -> None:
    expected = value if 1 <= value <= 8 else 1
    for first in (8, 14):
        assert jpeg_header(with_exif(encoded("JPEG"), tiff(order, kind, value, first=first))).orientation == expected


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_magic_number_in_the_other_order(order: str) -> None:
    """As some editors write it, and as Pillow reads it."""
    other = struct.pack((">" if order == "<" else "<") + "H", 42)
    assert jpeg_header(with_exif(encoded("JPEG"), tiff(order, "SHORT", 6, magic=other))).orientation == 6


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["BYTE", "SHORT", "LONG"])
def test_other_formats_keep_theirs(form: str, order: str, kind: str) -> None:
    made = prepare(encoded(form, exif=tiff(order, kind, 8)), ImageOptions())
    assert made.orientation == jpeg_header(made.data).orientation == 8


@pytest.mark.parametrize("body", [b"", b"II", b"rubbish", tiff("<", "SHORT", 6)[:12], tiff(">", "SHORT", 6)[:-20]])
def test_damaged_exif_rejects_no_image(body: bytes) -> None:
    assert prepare(with_exif(encoded("JPEG"), body), ImageOptions()).orientation == 1
    assert prepare(encoded("PNG", exif=body or b"x"), ImageOptions()).orientation == 1
