"""The rows that a scan of INPUT yields: one per image, or per reject with its reason."""

from typing import NamedTuple

OTHER_FILE = "other_file"  # a reject's reason: its name isn't an image's


class ImageRow(NamedTuple):
    """An image found in a source."""

    wnid: str
    name: str  # inside its class, "/" between parts
    file: str  # that holds the bytes
    offset: int
    size: int
    data: bytes = b""  # the bytes if the source is a stream, which can't be read again later
    tar: int = 0  # number of the tar or folder if another may have an image of the same class and name


class RejectRow(NamedTuple):
    """A file that can't become an image of the dataset (pipeline.dataset.format.REJECTS_SCHEMA)."""

    source: str
    wnid: str
    size: int
    reason: str
    detail: str
    thumbnail: bytes | None = None


Row = ImageRow | RejectRow
