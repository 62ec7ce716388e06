"""The tar reader against Python's tarfile, on tars that tarfile writes in every format, and on damaged ones.

Each tar is read with and without the C extension, which must come to the same.
"""

import gc
import io
import os
import sys
import tarfile
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.sources import tar_headers
from data_prep.sources.tar_headers import BLOCK, DamagedTarError, Member, scan
from data_prep.writing import tar_writer

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=180).filter(
    lambda name: not name.endswith("/")
)
ENTRIES = st.lists(
    st.tuples(NAMES, st.binary(max_size=1500), st.sampled_from(["file", "directory", "symlink", "fifo"])), max_size=8
)
KINDS = {"file": tarfile.REGTYPE, "directory": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE, "fifo": tarfile.FIFOTYPE}


def written(entries: list[tuple[str, bytes, str]], form: int) -> bytes:
    """A tar of the entries that the format can hold."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content, kind in entries:
            member = tarfile.TarInfo(name)
            member.type = KINDS[kind]
            member.size = len(content) if kind == "file" else 0
            try:
                tar.addfile(member, io.BytesIO(content))
            except ValueError:  # USTAR: name too long
                assert form == tarfile.USTAR_FORMAT
    return buffer.getvalue()


def outcome(data: bytes, start: int, end: int | None, fd: int | None = None) -> tuple[list[Member], str]:
    """All that scan finds, reading as os.pread does, and what it says of damage."""
    found: list[Member] = []
    try:
        found.extend(scan(lambda offset, size: data[offset : offset + size], start, end, fd))
    except DamagedTarError as error:
        return found, str(error)
    return found, ""


def members(data: bytes, start: int = 0, end: int | None = -1) -> list[Member]:
    """All that scan finds, which is the same with and without the extension, from bytes and from a file."""
    stop = len(data) if end == -1 else end
    assert tar_headers.HAS_FAST_HEADERS
    fd = os.memfd_create("tar")
    try:
        os.pwrite(fd, data, 0)
        from_file, damage_of_file = outcome(data, start, stop, fd)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tar_headers, "_fast", None)
            found, damage = outcome(data, start, stop)
            assert outcome(data, start, stop, fd) == (found, damage)
    finally:
        os.close(fd)
    assert outcome(data, start, stop) == (found, damage)
    assert ([member._replace(head=b"") for member in from_file], damage_of_file) == (found, damage)
    for member in from_file:
        assert not member.head or member.head == data[member.offset : member.offset + member.size]
    if damage:
        raise DamagedTarError(damage)
    return found


@settings(max_examples=300)
@given(entries=ENTRIES, form=st.sampled_from(FORMATS))
def test_it_finds_what_tarfile_finds(entries: list[tuple[str, bytes, str]], form: int) -> None:
    data = written(entries, form)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(member.name, member.offset_data, member.size, member.isfile()) for member in tar]
    found = members(data)
    # tarfile drops the slashes at the end of a directory's name
    names = [member.name.rstrip("/") if member.kind == "directory" else member.name for member in found]
    assert [
        (name, member.offset, member.size, member.kind == "file") for name, member in zip(names, found, strict=True)
    ] == [(name.rstrip("/") if not is_file else name, *rest, is_file) for name, *rest, is_file in expected]
    assert members(data, end=None) == found  # as a stream of unknown length


@settings(max_examples=300)
@given(entries=ENTRIES, form=st.sampled_from(FORMATS), data=st.data())
def test_damage_is_said_or_harmless(entries: list[tuple[str, bytes, str]], form: int, data: st.DataObject) -> None:
    good = written(entries, form)
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 5))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(bad[: data.draw(st.integers(0, len(bad)))])
    try:
        found = members(cut)
    except DamagedTarError as error:
        assert "byte" in str(error)  # noqa: PT017
    else:
        for member in found:
            assert 0 <= member.offset <= member.offset + member.size <= len(cut)


@given(noise=st.binary(max_size=3000))
def test_noise_is_no_tar(noise: bytes) -> None:
    if len(noise) >= 512 and any(noise[:512]):
        with pytest.raises(DamagedTarError):
            members(noise)


@given(
    samples=st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\0/", exclude_categories=("Cs",)), min_size=1, max_size=150),
            st.integers(0, 3000),
        ),
        max_size=6,
    )
)
def test_headers_of_our_own_are_tars(samples: list[tuple[str, int]]) -> None:
    data = b"".join(
        tar_writer.header(name, size) + bytes(b"x" * size).ljust(-(-size // 512) * 512, b"\0") for name, size in samples
    ) + bytes(1024)
    assert [(member.name, member.size, member.kind) for member in members(data)] == [
        (name, size, "file") for name, size in samples
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            assert [(member.name, member.size) for member in tar] == samples


def test_sizes_beyond_eight_gigabytes() -> None:
    """Octal digits end at 8 GiB: GNU writes base 256, PAX a record. fall11_whole.tar has no such member, yours may."""
    size = 9 << 30
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("n01440764.tar")
        info.size = size
        head = info.tobuf(form)
        found = next(scan(lambda offset, count, head=head: head[offset : offset + count], 0, len(head) + size))
        assert (found.name, found.size, found.offset) == ("n01440764.tar", size, len(head))
    head = tar_writer.header("n01440764.tar", size)
    found = next(scan(lambda offset, count: head[offset : offset + count], 0, len(head) + size))
    assert (found.size, found.offset) == (size, len(head))


USUAL = {
    "name": b"1.jpg",
    "mode": b"0000644\x000000000\x000000000\0",
    "size": b"00000000017\0",
    "mtime": b"00000000000\0",
    "checksum": b"%06o\0 ",
    "type": b"0",
    "link": b"",
    "magic": b"ustar\x0000",
    "owner": b"",
    "prefix": b"",
    "rest": b"",
}
LENGTHS = {"name": 100, "mode": 24, "size": 12, "mtime": 12, "checksum": 8, "type": 1, "link": 100, "magic": 8}
LENGTHS |= {"owner": 80, "prefix": 155, "rest": 12}
HIGH = b"\xff" * 100  # three of them make a checksum above 65,521; as signed bytes they make another
ODD = {  # field -> what else stands there
    "name": [b"../1.jpg", b"/etc/1.cls", b"folder/", b"a\0b", b"caf\xe9", b"", b"x" * 100, HIGH],
    "mode": [HIGH, b"y" * 24],
    "size": [
        b"%011o\x00" % 1025,
        b"%011o " % 1025,
        b"%012o" % 1025,
        b"%o" % 1025,
        b" %7o " % 1025,
        b"\x80",
        b"\xff",
        b"8",
        b"",
        b"00000000018",
        b"0000000001/",
        b"77777777777",
        b"777777777777",
        b"0000000001_0",
        b"+0000000010",
        b"-0000000010",
        b"00000000010x",
        b"00000000010/",
        b"\x80" + bytes(9) + b"\x04\x01",
        b"\xff" * 11 + b"\x00",
    ],
    "checksum": [
        b"%06o \x00",
        b"%06o",
        b"%06o  ",
        b"%07o\x00",
        b"%08o",
        b" %5o\x00",
        b"%5o",
        b"%06o\x00x",
        b"%06o7",
        b"%06ox ",
        b"%06o 1",
        b"%06d\x00 ",
        b"",
        b"_%05o\x00 ",
    ],
    "type": [bytes([byte]) for byte in b"\x00123567SLKxg?"],
    "link": [HIGH],
    "magic": [b"ustar  \0", b"", b"ustar\x00 0"],
    "owner": [HIGH],
    "prefix": [b"folder", b"\0folder", HIGH],
}


def a_header(odd: dict[str, bytes], signed: bool) -> bytes:
    """A header with some fields unlike the usual ones, and the checksum of its bytes, taken as signed or not."""
    fields = {**USUAL, **odd}
    form, fields["checksum"] = fields["checksum"], b" " * 8
    header = b"".join(text[: LENGTHS[field]].ljust(LENGTHS[field], b"\0") for field, text in fields.items())
    total = sum(header) - (256 * sum(byte > 127 for byte in header) if signed else 0)
    checksum = form % abs(total) if form else b""
    return header[:148] + checksum[:8].ljust(8, b"\0") + header[156:]


@pytest.mark.parametrize(("field", "text"), [(field, text) for field, texts in ODD.items() for text in texts])
def test_one_odd_field_is_read_alike(field: str, text: bytes) -> None:
    payload, usual = b"12 path=me\n\0".ljust(3 * BLOCK, b"\0"), a_header({}, signed=False) + bytes(BLOCK)
    for high in ((), ("mode", "link"), ("name", "link", "owner"), ("link", "owner", "prefix")):
        for signed in (False, True):
            odd = a_header({**dict.fromkeys(high, HIGH), field: text}, signed)
            with suppress(DamagedTarError):
                members(usual + odd + payload + usual)


FIELDS = st.lists(st.sampled_from(sorted(ODD)), max_size=4, unique=True)
HEADERS = st.builds(
    a_header,
    FIELDS.flatmap(lambda fields: st.fixed_dictionaries({field: st.sampled_from(ODD[field]) for field in fields})),
    st.booleans(),
)


@settings(max_examples=500)
@given(
    pieces=st.lists(st.tuples(HEADERS, st.integers(0, 5)), max_size=6),
    start=st.sampled_from([0] * 8 + [512, 513]),
    cut=st.sampled_from([0] * 8 + [1, 511, 512, 600]),
    end=st.sampled_from([-1] * 8 + [None, 1000, 2048, 1 << 70]),
    data=st.data(),
)
def test_headers_of_every_form_are_read_alike(
    pieces: list[tuple[bytes, int]], start: int, cut: int, end: int | None, data: st.DataObject
) -> None:
    tar = bytearray(b"".join(header + b"12 path=me\n\0".ljust(BLOCK * blocks, b"\0") for header, blocks in pieces))
    for _ in range(data.draw(st.integers(0, 2)) if tar else 0):
        tar[data.draw(st.integers(0, len(tar) - 1))] = data.draw(st.integers(0, 255))
    with suppress(DamagedTarError):
        members(bytes(tar[: max(0, len(tar) - cut)]), start, end)


PLACES = st.integers(0, 5000) | st.integers(0, (1 << 63) - 1)
ENDS = st.integers(0, 20_000) | st.integers(-(1 << 63), (1 << 63) - 1)


@settings(max_examples=300)
@given(window=st.binary(max_size=1200) | st.lists(HEADERS, max_size=4).map(b"".join), position=PLACES, end=ENDS)
def test_the_extension_finds_nothing_outside(window: bytes, position: int, end: int) -> None:
    assert tar_headers._fast is not None
    found, after = tar_headers._fast.plain_members(Member, window, position, end)
    assert len(found) <= len(window) // BLOCK
    for member in found:
        assert type(member) is Member
        assert position < member.offset <= position + len(window)
        assert member.offset + member.size <= end
        at = member.offset - position
        assert member.head == (window[at : at + member.size] if member.size <= min(256, len(window) - at) else b"")
    assert after == (found[-1].offset + -(-found[-1].size // BLOCK) * BLOCK if found else position)


def test_small_payloads_come_along_and_damage_behind_the_members() -> None:
    """More members than the extension reads at a time, in windows that end anywhere in a member."""
    texts = [(b"%d " % number * 150)[: number % 300] for number in range(1000)]
    tar = b"".join(
        a_header({"size": b"%011o\0" % len(text)}, signed=False) + text.ljust(-(-len(text) // BLOCK) * BLOCK, b"\0")
        for text in texts
    )
    assert [member.size for member in members(tar + bytes(1024))] == [len(text) for text in texts]
    damaged = tar + b"x" * BLOCK
    fd = os.memfd_create("tar")
    try:
        os.pwrite(fd, damaged, 0)
        found, damage = outcome(damaged, 0, len(damaged), fd)
    finally:
        os.close(fd)
    assert damage == f"no valid tar header at byte {len(tar)}"
    for member, text in zip(found, texts, strict=True):
        assert member.head in ((text, b"") if len(text) <= 256 else (b"",))
    assert sum(member.head != b"" for member in found) > 500


def test_a_file_that_cannot_be_read_is_left_to_read(tmp_path: Path) -> None:
    tar = a_header({}, signed=False) + bytes(BLOCK)
    fd = os.open(tmp_path, os.O_RDONLY)  # a folder
    try:
        assert [member.name for member in outcome(tar, 0, len(tar), fd)[0]] == ["1.jpg"]
    finally:
        os.close(fd)


def test_the_extension_refuses_what_is_no_tuple_and_keeps_no_memory() -> None:
    assert tar_headers._fast is not None
    for kind in (dict, int, "tuple"):
        with pytest.raises(TypeError):
            tar_headers._fast.plain_members(kind, b"", 0, 0)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            tar_headers._fast.plain_members_of_file(kind, 0, 0, 0)  # type: ignore[arg-type]
    for call in (tar_headers._fast.plain_members, tar_headers._fast.plain_members_of_file):
        with pytest.raises(ValueError, match="position must not be negative"):
            call(Member, b"" if call is tar_headers._fast.plain_members else 0, -1, 1)  # type: ignore[operator]
    window = (a_header({"name": b"n01440764_" + "ä".encode() * 40}, signed=False) + bytes(BLOCK)) * 4
    assert len(tar_headers._fast.plain_members(Member, window, 0, 1 << 40)[0]) == 4
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(10_000):
        tar_headers._fast.plain_members(Member, window, 0, 1 << 40)
    assert sys.getallocatedblocks() - before < 1000
