"""What MLflow has of a run: ``RUN/mlflow.json``, and the lock of the one process that sends to it."""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.core.locks import Lock, try_lock, wait_for_lock
from pipeline.runs.folder import MLFLOW, MLFLOW_LOCK


@dataclass
class Sent:
    """mlflow.json: the MLflow run, and what has been sent to it."""

    uri: str  # the server, without password
    run_id: str
    experiment_id: str
    offsets: dict[str, int] = field(default_factory=dict)  # bytes sent, by file of lines
    described: str = ""  # digest of the source of parameters and tags
    artifacts: dict[str, str] = field(
        default_factory=dict
    )  # path, as in Record -> size and modification time of the sent file
    model_id: str = ""
    closed: int = 0  # the latest attempt whose end was sent


def read_sent(run_dir: Path) -> Sent | None:
    path = run_dir / MLFLOW
    return Sent(**read_json(path, "delete it")) if path.is_file() else None


def save_sent(run_dir: Path, sent: Sent) -> None:
    # On a full disk some values are sent again later, which is harmless: it must not stop the sync.
    with contextlib.suppress(OSError):
        write_json(run_dir / MLFLOW, dataclasses.asdict(sent))


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[bool]:
    """Whether this process is the only one syncing the run; True if the file system has no locks."""
    with (run_dir / MLFLOW_LOCK).open("w", encoding="utf-8") as file:
        yield try_lock(file.fileno(), run_dir / MLFLOW_LOCK) is not Lock.TAKEN


@contextlib.contextmanager
def lock_in_time(run_dir: Path) -> Iterator[None]:
    """Acquire the lock for up to ten seconds: the sync of an attempt that just ended may still hold it."""
    with (run_dir / MLFLOW_LOCK).open("w", encoding="utf-8") as file:
        with contextlib.suppress(UserError):
            wait_for_lock(file.fileno(), run_dir / MLFLOW_LOCK, seconds=10.0)
        yield
