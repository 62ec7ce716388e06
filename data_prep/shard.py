"""``vit shard INPUT OUTPUT``: raw images -> a shuffled, checked dataset of WebDataset tars."""

import collections
import json
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from data_prep import process_pool, progress, work_folder
from data_prep.dataset_reader import skipped_lines
from data_prep.images.prepare import ImageOptions
from data_prep.planning import make_plan, stream_buckets
from data_prep.planning.assignment import SplitRule
from data_prep.planning.make_plan import NOT_DEFECTS, Planned
from data_prep.shard_options import (
    NEEDS,
    Options,
    budget,
    check,
    content_options,
    plan_options,
    short_side,
    split_rule,
)
from data_prep.sources import inputs
from data_prep.sources.devkit import read_devkit
from data_prep.sources.parts import splits_of
from data_prep.sources.rows import OTHER_FILE
from data_prep.sources.source import Source
from data_prep.work_folder import alone
from data_prep.writing import build_shard, finalize
from data_prep.writing.build_shard import ShardTask
from pipeline.core import cli, errors, files, results, units
from pipeline.core.errors import UserError
from pipeline.core.files import is_remote
from pipeline.dataset import class_lists, hub_dataset
from pipeline.dataset import format as dataset_format

DESCRIPTION = """Turn a raw image release into a dataset: all images checked, shuffled and written as WebDataset tars,
with an index, a class list, and a list of the skipped images with reasons.

INPUT is what you downloaded: fall11_whole.tar, winter21_whole.tar.gz, ILSVRC2012's train or val tar (val with
--devkit), a folder of <wnid>.tar files, a folder with one folder per class, or WebDataset tars (their folder,
shards-{000..099}.tar, pipe:COMMAND, s3://..., https://..., hf://datasets/OWNER/NAME). Nothing is unpacked to loose
files. If a run was stopped, the same command resumes it. The same images, options and seed give the same bytes,
whatever the number of workers and tasks.

Examples:
  vit shard fall11_whole.tar data/imagenet21k --classes google21k
  vit shard ILSVRC2012_img_val.tar data/imagenet1k-val --split val --devkit ILSVRC2012_devkit_t12.tar.gz
  vit shard photos/ data/photos --val-fraction 0.1 --resize short=256
  vit shard fall11_whole.tar data/imagenet21k --task 3 --tasks 32      # one task of a Slurm array
  vit shard fall11_whole.tar data/imagenet21k --tasks 32 --finalize    # when all tasks are done
"""
FREE_DEFECTS = 10  # always allowed: a share says nothing about a handful of images
FULL = (28, 122, 27)  # errno: no space left, quota exceeded, file size limit


class StoppedError(BaseException):
    """A signal asked this process to stop. A BaseException, so that no ``except Exception`` swallows it."""


def main(args: list[str] | None = None) -> int:
    options = cli.parse(Options, prog="vit shard", description=DESCRIPTION, args=args, needs=NEEDS)
    process_pool.start_server(
        "data_prep.planning.make_plan",
        "data_prep.shard_options",
        "data_prep.writing.build_shard",
        process_pool.BUILDS_TABLES,
    )
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        run(options)
    except (StoppedError, KeyboardInterrupt) as stopped:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the process, whatever it cleans up
        print("stopped; finished shards are kept: run the same command to resume", file=sys.stderr)
        return errors.EXIT_INTERRUPTED if isinstance(stopped, KeyboardInterrupt) else errors.EXIT_REQUEUE
    except OSError as error:
        if error.errno not in FULL:
            raise
        there = next(path for path in (options.output, *options.output.absolute().parents) if path.exists())
        raise UserError(
            f"the disk of OUTPUT {str(options.output)!r} is full ({error.strerror}; "
            f"{units.size(shutil.disk_usage(there).free)} free): free some space and run the same command again; "
            "finished shards are kept"
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return errors.EXIT_DONE


def _stop(*_: object) -> None:
    raise StoppedError


def run(options: Options) -> None:
    """Make the dataset, or this task's share of it. Raises UserError."""
    started = time.monotonic()
    check(options)
    if hub_dataset.is_hub(options.input):
        options = replace(options, input=hub_dataset.pinned(options.input))
    if options.json and options.task is not None:
        print(f"note: --json {options.json} is written by --finalize, not by a task", file=sys.stderr)
    identity = content_options(options)
    if _finished(options, identity, started):
        return
    devkit = read_devkit(options.devkit) if options.devkit else None
    source = inputs.find(options.input, options.source, devkit, class_lists.listed(options.classes), options.label)
    if options.classes == "numbers" and source.form != "webdataset":
        raise UserError("--classes numbers is for WebDataset tars, whose samples have class numbers: leave it out")
    check_apart(options.input, options.output, source)
    check_splits(options, source)
    with alone(options.output, options.task):
        if not _finished(options, identity, started):  # by another process in the meantime
            _make(options, source, identity, started)


def _finished(options: Options, identity: dict[str, Any], started: float) -> bool:
    """Whether the dataset is finished; if so, print its summary. Raises UserError if it is another one or damaged."""
    if not (options.output / "dataset.json").is_file():
        return False
    info = dataset_format.read_info(options.output)
    make_plan.same_options(
        options.output, {"name": info.name, "seed": info.seed, **info.options}, identity, "a finished"
    )
    finalize.check_sizes(options.output, info)
    print(f"{options.output} is already finished: nothing to do (INPUT was not read)", file=sys.stderr)
    shutil.rmtree(work_folder.work_folder(options.output), ignore_errors=True)
    _summarise(options, info, time.monotonic() - started)
    return True


def _make(options: Options, source: Source, identity: dict[str, Any], started: float) -> None:
    check_ours(options.output)
    found = make_plan.planned(options.output, source, plan_options(options, identity))
    every = all_shards(found.samples, options.samples_per_shard)
    if not options.finalize:
        _make_shards(options, source, found, every)
    if options.task is None:
        made_with = {field: value for field, value in identity.items() if field not in ("name", "seed")}
        info = finalize.finalize(
            options.output,
            name=identity["name"],
            seed=options.seed,
            options=made_with,
            classes=finalize.classes_table(found.wnids, found.names),
            expected=every,
        )
        _summarise(options, info, time.monotonic() - started)


def check_apart(given: str, output: Path, source: Source) -> None:
    """Raise UserError if the files of ``output`` could be mistaken for INPUT (``given``) or overwrite it."""
    folder = output.resolve()
    for location in (given, *source.locations):
        if is_remote(location):
            continue
        path = Path(location).resolve()
        inside = path in (folder, *folder.parents) if path.is_dir() else path.parent == folder
        if inside:
            raise UserError(f"OUTPUT {str(output)!r} is INPUT's folder or inside it: give another folder")


def check_splits(options: Options, source: Source) -> None:
    """Raise UserError if images that were held out would end up in the training split."""
    held = splits_of(source)
    if len(held) > 1 and split_rule(options) == SplitRule(options.split):
        raise UserError(
            f"INPUT {options.input!r} holds the splits {', '.join(held)}: shard each by itself, such as "
            f"'{Path(options.input)}/{held[0]}-{{00000..00009}}.tar' with --split {held[0]}, or divide all images anew "
            "with --val-fraction"
        )


def check_ours(output: Path) -> None:
    """Raise UserError if files in OUTPUT that this run has not written would be replaced."""
    if (work_folder.work_folder(output) / "plan").is_dir():
        return
    ours = ("*.tar", "index.parquet", "classes.parquet", "rejects.parquet", "_info.json")
    foreign = sorted(path.name for pattern in ours for path in output.glob(pattern))
    if foreign:
        raise UserError(
            f"OUTPUT {str(output)!r} is not an unfinished dataset of vit shard, but contains {', '.join(foreign[:3])}"
            f"{', ...' if len(foreign) > 3 else ''}: give a new folder, or move these files away"
        )


def all_shards(samples: dict[str, int], samples_per_shard: int) -> list[tuple[str, int]]:
    """(split, shard) of the whole dataset, in order."""
    return [(split, shard) for split, n in sorted(samples.items()) for shard in range(-(-n // samples_per_shard))]


def _make_shards(options: Options, source: Source, found: Planned, every: list[tuple[str, int]]) -> None:
    own = every[options.task :: options.tasks] if options.task is not None else every
    if not own:
        return
    image_options = ImageOptions(
        options.verify,
        short_side(options.resize),
        options.quality,
        options.min_side,
        upright=options.upright,
        restart=options.restart,
    )
    loose = source.form == "folder"
    tasks = [ShardTask(options.output, split, shard, image_options, loose=loose) for split, shard in own]
    _check_room(options, found, tasks, len(every))
    if found.streamed:
        tasks = _with_stream(options, source, tasks)
    images = sum(_images(task, found, options.samples_per_shard) for task in tasks)
    allowed = max(FREE_DEFECTS, int(budget(options.failure_budget) * images))
    total = sum(found.samples.values())
    defects = collections.Counter({reason: count * images // total for reason, count in found.defects.items()})
    with progress.counting("writing", images, "images") as report:

        def on_report(counts: process_pool.Report) -> None:
            report(counts)
            known = {"images", "bytes", "kept", *NOT_DEFECTS}
            defects.update({reason: count for reason, count in counts.items() if reason not in known})
            if defects.total() > allowed:
                reasons = ", ".join(f"{count} {reason}" for reason, count in defects.most_common() if count)
                raise UserError(
                    f"{defects.total()} of {images} images are defective, more than --failure-budget "
                    f"{options.failure_budget} allows ({reasons}): check INPUT, or raise --failure-budget"
                )

        for _ in process_pool.run(build_shard.keep_or_make, tasks, min(options.workers, len(tasks)), on_report):
            pass


def _images(task: ShardTask, found: Planned, samples_per_shard: int) -> int:
    return min(samples_per_shard, found.samples[task.split] - task.shard * samples_per_shard)


def _check_room(options: Options, found: Planned, tasks: list[ShardTask], shards_of_all: int) -> None:
    """Raise UserError if the shards can't fit on the disk. With --resize their size isn't known beforehand."""
    unfinished = sum(not task.tar.is_file() for task in tasks) / shards_of_all
    needed = (sum(found.bytes.values()) + 2048 * sum(found.samples.values())) * unfinished
    needed *= 1.05 if options.restart else 1
    needed *= 2 if found.streamed else 1  # the stream's images are written to work files first
    free = shutil.disk_usage(options.output).free
    if needed > free and not options.resize:
        raise UserError(
            f"OUTPUT {str(options.output)!r} needs about {units.size(int(needed))} and its disk has "
            f"{units.size(free)} free: free some space, or give a folder on another disk"
        )


def _with_stream(options: Options, source: Source, tasks: list[ShardTask]) -> list[ShardTask]:
    """Read the stream again and write the images of this task's unfinished shards to work files; the tasks that read
    from them."""
    folder = files.fresh(work_folder.work_folder(options.output).resolve() / f"stream-{options.task}")
    todo = [task for task in tasks if not _is_finished(task)]
    if not todo:
        return tasks
    with progress.counting("reading the stream again", 0, "images") as report:
        wanted = [(task.plan, task.shard, task.locations) for task in todo]
        stream_buckets.lay_down_shards(
            wanted, {name: location for location, name in source.names.items()}, folder, report
        )
    laid_down = {
        (task.split, task.shard): stream_buckets.group_path(folder, number) for number, task in enumerate(todo)
    }
    return [replace(task, laid_down=laid_down.get((task.split, task.shard))) for task in tasks]


def _is_finished(task: ShardTask) -> bool:
    info = build_shard.read_done(task.done)
    return info is not None and build_shard.is_intact(task.output, info)


def _summarise(options: Options, info: dataset_format.DatasetInfo, seconds: float) -> None:
    rejects = dataset_format.read_rejects(options.output, ["reason", "source"])
    reasons = collections.Counter(rejects["reason"].to_pylist())
    others = rejects.filter(pc.equal(rejects["reason"], OTHER_FILE))["source"].to_pylist()
    size = sum(shard.bytes for shard in info.shards)
    if info.classes == 1:
        print(
            f"warning: all images in INPUT {options.input!r} belong to one class, so there is nothing to learn: give "
            "the folder that contains one folder or tar per class, or set --source or --label",
            file=sys.stderr,
        )
    orientations = dataset_format.read_index(options.output, ["orientation"])["orientation"].to_numpy()
    if sideways := int((orientations != 1).sum()):
        print(
            f"warning: {sideways:,} images have an EXIF orientation, which training ignores: it sees them sideways, "
            "upside down or mirrored. To store them upright, shard INPUT again with --upright",
            file=sys.stderr,
        )
    if options.json:
        facts = {"dataset": str(options.output), "samples": info.samples, "classes": info.classes, "bytes": size}
        facts |= {
            "sideways": sideways,
            "shards": len(info.shards),
            "rejects": reasons,
            "seconds": round(seconds, 3),
            "digest": info.digest,
        }
        results.write(options.json, json.dumps(facts) + "\n")
        if options.json == results.STDOUT:
            return
    samples = ", ".join(f"{count:,} {split}" for split, count in info.samples.items())
    print(f"{options.output}: {samples} images of {info.classes:,} classes in {len(info.shards):,} shards, ", end="")
    print(f"{units.size(size)}, {seconds:.0f} s")
    for line in skipped_lines(reasons, others, options.output):
        print(line)


if __name__ == "__main__":
    cli.run(main)
