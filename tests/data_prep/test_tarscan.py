"""The tar reader against Python's tarfile, on tars that tarfile writes in every format, and on damaged ones.

Each tar is read with and without the C extension, which must come to the same.
"""

import gc
import io
import sys
import tarfile
import warnings
from contextlib import suppress
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import tarscan, writer
from data_prep.tarscan import BLOCK, DamagedTarError, Member, scan

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


def outcome(data: bytes, start: int, end: int | None, window: int) -> tuple[list[Member], str]:
    """All that scan finds, reading as os.pread does, and what it says of damage."""
    found: list[Member] = []
    try:
        found.extend(scan(lambda offset, size: data[offset : offset + size], start, end, window))
    except DamagedTarError as error:
        return found, str(error)
    return found, ""


def members(data: bytes, start: int = 0, end: int | None = -1) -> list[Member]:
    """All that scan finds, which is the same with and without the extension, and however much is read at once."""
    stop = len(data) if end == -1 else end
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tarscan, "_tarscan", None)
        found, damage = outcome(data, start, stop, BLOCK)
    assert tarscan.HAS_FAST_HEADERS
    for window in (BLOCK, 1000, 4 * BLOCK, 1 << 20):
        assert outcome(data, start, stop, window) == (found, damage)
    if damage:
        raise DamagedTarError(damage)
    return found


@settings(max_examples=300, deadline=None)
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


@settings(max_examples=300, deadline=None)
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
        writer.header(name, size) + bytes(b"x" * size).ljust(-(-size // 512) * 512, b"\0") for name, size in samples
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
    head = writer.header("n01440764.tar", size)
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


@settings(max_examples=500, deadline=None)
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


@settings(max_examples=300, deadline=None)
@given(
    window=st.one_of(st.binary(max_size=1200), st.lists(HEADERS, max_size=4).map(b"".join)),
    position=st.one_of(st.integers(0, 5000), st.integers(-(1 << 63), (1 << 63) - 1)),
    end=st.one_of(st.integers(0, 20_000), st.integers(-(1 << 63), (1 << 63) - 1)),
)
def test_the_extension_finds_nothing_outside(window: bytes, position: int, end: int) -> None:
    assert tarscan._tarscan is not None
    found, after = tarscan._tarscan.plain_members(Member, window, position, end)
    assert len(found) <= len(window) // BLOCK
    if not found:
        assert after == position
    else:
        last = found[-1]
        assert after == last.offset + -(-last.size // BLOCK) * BLOCK
        assert last.offset + last.size <= end
        assert all(type(member) is Member and member.kind == "file" for member in found)
        assert all(position < member.offset <= position + len(window) for member in found)


def test_the_extension_refuses_what_is_no_tuple_and_keeps_no_memory() -> None:
    assert tarscan._tarscan is not None
    for kind in (dict, int, "tuple"):
        with pytest.raises(TypeError):
            tarscan._tarscan.plain_members(kind, b"", 0, 0)  # type: ignore[arg-type]
    window = (a_header({"name": b"n01440764_" + "ä".encode() * 40}, signed=False) + bytes(BLOCK)) * 4
    assert len(tarscan._tarscan.plain_members(Member, window, 0, 1 << 40)[0]) == 4
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(10_000):
        tarscan._tarscan.plain_members(Member, window, 0, 1 << 40)
    assert sys.getallocatedblocks() - before < 1000


def test_members_come_before_the_damage_behind_them() -> None:
    header = writer.header("1.cls", 3) + b"abc".ljust(BLOCK, b"\0")
    damaged = header * 2 + b"x" * BLOCK
    found = scan(lambda offset, size: damaged[offset : offset + size], 0, len(damaged), 1 << 20)
    assert [member.offset for member in islice(found, 2)] == [512, 1536]
    with pytest.raises(DamagedTarError, match="no valid tar header at byte 2048"):
        next(found)
