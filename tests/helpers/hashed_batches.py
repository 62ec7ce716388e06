"""A training job that writes down what its model is fed: python -m tests.helpers.hashed_batches OUT MODULE ARGUMENTS...

OUT/rank-R-of-W.txt gets a line a sample: step, hash of its pixels as floats (normalised, mixed), hash of its target.
"""

import hashlib
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from pipeline.model.vit import VisionTransformer
from pipeline.train import loop, step

fed: list[torch.Tensor] = []


def spy(out: Path) -> None:
    file = (out / f"rank-{os.environ['RANK']}-of-{os.environ['WORLD_SIZE']}.txt").open("a", buffering=1)
    in_loop: Any = loop
    in_step: Any = step
    train_step, loss_of = in_loop.train_step, in_step.loss_of
    now = [0]

    def keep(module: torch.nn.Module, arguments: Any) -> None:
        if isinstance(module, VisionTransformer) and module.training:
            fed.append(arguments[0])

    def step_spy(config: Any, engine: Any, batches: Any, done: int, *others: Any, **more: Any) -> Any:
        now[0] = done + 1
        return train_step(config, engine, batches, done, *others, **more)

    def loss_spy(kind: Any, logits_BC: torch.Tensor, targets: torch.Tensor, **more: Any) -> Any:
        x_BCHW = fed.pop()
        assert not fed
        assert x_BCHW.dtype == torch.float32
        for x_CHW, target in zip(x_BCHW, targets, strict=True):
            print(now[0], *(hashlib.sha256(part.numpy().tobytes()).hexdigest() for part in (x_CHW, target)), file=file)
        return loss_of(kind, logits_BC, targets, **more)

    register_module_forward_pre_hook(keep)
    in_loop.train_step = step_spy
    in_step.loss_of = loss_spy


if __name__ == "__main__":
    out, module, *arguments = sys.argv[1:]
    spy(Path(out))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
