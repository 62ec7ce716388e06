"""From lines of metrics.jsonl to the values for MLflow. Pure; imports no mlflow."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.runs.records import Line


@dataclass(frozen=True)
class Point:
    """One value for MLflow, which stores each (name, value, milliseconds, step) of a run once."""

    name: str
    value: float
    milliseconds: int  # since 1970
    step: int


def points(lines: Iterable[Line], done_again: Iterable[Line]) -> list[Point]:
    """The values of ``lines``, in order.

    MLflow can't replace a value: of several at one step it uses the one with the latest time. A repeated step mostly
    gives the same values (resuming is exact). These keep the time of ``done_again``, the superseded lines of earlier
    attempts, so that MLflow stores them once. Only values that differ, such as the speed, are stored twice.
    """
    earlier = {
        (line.step, line.attempt, name): (value, line.time)
        for line in done_again
        for name, value in line.metrics.items()
    }
    found = []
    for line in lines:
        for name, value in line.metrics.items():
            stamp = line.time
            for attempt in range(1, line.attempt):
                before = earlier.get((line.step, attempt, name))
                if before is not None and same(before[0], value):
                    stamp = before[1]
                    break
            found.append(Point(name, value, round(stamp * 1000), line.step))
    return found


def same(one: float, other: float) -> bool:
    return one == other or (one != one and other != other)  # noqa: PLR0124  (NaN)
