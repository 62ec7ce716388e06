"""The files that go to MLflow beside the figures, each sent again when it has changed."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.core.secrets import without_secrets
from pipeline.runs.folder import EVALUATIONS
from pipeline.runs.records import Record
from pipeline.tracking.sent import Sent, save_sent

TEXTS = (".json", ".txt", ".diff")


def send_artifacts(client: Any, run_dir: Path, record: Record, sent: Sent) -> None:
    for name, folder in record.artifacts:
        path = run_dir / name
        if not path.exists():
            continue
        for file in [path] if path.is_file() else _files_in(path):
            inside = Path(folder, file.parent.relative_to(path.parent)) if path.is_dir() else Path(folder)
            stat = file.stat()
            version = f"{stat.st_size} {stat.st_mtime_ns}"
            key = str(file.relative_to(run_dir) if file.is_relative_to(run_dir) else file)
            if sent.artifacts.get(key) == version:
                continue
            with _without_secrets(file) as clean:
                client.log_artifact(sent.run_id, str(clean), str(inside) if str(inside) != "." else None)
            sent.artifacts[key] = version
            save_sent(run_dir, sent)


def _files_in(folder: Path) -> list[Path]:
    """All files below ``folder``, except hidden ones: those are being written, and are renamed when they are whole."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def missing_artifacts(run_dir: Path, record: Record, sent: Sent) -> list[str]:
    """Files that should have been sent, weren't, and no longer exist."""
    return [
        name
        for name, _ in record.artifacts
        if name != EVALUATIONS and name not in sent.artifacts and not (run_dir / name).exists()
    ]


@contextlib.contextmanager
def _without_secrets(file: Path) -> Iterator[Path]:
    """The file, or a redacted copy if it contains a password (in a dataset's URL): more people see the server."""
    text = file.read_text(errors="replace", encoding="utf-8") if file.suffix in TEXTS else ""
    if text == without_secrets(text):
        yield file
        return
    with tempfile.TemporaryDirectory() as scratch:
        clean = Path(scratch, file.name)
        clean.write_text(without_secrets(text), errors="replace", encoding="utf-8")
        yield clean
