"""JPEGs whose headers make libjpeg warn although every pixel is right, as cameras, phones and editors write them.

All of our readers agree about them: sharding, verifying, training in each way of decoding, evaluation, prediction.
"""

import io
import tarfile
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
from PIL import Image

from data_prep import index, verify
from data_prep.images import prepare
from data_prep.images.jpeg_header import RejectedError
from data_prep.images.prepare import ImageOptions
from pipeline.config.schema import Decode
from pipeline.dataset import joined_split
from pipeline.imaging import jpeg
from pipeline.imaging.jpeg_header import without_oddities
from pipeline.inference import image_files
from pipeline.loader.transforms import TrainTransform, decode_box, eval_image

HEIGHT, WIDTH = 200, 300
ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"  # and the colour transform


def encoded(mode: str = "RGB", **options: object) -> bytes:
    noise_HWC = np.random.default_rng(3).integers(0, 256, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    pixels_HWC = cv2.resize(noise_HWC, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(pixels_HWC).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def scan_parameters(data: bytes) -> int:
    """Where the first scan header's last three bytes are: first and last coefficient, successive approximation."""
    at = data.index(b"\xff\xda")
    return at + 2 + int.from_bytes(data[at + 2 : at + 4]) - 3


def three_scans(parameters: bytes) -> bytes:
    """A baseline JPEG with a scan for each component.

    Of one colour: each block of each component is "no difference, end of block", two bits.
    """

    def segment(marker: int, payload: bytes) -> bytes:
        return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2) + payload

    one_code = bytes([1]) + bytes(15) + b"\0"
    blocks = (HEIGHT + 7) // 8 * ((WIDTH + 7) // 8)
    data = bytes(2 * blocks // 8) + (b"\x0f" if 2 * blocks % 8 else b"")
    return b"".join(
        (
            b"\xff\xd8",
            segment(0xDB, bytes([0, *[1] * 64])),
            segment(0xC0, b"\x08" + HEIGHT.to_bytes(2) + WIDTH.to_bytes(2) + b"\x03\x01\x11\0\x02\x11\0\x03\x11\0"),
            segment(0xC4, b"\x00" + one_code + b"\x10" + one_code),
            *(segment(0xDA, bytes([1, number, 0]) + parameters) + data for number in (1, 2, 3)),
            b"\xff\xd9",
        )
    )


PLAIN, GREY, PROGRESSIVE = encoded(), encoded("L"), encoded(progressive=True)
ODD = {  # name: (the image, the same without the oddity)
    "scan_parameters_of_zeros": (patched(PLAIN, scan_parameters(PLAIN), bytes(3)), PLAIN),
    "scan_parameters_of_zeros_grey": (patched(GREY, scan_parameters(GREY), bytes(3)), GREY),
    "scan_parameters_of_nonsense": (patched(PLAIN, scan_parameters(PLAIN), b"\1\x05\x11"), PLAIN),
    "three_scans": (three_scans(bytes(3)), three_scans(b"\0\x3f\0")),
    "jfif_2": (patched(PLAIN, 11, b"\2\1"), PLAIN),
    "jfif_0": (patched(PLAIN, 11, b"\0\2"), PLAIN),
    "jfif_2_progressive": (patched(PROGRESSIVE, 11, b"\2\1"), PROGRESSIVE),
    "adobe_transform_2": (PLAIN[:2] + ADOBE + b"\2" + PLAIN[20:], PLAIN),
    "adobe_transform_9": (PLAIN[:20] + ADOBE + b"\x09" + PLAIN[20:], PLAIN),
    "stuffing": (PLAIN[:20] + b"\xff\0" + PLAIN[20:], PLAIN),
    "stuffing_and_a_byte": (PLAIN[:20] + b"\xff\0\7" + PLAIN[20:], PLAIN),
    "rubbish": (PLAIN[:20] + b"\0\0\0" + PLAIN[20:], PLAIN),
    "rubbish_at_once": (PLAIN[:2] + b"abc" + PLAIN[2:], PLAIN),
    "rubbish_between_scans": (
        PROGRESSIVE[: (at := PROGRESSIVE.rindex(b"\xff\xda"))] + b"\0\0" + PROGRESSIVE[at:],
        PROGRESSIVE,
    ),
    "restart_marker": (PLAIN[:20] + b"\xff\xd3" + PLAIN[20:], PLAIN),
    "fill_bytes": (PLAIN[:20] + b"\xff\xff\xff" + PLAIN[20:], PLAIN),
    "half_a_profile": (PLAIN[:20] + b"\xff\xe2\0\x12ICC_PROFILE\0\5\1ab" + PLAIN[20:], PLAIN),
    "half_a_profile_progressive": (
        PROGRESSIVE[:20] + b"\xff\xe2\0\x12ICC_PROFILE\0\5\1ab" + PROGRESSIVE[20:],
        PROGRESSIVE,
    ),
}


@pytest.fixture(params=["extension", "without"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without":
        monkeypatch.setattr(jpeg, "_jpeg", None)


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("name", ODD)
def test_an_odd_header_changes_nothing(name: str) -> None:
    odd, plain = ODD[name]
    assert jpeg.defect(odd) == ""
    boxes = [(0, 0, HEIGHT, WIDTH), (37, 50, 101, 77)]
    for how in get_args(Decode):
        for box in boxes:
            expected = decode_box(plain, box, 32, how).copy()
            assert (decode_box(odd, box, 32, how) == expected).all()
    assert (eval_image(odd, 32) == eval_image(plain, 32)).all()
    assert (image_files.prepared(odd, 32, "square") == eval_image(plain, 32)).all()
    taken = prepare.prepare(odd, ImageOptions())
    assert (taken.width, taken.height) == (WIDTH, HEIGHT)
    assert taken.recoded in ("", "rubbish")
    small = prepare.prepare(odd, ImageOptions(resize=64))
    assert min(small.width, small.height) == 64


@pytest.mark.usefixtures("decoder")
@pytest.mark.parametrize("name", ODD)
def test_damage_is_found_behind_an_odd_header(name: str) -> None:
    odd = ODD[name][0]
    cut = odd[: (odd.rindex(b"\xff\xda") + len(odd)) // 2] + b"\xff\xd9"
    for data in (cut, odd[:-400] + odd[-2:] if len(odd) > 3000 else cut):
        assert jpeg.is_cut(jpeg.defect(data)), name
        with pytest.raises(RejectedError) as raised:
            prepare.prepare(data, ImageOptions())
        assert raised.value.reason == "truncated"
        with pytest.raises(ValueError, match="cut short"):
            image_files.prepared(data, 32, "square")


def test_the_header_is_rewritten_and_the_image_data_are_not() -> None:
    for odd, _ in ODD.values():
        written = without_oddities(odd)
        assert odd.endswith(written[written.rindex(b"\xff\xda") + 14 :])
        assert without_oddities(written) == written
        for end in range(0, min(len(odd), 700), 3):  # bytes that end anywhere
            without_oddities(odd[:end])


def test_no_decoder_reads_what_verify_finds_unreadable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Foreign tars hold whatever there is: here CMYK, unusual sampling, cut headers, and odd headers that are right."""
    samples = {
        "cmyk": encoded("CMYK"),
        "sampling": patched(PLAIN, PLAIN.index(b"\xff\xc0") + 11, b"\x31"),
        "lossless": patched(PLAIN, PLAIN.index(b"\xff\xc0") + 1, b"\xc3"),
        "twelve": patched(PLAIN, PLAIN.index(b"\xff\xc0") + 4, b"\x0c"),
        "huge": patched(PLAIN, PLAIN.index(b"\xff\xc0") + 5, b"\xff\xdc\xff\xdc"),
        "header": PLAIN[: scan_parameters(PLAIN)],
        "text": b"<html>404</html>",
        "empty": b"",
        **{name: odd for name, (odd, _) in ODD.items()},
    }
    with tarfile.open(tmp_path / "val-000.tar", "w") as tar:
        for number, data in enumerate(samples.values()):
            for ending, content in (("jpg", data), ("cls", b"%d" % (number % 2))):
                member = tarfile.TarInfo(f"{number:03d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    assert index.main([str(tmp_path)]) == 0
    capsys.readouterr()
    assert verify.main([str(tmp_path), "--workers", "1"]) == 1
    said = capsys.readouterr().out
    found = {name for number, name in enumerate(samples) if f"{number:03d}: it can't be decoded" in said}
    opened = joined_split.open_split(str(tmp_path), "val")
    refused = set()
    for row, key in enumerate(opened.sample_keys()):
        try:
            eval_image(opened.read(row), 32)
        except ValueError:
            refused.add(list(samples)[int(key)])
    assert refused <= found
    assert found == set(samples) - set(ODD)
    for name in refused:
        for how in get_args(Decode):
            with pytest.raises(ValueError):  # noqa: PT011  (libjpeg-turbo's own words)
                TrainTransform(8, decode=how)(samples[name], 0, np.empty((8, 8, 3), np.uint8))


def test_the_fast_decoder_steps_aside_for_untested_versions_of_libjpeg_turbo(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Extension:
        def library(self) -> str:
            return str(tmp_path / "libjpeg.so.62")

    for text, version, tested in (
        (b"\0libjpeg-turbo version 2.1.5 (build 20230203)\0", (2, 1), True),
        (b"\0libjpeg-turbo version 3.2.0 (build 20261016)\0", (3, 2), True),
        (b"\0libjpeg-turbo version 3.3.0 (build 20270101)\0", (3, 3), False),
        (b"\0libjpeg-turbo version 1.4.2\0", (1, 4), False),
        (b"6b  27-Mar-1998", (), False),
    ):
        (tmp_path / "libjpeg.so.62").write_bytes(text)
        assert jpeg.library_version(tmp_path / "libjpeg.so.62") == version
        caplog.clear()
        assert jpeg._is_tested(Extension()) == tested
        assert ("tested with 1.5 to 3.2" in caplog.text) != tested
    assert jpeg.library_version(tmp_path / "gone") == ()
