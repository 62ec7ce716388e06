"""The catalogue (list of a source's images) and the plan made from it, on disk: any number of rows in bounded memory.

Both are Arrow IPC files. The plan has one file per split, in which batch i is shard i, so a worker reads only its
shard's rows. Between catalogue and plan the rows are partitioned into buckets twice: by class (splits are drawn within
a class), then by hash (the global shuffle).
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ipc

from pipeline.core.files import appearing, naming, put_in_place, temporary

BATCH_ROWS = 65_536
_OPTIONS = ipc.IpcWriteOptions(compression="lz4")


class Writer:
    """Append tables to an Arrow IPC file, which appears only when it is completely on disk. A context manager."""

    def __init__(self, path: Path, schema: pa.Schema, batch_rows: int = BATCH_ROWS) -> None:
        self.rows = 0
        self._path, self._temporary, self._schema = path, temporary(path), schema
        self._batch_rows = batch_rows
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def __enter__(self) -> "Writer":
        self._file = self._temporary.open("wb")
        self._writer = ipc.new_file(self._file, self._schema, options=_OPTIONS)
        return self

    def add(self, table: pa.Table) -> None:
        """Append rows. They are gathered into batches of at least ``batch_rows``."""
        if not len(table):  # an empty table takes 9 kB, and up to 21,841 classes have no rejects
            return
        self._waiting.append(table)
        self._waiting_rows += len(table)
        self.rows += len(table)
        if self._waiting_rows >= self._batch_rows:
            self._flush()

    def _flush(self) -> None:
        if self._waiting_rows:
            with naming(self._path):
                for batch in pa.concat_tables(self._waiting).combine_chunks().to_batches():
                    self._writer.write_batch(batch)
        self._waiting, self._waiting_rows = [], 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with naming(self._path), self._file:
                if kind is None:
                    self._flush()
                    self._writer.close()
                    self._file.flush()
                    os.fsync(self._file.fileno())
                    put_in_place(self._temporary, self._path)
        finally:
            self._temporary.unlink(missing_ok=True)


def table(records: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """A table of tuples whose items are in the order of ``schema``'s fields."""
    columns = zip(*records, strict=True) if records else [[] for _ in schema]
    arrays = []
    for column, field in zip(columns, schema, strict=True):
        if pa.types.is_dictionary(field.type):
            arrays.append(pa.array(column, field.type.value_type).dictionary_encode().cast(field.type))
        else:
            arrays.append(pa.array(column, field.type))
    return pa.table(arrays, schema=schema)


def write(path: Path, table: pa.Table, schema: pa.Schema) -> None:
    """Write one table as a file of one batch."""
    with Writer(path, schema) as writer:
        writer.add(table)


def batches(path: Path) -> Iterator[pa.Table]:
    """The batches of a file, one in memory at a time."""
    with naming(path), path.open("rb") as file, ipc.open_file(file) as reader:
        for index in range(reader.num_record_batches):
            yield pa.Table.from_batches([reader.get_batch(index)])


def batch(path: Path, index: int) -> pa.Table:
    """One batch of a file; for a plan, the rows of shard ``index``."""
    with naming(path), path.open("rb") as file, ipc.open_file(file) as reader:
        return pa.Table.from_batches([reader.get_batch(index)])


def whole(path: Path) -> pa.Table:
    with naming(path), path.open("rb") as file, ipc.open_file(file) as reader:
        return reader.read_all()


CATALOGUE = pa.schema(
    [
        ("wnid", pa.string()),  # class: WordNet id, or the folder's name
        ("name", pa.string()),  # of the image inside its class, "/" between parts
        ("file", pa.binary()),  # path of the tar that holds the bytes, or of the image itself
        ("offset", pa.int64()),  # of the image's first byte in that file
        ("size", pa.int64()),  # bytes
        ("tar", pa.int32()),  # number of the tar or folder if image names may repeat in another one; otherwise 0
    ]
)
PLAN = pa.schema(
    [*CATALOGUE, ("key", pa.string()), ("label", pa.int32()), ("split", pa.string()), ("hash", pa.uint64())]
)
ROW_GROUP = 131_072  # rows of index.parquet


# Columns with few values, and columns with similar neighbours: half the size, twice the speed of parquet's defaults.
REPEATED = frozenset({"split", "shard", "label", "width", "height", "orientation", "recoded", "wnid", "reason"})
ALIKE = {"key": "DELTA_BYTE_ARRAY", "offset": "DELTA_BINARY_PACKED"}


def write_parquet(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Write row groups of about ROW_GROUP rows; the file appears when it is complete. Returns the number of rows."""
    rows = waiting_rows = 0
    waiting: list[pa.Table] = []
    repeated = [name for name in schema.names if name in REPEATED]
    alike = {name: encoding for name, encoding in ALIKE.items() if name in schema.names}
    with (
        appearing(path) as aside,
        aside.open("wb") as file,
        pq.ParquetWriter(
            file, schema, compression="zstd", compression_level=3, use_dictionary=repeated, column_encoding=alike
        ) as writer,
    ):

        def flush() -> None:
            table = pa.concat_tables([*waiting, schema.empty_table()]).unify_dictionaries().combine_chunks()
            writer.write_table(table, row_group_size=ROW_GROUP)
            waiting.clear()

        for table in tables:
            waiting.append(table.replace_schema_metadata(None))
            rows += len(table)
            waiting_rows += len(table)
            if waiting_rows >= ROW_GROUP:
                flush()
                waiting_rows = 0
        if waiting_rows or not rows:
            flush()
    return rows
