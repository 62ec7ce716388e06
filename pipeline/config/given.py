"""Merging the user's options with the recipe: alternatives are settled, and no option is silently ignored. Pure."""

from collections.abc import Collection
from dataclasses import replace
from typing import TypeVar

from pipeline.config.fields import FIELDS
from pipeline.config.schema import RunConfig, ScheduleConfig
from pipeline.config.serialize import flatten, to_dict
from pipeline.core.errors import UserError

Config = TypeVar("Config", bound=RunConfig)


def settle(config: Config, given: Collection[str]) -> Config:
    """``config`` without the recipe's values that contradict the options ``given`` (dotted names).

    Steps replace the recipe's epochs and the reverse; so do warm-up steps and warm-up epochs. Raises UserError for
    options that contradict one another, and for an option without effect on this run.
    """
    if "recipe" in given:
        raise UserError(f"--recipe {config.recipe!r} is set by the command: name the recipe as its first argument")
    config = replace(config, schedule=_settled_schedule(config.schedule, given))
    values = flatten(to_dict(config))
    for name in sorted(FIELDS.keys() & set(given)):
        need = FIELDS[name].needs  # a value of 0, none or "" turns something off, which is always allowed
        if need is not None and values[name]:
            need.check(name, values[name], config)
    return config


def _settled_schedule(schedule: ScheduleConfig, given: Collection[str]) -> ScheduleConfig:
    """Keep the given one of two fields that state the same thing in different units."""
    for one, other in (("steps", "epochs"), ("warmup_steps", "warmup_epochs")):
        values = getattr(schedule, one), getattr(schedule, other)
        if {f"schedule.{one}", f"schedule.{other}"} <= set(given) and all(values):
            raise UserError(
                f"schedule.{one} {values[0]} and schedule.{other} {values[1]:g} are both given: leave one of them out"
            )
    if "schedule.warmup_steps" in given and "schedule.warmup_epochs" not in given:
        schedule = replace(schedule, warmup_epochs=0.0)
    if "schedule.warmup_epochs" in given and "schedule.warmup_steps" not in given:
        schedule = replace(schedule, warmup_steps=0)
    if "schedule.epochs" in given and schedule.epochs and "schedule.steps" not in given:
        schedule = replace(schedule, steps=0)
    if "schedule.steps" in given and schedule.steps and schedule.epochs and "schedule.epochs" not in given:
        if "schedule.warmup_epochs" in given and schedule.warmup_epochs:
            raise UserError(
                f"schedule.warmup_epochs {schedule.warmup_epochs:g} needs schedule.epochs, but schedule.steps "
                f"{schedule.steps} is given: set schedule.warmup_steps instead"
            )
        if schedule.warmup_epochs:  # the recipe's share of the run
            steps = round(schedule.steps * schedule.warmup_epochs / schedule.epochs)
            schedule = replace(schedule, warmup_steps=steps, warmup_epochs=0.0)
        schedule = replace(schedule, epochs=0.0)
    return schedule
