"""Which rank do the others wait for? Pure.

Every rank runs the same program, and its main thread marks where it is. So the rank that is behind is the one with the
fewest marks. Among ranks at the same mark, those inside a collective wait for those that aren't.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Phase = Literal[
    "start", "data", "forward", "backward", "update", "records", "checkpoint", "evaluation", "end"
]  # what a rank's main thread does
WORDS: dict[Phase, str] = {
    "start": "building or loading the model",
    "data": "waiting for its data loader (a loader stall)",
    "forward": "in the forward pass",
    "backward": "in the backward pass",
    "update": "in the optimizer's update",
    "records": "between two steps, writing the run's records",
    "checkpoint": "saving a checkpoint",
    "evaluation": "in an evaluation",
    "end": "ending the run",
}
COMPUTING: tuple[Phase, ...] = ("forward", "backward", "update")  # no disk and no other service can delay these
PATIENCE = 9  # times the limit: what a compilation, a slow disk or an evaluation may cost one rank more than the others


@dataclass(frozen=True)
class State:
    """A rank, as its heartbeat describes it."""

    beat: int  # signs of life so far
    marks: int = 0  # of its main thread so far
    step: int = 0  # in progress, or the last one; 0 before the first
    phase: Phase = "start"
    collective: bool = False  # its main thread is inside torch.distributed

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str | bytes) -> "State":
        return State(**json.loads(text))

    def __str__(self) -> str:
        return f"step {self.step}, {WORDS[self.phase]}" if self.step else WORDS[self.phase]


@dataclass(frozen=True)
class Stall:
    """No rank makes progress."""

    seconds: float  # since the last one moved
    ranks: list[int]  # that the others wait for; empty: all are at the same point
    state: State  # of the first of them, or of rank 0

    def over(self, limit: float, first_step: int) -> bool:
        """Whether the job must end. ``limit``: seconds within which a step's computation advances, once compiled."""
        if self.state.phase == "end":
            return False
        strict = self.ranks and self.state.phase in COMPUTING and self.state.step > first_step
        return self.seconds > limit * (1 if strict else PATIENCE)


def behind(states: Sequence[State]) -> list[int]:
    """The ranks that the others wait for; none if all are at the same point."""
    points = [(state.marks, state.collective) for state in states]
    return [rank for rank, point in enumerate(points) if point == min(points)] if min(points) < max(points) else []


class Watch:
    """All ranks over time, by rank 0's clock (``now``, seconds)."""

    def __init__(self, states: Sequence[State], now: float) -> None:
        self.states = list(states)
        self.moved = now  # when a main thread made its latest mark
        self._seen = [now] * len(self.states)  # when each gave its latest sign of life

    def update(self, states: Sequence[State], now: float) -> None:
        for rank, (before, state) in enumerate(zip(self.states, states, strict=True)):
            if state.beat != before.beat:
                self._seen[rank] = now
            if state.marks != before.marks:
                self.moved = now
        self.states = list(states)

    def silent(self, seconds: float, now: float) -> list[int]:
        """Ranks without a sign of life for longer than ``seconds``: dead, stopped or cut off."""
        return [rank for rank, seen in enumerate(self._seen) if now - seen > seconds]

    def stall(self, now: float) -> Stall:
        ranks = behind(self.states)
        return Stall(now - self.moved, ranks, self.states[ranks[0] if ranks else 0])
