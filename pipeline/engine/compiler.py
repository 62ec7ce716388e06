"""Checking, before the first step, whether torch.compile works on this machine."""

import ctypes
import logging
import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import torch
import torch.distributed

from pipeline.config.schema import TrainConfig
from pipeline.core.errors import UserError
from pipeline.core.log import ONCE

logger = logging.getLogger(__name__)

REMEDY = "install a C++ compiler and Python's headers (Debian: g++ python3-dev) on every node"


def compiles(train: TrainConfig, device: torch.device) -> bool:
    """Whether to compile the model, by train.compile; collective, with the same answer on all ranks.

    Ranks with different answers would reduce their gradients in different orders. Raises UserError if train.compile is
    on and a rank can't compile.
    """
    if train.compile == "off" or (train.compile == "auto" and (device.type != "cuda" or train.zero_stage == 3)):
        return False
    found = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, obstacle(device.type))
    rank = next((rank for rank, reason in enumerate(found) if reason), None)
    if rank is None:
        if train.zero_stage == 3:
            logger.warning(
                "train.compile on: ZeRO-3's hooks break the model's graph into pieces (26 for tiny), which gains "
                "little and may be slower: compare speed/step_seconds with train.compile off",
                extra=ONCE,
            )
        return True
    reason = f"torch.compile can't work on rank {rank}'s node ({found[rank]})"
    if train.compile == "on":
        raise UserError(f"train.compile on: {reason}: {REMEDY}, or set train.compile off")
    if torch.distributed.get_rank() == 0:
        logger.warning("train.compile auto: training uncompiled, which is slower: %s: %s", reason, REMEDY)
    return False


def obstacle(kind: str) -> str:
    """Why torch.compile can't work for devices of this ``kind`` (cpu, cuda), in a few words; "" if it can.

    Builds and loads a small extension, as torch's backends do at the first step: Inductor with CXX or g++ for CPUs,
    Triton with CC, gcc or clang for GPUs, both with Python.h, in the temporary folder.
    """
    variable, usual = ("CC", ("gcc", "clang")) if kind == "cuda" else ("CXX", ("g++",))
    names = (os.environ[variable],) if os.environ.get(variable) else usual
    compiler = next((path for path in map(shutil.which, names) if path), None)
    if compiler is None:
        return f"no compiler {' or '.join(names)} in PATH"
    headers = sysconfig.get_path("include")
    with tempfile.TemporaryDirectory(prefix="vit-compile-") as folder:
        source, library = Path(folder, "a.c"), Path(folder, "a.so")
        source.write_text("#include <Python.h>\n#include <math.h>\nint vit(void) { return 0; }\n", encoding="utf-8")
        command = [compiler, "-shared", "-fPIC", f"-I{headers}", str(source), "-o", str(library)]
        try:
            done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
            if done.returncode == 0:
                ctypes.CDLL(str(library))
                return ""
        except OSError as error:
            return f"{compiler}: {error}"
    said = next((line for line in done.stderr.splitlines() if "error" in line), f"exit {done.returncode}")
    return f"{compiler}: {said.replace(str(source), 'a.c')}"
