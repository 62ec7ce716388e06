"""Facts about each configuration field besides type and default: its range, whether a resumed run may change it, etc.

``pipeline.config.schema`` gives every field its facts by :func:`setting`; ``pipeline.config.fields`` reads them. Pure.
"""

import dataclasses
import math
import sys
from dataclasses import dataclass
from typing import Literal, TypeVar

from pipeline.core.errors import UserError
from pipeline.core.needs import Need

Value = TypeVar("Value")
Resume = Literal["fixed", "free", "retuned", "inherited"]

FACTS = "facts"  # key of a field's metadata

FIXED: Resume = "fixed"  # a resumed run must have the value that it started with
FREE: Resume = "free"  # may change on resume: it doesn't change what is learned, beyond float32 rounding
RETUNED: Resume = "retuned"  # may change on resume to rescue a run that diverged; the change is logged
INHERITED: Resume = "inherited"  # FIXED, except that the parent's value replaces the default


@dataclass(frozen=True)
class Range:
    """From ``least`` to ``most``, of which either may be excluded."""

    least: float = 0.0
    most: float = math.inf
    above: bool = False  # least itself is too small
    below: bool = False  # most itself is too large

    def holds(self, value: float) -> bool:
        finite = abs(value) <= sys.float_info.max  # a whole number may be larger than that
        if not finite or value < self.least or value > self.most:
            return False
        return not (self.above and value == self.least) and not (self.below and value == self.most)

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.least:g}"
        if self.most == math.inf:
            return low
        return f"{low} and {'below' if self.below else 'at most'} {self.most:g}"


ONE_OR_MORE, NONE_OR_MORE, POSITIVE = Range(1), Range(), Range(above=True)
SHARE, LESS_THAN_ONE, NOT_ZERO = Range(0, 1), Range(0, 1, below=True), Range(0, 1, above=True)
BETWEEN_0_AND_1 = Range(0, 1, above=True, below=True)
PIXELS = Range(1, 65_535)  # no JPEG has a longer side
# Samples are counted in 64 bits: no run has so many steps, or samples per step, and the product of both still fits
UP_TO_MANY, ONE_TO_MANY = Range(0, 10**9), Range(1, 10**9)
SEED = Range(0, 2**63 - 1)  # torch takes no larger one
EPSILON = Range(0, 1)
SCALE = Range(0, 1000)  # an initial factor of a residual branch
# Of pixels from 0 to 1. So wide because other formats scale the pixels differently (rescale_factor of transformers)
MEAN, DEVIATION = Range(-(10**7), 10**7), Range(1e-9, 10**7)
SECONDS = Range(1, 10**7)  # a third of a year; the watchdog can't count to 10**10


@dataclass(frozen=True)
class Facts:
    """The facts about one field."""

    resume: Resume
    limits: Range | None = None  # range of a number, or of each of several
    seeds: bool = False  # may differ between runs that count as seeds of the same configuration
    hidden: bool = False  # not shown as a difference between runs: it names the run or a location
    own: bool = False  # each run has its own value, so it isn't a setting of a sweep
    path: bool = False  # a path or URL, which an exported model must not reveal
    needs: Need | None = None  # condition on other fields under which this one has an effect


def setting(
    default: Value,
    resume: Resume,
    limits: Range | None = None,
    *,
    seeds: bool = False,
    hidden: bool = False,
    own: bool = False,
    path: bool = False,
    needs: Need | None = None,
) -> Value:
    """A dataclass field with its facts; typed as its default, as dataclasses.field is."""
    facts = Facts(resume, limits, seeds, hidden, own, path, needs)
    return dataclasses.field(default=default, metadata={FACTS: facts})


def check_range(name: str, value: object, limits: Range | None) -> None:
    """Raises UserError for a number, or one of several, that is out of its range. None is in any."""
    numbers = value if isinstance(value, list | tuple) else () if value is None else (value,)
    if limits is not None and not all(limits.holds(number) for number in numbers):
        shown = " ".join(map(str, numbers))
        raise UserError(f"{name} {shown} is out of range: give a number of {limits}")
