"""python -m jobs.evaluate RUN|CHECKPOINT --data DATASET: exact accuracy on any number of processes, no DeepSpeed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pipeline import cli
from pipeline.cli import UserError

DESCRIPTION = """Evaluate a run's newest checkpoint (or a named one) on a data set: top-1, top-5 and loss.

Prints a line for people and one JSON object. Examples:

  python -m jobs.evaluate runs/tiny-ft --data shards/digits
  accelerate launch --multi-gpu --num-processes 8 -m jobs.evaluate runs/b16-ft --data shards/in1k
  python -m jobs.evaluate runs/b16-ft/checkpoints/step-00020000 --data shards/in1k --split val --batch 512"""


@dataclass(frozen=True)
class EvaluateConfig:
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder, or a checkpoint's folder in it."""
    data: Path
    """Data set, made by data_prep.shard with the run's class map."""
    split: str = "val"
    batch: int = 128
    """Samples a process's forward pass."""
    workers: int = 2
    """Loader processes a process."""
    dtype: Literal["float32", "bfloat16"] = "float32"


def main() -> int:
    config = cli.parse(EvaluateConfig, prog="python -m jobs.evaluate", description=DESCRIPTION)
    import torch  # noqa: PLC0415  (after the command line is known to be good)
    from accelerate import Accelerator  # noqa: PLC0415

    from pipeline import checkpoint  # noqa: PLC0415
    from pipeline.data import open_split  # noqa: PLC0415
    from pipeline.evaluate import evaluate  # noqa: PLC0415
    from pipeline.model import VisionTransformer  # noqa: PLC0415

    source = checkpoint.resolve(config.run)
    meta = checkpoint.read_meta(source)
    run, classes, weights = checkpoint.read_model(source)
    split = open_split(config.data, config.split)
    if split.info.classes_digest != meta.classes_digest:
        raise UserError(
            f"--data {str(config.data)!r} has another class map ({split.info.classes} classes, digest "
            f"{split.info.classes_digest}) than the run ({classes}, {meta.classes_digest}): use its classes"
        )
    accelerator = Accelerator()
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
    model = VisionTransformer(run.model, classes, loss=run.train.loss)
    model.load_state_dict(weights)
    model = model.eval().to(accelerator.device, dtype)
    result = evaluate(
        model,
        split,
        image_size=run.model.image_size,
        batch=config.batch,
        loss=run.train.loss,
        workers=config.workers,
        device=accelerator.device,
        dtype=dtype,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        reduce=lambda sums: accelerator.reduce(sums, reduction="sum"),
    )
    if accelerator.is_main_process:
        print(f"{source}: {result}")
        print(
            json.dumps({"checkpoint": str(source), "samples": result.samples, "step": meta.step, **result.metrics("")})
        )
    accelerator.end_training()
    return cli.EXIT_DONE


if __name__ == "__main__":
    cli.run(main)
