"""Runs side by side: which runs share a row, what a row shows, and every output format."""

import csv
import io
import json
import math
import shutil
import statistics
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.colors import to_hex
from PIL import Image
from rich.console import Console

from pipeline.compare.html import page
from pipeline.compare.plots import OTHERS, REFERENCE, draw_all
from pipeline.compare.read_runs import find_run_folders, read_run
from pipeline.compare.rows import differences, published, rows, select
from pipeline.compare.tables import terminal, to_csv, to_json, to_latex
from pipeline.core.files import write_json
from pipeline.runs import evaluations, suite_results
from pipeline.runs.curves import COLOURS
from pipeline.runs.folder import EVALUATIONS, METRICS
from pipeline.runs.records import Attempt, Line, Record, read_record, write_record
from pipeline.runs.records import to_json as line_to_json
from pipeline.runs.suite_results import Result
from tests.helpers.mlflow_runs import jobs_sync
from tests.helpers.mlflow_server import Server
from tests.helpers.quick_python import executable
from tests.helpers.runs import read_runs, write_run


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """A pretrain run, fine-tuned with three seeds and with another rate; and a worse one without fine-tunes."""
    runs = tmp_path / "runs"
    parent = write_run(runs / "b16", top1=0.5, team="vision")
    for seed, top1 in enumerate((0.84, 0.85, 0.86)):
        write_run(runs / f"ft-{seed}", stage="finetune", seed=seed, top1=top1, parent=parent, classes=1000, size=384)
    write_run(runs / "ft-fast", stage="finetune", lr=0.1, top1=0.7, parent=parent, classes=1000, size=384)
    write_run(runs / "b32", recipe="b32", top1=0.4)
    return runs


def test_seeds_share_a_row_under_the_run_they_started_from(family: Path) -> None:
    found = rows(read_runs(family))
    assert [(row.name, row.depth, len(row.runs)) for row in found] == [
        ("b16", 0, 1),
        ("ft-0 and 2 other seeds", 1, 3),
        ("ft-fast", 1, 1),
        ("b32", 0, 1),
    ]
    top1 = found[1].results["eval/top1"]
    assert top1.n == 3
    assert top1.mean == pytest.approx(statistics.fmean((0.84, 0.85, 0.86)))
    assert top1.std == pytest.approx(statistics.stdev((0.84, 0.85, 0.86)))
    assert math.isnan(found[0].results["eval/top1"].std)


def test_other_data_are_another_row(family: Path) -> None:
    facts = json.loads((family / "ft-1" / "run.json").read_text())
    write_json(family / "ft-1" / "run.json", facts | {"dataset_digest": "e" * 32})
    assert sorted(len(row.runs) for row in rows(read_runs(family))) == [1, 1, 1, 1, 2]


@pytest.mark.parametrize("code", [{"commit": "b" * 40}, {"dirty": "b" * 32}, {"packages": {"torch": "2.1.0"}}])
def test_another_code_is_another_row_that_says_so(family: Path, code: dict[str, Any]) -> None:
    facts = json.loads((family / "ft-1" / "run.json").read_text())
    write_json(family / "ft-1" / "run.json", facts | {"code": code})
    found = rows(read_runs(family))
    assert sorted(len(row.runs) for row in found) == [1, 1, 1, 1, 2]
    assert any(name.startswith(("code.", "package.")) for name in differences(found, "facts"))


def test_a_copy_of_a_run_is_no_second_seed(family: Path) -> None:
    shutil.copytree(family / "ft-0", family / "backup" / "ft-0")
    found = rows([*read_runs(family), *read_runs(family / "backup")])
    assert sorted(len(row.runs) for row in found) == [1, 1, 1, 1, 3]
    assert {run.name for row in found for run in row.runs} >= {"ft-0", "backup/ft-0"}


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / user / "b16", lr=lr) for user, lr in (("alice", 0.1), ("bob", 0.2))]
    found = rows([read_run(folder) for folder in folders])
    figure = draw_all(found, "samples")["eval_top1"]
    assert {row.name for row in found} == {text.get_text() for text in figure.legends[0].get_texts()}
    assert {row.name for row in found} == {"alice/b16", "bob/b16"}


def test_families_stand_in_the_order_of_their_best_run(family: Path) -> None:
    write_run(family / "scratch", stage="finetune", top1=0.6, classes=1000, size=384)
    (family / "b16" / METRICS).write_bytes(line_to_json(Line(1, 8, 101.0, 1, {"train/loss": 2.0})))  # not evaluated
    found = [row.name for row in rows(read_runs(family))]
    assert found == ["b16", "ft-0 and 2 other seeds", "ft-fast", "scratch", "b32"]


def test_a_fine_tune_of_a_fine_tune_stands_under_it(tmp_path: Path) -> None:
    parent = None
    for name in ("b16", "b16-224", "b16-384", "b16-384-birds"):
        parent = write_run(tmp_path / name, stage="finetune" if parent else "pretrain", parent=parent)
    assert [(row.name, row.depth) for row in rows(read_runs(tmp_path))] == [
        ("b16", 0), ("b16-224", 1), ("b16-384", 2), ("b16-384-birds", 3)
    ]  # fmt: skip


def test_a_run_has_one_colour_in_all_figures_and_the_best_have_one(tmp_path: Path) -> None:
    parent = write_run(tmp_path / "parent")
    (parent / METRICS).write_bytes(line_to_json(Line(1, 8, 101.0, 1, {"train/loss": 2.0})))
    for index in range(8):
        write_run(
            tmp_path / f"{index}", top1=0.1 * (index + 1), lr=0.01 * (index + 1), parent=parent if index else None
        )
    figures = draw_all(rows(read_runs(tmp_path)), "samples")
    for name in ("eval_top1", "train_loss"):
        (legend,) = figures[name].legends
        shown = {text.get_text(): line.get_color() for text, line in zip(legend.texts, legend.get_lines(), strict=True)}
        assert shown == {str(index): COLOURS[7 - index] for index in range(7, 0, -1)}
        assert f"the best 7 by top-1 in colour, {1 if name == 'eval_top1' else 2} more" in legend.get_title().get_text()


def test_axes_of_shares_end_at_100_percent(tmp_path: Path) -> None:
    for index in range(3):
        write_run(tmp_path / f"{index}", top1=1.0 - 0.001 * index, lr=0.01 * (index + 1))
    found = rows(read_runs(tmp_path))
    figures = draw_all(found, "samples")
    assert figures["eval_top1"].axes[0].get_ylim()[1] == 1.0
    for name in ("bars_eval_top1", "bars_progress_goodput"):
        assert figures[name].axes[0].get_xlim()[1] <= 1.0


def test_bars_have_the_colours_of_the_curves(tmp_path: Path) -> None:
    for index in range(9):
        write_run(tmp_path / f"{index}", top1=0.9 - 0.1 * index, lr=0.01 * (index + 1))
    (axes,) = draw_all(rows(read_runs(tmp_path)), "samples")["bars_eval_top1"].axes
    assert [to_hex(bar.get_facecolor()).upper() for bar in axes.patches] == [*COLOURS, *2 * [OTHERS.upper()]]


def test_the_best_value_of_a_run_is_kept_beside_the_last(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    values = [(0.5, 1.0), (0.9, 0.4), (math.nan, math.nan), (0.7, 0.6)]
    lines = [
        Line(step, step, step, 1, {"eval/top1": top1, "eval/loss": loss}) for step, (top1, loss) in enumerate(values)
    ]
    (folder / METRICS).write_bytes(b"".join(map(line_to_json, lines)))
    (row,) = rows(read_runs(tmp_path))
    assert (row.results["eval/top1"].mean, row.best["eval/top1"].mean) == (0.7, 0.9)
    assert (row.results["eval/loss"].mean, row.best["eval/loss"].mean) == (0.6, 0.4)


def test_a_seed_that_isn_t_at_its_end_is_another_row(family: Path) -> None:
    record = read_record(family / "ft-1")
    assert record is not None
    write_record(family / "ft-1", replace(record, attempts=[Attempt(1, 0, 100.0, 1, {}, "FAILED", 111.0)]))
    assert sorted(len(row.runs) for row in rows(read_runs(family))) == [1, 1, 1, 1, 2]


EVAL = {"context": "eval", "digest": "1" * 32}


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ({}, {"parent": {"weights": "B_16.npz"}}, False),  # scratch against published weights
        ({"parent": {"weights": "a/B_16.npz"}}, {"parent": {"weights": "b/B_16.npz"}}, False),
        ({"parent": {"weights": "a", "digest": "7"}}, {"parent": {"weights": "b", "digest": "7"}}, True),
        ({"parent": {"run_dir": "/x", "step": 1}}, {"parent": {"run_dir": "/x", "step": 2}}, False),
        ({"parent": {"run_dir": "/x", "step": 1}}, {"parent": {"run_dir": "/y", "step": 1}}, False),
        ({"parent": {"run_dir": "/x", "step": 1}}, {"parent": {"run_dir": "/z/../x", "step": 1}}, True),
        ({"eval_digest": "1" * 32}, {"eval_digest": "2" * 32}, False),
        ({"eval_digest": "1" * 32}, {"datasets": [EVAL]}, True),
        ({"datasets": [EVAL]}, {"datasets": [EVAL | {"digest": "2" * 32}]}, False),
        ({"data.eval": "photos"}, {"data.eval": "sketches"}, False),  # without digests the names decide
        ({"data.eval": "photos", "datasets": [EVAL]}, {"data.eval": "moved/photos", "datasets": [EVAL]}, True),
    ],
)
def test_seeds_have_one_origin_and_one_evaluation_set(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], *, together: bool
) -> None:
    for seed, own in enumerate((one, other)):
        folder = write_run(tmp_path / f"ft-{seed}", stage="finetune", seed=seed)
        facts, config = (json.loads((folder / name).read_text()) for name in ("run.json", "config.json"))
        write_json(folder / "config.json", config | {"data": {"eval": own.get("data.eval", "")}})
        write_json(folder / "run.json", facts | own)
    found = rows(read_runs(tmp_path))
    assert len(found) == (1 if together else 2)
    assert not differences(found, "facts").keys() - {"origin", "eval_data"}
    assert bool(differences(found, "facts")) != together


def test_other_checkpoints_of_parents_that_are_seeds_are_other_rows(tmp_path: Path) -> None:
    for seed, step in enumerate((10, 10, 20)):
        parent = write_run(tmp_path / f"b16-{seed}", seed=seed)
        child = write_run(tmp_path / f"ft-{seed}", stage="finetune", seed=seed, parent=parent)
        facts = json.loads((child / "run.json").read_text())
        write_json(child / "run.json", facts | {"parent": {**facts["parent"], "step": step}})
    assert [len(row.runs) for row in rows(read_runs(tmp_path))] == [3, 2, 1]


def test_a_run_is_one_however_it_is_reached(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (family / "best").symlink_to(family / "b32")
    (family.parent / "link").symlink_to(family)
    monkeypatch.chdir(family)
    again = [family, Path("b32"), Path(), family.parent / "link", family / "b16" / ".." / "b32"]
    found = [read_run(path) for path in find_run_folders(again)]
    assert len({run.path for run in found}) == len(found) == 6
    assert [row.depth for row in rows(found)] == [0, 1, 1, 0]


def test_choosing(family: Path) -> None:
    runs = read_runs(family)

    def chosen(recipe: str = "", parent: str = "", **tags: str) -> set[str]:
        return {run.name for run in select(runs, recipe=recipe, tags=tags, parent=parent)}

    fine_tuned = {"ft-0", "ft-1", "ft-2", "ft-fast"}
    assert chosen() == fine_tuned | {"b16", "b32"}
    assert chosen(recipe="b16") == fine_tuned | {"b16"}
    assert chosen(recipe="finetune b16") == fine_tuned
    assert chosen(team="vision") == {"b16"}
    assert chosen(parent="b16") == chosen(parent=str(family / "b16")) == fine_tuned
    assert chosen(recipe="l16") == set()


def test_the_published_course_of_a_fine_tuning_is_drawn_in_grey(family: Path, tmp_path: Path) -> None:
    runs = tmp_path / "deit3"
    write_run(runs / "ours", stage="finetune", recipe="b16_deit3_224", classes=1000, size=224, top1=0.85)
    found = rows(read_runs(runs / "ours"))
    for against, first in (("epochs", 5.0), ("samples", 5 * 1_281_167), ("step", 5 * 1_281_167 / 2048)):
        (axes,) = draw_all(found, against)["eval_top1"].axes
        grey = next(curve for curve in axes.lines if curve.get_color() == REFERENCE)
        assert grey.get_xdata()[0] == pytest.approx(first)
        assert (grey.get_ydata()[0], grey.get_ydata()[-1]) == (pytest.approx(0.83445), pytest.approx(0.85698))
    assert any(
        "b16_deit3_224, published" in text.get_text() for text in _legend(draw_all(found, "epochs")["eval_top1"])
    )
    for others, against in ((found, "device-hours"), (rows(read_runs(family)), "epochs")):
        (axes,) = draw_all(others, against)["eval_top1"].axes
        assert all(curve.get_color() != REFERENCE for curve in axes.lines)
    (axes,) = draw_all(found, "epochs")["train_loss"].axes
    assert all(curve.get_color() != REFERENCE for curve in axes.lines)


def _legend(figure: Any) -> list[Any]:
    return [text for legend in figure.legends for text in legend.get_texts()]


def test_published_figures_only_where_the_task_is_the_same(family: Path) -> None:
    by_name = {run.name: run for run in read_runs(family)}
    assert published(by_name["ft-0"]) == {"ViT paper, Table 5": 83.97, "AugReg, 300 epochs": 85.49}
    assert published(by_name["b16"]) == {}  # ten classes


def test_only_what_differs_is_listed(family: Path) -> None:
    found = rows(read_runs(family))
    changed = differences(found)
    assert changed["optim.lr"] == ["0.001", "0.001", "0.1", "0.001"]
    assert changed.keys() == {"optim.lr", "stage", "model.image_size"}
    facts = differences(found, "facts")
    assert facts.pop("origin") == ["", *2 * [f"{family.resolve() / 'b16'} step ?"], ""]
    assert facts == {"classes": ["10", "1000", "1000", "10"]}


def test_terminal(family: Path) -> None:
    odd = write_run(family / "odd", top1=0.3)
    record = read_record(odd)
    assert record is not None
    write_record(odd, replace(record, name="odd [bold]x[/odd]"))
    config = json.loads((odd / "config.json").read_text())
    write_json(odd / "config.json", config | {"odd": {"[/lr]": "[/lr]"}})
    console = Console(width=200, record=True, quiet=False)
    with console.capture() as capture:
        for table in terminal(rows(read_runs(family)), width=200):
            console.print(table)
    text = capture.get()
    assert "odd [bold]x[/odd]" in text
    assert "odd.[/lr]" in text
    assert "↳ ft-0 and 2 other seeds" in text
    assert "85.00 ± 1.00" in text
    assert "83.97 (ViT paper, Table 5; +1.03)" in text


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_narrow_terminal_breaks_no_figure(family: Path, width: int) -> None:
    write_run(family / "a-long-name-of-a-run-lr0.03-wd0.1", top1=0.2, parent=family / "b16")
    console = Console(width=width)
    with console.capture() as capture:
        console.print(terminal(rows(read_runs(family)), width=width)[0])
    text = capture.get()
    figures = [line.split() for line in text.splitlines() if "finished" in line]
    assert len(figures) == 5
    assert all(len(line) <= width for line in text.splitlines())
    assert "85.00 ± 1.00" in text
    assert "↳ a-long-name" in text
    assert ("no room for" in text) == (width < 200)


def test_csv_and_json_say_the_same(family: Path) -> None:
    found = rows(read_runs(family))
    flat = list(csv.DictReader(io.StringIO(to_csv(found))))
    tree = json.loads(to_json(found), parse_constant=pytest.fail)
    assert [row["name"] for row in flat] == [row["name"] for row in tree] == [row.name for row in found]
    for line, record, row in zip(flat, tree, found, strict=True):
        for metric, spread in row.results.items():
            assert float(line[f"{metric}.mean"]) == record["metrics"][metric]["mean"] == spread.mean
            assert int(line[f"{metric}.n"]) == record["metrics"][metric]["n"] == spread.n
            assert (line[f"{metric}.std"] == "") == (record["metrics"][metric]["std"] is None) == (spread.n == 1)
        assert line["optim.lr"] == record["config"]["optim.lr"]


def test_latex_is_a_table_whose_rows_have_as_many_cells_as_columns(family: Path) -> None:
    (family / "b32").rename(family / "b32_new")
    write_record(family / "b32_new", Record("k", "vit", "b32_50%&more~\\x^2", {}, {}))
    lines = to_latex(rows(read_runs(family))).splitlines()
    columns = lines[1].count("r", lines[1].index("{l")) - lines[1][lines[1].index("{l") :].count("tabular") + 1
    body = [line for line in lines if line.endswith("\\\\")]
    assert len(body) == 5
    assert all(line.replace("\\&", "").count(" & ") == columns - 1 for line in body)
    assert "b32\\_50\\%\\&more\\textasciitilde{}\\textbackslash{}x\\textasciicircum{}2" in lines[-3]
    assert "85.00 $\\pm$ 1.00" in "".join(lines)
    assert "83.97 / 85.49" in "".join(lines)


def test_every_name_stands_in_the_legend_as_it_is(tmp_path: Path) -> None:
    names = ["$x_$ and $\\frac$", "_first", "\u732b"]
    for index, name in enumerate(names):
        write_run(tmp_path / f"{index}" / name, lr=1e-3 * (index + 1))
    found = rows([read_run(tmp_path / f"{index}" / name) for index, name in enumerate(names)])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        figures = draw_all(found, "samples")
    assert not told
    legend = {text.get_text() for text in figures["eval_top1"].legends[0].get_texts()}
    assert legend == set(names)


@pytest.mark.parametrize("count", [1, 2, 200])
def test_any_number_of_runs(tmp_path: Path, count: int) -> None:
    for index in range(count):
        write_run(tmp_path / "runs" / f"run{index:03d}", lr=1e-3 * (index + 1), top1=0.5 + index / 1000)
    found = rows(read_runs(tmp_path / "runs"))
    assert len(found) == count
    table = terminal(found, width=80)[0]
    assert table.row_count == min(count, 60)
    assert len(draw_all(found, "samples")) >= 6
    text = page(found, "Runs", "made by hand")
    assert text.count("<tr data-row=") == count
    assert len(text) < 4_000_000
    assert len(json.loads(to_json(found))) == len(list(csv.DictReader(io.StringIO(to_csv(found))))) == count


def compare(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(executable()), "-m", "jobs.compare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_writes_table_page_and_pictures(family: Path, tmp_path: Path) -> None:
    done = compare(family, "--out", tmp_path / "png", "--html")
    assert done.returncode == 0, done.stderr
    assert "ft-0 and 2 other seeds" in done.stdout
    names = {path.name for path in (tmp_path / "png").iterdir()}
    assert {"compare.html", "eval_top1.png", "train_loss.png", "bars_progress_goodput.png"} <= names
    for path in (tmp_path / "png").glob("*.png"):
        with Image.open(path) as image:
            assert image.width > 600
            assert len(image.convert("RGB").getcolors(1 << 24)) > 10
    assert f"plots: {tmp_path / 'png'}\n" in done.stderr
    assert f"page: {tmp_path / 'png' / 'compare.html'}\n" in done.stderr
    done = compare(family, "--out", tmp_path / "svg", "--format", "svg", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 4
    for path in (tmp_path / "svg").glob("*.svg"):
        ElementTree.parse(path)
    assert {path.stem for path in (tmp_path / "svg").iterdir()} == {
        path.stem for path in (tmp_path / "png").glob("*.png")
    }
    done = compare(family, "--format", "pdf")
    assert done.returncode == 2
    assert "--format pdf has no effect without plots: leave it out, or add --out FOLDER" in done.stderr


def test_runs_that_only_the_server_has(family: Path, server: Server) -> None:
    """The same comparison from the run folders and, once those are gone, from MLflow: evaluations included."""
    for run, top1 in (("ft-0", 0.6), ("ft-1", 0.7), ("b32", 0.3)):
        result = Result("a", "ImageNet-A", {"samples": 7500.0, "top1": top1}, "key", step=10)
        suite_results.write(family / run / EVALUATIONS, result)
        evaluations.append(family / run, 10, suite_results.metrics(result))
        evaluations.append(family / run, 10, {"evaluation/in1k-val/top1": top1 + 0.1})
    jobs_sync(*sorted(family.iterdir()), uri=server.uri)
    by_folder = json.loads(compare(family, "--json").stdout)
    assert by_folder[1]["metrics"]["suite/a/top1"] == {
        "mean": pytest.approx(0.65),
        "std": pytest.approx(0.0707, abs=1e-4),
        "n": 2,
    }
    assert by_folder[1]["metrics"]["evaluation/in1k-val/top1"]["mean"] == pytest.approx(0.75)
    fine = ["--experiment", "vit", "--mlflow", server.uri, "--json"]
    assert json.loads(compare(*fine).stdout) == by_folder  # read_runs from the folders, which are here
    family.rename(family.with_name("moved"))
    done = compare(*fine)
    assert done.returncode == 0, done.stderr
    assert [without_facts(row) for row in json.loads(done.stdout)] == [without_facts(row) for row in by_folder]
    fine[3] = server.uri.replace("://", "://alice:hunter2@")
    page = ("--html", "--out", family.with_name("out"))
    done = compare(*fine[:-1], "--recipe", "finetune b16", "--parent", family / "b16", "--csv", *page)
    assert "--mlflow http://&lt;hidden&gt;@127.0.0.1" in (family.with_name("out") / "compare.html").read_text()
    assert [row["name"] for row in csv.DictReader(io.StringIO(done.stdout))] == ["ft-0 and 2 other seeds", "ft-fast"]


def without_facts(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "facts"}


@pytest.mark.soak
@pytest.mark.timeout(1200)  # 200 runs to the server
def test_two_hundred_runs_on_a_server(tmp_path: Path, server: Server) -> None:
    for index in range(200):
        folder = tmp_path / "runs" / f"run{index:03d}"
        write_run(folder, seed=index % 4, lr=1e-3 * (index // 4 + 1), experiment="many")
    jobs_sync(*(tmp_path / "runs").iterdir(), uri=server.uri)
    (tmp_path / "runs").rename(tmp_path / "moved")
    done = compare("--experiment", "many", "--mlflow", server.uri, "--out", tmp_path / "out", "--html", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 50
    assert all(len(row["runs"]) == row["metrics"]["eval/top1"]["n"] == 4 for row in found)
    assert (tmp_path / "out" / "compare.html").stat().st_size < 4_000_000


def test_a_damaged_run_is_skipped_with_a_warning(family: Path) -> None:
    (family / "ft-fast" / METRICS).write_bytes(b"rubbish\n" + (family / "ft-fast" / METRICS).read_bytes())
    done = compare(family, "--json")
    assert done.returncode == 0, done.stderr
    assert "warning: ft-fast is skipped: " in done.stderr
    assert len(json.loads(done.stdout)) == 3
    done = compare(family / "ft-fast", "--json")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
