"""python -m jobs.audit RUN [--step N]: prove which samples a run was trained on, or show those of one step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.config.schema import RunConfig, total_steps
from pipeline.config.serialize import from_file
from pipeline.core import cli, errors
from pipeline.core.errors import UserError
from pipeline.core.files import check_local, read_json
from pipeline.core.needs import Need
from pipeline.dataset.joined_split import JoinedSplit, chosen, make_cache, open_split
from pipeline.loader.mixture import sampling
from pipeline.runs import sample_ledger
from pipeline.runs.damage_record import Damages
from pipeline.runs.folder import CONFIG, FACTS, LEDGER

DESCRIPTION = """Prove from a run's ledger that each sample came exactly once per epoch, across kills and resumes.

With --step, list the samples of one optimizer step and save their crops, as the model saw them (before mixup), in one
PNG. Exits with 1 if the ledger differs from the order. Examples:

  python -m jobs.audit runs/b16
  python -m jobs.audit runs/b16 --step 12000 --out step12000.png
  python -m jobs.audit runs/b16 --data /other/place/imagenet21k"""


@dataclass(frozen=True)
class AuditConfig:
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    step: int = 0
    """Step to show, counted from 1. 0: audit the whole run."""
    data: tuple[str, ...] = ()
    """Folder or URL of the training dataset (of each, if there are several), if it has moved since the run."""
    out: Path | None = None
    """PNG file for the crops of --step. Default: RUN/step-N.png."""
    crops: int = 64
    """Largest number of crops in the PNG."""


STEP = Need(lambda options: options.step != 0, "without --step", "add --step N")
NEEDS = {"out": STEP, "crops": STEP}


def main() -> int:
    options = cli.parse(AuditConfig, prog="python -m jobs.audit", description=DESCRIPTION, needs=NEEDS)
    path = options.run / CONFIG
    check_local(options.run, "RUN")
    if not path.is_file():
        raise UserError(f"RUN {str(options.run)!r} has no config.json: name a run folder of jobs.pretrain or finetune")
    check(options)
    config = from_file(RunConfig, read_json(path), path)
    split = open_again(options, config)
    if options.step:
        return show(options, config, split)
    if not (options.run / LEDGER).is_file():
        raise UserError(
            f"RUN {str(options.run)!r} has no {LEDGER}: it has trained no step, or was trained by an old version"
        )
    order = sampling(split.samples, config.train.seed, config.data.weights)
    found = sample_ledger.audit(sample_ledger.read(options.run), order, config.train.global_batch)
    if not found.steps:
        raise UserError(f"RUN {str(options.run)!r} has no step in its {LEDGER}: it has trained no step")
    print(
        f"{options.run}: {found.steps:,} steps of {config.train.global_batch:,} samples, {found.repeated:,} repeated "
        f"after a resume; {', '.join(f'{size:,}' for size in found.samples)} samples per epoch"
    )
    for name, steps in (("has no record", found.missing), ("has other samples than the order", found.wrong)):
        if steps:
            print(f"{len(steps):,} steps: step {', '.join(map(str, steps[:10]))}{' ...' * (len(steps) > 10)} {name}")
    if found.wrong:
        damage = Damages(options.run, max(found.wrong)).summary() or "this run has none"
        print(f"Replacements for samples that don't decode are such a difference: {damage}")
    for part, epochs in zip(split.parts, found.epochs, strict=False):
        of = f" of {part.source}" if len(found.epochs) > 1 else ""
        print(f"each sample{of} came exactly once in each of the first {epochs:,} epochs")
    return 1 if found.missing or found.wrong else errors.EXIT_DONE


def check(options: AuditConfig) -> None:
    """Check the options before the dataset is opened. Raises UserError."""
    if options.step < 0:
        raise UserError(f"--step {options.step} is not a step: give 1 or more")
    if options.crops < 1:
        raise UserError(f"--crops {options.crops} is too small: give at least 1")
    out = options.out
    if out is not None and (out.suffix != ".png" or out.is_dir() or not out.parent.is_dir()):
        raise UserError(f"--out {str(out)!r} can't be written: name a .png file in a folder that exists")


def open_again(options: AuditConfig, config: RunConfig) -> JoinedSplit:
    """Open the dataset that the run was trained on. Raises UserError if its content has changed since."""
    record = read_json(options.run / FACTS)
    split = open_split(
        options.data or config.data.train,
        config.data.train_split,
        choice=chosen(config.data),
        cache=make_cache(config.data.cache, config.data.cache_gb),
        check=options.step > 0,
    )
    if split.digest != record["dataset_digest"]:
        raise UserError(
            f"--data {split.name!r} has digest {split.digest}, the run was trained on {record['dataset_digest']}: "
            "name that"
        )
    return split


def show(options: AuditConfig, config: RunConfig, split: JoinedSplit) -> int:
    """List the samples of a step and save their crops."""
    import cv2  # after the command line is known to be good
    import numpy as np

    from pipeline.dataset.format import read_classes
    from pipeline.loader.batches import train_batches
    from pipeline.loader.transforms import train_transform

    steps = total_steps(config.schedule, len(split), config.train.global_batch)
    if options.step > steps:
        raise UserError(f"--step {options.step} is beyond the run's {steps} steps: give one of them")
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
        weights=config.data.weights,
    )
    keys, classes = split.sample_keys(), read_classes(split.folder)["name"].to_pylist()
    for row, label in zip(batch.samples_B.tolist(), batch.labels_B.tolist(), strict=True):
        print(f"{keys[row]}\t{split.where(row)}\t{label} {classes[label]}")
    images_BHWC = batch.images_BHWC.numpy()[: options.crops]
    columns = int(np.ceil(np.sqrt(len(images_BHWC))))
    side = config.model.image_size
    grid = np.full((-(-len(images_BHWC) // columns) * side, columns * side, 3), 255, np.uint8)
    for number, image in enumerate(images_BHWC):
        top, left = number // columns * side, number % columns * side
        grid[top : top + side, left : left + side] = image
    out = options.out or options.run / f"step-{options.step}.png"
    _, picture = cv2.imencode(".png", cv2.cvtColor(grid, cv2.COLOR_RGB2BGR))
    try:
        out.write_bytes(picture.tobytes())
    except OSError as error:  # cv2.imwrite wouldn't report the cause
        raise UserError(f"--out {str(out)!r} can't be written ({error.strerror}): name another file") from error
    print(f"{len(images_BHWC)} of {config.train.global_batch} crops, row by row: {out}")
    return errors.EXIT_DONE


if __name__ == "__main__":
    cli.run(main)
