"""How a run's time was spent, over all its attempts. Pure.

Each line of metrics.jsonl has the attempt's seconds by part so far (``seconds/<part>``). Steps that a later attempt
repeated, or that a roll-back undid, count as redone, not as training.
"""

import itertools
from collections.abc import Iterable, Sequence

from pipeline.runs.records import Attempt, Line, last_steps

PARTS = ("training", "data", "evaluation", "checkpoint")


def account(lines: Iterable[Line], attempts: Sequence[Attempt]) -> dict[str, float]:
    """Seconds of training, data, evaluation, checkpoint, redone and other (starts, stops), over all attempts."""
    limits = last_steps(attempts)
    total = dict.fromkeys((*PARTS, "redone", "other"), 0.0)
    by_attempt: dict[int, list[Line]] = {attempt.number: [] for attempt in attempts}
    for line in lines:
        if "seconds/training" in line.metrics:
            by_attempt.setdefault(line.attempt, []).append(line)
    for attempt in attempts:
        own = by_attempt[attempt.number]
        if not own:
            total["other"] += max(attempt.ended - attempt.started, 0.0)
            continue
        counted = [line for line in own if line.step <= limits[attempt.number]]
        useful = counted[-1].metrics["seconds/training"] if counted else 0.0
        last = own[-1].metrics
        total["training"] += useful
        undone = last.get("seconds/undone", 0.0)
        total["redone"] += last["seconds/training"] - useful + undone
        for part in PARTS[1:]:
            total[part] += last[f"seconds/{part}"]
        spent = sum(last[f"seconds/{part}"] for part in PARTS) + undone
        total["other"] += max(max(attempt.ended, own[-1].time) - attempt.started - spent, 0.0)
    return total


def summary(total: dict[str, float], restarts: int, lost: int) -> str:
    """``time: training 91 %, data 2 %, ...``: parts of at least half a percent; then restarts, if there were any."""
    whole = sum(total.values()) or 1.0
    parts = [f"{name} {seconds / whole:.0%}" for name, seconds in total.items() if seconds / whole >= 0.005]
    again = f"; {restarts} restart(s), {lost:,} step(s) trained twice" if restarts else ""
    return f"time: {', '.join(parts)}{again}"


def lost_steps(lines: Iterable[Line], attempts: Sequence[Attempt]) -> int:
    """Steps trained again because an attempt ended without a checkpoint of them, as far as they were logged."""
    reached: dict[int, int] = {}
    for line in lines:
        reached[line.attempt] = max(line.step, reached.get(line.attempt, 0))
    pairs = itertools.pairwise(attempts)
    return sum(max(reached.get(one.number, 0) - following.start_step, 0) for one, following in pairs)


def restart_seconds(lines: Iterable[Line], attempts: Sequence[Attempt]) -> float:
    """Between the previous attempt's last line and the start of the latest, if Slurm held the nodes meanwhile.

    That is, if both are of the same start of one Slurm job (slurm/launch.sh has restarted the ranks), else 0.
    """
    if len(attempts) < 2 or not attempts[-1].place.get("slurm_job"):
        return 0.0
    before, now = attempts[-2:]
    if any(before.place.get(key) != now.place.get(key) for key in ("slurm_job", "slurm_restarts")):
        return 0.0
    last = max((line.time for line in lines if line.attempt == before.number), default=before.started)
    return max(now.started - last, 0.0)
