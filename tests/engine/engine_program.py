"""One rank: train a tiny ViT for some steps on made-up images, saving and resuming through pipeline.checkpoint.format.

python -m tests.engine.engine_program FOLDER NAME:ZERO_STAGE:DTYPE:OPTIMIZER:FIRST_STEP:LAST_STEP...
Does each piece of work in the run folder FOLDER/NAME, one after another. Prints the global loss of each step. Starts
from the run's checkpoint of FIRST_STEP; saves one at LAST_STEP, and half-way. ZERO_STAGE 2+offload: stage 2, offloaded.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed

from pipeline.checkpoint import format as checkpoint
from pipeline.checkpoint.saver import Saver
from pipeline.config.schema import ModelConfig, OptimConfig, RunConfig, TrainConfig
from pipeline.distributed import process_group
from pipeline.distributed.heartbeat import Heartbeat
from pipeline.distributed.ranks import Ranks, ranks_from_environment
from pipeline.engine import deepspeed_engine as ds
from pipeline.model.initialisation import initialise
from pipeline.model.losses import loss as loss_of
from pipeline.model.vit import VisionTransformer
from pipeline.train import resume

GLOBAL_BATCH = 8
CLASSES = 5
LR = {"adamw": 1e-3, "lamb": 2e-3, "sgd": 0.05}
DECAY = {
    "adamw": 5.0,
    "lamb": 0.1,
    "sgd": 0.1,
}  # adamw, sgd: lr x decay is 0.5 % a step: decaying the wrong tensors shows in two steps


def main() -> None:
    folder, *work = sys.argv[1:]
    ranks = ranks_from_environment(os.environ)
    device = process_group.start(ranks)
    heartbeat = Heartbeat(ranks.rank, ranks.world_size).start()
    for piece in work:
        name, zero, dtype, kind, first, last = piece.split(":")
        stage, _, offload = zero.partition("+")
        config = RunConfig(
            run_dir=Path(folder, name),
            model=ModelConfig(variant="tiny", image_size=16),
            optim=OptimConfig(
                kind=kind,  # type: ignore[arg-type]
                lr=LR[kind],
                weight_decay=DECAY[kind],
                clip=1.0,
                layer_decay=0.75 if kind == "lamb" else 1.0,
            ),
            train=TrainConfig(
                global_batch=GLOBAL_BATCH,
                micro_batch=GLOBAL_BATCH // ranks.world_size,
                zero_stage=int(stage),  # type: ignore[arg-type]
                offload=bool(offload),
                dtype=dtype,  # type: ignore[arg-type]
            ),
        )
        train(config, ranks, device, heartbeat, int(first), int(last))
    heartbeat.stop()
    process_group.finish()


def train(config: RunConfig, ranks: Ranks, device: torch.device, heartbeat: Heartbeat, first: int, last: int) -> None:
    engine = ds.build_engine(config, new_model(config.model).to(device), ranks.world_size)
    if first:
        assert resume.load(checkpoint.find(checkpoint_of(config.run_dir, first)), engine).step == first
    saver = Saver(config, {"classes": CLASSES, "classes_digest": "c", "dataset_digest": "d"}, heartbeat.connect())
    compute = next(engine.module.parameters()).dtype
    for step in range(first, last):
        engine.set_learning_rate(config.optim.lr * (1 - step / 100))
        x, y = (part[ranks.rank :: ranks.world_size] for part in global_batch(step))
        loss = loss_of("softmax", engine(x.to(compute)).float(), y)
        engine.backward(loss)
        saver.settle()
        engine.step()
        mean = loss.detach().double() / ranks.world_size
        torch.distributed.all_reduce(mean)
        if ranks.rank == 0:
            print(f"{config.run_dir.name} loss {step + 1} {mean.item():.17g}", flush=True)
        if step + 1 in ((first + last) // 2, last):
            saver.save(engine, step + 1)
    saver.finish()
    engine.destroy()


def new_model(config: ModelConfig) -> VisionTransformer:
    model = VisionTransformer(config, CLASSES)
    initialise(model, seed=0)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.head.weight, std=0.1)  # a zero head gives the layers below no gradient at first
    return model


def global_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of all ranks."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(GLOBAL_BATCH, 3, 16, 16, generator=generator)
    return x, torch.randint(CLASSES, (GLOBAL_BATCH,), generator=generator)


def checkpoint_of(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / checkpoint.folder_name(step)


if __name__ == "__main__":
    main()
