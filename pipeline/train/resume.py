"""Go on from a checkpoint: its state into the engine."""

from pathlib import Path

import torch
import torch.distributed

from pipeline.checkpoint import format as checkpoint
from pipeline.checkpoint.format import Meta, State, read_meta
from pipeline.config.schema import RunConfig
from pipeline.core.errors import UserError
from pipeline.distributed.ranks import Ranks
from pipeline.engine.deepspeed_engine import Engine


def load(checkpoint: Path, engine: Engine) -> Meta:
    """Put a checkpoint's state into a fresh engine. No communication."""
    meta = read_meta(checkpoint)
    engine.load_state(State(checkpoint), meta.optimizer_steps)
    return meta


def resume(config: RunConfig, engine: Engine, ranks: Ranks) -> Meta | None:
    """Load the newest sound checkpoint of the run folder, if it has any; collective.

    Raises UserError where it has some and all are broken: starting over is for a human to decide.
    """
    choice: list[Path | str | None] = [None]
    if ranks.rank == 0 and checkpoint.complete(config.run_dir):
        choice[0] = checkpoint.latest(config.run_dir, hashes=True) or "broken"
    torch.distributed.broadcast_object_list(choice)
    if choice[0] is None:
        return None
    if not isinstance(choice[0], Path):
        raise UserError(
            f"--run-dir {str(config.run_dir)!r} has checkpoints and none is sound (see the warnings of rank 0): bring "
            "one back, or remove its checkpoints/ folder to start anew"
        )
    return load(choice[0], engine)
