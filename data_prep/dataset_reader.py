"""Read finished datasets shard by shard, for the commands that check, show and compare them."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.sources.rows import OTHER_FILE
from pipeline.core import retry
from pipeline.core.errors import UserError
from pipeline.core.files import check_local
from pipeline.dataset.format import DatasetInfo, ShardInfo, damage_of, open_parquet
from pipeline.imaging.file_names import counted_endings


@dataclass(frozen=True)
class Piece:
    """A shard and where its rows begin in index.parquet."""

    folder: Path
    info: ShardInfo
    first_row: int

    @property
    def tar(self) -> Path:
        return self.folder / self.info.file_name


def pieces(folder: Path, info: DatasetInfo) -> list[Piece]:
    """One piece per shard, in index order."""
    found, row = [], 0
    for shard in info.shards:
        found.append(Piece(folder, shard, row))
        row += shard.samples
    return found


def skipped_lines(reasons: "Counter[str]", others: Iterable[str], folder: Path) -> Iterator[str]:
    """The lines of a command's summary about the input files that were skipped, by reason.

    ``others``: names of those that are other files than images.
    """
    for reason, count in reasons.most_common():
        endings = counted_endings(others) if reason == OTHER_FILE else ""
        yield f"  skipped: {count:,} {reason}" + (f" ({endings})" if endings else "")
    if reasons:
        yield f"  all skipped files are listed in {folder / 'rejects.parquet'}"


def rows_of(piece: Piece, columns: list[str] | None = None) -> pa.Table:
    """The index rows of one shard, without reading those of the others."""
    with open_parquet(piece.folder / "index.parquet") as index:
        start, tables = 0, []
        first, last = piece.first_row, piece.first_row + piece.info.samples
        for group in range(index.num_row_groups):
            end = start + index.metadata.row_group(group).num_rows
            if start < last and first < end:
                table = _row_group(index, group, columns, piece.folder)
                tables.append(table.slice(max(first - start, 0), min(last, end) - max(first, start)))
            start = end
        names = columns or index.schema_arrow.names
        return pa.concat_tables(tables) if tables else index.schema_arrow.empty_table().select(names)


def batches(folder: Path, columns: list[str]) -> Iterator[pa.Table]:
    """Some columns of the index, one row group in memory at a time."""
    with open_parquet(folder / "index.parquet") as index:
        for group in range(index.num_row_groups):
            yield _row_group(index, group, columns, folder)


def _row_group(index: pq.ParquetFile, group: int, columns: list[str] | None, folder: Path) -> pa.Table:
    with damage_of(folder / "index.parquet"):
        return index.read_row_group(group, columns=columns)


def check_workers(count: int) -> None:
    """Raise UserError unless at least one worker process was asked for."""
    if count < 1:
        raise UserError(f"--workers {count} must be at least 1")


def check_out(path: Path) -> None:
    """Raise UserError if no file can be written to ``path``: better now than after hours of reading."""
    check_local(path, "--out")
    if path.is_dir():
        raise UserError(f"--out {str(path)!r} is a folder: give the name of a file in it")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f"--out {str(path)!r}: its folder does not exist; create it first")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"--out {str(path)!r}: its folder is not writable ({error.strerror}): give a file in another folder"
        ) from None


class OpenTar:
    """Positioned reads from one shard's tar. A context manager. Raises UserError if the tar is missing or truncated."""

    def __init__(self, piece: Piece) -> None:
        self._piece = piece
        self.folder = piece.folder

    def __enter__(self) -> "OpenTar":
        path, size = self._piece.tar, self._piece.info.bytes
        try:
            self.fd = retry.open_file(path)
        except FileNotFoundError:
            raise UserError(f"{str(path)!r} is missing: vit verify lists all that is missing") from None
        found = os.fstat(self.fd).st_size
        if found != size:
            os.close(self.fd)
            raise UserError(
                f"{str(path)!r} is damaged ({found} bytes, not {size}): vit verify lists all that is damaged"
            )
        return self

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes; fewer only at the end of the file."""
        return retry.pread(self.fd, size, offset, self._piece.tar)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)
