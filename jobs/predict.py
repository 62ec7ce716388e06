"""python -m jobs.predict MODEL IMAGE|FOLDER|TAR ...: what a model sees in pictures."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pipeline.core import cli, errors, terminal
from pipeline.core.errors import UserError
from pipeline.core.files import check_can_make, check_local

if TYPE_CHECKING:
    from accelerate import Accelerator

    from pipeline.inference.classifier import Classifier
    from pipeline.inference.image_files import Picture
    from pipeline.inference.predictions import Answer

DESCRIPTION = """Classify pictures: the five likeliest classes of each, with names and probabilities.

MODEL is a run or a checkpoint, published weights, or anything that jobs.export wrote. Pictures that can't be read are
named, and the others go on. Examples:

  python -m jobs.predict work/runs/finetune-b16 dog.jpg --rollout looks
  python -m jobs.predict B_16.npz holiday/ --csv holiday.csv --batch 64 --workers 8
  accelerate launch --multi-gpu --num-processes 8 -m jobs.predict b16-timm photos.tar --parquet photos.parquet"""

SHOWN = 20  # pictures in the terminal's table
NAME_WIDTH = 32  # characters of a picture's name in the table
LONGEST_STEM = 200  # bytes of a picture's name in the name of its roll-out: file systems take 255 in all
LONGEST_TITLE = 100  # characters of it above the roll-out
NAMED = 10  # bad pictures that are named; the files have all


@dataclass(frozen=True)
class PredictConfig:
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Run folder, a checkpoint's folder in it, an official .npz, a timm or transformers folder, an export of any
    format."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """Images, folders (searched through, with the tars in them) and tars such as a data set's shards."""
    csv: Path | None = None
    """Write a row a picture to this file."""
    parquet: Path | None = None
    """The same as a Parquet file."""
    rollout: Path | None = None
    """Folder for a PNG of each picture: where the model looks, by attention roll-out."""
    top: int = 5
    """Classes a picture."""
    batch: int = 32
    """Pictures a forward pass."""
    workers: int = 2
    """Processes that read and decode, for each process that runs the model. 0: none of their own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    average: bool = False
    """Use the running average of the weights (--train.average) instead of the last ones."""
    trust_code: bool = False
    """Load a MODEL that is a torch.export archive (.pt2). Such a file can run any code: only for files you trust."""


def main() -> int:
    config = cli.parse(PredictConfig, prog="python -m jobs.predict", description=DESCRIPTION)
    check(config)
    import torch  # after the command line is known to be good

    from pipeline.distributed.process_group import make_accelerator
    from pipeline.inference.classifier import open_classifier
    from pipeline.inference.image_files import find
    from pipeline.inference.predictions import Files

    pictures = find(config.images)
    accelerator = make_accelerator()
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.dtype]
    classifier = open_classifier(
        config.model, device=accelerator.device, dtype=dtype, average=config.average, trust_code=config.trust_code
    )
    if config.rollout and classifier.model is None:
        raise UserError(
            f"--rollout needs the weights, and MODEL {str(config.model)!r} is a graph: name the run or another export"
        )
    known = classifier.known.classes
    top = min(config.top, len(known))
    first: list[Answer] = []  # for the terminal
    bad = 0
    began = time.monotonic()
    paths = (config.csv, config.parquet) if accelerator.is_main_process else (None, None)
    with Files(*paths, known, top) as files:
        for answers in predictions(config, accelerator, classifier, pictures):
            if accelerator.is_main_process:
                files.add(answers)
                first += answers[: max(0, SHOWN - len(first))]
                for answer in answers:
                    bad += bool(answer.error)
                    if answer.error and bad <= NAMED:
                        print(f"warning: {answer.image} is left out: {answer.error}", file=sys.stderr, flush=True)
        if accelerator.is_main_process and bad == len(pictures):
            raise UserError(f"none of the {bad} pictures could be read, the first reason: {first[0].error}")
    if accelerator.is_main_process:
        seconds = time.monotonic() - began
        show(first, known, top, len(pictures))
        facts = {"images": len(pictures), "bad": bad, "images_per_second": round(len(pictures) / seconds, 1)}
        print(json.dumps({"model": str(config.model), **facts}))
    accelerator.end_training()
    return errors.EXIT_DONE


def check(config: PredictConfig) -> None:
    """Raises UserError before anything slow is imported."""
    if not config.images:
        raise UserError("IMAGE is missing: name an image, a folder or a tar after MODEL (see --help)")
    check_local(config.model, "MODEL")
    if not config.model.exists():
        raise UserError(f"MODEL {str(config.model)!r} does not exist: name a run folder, weights or an export (--help)")
    for name, least in (("top", 1), ("batch", 1), ("workers", 0)):
        if getattr(config, name) < least:
            raise UserError(f"--{name} {getattr(config, name)} is too small: give at least {least}")
    for name in ("csv", "parquet"):
        path: Path | None = getattr(config, name)
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise UserError(f"--{name} {str(path)!r} can't be written: name a file in a folder that exists")
    if config.csv is not None and config.parquet is not None and config.csv.resolve() == config.parquet.resolve():
        raise UserError(f"--csv and --parquet are both {str(config.csv)!r}: name two files")
    if config.rollout is not None and config.rollout.exists() and not config.rollout.is_dir():
        raise UserError(f"--rollout {str(config.rollout)!r} is a file: name a folder")
    if config.rollout is not None:
        check_can_make(config.rollout, "--rollout")


def predictions(
    config: PredictConfig, accelerator: "Accelerator", classifier: "Classifier", pictures: "Sequence[Picture]"
) -> "Iterator[list[Answer]]":
    """The answers in the order of the pictures, a list for each round of batches; collective over the processes."""
    from accelerate.utils import gather_object

    from pipeline.inference.image_files import batches

    mine = batches(
        pictures,
        batch=config.batch,
        size=classifier.known.model.image_size,
        resize=classifier.known.resize,
        workers=config.workers,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    rounds = -(-len(pictures) // (config.batch * accelerator.num_processes))
    with progress(shown=accelerator.is_main_process and sys.stderr.isatty()) as bar:
        task = bar.add_task("classify", total=len(pictures), rate="")
        began = time.monotonic()
        for number in range(rounds):
            batch = next(mine, None)
            answers = answer(config, classifier, pictures, batch) if batch else []
            if accelerator.num_processes > 1:
                answers = gather_object(answers)
            done = min((number + 1) * config.batch * accelerator.num_processes, len(pictures))
            bar.update(task, completed=done, rate=f"{done / (time.monotonic() - began):,.0f} images/s")
            yield answers


def answer(config: PredictConfig, classifier: "Classifier", pictures: "Sequence[Picture]", batch: Any) -> list[Any]:
    """Answers of one batch, in order, the bad pictures' among them; draws the roll-outs."""
    from pipeline.inference.predictions import Answer

    answers = {place: Answer(pictures[place].name, error=reason) for place, reason in batch.bad}
    if batch.kept:
        classes_BK, probabilities_BK = classifier.classify(batch.images_BHWC, config.top)
        if probabilities_BK.isnan().any():
            raise UserError(f"MODEL {str(config.model)!r} answers with no numbers: its training has diverged")
        for place, classes, probabilities in zip(
            batch.kept, classes_BK.tolist(), probabilities_BK.tolist(), strict=True
        ):
            answers[place] = Answer(pictures[place].name, tuple(classes), tuple(probabilities))
        if config.rollout:
            draw_rollouts(config.rollout, classifier, batch, answers)
    return [answers[place] for place in sorted(answers)]


def draw_rollouts(folder: Path, classifier: "Classifier", batch: Any, answers: dict[int, Any]) -> None:
    """``000012-name.png`` for picture 12, a very long name cut: with the number it still is a name of its own."""
    from pipeline.inference.attention_rollout import attentions, draw, rollout
    from pipeline.model.preprocess import normalise

    assert classifier.model is not None
    x_BCHW = normalise(batch.images_BHWC.to(classifier.device), classifier.dtype, classifier.known.model)
    maps_BGG = rollout(attentions(classifier.model, x_BCHW), classifier.known.model.registers).numpy()
    for place, image_HWC, map_GG in zip(batch.kept, batch.images_BHWC.numpy(), maps_BGG, strict=True):
        own = answers[place]
        pairs = [
            (classifier.known.classes[index].name, probability)
            for index, probability in zip(own.classes, own.probabilities, strict=True)
        ]
        stem = Path(own.image).stem.encode()[:LONGEST_STEM].decode(errors="ignore")
        draw(image_HWC, map_GG, Path(own.image).name[:LONGEST_TITLE], pairs, folder / f"{place:06d}-{stem}.png")


def progress(*, shown: bool) -> Any:
    """Pictures done, their rate and the time that remains, on stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    return Progress(
        *columns, TimeRemainingColumn(), console=terminal.console(stderr=True), disable=not shown, transient=True
    )


def show(answers: "Sequence[Answer]", known: Any, top: int, pictures: int) -> None:
    """A table of the first pictures, by the ends of their names."""
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
