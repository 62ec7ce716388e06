"""The values that a run's numbers may have. Pure."""

import math
from dataclasses import dataclass

from pipeline.config.schema import RunConfig
from pipeline.config.serialize import flatten, to_dict
from pipeline.core.errors import UserError


@dataclass(frozen=True)
class Range:
    """From ``least`` to ``most``, of which either may be excluded."""

    least: float = 0.0
    most: float = math.inf
    above: bool = False  # least itself is too small
    below: bool = False  # most itself is too large

    def holds(self, value: float) -> bool:
        if not math.isfinite(value) or value < self.least or value > self.most:
            return False
        return not (self.above and value == self.least) and not (self.below and value == self.most)

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.least:g}"
        if self.most == math.inf:
            return low
        return f"{low} and {'below' if self.below else 'at most'} {self.most:g}"


ONE_OR_MORE, NONE_OR_MORE, POSITIVE = Range(1), Range(), Range(above=True)
SHARE, LESS_THAN_ONE = Range(0, 1), Range(0, 1, below=True)
# Samples are counted in 64 bits: no run has so many steps, or samples a step, and the product of both still fits
MANY = 10**9

RANGES = {
    "model.image_size": Range(1, 65_535),  # no JPEG has a longer side
    "model.dropout": LESS_THAN_ONE,
    "model.stochastic_depth": LESS_THAN_ONE,
    "model.norm_eps": NONE_OR_MORE,
    "model.layer_scale": NONE_OR_MORE,
    "model.registers": Range(0, 64),
    "data.cache_gb": POSITIVE,
    "data.min_area": Range(0, 1, above=True),
    "data.erasing": SHARE,
    "data.color_jitter": SHARE,
    "data.mixup": NONE_OR_MORE,
    "data.cutmix": NONE_OR_MORE,
    "data.damage_budget": NONE_OR_MORE,
    "data.workers": NONE_OR_MORE,
    "optim.lr": NONE_OR_MORE,
    "optim.weight_decay": NONE_OR_MORE,
    "optim.beta1": LESS_THAN_ONE,
    "optim.beta2": LESS_THAN_ONE,
    "optim.layer_decay": Range(0, 1, above=True),
    "optim.momentum": Range(0, 1, above=True, below=True),  # without one, SGD keeps nothing to save
    "optim.clip": NONE_OR_MORE,
    "schedule.steps": Range(0, MANY),
    "schedule.epochs": Range(0, MANY),
    "schedule.warmup_steps": NONE_OR_MORE,
    "schedule.warmup_epochs": Range(0, MANY),
    "schedule.start_lr": NONE_OR_MORE,
    "schedule.end_lr": NONE_OR_MORE,
    "train.global_batch": Range(1, MANY),
    "train.micro_batch": ONE_OR_MORE,
    "train.label_smoothing": LESS_THAN_ONE,
    "train.average": LESS_THAN_ONE,
    "train.seed": Range(0, 2**63 - 1),  # torch takes no more
    "train.skip_nonfinite": NONE_OR_MORE,
    "train.rollback_nonfinite": NONE_OR_MORE,
    "train.profile": NONE_OR_MORE,
    "train.log_every": ONE_OR_MORE,
    "train.eval_every": NONE_OR_MORE,
    "train.eval_batch": ONE_OR_MORE,
    "train.step_timeout": Range(1, 10**7),  # a third of a year; the watchdog can't count to 10**10
    "checkpoint.every": NONE_OR_MORE,
    "checkpoint.minutes": NONE_OR_MORE,
    "checkpoint.keep_last": ONE_OR_MORE,
    "checkpoint.keep_every": NONE_OR_MORE,
    "checkpoint.keep_best": NONE_OR_MORE,
}


def check(config: RunConfig) -> None:
    """Raises UserError for the first number that is out of its range."""
    values = flatten(to_dict(config))
    for name, limits in RANGES.items():
        if values[name] is not None and not limits.holds(values[name]):
            raise UserError(f"{name} {values[name]} is out of range: give a number of {limits}")
