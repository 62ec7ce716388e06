"""The learning rate as a pure function of the step, so that a resumed run has nothing to restore."""

import math

from pipeline.config.schema import ScheduleConfig


def learning_rate(config: ScheduleConfig, peak: float, step: int, steps: int) -> float:
    """Learning rate of the update that follows ``step`` finished updates, of ``steps`` in all.

    A linear warm-up multiplies the decay, which starts where the warm-up ends (the schedule of
    google-research/vision_transformer, which counts from 0 too: with a warm-up, the very first update has rate 0). The
    rate at ``step == warmup_steps`` is the peak, at ``step == steps`` 0 (cosine), ``end_lr`` (linear) or the peak
    (constant).
    """
    decaying = steps - config.warmup_steps
    progress = min(max((step - config.warmup_steps) / decaying, 0.0), 1.0) if decaying > 0 else 0.0
    warmth = min(1.0, step / config.warmup_steps) if config.warmup_steps > 0 else 1.0
    if config.decay == "cosine":
        rate = peak * 0.5 * (1.0 + math.cos(math.pi * progress))
    elif config.decay == "linear":
        rate = config.end_lr + (peak - config.end_lr) * (1.0 - progress)
    else:
        rate = peak
    return warmth * rate
