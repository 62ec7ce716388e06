"""Results of the suite, a file per set, so that an interrupted suite continues where it was."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from pipeline.core.files import read_json, write_json


@dataclass(frozen=True)
class Result:
    """One set's result, ``FOLDER/suite-<set>/result.json``."""

    name: str  # of the set
    scores: dict[str, float]  # top1, top5 (fractions), samples; ImageNet-C: mce and top1 of each corruption
    key: str  # of the model and the images: a result of others is not taken for theirs
    partial: bool = False  # images were missing from the download


def result_key(model: Path, images: list[str], **settings: Any) -> str:
    """Changes with the model's files, the names and sizes of the images, and the settings."""
    digest = xxhash.xxh3_128()
    files = [model] if model.is_file() else sorted(path for path in model.iterdir() if path.is_file())
    for file in files:
        status = file.stat()
        digest.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    for image in images:
        digest.update(f"{image}\n".encode())
    digest.update(repr(sorted(settings.items())).encode())
    return digest.hexdigest()


def folder_of(folder: Path, name: str) -> Path:
    return folder / f"suite-{name.replace('/', '-')}"


def read(folder: Path, name: str, key: str) -> Result | None:
    """The result that was kept for this model and these images; ``None`` if there is none."""
    path = folder_of(folder, name) / "result.json"
    if not path.is_file():
        return None
    kept = read_json(path)
    return Result(name, kept["scores"], key, kept["partial"]) if kept.get("key") == key else None


def write(folder: Path, result: Result) -> None:
    place = folder_of(folder, result.name)
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / "result.json", {"scores": result.scores, "key": result.key, "partial": result.partial})
