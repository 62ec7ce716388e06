"""Conditions under which an option has an effect: an option given without them is refused, never ignored. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.core.errors import UserError


@dataclass(frozen=True)
class Need:
    met: Callable[[Any], bool]  # takes the configuration that has the option
    without: str  # completes "--quality 80 has no effect ..."
    remedy: str  # completes "leave it out, or ..."

    def check(self, option: str, value: object, config: Any) -> None:
        """Raises UserError, naming ``option`` and its ``value``, if the option has no effect on ``config``."""
        if self.met(config):
            return
        shown = "" if value is True else " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        raise UserError(f"{f'{option} {shown}'.strip()} has no effect {self.without}: leave it out, or {self.remedy}")
