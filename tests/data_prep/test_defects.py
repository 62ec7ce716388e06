"""Every defect that raw releases have, and worse ones: the right outcome for each, and nothing outside OUTPUT."""

import gzip
import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import simplejpeg
from PIL import Image

from data_prep import report, shard, verify
from data_prep.images import perceptual_hash, prepare
from data_prep.writing import tar_writer
from pipeline.core import cli
from pipeline.dataset import format as dataset_format
from pipeline.imaging import jpeg
from tests.data_prep.releases import WNIDS, add, class_tar, recoded, unpack

WNID = WNIDS[0]


def ycck(jpeg: bytes) -> bytes:
    """The same image as Adobe's YCCK JPEG: inverted CMYK, with the colours converted to luma and chroma."""
    cmyk_HWC = 255 - np.asarray(Image.open(io.BytesIO(jpeg)).convert("CMYK"))
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(cmyk_HWC), 95, "CMYK", "420")
    assert encoded[encoded.index(b"Adobe\0d") + 11] == 2  # transform 2: YCCK
    return encoded


def turned(jpeg: bytes, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def with_frame(jpeg: bytes, height: int, width: int) -> bytes:
    """The JPEG with another size in its frame header."""
    at = jpeg.index(b"\xff\xc0")
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def png_bomb() -> bytes:
    """A PNG of a kilobyte that claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def unusual_sampling() -> bytes:
    """A valid grey image of 24 x 8 pixels with luma three times as wide as chroma, which TurboJPEG doesn't support."""

    def segment(marker: int, payload: bytes) -> bytes:
        return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2) + payload

    one_code = bytes([1]) + bytes(15) + b"\0"  # "0" stands for no difference, or the end of the block
    frame = b"\x08\0\x08\0\x18\x03" + b"\x01\x31\0" + b"\x02\x11\0" + b"\x03\x11\0"
    return b"".join(
        (
            b"\xff\xd8",
            segment(0xDB, bytes([0, *[1] * 64])),
            segment(0xC0, frame),
            segment(0xC4, b"\x00" + one_code + b"\x10" + one_code),
            segment(0xDA, b"\x03" + b"\x01\0" + b"\x02\0" + b"\x03\0" + b"\0\x3f\0"),
            b"\x00\x3f\xff\xd9",  # five blocks of two bits
        )
    )


def lossless(pixels_HWC: npt.NDArray[np.uint8]) -> bytes:
    """A lossless JPEG (ITU-T T.81, annex H): each sample predicted by its left neighbour, categories of four bits."""

    def segment(marker: int, payload: bytes) -> bytes:
        return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2) + payload

    height, width, components = pixels_HWC.shape
    samples_HWC = pixels_HWC.astype(int)
    before_HWC = np.roll(samples_HWC, 1, axis=1)
    before_HWC[1:, 0] = samples_HWC[:-1, 0]
    before_HWC[0, 0] = 128
    bits = ""
    for difference in (samples_HWC - before_HWC).ravel().tolist():
        length = abs(difference).bit_length()
        low = difference if difference > 0 else difference + (1 << length) - 1
        bits += f"{length:04b}" + (f"{low:0{length}b}" if length else "")
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")
    frame = b"".join(bytes([number, 0x11, 0]) for number in range(components))
    scan = b"".join(bytes([number, 0]) for number in range(components))
    return b"".join(
        (
            b"\xff\xd8",
            segment(0xEE, b"Adobe\0d\0\0\0\0\0"),  # RGB
            segment(0xC3, b"\x08" + struct.pack(">HHB", height, width, components) + frame),
            segment(0xC4, b"\0" + bytes([0, 0, 0, 9]) + bytes(12) + bytes(range(9))),
            segment(0xDA, bytes([components]) + scan + b"\1\0\0"),
            data,
            b"\xff\xd9",
        )
    )


def with_bits(jpeg: bytes, bits: int) -> bytes:
    """The JPEG with another precision in its frame header."""
    at = jpeg.index(b"\xff\xc0")
    return jpeg[:at] + b"\xff\xc1" + jpeg[at + 2 : at + 4] + bytes([bits]) + jpeg[at + 5 :]


def defects(photos: list[bytes]) -> dict[str, tuple[bytes, str]]:
    """Stem -> bytes and what becomes of them: "" (as they are), "recoded: WHY", or the reason of the reject."""
    one = photos[0]
    middle = len(one) // 2
    return {
        "good": (one, ""),
        "turned": (turned(photos[1], 6), ""),
        "grey": (recoded(photos[2], "JPEG", "L"), ""),
        "after_the_end": (photos[3] + b"trailing bytes", ""),
        "gzipped": (gzip.compress(photos[4]), "recoded: gzip"),
        "png": (recoded(photos[5], "PNG"), "recoded: png"),
        "png_alpha": (recoded(photos[5], "PNG", "RGBA"), "recoded: png"),
        "png_16": (recoded(photos[6], "PNG", "I;16"), "recoded: png"),
        "gif": (recoded(photos[7], "GIF"), "recoded: gif"),
        "bmp": (recoded(photos[8], "BMP"), "recoded: bmp"),
        "webp": (recoded(photos[9], "WEBP"), "recoded: webp"),
        "cmyk": (recoded(photos[10], "JPEG", "CMYK"), "recoded: cmyk"),
        "ycck": (ycck(photos[10]), "recoded: cmyk"),
        "gzip_of_two_members": (gzip.compress(one[:999]) + gzip.compress(one[999:]) + b"rest", "recoded: gzip"),
        "gzipped_png": (gzip.compress(recoded(photos[11], "PNG")), "recoded: gzip+png"),
        "empty": (b"", "empty"),
        "text": (b"<html>404</html>", "not_an_image"),
        "cut": (one[:middle], "truncated"),
        "cut_in_header": (one[:30], "truncated"),
        "cut_but_ended": (one[:middle] + b"\xff\xd9", "truncated"),
        "cut_gzip": (gzip.compress(one)[:-200], "truncated"),
        "bad_gzip": (b"\x1f\x8b\x08" + bytes(100), "undecodable"),
        "cut_png": (recoded(photos[5], "PNG")[:600], "truncated"),
        "lossless": (lossless(simplejpeg.decode_jpeg(photos[13])), "recoded: lossless"),
        "lossless_grey": (lossless(simplejpeg.decode_jpeg(photos[14], "GRAY")), "recoded: lossless"),
        "twelve_bits": (with_bits(one, 12), "undecodable"),
        "two_starts": (b"\xff\xd8" + one, "undecodable"),
        "unusual_sampling": (unusual_sampling(), "recoded: sampling"),
        "no_scan": (one[: one.index(b"\xff\xda")] + b"\xff\xd9", "undecodable"),
        "jpeg_bomb": (with_frame(one, 65_000, 65_000), "too_large"),
        "no_pixels": (with_frame(one, 0, 100), "undecodable"),
        "png_bomb": (png_bomb(), "too_large"),
        "small": (
            simplejpeg.encode_jpeg(np.ascontiguousarray(simplejpeg.decode_jpeg(photos[12])[:7]), 90),
            "too_small",
        ),
    }


@pytest.fixture(scope="module")
def defective(photos: list[bytes]) -> dict[str, tuple[bytes, str]]:
    return defects(photos)


def run(source: Path, output: Path, *more: object) -> dict[str, dict[str, object]]:
    """Shard, check with data_prep.verify, and give the index rows by key."""
    arguments = [source, output, "--failure-budget", "100%", "--workers", 1, *more]
    assert shard.main([str(argument) for argument in arguments]) == 0
    assert verify.main([str(output), "--workers", "1"]) == 0
    return {row["key"]: row for row in dataset_format.read_index(output).to_pylist()}


def rejects(output: Path) -> dict[str, str]:
    return {row["source"]: row["reason"] for row in dataset_format.read_rejects(output).to_pylist()}


def stored(output: Path, row: dict[str, object]) -> bytes:
    with (output / f"{row['split']}-{row['shard']:05d}.tar").open("rb") as file:
        file.seek(int(str(row["offset"])))
        return file.read(int(str(row["size"])))


def test_every_defect_of_images(defective: dict[str, tuple[bytes, str]], tmp_path: Path) -> None:
    source = tmp_path / "whole.tar"
    with tarfile.open(source, "w") as tar:
        add(tar, f"{WNID}.tar", class_tar({f"{stem}.JPEG": data for stem, (data, _) in defective.items()}))
    rows = run(source, tmp_path / "out", "--min-side", 8)
    found = {}
    for key, row in rows.items():
        data = stored(tmp_path / "out", row)
        found[key.removeprefix(f"{WNID}/")] = f"recoded: {row['recoded']}" if row["recoded"] else ""
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert image.format == "JPEG"
            assert image.mode in ("RGB", "L")
            assert image.size == (row["width"], row["height"])
        if not row["recoded"]:
            assert data == defective[key.removeprefix(f"{WNID}/")][0]
    for name, reason in rejects(tmp_path / "out").items():
        found[name.removeprefix(f"{WNID}/").removesuffix(".JPEG")] = reason
    assert found == {stem: outcome for stem, (_, outcome) in defective.items()}
    assert rows[f"{WNID}/turned"]["orientation"] == 6
    thumbnails = dataset_format.read_rejects(tmp_path / "out", ["reason", "thumbnail"]).to_pylist()
    assert any(row["reason"] == "truncated" and row["thumbnail"] for row in thumbnails)


@pytest.mark.parametrize(
    ("change", "most"),  # mean difference to the original, of 255; GIF has 256 colours
    [
        (gzip.compress, 1e-9),
        (lambda jpeg: recoded(jpeg, "PNG"), 3),
        (lambda jpeg: recoded(jpeg, "PNG", "RGBA"), 3),
        (lambda jpeg: recoded(jpeg, "BMP"), 3),
        (lambda jpeg: recoded(jpeg, "WEBP"), 6),
        (lambda jpeg: recoded(jpeg, "GIF"), 12),
        (lambda jpeg: recoded(jpeg, "JPEG", "CMYK"), 6),
        (ycck, 3),
        (lambda jpeg: lossless(simplejpeg.decode_jpeg(jpeg)), 3),
    ],
)
def test_a_picture_that_is_encoded_anew_looks_as_before(
    change: Callable[[bytes], bytes], most: float, photos: list[bytes]
) -> None:
    for photo in photos[:8]:
        before = simplejpeg.decode_jpeg(photo).astype(int)
        after = simplejpeg.decode_jpeg(prepare.prepare(change(photo), prepare.ImageOptions()).data).astype(int)
        assert np.abs(after - before).mean() < most


def test_header_verification_trusts_the_data_between_header_and_end(
    defective: dict[str, tuple[bytes, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "in" / WNID
    folder.mkdir(parents=True)
    for stem, (data, _) in defective.items():
        (folder / f"{stem}.JPEG").write_bytes(data)
    run(tmp_path / "in", tmp_path / "decoded", "--min-side", 8)
    arguments = [tmp_path / "in", tmp_path / "read", "--min-side", 8, "--verify", "header", "--failure-budget", "100%"]
    assert shard.main([str(argument) for argument in arguments]) == 0
    kept = set(dataset_format.read_index(tmp_path / "read")["key"].to_pylist())
    strict = set(dataset_format.read_index(tmp_path / "decoded")["key"].to_pylist())
    assert kept - strict == {f"{WNID}/cut_but_ended"}
    assert strict <= kept


@pytest.mark.parametrize("colour", ["RGB", "GRAY"])
def test_nobody_scales_a_lossless_jpeg(colour: str, photos: list[bytes]) -> None:
    """simplejpeg would write it, unscaled, behind the end of a smaller buffer."""
    data = lossless(simplejpeg.decode_jpeg(photos[13], colour))
    assert jpeg.is_lossless(data)
    assert not any(jpeg.is_lossless(photo) for photo in photos)
    assert prepare.remains(data) is None
    for scales in (perceptual_hash.thumbnail, report.thumbnail, lambda data: jpeg.decode_small(data, colour)):
        with pytest.raises(ValueError, match="lossless"):
            scales(data)


@pytest.mark.parametrize("options", [{}, {"verify": "header"}])
def test_of_several_exif_segments_the_first_one_counts(options: dict[str, str], photos: list[bytes]) -> None:
    """The others are what a camera goes on with where one of 64 KB was too small."""
    data = turned(photos[1], 6)
    more = b"Exif\0\0" + bytes(50)
    data = (
        data[: data.index(b"\xff\xdb")]
        + b"\xff\xe1"
        + struct.pack(">H", len(more) + 2)
        + more
        + data[data.index(b"\xff\xdb") :]
    )
    assert prepare.prepare(data, prepare.ImageOptions(**options)).orientation == 6  # type: ignore[arg-type]


def odd_tar(path: Path, photos: list[bytes]) -> None:
    """A class's tar with members of every kind."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, f"{WNID}_plain.JPEG", photos[0])
        add(tar, "../evil.JPEG", photos[1])
        add(tar, "sub/../../evil.JPEG", photos[1])
        add(tar, str(path.parent / "absolute.JPEG"), photos[1])
        add(tar, f"{WNID}_readme.txt", b"text")
        add(tar, f"._{WNID}_plain.JPEG", b"macOS")
        add(tar, "sub/deeper/picture.jpg", photos[2])
        add(tar, "twice.jpg", photos[3])
        add(tar, "twice.jpg", photos[4])  # the last one counts, as when unpacking
        add(tar, "both.jpg", photos[5])
        add(tar, "both.png", recoded(photos[6], "PNG"))
        add(tar, f"{'gnu long ' * 20}.jpg", photos[7])
        for kind, name in (
            (tarfile.SYMTYPE, "link.jpg"),
            (tarfile.LNKTYPE, "hard.jpg"),
            (tarfile.CHRTYPE, "char.jpg"),
            (tarfile.BLKTYPE, "block.jpg"),
            (tarfile.FIFOTYPE, "fifo.jpg"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "../../../etc/passwd"
            tar.addfile(member)
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as tar:
        for number, name in enumerate(ODD_NAMES):
            add(tar, name, photos[8 + number])


ODD_NAMES = {
    "a b.jpg": "a b",
    "größe.jpg": "größe",
    "日本.jpg": "日本",
    "dots.in.name.jpg": "dots%2Ein%2Ename",
    "new\nline.jpg": "new%0Aline",
    "per%cent.jpg": "per%25cent",
    "back\\slash.jpg": "back%5Cslash",
    "no\udcffutf8.jpg": "no%25FFutf8",  # as it is printed everywhere, %FF, whose % the key escapes
    "quote'\".JPEG": "quote'\"",
    "$(touch owned);`id`.jpg": "$(touch owned);`id`",
    "-rf.jpg": "-rf",
    f"{'pax long ' * 25}.jpg": "pax long " * 25,
}


def test_every_kind_of_tar_member(photos: list[bytes], tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    odd_tar(source / f"{WNID}.tar", photos)
    before = everything(tmp_path)
    rows = run(source, tmp_path / "out")
    escaped = {f"{WNID}/{key}" for key in ODD_NAMES.values()}
    usual = {"sub/deeper/picture", "twice", "both", "both%2Epng", "gnu long " * 20}
    assert set(rows) == {f"{WNID}_plain"} | {f"{WNID}/{name}" for name in usual} | escaped
    assert stored(tmp_path / "out", rows[f"{WNID}/twice"]) == photos[4]
    found = rejects(tmp_path / "out")
    kinds = {f"{WNID}.tar/{kind}.jpg": "not_a_file" for kind in ("link", "hard", "char", "block", "fifo")}
    unsafe = ("../evil.JPEG", "sub/../../evil.JPEG", str(source / "absolute.JPEG"))
    assert found == {
        **kinds,
        **{f"{WNID}.tar/{name}": "unsafe_path" for name in unsafe},
        f"{WNID}.tar/{WNID}_readme.txt": "other_file",
        f"{WNID}.tar/._{WNID}_plain.JPEG": "system_file",
        f"{WNID}/twice.jpg": "duplicate_name",
    }
    outside = {path for path in everything(tmp_path) - before if not path.startswith("out/") and path != "out"}
    assert not outside
    with tarfile.open(next((tmp_path / "out").glob("*.tar"))) as tar:  # unpacking it stays inside, too
        unpack(tar, tmp_path / "unpacked")
        assert all(member.isfile() for member in tar.getmembers())


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_file_larger_than_any_image_is_not_read(photos: list[bytes], tmp_path: Path) -> None:
    source = tmp_path / "whole.tar"
    with source.open("wb") as file:
        file.write(tar_writer.header(f"{WNID}/huge.JPEG", (256 << 20) + 512))
        file.seek((256 << 20) + 512, io.SEEK_CUR)
        file.write(
            tar_writer.header(f"{WNID}/good.JPEG", len(photos[0])) + photos[0].ljust(-(-len(photos[0]) // 512) * 512)
        )
        file.write(bytes(1024))
    assert set(run(source, tmp_path / "out")) == {f"{WNID}/good"}
    assert set(rejects(tmp_path / "out").values()) == {"too_large"}


def test_folders_with_links_pipes_and_hidden_files(photos: list[bytes], tmp_path: Path) -> None:
    folder = tmp_path / "in" / WNID
    (folder / "deeper").mkdir(parents=True)
    (folder / "real.jpg").write_bytes(photos[0])
    (folder / "deeper" / "other.jpg").write_bytes(photos[1])
    (folder / "link.jpg").symlink_to(folder / "real.jpg")
    (folder / "nowhere.jpg").symlink_to(tmp_path / "none.jpg")
    (folder / "loop").symlink_to(folder)
    (folder / ".DS_Store").write_bytes(b"x")
    os.mkfifo(folder / "pipe.jpg")
    (tmp_path / "in" / ".cache").mkdir()
    rows = run(tmp_path / "in", tmp_path / "out")
    assert set(rows) == {f"{WNID}/{name}" for name in ("real", "deeper/other", "link")}
    no_files = {f"{WNID}/{name}": "not_a_file" for name in ("nowhere.jpg", "loop", "pipe.jpg")}
    assert rejects(tmp_path / "out") == no_files | {f"{WNID}/.DS_Store": "system_file"}


@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.soak)])
def test_very_many_tiny_files(count: int, tmp_path: Path) -> None:
    jpeg = simplejpeg.encode_jpeg(np.zeros((1, 1, 3), np.uint8))
    padding = bytes(-len(jpeg) % 512)
    with (tmp_path / "whole.tar").open("wb") as file:
        for number in range(count):
            file.write(tar_writer.header(f"n{number % 500:08d}/{number}.JPEG", len(jpeg)) + jpeg + padding)
        file.write(bytes(1024))
    arguments = [tmp_path / "whole.tar", tmp_path / "out", "--verify", "header", "--workers", 2]
    assert shard.main([str(argument) for argument in arguments]) == 0
    index = dataset_format.read_index(tmp_path / "out", ["key", "label"])
    assert len(set(index["key"].to_pylist())) == count
    assert len(index["label"].unique()) == 500


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-3000],  # cut short
        lambda data: data[: len(data) // 2],
        lambda data: data[:1000] + b"\xff" * 5000 + data[6000:],  # overwritten
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_tar_is_one_line(
    damage,
    packed: bool,
    photos: list[bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],  # type: ignore[no-untyped-def]
) -> None:
    with tarfile.open(tmp_path / "good.tar", "w") as tar:
        for number, photo in enumerate(photos[:30]):
            add(tar, f"{WNID}/{number}.jpg", photo)
    data = (tmp_path / "good.tar").read_bytes().rstrip(b"\0")  # as a download that broke off leaves it
    data = gzip.compress(damage(data)) if packed else damage(data)
    (tmp_path / "bad.tar").write_bytes(data)
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: shard.main([str(tmp_path / "bad.tar"), str(tmp_path / "out")]))
    assert caught.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert "download it again" in lines[0]
    assert not (tmp_path / "out").exists()


def test_the_failure_budget_stops_a_rotten_input(
    photos: list[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in" / WNID
    folder.mkdir(parents=True)
    for number in range(60):
        (folder / f"{number}.jpg").write_bytes(photos[number] if number % 3 else photos[number][:100])
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: shard.main([str(tmp_path / "in"), str(tmp_path / "out"), "--failure-budget", "10%"]))
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "of 60 images are defective" in line
    assert "--failure-budget 10%" in line
    assert "truncated" in line
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--failure-budget", "50%", "--json"]
    assert shard.main(arguments) == 0  # goes on
    facts = json.loads(capsys.readouterr().out)
    assert facts["rejects"] == {"truncated": 20}
    assert facts["samples"] == {"train": 40}
    assert pa.types.is_integer(dataset_format.read_index(tmp_path / "out").schema.field("label").type)
