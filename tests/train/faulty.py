"""A training job that meets a fault: python -m tests.train.faulty FAULT RANK STEP MODULE ARGUMENTS...

The fault happens to RANK in STEP (counted from 1) of this attempt, in the model's forward pass: one forward pass is one
step where the global batch is micro-batch x ranks. stop_evaluation and pause_evaluation happen in that forward pass of
an evaluation; kill_start and kill_end before the first step and after the last.
"""

import os
import resource
import runpy
import signal
import sys
import threading
import time
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook

from pipeline.distributed import hangs, heartbeat
from pipeline.engine import deepspeed_engine
from pipeline.model.vit import VisionTransformer
from pipeline.train import loop
from pipeline.train import step as train_step

SLOW = 0.15  # seconds
PAUSE = 5.0  # seconds
heartbeat.PERIOD, heartbeat.SUSPICION, hangs.PATIENCE = 0.5, 3.0, 3  # shorter waits for the same decisions


def inject(fault: str, rank: int, step: int) -> None:
    forwards = 0

    def hook(module: torch.nn.Module, _: Any, logits_BC: Any) -> Any:
        nonlocal forwards
        if not isinstance(module, VisionTransformer) or int(os.environ["RANK"]) != rank:
            return None
        if module.training == fault.endswith("_evaluation"):  # the others are met in training
            return None
        forwards += 1
        if fault == "slow" and forwards >= step:
            time.sleep(SLOW)
        if fault == "full" and forwards > step:  # the save has failed by now, however busy the machine
            for thread in threading.enumerate():
                if thread.name == "saver":
                    thread.join()
        if forwards != step and fault != "nans":
            return None
        if fault == "nan" or (fault == "nans" and forwards in (step, step + 1)):
            return logits_BC * float("nan")
        if fault in ("gradient", "cudnn"):  # the loss stays a number
            logits_BC.register_hook(lambda gradient: gradient * float("inf"))
        if fault == "spike":
            return logits_BC * 50.0
        if fault in ("pause", "pause_evaluation"):
            time.sleep(PAUSE)
        if fault == "hang":
            time.sleep(3600)
        if fault == "full":  # no file may grow beyond the length of a log, as past a quota
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        if fault in ("stop", "stop_evaluation"):
            os.kill(os.getpid(), signal.SIGTERM)
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "raise":
            raise OSError("the disk is on fire")
        return None

    register_module_forward_hook(hook)
    if fault == "cudnn":  # a GPU's kernel that gives a bad gradient once
        train_step.may_be_cudnn = lambda *_: int(os.environ["RANK"]) == rank  # type: ignore[assignment]

    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if fault == "kill_start" and int(os.environ["RANK"]) == rank:
        deepspeed_engine.build_engine = kill  # type: ignore[assignment]
    if fault == "kill_end" and int(os.environ["RANK"]) == rank:
        loop.close = kill  # type: ignore[assignment]


if __name__ == "__main__":
    fault, rank, step, module, *arguments = sys.argv[1:]
    inject(fault, int(rank), int(step))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
