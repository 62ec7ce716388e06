"""Results of jobs.suite in the comparison: a table of its own beside the published figures, in every form."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.compare.html import page
from pipeline.compare.read_runs import read_run
from pipeline.compare.rows import Row, rows
from pipeline.compare.suite_rows import suite_columns, suite_rows
from pipeline.compare.tables import terminal, to_csv, to_json, to_latex
from pipeline.config.published_sets import PUBLISHED, nearest
from pipeline.core.files import write_json
from pipeline.runs.folder import EVALUATIONS
from pipeline.runs.suite_results import Result, write
from tests.helpers.browser import open_browser
from tests.helpers.runs import read_runs, write_run

# typed in once more from timm's results: val, ReaL, V2, A, R, Sketch
FIGURES = {
    "DeiT III L/16": (87.74, 90.25, 79.22, 79.32, 70.62, 54.91),
    "DeiT III B/16": (86.74, 89.89, 77.98, 71.29, 62.68, 47.68),
    "AugReg L/16": (87.10, 90.22, 77.79, 71.05, 67.12, 52.80),
    "AugReg B/16": (86.01, 89.97, 76.16, 63.03, 60.19, 45.90),
    "AugReg B/32": (83.36, 87.90, 72.68, 36.52, 53.40, 38.83),
    "original ViT L/32": (81.51, 85.91, 70.89, 38.84, 48.36, 34.71),
}
SCORES = {"val": 0.85, "real": 0.89, "v2": 0.75, "a": 0.6, "r": 0.58, "sketch": 0.44, "c": 0.7, "objectnet": 0.5}


def judged(folder: Path, *, variant: str = "b16", shift: float = 0.0, **options: object) -> Path:
    """A fine-tuned run with a result of every set in SCORES."""
    run = write_run(folder, stage="finetune", classes=1000, size=224, **options)  # type: ignore[arg-type]
    config = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", config | {"model": {"image_size": 224, "variant": variant, "layer_scale": 0.0}})
    for name, top1 in SCORES.items():
        scores = {"samples": 100.0, "top1": top1 + shift, "top5": 0.99} | ({"mce": 0.55} if name == "c" else {})
        write(run / EVALUATIONS, Result(name, f"Set {name}", scores, "key", step=10))
    return run


@pytest.fixture
def found(tmp_path: Path) -> list[Row]:
    """Two seeds of one fine-tune, a run of another size, and one that the suite has not evaluated."""
    for seed in range(2):
        judged(tmp_path / "runs" / f"ft-{seed}", seed=seed, shift=seed / 100, top1=0.8)
    judged(tmp_path / "runs" / "large", variant="l32", lr=0.1, top1=0.7)
    write_run(tmp_path / "runs" / "plain", recipe="b32", top1=0.6)
    return rows(read_runs(tmp_path / "runs"))


def test_the_published_figures_are_timms() -> None:
    assert {entry.model: tuple(entry.top1.values()) for entry in PUBLISHED.values()} == FIGURES
    assert all(list(entry.top1) == ["val", "real", "v2", "a", "r", "sketch"] for entry in PUBLISHED.values())
    for variant, scale, name in (("b16", True, "DeiT III B/16"), ("b32", True, "AugReg B/32"), ("tiny", False, None)):
        entry = nearest(variant, layer_scale=scale)
        assert (entry.model if entry else None) == name


def test_results_are_metrics_of_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = judged(tmp_path / "run")
    final = read_run(run).final
    assert (final["suite/a/top1"], final["suite/c/mce"], final["eval/top1"]) == (0.6, 0.55, 0.8)
    write(run / EVALUATIONS, Result("a", "Set a", {"top1": 0.1}, "key", partial=True, step=10))
    write(run / EVALUATIONS, Result("a", "Set a", {"top1": 0.2}, "key", step=10, average=True))
    final = read_run(run).final
    assert "suite/a/top1" not in final
    assert (final["suite/a-partial/top1"], final["suite/a-average/top1"]) == (0.1, 0.2)
    (run / EVALUATIONS / "suite-a" / "result.json").write_text("{}")
    kept = read_run(run).final
    assert "suite/a/top1" not in kept
    assert (kept["suite/real/top1"], kept["suite/a-average/top1"]) == (0.89, 0.2)
    (said,) = caplog.messages
    assert re.search(r"result\.json' is damaged .*: delete it, and evaluate the set again", said)


def test_rows_are_runs_then_published_models(found: list[Row]) -> None:
    shown = suite_rows(found)
    assert [row.name for row in shown] == [
        "ft-0 and 1 other seed", "large", "published: AugReg B/16 (timm, August 2026)",
        "published: original ViT L/32 (timm, August 2026)",
    ]  # fmt: skip
    assert [row.pixels for row in shown] == ["224", "224", "384", "384"]
    assert [row.index for row in shown] == [0, 1, None, None]
    titles = [column.title for column in suite_columns(found)]
    assert titles == ["val", "real", "v2", "a", "r", "sketch", "c", "c mCE", "objectnet"]
    by_title = [dict(zip(titles, row.texts, strict=True)) for row in shown]
    assert [row["val"] for row in by_title] == ["85.50 ± 0.71", "85.00", "86.01", "81.51"]
    assert [row["c mCE"] for row in by_title] == ["55.00 ± 0.00", "55.00", "-", "-"]
    assert suite_rows([row for row in found if row.name == "plain"]) == []


def test_columns_have_numbers_in_their_order_and_features_last(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for name in ("features-digits-knn-100", "features-digits-knn-20", "a", "v2-top", "features-digits-linear"):
        write(run / EVALUATIONS, Result(name, name, {"top1": 0.5}, "key"))
    found = rows(read_runs(tmp_path))
    assert [column.title for column in suite_columns(found)] == [
        "a", "v2 top", "features digits knn 20", "features digits knn 100", "features digits linear"
    ]  # fmt: skip
    assert [row.name for row in suite_rows(found)] == ["run"], "nothing is published for a model of unknown size"


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_in_a_terminal_no_figure_is_broken(found: list[Row], width: int) -> None:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(terminal(found, width=width)[1])
    text = capture.get()
    assert all(len(line) <= width for line in text.splitlines())
    for figure in ("Test sets (vit suite): top-1 %", "85.50", "± 0.71", "86.01", "81.51"):
        assert figure in text
    assert ("85.50 ± 0.71" in text) == (width == 200)
    assert ("no room for" in text) == (width < 120)
    assert ("no room for c mCE, objectnet" in text) == (width == 80)
    assert "published: AugReg B/16 (timm, August 2026)" in " ".join(text.split()) or width < 200


def test_csv_json_and_latex_have_the_published_figures(found: list[Row]) -> None:
    flat = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert [line["suite/a/top1.mean"] for line in flat] == ["0.605", "0.6", ""]
    assert [line["suite/a/top1.published_percent"] for line in flat] == ["63.03", "38.84", ""]
    assert flat[0]["published_model"] == "AugReg B/16 at 384 px (timm, August 2026)"
    assert "suite/c/top1.published_percent" not in flat[0]
    tree = json.loads(to_json(found))
    assert tree[0]["metrics"]["suite/a/top1"]["mean"] == pytest.approx(0.605)
    figures = dict(zip(("val", "real", "v2", "a", "r", "sketch"), FIGURES["AugReg B/16"], strict=True))
    assert tree[0]["published_test_sets"] == {
        "model": "AugReg B/16", "image_size": 384, "source": "timm, August 2026", "top1_percent": figures
    }  # fmt: skip
    assert tree[2]["published_test_sets"] == {}
    results, suite, _ = to_latex(found).split("\\end{tabular}\n")
    assert "suite" not in results
    assert "published: AugReg B/16 (timm, August 2026) & 384 & 86.01 & 89.97 & 76.16" in suite
    assert "85.50 $\\pm$ 0.71" in suite
    heads, *body = [line for line in suite.splitlines() if line.endswith("\\\\")]
    assert {line.count(" & ") for line in body} == {heads.count(" & ")} == {10}
    only_plain = [row for row in found if row.name == "plain"]
    assert "published_model" not in to_csv(only_plain)
    assert to_latex(only_plain).count("tabular") == 2


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_s_table_in_chromium(found: list[Row], tmp_path: Path, width: int) -> None:
    written = tmp_path / "compare.html"
    written.write_text(page(found, "Runs", "made by hand"))
    table = "[...document.querySelectorAll('table.sortable')][1]"
    lines = f"[...{table}.tBodies[0].rows]"
    with open_browser() as browser:
        browser.resize(width, 1000)
        browser.open(written.as_uri())
        assert browser.run("return document.documentElement.scrollWidth") <= width
        names = f"return {lines}.filter(line => !line.hidden).map(line => line.cells[0].textContent)"
        first = browser.run(names)
        assert first == [row.name for row in suite_rows(found)]
        assert browser.run(f"return {lines}[2].cells[2].textContent") == "86.01"
        assert browser.run("return document.querySelectorAll('.results input').length") == 3
        # sorted by ImageNet-A, with the published rows; filtered like the results, by words of either table
        browser.run(f"{table}.querySelector('thead th:nth-child(6) button').click()")
        assert browser.run(names) == [first[2], first[0], first[1], first[3]]
        browser.type("#filter", "large 60.00")
        assert browser.run(names) == [first[2], first[1], first[3]]
        browser.screenshot(tmp_path / "page.png")
        assert not browser.complaints()


def test_a_page_without_results_has_no_such_table(tmp_path: Path) -> None:
    write_run(tmp_path / "plain")
    assert "Test sets" not in page(rows(read_runs(tmp_path)), "Runs", "made by hand")
