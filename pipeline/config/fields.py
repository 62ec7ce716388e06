"""The fields of a run's configuration by their facts, named as on the command line (``optim.lr``). Pure."""

import dataclasses
from collections.abc import Callable
from typing import Any, get_type_hints

from pipeline.config.facts import FACTS, Facts, check_range
from pipeline.config.schema import RunConfig
from pipeline.config.serialize import flatten, to_dict


def facts_of(kind: type, prefix: str = "") -> dict[str, Facts]:
    """The facts of each field of a dataclass, those of its sections under their dotted names.

    Raises KeyError for a field that was made without :func:`pipeline.config.facts.setting`.
    """
    hints, found = get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        hint, name = hints[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            found.update(facts_of(hint, f"{name}."))
        else:
            found[name] = field.metadata[FACTS]
    return found


FIELDS = facts_of(RunConfig)


def names(holds: Callable[[Facts], bool]) -> frozenset[str]:
    """The fields for whose facts ``holds`` is true."""
    return frozenset(name for name, facts in FIELDS.items() if holds(facts))


RETUNED = names(lambda facts: facts.resume == "retuned")
FREE = RETUNED | names(lambda facts: facts.resume == "free")
INHERITED = names(lambda facts: facts.resume == "inherited")
UNLIKE_SEEDS = names(lambda facts: facts.seeds)
HIDDEN = names(lambda facts: facts.hidden)
OWN = names(lambda facts: facts.own)
PATHS = names(lambda facts: facts.path)


def check_ranges(config: Any, kind: type = RunConfig) -> None:
    """Raises UserError for the first number that is out of its range; ``kind`` has the fields that are looked at."""
    values = flatten(to_dict(config))
    for name, facts in facts_of(kind).items():
        check_range(name, values[name], facts.limits)
