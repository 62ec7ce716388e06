"""A full disk and processes killed at any moment: what is finished stays, and the result is the same bytes."""

import collections
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.dataset import format as dataset_format
from tests.data_prep import releases
from tests.data_prep.releases import Images, contents

OPTIONS = ("--val-fraction", "0.25", "--samples-per-shard", "8", "--name", "mini")


def command(source: Path, output: Path, *more: object) -> list[str]:
    return [sys.executable, "-m", "data_prep.shard", *map(str, (source, output, *OPTIONS, *more))]


@pytest.mark.parametrize("form", ["tar of tars", "gzip stream"])
def test_a_disk_that_fills_up_and_is_cleared(form: str, images: Images, tmp_path: Path) -> None:
    source = releases.make(form, images, tmp_path)
    line = command(source, tmp_path / "out", "--workers", 1)
    full = subprocess.run(
        line,
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},  # it writes, too
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (16_000, 16_000)
        ),  # as if no more could be written
    )
    assert full.returncode == 2, full.stderr
    (message,) = full.stderr.splitlines()
    for part in ("OUTPUT", str(tmp_path / "out"), "full", "free some space and run the same command again"):
        assert part in message
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert not list((tmp_path / "out").glob(".*.tmp"))  # no half-written shard
    subprocess.run(line, check=True, capture_output=True)
    subprocess.run(command(source, tmp_path / "reference", "--workers", 4), check=True, capture_output=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a tmpfs")
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_said_before_the_start(images: Images, small_disk: Path, tmp_path: Path) -> None:
    source = releases.make("tar of tars", images, tmp_path)
    run = subprocess.run(
        command(source, small_disk / "out", "--workers", 1), capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    (message,) = run.stderr.splitlines()
    assert "needs about" in message
    assert "free: free some space, or give a folder on another disk" in message
    assert not list(small_disk.rglob("*.tar"))


def test_a_signal_stops_in_order_and_asks_to_be_requeued(images: Images, tmp_path: Path) -> None:
    source = releases.make("folder of tars", images, tmp_path)
    line = command(source, tmp_path / "out", "--workers", 1)
    process = subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not (tmp_path / "out").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "run the same command to resume" in errors
    subprocess.run(line, check=True, capture_output=True)
    assert dataset_format.read_info(tmp_path / "out").rejects == 0


@pytest.fixture(scope="module")
def many(photos: list[bytes]) -> Images:
    """2,000 images in four classes: 250 shards, so that a run is at work long enough to be killed anywhere."""
    return {
        wnid: {f"{wnid}_{number}.JPEG": photos[(number + place) % 96] for number in range(500)}
        for place, wnid in enumerate(("n00000001", "n00000002", "n00000003", "n00000004"))
    }


def stage(output: Path) -> str:
    """How far a run has come."""
    if (output / "dataset.json").exists():
        return "finished"
    if (output / "index.parquet").exists():
        return "merging"
    if (output / ".work" / "plan" / "plan.json").exists():
        return "writing"
    return "planning" if (output / ".work").exists() else "starting"


def begun(line: list[str], output: Path) -> "subprocess.Popen[bytes]":
    """The command, just when it has made or found its work folder and is at work."""
    process = subprocess.Popen(line, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (output / ".work").exists() and process.poll() is None:
        time.sleep(0.002)
    return process


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("form", ["tar of tars", "gzip stream"])
def test_twenty_kills(form: str, many: Images, tmp_path: Path) -> None:
    """kill -9 of the whole process group 20 times, at a random moment of its work, then once to the end."""
    source = releases.make(form, many, tmp_path)
    out, reference = tmp_path / "out", tmp_path / "reference"
    process = begun(command(source, reference, "--workers", 2), reference)
    began = time.monotonic()
    assert process.wait() == 0
    whole = time.monotonic() - began
    choice = random.Random()
    stages: collections.Counter[str] = collections.Counter()
    shards_kept = []
    while stages.total() < 20:
        resumed = (out / ".work").exists()
        process = begun(command(source, out, "--workers", 2), out)
        # a resumed run needs its start before it goes on, and has less to do: any moment of all that
        time.sleep(choice.uniform(0, whole) + (choice.uniform(0.2, 1) if resumed else 0))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reached = stage(out)
        if (
            reached == "finished"
        ):  # too late for its work: look at it, perhaps cleaned up by another run, and begin anew
            subprocess.run(command(source, out), check=True, capture_output=True)
            assert contents(out) == contents(reference)
            shutil.rmtree(out)
            continue
        stages[reached] += 1
        shards_kept.append(len(list(out.glob("*.tar"))))
    subprocess.run(command(source, out, "--workers", 2), check=True, capture_output=True)
    print(f"20 kills of {whole:.1f} s of work, while it was {dict(stages)}; shards there then: {shards_kept}")
    assert contents(out) == contents(reference)
    assert stages["writing"] >= 3
