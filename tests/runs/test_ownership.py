"""One writer a run folder: claims, restarts, reused pids."""

import dataclasses
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.core.files import write_json
from pipeline.runs.ownership import FencedError, Owner, _start_time, claim, read_owner


def slurm(job: int, restart: int | None = None) -> dict[str, str]:
    count = {} if restart is None else {"SLURM_RESTART_COUNT": str(restart)}
    return {"SLURM_JOB_ID": str(job)} | count


def elsewhere(run: Path) -> None:
    """The owner's process runs on another host, so that it can't be looked at."""
    owner = read_owner(run)
    assert owner is not None
    write_json(run / "owner.json", dataclasses.asdict(dataclasses.replace(owner, host="another")))


def test_the_later_restart_takes_over_and_the_earlier_one_stops(tmp_path: Path) -> None:
    first = claim(tmp_path, slurm(7))
    first.check()
    elsewhere(tmp_path)
    first.check()
    second = claim(tmp_path, slurm(7, 1))
    second.check()
    assert not first.holds()
    with pytest.raises(FencedError, match="belongs to another attempt"):
        first.check()


def test_a_late_start_of_an_earlier_restart_is_refused(tmp_path: Path) -> None:
    newer = claim(tmp_path, slurm(7, 2))
    with pytest.raises(FencedError, match=r"start \(2, 0\) of job 7, this is \(1, 0\)"):
        claim(tmp_path, slurm(7, 1))
    newer.check()


def test_a_late_start_of_ranks_that_were_started_again_in_the_job_is_refused(tmp_path: Path) -> None:
    first = claim(tmp_path, slurm(7, 2))
    again = claim(tmp_path, slurm(7, 2) | {"IN_JOB_RESTART": "1"})
    assert not first.holds()
    with pytest.raises(FencedError, match=r"start \(2, 1\) of job 7, this is \(2, 0\)"):
        claim(tmp_path, slurm(7, 2))
    again.check()
    claim(tmp_path, slurm(7, 3)).check()  # requeued: its restarts in the job begin at 0


def test_another_job_takes_over_a_run_whose_process_cannot_be_seen(tmp_path: Path) -> None:
    old = claim(tmp_path, slurm(7, 4))
    elsewhere(tmp_path)
    claim(tmp_path, slurm(8)).check()
    assert not old.holds()


def test_a_second_process_on_the_same_host_is_refused_until_the_first_has_left(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from pipeline.runs.ownership import claim
        claim(Path(sys.argv[1]), {})
        print("claimed", flush=True)
        sys.stdin.read()
        """
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        with pytest.raises(UserError, match=f"being trained by process {process.pid} on this host"):
            claim(tmp_path, {})
        process.communicate()
    claim(tmp_path, {}).check()


def test_a_reused_pid_is_not_taken_for_the_owner(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        claim(tmp_path, {})
        owner = read_owner(tmp_path)
        assert owner is not None
        earlier = Owner(**{**dataclasses.asdict(owner), "pid": other.pid, "started": "1"})
        write_json(tmp_path / "owner.json", dataclasses.asdict(earlier))
        assert _start_time(other.pid) not in ("", "1")
        claim(tmp_path, {}).check()
        other.kill()


def test_the_file_says_who_owns_the_run(tmp_path: Path) -> None:
    claim(tmp_path / "new" / "run", slurm(9, 3))
    written = json.loads((tmp_path / "new" / "run" / "owner.json").read_text())
    assert (written["job"], written["restart"]) == ("9", 3)
