"""Conditions on other fields under which a field of a run has an effect. Pure but for a look into dataset.json.

Fields name their condition in pipeline.config.schema; pipeline.config.given checks it for the options that the user
gave.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.files import is_remote, read_json
from pipeline.core.needs import Need

if TYPE_CHECKING:
    from pipeline.config.schema import RunConfig


def _saves(run: "RunConfig") -> bool:
    return run.checkpoint.every > 0 or bool(run.checkpoint.minutes)


def _evaluates(run: "RunConfig") -> bool:
    return run.data.eval_split != "none" or bool(run.data.eval)


def _has_remote_data(run: "RunConfig") -> bool:
    sources = [*run.data.train, run.data.eval]
    return not run.data.train or any(is_remote(source) or _has_tars_elsewhere(source) for source in sources)


def _has_tars_elsewhere(source: str) -> bool:
    """Whether a folder is the index that ``vit index`` made of tars on the Hub."""
    info = Path(source) / "dataset.json"
    return bool(source) and info.is_file() and "tars" in read_json(info).get("options", {})


PARENT = Need(
    lambda run: run.stage == "finetune" and run.parent != "scratch",
    "without a parent, whose position embedding it resizes",
    "fine-tune from a parent (jobs.finetune --parent)",
)
STOCHASTIC_DEPTH = Need(
    lambda run: run.model.stochastic_depth > 0, "with model.stochastic_depth 0", "set model.stochastic_depth"
)
SEVERAL_DATASETS = Need(
    lambda run: len(run.data.train) != 1, "with a single training dataset", "give several with data.train"
)
REMOTE_DATA = Need(_has_remote_data, "without a dataset at a URL", "give a URL with data.train or data.eval")
INCEPTION_CROP = Need(
    lambda run: run.data.crop == "inception", "without data.crop inception", "set data.crop inception"
)
NOT_SIMPLE_CROP = Need(
    lambda run: run.data.crop != "simple",
    "with data.crop simple, which is always bicubic",
    "set data.crop inception or resize",
)
DECODED_REGION = Need(
    lambda run: run.data.crop != "simple" or run.data.decode == "scaled",
    "with data.crop simple, which decodes full or scaled images",
    "set data.decode scaled",
)
EVALUATION = Need(_evaluates, "without evaluations (data.eval_split none)", "name a split with data.eval_split")
ADAM = Need(lambda run: run.optim.kind != "sgd", "with optim.kind sgd", "set optim.kind adamw or lamb")
SGD = Need(lambda run: run.optim.kind == "sgd", "without optim.kind sgd", "set optim.kind sgd")
WARM_UP = Need(
    lambda run: bool(run.schedule.warmup_steps or run.schedule.warmup_epochs),
    "without a warm-up",
    "set schedule.warmup_steps or schedule.warmup_epochs",
)
DECAY = Need(
    lambda run: run.schedule.decay != "constant",
    "with schedule.decay constant",
    "set schedule.decay cosine or linear",
)
CHECKPOINTS = Need(
    _saves,
    "when only the last step is saved (checkpoint.every 0 without checkpoint.minutes)",
    "set checkpoint.every or checkpoint.minutes",
)
SCORED_CHECKPOINTS = Need(
    lambda run: _saves(run) and run.train.eval_every > 0,
    "unless checkpoints are written and evaluated before the last step",
    "set checkpoint.every and train.eval_every, one a multiple of the other",
)
