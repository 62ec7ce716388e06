"""What counts as a spike, a straggler, redone work; the parts that need no ranks."""

import math
import random
import time

import pytest

from pipeline.runs.goodput import account, summary
from pipeline.runs.records import Attempt, Line
from pipeline.train.anomalies import describe_nonfinite
from pipeline.train.detectors import Spikes, stragglers
from pipeline.train.step import Step
from pipeline.train.stopwatch import Stopwatch, percentile


def test_a_noisy_loss_that_falls_has_no_spike_and_a_jump_is_one() -> None:
    choice = random.Random(0)
    spikes = Spikes()
    for step in range(2000):
        assert spikes.see(7 * math.exp(-step / 500) + choice.gauss(0, 0.05)) is None, step
    report = spikes.see(3.0)
    assert report is not None
    assert "3.0000 is a spike" in report
    assert spikes.count == 1
    assert spikes.see(0.15) is None
    assert spikes.count == 1


def test_a_loss_that_settles_higher_is_reported_until_it_is_usual() -> None:
    """A changed level isn't reported for ever: it is usual once it fills half of the window."""
    spikes = Spikes()
    for _ in range(100):
        spikes.see(1.0)
    assert spikes.see(5.0) is not None
    for _ in range(300):
        spikes.see(2.0)
    assert spikes.see(2.01) is None
    assert 100 <= spikes.count <= 130
    assert spikes.see(3.0) is not None


def test_the_slow_rank_is_named_once_it_matters() -> None:
    hosts = ["a", "b", "c", "d"]
    even = [[0.1, 0.11, 0.1, 0.09]] * 30
    assert stragglers(even, 0.3, hosts) == []
    slow = [[0.1, 0.11, 0.2, 0.09]] * 30
    (line,) = stragglers(slow, 0.3, hosts)
    assert line.startswith("rank 2 on c is slow: 0.200 s")
    assert stragglers(slow, 10.0, hosts) == [], "a tenth of a second in ten is nothing"
    assert stragglers(slow[:5], 0.3, hosts) == [], "five steps say nothing"
    once = [[0.1, 0.1, 9.0, 0.1]] + [[0.1, 0.1, 0.1, 0.1]] * 30
    assert stragglers(once, 0.3, hosts) == [], "one slow step makes no slow rank"


def step(losses: list[float], norm: float = 1.0) -> Step:
    mean = sum(losses) / len(losses)
    return Step(mean, norm, skipped=False, losses=losses, own=[], stopping=[], save=False, fed=[])


def test_the_ranks_to_blame() -> None:
    assert step([1.0, 2.0]).finite
    blamed = step([1.0, math.nan, math.inf])
    assert not blamed.finite
    assert blamed.culprits == [1, 2]
    assert "rank 1 on b (loss nan), rank 2 on c (loss inf)" in describe_nonfinite(blamed, 7, ["a", "b", "c"])
    gradient = step([1.0, 2.0], norm=math.inf)
    assert gradient.culprits == [0, 1]
    assert describe_nonfinite(gradient, 7, ["a", "b"]).startswith("step 7: loss 1.5, gradient norm inf")


def line(step: int, attempt: int, when: float, **seconds: float) -> Line:
    parts = {"training": 0.0, "data": 0.0, "evaluation": 0.0, "checkpoint": 0.0} | seconds
    return Line(step, step, when, attempt, {f"seconds/{part}": value for part, value in parts.items()})


def test_an_account_of_two_attempts() -> None:
    attempts = [
        Attempt(1, 0, 1000.0, 1, {}, "FAILED", 1100.0),
        Attempt(2, 20, 1200.0, 2, {}, "FINISHED", 1280.0),
    ]
    lines = [
        line(10, 1, 1030.0, training=20.0),
        line(20, 1, 1055.0, training=40.0, checkpoint=2.0),
        line(30, 1, 1090.0, training=60.0, data=5.0, checkpoint=2.0),  # done again by attempt 2
        line(30, 2, 1240.0, training=25.0, data=1.0),
        line(40, 2, 1275.0, training=45.0, data=2.0, evaluation=10.0),
    ]
    total = account(lines, attempts)
    assert total["training"] == 40 + 45
    assert total["redone"] == 20
    assert (total["data"], total["evaluation"], total["checkpoint"]) == (7, 10, 2)
    assert total["other"] == pytest.approx((100 - 67) + (80 - 57))
    assert sum(total.values()) == pytest.approx(180), "the time between attempts isn't the run's"
    parts = "training 47%, data 4%, evaluation 6%, checkpoint 1%, redone 11%, other 31%"
    assert summary(total, 0, 0) == f"time: {parts}"
    assert summary({"training": 99.6, "data": 0.4, "other": 0.0}, 0, 0) == "time: training 100%"
    assert summary({"training": 0.0}, 0, 0) == "time: ", "a run that has only begun"
    again = summary({"training": 1.0}, 2, 1200)
    assert again == "time: training 100%; 2 restart(s), 1,200 step(s) trained twice"


def test_what_was_undone_or_done_for_nothing_counts_as_redone() -> None:
    attempts = [Attempt(1, 0, 1000.0, 1, {}, "FAILED", 1050.0), Attempt(2, 0, 1100.0, 1, {})]  # still running
    lines = [
        line(10, 1, 1040.0, training=30.0),  # attempt 2 starts from 0 again
        line(20, 2, 1190.0, training=50.0, undone=15.0),  # a rollback
        Line(20, 20, 1195.0, 2, {"eval/top1": 0.5}),  # a line that says nothing of time
    ]
    total = account(lines, attempts)
    assert (total["training"], total["redone"]) == (50, 30 + 15)
    assert total["other"] == (50 - 30) + (90 - 65)


def test_an_attempt_that_died_before_its_first_line_counts_as_other() -> None:
    total = account([], [Attempt(1, 0, 1000.0, 1, {}, "FAILED", 1010.0)])
    assert total["other"] == 10
    assert sum(total.values()) == 10


def test_the_stopwatch_leaves_pauses_out_and_counts_the_loop() -> None:
    began = time.perf_counter()
    clock = Stopwatch(samples_per_step=8, ranks=2, flops_per_sample=1e6, peak=1e9)
    time.sleep(0.02)
    clock.step(waited=0.01, own=0.005)
    with clock.time("evaluation"):
        time.sleep(0.2)
    time.sleep(0.03)
    clock.step(waited=0.0, own=0.005)
    passed = time.perf_counter() - began
    metrics = clock.lap()
    assert 0.05 <= 2 * metrics["speed/step_seconds"] <= passed - 0.2
    assert metrics["seconds/evaluation"] >= 0.2
    assert metrics["seconds/data"] == pytest.approx(0.01)
    assert metrics["speed/images_per_second"] == pytest.approx(8 / metrics["speed/step_seconds"])
    assert metrics["speed/mfu"] == pytest.approx(metrics["speed/images_per_second_per_rank"] * 1e6 / 1e9)
    assert metrics["speed/step_max"] >= metrics["speed/step_p95"] >= metrics["speed/step_p50"] > 0
    assert clock.steps == []
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
