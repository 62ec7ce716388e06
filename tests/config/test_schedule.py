import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.schedule import learning_rate
from pipeline.config.schema import ScheduleConfig
from pipeline.core.errors import UserError

PEAKS = st.floats(1e-5, 1.0)


@st.composite
def schedules(draw: st.DrawFn) -> tuple[ScheduleConfig, int]:
    steps = draw(st.integers(1, 100_000))
    warmup = draw(st.integers(0, steps - 1))
    decay = draw(st.sampled_from(["cosine", "linear", "constant"]))
    ends = st.floats(0, 1e-5)
    return ScheduleConfig(warmup_steps=warmup, decay=decay, start_lr=draw(ends), end_lr=draw(ends)), steps


@given(schedules(), PEAKS, st.floats(0, 1))
def test_between_zero_and_the_peak(schedule: tuple[ScheduleConfig, int], peak: float, fraction: float) -> None:
    config, steps = schedule
    rate = learning_rate(config, peak, round(fraction * steps), steps)
    assert 0.0 <= rate <= peak * (1 + 1e-12)


@given(schedules(), PEAKS)
def test_the_corners(schedule: tuple[ScheduleConfig, int], peak: float) -> None:
    config, steps = schedule
    assert learning_rate(config, peak, config.warmup_steps, steps) == pytest.approx(peak, rel=1e-9)
    end = {"cosine": config.end_lr, "linear": config.end_lr, "constant": peak}[config.decay]
    assert learning_rate(config, peak, steps, steps) == pytest.approx(end, rel=1e-9, abs=1e-15)
    if config.warmup_steps:
        assert learning_rate(config, peak, 0, steps) == config.start_lr


@given(schedules(), PEAKS, st.integers(0, 100_000))
def test_up_in_the_warmup_and_never_up_after_it(schedule: tuple[ScheduleConfig, int], peak: float, step: int) -> None:
    config, steps = schedule
    step = step % steps
    now, after = (learning_rate(config, peak, s, steps) for s in (step, step + 1))
    if step >= config.warmup_steps:
        assert after <= now * (1 + 1e-12)
    elif config.decay == "constant":
        assert after > now or peak <= config.start_lr * (1 + 1e-9)


def test_values_of_the_published_schedules() -> None:
    """Worked out by hand for 272k steps with 10k of warm-up (90 epochs of ImageNet-21K)."""
    linear = ScheduleConfig(warmup_steps=10_000, decay="linear", end_lr=1e-5)
    assert learning_rate(linear, 1e-3, 5_000, 272_000) == pytest.approx(5e-4)
    assert learning_rate(linear, 1e-3, 141_000, 272_000) == pytest.approx((1e-3 + 1e-5) / 2)
    cosine = ScheduleConfig(warmup_steps=10_000, decay="cosine")
    assert learning_rate(cosine, 1e-3, 141_000, 272_000) == pytest.approx(5e-4)
    assert learning_rate(cosine, 1e-3, 75_500, 272_000) == pytest.approx(5e-4 * (1 + math.sqrt(0.5)))


def test_deit_iii_warms_up_from_1e_6_and_ends_at_1e_5() -> None:
    config = ScheduleConfig(epochs=50, warmup_epochs=5, start_lr=1e-6, end_lr=1e-5)
    assert learning_rate(config, 3e-4, 0, 1000) == pytest.approx(1e-6)
    assert learning_rate(config, 3e-4, 50, 1000) == pytest.approx(1.505e-4)
    assert learning_rate(config, 3e-4, 100, 1000) == pytest.approx(3e-4)
    assert learning_rate(config, 3e-4, 550, 1000) == pytest.approx((3e-4 + 1e-5) / 2)
    assert learning_rate(config, 3e-4, 1000, 1000) == pytest.approx(1e-5)


def test_a_warm_up_in_epochs_needs_epochs() -> None:
    with pytest.raises(UserError, match=r"schedule\.warmup_epochs 5.* needs schedule\.epochs"):
        learning_rate(ScheduleConfig(steps=100, warmup_epochs=5), 0.1, 0, 100)


def test_a_run_shorter_than_its_warmup_only_warms_up() -> None:
    config = ScheduleConfig(warmup_steps=500, decay="cosine")
    assert [learning_rate(config, 0.1, step, 20) for step in (0, 10, 20)] == pytest.approx([0.0, 0.002, 0.004])
    assert [learning_rate(config, 0.1, step, 500) for step in (0, 500)] == [0.0, 0.1], "no step is left to decay"
