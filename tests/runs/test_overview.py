"""The overview of runs: what a run folder and Slurm's queue say together."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from jobs.status import table
from pipeline.core.errors import UserError
from pipeline.runs.folder import Status, write_status
from pipeline.runs.overview import collect, run_state
from pipeline.runs.records import Attempt, Line, Record, read_record, to_json, write_record
from pipeline.runs.slurm_queue import QueuedJob, jobs_of, parse_queue, read_queue

NOW = 1_800_000_000.0


def make_run(folder: Path, *, state: str = "running", step: int = 40, host: str = "elsewhere", job: str = "12") -> Path:
    run = folder / "pretrain-l16"
    (run / "slurm").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    write_status(run, Status(state, step, 100, 2, 0.0, {}))  # type: ignore[arg-type]
    attempts = [
        Attempt(1, 0, NOW - 900, 1, {"host": host}, "FAILED", NOW - 500),
        Attempt(2, 20, NOW - 400, 1, {"host": host}),
    ]
    write_record(run, Record("key", "vit", "l16", {}, {}, attempts=attempts))
    metrics = {"speed/step_seconds": 2.5, "progress/goodput": 0.75}
    (run / "metrics.jsonl").write_bytes(to_json(Line(30, 300, NOW - 600, 1, {"speed/step_seconds": 99.0})))
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(to_json(Line(40, 400, NOW - 10, 2, metrics)))
    os.utime(run / "metrics.jsonl", (NOW, NOW))
    meta = run / "checkpoints" / "step-00000020" / "meta.json"
    meta.parent.mkdir(parents=True)
    meta.write_text("{}")
    os.utime(meta, (NOW - 90, NOW - 90))
    (run / "checkpoints" / ".step-00000040.tmp").mkdir()
    (run / "slurm" / "attempts.tsv").write_text(
        f"start\t{job}\t0\t0\t1\tnode[1-2]\nend\t{job}\t0\t20\t2\tfailed\nstart\t{job}\t1\t20\t3\tnode[3-4]\n"
    )
    return run


def test_a_running_job(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    queue = {"12": QueuedJob("RUNNING", "None", "node[3-4]")}
    (row,) = collect([run], queue, NOW)
    assert (row.state, row.step, row.steps, row.starts, row.job, row.note) == ("running", 40, 100, 2, "12", "node[3-4]")
    assert row.eta == pytest.approx(60 * 2.5)  # by the attempt that counts
    assert (row.checkpoint_step, row.checkpoint_age) == (20, pytest.approx(90))
    assert row.goodput == 0.75
    assert collect([tmp_path], queue, NOW) == [row]  # a folder of runs
    record = read_record(run)
    assert record is not None
    place = {"host": "node3", "nodes": "node[3,5]"}  # a spare replaces node4
    write_record(run, replace(record, attempts=[record.attempts[0], replace(record.attempts[1], place=place)]))
    job = QueuedJob("RUNNING", "None", "node[3-5]")
    assert collect([run], {"12": job}, NOW)[0].note == "node[3,5] of node[3-5]"
    write_record(run, record)
    json.dumps(row.__dict__)
    assert table([row], 150).row_count == 1


def test_a_job_that_lost_a_node_says_on_how_many_it_trains(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_status(run, Status("running", 40, 100, 2, 0.0, {}, "4 of 8 nodes"))
    assert collect([run], {"12": QueuedJob("RUNNING", "None", "node[1-5]")}, NOW)[0].note == "node[1-5], 4 of 8 nodes"
    assert collect([run], {"12": QueuedJob("PENDING", "Priority", "")}, NOW)[0].note == "Priority"


def test_a_pending_job_says_why(tmp_path: Path) -> None:
    (row,) = collect([make_run(tmp_path)], {"12": QueuedJob("PENDING", "BeginTime", "")}, NOW)
    assert (row.state, row.note, row.eta) == ("pending", "BeginTime", None)


@pytest.mark.parametrize(
    ("folder", "queued", "alive", "expected"),
    [
        (None, None, False, "dead"),
        (None, "RUNNING", False, "starting"),
        ("running", None, False, "dead"),
        ("running", None, True, "running"),
        ("running", "COMPLETING", True, "completing"),
        ("stopped", None, False, "stopped"),
        ("stopped", "PENDING", False, "pending"),
        ("stopped", "RUNNING", False, "starting"),
        ("failed", None, False, "failed"),
        ("finished", "COMPLETING", False, "finished"),
    ],
)
def test_states(folder: str | None, queued: str | None, alive: bool, expected: str) -> None:
    status = Status(folder, 1, 2, 1, 0.0, {}) if folder else None  # type: ignore[arg-type]
    job = QueuedJob(queued, "None", "") if queued else None
    assert run_state(status, job, alive=alive) == expected


def test_a_silent_slurm_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the folders alone would say that a waiting job is none."""
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert read_queue() == {}
    assert "squeue failed (Unable to contact slurm controller): the state below" in caplog.text


def test_the_queue_keeps_jobs_that_have_not_ended() -> None:
    script = "/x/slurm/command.sh a"
    queue = parse_queue(
        f"11|11|11|PENDING|Dependency||me|a|{script}\n12|12|12|COMPLETED|None|node1|me|a|{script}\n"
        f"21|20|20_1|PENDING|Resources||me|a|{script}\n22|20|20_2|RUNNING|None|node2|me|a|{script}\n"
        f"23|20|20_3|PENDING|Resources||me|a|{script}\n31|31|31|SIGNALING|None|node3|me|a|{script}\n"
        f"32|32|32|TIMEOUT|TimeLimit|node3|me|a|{script}\n",
        "me",
    )
    assert queue == {
        "11": QueuedJob("PENDING", "Dependency", "", "11", "11"),
        "21": QueuedJob("PENDING", "Resources", "", "20", "20_1"),
        "22": QueuedJob("RUNNING", "None", "node2", "20", "20_2"),
        "23": QueuedJob("PENDING", "Resources", "", "20", "20_3"),
        "31": QueuedJob("RUNNING", "None", "node3", "31", "31"),
    }


def test_the_stages_of_a_campaign(tmp_path: Path) -> None:
    campaign = tmp_path / "l16"
    campaign.mkdir()
    for stage, job in (("verify", "31"), ("export", "32"), ("evaluate", "33"), ("shard", "34"), ("merge", "36")):
        (campaign / f"{stage}.job").write_text(job + "\n")
    (campaign / "verify.done").touch()
    lines = (
        "32|32|32|PENDING|Dependency|",
        "35|34|34_1|RUNNING|None|node1",
        "34|34|34_2|PENDING|Resources|",
        "36|36|36_1|RUNNING|None|node2",
        "37|36|36_2|PENDING|Resources|",
    )
    # two arrays: of one the first task runs, of the other the last, which has the array's id
    queue = parse_queue("".join(f"{line}|me|x|/x/slurm/command.sh\n" for line in lines), "me")
    rows = {row.name: row for row in collect([tmp_path], queue, NOW)}
    assert {name: (row.state, row.note) for name, row in rows.items()} == {
        "l16/verify": ("done", ""),
        "l16/export": ("pending", "Dependency"),
        "l16/evaluate": ("ended", ""),
        "l16/shard": ("running", "node1"),
        "l16/merge": ("running", "node2"),
    }


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'.*nowhere' does not exist"):
        collect([tmp_path / "nowhere"], {}, NOW)


def test_a_campaign_shows_its_runs_once_they_exist(tmp_path: Path) -> None:
    runs, campaign = tmp_path / "runs", tmp_path / "campaigns" / "l16"
    campaign.mkdir(parents=True)
    (campaign / "pretrain.job").write_text(f"12\n{runs / 'pretrain-l16'}\n")
    (campaign / "shard.job").write_text(f"11\n{tmp_path / 'data'}\n")
    (row,) = [
        row for row in collect([campaign], {"12": QueuedJob("PENDING", "Dependency", "")}, NOW) if row.job == "12"
    ]
    assert (row.name, row.state, row.note) == ("l16/pretrain", "pending", "Dependency")
    make_run(runs)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").touch()
    rows = collect([campaign, runs], {"12": QueuedJob("RUNNING", "None", "node[3-4]")}, NOW)
    assert {row.name: row.state for row in rows} == {"l16/shard": "done", "pretrain-l16": "running"}
    assert len(rows) == 2  # though the run is in both folders
    (campaign / "best").symlink_to(runs / "pretrain-l16")
    make_run(tmp_path / "other")  # a run of the same name is another one
    rows = collect([campaign, runs, tmp_path / "runs" / ".." / "runs", tmp_path / "other"], {}, NOW)
    assert sorted(row.name for row in rows) == ["l16/shard", "pretrain-l16", "pretrain-l16"]


def test_runs_of_one_name_are_all_shown_and_an_arrays_other_tasks_say_nothing_of_its_last(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name)
    (tmp_path / "c").symlink_to(tmp_path / "a")
    queue = parse_queue("13|12|12_0|RUNNING|None|node1|me|x|/x/slurm/command.sh\n")
    rows = collect([tmp_path / "a", tmp_path / "b", tmp_path / "c"], queue, NOW)
    assert [(row.name, row.state, row.note) for row in rows] == [("pretrain-l16", "running", "elsewhere")] * 2


def test_a_damaged_run_hides_no_other(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    bad = make_run(tmp_path / "odd [x]")
    good = (bad / "metrics.jsonl").read_bytes()
    (bad / "metrics.jsonl").write_bytes(b"rubbish\n" + good)
    rows = collect([tmp_path / "a", tmp_path / "odd [x]"], {}, NOW)
    assert [row.state for row in rows] == ["running", "damaged"]
    assert "metrics.jsonl" in rows[1].note
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(table([*rows, replace(rows[0], name="odd [x]")], 300))
    assert "odd [x]" in console.export_text()


def test_which_jobs_train_in_which_run() -> None:
    """By the name of the job or --run-dir, of this user and of our scripts alone."""
    lines = {
        "1": "me|pretrain-l16|/x/slurm/pretrain_l16.sh --optim.lr 3e-4",
        "2": "me|pretrain-l16|/x/slurm/pretrain.sh l16 --run-dir /runs/ours --train.seed 1",
        "3": "me|x|/x/slurm/finetune.sh l16 --run_dir=/runs/ours",
        "4": "other|pretrain-l16|/x/slurm/pretrain.sh l16",
        "5": "me|pretrain-l16|/x/slurm/command.sh python -m jobs.export",
        "6": "me|pretrain-l16|/x/other/pretrain.sh l16",
        "7": "me|pretrain|l16|/x/slurm/pretrain.sh l16",
        "8": "me|pretrain-l16|",
    }
    text = "".join(f"{job}|{job}|{job}|PENDING|Priority||{line}\n" for job, line in lines.items())
    queue = parse_queue(text, "me")
    assert len(queue) == len(lines)
    assert list(jobs_of("pretrain-l16", queue)) == ["1"]
    assert list(jobs_of("ours", queue)) == ["2", "3"]


def test_a_run_whose_first_job_is_pending_has_no_folder(tmp_path: Path) -> None:
    pending = QueuedJob("PENDING", "Priority", "", "13", "13", "pretrain-b16")
    array = {
        str(id_): QueuedJob("PENDING", "Resources", "", "22", f"22_{id_ - 20}", "finetune-b16") for id_ in (20, 21)
    }
    queue = {"13": pending} | array
    rows = collect([tmp_path / "pretrain-b16"], queue, NOW)  # by its future folder
    assert [(row.name, row.state, row.job, row.note) for row in rows] == [("pretrain-b16", "pending", "13", "Priority")]
    expected = [("finetune-b16", "pending", "22", "Resources"), ("pretrain-b16", "pending", "13", "Priority")]
    for folders in ([], [tmp_path]):
        assert [(row.name, row.state, row.job, row.note) for row in collect(folders, queue, NOW)] == expected
    run = make_run(tmp_path)
    assert [row.name for row in collect([run], queue, NOW)] == ["pretrain-l16"], "of one run, nothing else"
    assert [row.name for row in collect([tmp_path], queue, NOW)] == ["pretrain-l16", "finetune-b16", "pretrain-b16"]


def test_a_running_job_whose_run_folder_is_elsewhere(tmp_path: Path) -> None:
    """It may have been training for days; only a folder that was named and doesn't exist is about to be made."""
    queue = {"13": QueuedJob("RUNNING", "None", "node1", "13", "13", "pretrain-b16")}
    for folders in ([], [tmp_path]):
        assert [(row.name, row.state, row.note) for row in collect(folders, queue, NOW)] == [
            ("pretrain-b16", "running", "node1")
        ]
    assert [row.state for row in collect([tmp_path / "pretrain-b16"], queue, NOW)] == ["starting"]


def test_a_run_that_was_submitted_again_is_pending(tmp_path: Path) -> None:
    run = make_run(tmp_path, state="failed")
    queue = {"13": QueuedJob("PENDING", "Priority", "", "13", "13", "pretrain-l16")}
    for folder in (run, tmp_path):
        (row,) = collect([folder], queue, NOW)
        assert (row.state, row.job, row.note) == ("pending", "13", "Priority")


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_a_narrow_window_drops_columns_and_says_which(tmp_path: Path, width: int) -> None:
    row = replace(collect([make_run(tmp_path)], {"12": QueuedJob("RUNNING", "None", "node[101-116]")}, NOW)[0], eta=5e5)
    console = Console(width=width, file=io.StringIO())
    console.print(table([row], width))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "pretrain-l16" in text
    assert "40/100" in text
    assert "node[101-116]" in text
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert ("no room for starts" in text) == ("a wider window, or --json" in text) == (width < 120)
