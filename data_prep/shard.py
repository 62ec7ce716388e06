"""``python -m data_prep.shard INPUT OUTPUT``: raw images -> a shuffled, checked data set of WebDataset tars."""

import collections
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import tyro

from data_prep import build, catalogue, plan, progress, sources, workers
from data_prep.images import ImageOptions
from data_prep.plan import SplitRule
from pipeline import cli, shards
from pipeline.cli import UserError

DESCRIPTION = """Turn a raw image release into a data set: every image checked, all of them shuffled, written as
WebDataset tars with an index, a class list and a list of what was left out and why.

INPUT is a tar of <wnid>.tar files (ImageNet-21K, ImageNet-2012 train), or a folder of class folders. Nothing is
unpacked. Killed or stopped runs go on where they were when started again. The same INPUT and options give the same
bytes, whatever the number of workers and tasks.

Examples:
  python -m data_prep.shard fall11_whole.tar data/imagenet21k --workers 16
  python -m data_prep.shard photos/ data/photos --val-fraction 0.1
  python -m data_prep.shard fall11_whole.tar data/imagenet21k --task 3 --tasks 32   # one of a Slurm array
  python -m data_prep.shard fall11_whole.tar data/imagenet21k --finalize            # after all of them
"""


@dataclass(frozen=True)
class Options:
    input: Annotated[Path, tyro.conf.Positional]
    """The release's tar, or a folder of class folders."""
    output: Annotated[Path, tyro.conf.Positional]
    """Folder of the data set to make."""
    source: Literal["auto", "tar-of-tars", "folder"] = "auto"
    """Form of INPUT; auto looks at it."""
    split: str = "train"
    """Name of the split to write."""
    val_fraction: float = 0.0
    """Part of each class that goes to the split `val` instead, chosen by a hash of the keys."""
    classes: str = "derive"
    """The class list: `derive` (all classes of INPUT, sorted) or a file with a wnid a line, in order of their index;
    images of other classes are left out."""
    seed: int = 0
    """Of the shuffle."""
    name: str = ""
    """Name of the data set; the output folder's where empty."""
    workers: int = len(os.sched_getaffinity(0))
    """Processes."""
    verify: Literal["decode", "header"] = "decode"
    """decode: read each image's data to its end. header: only its header and end marker, at the speed of the disk."""
    min_side: int = 1
    """Leave out images with a side shorter than this, pixels."""
    samples_per_shard: int = 4096
    task: int | None = None
    """Make only this task's shards (0 to tasks - 1); run --finalize when all tasks are done."""
    tasks: int = 1
    finalize: bool = False
    """Merge the shards that tasks made."""


def main(args: list[str] | None = None) -> int:
    options = cli.parse(Options, prog="python -m data_prep.shard", description=DESCRIPTION, args=args)
    check(options)
    if (options.output / "dataset.json").is_file():
        return _already_there(options)
    planned = _planned(options)
    everything = build.all_shards(planned["samples"], options.samples_per_shard)
    if not options.finalize:
        _make_shards(options, everything)
    if options.task is None:
        _finish(options, everything)
    return cli.EXIT_DONE


def check(options: Options) -> None:
    """Raise UserError for options that make no sense."""
    if options.workers < 1:
        raise UserError(f"--workers {options.workers} must be at least 1")
    if options.samples_per_shard < 1:
        raise UserError(f"--samples-per-shard {options.samples_per_shard} must be at least 1")
    if not 0 <= options.val_fraction < 1:
        raise UserError(f"--val-fraction {options.val_fraction} must be from 0 to below 1, such as 0.1")
    if options.val_fraction and options.split == "val":
        raise UserError("--val-fraction writes the split 'val' beside --split 'val': choose another --split")
    if options.tasks < 1 or not (options.task is None or 0 <= options.task < options.tasks):
        raise UserError(f"--task {options.task} of --tasks {options.tasks}: tasks are numbered 0 to tasks - 1")
    if options.task is None and options.tasks > 1:
        raise UserError(f"--tasks {options.tasks} needs --task, the number of this one (0 to {options.tasks - 1})")
    if options.finalize and options.task is not None:
        raise UserError("--finalize merges what all tasks made: leave out --task")
    if not options.split.isidentifier():
        raise UserError(f"--split {options.split!r} must be a plain word, such as train")
    if options.output.exists() and not options.output.is_dir():
        raise UserError(f"OUTPUT {str(options.output)!r} is a file: give a folder")


def content_options(options: Options) -> dict[str, Any]:
    """The options that change the data set's bytes."""
    names = ("split", "val_fraction", "classes", "verify", "min_side", "samples_per_shard")
    chosen = {name: getattr(options, name) for name in names}
    if options.classes != "derive":
        chosen["classes"] = shards.classes_digest(_read_class_list(Path(options.classes)))
    return chosen


def _identity(options: Options) -> dict[str, Any]:
    return {"name": _name(options), "seed": options.seed, **content_options(options)}


def _name(options: Options) -> str:
    return options.name or options.output.resolve().name


def _already_there(options: Options) -> int:
    info = shards.read_info(options.output)
    made = {"name": info.name, "seed": info.seed, **info.options}
    _same(options, made, "a finished")
    shutil.rmtree(build.work_folder(options.output), ignore_errors=True)
    print(f"{options.output} is already complete: {_summary(info)}")
    return cli.EXIT_DONE


def _same(options: Options, made: dict[str, Any], what: str) -> None:
    for field, value in _identity(options).items():
        if made.get(field) != value:
            raise UserError(
                f"OUTPUT {str(options.output)!r} holds {what} data set made with {field} {made.get(field)!r}, "
                f"not {value!r}: choose another folder, or delete this one"
            )


def _planned(options: Options) -> dict[str, Any]:
    """Scan the source and plan the shards, unless that is done; what plan.json says."""
    folder = build.work_folder(options.output) / "plan"
    if not (folder / "plan.json").is_file():
        form = sources.detect(options.input) if options.source == "auto" else options.source
        parts = sources.parts(form, options.input)
        own = folder.with_name(f"plan.{os.uname().nodename}.{os.getpid()}.tmp")
        own.mkdir(parents=True)
        try:
            _write_plan(options, parts, own)
            folder.with_name("done").mkdir(exist_ok=True)
            try:
                own.rename(folder)
            except OSError:  # another task was faster; its plan is the same
                if not (folder / "plan.json").is_file():
                    raise
        finally:
            shutil.rmtree(own, ignore_errors=True)
    planned: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    _same(options, planned["options"], "an unfinished")
    return planned


def _write_plan(options: Options, parts: list[sources.Part], folder: Path) -> None:
    listed = None if options.classes == "derive" else _read_class_list(Path(options.classes))
    wnids = listed or sorted({part.wnid for part in parts})
    labels = {wnid: index for index, wnid in enumerate(wnids)}
    rejects: list[pa.Table] = []

    def scanned() -> Iterator[pa.Table]:
        with progress.Bar("scanning", len(parts), "classes") as bar:
            for images, rejected in workers.run(sources.scan_part, parts, min(options.workers, len(parts))):
                bar.advance(1)
                rejects.append(rejected)
                known = pa.array([wnid in labels for wnid in images["wnid"].to_pylist()], pa.bool_())
                rejects.append(_as_rejects(images.filter(pc.invert(known)), "class_not_listed", "not in --classes"))
                yield images.filter(known)

    rows = catalogue.write(folder / "catalogue.arrow", plan.CATALOGUE, scanned())
    if not rows:
        raise UserError(
            f"INPUT {str(options.input)!r} holds no images{' of the listed classes' if listed else ''} "
            f"(endings {' '.join(sorted(sources.ENDINGS))}) in {len(parts)} classes: is it the right path?"
        )
    rule = SplitRule(options.split, "val", options.val_fraction)
    samples = catalogue.make_plan(
        folder / "catalogue.arrow",
        folder,
        labels=labels,
        rule=rule,
        seed=options.seed,
        samples_per_shard=options.samples_per_shard,
    )
    duplicates = catalogue.batches(folder / "duplicates.arrow")
    rejects += [_as_rejects(table, "duplicate_name", "a later entry has the same name") for table in duplicates]
    catalogue.write(folder / "rejects.arrow", shards.REJECTS_SCHEMA, rejects)
    planned = {"options": _identity(options), "samples": samples, "classes": wnids}
    (folder / "plan.json").write_text(json.dumps(planned, indent=1))


def _as_rejects(table: pa.Table, reason: str, detail: str) -> pa.Table:
    source = pc.binary_join_element_wise(table["wnid"], table["name"], "/")
    same = [pa.array([text] * len(table), pa.string()) for text in (reason, detail)]
    return pa.table([source, table["wnid"], table["size"], *same], schema=shards.REJECTS_SCHEMA)


def _read_class_list(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"--classes {str(path)!r} is neither 'derive' nor a file with a wnid a line")
    wnids = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    repeated = [wnid for wnid, count in collections.Counter(wnids).items() if count > 1]
    if repeated or not wnids:
        raise UserError(f"--classes {str(path)!r} " + (f"lists {repeated[0]!r} twice" if repeated else "is empty"))
    return wnids


def _make_shards(options: Options, everything: list[tuple[str, int]]) -> None:
    own = everything[options.task :: options.tasks] if options.task is not None else everything
    waiting = []
    for split, shard in own:
        info = build.read_done(options.output, split, shard)
        if info is None or not build.is_intact(options.output, info):
            waiting.append((split, shard))
    if len(waiting) < len(own):
        print(f"{len(own) - len(waiting)} of {len(own)} shards are already made")
    image_options = ImageOptions(verify=options.verify, min_side=options.min_side)
    total = sum(len(catalogue.batch(build.plan_path(options.output, split), shard)) for split, shard in waiting)
    tasks = [build.ShardTask(options.output, split, shard, image_options) for split, shard in waiting]
    if not tasks:
        return
    with progress.Bar("writing", total, "images") as bar:
        for _ in workers.run(build.make_shard, tasks, min(options.workers, len(tasks)), bar.report):
            pass


def _finish(options: Options, everything: list[tuple[str, int]]) -> None:
    folder = build.work_folder(options.output) / "plan"
    wnids = json.loads((folder / "plan.json").read_text())["classes"]
    classes = pa.table([pa.array(range(len(wnids)), pa.int32()), wnids, wnids], schema=shards.CLASSES_SCHEMA)
    info = build.finalize(
        options.output,
        name=_name(options),
        seed=options.seed,
        options=content_options(options),
        classes=classes,
        expected=everything,
    )
    print(f"{options.output}: {_summary(info)}")


def _summary(info: shards.DatasetInfo) -> str:
    samples = ", ".join(f"{count:,} {split}" for split, count in info.samples.items())
    size = sum(shard.bytes for shard in info.shards) / 1e9
    return (
        f"{samples} images of {info.classes:,} classes in {len(info.shards):,} shards ({size:.2f} GB), "
        f"{info.rejects:,} left out (rejects.parquet says why)"
    )


if __name__ == "__main__":
    cli.run(main)
