"""Read a JPEG's markers before its image data; and the error for images that can't be used."""

import struct
from typing import NamedTuple

try:
    from data_prep import _sample
except ImportError:
    _sample = None  # type: ignore[assignment]

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15; DHT, JPG and DAC lie between them
_DCT_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})  # baseline, extended and progressive, in either coding
_SAMPLINGS = (b"\x11\x11\x11", b"\x21\x11\x11", b"\x22\x11\x11", b"\x12\x11\x11", b"\x41\x11\x11")  # TurboJPEG's
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # TIFF's types BYTE, SHORT, LONG, and signed
_FRAME = struct.Struct(">HHB")  # lines, samples a line, components (behind the precision)


class RejectedError(Exception):
    """An image that can't be used: ``reason`` is one word that groups, ``detail`` a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class JpegHeader(NamedTuple):
    """The content of the markers before the first scan."""

    width: int
    height: int
    components: int  # 1 grey, 3 colour, 4 CMYK or YCCK
    orientation: int
    scan: int  # position of the start-of-scan marker
    rubbish: tuple[tuple[int, int], ...] = ()  # (start, end) of bytes between segments that belong to none
    usual: bool = True  # whether every decoder knows its coding and its colours' sampling factors


def jpeg_header(data: bytes) -> JpegHeader:
    """Walk the markers up to the first scan (ITU-T T.81, annex B). Raises RejectedError."""
    plain = _sample.jpeg_header(data) if _sample else None
    if plain:
        return JpegHeader(*plain)
    at, end = 2, len(data)
    rubbish: list[tuple[int, int]] = []
    width = height = components = orientation = 0
    usual = True
    while at + 4 <= end:
        if data[at] != 0xFF:
            start, at = at, data.find(b"\xff", at)
            if at < 0:
                break
            rubbish.append((start, at))
            continue
        marker = data[at + 1]
        if marker == 0xDA:
            if not components:
                raise RejectedError("undecodable", "image data without a frame header")
            return JpegHeader(width, height, components, orientation or 1, at, tuple(rubbish), usual)
        if marker == 0xD9:
            raise RejectedError("undecodable", "ends (EOI) before any image data")
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xD8:
            raise RejectedError("undecodable", "begins (SOI) a second time before any image data")
        if marker == 0x00:  # what image data have instead of a marker
            rubbish.append((at, at + 2))
            at += 2
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # TEM, RSTn: no segment
            at += 2
            continue
        if marker in _FRAMES:
            if at + 10 > end:
                raise RejectedError("truncated", "ends inside the frame header")
            height, width, components = _FRAME.unpack_from(data, at + 5)
            if not (width and height) or components not in (1, 3, 4):
                raise RejectedError("undecodable", f"frame of {width} x {height} pixels, {components} components")
            if data[at + 4] != 8:
                raise RejectedError("undecodable", f"{data[at + 4]} bits a sample, not 8")
            factors = data[at + 11 : at + 20 : 3]
            usual = marker in _DCT_FRAMES and (components != 3 or factors in _SAMPLINGS)
        elif marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0" and not orientation:  # the first one counts
            length = data[at + 2] << 8 | data[at + 3]
            orientation = _exif_orientation(data[at + 10 : at + 2 + length])
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    if data[at : at + 2] == b"\xff\xd9":
        raise RejectedError("undecodable", "ends (EOI) before any image data")
    raise RejectedError("truncated", "ends before the image data")


def _exif_orientation(tiff: bytes) -> int:
    """Tag 0x0112 of the first directory (TIFF 6.0, section 2), 1 if it is missing or makes no sense.

    Exif 2.3 asks for a SHORT; editors write other integer types, too, and the two bytes 42 in the wrong order.
    """
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or tiff[2:4] not in (b"*\0", b"\0*"):
        return 1
    try:
        (first,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", tiff, entry)
            if tag == 0x0112 and kind in _INTEGERS:
                (value,) = struct.unpack_from(order + _INTEGERS[kind], tiff, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1
