"""What _sample.c answers is what Python answers, and what tarfile writes; whatever is odd it leaves to them."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep._sample import jpeg_header, tar_headers
from data_prep.images import jpeg_header as markers
from data_prep.images.jpeg_header import RejectedError
from data_prep.sources.tar_headers import BLOCK
from data_prep.writing import tar_writer

MARKERS = (0x01, 0x02, 0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC8, 0xCC, 0xD0, 0xD8, 0xD9, 0xDA, 0xDB, 0xE0, 0xE1, 0xFE, 0xFF)
EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
FACTORS = b"\1\x22\0\2\x11\1\3\x11\1"
FRAMES = (
    *(b"\x08\x01\x00\x02\x00\x03" + FACTORS, b"\x08\x01\x00\x02\x00\x01rest", b"\x08\0\0\0\x07\x03"),
    *(b"\x08\1\1\1\1\x02", b"\x0c\1\1\1\1\x03" + FACTORS, b"\x08\1\1\1\1\x03" + FACTORS.replace(b"\x22", b"\x31")),
    b"\x08\1\1\1\1\x04",
)
SEGMENTS = st.builds(
    lambda marker, body, wrong: bytes([0xFF, marker]) + (max(0, len(body) + 2 + wrong)).to_bytes(2, "big") + body,
    st.sampled_from(MARKERS),
    st.one_of(st.sampled_from((*FRAMES, EXIF)), st.binary(max_size=12)),
    st.sampled_from((0, 0, 0, 0, 0, 0, -1, 1, -100, 300)),
)


def in_python(data: bytes) -> markers.JpegHeader | str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(markers, "_sample", None)
        try:
            return markers.jpeg_header(data)
        except RejectedError as error:
            return error.detail


@settings(max_examples=2000)
@given(st.lists(st.one_of(SEGMENTS, SEGMENTS, SEGMENTS, st.binary(max_size=9)), max_size=6), st.integers(0, 40))
def test_markers_are_read_as_python_reads_them(segments: list[bytes], cut: int) -> None:
    data = b"\xff\xd8" + b"".join(segments)
    for part in (data, data[: max(0, len(data) - cut)]):
        found = jpeg_header(part)
        assert found is None or (*found, (), True) == in_python(part)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"comment": b"x" * 999}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_plain_jpegs_are_read_by_the_extension(mode: str, options: dict[str, object]) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (70, 50)).save(buffer, "JPEG", **options)
    data = buffer.getvalue()
    found = jpeg_header(data)
    assert found is not None
    assert (*found, (), True) == in_python(data) == markers.jpeg_header(data)
    assert found[:3] == (70, 50, len(mode))
    assert data[found[4] : found[4] + 2] == b"\xff\xda"
    with_exif = data[:2] + b"\xff\xe1" + (len(EXIF) + 2).to_bytes(2, "big") + EXIF + data[2:]
    assert jpeg_header(with_exif) is None
    assert markers.jpeg_header(with_exif).orientation == 6


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=110),
    st.one_of(st.sampled_from((0, 1, 511, 512, 513, (1 << 33) - 1, 1 << 33)), st.integers(0, 1 << 34)),
    st.integers(0, (1 << 31) - 1),
)
def test_headers_are_those_that_tarfile_writes(key: str, size: int, label: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar_writer, "_sample", None)
        expected = tar_writer.around(key, size, label)
    assert tar_writer.around(key, size, label) == expected
    plain = key.isascii() and len(key) <= 96 and size < 1 << 33
    assert tar_headers(key, size, label) == (expected if plain else None)
    before, after = expected
    padding = -size % BLOCK
    assert after[:padding] == bytes(padding)
    first = tarfile.TarFile.open(fileobj=io.BytesIO(before)).next()
    assert first is not None
    assert (first.name, first.size, first.mode, first.mtime) == (f"{key}.jpg", size, 0o644, 0)
    with tarfile.open(fileobj=io.BytesIO(after[padding:])) as tar:
        (member,) = tar.getmembers()
        assert member.name == f"{key}.cls"
        assert tar.extractfile(member).read() == b"%d" % label  # type: ignore[union-attr]


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(TypeError):
        jpeg_header(bytearray(b"\xff\xd8"))  # type: ignore[arg-type]
    for size, label in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="must not be negative"):
            tar_headers("key", size, label)
