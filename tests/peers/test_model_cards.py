"""Model cards read by the model hub's own library."""

from pathlib import Path

import pytest

from benchmarks.peers import import_peer
from pipeline.config.schema import ModelConfig
from pipeline.runs.suite_results import Result, write
from tests.helpers.runs import make_run, run_export

pytestmark = pytest.mark.peers


def test_the_hub_reads_the_suites_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = import_peer("huggingface_hub")
    make_run(tmp_path / "run", ModelConfig("tiny", 32))
    scores = {"samples": 7500.0, "top1": 0.3125, "top5": 0.5}
    write(tmp_path / "run" / "evaluations", Result("a", "ImageNet-A", scores, "k", step=7))
    run_export(monkeypatch, tmp_path / "run", tmp_path / "out", "--format", "timm")
    card = hub.ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.model_name == "ViT tiny, 10 classes"
    found = [(one.dataset_name, one.metric_name, one.metric_value) for one in card.data.eval_results]
    assert found == [("ImageNet-A", "Top-1 accuracy", 0.3125), ("ImageNet-A", "Top-5 accuracy", 0.5)]
    assert {one.task_type for one in card.data.eval_results} == {"image-classification"}
