"""One image: bytes of any kind -> a JPEG that decodes, with its size and orientation, or the reason why not."""

import contextlib
import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg

from data_prep.images.jpeg_header import JpegHeader, RejectedError, jpeg_header
from pipeline.imaging import jpeg

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

try:
    from data_prep.images import _lossless
except ImportError:
    _lossless = None  # type: ignore[assignment]

HAS_LOSSLESS = _lossless is not None
LARGEST_FILE = 256 << 20  # bytes; the largest ImageNet-21K file is far below
LARGEST_SIDE = 65_500  # pixels: JPEG_MAX_DIMENSION of libjpeg's jmorecfg.h
RECODE_QUALITY = 95
SWAPPING = 5  # from this EXIF orientation on, rows are stored as columns
REMAINS_SIDE = 96  # pixels, of the thumbnails of rejected images


@dataclass(frozen=True)
class ImageOptions:
    """What is done to each image."""

    verify: Literal["decode", "header"] = "decode"
    resize: int = 0  # target of the short side, pixels; 0 leaves images as they are
    quality: int = 95  # JPEG quality of resized images
    min_side: int = 1  # smaller images are rejected, pixels
    upright: bool = False  # store images as their EXIF orientation says they should be seen
    restart: bool = False  # write each JPEG anew, without loss, with restart markers; needs HAS_LOSSLESS


class Picture(NamedTuple):
    """A JPEG that may be written."""

    data: bytes
    width: int  # pixels, as stored
    height: int
    orientation: int  # EXIF tag 0x0112, 1 where there is none
    recoded: str  # "" for bytes untouched, else why they were changed


def prepare(data: bytes, options: ImageOptions) -> Picture:
    """The JPEG to write for the bytes of a source file. Raises RejectedError."""
    recoded: list[str] = []
    if data[:2] == b"\x1f\x8b":  # 26 images of fall11 are wrapped in gzip
        data = _gunzip(data)
        recoded.append("gzip")
    kind = identify(data)
    if not data:
        raise RejectedError("empty", "the file has no bytes")
    if not kind:
        raise RejectedError("not_an_image", f"starts with {data[:8].hex(' ')}")
    if kind == "jpeg":
        header = jpeg_header(data)
        if header.rubbish:  # the images are whole, but some decoders refuse them
            data = _without(data, header.rubbish)
            recoded.append("rubbish")
            header = jpeg_header(data)
        orientation = header.orientation
        _check_size(header.width, header.height, options.min_side)
        width, height = header.width, header.height
        unusual = "cmyk" if header.components == 4 else "" if header.usual else _unusual(data)
        if unusual:
            data = _turned(_recode(data, "JPEG", options)[0], orientation)
            recoded.append(unusual)
        else:
            _verify_jpeg(data, header, options)
    else:
        data, orientation = _recode(data, kind.upper(), options)
        data = _turned(data, orientation)
        recoded.append(kind)
        header = jpeg_header(data)
        width, height = header.width, header.height
    if options.resize and min(width, height) > options.resize:
        data, width, height = _resized(data, width, height, options)
        data = _turned(data, orientation)
        recoded.append("resized")
    if options.upright and orientation != 1:
        data, how = _upright(data, orientation)
        width, height = (height, width) if orientation >= SWAPPING else (width, height)
        orientation = 1
        recoded.append(how)
    if options.restart:
        with contextlib.suppress(ValueError):  # what libjpeg warns of, and still decodes, stays as it is
            data = _lossless.with_restarts(data)
            recoded.append("restart")
    return Picture(data, width, height, orientation, "+".join(recoded))


def identify(data: bytes) -> str:
    """``jpeg``, ``png``, ``gif``, ``bmp``, ``webp`` by the first bytes, or ``""``."""
    if data[:2] == b"\xff\xd8":
        return "jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:2] == b"BM" and data[6:10] == b"\0\0\0\0":
        return "bmp"
    return ""


def _without(data: bytes, ranges: tuple[tuple[int, int], ...]) -> bytes:
    """``data`` without the bytes of some ranges, which are in order."""
    starts, ends = [0, *(end for _, end in ranges)], [*(start for start, _ in ranges), len(data)]
    return b"".join(data[start:end] for start, end in zip(starts, ends, strict=True))


def _check_size(width: int, height: int, min_side: int) -> None:
    try:
        jpeg.check_size(height, width)
    except ValueError as error:
        raise RejectedError("too_large", str(error)) from None
    if max(width, height) > LARGEST_SIDE:
        raise RejectedError("too_large", f"{width} x {height} pixels, a side over {LARGEST_SIDE:,}, a JPEG's longest")
    if min(width, height) < min_side:
        raise RejectedError("too_small", f"{width} x {height} pixels, the short side is under {min_side}")


def _unusual(data: bytes) -> str:
    """Why TurboJPEG, which training uses, can't decode a JPEG that other decoders may: "lossless", "sampling" or ""."""
    if jpeg.is_lossless(data):
        return "lossless"
    try:
        jpeg.size(data)
    except ValueError:
        return "sampling"
    return ""


def _turned(data: bytes, orientation: int) -> bytes:
    """A re-encoded JPEG with the EXIF orientation of the original, which is where readers look for it.

    It gets a segment behind JFIF's (Exif 2.3, section 4.5.4), whose TIFF directory has one entry (4.6.2).
    """
    if orientation == 1:
        return data
    body = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    at = 4 + (data[4] << 8 | data[5])  # behind SOI and APP0, with which libjpeg begins
    return data[:at] + struct.pack(">HH", 0xFFE1, 2 + len(body)) + body + data[at:]


def _upright(data: bytes, orientation: int) -> tuple[bytes, str]:
    """The JPEG as its orientation (2 to 8) says it should be seen, and how: without loss ("upright") if its sides allow
    it, else encoded anew ("upright-recoded"). EXIF and XMP are dropped: they would turn it a second time."""
    if _lossless is not None:
        with contextlib.suppress(ValueError):
            turned = _lossless.turned(data, orientation)
            if jpeg_header(turned).usual:  # not 4:1:1 turned
                return turned, "upright"
    try:
        pixels_HWC = jpeg.decode_small(data, "RGB", LARGEST_SIDE, LARGEST_SIDE)
    except ValueError as error:
        raise RejectedError("undecodable", str(error).strip()) from None
    turned_HWC = _turned_pixels(pixels_HWC, orientation)
    return _encode(turned_HWC, RECODE_QUALITY, "444"), "upright-recoded"  # its colours are coarse already


def _turned_pixels(pixels_HWC: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Undo an EXIF orientation: mirror the stored columns, the stored rows, then swap them."""
    columns, rows = orientation in (2, 3, 7, 8), orientation in (3, 4, 6, 7)
    pixels_HWC = pixels_HWC[:: -1 if rows else 1, :: -1 if columns else 1]
    return pixels_HWC.transpose(1, 0, 2) if orientation >= SWAPPING else pixels_HWC


def _verify_jpeg(data: bytes, header: JpegHeader, options: ImageOptions) -> None:
    if data.rfind(b"\xff\xd9", header.scan) < 0:
        raise RejectedError("truncated", f"no end marker after {len(data)} bytes")
    if options.verify == "header":
        return
    if defect := jpeg.defect(data):
        raise RejectedError("truncated" if jpeg.is_cut(defect) else "undecodable", defect)


def remains(data: bytes) -> bytes | None:
    """A small JPEG of what can still be decoded of a rejected JPEG; ``None`` if that is nothing."""
    try:
        header = jpeg_header(data) if identify(data) == "jpeg" else None
        if header is None or header.components == 4 or header.width * header.height > jpeg.LARGEST_PIXELS:
            return None
        pixels_HWC = jpeg.decode_small(data, "RGB")
    except (RejectedError, ValueError):
        return None
    scale = REMAINS_SIDE / max(header.width, header.height)
    size = max(1, round(header.width * scale)), max(1, round(header.height * scale))
    return _encode(_area_averaged(pixels_HWC, size), 75)


def _gunzip(data: bytes) -> bytes:
    inner = b""
    while data[:2] == b"\x1f\x8b":  # a file of several members is their contents, one after another
        stream = zlib.decompressobj(wbits=31)
        try:
            inner += stream.decompress(data, LARGEST_FILE + 1 - len(inner))
        except zlib.error as error:
            raise RejectedError("undecodable", f"damaged gzip: {error}") from None
        if len(inner) > LARGEST_FILE:
            raise RejectedError("too_large", f"unpacks to more than {LARGEST_FILE:,} bytes")
        if not stream.eof:
            raise RejectedError("truncated", "gzip ends early")
        data = stream.unused_data
    return inner


def _recode(data: bytes, kind: str, options: ImageOptions) -> tuple[bytes, int]:
    """The image as an RGB JPEG, and its EXIF orientation. The size is checked before anything is decoded."""
    from PIL import Image  # few images need it, or the next

    from pipeline.imaging.rgb import to_rgb

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns about odd metadata in readable images
        try:
            with Image.open(io.BytesIO(data), formats=[kind]) as image:
                _check_size(image.width, image.height, options.min_side)
                orientation = _pillow_orientation(image)
                pixels_HWC = np.asarray(to_rgb(image))
        except RejectedError:
            raise
        except Image.DecompressionBombError as error:  # PIL's own limit, which it applies when opening
            raise RejectedError("too_large", f"{kind}: {error}") from None
        except Exception as error:  # PIL's decoders raise many types on damaged bytes
            reason = "truncated" if "truncated" in str(error) else "undecodable"
            raise RejectedError(reason, f"{kind}: {error}") from None
    encoded = _encode(pixels_HWC, RECODE_QUALITY)
    return encoded, orientation


def _pillow_orientation(image: "PillowImage") -> int:
    """EXIF tag 0x0112 of an image that Pillow has opened, 1 if it is missing, damaged or makes no sense."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # Pillow raises many types on damaged metadata, which say nothing about the pixels
        return 1
    value = value[0] if isinstance(value, bytes) and value else value  # as Pillow reads the type BYTE
    return int(value) if value in range(1, 9) else 1


def _resized(data: bytes, width: int, height: int, options: ImageOptions) -> tuple[bytes, int, int]:
    """Area-averaged to ``options.resize`` on the short side, decoded no larger than needed (DCT scaling)."""
    short = min(width, height)
    target = (max(1, round(width * options.resize / short)), max(1, round(height * options.resize / short)))
    try:
        pixels_HWC = jpeg.decode_small(data, "RGB", target[1], target[0])
    except ValueError as error:
        raise RejectedError("undecodable", str(error).strip()) from None
    return _encode(_area_averaged(pixels_HWC, target), options.quality), target[0], target[1]


def _area_averaged(pixels_HWC: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Resize to width and height in a single thread: the other cores have processes of their own."""
    import cv2  # most runs don't resize, and start 60 ms earlier without it

    cv2.setNumThreads(1)
    return cv2.resize(pixels_HWC, size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _encode(pixels_HWC: npt.NDArray[np.uint8], quality: int, sampling: str = "420") -> bytes:
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels_HWC), quality, "RGB", sampling)
    return encoded
