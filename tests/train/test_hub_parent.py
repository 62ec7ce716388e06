"""Fine-tuning starts from a model on the Hub."""

from pathlib import Path

import torch

from pipeline.checkpoint import format as checkpoint_format
from pipeline.config.schema import ModelConfig
from pipeline.core.files import hashed, read_json
from pipeline.interop import timm
from tests.helpers.hub_server import HubServer
from tests.helpers.jobs import OPTIONS
from tests.helpers.models import random_model
from tests.helpers.ranks import run_ranks

CONFIG = ModelConfig("tiny", 16)


def test_two_ranks_finetune_from_a_model_on_the_hub(digits: Path, tmp_path: Path) -> None:
    model = random_model(CONFIG).state_dict()
    folder, run = tmp_path / "timm", tmp_path / "run"
    timm.write(folder, CONFIG, model, [f"n{index}" for index in range(10)])
    job = ("-m", "jobs.finetune", "tiny", "--parent", "hf-hub:timm/tiny", "--run-dir", run, "--data.train", digits)
    still = ("--optim.lr", 1e-30, "--schedule.steps", 2, "--schedule.warmup-steps", 0)  # too small to change a weight
    with HubServer() as server:
        commit = server.add("models", "timm/tiny", folder)
        environment = server.environment(tmp_path / "home") | {"VIT_CACHE": str(tmp_path / "cache")}
        run_ranks(2, (*job, *OPTIONS, *still), tmp_path / "log", **environment)
        assert server.count("storage") == 1, "both ranks downloaded the weights"
    found = checkpoint_format.find(run)
    assert found.meta.step == 2
    weights = checkpoint_format.read_weights(found)
    trunk = [name for name in weights if not name.startswith("head.")]
    assert len(trunk) == len(weights) - 2
    assert all(torch.equal(weights[name], model[name]) for name in trunk)
    assert read_json(run / "run.json")["parent"] == {
        "weights": f"hf://timm/tiny@{commit}",
        "sha256": hashed(folder / "model.safetensors"),
    }
