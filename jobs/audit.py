"""python -m jobs.audit RUN [--step N]: prove which samples a run has trained on, or show those of one step."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline import cli, ledger
from pipeline.cli import UserError
from pipeline.config import RunConfig, from_dict
from pipeline.order import Order
from pipeline.shards import read_info

DESCRIPTION = """Prove from a run's ledger that each sample came exactly once an epoch, across kills and resumes.

With --step, list the samples of one optimizer step, and save their crops as the model saw them (before mixup) in a
picture. Exit code 1 where the ledger differs from the order. Examples:

  python -m jobs.audit runs/b16
  python -m jobs.audit runs/b16 --step 12000 --out step12000.png
  python -m jobs.audit runs/b16 --data /other/place/imagenet21k"""


@dataclass(frozen=True)
class AuditConfig:
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    step: int = 0
    """Step to show, from 1. 0: audit the whole run."""
    data: Path | None = None
    """Folder of the training data set, where it isn't any more where the run read it."""
    out: Path | None = None
    """Picture of --step. Default: RUN/step-N.png."""
    pictures: int = 64
    """Crops in the picture."""


def main() -> int:
    options = cli.parse(AuditConfig, prog="python -m jobs.audit", description=DESCRIPTION)
    path = options.run / "config.json"
    if not path.is_file():
        raise UserError(f"RUN {str(options.run)!r} has no config.json: name a run folder of jobs.pretrain or finetune")
    config = from_dict(RunConfig, json.loads(path.read_text()))
    folder = options.data or config.data.train
    assert folder is not None
    info = read_info(folder)
    digest = json.loads((options.run / "run.json").read_text())["dataset_digest"]
    if info.digest != digest:
        raise UserError(f"--data {str(folder)!r} has digest {info.digest}, the run was trained on {digest}: name that")
    order = Order(tuple(item.samples for item in info.split_shards(config.data.train_split)), config.train.seed)
    if options.step:
        return show(options, config, folder)
    if not (options.run / ledger.LEDGER).is_file():
        raise UserError(f"RUN {str(options.run)!r} has no {ledger.LEDGER}: no step was trained, or by an old version")
    found = ledger.audit(ledger.read(options.run), order, config.train.global_batch)
    print(
        f"{options.run}: {found.steps:,} steps of {config.train.global_batch:,} samples, {found.repeated:,} done again "
        f"after a resume; {found.samples:,} samples an epoch"
    )
    for name, steps in (("has no record", found.missing), ("has other samples than the order's", found.wrong)):
        if steps:
            print(f"{len(steps):,} steps: step {', '.join(map(str, steps[:10]))}{' ...' * (len(steps) > 10)} {name}")
    if found.wrong:
        print("Stand-ins for samples that don't decode are such a difference; the run's log names each.")
    print(f"each sample came exactly once in each of the first {found.epochs:,} epochs")
    return 1 if found.missing or found.wrong else cli.EXIT_DONE


def show(options: AuditConfig, config: RunConfig, folder: Path) -> int:
    """List the samples of a step and save their crops."""
    import cv2  # noqa: PLC0415  (after the command line is known to be good)
    import numpy as np  # noqa: PLC0415

    from pipeline.data import open_split, train_batches  # noqa: PLC0415
    from pipeline.keys import split_keys  # noqa: PLC0415
    from pipeline.shards import read_classes  # noqa: PLC0415
    from pipeline.transforms import train_transform  # noqa: PLC0415

    if options.step < 1:
        raise UserError(f"--step {options.step} is no step: they count from 1")
    split = open_split(folder, config.data.train_split)
    (batch,) = train_batches(
        split,
        train_transform(config),
        seed=config.train.seed,
        global_batch=config.train.global_batch,
        micro_batch=config.train.global_batch,
        rank=0,
        world_size=1,
        workers=0,
        start_step=options.step - 1,
        stop_step=options.step,
    )
    keys, classes = split_keys(folder, config.data.train_split), read_classes(folder)["name"].to_pylist()
    for row, label in zip(batch.samples_B.tolist(), batch.labels_B.tolist(), strict=True):
        print(f"{keys[row]}\t{split.where(row)}\t{label} {classes[label]}")
    images_BHWC = batch.images_BHWC.numpy()[: options.pictures]
    columns = int(np.ceil(np.sqrt(len(images_BHWC))))
    side = config.model.image_size
    grid = np.full((-(-len(images_BHWC) // columns) * side, columns * side, 3), 255, np.uint8)
    for number, image in enumerate(images_BHWC):
        top, left = number // columns * side, number % columns * side
        grid[top : top + side, left : left + side] = image
    out = options.out or options.run / f"step-{options.step}.png"
    if not cv2.imwrite(str(out), cv2.cvtColor(grid, cv2.COLOR_RGB2BGR)):
        raise UserError(f"--out {str(out)!r} can't be written: name a .png file in a folder that exists")
    print(f"{len(images_BHWC)} of {config.train.global_batch} crops, row by row: {out}")
    return cli.EXIT_DONE


if __name__ == "__main__":
    cli.run(main)
