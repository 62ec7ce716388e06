"""Resuming: a checkpoint's state into the engine."""

import torch
import torch.distributed

from pipeline.checkpoint import format as checkpoint
from pipeline.checkpoint.format import Checkpoint, Meta
from pipeline.core.errors import UserError
from pipeline.distributed.ranks import Ranks
from pipeline.engine.deepspeed_engine import Engine
from pipeline.runs.folder import RunFolder


def load(found: Checkpoint, engine: Engine) -> Meta:
    """Put a checkpoint's state into a fresh engine. No communication."""
    engine.load_state(found.state(), found.meta.optimizer_steps)
    return found.meta


def resume(folder: RunFolder, engine: Engine, ranks: Ranks) -> Meta | None:
    """Load the newest sound checkpoint of the run folder, if it has any; collective.

    Raises UserError if it has some and all are broken: starting over is for a human to decide.
    """
    choice: list[Checkpoint | str | None] = [None]
    if ranks.rank == 0 and folder.checkpoints:
        choice[0] = checkpoint.newest(folder.checkpoints, hashes=True) or "broken"
    torch.distributed.broadcast_object_list(choice)
    if choice[0] is None:
        return None
    if not isinstance(choice[0], Checkpoint):
        raise UserError(
            f"--run-dir {str(folder.path)!r} has checkpoints and none is sound (see the warnings of rank 0): bring "
            "one back, or remove its checkpoints/ folder to start anew"
        )
    return load(choice[0], engine)
