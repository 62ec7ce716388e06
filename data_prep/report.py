"""``python -m data_prep.report DATASET``: one self-contained HTML page that shows what a data set holds."""

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

from data_prep import figures, finish, progress
from data_prep.arrow import without_pandas
from data_prep.datasets import OpenTar, batches, check_out, pieces, rows_of
from pipeline import cli, shards
from pipeline.shards import DatasetInfo

DESCRIPTION = """Write a page about a data set: counts, classes, sizes of images and files, what was left out and why
(with what can still be seen of it), and a sample of the images. The page is one file that needs nothing else.

Examples:
  python -m data_prep.report data/imagenet21k
  python -m data_prep.report data/imagenet21k --out report.html --samples 120
  python -m data_prep.report data/imagenet21k --seed 1     # other samples
"""
SIDE = 144  # pixels of a sample's longer side on the page
MOST_REJECTS = 60  # shown with what can be seen of them

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a202c; background: #fff; max-width: 1180px; margin: 2em auto;
  padding: 0 1em; }
h1 { margin-bottom: 0; } h2 { margin-top: 2em; border-bottom: 1px solid #e2e8f0; } .quiet { color: #5a6878; }
table { border-collapse: collapse; } td, th { padding: .2em 1.2em .2em 0; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.figures img { max-width: 48%; } .grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr));
  gap: 14px; } figure { margin: 0; } figure img { max-width: 100%; border-radius: 3px; }
figcaption { font-size: 12px; color: #5a6878; overflow-wrap: anywhere; }
code { background: #f1f5f9; padding: 0 .3em; } .missing { display: inline-block; width: 96px; height: 72px;
  background: #edf2f7; border-radius: 3px; }
"""


@dataclass(frozen=True)
class Options:
    dataset: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Folder of a finished data set."""
    out: Path | None = None
    """The page; DATASET/report.html where not given."""
    samples: int = 60
    """Images to show of each split."""
    seed: int = 0
    """Chooses the images."""


@dataclass(frozen=True)
class Totals:
    """What the index adds up to."""

    class_counts: npt.NDArray[np.int64]  # by class index
    short_sides: npt.NDArray[np.int64]  # counts in figures.SIDES
    kilobytes: npt.NDArray[np.int64]  # counts in figures.KILOBYTES
    recoded: dict[str, int]
    turned: int  # images with an EXIF orientation other than 1


def main(args: list[str] | None = None) -> int:
    options = cli.parse(Options, prog="python -m data_prep.report", description=DESCRIPTION, args=args)
    if options.samples < 0:
        raise cli.UserError(f"--samples {options.samples} must be 0 or more")
    if options.seed < 0:
        raise cli.UserError(f"--seed {options.seed} must be 0 or more")
    info = shards.read_info(options.dataset)
    out = options.out or options.dataset / "report.html"
    check_out(out)
    finish.write_text(out, page(options, info))
    print(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)")
    return cli.EXIT_DONE


def page(options: Options, info: DatasetInfo) -> str:
    names: list[str] = shards.read_classes(options.dataset)["name"].to_pylist()
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
    title = f"<title>{escape(info.name)}: data set report</title>"
    head = f"<meta charset=utf-8>{title}<style>{STYLE}</style>"
    return f"<!doctype html>\n<html lang=en>{head}\n<body>\n{body}\n</body></html>\n"


def totals(folder: Path, info: DatasetInfo) -> Totals:
    """Read the index once, a row group at a time."""
    classes = np.zeros(info.classes, np.int64)
    sides = np.zeros(len(figures.SIDES) - 1, np.int64)
    kilobytes = np.zeros(len(figures.KILOBYTES) - 1, np.int64)
    recoded: collections.Counter[str] = collections.Counter()
    turned = 0
    for batch in batches(folder, ["label", "size", "width", "height", "orientation", "recoded"]):
        width, height = batch["width"].to_numpy(), batch["height"].to_numpy()
        classes += np.bincount(batch["label"].to_numpy(), minlength=info.classes)
        sides += np.histogram(np.minimum(width, height)[width > 0], figures.SIDES)[0]
        kilobytes += np.histogram(batch["size"].to_numpy() / 1000, figures.KILOBYTES)[0]
        recoded.update(batch["recoded"].to_pylist())
        turned += int((batch["orientation"].to_numpy() != 1).sum())
    del recoded[""]
    return Totals(classes, sides, kilobytes, dict(recoded.most_common()), turned)


def _facts(info: DatasetInfo, found: Totals) -> list[str]:
    size = sum(shard.bytes for shard in info.shards)
    rows = [
        ("shards", f"{len(info.shards):,}"),
        ("size", progress.size(size)),
        ("left out", f"{info.rejects:,}"),
        ("re-encoded", ", ".join(f"{count:,} {reason}" for reason, count in found.recoded.items()) or "none"),
        ("EXIF orientation other than upright", f"{found.turned:,}"),
        ("seed", str(info.seed)),
        ("options", ", ".join(f"{name} {value}" for name, value in info.options.items() if value not in ("", 0))),
        ("class list", info.classes_digest),
        ("made by", f"vit-pipeline {info.tool_version}"),
    ]
    return [_table(("", ""), rows)]


def _classes(found: Totals, names: list[str]) -> list[str]:
    counts = found.class_counts
    order = np.argsort(counts, kind="stable")
    ends = [("largest", order[::-1][:5]), ("smallest", order[:5])]
    rows = [(which, names[index], f"{counts[index]:,}") for which, some in ends for index in some]
    charts = [figures.class_sizes(counts), figures.classes_by_size(counts)]
    return ["<h2>Classes</h2>", _figures(charts), _table(("", "class", "images"), rows, numbers={2})]


def _sizes(found: Totals) -> list[str]:
    charts = [figures.histogram(found.kilobytes, figures.KILOBYTES, "Size of the JPEGs", "kilobytes")]
    if found.short_sides.sum():
        charts.insert(0, figures.histogram(found.short_sides, figures.SIDES, "Short side of the images", "pixels"))
    return ["<h2>Sizes</h2>", _figures(charts)]


def _rejects(folder: Path, info: DatasetInfo) -> list[str]:
    if not info.rejects:
        return ["<h2>Left out</h2><p>Nothing.</p>"]
    table = shards.read_rejects(folder)
    reasons = collections.Counter(table["reason"].to_pylist())
    share = max(4, MOST_REJECTS // len(reasons))
    chosen: list[dict[str, Any]] = []
    for reason in reasons:  # some of each reason
        own = table.filter(pc.equal(table["reason"], reason))
        seen = own.filter(pc.is_valid(own["thumbnail"]))  # those that can be looked at first
        chosen += pa.concat_tables([seen, own.filter(pc.is_null(own["thumbnail"]))]).slice(0, share).to_pylist()
    shown = [
        f"<figure>{_image(row['thumbnail']) if row['thumbnail'] else '<span class=missing></span>'}"
        f"<figcaption><b>{escape(row['reason'])}</b> {escape(row['source'])}<br>{escape(row['detail'])}</figcaption>"
        "</figure>"
        for row in chosen[:MOST_REJECTS]
    ]
    counts = [(reason, f"{count:,}") for reason, count in reasons.most_common()]
    table_of_reasons = _table(("reason", "images"), counts, numbers={1})
    return ["<h2>Left out</h2>", table_of_reasons, "<p></p>", "<div class=grid>", *shown, "</div>"]


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
                caption = f"<b>{escape(names[row['label']])}</b><br>{escape(row['key'])}"
                try:
                    seen = _image(thumbnail(tar.read(row["offset"], row["size"])))
                except ValueError as error:  # tars made elsewhere were never checked
                    seen, caption = "<span class=missing></span>", f"{caption}<br>{escape(str(error).strip())}"
                yield f"<figure>{seen}<figcaption>{caption}</figcaption></figure>"


def thumbnail(jpeg: bytes) -> bytes:
    """A JPEG of at most SIDE pixels on its longer side."""
    pixels_HWC = simplejpeg.decode_jpeg(jpeg, "RGB", min_height=SIDE, min_width=SIDE, strict=False)
    scale = min(1.0, SIDE / max(pixels_HWC.shape[:2]))
    size = max(1, round(pixels_HWC.shape[1] * scale)), max(1, round(pixels_HWC.shape[0] * scale))
    small: bytes = simplejpeg.encode_jpeg(cv2.resize(pixels_HWC, size, interpolation=cv2.INTER_AREA), 80, "RGB", "420")
    return small


def _image(data: bytes, kind: str = "jpeg") -> str:
    return f'<img alt="" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def _figures(charts: list[bytes]) -> str:
    return f"<div class=figures>{' '.join(_image(chart, 'png') for chart in charts)}</div>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: frozenset[int] | set[int] = frozenset()) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        marks = [" class=number" if column in numbers else "" for column in range(len(cells))]
        return "".join(f"<{tag}{mark}>{escape(cell)}</{tag}>" for cell, mark in zip(cells, marks, strict=True))

    top = f"<tr>{row(head, 'th')}</tr>" if any(head) else ""
    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f"<table>{top}{body}</table>"


if __name__ == "__main__":
    without_pandas()
    cli.run(main)
