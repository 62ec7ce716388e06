"""Training straight from the Hub gives what training from the folder gives, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import format as checkpoint_format
from pipeline.core.files import read_json
from tests.helpers.hub_server import HubServer
from tests.helpers.jobs import job
from tests.helpers.ranks import run_ranks

TOKEN = "hf_s3cretT0ken"


def train(run: Path, data: str, *options: object, **environment: str) -> dict[str, torch.Tensor]:
    """The weights after a run of two ranks, each with a loader worker."""
    command = job(run, Path(data), *options, "--data.train", data, "--data.workers", 1)
    run_ranks(2, ("-m", *command), run.parent / f"{run.name}-log", **environment)
    return checkpoint_format.read_weights(checkpoint_format.find(run))


@pytest.mark.soak  # half a minute
def test_two_ranks_train_from_the_hub_as_from_the_folder(digits: Path, tmp_path: Path) -> None:
    local = train(tmp_path / "local", str(digits))
    tars = {path.name: path for path in digits.glob("*.tar")}
    with HubServer() as server:
        server.users[TOKEN] = "someone"
        commits = {
            "owner/finished": server.add("datasets", "owner/finished", digits, private=True),
            "owner/tars": server.add("datasets", "owner/tars", tars, gated=True),
        }
        for name in commits:
            server.repositories["datasets", name].readers.add("someone")
        environment = server.environment(tmp_path / "home", TOKEN) | {"VIT_CACHE": str(tmp_path / "cache")}
        line = [sys.executable, "-m", "data_prep.index", "hf://datasets/owner/tars", "--workers", "2"]
        done = subprocess.run(
            line, env={**os.environ, **environment}, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr
        for name, commit in commits.items():
            server.requests.clear()
            server.fail("resolve", ["503"])
            server.fail("storage", ["", "cut", "expired"])
            run = tmp_path / name.replace("/", "-")
            weights = train(run, f"hf://datasets/{name}", **environment)
            assert weights.keys() == local.keys()
            assert all(torch.equal(weights[key], local[key]) for key in local)
            assert (run / "ledger.txt").read_bytes() == (tmp_path / "local" / "ledger.txt").read_bytes()
            (source,) = {item["source"] for item in read_json(run / "run.json")["datasets"]}
            assert source == f"hf://datasets/{name}@{commit}", "recorded with its commit"
            fetched = [request.path for request in server.requests if request.part == "resolve" and not request.fault]
            shards = [path for path in fetched if path.endswith(".tar")]
            assert len(shards) - 2 <= len(set(shards)), "two ranks fetched a shard twice (two faults ask again)"
            assert {path.partition("/resolve/")[2].partition("/")[0] for path in fetched} == {commit}
            written = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
            assert (
                TOKEN.encode()
                not in written + "".join(log.read_text() for log in (tmp_path / f"{run.name}-log").iterdir()).encode()
            )
