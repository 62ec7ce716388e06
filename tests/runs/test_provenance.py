"""Nothing that is written down or sent holds a secret."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.core.secrets import without_secrets
from pipeline.dataset.urls import check_source
from pipeline.runs.provenance import describe_code, git_diff


@pytest.mark.parametrize(
    "text",
    [
        "https://alice:hunter2@mlflow.lab.example/api",
        "postgresql://mlflow:hunter2@db/mlflow",
        "--password hunter2",
        "MLFLOW_TRACKING_PASSWORD=hunter2",
        'export AWS_SECRET_ACCESS_KEY="hunter2"',
        "+api_key: 'hunter2'",
        "--api-key=hunter2",
        "token = hunter2",
        "Authorization token: hunter2",
    ],
)
def test_secrets_are_hidden(text: str) -> None:
    hidden = without_secrets(f"before {text} after")
    assert "hunter2" not in hidden
    assert hidden.startswith("before ")
    assert hidden.endswith(" after")


@pytest.mark.parametrize(
    "source",
    [
        "https://alice:hunter2@lab.example/in21k",
        "s3://key:hunter2@lab/in21k",
        "https://lab.example/in21k?token=hunter2",
        "pipe:curl https://alice:hunter2@lab.example/{}",
        "pipe:fetch --password hunter2 {}",
        "pipe:fetch --api-key='hunter2' {}",
    ],
)
def test_a_login_in_the_address_of_data_is_refused(source: str) -> None:
    with pytest.raises(UserError) as caught:
        check_source(source)
    assert "hunter2" not in str(caught.value)
    assert "config.json and MLflow would show" in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "https://lab.example/in21k",
        "s3://lab/in21k",
        "pipe:ssh alice@lab cat /data/{}",
        "pipe:curl https://$LOGIN@lab.example/{}",
        'pipe:fetch --password "$PASSWORD" {}',
        "pipe:fetch --token-file ~/token {}",
    ],
)
def test_an_address_whose_login_lies_elsewhere_is_taken(source: str) -> None:
    check_source(source)


@pytest.mark.parametrize("text", ["sqlite:////runs/mlflow.db", "http://127.0.0.1:5000", "runs/b16 --optim.lr 3e-4"])
def test_the_rest_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_uncommitted_changes_are_seen_without_their_secrets(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "file").write_text("one\n")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    assert git_diff(tmp_path) == ""
    (tmp_path / "file").write_text("one\npassword = hunter2\n")
    diff = git_diff(tmp_path)
    assert "+password = <hidden>" in diff
    assert "hunter2" not in diff


def test_the_command_is_kept_without_secrets() -> None:
    code = "import pipeline.runs.provenance as p; print(p.describe_code()['command'])"
    command = [sys.executable, "-c", code, "--uri", "https://alice:hunter2@lab.example", "--password", "hunter2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert "https://<hidden>@lab.example --password <hidden>" in done.stdout
    assert "hunter2" not in done.stdout


def test_packages_and_python_are_named() -> None:
    code = describe_code()
    assert {"torch", "deepspeed", "mlflow", "numpy"} <= code["packages"].keys()
    assert code["python"] == ".".join(map(str, sys.version_info[:3]))
