"""JPEG bytes -> RGB pixels, whole or only a region. Images are HWC, uint8.

The region decoder is a C extension over libjpeg-turbo (_jpeg.c), built where a compiler and its headers
are. Without it simplejpeg decodes the whole image: the same pixels, bit for bit, at 60 % of the speed.
"""

import math

import numpy as np
import numpy.typing as npt
import simplejpeg

try:
    from pipeline import _jpeg
except ImportError:
    _jpeg = None  # type: ignore[assignment]

Image = npt.NDArray[np.uint8]  # HWC
Box = tuple[int, int, int, int]  # top, left, height, width; pixels

LARGEST_PIXELS = 100_000_000  # width x height; more isn't decoded: a header may promise anything
HAS_REGION_DECODER = _jpeg is not None
HOW_TO_BUILD = (  # it and data_prep's extensions
    "install a C compiler and libjpeg-turbo's headers (Debian: gcc libjpeg-dev), and this package again"
)
_scratch = np.empty(1 << 22, np.uint8)  # what a region is decoded into: a process decodes one image at a time


def size(jpeg: bytes) -> tuple[int, int]:
    """Height and width, from the header. Raises ValueError where the bytes are no JPEG, or one of too many pixels."""
    try:
        height, width = simplejpeg.decode_jpeg_header(jpeg, strict=False)[:2]
    except KeyError:  # simplejpeg's table of colour spaces, which bytes without a header don't reach
        raise ValueError("no JPEG header") from None
    check_size(height, width)
    return int(height), int(width)


def check_size(height: int, width: int) -> None:
    """Raises ValueError where an image is too large to be decoded."""
    if height * width > LARGEST_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than {LARGEST_PIXELS:,}")


def decode(jpeg: bytes) -> Image:
    """The whole image. Raises ValueError where the bytes are no JPEG."""
    return simplejpeg.decode_jpeg(jpeg, "RGB", strict=False)  # type: ignore[no-any-return]


def decode_small(jpeg: bytes, colour: str, height: int = 1, width: int = 1, *, strict: bool = False) -> Image:
    """The whole image, scaled in the DCT domain to no less than ``height`` and ``width``, where it is larger.

    ``strict``: what libjpeg warns of is an error. Raises ValueError where the bytes are no JPEG, or a lossless one:
    libjpeg-turbo doesn't scale those, and simplejpeg would have it write behind the end of a smaller buffer.
    """
    if is_lossless(jpeg):
        raise ValueError("a lossless JPEG, which can't be decoded to a smaller size")
    return simplejpeg.decode_jpeg(  # type: ignore[no-any-return]
        jpeg, colour, min_height=height, min_width=width, min_factor=1, strict=strict
    )


def is_lossless(jpeg: bytes) -> bool:
    """Whether the frame header says so (SOF3, 7, 11 or 15), found as libjpeg finds it (ITU-T T.81, annex B)."""
    at = 2
    while True:
        at = jpeg.find(b"\xff", at) + 1
        marker = jpeg[at] if 0 < at < len(jpeg) else 0xD9
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker & 3 == 3
        if marker in (0xD8, 0xD9, 0xDA):
            return False
        if marker == 0xFF:  # fill byte
            continue
        at += 1
        if marker > 0x01 and not 0xD0 <= marker <= 0xD7:  # a segment
            at += max(2, int.from_bytes(jpeg[at : at + 2]))


def decode_region(jpeg: bytes, box: Box, denominator: int = 1) -> Image:
    """The pixels of ``box``, in pixels of the image scaled by 1/``denominator`` (1, 2, 4 or 8) in the DCT domain.

    The same as cutting them out of the whole image. The array is valid until the next call in this process.
    Raises ValueError where the bytes are no JPEG.
    """
    global _scratch  # noqa: PLW0603
    top, left, height, width = box
    if _jpeg is None:
        return _decode_scaled(jpeg, denominator)[top : top + height, left : left + width]
    room = (height + 8) * (width + 8 + 2 * 32) * 3  # the margin, and blocks of up to 32 pixels at either side
    if room > len(_scratch):
        _scratch = np.empty(room, np.uint8)
    above, before, length, _ = _jpeg.decode(jpeg, denominator, top, left, height, width, _scratch)
    rows = _scratch[: (above + height) * length * 3].reshape(above + height, length, 3)
    return rows[above:, before : before + width]


def is_sound(jpeg: bytes) -> bool:
    """Whether all of the image's data is as it should be, in half the time of decoding it.

    False says nothing: the image may be of a kind that must be decoded to know (progressive), or damaged, or no JPEG.
    """
    return _jpeg is not None and _jpeg.is_sound(jpeg)


def is_cut(jpeg: bytes) -> bool:
    """Whether the image's data end early: what is missing would be grey. An end marker may be a thumbnail's."""
    if is_sound(jpeg):
        return False
    try:
        size(jpeg)
    except ValueError:  # of unusual chroma sampling, say, which TurboJPEG takes for cut
        return jpeg.rfind(b"\xff\xd9") < 0
    try:
        decode_small(jpeg, "GRAY", strict=True)
    except ValueError as error:
        return "premature end" in str(error).lower()
    return False


def scaled_size(height: int, width: int, denominator: int) -> tuple[int, int]:
    """Size of an image scaled in the DCT domain: rounded up, as libjpeg does."""
    return math.ceil(height / denominator), math.ceil(width / denominator)


def _decode_scaled(jpeg: bytes, denominator: int) -> Image:
    if denominator == 1:
        return decode(jpeg)
    return decode_small(jpeg, "RGB", *scaled_size(*size(jpeg), denominator))
