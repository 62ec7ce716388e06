"""Lead this process's huggingface_hub to a server of the tests: it reads its variables once, when it is imported."""

import tempfile
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.helpers.hub_server import HubServer


def lead_to(monkeypatch: pytest.MonkeyPatch, server: HubServer, home: Path, token: str = "") -> None:
    """As :meth:`HubServer.environment` does for another process; caches of ours lie in ``home`` too."""
    for name, value in (server.environment(home, token) | {"VIT_CACHE": str(home / "vit")}).items():
        monkeypatch.setenv(name, value)
    home.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(home))  # where a 429 makes all processes of the node wait
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # which asks the server once per process
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)  # hf-xet is installed: it must not be used
