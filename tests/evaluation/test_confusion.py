"""Per-class tables, ReaL labels, and probes of frozen features."""

import csv
import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from jobs import evaluate as job
from jobs import export
from pipeline.core.errors import UserError
from pipeline.dataset.joined_split import open_split
from pipeline.evaluation import feature_probes
from pipeline.evaluation.class_maps import check_classes
from pipeline.evaluation.confusion import Tally, draw_confusion, per_class, read_real, write
from pipeline.interop.export import FORMATS
from pipeline.interop.trained_model import Named
from pipeline.loader.batches import Batch
from pipeline.runs import evaluations
from pipeline.runs.records import Attempt, Record, write_record
from pipeline.tracking import resend
from pipeline.tracking.client import open_client, tracking_uri
from pipeline.tracking.sent import read_sent
from pipeline.tracking.tracker import OFF

CLASSES = [{"wnid": f"n{index}", "name": name} for index, name in enumerate(("cat", "dog", "cow"))]


def batch(labels: list[int], first: int) -> Batch:
    rows = torch.arange(first, first + len(labels))
    return Batch(torch.zeros(len(labels), 1, 1, 3, dtype=torch.uint8), torch.tensor(labels), rows, -1)


def logits(predictions: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predictions), 3).float()


def test_two_ranks_add_up_to_the_table() -> None:
    real = {0: frozenset({0}), 1: frozenset({2, 1}), 2: frozenset(), 3: frozenset({1}), 4: frozenset({2})}
    first, second = (Tally(3, torch.device("cpu"), real) for _ in range(2))
    first.see(logits([0, 2, 2]), batch([0, 1, 1], 0))
    second.see(logits([2, 2]), batch([1, 2], 3))
    first_parts = iter([second.confusion_CC, second._counts])
    first.reduce(lambda sums: sums + next(first_parts))
    assert first.confusion_CC.tolist() == [[1, 0, 0], [0, 0, 3], [0, 0, 1]]
    assert first.real == {"real_samples": 4, "real_top1": 3 / 4}, "a sample without labels doesn't count"
    worst, *_ = rows = per_class(first.confusion_CC.numpy(), CLASSES)
    assert worst == {"index": 1, "wnid": "n1", "name": "dog", "samples": 3, "top1": 0.0, "taken_for": "n2", "times": 3}
    assert [row["top1"] for row in rows] == [0.0, 1.0, 1.0]


def test_files(tmp_path: Path) -> None:
    write(tmp_path, np.array([[3.0, 1, 0], [0, 2, 0], [0, 0, 0]]), CLASSES)
    with (tmp_path / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["top1"]) for row in rows] == [("cat", "0.75"), ("dog", "1.0"), ("cow", "")]
    with Image.open(tmp_path / "confusion.png") as image:
        assert image.size == (840, 720)


def test_cells_have_counts_and_percentages_up_to_thirty_classes() -> None:
    counts_CC = np.diag(np.full(3, 399.0)) + np.eye(3, k=1)
    counts_CC[2] = [1, 0, 2]
    cells = [text.get_text() for text in draw_confusion(counts_CC, CLASSES).axes[0].texts]
    assert cells == ["399\n>99%", "1\n<1%", "399\n>99%", "1\n<1%", "1\n33%", "2\n67%"]
    many = [{"wnid": f"n{index}", "name": ""} for index in range(31)]
    assert len(draw_confusion(np.eye(30), many[:30]).axes[0].texts) == 30
    assert not draw_confusion(np.eye(31), many).axes[0].texts


@pytest.mark.parametrize(("ending", "begins"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_plot_for_papers_is_the_same_each_time(tmp_path: Path, ending: str, begins: bytes) -> None:
    found = []
    for name in ("one", "two"):
        write(tmp_path / name, np.eye(3), CLASSES, ending)
        found.append((tmp_path / name / f"confusion.{ending}").read_bytes())
    assert found[0].startswith(begins)
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["per_class.csv", "confusion.png"])
def test_a_full_disk_is_named_with_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as full:
        write(tmp_path, np.eye(3), CLASSES)
    assert full.value.filename == str(tmp_path / name)


def test_an_evaluation_that_a_full_disk_loses_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = Attempt(1, 0, 0.0, 1, {})
    write_record(tmp_path, Record("key", "vit", "run", {}, {}, attempts=[attempt]))
    monkeypatch.setattr("os.pwrite", lambda *_: 0)
    with pytest.raises(OSError, match=r"full.*evaluations\.jsonl"):
        evaluations.keep(tmp_path, "mine-val", 7, {}, {"top1": 0.5})


def test_any_class_name_can_be_drawn(tmp_path: Path) -> None:
    classes = [{"wnid": name, "name": name} for name in ("$100_$", "$\\frac$", "\u732b")]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        write(tmp_path, np.eye(3), classes)
    assert not told
    with Image.open(tmp_path / "confusion.png") as image:
        assert image.size == (840, 720)


def test_real_labels_go_by_the_validation_images_numbers(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text(json.dumps([[5], [], [7, 8]]))
    keys = ["ILSVRC2012_val_00000003", "ILSVRC2012_val_00000002"]
    assert read_real(tmp_path / "real.json", keys) == {0: frozenset({7, 8}), 1: frozenset()}
    for content in ('{"0": ["n01440764", "tench"]}', "[1, 2]", "\xff"):
        (tmp_path / "other.json").write_text(content, "latin-1")
        with pytest.raises(UserError, match=r"other\.json.*--real .*real\.json|--real .*other\.json.*real\.json"):
            read_real(tmp_path / "other.json", keys)
    for key in ("ILSVRC2012_val_00000004", "n01440764_10026"):
        with pytest.raises(UserError, match=key):
            read_real(tmp_path / "real.json", [key])


def clusters(seed: int, per: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)) * 1.2
    labels = torch.arange(5).repeat(per)
    return centres[labels] + torch.randn(5 * per, 16, generator=generator), labels


def test_nearest_neighbours_are_scikit_learns() -> None:
    z_ND, labels_N = clusters(1, 60)
    z_MD, _ = clusters(2, 40)
    reference = KNeighborsClassifier(
        feature_probes.NEIGHBOURS,
        metric="cosine",
        weights=lambda distance: np.exp((1 - distance) / feature_probes.TEMPERATURE),
    ).fit(z_ND.numpy(), labels_N.numpy())
    (predicted,) = feature_probes.nearest_neighbours(z_ND, labels_N, z_MD, 5)
    assert (predicted.numpy() == reference.predict(z_MD.numpy())).mean() > 0.99


def test_the_linear_probe_finds_the_line() -> None:
    z_ND, labels_N = clusters(1, 60)
    z_MD, labels_M = clusters(2, 40)
    right = (feature_probes.linear_probe(z_ND, labels_N, z_MD, 5) == labels_M).float().mean()
    nearest_centre = torch.cdist(z_MD, torch.stack([z_ND[labels_N == label].mean(0) for label in range(5)])).argmin(1)
    assert right > (nearest_centre == labels_M).float().mean() - 0.05
    assert right > 0.9


def test_shots_are_so_many_of_each_class() -> None:
    labels = np.array([0] * 50 + [1] * 3 + [2] * 20)
    rows = feature_probes.choose_shots(labels, 5, seed=0)
    assert np.bincount(labels[rows]).tolist() == [5, 3, 5]
    assert not np.array_equal(rows, feature_probes.choose_shots(labels, 5, seed=1))
    assert len(feature_probes.choose_shots(labels, 0, seed=0)) == 73


def evaluate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> dict[str, float]:
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
    assert job.main() == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])  # type: ignore[no-any-return]


def test_the_table_agrees_with_the_accuracy(
    trained: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluate(monkeypatch, capsys, trained, "--data", digits, "--out", tmp_path, "--workers", 0)
    with (tmp_path / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["samples"]) for row in rows) == result["samples"] == 451
    hits = sum(int(row["samples"]) * float(row["top1"]) for row in rows)
    assert hits / 451 == pytest.approx(result["top1"], abs=1e-5)
    averaged = evaluate(monkeypatch, capsys, trained, "--data", digits, "--average", "--workers", 0)
    assert averaged["loss"] != result["loss"]
    (tmp_path / "full" / "confusion.png").mkdir(parents=True)  # a plot that can't be written doesn't lose the numbers
    with pytest.raises(IsADirectoryError):
        evaluate(monkeypatch, capsys, trained, "--data", digits, "--out", tmp_path / "full", "--workers", 0)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result


@pytest.mark.filterwarnings("ignore")  # of mlflow's model logging and of what it imports
def test_results_are_kept_with_the_run_and_shown_by_mlflow(
    trained: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run had finished, and MLflow knew of it, before any evaluation."""
    monkeypatch.delenv(OFF, raising=False)
    resend.send(trained)
    words = (trained, "--data", digits, "--workers", 0, "--log")
    result = evaluate(monkeypatch, capsys, *words)
    probed = evaluate(monkeypatch, capsys, *words, "--probe", "knn", "--shots", 5)
    again = evaluate(monkeypatch, capsys, *words)
    assert again == result
    name = f"{open_split(digits, 'val').info.name}-val"
    folder = trained / "evaluations" / name
    assert json.loads((folder / "result.json").read_text()) == result
    sent = read_sent(trained)
    assert sent is not None
    client = open_client(tracking_uri(trained))
    values = client.get_run(sent.run_id).data.metrics
    assert values[f"evaluation/{name}/top1"] == result["top1"]
    assert values[f"evaluation/{name}/top5"] == result["top5"]
    assert values[f"evaluation/{name}-knn-5-shot/top1"] == probed["top1"]
    assert client.get_metric_history(sent.run_id, f"evaluation/{name}/top1")[0].step == 60
    shown = {item.path for item in client.list_artifacts(sent.run_id, f"evaluations/{name}")}
    assert {Path(path).name for path in shown} == {"per_class.csv", "confusion.png", "result.json"}
    assert client.get_run(sent.run_id).info.status == "FINISHED"
    alone = trained.parent / "alone" / "checkpoints"
    shutil.copytree(trained / "checkpoints", alone)
    with pytest.raises(UserError, match="is not in one"):
        evaluate(monkeypatch, capsys, next(alone.iterdir()), *words[1:])


def test_probes_of_a_run(
    trained: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for probe in ("knn", "linear"):
        result = evaluate(monkeypatch, capsys, trained, "--data", digits, "--probe", probe, "--workers", 0)
        assert result["top1"] > 0.6, "digits are told apart by features of 60 steps"
    few = evaluate(monkeypatch, capsys, trained, "--data", digits, "--probe", "knn", "--shots", 2, "--workers", 0)
    assert 0.1 < few["top1"] < result["top1"]


def test_every_export_is_evaluated_as_the_run_was(
    trained: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    of_run = evaluate(monkeypatch, capsys, trained, "--data", digits, "--workers", 0)
    for form in FORMATS:
        monkeypatch.setattr(sys, "argv", ["export", str(trained), str(tmp_path / form), "--format", form])
        assert export.main() == 0
        trust = ("--trust-code",) if form == "torch" else ()
        of_export = evaluate(monkeypatch, capsys, tmp_path / form, "--data", digits, "--workers", 0, *trust)
        assert (of_export["top1"], of_export["top5"]) == (of_run["top1"], of_run["top5"]), form
        assert of_export["loss"] == pytest.approx(of_run["loss"], abs=1e-5)
        assert of_export["checkpoint"] == str(tmp_path / form)
    probed = evaluate(monkeypatch, capsys, tmp_path / "timm", "--data", digits, "--probe", "knn", "--workers", 0)
    assert probed["top1"] > 0.6
    for option, words in ((("--probe", "knn"), "is a graph"), (("--dtype", "bfloat16"), "float32 weights")):
        with pytest.raises(UserError, match=words):
            evaluate(monkeypatch, capsys, tmp_path / "onnx", "--data", digits, *option, "--workers", 0)


def test_classes_in_another_order_are_refused_and_nameless_ones_taken_in_order(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = [{"wnid": f"n{index}", "name": name} for index, name in enumerate(("cat", "dog", "cow"))]
    check_classes(Path("model"), [Named(entry["wnid"], "") for entry in data], "shards", data)
    names_alone = [Named(entry["name"], "") for entry in data]  # transformers'
    check_classes(Path("model"), names_alone, "shards", data)
    assert caplog.text == ""
    check_classes(Path("model"), [Named("", f"class {index}") for index in range(3)], "shards", data)
    assert "'model' does not name its classes" in caplog.text
    with pytest.raises(UserError, match=r"'shards' has another class map .3 classes, class 1 is 'n1', not 'n2'"):
        check_classes(Path("model"), [Named(f"n{index}", "") for index in (0, 2, 1)], "shards", data)
    for classes in (2, 4):
        with pytest.raises(UserError, match=rf"another class map .3 classes.* .{classes} classes.: shard it with"):
            check_classes(Path("model"), [Named(f"n{index}", "") for index in range(classes)], "shards", data)
