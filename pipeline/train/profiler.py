"""A trace of some training steps, for chrome://tracing, Perfetto or TensorBoard."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pipeline.runs.folder import PROFILE

logger = logging.getLogger(__name__)

FIRST = 10  # steps before the first recorded one: a run's first steps are not typical


@contextmanager
def profile(run_dir: Path, steps: int) -> Iterator[Callable[[], None]]:
    """Record ``steps`` steps (0: none) in RUN/profile/; call the yielded function after each step."""
    if not steps:
        yield lambda: None
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)

    def write(profiler: torch.profiler.profile) -> None:
        if profiler.step_num <= FIRST:
            return
        folder = run_dir / PROFILE
        folder.mkdir(exist_ok=True)
        path = folder / f"steps-{FIRST}-{profiler.step_num}.json"
        profiler.export_chrome_trace(str(path))
        logger.info("profile: %s", path)

    schedule = torch.profiler.schedule(wait=FIRST - 1, warmup=1, active=steps, repeat=1)
    with torch.profiler.profile(activities=activities, schedule=schedule, on_trace_ready=write) as profiler:
        yield profiler.step
    if profiler.step_num <= FIRST:
        logger.info("no profile: the attempt ended within its first %d steps, which aren't recorded", FIRST)
