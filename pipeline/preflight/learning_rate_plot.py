"""The learning rate over a run's steps as a plot."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from pipeline.config.schedule import learning_rate
from pipeline.config.schema import RunConfig
from pipeline.core.errors import UserError


def draw(config: RunConfig, steps: int, path: Path) -> None:
    """Plot the learning rate of a run of ``steps`` as a PNG. Raises UserError if it can't be written."""
    at = [min(steps - 1, round(steps * point / 999)) for point in range(1000)]
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.plot(at, [learning_rate(config.schedule, config.optim.lr, step, steps) for step in at])
    axes.set(xlabel="step", ylabel="learning rate", title=f"{config.stage} {config.recipe}", ylim=(0, None))
    axes.grid(alpha=0.3)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise UserError(f"--plot {str(path)!r} can't be written ({error.strerror}): name another file") from error
    finally:
        plt.close(figure)
