"""Which rank this process is, from the variables of Slurm, torchrun or accelerate."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.core.errors import UserError


@dataclass(frozen=True)
class Ranks:
    rank: int
    world_size: int
    local_rank: int  # on this node: the index of its device
    launcher: Literal["torchrun", "slurm", "alone"]  # accelerate launch sets torchrun's variables


def ranks_from_environment(environment: Mapping[str, str]) -> Ranks:
    """Read the launcher's variables. Raises UserError where they are incomplete.

    torchrun's come first, so that torchrun inside a Slurm allocation works. Slurm's count only inside a step of srun:
    the batch script and an interactive shell carry SLURM_NTASKS too, but run one process.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        rank, world = _integer(environment, "RANK"), _integer(environment, "WORLD_SIZE")
        local, launcher = _integer(environment, "LOCAL_RANK"), "torchrun"
    elif "SLURM_STEP_NUM_TASKS" in environment and "SLURM_PROCID" in environment:
        rank, world = _integer(environment, "SLURM_PROCID"), _integer(environment, "SLURM_STEP_NUM_TASKS")
        local, launcher = _integer(environment, "SLURM_LOCALID"), "slurm"
    else:
        return Ranks(0, 1, 0, "alone")
    if not 0 <= rank < world:
        raise UserError(f"rank {rank} is not below the world size {world}: the launcher's variables contradict")
    return Ranks(rank, world, local, launcher)  # type: ignore[arg-type]


def _integer(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name)
    if value is None or not value.isdecimal():
        raise UserError(
            f"environment variable {name} is {value!r}, not a number: start the ranks with srun, torchrun or "
            "accelerate launch, or unset RANK and WORLD_SIZE to run on one process"
        )
    return int(value)


def export_variables(ranks: Ranks, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that torch and DeepSpeed read, for any launcher (DeepSpeed falls back to MPI without them)."""
    address = environment.get("MASTER_ADDR", "127.0.0.1" if ranks.world_size == 1 else "")
    port = environment.get("MASTER_PORT", str(free_port()) if ranks.world_size == 1 else "")
    if not address or not port:
        raise UserError(
            f"MASTER_ADDR {address!r} and MASTER_PORT {port!r} must name rank 0's host and a free port there, the "
            f"same on all {ranks.world_size} ranks: slurm/launch.sh exports both"
        )
    return {
        "RANK": str(ranks.rank),
        "WORLD_SIZE": str(ranks.world_size),
        "LOCAL_RANK": str(ranks.local_rank),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
    }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
