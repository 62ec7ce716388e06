"""A lab's installation as real processes: MLflow's server with logins, on PostgreSQL, with its artifacts in S3.

PostgreSQL is Debian's, under a user of its own; the S3 server is moto's. The passwords must be in no file of the run,
in no output, and nowhere on the server.
"""

import configparser
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import requests
from mlflow import MlflowClient

from pipeline.distributed.ranks import free_port
from pipeline.tracking.registry import example
from tests.helpers.jobs import TRACKED
from tests.helpers.mlflow_runs import in_folder, jobs_sync, log_of, on_server, only_run, program
from tests.helpers.mlflow_server import Server
from tests.helpers.ranks import run_ranks
from tests.helpers.waiting import wait_until

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),  # of mlflow's model loader and of what it imports
]

ADMIN, USER, DATABASE, S3 = SECRETS = [uuid.uuid4().hex for _ in range(4)]  # passwords


class Postgres:
    """In a folder of its own, as the user ``postgres`` where the tests run as root, which PostgreSQL refuses to be."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.port = free_port()
        self.uri = f"postgresql+psycopg://mlflow:{DATABASE}@127.0.0.1:{self.port}/postgres"
        self._programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        secret = self.folder / "password"
        secret.write_text(DATABASE)
        secret.chmod(0o644)
        options = ["--username=mlflow", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync"]
        subprocess.run([*self._as_user("initdb"), "-D", str(self.folder / "data"), *options], check=True)
        secret.unlink()
        self.start()

    def _as_user(self, name: str) -> list[str]:
        switch = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        return [*switch, str(self._programs / name)]

    def start(self) -> None:
        command = [*self._as_user("postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder)]
        self._process = subprocess.Popen([*command, "-h", "127.0.0.1", "-p", str(self.port)])
        ready = [*self._as_user("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, 30)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)  # at once, whoever is connected
        self._process.wait(30)


@dataclass
class Lab:
    server: Server
    postgres: Postgres
    s3: Any  # boto3 client

    @property
    def login(self) -> dict[str, str]:
        """What a user sets."""
        return {"MLFLOW_TRACKING_USERNAME": "trainer", "MLFLOW_TRACKING_PASSWORD": USER}


@contextmanager
def moto(log: Path) -> Iterator[str]:
    port = free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=out, stderr=out
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    import boto3

    folder = tmp_path_factory.mktemp("lab")
    postgres = Postgres()
    try:
        with moto(folder / "s3.log") as s3_uri:
            s3 = boto3.client(
                "s3", endpoint_url=s3_uri, region_name="us-east-1", aws_access_key_id="mlflow", aws_secret_access_key=S3
            )
            wait_until(lambda: _answers(s3_uri), 60)
            s3.create_bucket(Bucket="mlflow")
            logins = configparser.ConfigParser()
            logins["mlflow"] = {
                "default_permission": "READ",
                "database_uri": postgres.uri,
                "admin_username": "admin",
                "admin_password": ADMIN,
            }
            with (folder / "logins.ini").open("w") as out:
                logins.write(out)
            server = Server(
                folder,
                "--app-name", "basic-auth", "--backend-store-uri", postgres.uri,
                "--artifacts-destination", "s3://mlflow/artifacts",
                MLFLOW_AUTH_CONFIG_PATH=str(folder / "logins.ini"), MLFLOW_FLASK_SERVER_SECRET_KEY="the-servers-own",
                MLFLOW_S3_ENDPOINT_URL=s3_uri, AWS_ACCESS_KEY_ID="mlflow", AWS_SECRET_ACCESS_KEY=S3,
                AWS_DEFAULT_REGION="us-east-1",
            )  # fmt: skip
            server.start()
            made = requests.post(
                f"{server.uri}/api/2.0/mlflow/users/create",
                json={"username": "trainer", "password": USER},
                auth=("admin", ADMIN),
                timeout=120,
            )
            made.raise_for_status()
            yield Lab(server, postgres, s3)
            server.kill()
    finally:
        postgres.stop()
        shutil.rmtree(postgres.folder)


def _answers(uri: str) -> bool:
    try:
        return requests.get(uri, timeout=5).ok
    except requests.ConnectionError:
        return False


@pytest.fixture
def client(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    for name, value in lab.login.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", lab.server.uri)
    return MlflowClient(lab.server.uri)


def assert_no_secrets(folder: Path, *texts: str) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    for secret in SECRETS:
        assert not [path for path in files if secret.encode() in path.read_bytes()]
        assert not [text for text in texts if secret in text]


def test_outages_and_wrong_logins_lose_nothing(lab: Lab, client: MlflowClient, run_dir: Path) -> None:
    wrong = lab.login | {"MLFLOW_TRACKING_PASSWORD": "another"}
    with program(run_dir, "--steps", 100, "--end", "KILLED", uri=lab.server.uri, **wrong) as process:
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert f"run vit sync {run_dir}" in output
    assert "not authenticated" in log_of(run_dir)
    lab.postgres.stop()
    output += jobs_sync(run_dir, uri=lab.server.uri, code=1, **lab.login)
    lab.postgres.start()
    limit = time.monotonic() + 60
    for _ in range(2):
        output += jobs_sync(run_dir, uri=lab.server.uri, **lab.login)
        run = only_run(client, run_dir)
        assert on_server(client, run.info.run_id) == in_folder(run_dir)
    assert time.monotonic() < limit
    assert run.info.status == "KILLED"
    assert_no_secrets(run_dir, output, repr(run))


def test_a_training_and_its_model(lab: Lab, client: MlflowClient, seven_digits: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    job = ("-m", "jobs.pretrain", "tiny", "--run-dir", run_dir, "--data.train", seven_digits, *TRACKED)
    variables = {"MLFLOW_TRACKING_URI": lab.server.uri, "VIT_MLFLOW": "on", **lab.login}
    results = run_ranks(2, (*job, "--experiment", "lab"), tmp_path / "ranks", 300, **variables)
    if "vit sync" in results[0].output:  # a busy machine: two minutes were too short for the model
        jobs_sync(run_dir, uri=lab.server.uri, **lab.login)
    run = only_run(client, run_dir)
    assert run.info.status == "FINISHED"
    assert on_server(client, run.info.run_id) == in_folder(run_dir)
    stored = {item["Key"]: item["Size"] for item in lab.s3.list_objects_v2(Bucket="mlflow")["Contents"]}
    assert {Path(key).name for key in stored} >= {"config.json", "curves.png", "model.safetensors", "packages-1.txt"}
    (registered,) = client.search_registered_models()
    assert registered.name.startswith("lab-tiny-pretrain-")
    model = mlflow.pyfunc.load_model(f"models:/{registered.name}@champion")
    found = model.predict(example(32))
    assert len(found["class"][0]) == 5
    assert isinstance(found, pd.DataFrame)
    versions = client.search_model_versions(f"name = '{registered.name}'")
    assert_no_secrets(tmp_path, repr(results), repr(run), repr(versions))
    for key in stored:
        content = lab.s3.get_object(Bucket="mlflow", Key=key)["Body"].read()
        assert not [secret for secret in SECRETS if secret.encode() in content]
