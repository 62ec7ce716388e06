"""The tar reader against Python's tarfile, on tars that tarfile writes in every format, and on damaged ones."""

import io
import tarfile
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import writer
from data_prep.tarscan import DamagedTarError, Member, scan

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


def members(data: bytes, start: int = 0, end: int | None = -1) -> list[Member]:
    """All that scan finds, reading as os.pread does."""
    return list(scan(lambda offset, size: data[offset : offset + size], start, len(data) if end == -1 else end))


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
