"""The on-disk format: the files in a dataset's folder and their names. Imports no torch.

A dataset is a folder of plain WebDataset tars with an index beside them:

    train-00000.tar ...   members <key>.jpg and <key>.cls (class index in ASCII), in index order
    index.parquet         INDEX_SCHEMA, one row per sample, in tar order
    classes.parquet       CLASSES_SCHEMA, one row per class, in index order
    rejects.parquet       REJECTS_SCHEMA, one row per input file that was skipped
    dataset.json          DatasetInfo; written last, so a folder without it is an unfinished dataset
    _info.json            the same for timm's WebDataset reader
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core import retry
from pipeline.core.errors import UserError
from pipeline.core.files import check_local, read_json

FORMAT_VERSION = 1

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # the image's original name without its ending; the tar member is <key>.jpg
        ("split", pa.dictionary(pa.int8(), pa.string())),
        ("shard", pa.int32()),  # the tar is {split}-{shard:05d}.tar
        ("offset", pa.int64()),  # of the JPEG's first byte in the tar
        ("size", pa.int32()),  # of the JPEG, bytes
        ("label", pa.int32()),  # class index
        ("width", pa.int32()),  # pixels, as stored: orientation is not applied; 0 if unknown (vit index)
        ("height", pa.int32()),
        ("orientation", pa.uint8()),  # EXIF tag 0x0112, 1 to 8; 1 if there is none
        ("recoded", pa.dictionary(pa.int8(), pa.string())),  # "" if unchanged, otherwise why: "png", "cmyk", ...
        ("xxh3_64", pa.uint64()),  # of the JPEG's bytes; 0 if unknown
    ]
)
CLASSES_SCHEMA = pa.schema(
    [
        ("index", pa.int32()),
        ("wnid", pa.string()),  # WordNet id, or the folder's name if the source isn't ImageNet
        ("name", pa.string()),  # readable name; the wnid again if no name is known
    ]
)
REJECTS_SCHEMA = pa.schema(
    [
        ("source", pa.string()),  # path inside the source, so that the file can be found again
        ("wnid", pa.string()),
        ("size", pa.int64()),
        ("reason", pa.string()),  # one word that groups: "truncated", "not_an_image", ...
        ("detail", pa.string()),
        ("thumbnail", pa.binary()),  # small JPEG of what can still be decoded, for some rejects; otherwise null
    ]
)
TABLES = {"index.parquet": INDEX_SCHEMA, "classes.parquet": CLASSES_SCHEMA, "rejects.parquet": REJECTS_SCHEMA}


@dataclass(frozen=True)
class ShardInfo:
    """One tar of a dataset."""

    split: str
    shard: int
    samples: int
    bytes: int  # of the whole tar
    xxh3_128: str  # of the whole tar, hexadecimal; "" if vit index made the index from the headers alone
    file: str = ""  # the tar's name if it isn't {split}-{shard:05d}.tar, as for tars made elsewhere

    @property
    def file_name(self) -> str:
        return self.file or shard_file_name(self.split, self.shard)


@dataclass(frozen=True)
class DatasetInfo:
    """dataset.json. Lists are in (split, shard) order."""

    name: str
    format_version: int
    tool_version: str  # part of the digest, so that only another FORMAT_VERSION can do without
    classes: int
    classes_digest: str  # of the ordered wnids: two datasets with the same digest share their class map
    samples: dict[str, int]  # by split
    rejects: int
    seed: int
    options: dict[str, Any]  # options of the command that made it that change its bytes
    shards: tuple[ShardInfo, ...]
    digest: str  # of everything above: identifies the dataset's content

    def split_shards(self, split: str) -> tuple[ShardInfo, ...]:
        """The shards of one split, in order. Raises UserError, with the existing splits, if there is no such split."""
        if split not in self.samples:
            raise UserError(
                f"split {split!r} is not in dataset {self.name!r}: it has {', '.join(self.samples)}: name "
                "one of these, or make the dataset again with --val-fraction"
            )
        return tuple(shard for shard in self.shards if shard.split == split)


def shard_file_name(split: str, shard: int) -> str:
    return f"{split}-{shard:05d}.tar"


def classes_digest(wnids: list[str]) -> str:
    """The first 32 hexadecimal digits of the SHA-256 of the wnids, one per line, in index order."""
    return hashlib.sha256("\n".join(wnids).encode()).hexdigest()[:32]


def with_digest(info: DatasetInfo) -> DatasetInfo:
    """``info`` with its digest: SHA-256 over the canonical JSON of all other fields, 32 hexadecimal digits."""
    fields = dataclasses.asdict(info)
    del fields["digest"]
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return dataclasses.replace(info, digest=hashlib.sha256(canonical.encode()).hexdigest()[:32])


def to_json(info: DatasetInfo) -> str:
    return json.dumps(dataclasses.asdict(info), indent=1) + "\n"


def read_info(folder: Path) -> DatasetInfo:
    """Read and check ``dataset.json``. Raises UserError if the folder is not a finished dataset."""
    path = folder / "dataset.json"
    check_local(folder, "dataset")
    if folder.is_file():
        raise UserError(f"dataset {str(folder)!r} is a file: give the folder that vit shard or vit index made")
    if not folder.is_dir():
        raise UserError(f"dataset {str(folder)!r} does not exist: create it with vit shard INPUT OUTPUT")
    if not path.is_file():
        raise UserError(
            f"{str(folder)!r} is not a finished dataset (no dataset.json): create or finish it with vit shard INPUT "
            "OUTPUT; for WebDataset tars made elsewhere use vit index FOLDER"
        )
    try:
        fields = read_json(path, "copy or make the dataset again")
        shards = tuple(ShardInfo(**shard) for shard in fields.pop("shards"))
        info = DatasetInfo(**fields, shards=shards)
    except (TypeError, KeyError) as error:  # not of this form
        raise UserError(f"{str(path)!r} is damaged ({error}): make the dataset again") from error
    if info.format_version != FORMAT_VERSION:
        raise UserError(
            f"{str(path)!r} has format_version {info.format_version}, this code reads {FORMAT_VERSION}: "
            "make the dataset again with this version"
        )
    if with_digest(info).digest != info.digest:
        raise UserError(f"{str(path)!r} does not match its own digest, so it was edited: make the dataset again")
    return info


def read_classes(folder: Path) -> pa.Table:
    """CLASSES_SCHEMA, in index order."""
    return _read(folder / "classes.parquet", None).cast(CLASSES_SCHEMA)


def read_rejects(folder: Path, columns: list[str] | None = None) -> pa.Table:
    """REJECTS_SCHEMA, or some of its columns."""
    return _read(folder / "rejects.parquet", columns)


def read_index(folder: Path, columns: list[str] | None = None) -> pa.Table:
    """INDEX_SCHEMA, or some of its columns, all splits, in tar order."""
    return _read(folder / "index.parquet", columns)


def _read(path: Path, columns: list[str] | None) -> pa.Table:
    with open_parquet(path) as file, damage_of(path):
        return file.read(columns)


def open_parquet(path: Path, **options: Any) -> pq.ParquetFile:
    """Open a table of a dataset with pyarrow's options. Raises UserError if it is missing, damaged or incomplete."""
    try:
        with damage_of(path):
            file = pq.ParquetFile(path, **options)
    except FileNotFoundError:
        raise UserError(f"{str(path)!r} is missing: the dataset is incomplete, copy or make it again") from None
    if lacking := lacking_columns(path, file.schema_arrow.names):
        file.close()
        raise UserError(f"{str(path)!r} lacks the columns {lacking}: copy or make the dataset again")
    return file


def lacking_columns(path: Path, names: Iterable[str]) -> str:
    """The columns of one of TABLES that are not among ``names``, comma-separated; "" if there are none."""
    return ", ".join(sorted(set(TABLES[path.name].names) - set(names)))


@contextmanager
def damage_of(path: Path) -> Iterator[None]:
    """Raise pyarrow's errors about a damaged table as a UserError."""
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno in retry.TRANSIENT:
            raise retry.unreadable(path, error) from None
        raise UserError(f"{str(path)!r} is damaged ({error}): copy or make the dataset again") from None
