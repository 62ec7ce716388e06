"""python -m jobs.fetch [NAME]: download published weights by name, and print their path."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipeline.core import cli, download, errors
from pipeline.core.arguments import nearest
from pipeline.core.errors import UserError
from pipeline.core.files import check_can_make, write_text
from pipeline.core.locks import locked
from pipeline.core.needs import Need
from pipeline.core.progress import Bar
from pipeline.core.terminal import console
from pipeline.core.units import size
from pipeline.interop import published_weights
from pipeline.interop.published_weights import WEIGHTS, Weights

logger = logging.getLogger("jobs.fetch")

DESCRIPTION = """Download published weights by name, for --parent or MODEL; without NAME, list them.

Only the path is printed on standard output. An interrupted download is resumed by the same command. The files
are checked against the hash that their server states, and SHA256SUMS beside them keeps it. Examples:

  python -m jobs.fetch
  python -m jobs.fetch b16
  vit finetune b16 --parent $(vit fetch b16) --run-dir runs/birds --data.train shards/birds
  python -m jobs.fetch l16-in1k --out weights/l16-in1k"""

SUMS = "SHA256SUMS"  # in sha256sum's form: sha256sum --check SHA256SUMS


@dataclass(frozen=True)
class FetchConfig:
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = ""
    """Weights to download. Default: print the table of the names."""
    out: Path | None = None
    """Folder for the files. Default: weights/NAME in the cache (VIT_CACHE)."""


NEEDS = {"out": Need(lambda options: bool(options.name), "without NAME", "name the weights to download")}


def main() -> int:
    config = cli.parse(FetchConfig, prog="python -m jobs.fetch", description=DESCRIPTION, needs=NEEDS)
    if not config.name:
        show()
        return errors.EXIT_DONE
    if config.name not in WEIGHTS:
        close = nearest(config.name, WEIGHTS)
        hint = f"did you mean {close}? There are" if close else "there are"
        raise UserError(f"NAME {config.name!r} is unknown: {hint} {', '.join(WEIGHTS)}")
    from pipeline.dataset.index import cache_folder  # pyarrow

    folder = config.out or cache_folder() / "weights" / config.name
    check_can_make(folder, "--out" if config.out else "VIT_CACHE")
    print(fetch(config.name, WEIGHTS[config.name], folder))
    return errors.EXIT_DONE


def show() -> None:
    """Print the table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "weights", "top-1", "size", "source"):
        table.add_column(column, overflow="fold")
    for name, weights in WEIGHTS.items():
        score = "" if weights.figure is None else f"{weights.figure.top1:.2f}% ({weights.figure.by})"
        table.add_row(name, weights.what, score, weights.size, weights.source)
    console().print(table)
    print("ImageNet-21K: for --parent, 224 px. ImageNet-2012: for prediction, 384 px. Source: on the Hub, or a URL.")
    print("top-1: at 384 px, published by the authors or timm; of a parent, after fine-tuning.")


def fetch(name: str, weights: Weights, folder: Path) -> Path:
    """Download what is missing; return the path for --parent: the folder, or the .npz in it. Raises UserError."""
    path = folder if weights.on_hub else folder / weights.files[0]
    missing = [file for file in weights.files if not (folder / file).is_file()]
    if not missing:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        missing = [file for file in missing if not (folder / file).is_file()]
        try:
            download_all(name, weights, folder, missing)
        except download.UnreachableError as error:
            urls = " and ".join(weights.url(file) for file in missing)
            raise UserError(
                f"NAME {name!r}: no answer ({error}): run the same command again, or download {urls} on a machine with "
                f"network and copy {'it' if len(missing) == 1 else 'both'} into {str(folder)!r}"
            ) from error
    return path


def download_all(name: str, weights: Weights, folder: Path, files: list[str]) -> None:
    """Download the files, and write their hashes beside them. Raises UserError, UnreachableError."""
    from huggingface_hub import get_token

    stated = {file: published_weights.stated(weights, file, f"NAME {name!r}") for file in files}
    for one in stated.values():
        checked = f"{one.algorithm} {one.digest}" if one.algorithm else "no hash stated"
        logger.info("downloading %s (%s, %s) into %s", one.url, size(one.bytes), checked, folder)
    token = (get_token() or "") if weights.on_hub else ""
    sums = folder / SUMS
    known = sums.read_text("utf-8") if sums.is_file() else ""
    with Bar(f"downloading {name}", sum(one.bytes for one in stated.values()), "bytes") as bar:
        for file, one in stated.items():
            sha256 = download.download(one, folder / file, bar.advance, token=token)
            known += f"{sha256}  {file}\n"
            write_text(sums, known)


if __name__ == "__main__":
    cli.run(main)
