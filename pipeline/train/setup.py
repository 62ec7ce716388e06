"""From a configuration to ranks that are ready to train: checks first, then process group, engine and records."""

import datetime
import logging
import math
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint.saver import Saver
from pipeline.config import fields, needs
from pipeline.config.schema import DataConfig, RunConfig, total_steps, warmup_steps
from pipeline.config.serialize import flatten, to_dict
from pipeline.core import log
from pipeline.core.errors import UserError
from pipeline.core.files import check_local
from pipeline.core.log import ONCE
from pipeline.core.retry import UnreadableError
from pipeline.dataset.format import read_classes
from pipeline.dataset.joined_split import JoinedSplit, chosen, make_cache, open_split
from pipeline.dataset.split import Choice
from pipeline.distributed import devices, hangs, process_group
from pipeline.distributed.heartbeat import Heartbeat
from pipeline.distributed.ranks import node_name, ranks_from_environment, spare_devices
from pipeline.engine import deepspeed_config
from pipeline.engine import deepspeed_engine as ds
from pipeline.imaging import jpeg
from pipeline.loader.mixture import sampling
from pipeline.loader.transforms import mixup_alpha
from pipeline.model.flops import train_flops
from pipeline.model.initialisation import initialise
from pipeline.model.transfer import transfer
from pipeline.model.vit import VisionTransformer
from pipeline.runs import sweep_record
from pipeline.runs.damage_record import Damages
from pipeline.runs.folder import (
    CHECKPOINTS,
    COLLECTIVES,
    CONFIG,
    FACTS,
    OWNER,
    SLURM_FAILED,
    SLURM_STARTS,
    STATUS,
    RunFolder,
    retuned,
)
from pipeline.runs.ownership import claim
from pipeline.runs.provenance import describe_code
from pipeline.tracking.system_metrics import Sampler
from pipeline.tracking.tracker import Tracker, open_tracker
from pipeline.train.attention import check_kernel
from pipeline.train.initial_weights import inherit, read_parent
from pipeline.train.profiler import FIRST as PROFILED_FROM
from pipeline.train.resume import resume
from pipeline.train.state import Job, Run
from pipeline.train.stopwatch import Stopwatch

logger = logging.getLogger(__name__)

EXPERIMENT_NAME = 500  # longest name that MLflow accepts, characters
# One of these is there as soon as a run has begun; slurm/launch.sh makes slurm/ before
OURS = {SLURM_STARTS.parts[0], OWNER, CONFIG, FACTS, STATUS, CHECKPOINTS}
NO_SPLIT = "none"  # data.eval_split of a run without evaluation


def prepare(config: RunConfig, given: Collection[str] = ()) -> Job:
    """Check everything that a user can get wrong, before the ranks meet, so that an error is one line without a wait.

    ``given``: the fields that the user gave, by dotted names.
    """
    if config.run_dir == Path():
        raise UserError("--run-dir is missing or the current folder: name the folder of a new run, or one to resume")
    check_local(config.run_dir, "--run-dir")
    if not 0 < len(config.experiment) <= EXPERIMENT_NAME:
        raise UserError(
            f"--experiment {config.experiment!r} can't be an MLflow experiment: give a name of 1 to {EXPERIMENT_NAME} "
            "characters"
        )
    fields.check_ranges(config)
    check_kernel(config.train.attention, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if (mixup_alpha(config.data) or config.data.cutmix) and config.train.micro_batch % 2:
        what = "data.cutmix" if config.data.cutmix else "data.augment" if config.data.mixup is None else "data.mixup"
        raise UserError(
            f"{what} {getattr(config.data, what[5:])} mixes pairs of images, and train.micro_batch "
            f"{config.train.micro_batch} is odd: set an even train.micro_batch, and a train.global_batch that is a "
            "multiple of it times the ranks"
        )
    if config.stage == "pretrain" and config.parent:
        raise UserError(
            f"--parent {config.parent!r} is for jobs.finetune; jobs.pretrain starts from random weights: leave it "
            "out, or use jobs.finetune"
        )
    data, held_out = open_data(config)
    if held_out is None and config.checkpoint.keep_best:
        raise UserError(
            f"checkpoint.keep_best {config.checkpoint.keep_best} needs evaluations, and there is no held-out split: "
            "name one with data.eval and data.eval_split, or set checkpoint.keep_best 0"
        )
    ranks = ranks_from_environment(os.environ)
    deepspeed_config.deepspeed_config(config, ranks.world_size)
    facts = {
        "classes": data.info.classes,
        "classes_digest": data.info.classes_digest,
        "dataset_digest": data.digest,
    }
    folder = RunFolder(config.run_dir)
    folder.check_config(config)
    check_no_others_files(config.run_dir)
    steps = total_steps(config.schedule, len(data), config.train.global_batch)
    job = Job(data, held_out, steps, ranks, facts, folder, frozenset(given))
    folder.check_facts(job.all_facts)
    several = ranks.world_size > 1  # a single process may be a mistyped command: its error is a line without a stamp
    log.set_up(ranks.rank, ranks.world_size, stamped=several)
    for level, remark in remarks(config, job):
        logger.log(level, "%s", remark, extra=ONCE)
    return job


def check_no_others_files(run_dir: Path) -> None:
    """Raise UserError if a new run's folder holds other files, such as images, that would mix with the run's.

    Hidden ones don't count: rank 0, which may be ahead, writes its first files aside.
    """
    names = sorted(path.name for path in run_dir.iterdir()) if run_dir.is_dir() else []
    names = [name for name in names if not name.startswith(".")]
    if names and not OURS.intersection(names):
        raise UserError(
            f"--run-dir {str(run_dir)!r} holds {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}, but no run: "
            "name a new folder, or the folder of a run to resume"
        )


def remarks(config: RunConfig, job: Job) -> Iterator[tuple[int, str]]:
    """Log level and text of settings that are allowed, but probably not intended."""
    began = job.folder.as_begun(config)
    if Path(began.parent).resolve() != Path(config.parent).resolve():
        yield (
            logging.WARNING,
            f"--parent {config.parent!r} is ignored: the run in {str(config.run_dir)!r} began from "
            f"{began.parent!r} and has checkpoints of its own; name another --run-dir to start from another parent",
        )
    if began.model != config.model and job.given & fields.INHERITED:
        yield (
            logging.WARNING,
            f"{' and '.join(sorted(job.given & fields.INHERITED))} of this start are ignored: the run in "
            f"{str(config.run_dir)!r} began with {began.model.mean} and {began.model.std}; name another --run-dir",
        )
    if job.held_out is None:
        values = flatten(to_dict(config))
        of_evaluation = fields.names(lambda facts: facts.needs is needs.EVALUATION)
        idle = [name for name in sorted(job.given & of_evaluation) if values[name]]
        yield (
            logging.WARNING if idle else logging.INFO,
            f"no evaluation{', ' + ', '.join(idle) + ' without effect' if idle else ''}: there is no held-out "
            "split (data.eval, data.eval_split)",
        )
    yield from ((logging.WARNING, text) for text in without_effect(config, job.steps, job.given))
    if job.held_out is None and config.stage == "finetune" and config.data.eval_split != NO_SPLIT:
        yield (
            logging.WARNING,
            f"no held-out images: {config.data.train[0]!r} has no split {config.data.eval_split!r}, so the fine-tuned "
            "model will not be evaluated; shard the images with --val-fraction 0.1, or name a --data.eval "
            f"(--data.eval-split {NO_SPLIT} if this is intended)",
        )
    if (warmup := warmup_steps(config.schedule, job.steps)) >= job.steps:
        yield (
            logging.WARNING,
            f"the warm-up's {warmup} steps (schedule.warmup_steps) cover all of the run's {job.steps} steps: "
            "the learning rate only rises",
        )
    if config.train.attention != "auto":
        yield logging.INFO, f"attention kernel: {config.train.attention}"
    if config.data.decode != "full" and not jpeg.HAS_REGION_DECODER:
        yield (
            logging.WARNING,
            f"data.decode {config.data.decode} needs an extension that was not built, so JPEGs are decoded "
            f"whole, which is slower: {jpeg.HOW_TO_BUILD}",
        )


def without_effect(config: RunConfig, steps: int, given: Collection[str]) -> Iterator[str]:
    """The given options that change nothing in a run of ``steps``, one line each."""
    rule, evaluated, profiled = config.checkpoint, config.train.eval_every, config.train.profile

    def meet(every: int) -> bool:
        """Whether a step before the last is a multiple of ``every`` and saved."""
        return bool(rule.minutes) or not rule.every or not every or math.lcm(rule.every, every) < steps

    if "checkpoint.keep_every" in given and not meet(rule.keep_every):
        yield (
            f"checkpoint.keep_every {rule.keep_every} has no effect: no step before the last ({steps}) is a multiple "
            f"of it and of checkpoint.every {rule.every}; set a multiple of checkpoint.every"
        )
    if "checkpoint.keep_best" in given and rule.keep_best and not meet(evaluated):
        yield (
            f"checkpoint.keep_best {rule.keep_best} has no effect: no step before the last ({steps}) is both saved "
            f"(checkpoint.every {rule.every}) and evaluated (train.eval_every {evaluated}); set one to a multiple of "
            "the other"
        )
    if "train.profile" in given and profiled and steps <= PROFILED_FROM:
        yield (
            f"train.profile {profiled} has no effect: the first {PROFILED_FROM} steps of an attempt are not recorded, "
            f"and the run has {steps}; set schedule.steps above that"
        )


def open_data(config: RunConfig) -> tuple[JoinedSplit, JoinedSplit | None]:
    """Open the training split and the evaluation split, if there is one. Raises UserError if they don't fit."""
    if not config.data.train:
        raise UserError("--data.train is missing: name the training dataset's folder, made by data_prep.shard")
    cache = make_cache(config.data.cache, config.data.cache_gb)
    choice = chosen(config.data)
    data = open_split(config.data.train, config.data.train_split, choice=choice, cache=cache)
    sampling(data.samples, config.train.seed, config.data.weights)
    folder = config.data.eval or config.data.train[0]
    if not config.data.eval and config.data.eval_split not in data.info.samples:
        if config.data.eval_split not in (DataConfig.eval_split, NO_SPLIT):
            raise UserError(
                f"data.eval_split {config.data.eval_split!r} is not a split of data.train {folder!r}, which has "
                f"{', '.join(data.info.samples)}: name one of these, or {NO_SPLIT!r} to train without evaluation"
            )
        return data, None
    held_out = open_split(folder, config.data.eval_split, choice=Choice(choice.classes), cache=cache)
    if held_out.info.classes_digest != data.info.classes_digest:
        raise UserError(
            f"data.eval {folder!r} has another class map ({held_out.info.classes} classes, digest "
            f"{held_out.info.classes_digest}) than data.train ({data.info.classes}, {data.info.classes_digest}): "
            "shard it with --classes of the training dataset"
        )
    return data, held_out


def start(config: RunConfig, job: Job) -> Run:
    """Meet the other ranks, build the engine, load the newest checkpoint or the parent, open the records."""
    ranks = job.ranks
    folder = job.folder
    config = folder.as_begun(config)
    parent = read_parent(config) if config.stage == "finetune" and not folder.checkpoints else None
    config = inherit(config, parent, job.given)
    model = VisionTransformer(config.model, job.data.info.classes, loss=config.train.loss)
    initialise(model, config.train.seed)
    if parent is not None:
        transfer(parent.weights, model)
    lineage = parent.lineage if parent is not None else {}
    fence = claim(config.run_dir, os.environ) if ranks.rank == 0 else None
    log.set_up(ranks.rank, ranks.world_size, stamped=True)
    limit = config.train.hang_timeout
    named = datetime.timedelta(seconds=(hangs.PATIENCE + 1) * limit)  # until then, a rank that hangs
    timeout = max(process_group.TIMEOUT, named)
    device = process_group.start(ranks, timeout, config.run_dir / COLLECTIVES)
    heartbeat = Heartbeat(
        ranks.rank, ranks.world_size, limit, config.run_dir / COLLECTIVES, config.run_dir / SLURM_FAILED
    ).start()
    try:
        engine = ds.build_engine(config, model.to(device), ranks.world_size)
        meta = resume(folder, engine, ranks)
    except UserError as error:
        if not isinstance(error, UnreadableError):  # this error may be one rank's; the others are all ranks'
            heartbeat.stop()  # another rank's exit is expected then, and must not end this one before its report
        raise
    except RuntimeError as error:  # also torch's error if another rank is gone, which doesn't name that rank
        raise RuntimeError(f"rank {ranks.rank} exits before its first step: {heartbeat.fail(error)}") from error
    start_step = meta.step if meta else 0
    tracker = None
    if ranks.rank == 0:
        facts = {"samples": len(job.data), "steps": job.steps, "parent": lineage, "code": describe_code()}
        facts["datasets"] = [*describe_data(job.data, "train"), *describe_data(job.held_out, "eval")]
        classes = read_classes(job.data.folder).select(["wnid", "name"]).to_pylist()
        if meta is not None and (changed := retuned(config, meta.config)):
            logger.info("from step %d on: %s", start_step, ", ".join(changed))
        record = folder.write_fixed(config, {**job.all_facts, **facts}, classes, resumed=meta is not None)
        tracker = start_tracking(config, job.data.folder, record, start_step, ranks.world_size)
    attempt = (job.status.attempt if job.status else 0) + 1
    return Run(
        config=config,
        job=job,
        device=device,
        engine=engine,
        heartbeat=heartbeat,
        saver=Saver(config, job.facts, heartbeat.connect(), fence),
        clock=Stopwatch(
            config.train.global_batch,
            ranks.world_size,
            train_flops(config.model, job.data.info.classes),
            devices.best_flops(device),
        ),
        start_step=start_step,
        meta=meta,
        attempt=attempt,
        fence=fence,
        tracker=tracker,
        damages=Damages(config.run_dir, start_step) if ranks.rank == 0 else None,
        sampler=Sampler(config.run_dir, node_name(os.environ), attempt).start() if ranks.local_rank == 0 else None,
    )


def describe_data(data: JoinedSplit | None, context: str) -> list[dict[str, Any]]:
    """What run.json records of each dataset: enough to find it again and to tell it from others."""
    return [
        {
            "name": f"{part.info.name}/{part.split}",
            "context": context,
            "source": part.source,
            "digest": part.digest,  # of the chosen samples
            "samples": len(part),
            "classes": part.info.classes,
            "classes_digest": part.info.classes_digest,
            "seed": part.info.seed,
            "tool_version": part.info.tool_version,
            "upright": bool(part.info.options.get("upright")),  # images are stored turned as their EXIF says
        }
        for part in (data.parts if data else ())
    ]


def start_tracking(config: RunConfig, data: Path, run: dict[str, Any], start_step: int, world_size: int) -> Tracker:
    lineage = {f"parent_{key}": str(value) for key, value in run["parent"].items()}
    tags = {"recipe": config.recipe, "stage": config.stage, "dataset_digest": run["dataset_digest"], **lineage}
    if config.sweep:
        sweep_record.start(Path(config.sweep), experiment=config.experiment, tags=tags)
        tags["sweep_dir"] = str(Path(config.sweep).absolute())
    return open_tracker(
        config.run_dir,
        experiment=config.experiment,
        name=config.name or config.run_dir.name,
        params=flatten(to_dict(config)),
        tags=tags,
        artifacts=[config.run_dir / CONFIG, config.run_dir / FACTS, data / "dataset.json"],
        start_step=start_step,
        devices=world_size,
        spare_devices=spare_devices(world_size, os.environ),
        epoch_samples=run["samples"],
    )
