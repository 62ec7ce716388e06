"""How a run's time was spent, over all its attempts. Pure.

Each line of metrics.jsonl has the attempt's seconds by part so far (``seconds/<part>``). Steps that a later attempt
repeated, or that a roll-back undid, count as redone, not as training.
"""

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


def summary(total: dict[str, float]) -> str:
    """``time: training 91 %, data 2 %, ...``: parts of at least half a percent."""
    whole = sum(total.values()) or 1.0
    parts = [f"{name} {seconds / whole:.0%}" for name, seconds in total.items() if seconds / whole >= 0.005]
    return f"time: {', '.join(parts)}"
