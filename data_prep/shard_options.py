"""The options of vit shard: which combinations are valid, and which options change the dataset's bytes."""

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
from pipeline.core.needs import Need
from pipeline.dataset import class_lists, hub_dataset
from pipeline.dataset import format as dataset_format
from pipeline.imaging import jpeg


@dataclass(frozen=True)
class Options:
    input: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    """The release as downloaded, a folder with one folder per class, or WebDataset tars."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Folder of the dataset to create."""
    source: Literal["auto", "tar", "tars", "folder", "webdataset"] = "auto"
    """Form of INPUT. auto: detected. tar: one tar (or tar.gz) of <wnid>.tar files or class folders. tars: a folder of
    <wnid>.tar files. folder: one folder per class. webdataset: samples with a .cls member."""
    label: str = ""
    """WebDataset: the member that holds a sample's class: cls (used if this is empty), txt, any other ending, or
    json:KEY for a key of the .json member, such as json:label."""
    devkit: Path | None = None
    """ILSVRC2012_devkit_t12.tar.gz or its folder, which has the classes of ILSVRC2012's validation images."""
    split: str = "train"
    """Name of the split to write."""
    val_fraction: float = 0.0
    """Fraction of each class that goes to the split `val` instead, 0 to below 1, chosen by a hash of the keys."""
    val_first: int = 0
    """Number of images per class, the first by name, that go to the split `val` instead."""
    classes: str = "derive"
    """Class list: derive (the classes in INPUT, sorted), fall11 (21,841), winter21 (19,167), google21k (21,843, for the
    heads of the official checkpoints), 21k-p (classes of more than 500 images, the first 50 of each to `val`),
    imagenet12k (11,821, timm's), imagenet1k (1,000), or a file with one wnid per line in index order. Images of other
    classes are skipped. If the images of WebDataset tars are called by wnid (n01440764_10026), the names tell what the
    class numbers mean; otherwise the numbers refer to this list, or are the classes themselves (numbers: always)."""
    exclude: Path | None = None
    """File with one key per line, such as vit overlap writes: these images are skipped."""
    seed: int = 0
    """Seed of the shuffle and of --val-fraction."""
    name: str = ""
    """Name of the dataset. If empty: the name of the folder OUTPUT."""
    workers: Annotated[int, tyro.conf.arg(help_behavior_hint="")] = len(os.sched_getaffinity(0))
    """Worker processes. Default: one per available CPU core."""
    verify: Literal["decode", "header"] = "decode"
    """decode: check each image's data to its end. header: check only its header and end marker, at disk speed."""
    resize: str = ""
    """short=256 shrinks images whose short side is longer than 256 pixels to that, for clusters whose CPUs can't decode
    full-size photos fast enough. If empty: images keep their size."""
    quality: int = 95
    """JPEG quality of resized images, 1 to 100."""
    upright: bool = False
    """Rotate photos with an EXIF orientation (from phones and cameras) upright: losslessly if both sides are multiples
    of 8 or 16 pixels, otherwise re-encoded. Without this, training ignores the orientation."""
    restart: bool = False
    """Rewrite each JPEG losslessly with restart markers every few blocks, so that the loader decodes only the blocks
    that a crop needs: about 15 % less time per image for 3 % more bytes."""
    min_side: int = 1
    """Skip images with a side shorter than this, in pixels."""
    failure_budget: str = "1%"
    """Stop if more than this share of the images is defective, such as 0.1% or 0.001. Ten defects are always
    allowed."""
    samples_per_shard: int = 4096
    """Images per shard (tar)."""
    task: int | None = None
    """Make only this task's shards, for a Slurm array: 0 to tasks - 1. Run --finalize, with the same options, when all
    tasks are done."""
    tasks: int = 1
    """Number of tasks that share the work."""
    finalize: bool = False
    """Merge the shards that the tasks made."""
    json: str = ""
    """File to write the summary to as JSON; - for standard output, instead of the text. With --task there is none:
    --finalize writes it."""


NEEDS = {"quality": Need(lambda options: bool(options.resize), "on images that keep their size", "add --resize")}


def check(options: Options) -> None:
    """Raise UserError for invalid values and combinations of options."""
    for field, least in (("workers", 1), ("samples_per_shard", 1), ("tasks", 1), ("min_side", 1), ("seed", 0)):
        if getattr(options, field) < least:
            raise UserError(f"--{field.replace('_', '-')} {getattr(options, field)} must be at least {least}")
    if not 0 <= options.val_fraction < 1:
        raise UserError(f"--val-fraction {options.val_fraction} must be at least 0 and below 1, such as 0.1")
    if options.val_first < 0:
        raise UserError(f"--val-first {options.val_first} must be at least 0")
    if options.val_first and options.val_fraction:
        raise UserError(f"--val-first {options.val_first} can't be combined with --val-fraction: give one of them")
    if options.split == "val" and split_rule(options) != SplitRule("val"):
        raise UserError("--split val is also the name of the held-out split: give --split another name")
    if options.task is not None and not 0 <= options.task < options.tasks:
        raise UserError(f"--task {options.task} of --tasks {options.tasks}: tasks are numbered 0 to tasks - 1")
    if options.task is None and options.tasks > 1 and not options.finalize:
        raise UserError(f"--tasks {options.tasks} needs --task, this task's number (0 to {options.tasks - 1})")
    if options.finalize and options.task is not None:
        raise UserError("--finalize merges the shards of all tasks: remove --task")
    if not options.split.isidentifier():
        raise UserError(f"--split {options.split!r} must be a plain word, such as train")
    if not 1 <= options.quality <= 100:
        raise UserError(f"--quality {options.quality} must be from 1 to 100")
    if options.restart and not HAS_LOSSLESS:
        raise UserError(f"--restart needs an extension that was not built: {jpeg.HOW_TO_BUILD}, or remove --restart")
    check_local(options.output, "OUTPUT")
    if (options.output.exists() or options.output.is_symlink()) and not options.output.is_dir():
        raise UserError(f"OUTPUT {str(options.output)!r} is a file or a broken link: give a folder")
    if printable(str(options.output)) != str(options.output):
        raise UserError(
            f"OUTPUT {printable(str(options.output))!r} (invalid bytes shown as %XX) must be UTF-8: give another name"
        )
    short_side(options.resize)
    budget(options.failure_budget)


def short_side(resize: str) -> int:
    """The pixels of ``short=PIXELS``; 0 for the empty string. Raises UserError."""
    if not resize:
        return 0
    name, _, pixels = resize.partition("=")
    if name != "short" or not pixels.isdecimal() or int(pixels) < 1:
        raise UserError(f"--resize {resize!r} must be short=PIXELS, such as short=256")
    return int(pixels)


def budget(text: str) -> Fraction:
    """``0.1%`` or ``0.001`` as a fraction. Raises UserError."""
    try:
        part = Fraction(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except (ValueError, ZeroDivisionError):
        part = Fraction(-1)
    if not 0 <= part <= 1:
        raise UserError(f"--failure-budget {text!r} must be a share from 0 to 1, such as 0.1% or 0.001")
    return part


def split_rule(options: Options) -> SplitRule:
    first = options.val_first or (50 if options.classes == "21k-p" and not options.val_fraction else 0)
    return SplitRule(options.split, "val", options.val_fraction, first)


def content_options(options: Options) -> dict[str, Any]:
    """All options that change the dataset's bytes, as plain values; class and exclusion lists as digests."""
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
        **({"input": options.input} if hub_dataset.is_hub(options.input) else {}),  # with its commit
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
        raise UserError(f"--exclude {str(options.exclude)!r} does not exist: create it with vit overlap")
    try:
        lines = options.exclude.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(
            f"--exclude {str(options.exclude)!r} is not a UTF-8 text file: give a file with one key per line"
        ) from None
    return frozenset(line.removesuffix("\r").split("\t")[0] for line in lines if line and not line.startswith("# "))
