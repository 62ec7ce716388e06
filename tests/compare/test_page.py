"""compare.html in a real browser: what it shows, what its controls do, and that untrusted names stay text."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.compare.html import page
from pipeline.compare.page_data import page_data, thinned, to_script
from pipeline.compare.plots import REFERENCE
from pipeline.compare.read_runs import Run
from pipeline.compare.rows import rows
from pipeline.core.files import write_json
from pipeline.runs.folder import METRICS
from pipeline.runs.records import Line, read_record, write_record
from pipeline.runs.records import to_json as line_to_json
from tests.helpers.browser import Browser, open_browser
from tests.helpers.runs import read_runs, write_run

HOSTILE = '</script><script>document.title="caught"</script><img src=x onerror=\'document.title="caught"\'>&amp;"'


def curve(steps: int, top1: float, *, evaluated_every: int = 10) -> list[Line]:
    lines = []
    for step in range(1, steps + 1):
        share = step / steps
        metrics = {
            "train/loss": 4 * math.exp(-3 * share), "train/lr": 1e-3 * (1 - share), "train/grad_norm": 1.0,
            "speed/images_per_second": 100.0, "progress/epochs": 3 * share, "progress/device_hours": 2 * share,
            "progress/goodput": 0.9,
        }  # fmt: skip
        if step % evaluated_every == 0:
            metrics |= {"eval/top1": top1 * share, "eval/loss": 3 - 2 * share}
        lines.append(Line(step, 64 * step, 1000.0 + 36 * step, 1, metrics))
    return lines


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of nine rows: a pretrain run with a hostile name, its fine-tune over two seeds, and seven others."""
    folder = tmp_path_factory.mktemp("page")
    parent = write_run(folder / "runs" / "parent", top1=0.5)
    facts = json.loads((parent / "run.json").read_text())
    train = {"name": f"flowers {HOSTILE}", "digest": "d" * 32, "context": "train"}
    write_json(parent / "run.json", facts | {"datasets": [train]})
    record = read_record(parent)
    assert record is not None
    write_record(parent, replace(record, name=HOSTILE))
    names = {"parent": 0.5, "tune-0": 1.0, "tune-1": 0.98} | {f"other-{index}": 0.1 * index for index in range(1, 8)}
    for name, top1 in names.items():
        tuned = name.startswith("tune")
        if name != "parent":
            lr, seed = (1e-3, int(name[-1])) if tuned else (1e-2 * int(name[-1]), 0)
            stage = "finetune" if tuned else "pretrain"
            write_run(folder / "runs" / name, seed=seed, lr=lr, stage=stage, parent=parent if tuned else None)
        (folder / "runs" / name / METRICS).write_bytes(b"".join(map(line_to_json, curve(200, top1))))
    (folder / "compare.html").write_text(page(rows(read_runs(folder / "runs")), f"Runs {HOSTILE}", "made by hand"))
    return folder / "compare.html"


def names(browser: Browser) -> list[str]:
    """Names of the rows that the table shows, in order."""
    lines = "[...document.querySelectorAll('.results tbody tr')]"
    return list(browser.run(f"return {lines}.filter(line => !line.hidden).map(line => line.cells[0].textContent)"))


def ink(browser: Browser) -> list[int]:
    """The number of painted pixels on each chart's canvas."""
    return list(
        browser.run("""return [...document.querySelectorAll("#charts canvas")].map(canvas => {
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        let count = 0; for (let at = 3; at < pixels.length; at += 4) count += pixels[at] > 0; return count })""")
    )


def test_the_page_in_chromium(written: Path, browser: Browser, tmp_path: Path) -> None:
    browser.resize(1280, 1000)
    browser.open(written.as_uri())
    # complete, no errors in the console, no other file loaded; untrusted names are text
    assert browser.run("return document.title") == f"Runs {HOSTILE}"
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    assert browser.run("return document.querySelectorAll('img, script:not([type])').length") == 2, "uPlot's and ours"
    shown = names(browser)
    assert shown[:2] == [HOSTILE, "↳ tune-0 and 1 other seed"]
    assert len(shown) == 9
    assert "flowers " + HOSTILE in browser.run("return document.querySelector('.results tbody tr').textContent")
    charts = "return [...document.querySelectorAll('#charts figcaption')].map(c => c.textContent)"
    assert browser.run(charts) == ["top-1", "training loss", "evaluation loss", "learning rate"]
    before = ink(browser)
    assert min(before) > 2000

    # the axis of a percentage ends at 100 %, also if smoothed or logarithmic
    scale = "return [charts[0].plot.scales.y.min, charts[0].plot.scales.y.max]"
    low, high = browser.run(scale)
    assert 0 <= low < high <= 1
    browser.click("#log")
    assert browser.run(scale)[1] <= 1
    browser.click("#log")

    # filter, sort, show and hide: curves and bars follow
    browser.type("#filter", "other- fini")
    assert names(browser) == [f"other-{index}" for index in range(7, 0, -1)]
    assert browser.run("return charts[0].curves.length") == 7
    assert browser.run("return [...document.querySelectorAll('.bar')].filter(b => !b.hidden).length") == 4 * 7
    assert browser.run("return new Set(colours.values()).size") == 7, "while few are shown each has a colour"
    browser.click(".results thead th:nth-child(6) button")  # top-1, the best first
    assert names(browser)[0] == "other-7"
    browser.click(".results thead th:nth-child(6) button")
    assert names(browser)[0] == "other-1"
    assert browser.run("return document.querySelector('th[aria-sort]').textContent") == "top-1 %"
    browser.click("#none")
    assert browser.run("return charts[0].curves.length") == 0
    browser.click("tr[data-row='2'] input")
    assert browser.run("return charts[0].curves.map(c => c.name)") == ["other-7"]
    browser.run("document.getElementById('filter').value = ''; state.filter = ''; setHidden([])")

    # smoothing keeps the first value and stays within the range of the values
    raw = browser.run("return charts[1].curves[0].ys")
    browser.run("const s = document.getElementById('smoothing'); s.value = 0.9; s.dispatchEvent(new Event('input'))")
    smoothed = browser.run("return charts[1].curves[0].ys")
    average, total = 0.0, 0.0
    for value, shown_value in zip(raw, smoothed, strict=True):
        average, total = 0.9 * average + 0.1 * value, 0.9 * total + 0.1
        assert shown_value == pytest.approx(average / total, rel=1e-6)

    # every axis has its values
    for axis, last in (("samples", 12800), ("step", 200), ("epochs", 3), ("device-hours", 2), ("hours", 1.99)):
        browser.run(
            "const [select, axis] = [document.getElementById('axis'), arguments[0]]; select.value = axis; "
            "select.dispatchEvent(new Event('change'))",
            axis,
        )
        assert browser.run("return rangeX(charts[0].curves)[1]") == pytest.approx(last)

    # hover reads values; a drag zooms all charts, a double click goes back
    browser.run("document.querySelector('#charts').scrollIntoView()")
    over = "#charts figure:nth-child(1) .u-over"
    browser.move(over, (0, 0), (3, 3))
    assert not browser.run("return charts[0].tooltip.hidden")
    assert re.match(r"hours since .*: [\d.]+", browser.run("return charts[0].tooltip.textContent"))
    browser.move(over, (-60, 0), (60, 0), drag=True)
    zoomed = browser.run("return charts.map(c => [c.plot.scales.x.min, c.plot.scales.x.max])")
    assert zoomed[0][1] - zoomed[0][0] < 1.5
    assert all(each == zoomed[0] for each in zoomed)
    browser.click("#zoomed")
    assert browser.run("return state.zoom") is None

    # with the keyboard alone: reach a chart, read the next value
    browser.run("charts[0].host.focus()")
    browser.type("#charts .chart", "\ue014\ue014")  # arrow right, twice
    assert re.search(r", hours since .*: [\d.]+%$", browser.run("return charts[0].spoken.textContent"))
    controls = "[...document.querySelectorAll('button, input, select, summary, .chart')]"
    assert browser.run(f"return {controls}.every(each => each.tabIndex >= 0)")

    # a phone in dark mode: nothing wider than the window, dark colours
    browser.run("document.getElementById('all').click()")
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    browser.resize(400, 800)
    browser.dark(on=True)
    browser.run("return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert browser.run("return document.documentElement.scrollWidth") <= 400
    assert browser.run("return getComputedStyle(document.body).backgroundColor") != paper
    assert browser.run("return charts.every(c => c.plot.width <= 400)")
    assert browser.run("return palette[6]") == "#ececec", "black curves are white"
    browser.screenshot(tmp_path / "page.png")
    browser.dark(on=False)
    assert not browser.complaints()
    assert browser.run("return document.title") == f"Runs {HOSTILE}"


def test_the_published_course_of_a_fine_tuning_lies_behind_its_curve(browser: Browser, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for seed in range(2):
        write_run(runs / f"s{seed}", stage="finetune", recipe="b16_deit3_224", seed=seed, classes=1000, top1=0.8)
    write_run(runs / "fast", stage="finetune", recipe="b16_deit3_224", lr=1e-2, classes=1000, top1=0.7)
    write_run(runs / "plain", stage="finetune", recipe="b16", classes=1000, size=384, top1=0.6)
    written = tmp_path / "course.html"
    written.write_text(page(rows(read_runs(runs)), "Courses", "made by hand", "epochs"))
    browser.resize(1280, 1000)
    browser.open(written.as_uri())

    grey = "const grey = charts[0].curves.filter(curve => curve.row === null); "
    drawn = browser.run(grey + "return grey.map(c => [c.name, c.xs.at(0), c.ys.at(0), c.xs.at(-1), c.ys.at(-1)])")
    assert drawn == [["b16_deit3_224, published", 5, pytest.approx(0.83445), 50, pytest.approx(0.85698)]], "once"
    assert browser.run("return charts[0].metric.name") == "eval/top1"
    assert browser.run("return charts[1].curves.every(curve => curve.row !== null)")
    assert browser.run("return [...document.querySelectorAll('.references')].map(line => line.textContent.trim())") == [
        "b16_deit3_224, published"
    ]
    assert browser.run("return document.querySelectorAll('.results input').length") == 3, "no checkbox of its own"

    # its own grey is on the canvas, inside both ranges
    assert browser.run("const {x, y} = charts[0].plot.scales; return [x.max, y.max > 0.857]") == [50, True]
    assert browser.run("return palette.reference") == REFERENCE
    painted = """const canvas = document.querySelector("#charts canvas");
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let count = 0; for (let at = 0; at < data.length; at += 4)
          count += [0, 1, 2].every(channel => data[at + channel] === 0xa0) && data[at + 3] === 255;
        return count"""
    assert browser.run(painted) > 300

    # the other axes: no published curve on an axis that its epochs can't be converted to
    for axis, first in (("samples", 5 * 1_281_167), ("step", 5 * 1_281_167 / 2048), ("hours", None)):
        browser.run(
            "const [select, axis] = [document.getElementById('axis'), arguments[0]]; select.value = axis; "
            "select.dispatchEvent(new Event('change'))",
            axis,
        )
        assert browser.run(grey + "return grey.map(c => c.xs[0])") == ([pytest.approx(first)] if first else [])
    assert browser.run(painted) < 100
    assert browser.run("return document.querySelector('.references')") is None
    browser.run("document.getElementById('axis').value = state.axis = 'epochs'; update()")

    # smoothing leaves the published curve unchanged, the keyboard reads it, and it disappears with its last row
    browser.run("state.smoothing = 0.9; update()")
    assert browser.run(grey + "return grey[0].ys[0]") == pytest.approx(0.83445)
    browser.run("charts[0].host.focus()")
    browser.type("#charts .chart", "\ue013\ue010")  # arrow up: the last curve; End: its last value
    assert browser.run("return charts[0].spoken.textContent") == "b16_deit3_224, published, epochs 50: 85.7%"
    browser.type("#filter", "fast")
    assert browser.run(grey + "return grey.length") == 1
    browser.run("document.getElementById('filter').value = state.filter = 'plain'; showRows()")
    assert browser.run(grey + "return grey.length") == 0
    assert not browser.complaints()


def test_pages_without_such_a_fine_tuning_have_no_reference(tmp_path: Path) -> None:
    for number, (recipe, classes) in enumerate((("b16_deit3_224", 10), ("b16", 1000))):
        write_run(tmp_path / str(number), stage="finetune", recipe=recipe, classes=classes)
    assert page_data(rows(read_runs(tmp_path)), "epochs")["references"] == []


def test_without_javascript_the_figures_are_there(written: Path) -> None:
    text = written.read_text()
    table = text[: text.index("<script")]
    assert "<noscript>" in table
    assert "99.00 ±&nbsp;1.41" in table
    assert table.count('class="bar"') == 4 * 9
    assert "&lt;/script&gt;" in table
    assert HOSTILE not in text


def test_the_pages_policy_lets_nothing_else_run(written: Path, browser: Browser, tmp_path: Path) -> None:
    """A script that is injected into the page doesn't run, and nothing is loaded."""
    broken = tmp_path / "broken.html"
    foreign = "<script>document.title='caught'</script><img src=x.png>"
    broken.write_text(written.read_text().replace("<h1>", f"{foreign}<h1>"))
    browser.open(broken.as_uri())
    assert browser.run("return document.title") == f"Runs {HOSTILE}"
    assert len(names(browser)) == 9
    complaints = " ".join(browser.complaints())
    assert "Content Security Policy" in complaints


def test_thinned_lines_keep_every_spike() -> None:
    lines = curve(10_000, 0.5)
    lines[4321] = replace(lines[4321], metrics=lines[4321].metrics | {"train/loss": 1e6})
    lines[7777] = replace(lines[7777], metrics=lines[7777].metrics | {"train/loss": math.nan})
    kept = thinned(lines, 400)
    assert 200 <= len(kept) <= 402
    assert lines[4321] in kept
    assert (kept[0], kept[-1]) == (lines[0], lines[-1])
    assert thinned(lines[:400], 400) == lines[:400]


def many(count: int, lines: int) -> list[Run]:
    config = {"stage": "pretrain", "recipe": "b16", "train.seed": "0"}
    return [
        Run(f"run-{index}", f"/runs/{index}", "finished", config | {"optim.lr": str(index)}, {}, {},
            curve(lines, 0.4 + index / 500))
        for index in range(count)
    ]  # fmt: skip


def test_numbers_that_json_lacks_are_gaps() -> None:
    (run,) = many(1, 20)
    run.lines[9].metrics["eval/top1"] = math.nan
    text = to_script(page_data(rows([run]), "samples"))
    (data,) = json.loads(text, parse_constant=pytest.fail)["rows"]
    assert data["runs"][0]["y"]["eval/top1"] == [*[None] * 19, 0.4]


@pytest.mark.soak
def test_two_hundred_runs_open_within_two_seconds(browser: Browser, tmp_path: Path) -> None:
    written = tmp_path / "many.html"
    written.write_text(page(rows(many(200, 1800)), "Many", "made by hand"))
    assert written.stat().st_size < 6_000_000
    browser.resize(1280, 1000)
    browser.open(written.as_uri())
    opened = browser.run("return performance.getEntriesByType('navigation')[0].loadEventEnd")  # milliseconds
    redrawn = browser.run("const from = performance.now(); update(); return performance.now() - from")
    print(f"{written.stat().st_size:,} bytes, opened in {opened:.0f} ms, drawn again in {redrawn:.0f} ms")
    assert len(names(browser)) == 200
    assert min(ink(browser)) > 2000
    assert opened < 2000
    assert redrawn < 500
