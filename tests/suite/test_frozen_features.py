"""vit suite --features on a dataset: what is kept, resumed and logged, and that the processes share the work."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from jobs import suite
from pipeline.core.errors import UserError
from pipeline.dataset.joined_split import open_split
from pipeline.evaluation.feature_probes import extract
from pipeline.interop import export
from pipeline.interop.trained_model import load
from pipeline.loader.batches import eval_batches
from pipeline.model.preprocess import normalise
from pipeline.runs.folder import EVALUATION_LINES, EVALUATIONS
from pipeline.runs.records import read_lines
from pipeline.suite import frozen_features
from tests.helpers.launch import last_json


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short training: its result is not what these tests are about."""
    monkeypatch.setattr("pipeline.evaluation.sgd_probe.EPOCHS", 2)


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    monkeypatch.setattr("sys.argv", ["suite", *map(str, arguments)])
    assert suite.main() == 0
    return last_json(capsys.readouterr().out)


@pytest.mark.usefixtures("few")
def test_probes_are_kept_resumed_and_logged(
    trained: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trained = Path(shutil.copytree(trained, tmp_path / "run"))
    sent: list[Path] = []
    monkeypatch.setattr(suite, "send", sent.append)
    arguments = (trained, "--features", digits, "--workers", 0, "--log")
    first = call(monkeypatch, capsys, *arguments)
    names = [f"features-digits-{probe}" for probe in (
        "knn-10", "knn-20", "knn-100", "knn-200", "linear", "sgd", "1-shot", "5-shot", "10-shot"
    )]  # fmt: skip
    assert list(first)[1:] == names
    assert {first[name]["samples"] for name in names} == {float(len(open_split(digits, "val")))}
    assert first["features-digits-knn-20"]["top1"] > 0.3  # of ten classes
    lines, _ = read_lines(trained / EVALUATION_LINES)
    logged = {name: value for line in lines for name, value in line.metrics.items()}
    for name in names:
        assert logged[f"suite/{name}/top1"] == first[name]["top1"]
    assert sent == [trained]

    extracted: list[int] = []

    def counted(*args: object) -> list[dict[str, float]]:
        extracted.append(1)
        return probe_all(*args)  # type: ignore[arg-type]

    probe_all = frozen_features.probe_all
    monkeypatch.setattr(frozen_features, "probe_all", counted)
    assert call(monkeypatch, capsys, *arguments) == first
    assert not extracted
    (trained / EVALUATIONS / "suite-features-digits-linear" / "result.json").unlink()
    assert call(monkeypatch, capsys, *arguments) == first
    assert extracted == [1]
    assert call(monkeypatch, capsys, *arguments, "--average") != first
    assert extracted == [1, 1]
    for name in names:
        for average, folder in ((False, f"suite-{name}"), (True, f"suite-{name}-average")):
            kept = json.loads((trained / EVALUATIONS / folder / "result.json").read_text())
            assert (kept["step"], kept["average"]) == (60, average)


def test_processes_share_the_features(trained: Path, digits: Path) -> None:
    """Each has zeros for the samples of others: their sum is the model's class token of every image."""
    split = open_split(digits, "val")
    model = export.build(load(trained)).eval()
    done: list[int] = []
    shares = [
        extract(model, split, batch=50, workers=0, device=torch.device("cpu"), rank=rank, world_size=2,
                advance=done.append)
        for rank in range(2)
    ]  # fmt: skip
    (whole,) = eval_batches(
        split, image_size=model.config.image_size, batch=len(split), rank=0, world_size=1, workers=0
    )
    with torch.no_grad():
        expected = model.features(normalise(whole.images_BHWC, torch.float32, model.config))
    torch.testing.assert_close(shares[0] + shares[1], expected)
    assert not ((shares[0] != 0) & (shares[1] != 0)).any()
    assert sum(done) >= len(split)


def test_mistakes_are_one_line(trained: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["suite", str(trained)])
    with pytest.raises(UserError, match="nothing to evaluate: give --data-root FOLDER of the downloads, --features"):
        suite.main()
    monkeypatch.setattr("sys.argv", ["suite", str(trained), "--features", str(digits), "--only", "a"])
    with pytest.raises(UserError, match="--only a has no effect without downloads"):
        suite.main()
