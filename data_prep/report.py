"""``vit report DATASET``: one self-contained HTML page about a dataset's content."""

import base64
import collections
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import simplejpeg
import tyro

from data_prep import report_figures
from data_prep.dataset_reader import OpenTar, batches, check_out, pieces, rows_of
from pipeline.core import cli, errors, files, units
from pipeline.core.needs import Need
from pipeline.dataset import format as dataset_format
from pipeline.dataset.format import DatasetInfo
from pipeline.imaging.jpeg import decode_small

DESCRIPTION = """Write an HTML page about a dataset: counts, classes, sizes of images and files, skipped images with
reasons (and thumbnails if they can be decoded in part), and random samples. The page is one self-contained file.

Examples:
  vit report data/imagenet21k
  vit report data/imagenet21k --out report.html --samples 120
  vit report data/imagenet21k --seed 1     # other samples
"""
SIDE = 144  # pixels of a sample's longer side on the page
MOST_REJECTS = 60  # shown on the page

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a202c; background: #fff; max-width: 1180px; margin: 2em auto;
  padding: 0 1em; }
h1, td, th, p { overflow-wrap: anywhere; } h1 { margin-bottom: 0; } .quiet { color: #5a6878; }
h2 { margin-top: 2em; border-bottom: 1px solid #e2e8f0; }
table { border-collapse: collapse; } td, th { padding: .2em 1.2em .2em 0; text-align: left; vertical-align: top; }
td:first-child { min-width: 5em; overflow-wrap: normal; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; padding-right: 0; }
code { background: #f1f5f9; padding: 0 .3em; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 14px; }
.figures img { width: 100%; max-width: 660px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 18px 14px; }
figure { margin: 0; } figure img, .missing { display: block; margin-bottom: 4px; height: 116px; max-width: 100%;
  object-fit: contain; object-position: left bottom; border-radius: 3px; }
.missing { width: 116px; background: #edf2f7; color: #5a6878; font-size: 12px; line-height: 116px; text-align: center; }
figcaption { font-size: 12px; color: #5a6878; overflow-wrap: anywhere; }
figcaption span, figcaption b { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2;
  overflow: hidden; }
figcaption b { color: #1a202c; }
@media print { figure { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Options:
    dataset: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Folder of a finished dataset."""
    out: Path | None = None
    """File to write. Default: DATASET/report.html."""
    samples: int = 60
    """Number of random images to show per split."""
    seed: int = 0
    """Seed that chooses these images."""


NEEDS = {"seed": Need(lambda options: options.samples > 0, "with --samples 0", "show some samples")}


@dataclass(frozen=True)
class Totals:
    """Sums over the index."""

    class_counts: npt.NDArray[np.int64]  # by class index
    short_sides: npt.NDArray[np.int64]  # counts in figures.SIDES
    kilobytes: npt.NDArray[np.int64]  # counts in figures.KILOBYTES
    recoded: dict[str, int]
    turned: int  # images with an EXIF orientation other than 1


def main(args: list[str] | None = None) -> int:
    options = cli.parse(Options, prog="vit report", description=DESCRIPTION, args=args, needs=NEEDS)
    if options.samples < 0:
        raise errors.UserError(f"--samples {options.samples} must be 0 or more")
    if options.seed < 0:
        raise errors.UserError(f"--seed {options.seed} must be 0 or more")
    info = dataset_format.read_info(options.dataset)
    out = options.out or options.dataset / "report.html"
    check_out(out)
    files.write_text(out, page(options, info))
    print(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)")
    return errors.EXIT_DONE


def page(options: Options, info: DatasetInfo) -> str:
    names: list[str] = dataset_format.read_classes(options.dataset)["name"].to_pylist()
    found = totals(options.dataset, info)
    sections = [
        f"<h1>{escape(info.name)}</h1>",
        f"<p class=quiet>{' + '.join(f'{count:,} {escape(split)}' for split, count in info.samples.items())} images of "
        f"{info.classes:,} classes, digest <code>{info.digest}</code></p>",
        *_facts(info, found),
        *_classes(found, names),
        *_sizes(found),
        *_rejects(options.dataset, info),
    ]
    for split in info.samples:
        sections += [f"<h2>Samples: {escape(split)}</h2>", "<div class=grid>"]
        sections += [*_samples(options, info, split, names), "</div>"]
    body = "\n".join(sections)
    title = f"<title>{escape(info.name)}: dataset report</title>"
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'>{title}<style>{STYLE}</style>"
    return f"<!doctype html>\n<html lang=en>{head}\n<body>\n{body}\n</body></html>\n"


def totals(folder: Path, info: DatasetInfo) -> Totals:
    """Read the index once, one row group at a time."""
    classes = np.zeros(info.classes, np.int64)
    sides = np.zeros(len(report_figures.SIDES) - 1, np.int64)
    kilobytes = np.zeros(len(report_figures.KILOBYTES) - 1, np.int64)
    recoded: collections.Counter[str] = collections.Counter()
    turned = 0
    for batch in batches(folder, ["label", "size", "width", "height", "orientation", "recoded"]):
        width, height = batch["width"].to_numpy(), batch["height"].to_numpy()
        classes += np.bincount(batch["label"].to_numpy(), minlength=info.classes)
        sides += np.histogram(np.minimum(width, height)[width > 0], report_figures.SIDES)[0]
        kilobytes += np.histogram(batch["size"].to_numpy() / 1000, report_figures.KILOBYTES)[0]
        recoded.update(batch["recoded"].to_pylist())
        turned += int((batch["orientation"].to_numpy() != 1).sum())
    del recoded[""]
    return Totals(classes, sides, kilobytes, dict(recoded.most_common()), turned)


def _facts(info: DatasetInfo, found: Totals) -> list[str]:
    size = sum(shard.bytes for shard in info.shards)
    rows = [
        ("classes without images", f"{(found.class_counts == 0).sum():,}"),
        ("shards", f"{len(info.shards):,}"),
        ("size", units.size(size)),
        ("skipped files", f"{info.rejects:,}"),
        ("changed images", ", ".join(f"{count:,} {reason}" for reason, count in found.recoded.items()) or "none"),
        ("images not upright (EXIF orientation)", f"{found.turned:,}"),
        ("seed", str(info.seed)),
        ("options", ", ".join(f"{name} {value}" for name, value in info.options.items() if value not in ("", 0))),
        ("class list", info.classes_digest),
        ("made by", f"vit-pipeline {info.tool_version}"),
    ]
    return [_table(("", ""), rows)]


def _classes(found: Totals, names: list[str]) -> list[str]:
    counts = found.class_counts
    order = np.argsort(-counts, kind="stable")
    ends = [("", order)] if len(order) <= 10 else [("largest", order[:5]), ("smallest", order[-5:])]
    rows = [(which, names[index], f"{counts[index]:,}") for which, some in ends for index in some]
    if len(order) <= 10:
        table = _table(("class", "images"), [row[1:] for row in rows], numbers={1})
    else:
        table = _table(("", "class", "images"), rows, numbers={2})
    charts = {
        "Images per class": report_figures.class_sizes(counts),
        "Classes by size": report_figures.classes_by_size(counts),
    }
    return ["<h2>Classes</h2>", _figures(charts), table]


def _sizes(found: Totals) -> list[str]:
    charts = {}
    if found.short_sides.sum():
        title = "Short side of the images"
        charts[title] = report_figures.histogram(found.short_sides, report_figures.SIDES, title, "pixels")
    title = "Size of the JPEGs"
    charts[title] = report_figures.histogram(found.kilobytes, report_figures.KILOBYTES, title, "kilobytes")
    return ["<h2>Sizes</h2>", _figures(charts)]


def _rejects(folder: Path, info: DatasetInfo) -> list[str]:
    if not info.rejects:
        return ["<h2>Skipped files</h2><p>None.</p>"]
    table = dataset_format.read_rejects(folder)
    reasons = collections.Counter(table["reason"].to_pylist())
    share = max(4, MOST_REJECTS // len(reasons))
    chosen: list[dict[str, Any]] = []
    for reason in reasons:  # some of each reason
        own = table.filter(pc.equal(table["reason"], reason))
        seen = own.filter(pc.is_valid(own["thumbnail"]))  # those with a thumbnail first
        chosen += pa.concat_tables([seen, own.filter(pc.is_null(own["thumbnail"]))]).slice(0, share).to_pylist()
    shown = [_picture(row["thumbnail"], row["reason"], row["source"], row["detail"]) for row in chosen[:MOST_REJECTS]]
    counts = [(reason, f"{count:,}") for reason, count in reasons.most_common()]
    table_of_reasons = _table(("reason", "files"), counts, numbers={1})
    return ["<h2>Skipped files</h2>", table_of_reasons, "<p></p>", "<div class=grid>", *shown, "</div>"]


def _samples(options: Options, info: DatasetInfo, split: str, names: list[str]) -> Iterator[str]:
    count = min(options.samples, info.samples[split])
    generator = np.random.default_rng(options.seed)
    chosen = np.sort(generator.choice(info.samples[split], count, replace=False))
    start = 0
    for piece in (piece for piece in pieces(options.dataset, info) if piece.info.split == split):
        here = chosen[(chosen >= start) & (chosen < start + piece.info.samples)] - start
        start += piece.info.samples
        if not len(here):
            continue
        with OpenTar(piece) as tar:
            for row in rows_of(piece, ["key", "offset", "size", "label"]).take(here.tolist()).to_pylist():
                texts = names[row["label"]], row["key"]
                try:
                    yield _picture(thumbnail(tar.read(row["offset"], row["size"])), *texts)
                except ValueError as error:  # vit index doesn't decode images
                    yield _picture(None, *texts, str(error).strip())


def thumbnail(jpeg: bytes) -> bytes:
    """A JPEG whose longer side has at most SIDE pixels."""
    pixels_HWC = decode_small(jpeg, "RGB", SIDE, SIDE)
    scale = min(1.0, SIDE / max(pixels_HWC.shape[:2]))
    size = max(1, round(pixels_HWC.shape[1] * scale)), max(1, round(pixels_HWC.shape[0] * scale))
    small: bytes = simplejpeg.encode_jpeg(cv2.resize(pixels_HWC, size, interpolation=cv2.INTER_AREA), 80, "RGB", "420")
    return small


def _picture(jpeg: bytes | None, title: str, *texts: str) -> str:
    """A figure: the image, or a placeholder if there is none, above its texts, cut to two lines; hovering shows all."""
    seen = _image(jpeg, title) if jpeg else "<span class=missing>not decodable</span>"
    lines = "".join(f"<span>{escape(text)}</span>" for text in texts)
    whole = escape("\n".join((title, *texts)))
    return f'<figure title="{whole}">{seen}<figcaption><b>{escape(title)}</b>{lines}</figcaption></figure>'


def _image(data: bytes, text: str, kind: str = "jpeg") -> str:
    return f'<img alt="{escape(text)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def _figures(charts: dict[str, bytes]) -> str:
    return f"<div class=figures>{' '.join(_image(chart, title, 'png') for title, chart in charts.items())}</div>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: frozenset[int] | set[int] = frozenset()) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        marks = [" class=number" if column in numbers else "" for column in range(len(cells))]
        return "".join(f"<{tag}{mark}>{escape(cell)}</{tag}>" for cell, mark in zip(cells, marks, strict=True))

    top = f"<tr>{row(head, 'th')}</tr>" if any(head) else ""
    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f"<table>{top}{body}</table>"


if __name__ == "__main__":
    cli.run(main)
