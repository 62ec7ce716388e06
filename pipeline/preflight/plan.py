"""What a run needs on a cluster: steps, memory, checkpoints, hours, by arithmetic on its configuration alone."""

import contextlib
import dataclasses
from typing import Any

from pipeline.config import fields
from pipeline.config.published import IMAGENET
from pipeline.config.schema import RunConfig, accumulation, total_steps
from pipeline.core.errors import UserError
from pipeline.dataset.joined_split import chosen, open_info, open_split
from pipeline.distributed.devices import GIGABYTES, memory_of, peak_flops
from pipeline.engine.deepspeed_config import deepspeed_config
from pipeline.model.flops import forward_macs, train_flops, training_hours
from pipeline.preflight import estimates
from pipeline.preflight.verdicts import Demand

FITS = 0.9  # usable fraction of a GPU's memory: libraries, buffers and the allocator need the remainder


def make_plan(config: RunConfig, *, nodes: int, gpus_per_node: int, device: str, mfu: float) -> dict[str, Any]:
    """What a run needs, as JSON values; ``device``: a GPU by a part of its name, ``mfu``: fraction of its peak.

    Without data.train, the samples and classes are ImageNet's. ``remedy`` is the option to change if the run doesn't
    fit into the GPU's memory, else empty. Raises UserError for a configuration that can't run at all.
    """
    fields.check_ranges(config)
    samples, classes = IMAGENET[config.stage].images, IMAGENET[config.stage].classes
    if config.data.train:
        split = open_split(config.data.train, config.data.train_split, choice=chosen(config.data), check=False)
        samples, classes = len(split), split.info.classes
    peak = peak_flops(device)
    size = memory_of(device)
    if peak is None or size is None:
        raise UserError(f"--device {device!r} is unknown: name one of {', '.join(GIGABYTES)}")
    ranks = nodes * gpus_per_node
    deepspeed_config(config, ranks)
    memory = estimates.memory(config, classes, ranks)
    steps = total_steps(config.schedule, samples, config.train.global_batch)
    hours = training_hours(config, classes, steps, ranks, peak=peak, mfu=mfu)
    one = estimates.checkpoint_bytes(config, classes)
    kept = config.checkpoint.keep_last + config.checkpoint.keep_best + 1
    if config.checkpoint.keep_every:
        kept += steps // config.checkpoint.keep_every
    return {
        "samples": samples,
        "classes": classes,
        "gpus": ranks,
        "parameters": estimates.count_parameters(config, classes),
        "steps": steps,
        "epochs": steps * config.train.global_batch / samples,
        "accumulation": accumulation(config.train, ranks),
        "forward_gmacs": forward_macs(config.model, classes) / 1e9,
        "published_gmacs": forward_macs(config.model, classes, published=True) / 1e9,
        "train_gflops_per_image": train_flops(config.model, classes) / 1e9,
        "images_per_second_per_gpu": config.train.global_batch * steps / (hours * 3600) / ranks,
        "hours": hours,
        "gpu_hours": hours * ranks,
        "checkpoint_bytes": one,
        "checkpoints_bytes": one * kept,
        "memory_bytes": dataclasses.asdict(memory),
        "memory_total_bytes": memory.total,
        "device_bytes": size * 1e9,
        "remedy": remedy(config, ranks, memory.total, memory.activations, size * 1e9 * FITS),
    }


def remedy(config: RunConfig, ranks: int, total: float, activations: float, room: float) -> str:
    """The option to change if the run's ``total`` bytes exceed the ``room`` on a GPU; empty if they don't."""
    if total <= room:
        return ""
    fixed = total - activations
    for micro in range(config.train.micro_batch - 1, 0, -1):
        fits = fixed + activations * micro / config.train.micro_batch <= room
        if fits and config.train.global_batch % (micro * ranks) == 0:
            return f"--train.micro-batch {micro}"
    if not config.model.activation_checkpointing:
        return "--model.activation-checkpointing True, or a smaller --train.micro-batch"
    if config.train.zero_stage < 3:
        return f"--train.zero-stage {config.train.zero_stage + 1}, or more nodes"
    return "--train.offload True, or more nodes"


def needed(plan: RunConfig, ranks: int) -> Demand:
    """What a run on ``ranks`` ranks needs from a cluster."""
    classes = IMAGENET[plan.stage].classes
    with contextlib.suppress(UserError):  # rank 0 can't read the dataset: the loader's verdict reports it
        classes = open_info(plan.data.train[0]).classes if plan.data.train else classes
    kept = plan.checkpoint.keep_last + plan.checkpoint.keep_best + 1
    return Demand(
        recipe=f"{plan.stage} {plan.recipe}",
        workers=plan.data.workers,
        checkpoint_bytes=estimates.checkpoint_bytes(plan, classes),
        checkpoints=kept,
        files=kept * (ranks + 2) + ranks,  # per checkpoint: a folder, meta.json and one file per rank
        flops_per_image=train_flops(plan.model, classes),
    )
