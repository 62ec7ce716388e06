"""Errors that pass: tried again for a while, never held against an image, and reported with the file's name."""

import errno
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg

from data_prep import index, verify
from data_prep.writing.build_shard import SourceFiles
from pipeline.core import retry
from pipeline.core.errors import UserError
from pipeline.core.retry import Backoff, UnreadableError
from pipeline.dataset import joined_split

FAILING = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>
/* The first FAIL_TIMES reads (0: all) of files whose path has FAIL_PATH in it fail with FAIL_ERRNO. */
static int count;
static int fails(int fd) {
  char link[64], path[4096];
  const char *wanted = getenv("FAIL_PATH");
  int times = wanted ? atoi(getenv("FAIL_TIMES")) : 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0 || !wanted) return 0;
  path[length] = 0;
  if (!strstr(path, wanted) || (times && count >= times)) return 0;
  count++;
  errno = atoi(getenv("FAIL_ERRNO"));
  return 1;
}
ssize_t pread64(int fd, void *to, size_t size, off64_t at) {
  static ssize_t (*real)(int, void *, size_t, off64_t);
  if (!real) real = dlsym(RTLD_NEXT, "pread64");
  return fails(fd) ? -1 : real(fd, to, size, at);
}
ssize_t read(int fd, void *to, size_t size) {
  static ssize_t (*real)(int, void *, size_t);
  if (!real) real = dlsym(RTLD_NEXT, "read");
  return fails(fd) ? -1 : real(fd, to, size);
}
"""
QUICK = "import sys; from pipeline.core import retry; retry.READ_SECONDS = 0.3; "


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("failing")
    (folder / "failing.c").write_text(FAILING)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "failing.so", folder / "failing.c", "-ldl"], check=True)
    return folder / "failing.so"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """in/, a folder of two classes of 6 images; the same as in.tar and in.tar.gz; wds/, WebDataset tars."""
    folder = tmp_path_factory.mktemp("source")
    random = np.random.default_rng(0)
    (folder / "wds").mkdir()
    with tarfile.open(folder / "wds" / "train-000.tar", "w") as tar:
        for number in range(12):
            name = ("cat", "dog")[number % 2]
            data = simplejpeg.encode_jpeg(random.integers(0, 256, (40, 40, 3), np.uint8))
            path = folder / "in" / name / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            for ending, content in (("jpg", data), ("cls", b"%d" % (number % 2))):
                member = tarfile.TarInfo(f"{number:03d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    for name, mode in (("in.tar", "w"), ("in.tar.gz", "w:gz")):
        with tarfile.open(folder / name, mode) as tar:
            for path in sorted((folder / "in").rglob("*.jpg")):
                tar.add(path, path.relative_to(folder / "in"))
    return folder


def failing(library: Path, path: str, number: int, times: int = 0) -> dict[str, str]:
    settings = {"LD_PRELOAD": str(library), "FAIL_PATH": path, "FAIL_ERRNO": str(number), "FAIL_TIMES": str(times)}
    return os.environ | settings


def command(module: str, *args: object, env: dict[str, str], start: str = QUICK) -> "subprocess.CompletedProcess[str]":
    program = f"{start}from {module} import main; from pipeline.core import cli; cli.run(main)"
    line = [sys.executable, "-c", program, *map(str, args)]
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("name", "failed", "number"),
    [("in", "/in/cat/", errno.ESTALE), ("in.tar", "/in.tar", errno.EIO), ("in.tar.gz", "/in.tar.gz", errno.ETIMEDOUT)],
)
def test_no_image_is_lost_while_a_server_is_away(
    library: Path, source: Path, tmp_path: Path, name: str, failed: str, number: int
) -> None:
    line = (source / name, tmp_path / "out", "--workers", 1)
    done = command("data_prep.shard", *line, env=failing(library, failed, number, 2), start="")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["samples"] == {"train": 12}
    assert pq.read_metadata(tmp_path / "out" / "rejects.parquet").num_rows == 0


@pytest.mark.parametrize(("name", "failed"), [("in.tar", "/in.tar"), ("in.tar.gz", "/in.tar.gz")])
def test_a_disk_that_stays_in_trouble_is_named_and_the_rerun_resumes(
    library: Path, source: Path, tmp_path: Path, name: str, failed: str
) -> None:
    line = (source / name, tmp_path / "out", "--workers", 1, "--samples-per-shard", 3)
    broken = command("data_prep.shard", *line, env=failing(library, failed, errno.EIO))
    assert broken.returncode == 2
    assert failed in broken.stderr
    assert "Input/output error" in broken.stderr
    assert "Traceback" not in broken.stderr
    again = command("data_prep.shard", *line, env=dict(os.environ))
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["samples"] == {"train": 12}


def test_an_index_is_not_made_of_a_tar_that_cant_be_read(library: Path, source: Path) -> None:
    done = command("data_prep.index", source / "wds", env=failing(library, "/wds/train-", errno.EIO))
    assert done.returncode == 2
    assert "train-000.tar" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", sorted(retry.TRANSIENT))
def test_no_error_of_a_file_system_is_an_image_s_defect(
    source: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fails(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(retry, "READ_SECONDS", 0.05)
    monkeypatch.setattr(retry, "READ_PAUSE", 0.01)
    monkeypatch.setattr(os, "pread", fails)
    path = source / "in" / "cat" / "0.jpg"
    with SourceFiles(loose=True) as files, pytest.raises(UnreadableError, match=r"cat/0\.jpg.*the same command again"):
        files.read(os.fsencode(path), 0, path.stat().st_size)


def test_verify_goes_on_with_the_other_shards(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*_: object) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(retry, "READ_SECONDS", 0.1)
    monkeypatch.setattr(os, "pread", stale)
    info = type("Info", (), {"file_name": "a.tar", "bytes": 5, "xxh3_128": ""})
    tar = source / "five.tar"
    tar.write_bytes(b"12345")
    piece = type("Piece", (), {"tar": tar, "info": info, "folder": source})
    (finding,) = verify.check_shard((piece(), True))  # type: ignore[arg-type]
    assert "a.tar" in finding
    assert "Stale file handle" in finding


def test_the_loader_reads_on_after_a_stale_handle(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "wds"
    copy.mkdir()
    (copy / "train-000.tar").write_bytes((source / "wds" / "train-000.tar").read_bytes())
    assert index.main([str(copy)]) == 0
    opened = joined_split.open_split(str(copy), "train")
    expected = [opened.read(row) for row in range(len(opened))]
    real, failures = os.pread, [errno.ESTALE, errno.EIO, errno.ETIMEDOUT]
    handles: set[int] = set()

    def sometimes(descriptor: int, size: int, offset: int) -> bytes:
        if failures:
            handles.add(os.fstat(descriptor).st_ino)
            raise OSError(failures.pop(), "away")
        return real(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", sometimes)
    (copy / "train-000.tar").replace(copy / "old.tar")  # the server has another inode under this name since
    (copy / "train-000.tar").write_bytes((copy / "old.tar").read_bytes())
    assert [opened.read(row) for row in range(len(opened))] == expected
    assert len(handles) == 2
    assert dict(opened.read_all(np.arange(len(opened)))) == dict(enumerate(expected))

    def never(*_: object) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(retry, "READ_SECONDS", 0.1)
    monkeypatch.setattr(os, "pread", never)
    with pytest.raises(UnreadableError, match=r"train-000\.tar.*Stale file handle"):
        list(opened.read_all(np.arange(len(opened))))


def test_pauses_grow_with_jitter_up_to_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    backoff = Backoff(1.0, 8.0)
    pauses = [backoff.next() for _ in range(8)]
    for pause, most in zip(pauses, [1, 2, 4, 8, 8, 8, 8, 8], strict=True):
        assert pause is not None
        assert most / 2 <= pause <= most
    assert len(set(pauses)) == 8
    backoff.reset()
    assert 0.5 <= (backoff.next() or 0) <= 1
    now = [0.0]  # seconds, by a clock that only sleeping moves: a busy machine changes nothing
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + seconds))
    monkeypatch.setattr(retry, "time", clock)
    short, count = Backoff(0.02, 0.04, 0.2), 0
    while short.wait():
        count += 1
    assert 4 <= count <= 15
    assert now[0] <= 0.2


def test_other_errors_are_raised_at_once(tmp_path: Path) -> None:
    calls = []

    def denied() -> None:
        calls.append(1)
        raise PermissionError(errno.EACCES, "denied")

    with pytest.raises(PermissionError) as raised:
        retry.steadily(denied, tmp_path / "a")
    assert raised.value.filename == str(tmp_path / "a")
    assert len(calls) == 1
    with pytest.raises(FileNotFoundError):
        retry.open_file(tmp_path / "gone")
    assert issubclass(UnreadableError, UserError)
