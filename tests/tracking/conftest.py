"""What the tests of tracking share: a quiet MLflow, a proxy before the server, a run folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mlflow_server import Proxy, Server


@pytest.fixture(scope="session", autouse=True)
def _always_quiet(quiet_mlflow: None) -> None:
    """Every test here imports mlflow."""


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"
