"""A node without a compiler or Python's headers: found before the first step, in one line, for all ranks alike."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
import torch.distributed

from pipeline.config.schema import TrainConfig
from pipeline.core.errors import UserError
from pipeline.engine import compiler

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def without_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))


@pytest.fixture
def alone(tmp_path: Path) -> object:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_this_machine_can(kind: str) -> None:
    assert compiler.obstacle(kind) == ""


@pytest.mark.parametrize(("kind", "variable", "names"), [("cpu", "CXX", "g++"), ("cuda", "CC", "gcc or clang")])
def test_no_compiler(kind: str, variable: str, names: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiler.obstacle(kind) == f"no compiler {names} in PATH"
    monkeypatch.setenv(variable, "/opt/cc")
    assert compiler.obstacle(kind) == "no compiler /opt/cc in PATH"


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_no_headers(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_headers(monkeypatch, tmp_path)
    found = compiler.obstacle(kind)
    assert "Python.h" in found
    assert found.isprintable()


def test_a_compiler_that_fails_or_makes_what_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "cc"
    monkeypatch.setenv("CC", str(fake))
    for script, part in (("exit 3", "exit 3"), ('for a; do :; done; : > "$a"', "file too short")):
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
        assert part in compiler.obstacle("cuda")


@pytest.mark.usefixtures("alone")
def test_what_train_compile_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    auto, on, off = (TrainConfig(compile=choice) for choice in ("auto", "on", "off"))
    assert [compiler.compiles(train, CUDA) for train in (auto, on, off)] == [True, True, False]
    assert [compiler.compiles(train, CPU) for train in (auto, on, off)] == [False, True, False]
    assert not compiler.compiles(TrainConfig(compile="auto", zero_stage=3), CUDA)
    assert not caplog.records
    assert compiler.compiles(TrainConfig(compile="on", zero_stage=3), CPU)
    assert "ZeRO-3's hooks break the model's graph into pieces" in caplog.text
    caplog.clear()
    without_headers(monkeypatch, tmp_path)
    assert not compiler.compiles(auto, CUDA)
    (record,) = caplog.records
    assert "training uncompiled" in record.message
    assert record.message.isprintable()
    with pytest.raises(UserError, match=r"train\.compile on: .*Python\.h.*python3-dev.*train\.compile off"):
        compiler.compiles(on, CPU)


def test_all_ranks_decide_alike(tmp_path: Path) -> None:
    """Two ranks, of which the second has no compiler: neither compiles under auto, and both end under on."""
    program = """
import sys, torch, torch.distributed
from pipeline.config.schema import TrainConfig
from pipeline.core.errors import UserError
from pipeline.engine.compiler import compiles
rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
print(compiles(TrainConfig(compile="auto"), torch.device("cuda")))
try:
    compiles(TrainConfig(compile="on"), torch.device("cuda"))
except UserError as error:
    print(error)
"""
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "CC"}
    paths = [os.environ["PATH"], str(empty)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(rank), str(tmp_path / "store")],
            env=environment | {"PATH": path, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True,
        )
        for rank, path in enumerate(paths)
    ]  # fmt: skip
    said = [process.communicate(timeout=100)[0] for process in started]
    assert said[0] == said[1]
    assert said[0].startswith("False\ntrain.compile on: torch.compile can't work on rank 1's node (no compiler gcc or")
