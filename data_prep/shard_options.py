"""What data_prep.shard can be told, which of it makes sense together, and what of it changes the data set's bytes."""

import hashlib
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from data_prep.images.prepare import HAS_LOSSLESS
from data_prep.planning.assignment import SplitRule
from data_prep.planning.make_plan import PlanOptions
from pipeline.core.errors import UserError, printable
from pipeline.core.files import check_local
from pipeline.dataset import class_lists
from pipeline.dataset import format as dataset_format
from pipeline.imaging import jpeg


@dataclass(frozen=True)
class Options:
    input: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    """The release as downloaded, or any folder of class folders, or WebDataset tars."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Folder of the data set to make."""
    source: Literal["auto", "tar", "tars", "folder", "webdataset"] = "auto"
    """Form of INPUT. auto: looks at it. tar: one tar (or tar.gz) of <wnid>.tar files or class folders. tars: a folder
    of <wnid>.tar files. folder: a folder of class folders. webdataset: samples with a .cls member."""
    label: str = ""
    """WebDataset: the member that holds a sample's class: cls (the default), txt, any other ending, or json:KEY for a
    key of the .json member, such as json:label."""
    devkit: Path | None = None
    """ILSVRC2012_devkit_t12.tar.gz or its folder: gives ILSVRC2012's validation images their classes."""
    split: str = "train"
    """Name of the split to write."""
    val_fraction: float = 0.0
    """Part of each class that goes to the split `val` instead, chosen by a hash of the keys."""
    val_first: int = 0
    """Number of images of each class, the first by name, that go to the split `val` instead."""
    classes: str = "derive"
    """The class list: derive (what INPUT holds, sorted), fall11 (21,841), winter21 (19,167), google21k (21,843, for
    the heads of the official checkpoints), 21k-p (classes of more than 500 images, the first 50 of each to `val`),
    imagenet1k (1,000), or a file with a wnid a line in index order. Images of other classes are left out."""
    exclude: Path | None = None
    """A file with a key a line, such as data_prep.overlap writes: these images are left out."""
    seed: int = 0
    """Of the shuffle and of val_fraction."""
    name: str = ""
    """Name of the data set; the output folder's where empty."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes."""
    verify: Literal["decode", "header"] = "decode"
    """decode: read each image's data to its end. header: only its header and end marker, at the speed of the disk."""
    resize: str = ""
    """short=256 makes the short side 256 pixels where it is longer, for clusters that can't decode full-size photos."""
    quality: int = 95
    """JPEG quality of resized images."""
    upright: bool = False
    """Store photos with an EXIF orientation (phones' and cameras') turned upright: without loss if both sides are
    multiples of 8 or 16 pixels, else encoded anew. Otherwise the orientation is ignored by training."""
    restart: bool = False
    """Write each JPEG anew, without loss, with restart markers every few blocks, so that the loader decodes only those
    that a crop needs: about 15 % less time an image, for 3 % more bytes."""
    min_side: int = 1
    """Leave out images with a side shorter than this, pixels."""
    failure_budget: str = "1%"
    """Stop when more than this part of the images is defective (and more than 10 of them)."""
    samples_per_shard: int = 4096
    task: int | None = None
    """Make only this task's shards (0 to tasks - 1); run --finalize when all tasks are done."""
    tasks: int = 1
    finalize: bool = False
    """Merge the shards that tasks made."""
    json: str = ""
    """File to write the summary to as JSON; - is the standard output, instead of the text."""


def check(options: Options) -> None:
    """Raise UserError for options that make no sense."""
    for field, least in (("workers", 1), ("samples_per_shard", 1), ("tasks", 1), ("min_side", 1), ("seed", 0)):
        if getattr(options, field) < least:
            raise UserError(f"--{field.replace('_', '-')} {getattr(options, field)} must be at least {least}")
    if not 0 <= options.val_fraction < 1:
        raise UserError(f"--val-fraction {options.val_fraction} must be from 0 to below 1, such as 0.1")
    if options.val_first < 0 or (options.val_first and options.val_fraction):
        raise UserError(f"--val-first {options.val_first} must be 0 or more, and not go with --val-fraction")
    if options.split == "val" and split_rule(options) != SplitRule("val"):
        raise UserError("the held-out split is 'val', and so is --split: choose another --split")
    if options.task is not None and not 0 <= options.task < options.tasks:
        raise UserError(f"--task {options.task} of --tasks {options.tasks}: tasks are numbered 0 to tasks - 1")
    if options.task is None and options.tasks > 1 and not options.finalize:
        raise UserError(f"--tasks {options.tasks} needs --task, the number of this one (0 to {options.tasks - 1})")
    if options.finalize and options.task is not None:
        raise UserError("--finalize merges what all tasks made: leave out --task")
    if not options.split.isidentifier():
        raise UserError(f"--split {options.split!r} must be a plain word, such as train")
    if not 1 <= options.quality <= 100:
        raise UserError(f"--quality {options.quality} must be from 1 to 100")
    if options.restart and not HAS_LOSSLESS:
        raise UserError(f"--restart needs an extension that was not built: {jpeg.HOW_TO_BUILD}, or leave it out")
    check_local(options.output, "OUTPUT")
    if (options.output.exists() or options.output.is_symlink()) and not options.output.is_dir():
        raise UserError(f"OUTPUT {str(options.output)!r} is a file, or a link to nothing: give a folder")
    if printable(str(options.output)) != str(options.output):
        raise UserError(
            f"OUTPUT {printable(str(options.output))!r} (bytes written %XX) must be UTF-8: give another name"
        )
    short_side(options.resize)
    budget(options.failure_budget)


def short_side(resize: str) -> int:
    """Pixels of ``short=PIXELS``; 0 for the empty string."""
    if not resize:
        return 0
    name, _, pixels = resize.partition("=")
    if name != "short" or not pixels.isdecimal() or int(pixels) < 1:
        raise UserError(f"--resize {resize!r} must be short=PIXELS, such as short=256")
    return int(pixels)


def budget(text: str) -> Fraction:
    """``0.1%`` or ``0.001`` as a fraction."""
    try:
        part = Fraction(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except (ValueError, ZeroDivisionError):
        part = Fraction(-1)
    if not 0 <= part <= 1:
        raise UserError(f"--failure-budget {text!r} must be a part such as 0.1% or 0.001")
    return part


def split_rule(options: Options) -> SplitRule:
    first = options.val_first or (50 if options.classes == "21k-p" and not options.val_fraction else 0)
    return SplitRule(options.split, "val", options.val_fraction, first)


def content_options(options: Options) -> dict[str, Any]:
    """All that changes the data set's bytes, as plain values; class and exclusion lists by their digests."""
    rule = split_rule(options)
    listed, excluded = class_lists.listed(options.classes), _excluded(options)
    return {
        "name": options.name or options.output.resolve().name,
        "seed": options.seed,
        "split": options.split,
        "val_fraction": rule.fraction,
        "val_first": rule.first,
        "classes": options.classes if listed is None else dataset_format.classes_digest(listed),
        "exclude": hashlib.sha256("\n".join(sorted(excluded)).encode()).hexdigest()[:32] if excluded else "",
        "verify": options.verify,
        "resize": options.resize,
        "quality": options.quality if options.resize else 0,
        "min_side": options.min_side,
        "restart": options.restart,
        "samples_per_shard": options.samples_per_shard,
        **({"label": options.label} if options.label else {}),
        **({"upright": True} if options.upright else {}),
    }


def plan_options(options: Options, identity: dict[str, Any]) -> PlanOptions:
    return PlanOptions(
        classes=options.classes,
        exclude=_excluded(options),
        rule=split_rule(options),
        seed=options.seed,
        samples_per_shard=options.samples_per_shard,
        identity=identity,
        workers=options.workers,
        tasks=options.tasks,
    )


def _excluded(options: Options) -> frozenset[str]:
    if options.exclude is None:
        return frozenset()
    if not options.exclude.is_file():
        raise UserError(f"--exclude {str(options.exclude)!r} does not exist: make it with data_prep.overlap")
    try:
        lines = options.exclude.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"--exclude {str(options.exclude)!r} is no text file: give a key a line") from None
    return frozenset(line.removesuffix("\r").split("\t")[0] for line in lines if line and not line.startswith("# "))
