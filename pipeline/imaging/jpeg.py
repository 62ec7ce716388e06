"""JPEG bytes -> RGB pixels, whole or only a region. Images are HWC, uint8.

The region decoder is a C extension that uses libjpeg-turbo (_jpeg.c), built if a compiler and its headers are
available. Without it simplejpeg decodes the whole image: the same pixels, bit for bit, at 60 % of the speed.
"""

import logging
import math
import multiprocessing
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg

from pipeline.imaging.jpeg_header import without_oddities

logger = logging.getLogger(__name__)

try:
    from pipeline.imaging import _jpeg
except ImportError:
    _jpeg = None  # type: ignore[assignment]

# Versions of libjpeg-turbo that _jpeg.c was tested with: it replaces a method of a struct that jpeglib.h doesn't show.
TESTED = (1, 5), (3, 2)


def library_version(library: Path) -> tuple[int, ...]:
    """The version of libjpeg-turbo in a library file, from a string in it; empty if there is none."""
    try:
        found = re.search(rb"libjpeg-turbo version (\d+)\.(\d+)", library.read_bytes())
    except OSError:
        return ()
    return tuple(map(int, found.groups())) if found else ()


def _is_tested(extension: Any) -> bool:
    """Whether the extension may be used; if not, log a warning, once per command."""
    version = library_version(Path(extension.library()))
    if TESTED[0] <= version <= TESTED[1]:
        return True
    if multiprocessing.parent_process() is None:
        name = f"libjpeg-turbo {'.'.join(map(str, version)) or 'of unknown version'}"
        logger.warning(
            "%s is %s, but the fast region decoder was tested with 1.5 to 3.2: whole images are decoded (slower)",
            extension.library(),
            name,
        )
    return False


if _jpeg is not None and not _is_tested(_jpeg):
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
    """Height and width, from the header. Raises ValueError for images that one of our decoders can't decode to RGB.

    These are: bytes that are not a JPEG, too many pixels, CMYK, lossless JPEGs, chroma sampling that TurboJPEG lacks.
    """
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(jpeg, strict=False)
    except KeyError:  # simplejpeg's table of colour spaces, which bytes without a header don't reach
        raise ValueError("no JPEG header") from None
    check_size(height, width)
    if colour in ("CMYK", "YCCK"):
        raise ValueError(f"its colours are {colour}, not RGB or grey")
    if is_lossless(jpeg):
        raise ValueError("a lossless JPEG, which not every decoder can read")
    return int(height), int(width)


def check_size(height: int, width: int) -> None:
    """Raises ValueError if an image is too large to be decoded."""
    if height * width > LARGEST_PIXELS:
        raise ValueError(f"{width} x {height} pixels, more than {LARGEST_PIXELS:,}")


def decode(jpeg: bytes) -> Image:
    """The whole image. Raises ValueError as :func:`size` does."""
    size(jpeg)
    return _simplejpeg(jpeg, "RGB")


def decode_small(jpeg: bytes, colour: str, height: int = 1, width: int = 1, *, strict: bool = False) -> Image:
    """The whole image; a larger one is scaled in the DCT domain to no less than ``height`` and ``width``.

    ``strict``: what libjpeg warns of is an error, unless it is in the header. Raises ValueError if the bytes are not a
    JPEG, or a lossless one: libjpeg-turbo doesn't scale those, and simplejpeg would have it write behind the end of a
    smaller buffer.
    """
    if is_lossless(jpeg):
        raise ValueError("a lossless JPEG, which can't be decoded to a smaller size")
    return _simplejpeg(jpeg, colour, min_height=height, min_width=width, min_factor=1, strict=strict)


def _simplejpeg(jpeg: bytes, colour: str, *, strict: bool = False, **options: int) -> Image:
    """Decode; if TurboJPEG refuses, decode again with a cleaned header, in case only that was the reason."""
    try:
        return simplejpeg.decode_jpeg(jpeg, colour, strict=strict, **options)  # type: ignore[no-any-return]
    except ValueError:
        return simplejpeg.decode_jpeg(without_oddities(jpeg), colour, strict=strict, **options)  # type: ignore[no-any-return]


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


def decode_region(jpeg: bytes, box: Box, denominator: int = 1, *, check: bool = False) -> Image:
    """The pixels of ``box``, in pixels of the image scaled by 1/``denominator`` (1, 2, 4 or 8) in the DCT domain.

    Same as cropping the whole image. The array is valid until the next call in this process. Raises ValueError if the
    bytes are not a JPEG; with ``check`` also if the JPEG has a :func:`defect` anywhere, with that text. A sound JPEG
    is read once for both.
    """
    global _scratch  # noqa: PLW0603
    top, left, height, width = box
    if _jpeg is None:
        if check:
            _refuse_defect(jpeg)
        return _decode_scaled(jpeg, denominator)[top : top + height, left : left + width]
    room = (height + 8) * (width + 8 + 2 * 32) * 3  # the margin, and blocks of up to 32 pixels at either side
    if room > len(_scratch):
        _scratch = np.empty(room, np.uint8)
    try:
        above, before, length, fast = _jpeg.decode(jpeg, denominator, top, left, height, width, _scratch, check)
    except ValueError:
        if check:
            _refuse_defect(jpeg)
        raise
    if check and not fast:  # progressive, unusual or damaged
        _refuse_defect(jpeg)
    rows = _scratch[: (above + height) * length * 3].reshape(above + height, length, 3)
    return rows[above:, before : before + width]


def is_sound(jpeg: bytes) -> bool:
    """Whether all of the image's data is certainly sound, in half the time of decoding it.

    False is inconclusive: the image may need decoding to be sure (progressive), or be damaged, or not be a JPEG.
    """
    return _jpeg is not None and _jpeg.is_sound(jpeg)


def defect(jpeg: bytes) -> str:
    """Why a JPEG can't be used, or "". Sharding, verifying and predicting all decide by this function.

    Evaluation and training read every image without a defect. They also read images with damaged or missing data, which
    looks grey or wrong: only a full decode notices. Oddities in the header alone are not defects.
    """
    try:
        size(jpeg)
        if not is_sound(jpeg):
            # The entropy-coded data is what breaks, and it is read in full at any scale: 1/8 saves most of the rest.
            decode_small(jpeg, "RGB", strict=True)
    except ValueError as error:
        message = " ".join(str(error).split())
        if "extraneous bytes before marker 0xd9" not in message:  # behind all image data, and the first that is wrong
            return message
    return ""


def _refuse_defect(jpeg: bytes) -> None:
    if found := defect(jpeg):
        raise ValueError(found)


def is_cut(defect: str) -> bool:
    """Whether a defect means that the image's data ends early, so that the missing part would be grey."""
    return "premature end" in defect.lower()


def scaled_size(height: int, width: int, denominator: int) -> tuple[int, int]:
    """Size of an image scaled in the DCT domain: rounded up, as libjpeg does."""
    return math.ceil(height / denominator), math.ceil(width / denominator)


def _decode_scaled(jpeg: bytes, denominator: int) -> Image:
    if denominator == 1:
        return decode(jpeg)
    return decode_small(jpeg, "RGB", *scaled_size(*size(jpeg), denominator))
