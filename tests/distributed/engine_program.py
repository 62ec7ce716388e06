"""One rank: train a tiny ViT for some steps on made-up images, saving and resuming through pipeline.checkpoint.

python -m tests.distributed.engine_program RUN_DIR ZERO_STAGE DTYPE OPTIMIZER FIRST_STEP LAST_STEP
Prints the global loss of each step. Starts from RUN_DIR's checkpoint of FIRST_STEP; saves one at LAST_STEP.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed

from pipeline import checkpoint, distributed
from pipeline import engine as ds
from pipeline.config import ModelConfig, OptimConfig, RunConfig, TrainConfig
from pipeline.losses import loss as loss_of
from pipeline.model import VisionTransformer, initialise
from pipeline.saver import Saver

GLOBAL_BATCH = 8
CLASSES = 5


def main() -> None:
    run_dir, stage, dtype, kind, first, last = sys.argv[1:]
    ranks = distributed.ranks_from_environment(os.environ)
    config = RunConfig(
        run_dir=Path(run_dir),
        model=ModelConfig(variant="tiny", image_size=16),
        optim=OptimConfig(kind=kind, lr=0.05 if kind == "sgd" else 1e-3, weight_decay=0.1, clip=1.0),
        train=TrainConfig(
            global_batch=GLOBAL_BATCH, micro_batch=GLOBAL_BATCH // ranks.world_size, zero_stage=int(stage), dtype=dtype
        ),
    )
    device = distributed.start(ranks)
    model = VisionTransformer(config.model, CLASSES)
    initialise(model, seed=0)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.head.weight, std=0.1)  # a zero head gives the layers below no gradient at first
    engine = ds.build_engine(config, model.to(device), ranks.world_size)
    if int(first):
        path = run_dir_checkpoint(config.run_dir, int(first))
        assert checkpoint.load(path, engine, config).step == int(first)
    compute = next(engine.module.parameters()).dtype
    for step in range(int(first), int(last)):
        ds.set_learning_rate(engine, config.optim.lr * (1 - step / 100))
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(GLOBAL_BATCH, 3, 16, 16, generator=generator)[ranks.rank :: ranks.world_size].to(compute)
        y = torch.randint(CLASSES, (GLOBAL_BATCH,), generator=generator)[ranks.rank :: ranks.world_size]
        loss = loss_of("softmax", engine(x).float(), y)
        engine.backward(loss)
        engine.step()
        mean = loss.detach().double() / ranks.world_size
        torch.distributed.all_reduce(mean)
        if ranks.rank == 0:
            print(f"loss {step + 1} {mean.item():.17g}", flush=True)
    facts = {"classes": CLASSES, "classes_digest": "c", "dataset_digest": "d"}
    saver = Saver(config, facts)
    saver.save(engine, int(last))
    saver.finish()
    engine.destroy()
    del engine, model
    distributed.finish()


def run_dir_checkpoint(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / checkpoint.folder_name(step)


if __name__ == "__main__":
    main()
