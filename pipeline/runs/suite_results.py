"""Results of jobs.suite, one file per set, so that an interrupted suite can continue.

``FOLDER/suite-<set>/result.json``; a run's folder is RUN/evaluations. Results of the running average of the weights lie
beside those of the last weights, in ``suite-<set>-average``.
"""

import logging
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import xxhash

from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json

logger = logging.getLogger(__name__)

PREFIX = "suite-"  # of folder names
AVERAGE, PARTIAL = "-average", "-partial"  # after a set's name


@dataclass(frozen=True)
class Result:
    """One set's result."""

    name: str  # of the set
    title: str  # the set's display name
    scores: dict[str, float]  # top1, top5 (fractions), samples; ImageNet-C: mce and top1 of each corruption
    key: str  # identifies model and images, so that a result is only reused for the same ones
    partial: bool = False  # images were missing from the download
    step: int | None = None  # step of the run's checkpoint
    average: bool = False  # whether the weights are the run's running average


def result_key(model: Path, images: list[str], **settings: Any) -> str:
    """A digest of the model's files, the names and sizes of the images, and the settings."""
    digest = xxhash.xxh3_128()
    files = [model] if model.is_file() else sorted(path for path in model.iterdir() if path.is_file())
    for file in files:
        status = file.stat()
        digest.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    for image in images:
        digest.update(f"{image}\n".encode())
    digest.update(repr(sorted(settings.items())).encode())
    return digest.hexdigest()


def path_of(folder: Path, name: str, *, average: bool) -> Path:
    return folder / f"{PREFIX}{name.replace('/', '-')}{AVERAGE if average else ''}" / "result.json"


def metrics(result: Result) -> dict[str, float]:
    """The scores as a run's metrics, ``suite/<set>/<score>``: in MLflow, and in jobs.compare.

    The set's name tells what can't be compared with published figures: ``-average``, ``-partial``.
    """
    name = f"{result.name}{AVERAGE if result.average else ''}{PARTIAL if result.partial else ''}"
    return {f"suite/{name}/{score}": value for score, value in result.scores.items()}


def read(folder: Path, name: str, key: str, *, average: bool) -> Result | None:
    """The stored result for this model and these images; ``None`` if there is none."""
    path = path_of(folder, name, average=average)
    kept = _read(path) if path.is_file() else None
    return kept if kept is not None and kept.key == key else None


def read_all(folder: Path) -> list[Result]:
    """Every complete set's result in ``folder``, by name, without the single corruptions of ImageNet-C.

    A damaged file is left out with a warning.
    """
    found = []
    for path in sorted(folder.glob(f"{PREFIX}*/result.json")):
        try:
            found.append(_read(path))
        except UserError as error:
            logger.warning("%s", error)
    return [result for result in found if "/" not in result.name]


def _read(path: Path) -> Result:
    content = read_json(path)
    try:
        result = Result(**{field.name: content[field.name] for field in fields(Result)})
        scores = {str(name): float(score) for name, score in result.scores.items()}
        if "top1" not in scores or not isinstance(result.name, str) or not isinstance(result.title, str):
            raise ValueError("no top1, name or title")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{str(path)!r} is damaged ({error!r}): delete it, and evaluate the set again") from error
    return result


def write(folder: Path, result: Result) -> None:
    path = path_of(folder, result.name, average=result.average)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(result))
