"""Read tar headers fast: names, offsets and sizes of the members, without reading their payloads.

``tarfile`` builds a rich object for each member, which is slow for 14 million of them. This reader does one positioned
read of 512 bytes per member and understands what is found in practice: V7, USTAR (with prefix), GNU long names and
base-256 sizes, PAX headers. Format: POSIX.1-2017, "pax Interchange Format" and "ustar Interchange Format"; GNU's
extensions as the GNU tar manual, "Basic Tar Format", describes them.

Plain headers are read by a C extension (_tar_headers.c), built if there is a compiler. Without it the same members are
found, more slowly.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple
from zlib import adler32

try:
    from data_prep.sources import _tar_headers as _fast
except ImportError:
    _fast = None  # type: ignore[assignment]

HAS_FAST_HEADERS = _fast is not None
BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)
FARTHEST = 1 << 62  # bytes: where a tar of unknown length has certainly ended
LARGEST_EXTENSION = 1 << 20  # bytes of a PAX header or GNU long name; a real one is far below 1 MiB

Read = Callable[[int, int], bytes]  # (offset, size) -> bytes, fewer only at the end


class DamagedTarError(ValueError):
    """The bytes are not a tar, or a truncated one. The message says at which byte."""


class Member(NamedTuple):
    """One entry of a tar. A tuple, because there are tens of millions of them."""

    name: str  # as stored; bytes that aren't UTF-8 are kept as surrogates
    offset: int  # of the payload's first byte
    size: int  # of the payload, bytes; 0 for what has none
    kind: str  # "file", "directory", or what else it is: "symlink", "hard link", "device", "fifo", "sparse file", ...
    head: bytes = b""  # the payload if it is small and was read along with the header; else empty


_KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",  # contiguous file: treated as a regular one
    b"1": "hard link",
    b"2": "symlink",
    b"3": "device",
    b"4": "device",
    b"5": "directory",
    b"6": "fifo",
    b"S": "sparse file",
}
_WITHOUT_PAYLOAD = frozenset({"hard link", "symlink", "device", "directory", "fifo"})


def scan(read: Read, start: int, end: int | None, fd: int | None = None, *, whole: bool = False) -> Iterator[Member]:
    """The members of the tar in bytes ``start`` to ``end`` (``None``: until it stops), in order, headers only.

    Tars behind its end marker are read as well: ``cat a.tar b.tar`` loses nothing. ``whole``: the bytes are those of a
    file or stream, which may have been cut short between two members; so there must be an end marker.

    ``read`` may be sequential: offsets only grow, and a payload read between two members comes in order too. ``fd`` is
    the file that ``read`` reads, if it is one: some headers are read from it directly, which is faster.
    Raises DamagedTarError for a bad checksum, or a header or payload that runs past the end.
    """
    position = start
    last = FARTHEST if end is None else min(end, FARTHEST)
    pax: dict[str, str] = {}  # of the next member
    pax_global: dict[str, str] = {}
    long_name: str | None = None
    plain = True  # whether none of the three has anything to say
    marked = not whole  # whether an end marker was seen since the last member
    while end is None or position < end:
        if plain and fd is not None and _fast is not None and position < last:
            found, position = _fast.plain_members_of_file(Member, fd, position, last)
            if found:
                yield from found
                continue
        header = read(position, BLOCK)
        if len(header) < BLOCK or (end is not None and position + BLOCK > end):
            if not header:
                break
            raise DamagedTarError(f"cut short inside the header at byte {position}")
        if plain and _fast is not None:
            found, position = _fast.plain_members(Member, header, position, last)
            if found:
                yield from found
                continue
        if not header[0] and header == ZERO_BLOCK:
            marked = True
            position += BLOCK
            continue
        if not _checksum_holds(header):
            raise DamagedTarError(f"no valid tar header at byte {position}")
        typeflag = header[156:157]
        size = _number(header[124:136], position)
        payload = position + BLOCK
        if typeflag in b"xgXLK":
            if size > LARGEST_EXTENSION:
                raise DamagedTarError(f"extended header of {size} bytes at byte {position}")
            extension = read(payload, size)
            if len(extension) < size or (end is not None and payload + size > end):
                raise DamagedTarError(f"cut short inside the extended header at byte {position}")
            if typeflag == b"L":
                long_name = _text(extension)
            elif typeflag == b"g":
                pax_global = {**pax_global, **_pax_records(extension, position)}
            elif typeflag != b"K":
                pax = _pax_records(extension, position)
            position = payload + _padded(size)
            plain = False
            continue
        name, kind = _name(header), _KINDS.get(typeflag) or f"entry of type {typeflag!r}"
        if pax or pax_global or long_name is not None:
            records = {**pax_global, **pax}
            name = records.get("GNU.sparse.name", records.get("path", name if long_name is None else long_name))
            size = _decimal(records["size"], position) if "size" in records else size
            kind = "sparse file" if any(field.startswith("GNU.sparse.") for field in records) else kind
            pax, long_name = {}, None
            plain = not pax_global
        if kind == "file":
            if typeflag == b"\0" and name.endswith("/"):
                kind, size = "directory", 0  # V7's way to write one
        elif kind in _WITHOUT_PAYLOAD:
            size = 0
        elif typeflag == b"S":  # GNU's old form: the map of its pieces may continue in further blocks
            more = header[482:483]
            while more != b"\0" and (block := read(payload, BLOCK)):
                payload += BLOCK
                more = block[504:505]
        position = payload + _padded(size)
        if end is not None and payload + size > end:
            raise DamagedTarError(f"cut short inside {name!r}: {payload + size - end} bytes are missing")
        yield Member(name, payload, size, kind)
    if not marked:
        raise DamagedTarError(
            f"it ends at byte {position} without an end marker, as if cut short (if it is complete, add one with "
            "`truncate -s +1024`)"
        )


def looks_like_tar(header: bytes) -> bool:
    """Whether a file that begins with ``header`` (512 bytes or more) may be a tar."""
    return len(header) >= BLOCK and (header[:BLOCK] == ZERO_BLOCK or _checksum_holds(header[:BLOCK]))


def _checksum_holds(header: bytes) -> bool:
    """The stored checksum is the sum of all bytes, its own eight taken as spaces."""
    field = header[148:156]
    try:
        stored = int(field.rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        try:
            stored = int(field.split(b"\0")[0].strip() or b"0", 8)
        except ValueError:
            return False
    # Adler-32's low half is 1 + the sum of the bytes, modulo 65521: the sum itself at C's speed. It can only be
    # wrong by a multiple of 65521, which one in 65521 damaged headers is.
    total = stored + sum(field) - 256
    if (adler32(header) & 0xFFFF) == (total + 1) % 65521:
        return True
    high = sum(byte > 127 for byte in header[:148]) + sum(byte > 127 for byte in header[156:])
    return stored == sum(header) - sum(field) + 256 - 256 * high  # some old tars summed signed characters


def _number(field: bytes, position: int) -> int:
    try:
        size = int(field[:11], 8)  # the usual form: eleven octal digits
    except ValueError:
        if field[0] & 0x80:  # GNU base-256
            if field[0] & 0x40:
                raise DamagedTarError(f"negative size in the header at byte {position}") from None
            return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        try:
            size = int(field.split(b"\0")[0].strip() or b"0", 8)
        except ValueError:
            raise DamagedTarError(f"unreadable size {field!r} in the header at byte {position}") from None
    else:
        if 0x30 <= field[11] <= 0x37:
            size = int(field, 8)  # twelve digits without a terminator
    if size < 0:
        raise DamagedTarError(f"negative size in the header at byte {position}")
    return size


def _decimal(text: str, position: int) -> int:
    if not (text.isascii() and text.isdigit()):
        raise DamagedTarError(f"unreadable PAX size {text!r} before byte {position}")
    return int(text)


def _name(header: bytes) -> str:
    name = _text(header[:100])
    if header[257:265] == b"ustar\x0000" and header[345]:
        return f"{_text(header[345:500])}/{name}"
    return name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _pax_records(extension: bytes, position: int) -> dict[str, str]:
    """Records ``"<length> <field>=<value>\\n"``; the length counts the whole record."""
    records: dict[str, str] = {}
    at = 0
    while at < len(extension) and extension[at]:
        space = extension.find(b" ", at, at + 20)
        digits = extension[at:space] if space > 0 else b""
        length = int(digits) if digits.isdigit() else 0
        record = extension[at : at + length]
        field, equals, value = record[space + 1 - at : -1].partition(b"=")
        if not equals or len(record) < length or record[-1:] != b"\n":
            raise DamagedTarError(f"unreadable PAX header before byte {position}")
        records[field.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        at += length
    return records
