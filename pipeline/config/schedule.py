"""The learning rate as a pure function of the step, so that a resumed run has nothing to restore."""

import math

from pipeline.config.schema import ScheduleConfig, warmup_steps


def learning_rate(config: ScheduleConfig, peak: float, step: int, steps: int) -> float:
    """Learning rate of the update after ``step`` finished updates, in a run of ``steps``.

    A linear warm-up from ``start_lr`` multiplies the decay, which starts when the warm-up ends (the schedule of
    google-research/vision_transformer, which also counts from 0: with a warm-up from 0, the very first update has rate
    0). The rate is the peak after the warm-up, and at ``step == steps`` it is ``end_lr`` (cosine, linear) or the peak
    (constant).
    """
    warmup = warmup_steps(config, steps)
    decaying = steps - warmup
    progress = min(max((step - warmup) / decaying, 0.0), 1.0) if decaying > 0 else 0.0
    warmth = min(1.0, step / warmup) if warmup > 0 else 1.0
    if config.decay == "cosine":
        rate = config.end_lr + (peak - config.end_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))
    elif config.decay == "linear":
        rate = config.end_lr + (peak - config.end_lr) * (1.0 - progress)
    else:
        rate = peak
    return config.start_lr + (rate - config.start_lr) * warmth
