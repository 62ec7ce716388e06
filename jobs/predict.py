"""python -m jobs.predict MODEL IMAGE|FOLDER|TAR ...: classify images."""

import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pipeline.core import arguments, cli, errors, results, terminal
from pipeline.core.errors import UserError
from pipeline.core.files import check_can_make
from pipeline.imaging.file_names import counted_endings
from pipeline.interop import hub_models
from pipeline.interop.model_files import ARCHIVE, check_model

if TYPE_CHECKING:
    from pipeline.inference.predictions import Answer

logger = logging.getLogger("jobs.predict")

DESCRIPTION = """Classify images: the five likeliest classes of each, with names and probabilities.

MODEL is a run or a checkpoint, published weights, or anything that jobs.export wrote. Images that can't be read are
reported and skipped. Examples:

  python -m jobs.predict work/runs/finetune-b16 dog.jpg --rollout looks
  python -m jobs.predict B_16.npz holiday/ --csv holiday.csv --batch 64 --workers 8
  python -m jobs.launch --ranks 8 predict b16-timm photos.tar --parquet photos.parquet"""

SHOWN = 20  # images in the terminal's table
NAME_WIDTH = 32  # characters of an image's name in the table
NAMED = 10  # unreadable images that get a warning; the files list all


@dataclass(frozen=True)
class PredictConfig:
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Run folder, a checkpoint's folder in it, an official .npz, a timm or transformers folder, an export of any
    format, or hf://OWNER/NAME[@REVISION] on the Hugging Face Hub."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE ...")]
    """Images, folders (searched recursively, with the tars in them) and tars such as a dataset's shards."""
    csv: str = ""
    """File to write one row per image to as CSV; - is the standard output, instead of the table."""
    parquet: Path | None = None
    """Parquet file to write the same rows to."""
    rollout: Path | None = None
    """Folder for one PNG per image that shows where the model looks, by attention roll-out."""
    top: int = 5
    """Classes per image."""
    batch: int = 32
    """Images per forward pass."""
    workers: int = 2
    """Worker processes that read and decode, per process that runs the model. 0: decode in that process."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type."""
    average: bool = False
    """Use the running average of the weights (--train.average) instead of the last weights."""
    trust_code: bool = False
    """Load a MODEL that is a torch.export archive (.pt2). Such a file can run any code: only for files you trust."""


NEEDS = {"trust_code": ARCHIVE}


def main() -> int:
    config = cli.parse(PredictConfig, prog="python -m jobs.predict", description=DESCRIPTION, needs=NEEDS)
    check(config)
    config = dataclasses.replace(config, model=hub_models.resolved(config.model))
    # torch comes with these: after the command line is known to be good
    from pipeline.core.progress import Bar
    from pipeline.distributed.process_group import make_accelerator
    from pipeline.inference.classifier import open_classifier
    from pipeline.inference.image_files import find, others_in
    from pipeline.inference.predict import predictions
    from pipeline.inference.predictions import Files
    from pipeline.model.preprocess import DTYPES

    pictures = find(config.images)
    accelerator = make_accelerator()
    dtype = DTYPES[config.dtype]
    classifier = open_classifier(
        config.model, device=accelerator.device, dtype=dtype, average=config.average, trust_code=config.trust_code
    )
    if config.rollout and classifier.model is None:
        raise UserError(
            f"--rollout needs the weights, and MODEL {str(config.model)!r} is a graph: name the run or another export"
        )
    known = classifier.known.classes
    top = min(config.top, len(known))
    if accelerator.is_main_process:
        for folder in filter(Path.is_dir, config.images):
            if others := others_in(folder):
                endings = counted_endings(others)
                logger.info("%s: other files skipped: %d%s", folder, len(others), f" ({endings})" if endings else "")
    first: list[Answer] = []  # for the terminal
    bad = 0
    began = time.monotonic()
    paths = (config.csv, config.parquet) if accelerator.is_main_process else ("", None)
    rounds = predictions(
        classifier,
        pictures,
        accelerator,
        top=config.top,
        batch=config.batch,
        workers=config.workers,
        rollouts=config.rollout,
    )
    bar = Bar("classifying", len(pictures), "images", shown=accelerator.is_main_process)
    with Files(*paths, known, top) as files, bar:
        for answers in rounds:
            bar.advance(len(answers))
            if accelerator.is_main_process:
                files.add(answers)
                first += answers[: max(0, SHOWN - len(first))]
                for answer in answers:
                    bad += bool(answer.error)
                    if answer.error and bad <= NAMED:
                        logger.warning("%s is skipped: %s", answer.image, answer.error)
        if accelerator.is_main_process and bad == len(pictures):
            raise UserError(f"none of the {bad} images could be read; the first one: {first[0].error}")
    if accelerator.is_main_process and config.csv != results.STDOUT:
        seconds = time.monotonic() - began
        show(first, known, top, len(pictures))
        facts = {"images": len(pictures), "bad": bad, "images_per_second": round(len(pictures) / seconds, 1)}
        print(json.dumps({"model": str(config.model), **facts}))
    accelerator.end_training()
    return errors.EXIT_DONE


def check(config: PredictConfig) -> None:
    """Check the options before anything slow is imported. Raises UserError."""
    if not config.images:
        raise UserError("IMAGE is missing: name an image, a folder or a tar after MODEL (see --help)")
    check_model(config.model)
    arguments.check_least(config, top=1, batch=1, workers=0)
    path = config.parquet
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise UserError(f"--parquet {str(path)!r} can't be written: name a file in a folder that exists")
    if config.csv and path is not None and Path(config.csv).resolve() == path.resolve():
        raise UserError(f"--csv and --parquet are both {config.csv!r}: name two files")
    if config.rollout is not None and config.rollout.exists() and not config.rollout.is_dir():
        raise UserError(f"--rollout {str(config.rollout)!r} is a file: name a folder")
    if config.rollout is not None:
        check_can_make(config.rollout, "--rollout")
        for folder in filter(Path.is_dir, config.images):
            if config.rollout.resolve().is_relative_to(folder.resolve()):
                raise UserError(
                    f"--rollout {str(config.rollout)!r} is IMAGE {str(folder)!r} or inside it, so that the next "
                    "prediction would take its figures for images: name another folder"
                )


def show(answers: "Sequence[Answer]", known: Any, top: int, pictures: int) -> None:
    """Print a table of the first images; long names are cut at the front."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("image", "class", "name", "probability"):
        table.add_column(column, justify="right" if column == "probability" else "left", overflow="fold")
    for own in answers:
        if own.error:
            table.add_row(escape(_shortened(own.image)), "", escape(f"not read: {own.error}"), "")
        for place, (index, probability) in enumerate(zip(own.classes[:top], own.probabilities, strict=False)):
            entry = known[index]
            image = _shortened(own.image) if not place else ""
            table.add_row(escape(image), escape(entry.wnid or str(index)), escape(entry.name), f"{probability:.2%}")
    terminal.console().print(table)
    if pictures > len(answers):
        print(f"... and {pictures - len(answers):,} more: --csv or --parquet writes them all")


def _shortened(name: str) -> str:
    return name if len(name) <= NAME_WIDTH else f"…{name[1 - NAME_WIDTH :]}"


if __name__ == "__main__":
    cli.run(main)
