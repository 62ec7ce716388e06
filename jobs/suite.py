"""python -m jobs.suite MODEL --data-root FOLDER: one table of the test sets that papers report for a classifier."""

import dataclasses
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from data_prep.test_sets import catalogue
from pipeline.core import arguments, cli, errors, log, terminal
from pipeline.core.errors import UserError
from pipeline.core.files import check_can_make
from pipeline.core.needs import Need
from pipeline.interop import hub_models
from pipeline.interop.model_files import ARCHIVE, check_model
from pipeline.tracking.resend import send

if TYPE_CHECKING:
    from data_prep.test_sets.read_set import Images
    from pipeline.runs.suite_results import Result
    from pipeline.suite.run_suite import Labelled, Suite

logger = logging.getLogger("jobs.suite")
KEY_LENGTH = len("ILSVRC2012_val_00000001")  # a class may follow it

DESCRIPTION = """Evaluate a model on the test sets that papers report, and print them beside the published figures.

FOLDER holds the downloads as published (tar, tar.gz, zip or folder) or datasets that data_prep.shard made:
ImageNet-2012's validation set, ReaL, V2 (three), A, R, Sketch, ObjectNet, C. Missing sets are listed.
--features evaluates the frozen features by nearest neighbours, linear and few-shot probes, on any classes.
Finished sets are not evaluated again, so an interrupted suite continues. Examples:

  python -m jobs.suite runs/b16-ft --data-root /data/imagenet-variants
  python -m jobs.suite runs/b16-ft --data-root /data/imagenet-variants --only a,r,sketch --log
  python -m jobs.suite runs/b16 --features shards/in1k --log
  python -m jobs.launch --ranks 8 suite b16-timm --data-root /data --out work/b16-suite"""


@dataclass(frozen=True)
class SuiteConfig:
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Run folder, a checkpoint's folder in it, an official .npz, a timm or transformers folder, an export of any
    format, or hf://OWNER/NAME[@REVISION] on the Hugging Face Hub."""
    data_root: Path | None = None
    """Folder with the downloads, directly in it or one level below."""
    features: str = ""
    """Dataset, a folder or a URL, with the splits train and val: fit k-NN, linear and few-shot probes to the frozen
    features of train, and test them on val."""
    only: str = ""
    """Sets to evaluate, separated by commas: val, real, v2, v2-threshold, v2-top, a, r, sketch, objectnet, c. Default:
    all that are found."""
    partial: bool = False
    """Also evaluate sets whose download lacks images; the table marks them."""
    out: Path | None = None
    """Folder for the results. Default: RUN/evaluations for a run; another model's results are only printed."""
    log: bool = False
    """Send the results to the run's MLflow run as suite/SET/top1."""
    batch: int = 128
    """Images per forward pass on each process."""
    workers: int = 2
    """Data loader workers per process."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type."""
    average: bool = False
    """Evaluate the running average of the weights (--train.average) instead of the last weights."""
    trust_code: bool = False
    """Load a MODEL that is a torch.export archive (.pt2). Such a file can run any code: only for files you trust."""


DOWNLOADS = Need(lambda options: options.data_root is not None, "without downloads", "add --data-root FOLDER")
NEEDS = {"only": DOWNLOADS, "partial": DOWNLOADS, "trust_code": ARCHIVE}


def main() -> int:
    config = cli.parse(SuiteConfig, prog="python -m jobs.suite", description=DESCRIPTION, needs=NEEDS)
    check(config)
    config = dataclasses.replace(config, model=hub_models.resolved(config.model))
    from pipeline.suite.run_suite import open_suite

    suite = open_suite(
        config.model, config.out, log=config.log, dtype=config.dtype, average=config.average,
        batch=config.batch, workers=config.workers, trust_code=config.trust_code,
    )  # fmt: skip
    if suite.world_size > 1:
        log.set_up(suite.rank, suite.world_size, stamped=True)
    results, refused = evaluate_all(config, suite) if config.data_root is not None else ([], 0)
    if config.features:
        results += evaluate_features(config, suite)
    if suite.rank == 0:
        if results:
            show(suite, results)
        scores = {result.name: result.scores for result in results}
        print(json.dumps({"model": str(suite.source), **scores}), flush=True)
        if suite.run_dir is not None:
            send(suite.run_dir)
    suite.close()
    return 1 if refused else errors.EXIT_DONE


def check(config: SuiteConfig) -> None:
    """Check the options before anything slow is imported. Raises UserError."""
    check_model(config.model)
    arguments.check_least(config, batch=1, workers=0)
    if config.data_root is None and not config.features:
        raise UserError("nothing to evaluate: give --data-root FOLDER of the downloads, --features DATASET, or both")
    for name in wanted(config):
        if name not in catalogue.NAMES:
            raise UserError(f"--only {name!r} is unknown: there are {', '.join(catalogue.NAMES)}")
    if config.out is not None:
        check_can_make(config.out, "--out")


def wanted(config: SuiteConfig) -> list[str]:
    return [name.strip() for name in config.only.split(",")] if config.only else list(catalogue.NAMES)


def evaluate_all(config: SuiteConfig, suite: "Suite") -> tuple[list["Result"], int]:
    """Results in the catalogue's order, and the number of sets that were refused."""
    from data_prep.test_sets.find import find
    from data_prep.test_sets.read_set import read
    from pipeline.dataset.index import cache_folder

    assert config.data_root is not None
    suite.check_classes()
    found = find(config.data_root)
    chosen = [name for name in catalogue.NAMES if name in wanted(config)]
    present = [name for name in chosen if name in found]
    if not present:
        raise UserError(
            f"--data-root {str(config.data_root)!r} holds none of {', '.join(chosen)}: put downloads there, such as "
            f"{catalogue.named(chosen[0]).get}"
        )
    for name in (name for name in chosen if name not in found):
        logger.info("%s is missing: %s", catalogue.named(name).title, catalogue.named(name).get, extra=log.ONCE)
    passes = [[name] for name in present]
    if {"val", "real"} <= set(present):  # the same images
        passes = [["val", "real"], *(names for names in passes if not {"val", "real"} & set(names))]
    results, refused = [], 0
    for names in passes:
        first = catalogue.named(names[0])
        try:
            images = read(first, found[first.name], cache_folder() / "test-sets", partial=config.partial)
            results += suite.evaluate(labelled(images, names, found[first.name][0]))
        except UserError as error:
            if len(passes) == 1:
                raise
            refused += len(names)
            logger.error("%s: %s", " and ".join(catalogue.named(name).title for name in names), error)
    return results, refused


def evaluate_features(config: SuiteConfig, suite: "Suite") -> list["Result"]:
    from pipeline.dataset.joined_split import open_split
    from pipeline.suite import frozen_features

    return frozen_features.evaluate_features(
        suite, open_split(config.features, "train"), open_split(config.features, "val")
    )


def labelled(images: "Images", names: list[str], download: Path) -> "Labelled":
    """A test set's images, to be evaluated for the results ``names``: the set's, ReaL's or both."""
    from data_prep.test_sets.find import real_of
    from pipeline.core.errors import printable
    from pipeline.evaluation.confusion import read_real
    from pipeline.inference.image_files import Picture
    from pipeline.suite.run_suite import REAL, Labelled

    test_set = images.test_set
    pictures = [
        Picture(
            printable(f"{entry.file}/{entry.name}" if entry.file.suffix in (".tar", ".zip") else str(entry.file)),
            entry.file,
            entry.offset,
            entry.size,
            deflated=entry.deflated,
            border=test_set.border,
        )
        for entry, *_ in images.images
    ]
    real: list[frozenset[int]] = []
    if REAL in names:
        path = real_of(download)
        assert path is not None  # it was found
        keys = [Path(image.entry.name).name[:KEY_LENGTH] for image in images.images]
        by_row = read_real(path, keys)
        real = [by_row[row] for row in range(len(keys))]
    titles = {name: catalogue.named(name).title for name in names}
    labels = [image.label for image in images.images]
    parts = [image.part for image in images.images]
    return Labelled(titles, pictures, labels, parts, images.classes, real, images.partial)


def show(suite: "Suite", results: "list[Result]") -> None:
    from rich.markup import escape
    from rich.table import Table

    from pipeline.config.published_sets import PIXELS, SOURCE, nearest

    model = suite.classifier.known.model
    published = nearest(model.variant, layer_scale=bool(model.layer_scale))
    heads = [f"{published.model}, published at {PIXELS} px ({SOURCE})"] if published else []
    table = Table(title=escape(str(suite.source)), title_justify="left")
    for column in ("set", "images", "top-1", "top-5", *heads):
        table.add_column(column, justify="left" if column == "set" else "right")
    for result in results:
        scores = result.scores
        title = result.title + (" (partial)" if result.partial else "")
        more = f", mCE {scores['mce']:.1%}" if "mce" in scores else ""
        more = f" ± {scores['std']:.2%}" if "std" in scores else more
        top5 = f"{scores['top5']:.2%}" if "top5" in scores else ""
        row = [escape(title), f"{scores['samples']:,.0f}", f"{scores['top1']:.2%}{more}", top5]
        if published:
            figure = published.top1.get(result.name)
            row.append("" if figure is None else f"{figure:.2f}%")
        table.add_row(*row)
    terminal.console().print(table)
    if suite.folder is not None:
        print(f"kept in {suite.folder}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
