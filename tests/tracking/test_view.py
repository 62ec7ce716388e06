"""The address that a run prints at its end, in MLflow's real pages."""

import time
from pathlib import Path

from pipeline.tracking.view import address, how_to_look
from tests.helpers.browser import Browser, open_browser
from tests.helpers.mlflow_runs import jobs_sync
from tests.helpers.mlflow_server import Server
from tests.helpers.runs import write_run

HEADS = "return [...document.querySelectorAll('[role=columnheader]')].map(head => head.innerText.trim())"
RUNS = "return [...document.querySelectorAll('[role=row] a[href*=\"/runs/\"]')].map(link => link.innerText.trim())"
TEXT = "return document.body.innerText"


def _is_shown(browser: Browser) -> bool:
    """Whether the page has all that it loads piece by piece."""
    return "eval/top1" in browser.run(HEADS) and len(browser.run(RUNS)) >= 2 and "0.9" in browser.run(TEXT)


def test_the_address_shows_every_run_with_its_metrics(tmp_path: Path, server: Server) -> None:
    """The best first, a fine-tune in a row of its own, and no prompt of the GenAI mode."""
    parent = write_run(tmp_path / "pretrain", top1=0.5, experiment="seen")
    tuned = write_run(tmp_path / "tuned", top1=0.9, stage="finetune", parent=parent, experiment="seen")
    jobs_sync(parent, tuned, uri=server.uri)
    page = how_to_look(tuned)
    assert page.startswith(f"{server.uri}/#/experiments/")
    with open_browser() as browser:
        browser.resize(1600, 900)
        browser.open(page)
        deadline = time.monotonic() + 120
        while not _is_shown(browser) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert "eval/top1" in browser.run(HEADS)
        assert browser.run(RUNS) == ["tuned", "pretrain"]
        assert "0.9" in browser.run(TEXT)


def test_a_run_in_a_file_says_how_to_serve_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "my runs" / "run")
    assert how_to_look(run) == ""
    jobs_sync(run, uri=f"sqlite:///{tmp_path}/my runs/mlflow.db")
    command, _, page = how_to_look(run).partition(", then open ")
    assert command == f"mlflow ui --backend-store-uri 'sqlite:///{tmp_path}/my runs/mlflow.db'"
    assert page == "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=vit"


def test_a_password_is_no_part_of_the_address() -> None:
    assert "hunter2" not in address("https://alice:hunter2@host/mlflow/", "7")
    assert address("https://host/mlflow/", "7").startswith("https://host/mlflow/#/experiments/7/runs?")
