"""Opening an MLflow server or database file: quietly, one process at a time, with one-line errors."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.core.locks import locked
from pipeline.core.secrets import without_secrets

TABLES_SECONDS = 120.0  # limit for another process to create a database's tables, which takes seconds


def tracking_uri(run_dir: Path) -> str:
    """``MLFLOW_TRACKING_URI``, or the file beside the run folder, which neighbouring runs share."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(run_dir.absolute().parent / "mlflow.db")


def sqlite_uri(database: Path) -> str:
    """The URI of a database file. Only % and ? are quoted: SQLAlchemy (2.1) takes all other characters literally."""
    return "sqlite:///" + str(database).replace("%", "%25").replace("?", "%3F")


def database_of(uri: str) -> Path | None:
    """The file of an ``sqlite:`` URI; None for other URIs."""
    if not uri.startswith("sqlite:"):
        return None
    from sqlalchemy.engine import make_url

    return Path(make_url(uri).database or "")


def quiet_environment() -> None:
    """Call before mlflow is imported: no telemetry, and short timeouts, since we retry ourselves."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it would print a URL's password
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # seconds; MLflow's own is 120
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # MLflow's own is 7, with pauses up to a minute
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def open_client(uri: str) -> Any:
    """An MlflowClient. Raises UserError if the database's tables belong to another MLflow version.

    Opening a database creates its tables, or those that a new version adds. MLflow requires ``mlflow db upgrade`` only
    if all tables exist and their columns are old.
    """
    from mlflow import MlflowClient  # takes seconds, and must come after quiet_environment
    from mlflow.exceptions import MlflowException
    from mlflow.store.db import utils

    utils._make_parent_dirs_if_sqlite = _no_folder
    # errors are also raised, and reported in one line; its log adds 100 lines of SQLAlchemy's traceback
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    with _alone_with_tables(uri):
        try:
            return MlflowClient(uri)
        except MlflowException as error:
            found = re.search(r"out-of-date database schema \(found version (\w+)", str(error))
            if found is None:
                raise
            raise UserError(_refusal(without_secrets(uri), found[1])) from None


def _no_folder(db_uri: str) -> None:
    """Replaces an MLflow function that creates a folder from the quoted path, in addition to the right one."""


def _refusal(uri: str, revision: str) -> str:
    import mlflow
    from mlflow.store import db_migrations

    versions = Path(db_migrations.__path__[0], "versions")
    if not any(versions.glob(f"{revision}_*.py")):
        return (
            f"the MLflow database {uri} belongs to a newer MLflow than the installed {mlflow.__version__} "
            f"(revision {revision} is unknown): install that version"
        )
    return (
        f"the MLflow database {uri} was made by an older MLflow than the installed {mlflow.__version__}: "
        f"back it up, then run: mlflow db upgrade {uri}"
    )


def reason(error: Exception) -> str:
    """The error in one line, without secrets."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    remedy = ". Start that server with --allowed-hosts and its name" if "Invalid Host header" in str(error) else ""
    lines = [line for line in str(error).splitlines() if not line.startswith("(raised as a result of")]  # SQLAlchemy's
    return without_secrets(kind + (lines[0] if lines else "")) + remedy


def check_writable(uri: str) -> None:
    """Raise UserError if ``uri`` is a read-only SQLite file, which SQLite would report only when writing."""
    if database := database_of(uri):
        for path in (database.parent, database):  # the folder, for the journal
            if path.exists() and not os.access(path, os.W_OK):
                raise UserError(
                    f"the MLflow database {uri} can't be written: get write permission for {str(path)!r}, or set "
                    "MLFLOW_TRACKING_URI to another one"
                )


@contextlib.contextmanager
def _alone_with_tables(uri: str) -> Iterator[None]:
    """Open an SQLite file one process at a time: two processes that create its tables at once would break it."""
    database = database_of(uri)
    if database is None:
        yield
        return
    if database.exists() and not os.access(database.parent, os.W_OK):  # read-only: no table can be created
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with locked(database.with_name(f".{database.name}.lock"), seconds=TABLES_SECONDS):
        if not database.exists():
            database.touch()  # with the umask's permissions: SQLite would remove the group's write permission
        yield
