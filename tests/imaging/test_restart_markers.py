"""JPEGs with restart markers: the same pixels, and the region decoder needs no more of them than the region."""

import io

import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from data_prep.images import prepare
from data_prep.images._lossless import with_restarts
from data_prep.images.jpeg_header import jpeg_header
from pipeline.imaging import jpeg
from tests.helpers.jpegs import encode, is_read_by_us

KINDS = ["444", "422", "420", "440", "411", "gray"]


def written(height: int, width: int, kind: str, seed: int = 0) -> bytes:
    return encode(height, width, kind if kind != "gray" else "420", kind != "gray", seed)


def markers(data: bytes) -> int:
    """Restart markers in the last scan; 0xFF of the data itself is followed by 0."""
    scan = data[data.rfind(b"\xff\xda") :]
    return sum(scan.count(bytes([0xFF, 0xD0 + number])) for number in range(8))


def test_the_transcoder_was_built() -> None:
    """The tests' machine has a compiler and libjpeg-turbo's headers (.ci/install)."""
    assert prepare.HAS_LOSSLESS


@settings(max_examples=200)
@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from(KINDS), st.sampled_from([1, 1, 2, 4, 8]), st.data())
def test_a_region_is_that_of_the_image_without_markers(
    height: int, width: int, kind: str, denominator: int, data: st.DataObject
) -> None:
    plain = written(height, width, kind)
    restarting = with_restarts(plain)
    assert (simplejpeg.decode_jpeg(restarting) == simplejpeg.decode_jpeg(plain)).all()
    height, width = jpeg.scaled_size(height, width, denominator)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    box = (top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left)))
    expected = jpeg.decode_region(plain, box, denominator).copy()
    assert (jpeg.decode_region(restarting, box, denominator) == expected).all()


def test_only_the_intervals_of_the_region_are_looked_at() -> None:
    """All others are overwritten: had one been decoded, its noise would have moved what follows it."""
    data = with_restarts(written(256, 256, "420"))
    whole = jpeg.decode_region(data, (128, 128, 64, 64)).copy()
    parts = data.split(b"\xff")
    scan = next(number for number, part in enumerate(parts) if part.startswith(b"\xda"))
    ends = [n for n in range(scan, len(parts)) if n == scan or 0xD0 <= parts[n][0] <= 0xD7]
    assert len(ends) == 64  # 16 rows of 16 blocks of 16 pixels, a marker behind every fourth
    for interval, number in enumerate(ends):
        row, column = divmod(interval, 4)
        if interval and not (7 <= row <= 12 and 1 <= column <= 3):  # the region and its margin
            end = ends[interval + 1] if interval + 1 < len(ends) else len(parts) - 1
            for part in range(number, end):
                parts[part] = parts[part][:1] + b"\x55" * (len(parts[part]) - 1)
    noisy = b"\xff".join(parts)
    assert (jpeg.decode_region(noisy, (128, 128, 64, 64)) == whole).all()
    assert is_read_by_us(noisy, (128, 128, 64, 64))


@settings(max_examples=300)
@given(st.sampled_from(KINDS), st.binary(max_size=40), st.data())
def test_damaged_bytes_are_decoded_or_refused(kind: str, noise: bytes, data: st.DataObject) -> None:
    """And never read or written beyond: run it under AddressSanitizer as well after a change of the extension."""
    good = with_restarts(written(96, 80, kind))
    at = data.draw(st.integers(0, len(good)))
    bad = good[:at] + noise + good[data.draw(st.integers(at, len(good))) :]
    for read in (lambda: jpeg.decode_region(bad, (30, 20, 40, 30)), lambda: with_restarts(bad)):
        try:
            read()
        except ValueError as error:
            assert str(error)  # noqa: PT017  (either is right)


def test_progressive_becomes_baseline_and_exif_stays() -> None:
    buffer, exif = io.BytesIO(), Pillow.Exif()
    exif[0x0112] = 6  # orientation
    pixels = simplejpeg.decode_jpeg(written(100, 140, "420"))
    Pillow.fromarray(pixels).save(buffer, "JPEG", progressive=True, exif=exif, comment=b"by hand")
    found = with_restarts(buffer.getvalue())
    assert jpeg_header(found).orientation == 6
    assert b"by hand" in found
    assert b"\xff\xc0" in found
    assert b"\xff\xc2" not in found
    assert found.count(b"JFIF") == 1
    assert markers(found) == 21 - 1  # 7 rows of 9 blocks, in threes
    assert (simplejpeg.decode_jpeg(found) == simplejpeg.decode_jpeg(buffer.getvalue())).all()


def test_what_libjpeg_warns_of_is_refused() -> None:
    good = written(100, 140, "420")
    for bad in (good[:-200] + b"\xff\xd9", b"", b"not a jpeg", good[:100]):
        with pytest.raises(ValueError):  # noqa: PT011  (libjpeg-turbo's own words)
            with_restarts(bad)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_progressive_jpeg_that_lacks_scans_is_left_as_it_is(mode: str, subsampling: int) -> None:
    """libjpeg-turbo guesses what is missing when it decodes one, without a warning; not so in a baseline JPEG."""
    buffer = io.BytesIO()
    pixels = simplejpeg.decode_jpeg(written(100, 140, "420"))
    Pillow.fromarray(pixels).convert(mode).save(buffer, "JPEG", progressive=True, subsampling=subsampling)
    data = buffer.getvalue()
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 5
    for scan in scans[1:]:
        incomplete = data[: data.rindex(b"\xff\xc4", 0, scan)] + b"\xff\xd9"  # with its Huffman tables
        assert jpeg.defect(incomplete) == ""
        with pytest.raises(ValueError, match="lacks scans"):
            with_restarts(incomplete)
        prepared = prepare.prepare(incomplete, prepare.ImageOptions(restart=True))
        assert (prepared.data, prepared.recoded) == (incomplete, "")
    assert (simplejpeg.decode_jpeg(with_restarts(data)) == simplejpeg.decode_jpeg(data)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_interval_divides_the_rows(kind: str) -> None:
    for width in (1, 16, 17, 300, 333, 496, 500):
        data = with_restarts(written(48, width, kind))
        interval = data[data.find(b"\xff\xdd\x00\x04") + 4 :][:2]
        header = data[data.find(b"\xff\xc0") :]
        block = 8 if kind == "gray" else 8 * max(header[11 + 3 * k] >> 4 for k in range(3))
        assert -(-width // block) % int.from_bytes(interval) == 0, (width, interval)


def test_writing_twice_changes_nothing() -> None:
    once = with_restarts(written(200, 300, "420"))
    assert with_restarts(once) == once
