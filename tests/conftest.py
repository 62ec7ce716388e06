"""Data that every test may use: scikit-learn's digits, sharded once a session by the real command."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from data_prep import shard
from jobs.demo import write_raw
from tests.helpers.jobs import job, pretrain
from tests.helpers.launch import TORCHRUN, run
from tests.helpers.mlflow_server import Server
from tests.helpers.ranks import run_ranks

# Time says nothing here, neither of a test nor of the making of its examples: others may be at work
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """What a command that a test calls in this process does about signals ends with the test.

    A training listens for them to its process's end: the next Ctrl-C of another test would count as its second.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def raw_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All ten digits as JPEGs of 32 px, in ImageNet-21K's form: a tar of ``digit<d>.tar``. 1,797 images."""
    path = tmp_path_factory.mktemp("raw") / "digits_whole.tar"
    write_raw(path, classes=10)
    return path


@pytest.fixture(scope="session")
def digits(raw_digits: Path) -> Path:
    """A dataset of them: splits train and val (a quarter), shards of 256 samples. Read only."""
    folder = raw_digits.parent / "digits"
    arguments = [raw_digits, folder, "--val-fraction", 0.25, "--samples-per-shard", 256, "--workers", 1]
    assert shard.main([str(argument) for argument in arguments]) == 0
    return folder


@pytest.fixture(scope="session")
def seven_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the first seven classes."""
    raw = tmp_path_factory.mktemp("raw") / "seven_whole.tar"
    write_raw(raw, classes=7)
    folder = raw.parent / "seven"
    assert shard.main([str(raw), str(folder), "--val-fraction", "0.25", "--workers", "1"]) == 0
    return folder


@pytest.fixture(scope="session")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 60 steps on the ten digits, with a running average of its weights. Read only."""
    run = tmp_path_factory.mktemp("trained") / "run"
    command = job(run, digits, "--train.average", 0.8, "--train.log-every", 20, steps=60)
    run_ranks(1, ("-m", *command, "--checkpoint.every", 0), run.parent / "log")
    return run


@pytest.fixture(scope="session")
def uninterrupted(seven_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a run on two ranks that nobody disturbed."""
    run_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    run(*TORCHRUN, *pretrain(run_dir, seven_digits), log=run_dir.parent / "log")
    return run_dir


@pytest.fixture(scope="session")
def quiet_mlflow() -> None:
    """What pipeline.tracking.sync sets before mlflow is imported, and short waits."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"


@pytest.fixture(scope="session")
def server(quiet_mlflow: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:  # noqa: ARG001
    """A real MLflow server."""
    server = Server(tmp_path_factory.mktemp("mlflow"))
    try:
        server.start()
        yield server
    finally:
        server.kill()
