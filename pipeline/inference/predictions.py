"""A model's predictions as rows, for the terminal, CSV and Parquet, written incrementally.

A row: image, error ("" if there is none), then index_1, wnid_1, name_1, probability_1 ... of the likeliest classes.
"""

import csv
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.errors import UserError
from pipeline.core.files import flush, naming, put_in_place, temporary
from pipeline.core.results import STDOUT
from pipeline.core.terminal import csv_cell
from pipeline.interop.trained_model import Named


@dataclass(frozen=True)
class Answer:
    """The likeliest classes of one image, likeliest first; an error instead if it could not be read."""

    image: str
    classes: tuple[int, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""


def row(answer: Answer, known: Sequence[Named], top: int) -> dict[str, Any]:
    """The columns of :func:`schema`."""
    columns: dict[str, Any] = {"image": answer.image, "error": answer.error}
    for place in range(top):
        there = place < len(answer.classes)
        index = answer.classes[place] if there else None
        columns[f"index_{place + 1}"] = index
        columns[f"wnid_{place + 1}"] = known[index].wnid if index is not None else None
        columns[f"name_{place + 1}"] = known[index].name if index is not None else None
        columns[f"probability_{place + 1}"] = round(answer.probabilities[place], 6) if there else None
    return columns


def schema(top: int) -> pa.Schema:
    fields = [("image", pa.string()), ("error", pa.string())]
    kinds = (("index", pa.int32()), ("wnid", pa.string()), ("name", pa.string()), ("probability", pa.float32()))
    fields += [(f"{name}_{place + 1}", kind) for place in range(top) for name, kind in kinds]
    return pa.schema(fields)


class Files:
    """--csv ("-": the standard output) and --parquet; files are written under temporary names and renamed at the end.

    Use as a context manager.
    """

    def __init__(self, csv_output: str, parquet_path: Path | None, known: Sequence[Named], top: int) -> None:
        self._known, self._top = known, top
        csv_path = Path(csv_output) if csv_output not in ("", STDOUT) else None
        self._csv_path, self._parquet_path = csv_path, parquet_path
        self._asides = {path: temporary(path) for path in (csv_path, parquet_path) if path is not None}
        self._writer: csv.DictWriter[str] | None = None
        if csv_output == STDOUT:
            self._writer = csv.DictWriter(sys.stdout, schema(top).names, lineterminator="\n")
            self._writer.writeheader()
        try:
            if csv_path is not None:
                with naming(csv_path):
                    self._csv = self._asides[csv_path].open("w", newline="", encoding="utf-8")
                    self._writer = csv.DictWriter(self._csv, schema(top).names)
                    self._writer.writeheader()
            if parquet_path is not None:
                with naming(parquet_path):
                    self._parquet = pq.ParquetWriter(self._asides[parquet_path], schema(top))
        except OSError as error:
            self._remove()
            raise UserError(f"{error.filename!r} can't be written ({error.strerror}): name another file") from error

    def __enter__(self) -> "Files":
        return self

    def add(self, answers: Sequence[Answer]) -> None:
        rows = [row(answer, self._known, self._top) for answer in answers]
        if self._writer is not None:
            with naming(self._csv_path) if self._csv_path else nullcontext():
                self._writer.writerows({name: csv_cell(value) for name, value in one.items()} for one in rows)
        if self._parquet_path is not None and rows:
            with naming(self._parquet_path):
                self._parquet.write_table(pa.Table.from_pylist(rows, schema(self._top)))

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        try:
            if self._csv_path is not None:
                with naming(self._csv_path):
                    self._csv.close()
            if self._parquet_path is not None:
                with naming(self._parquet_path):
                    self._parquet.close()
            for path, aside in self._asides.items() if kind is None else ():
                with naming(path):
                    flush(aside)
                    put_in_place(aside, path)
        finally:
            self._remove()

    def _remove(self) -> None:
        for aside in self._asides.values():
            aside.unlink(missing_ok=True)
