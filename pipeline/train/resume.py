"""Resuming: loading a checkpoint's state into the engine."""

import torch
import torch.distributed

from pipeline.checkpoint import format as checkpoint
from pipeline.checkpoint.format import Checkpoint, Meta
from pipeline.core.errors import UserError
from pipeline.distributed.ranks import Ranks
from pipeline.engine.deepspeed_engine import Engine
from pipeline.runs.folder import RunFolder


def load(found: Checkpoint, engine: Engine) -> Meta:
    """Load a checkpoint's state into a new engine. No communication."""
    engine.load_state(found.state(), found.meta.optimizer_steps)
    return found.meta


def resume(folder: RunFolder, engine: Engine, ranks: Ranks) -> Meta | None:
    """Load the newest intact checkpoint of the run folder, if it has any; collective.

    Raises UserError if it has checkpoints and all are damaged: starting over is a decision for the user.
    """
    choice: list[Checkpoint | str | None] = [None]
    if ranks.rank == 0 and folder.checkpoints:
        choice[0] = checkpoint.newest(folder.checkpoints, hashes=True) or "broken"
    torch.distributed.broadcast_object_list(choice)
    if choice[0] is None:
        return None
    if not isinstance(choice[0], Checkpoint):
        raise UserError(
            f"--run-dir {str(folder.path)!r} has checkpoints, but all are damaged (see rank 0's warnings): restore "
            "one, or remove its checkpoints/ folder to start over"
        )
    return load(choice[0], engine)
