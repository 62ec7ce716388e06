"""One MLflow server for the session, and helpers that look at what it has."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mlflow_server import Proxy, Server


@pytest.fixture(scope="session", autouse=True)
def _quiet_mlflow() -> None:
    """What pipeline.tracking.sync sets before mlflow is imported, and short waits."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"
