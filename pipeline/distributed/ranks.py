"""Rank, world size and local rank from the variables of srun, torchrun, accelerate or deepspeed.

Without a launcher it is a single process: rank 0 of 1, even if the shell exports MASTER_ADDR and MASTER_PORT.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.core.errors import UserError

# Launchers that don't set RANK and WORLD_SIZE: their variables for rank and number of processes. The first that is set
# decides. OMPI: Open MPI's mpirun, IBM's jsrun. MV2: MVAPICH. PMI: mpirun of MPICH, Intel and Cray, srun --mpi=pmi2.
# PMIx states no number of processes
MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
    ("PMIX_RANK", ""),
)
MARKS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")  # set in processes of torchrun and accelerate, and of deepspeed


@dataclass(frozen=True)
class Ranks:
    rank: int
    world_size: int
    local_rank: int  # on this node: the device index, if a task sees all of the node's devices
    launcher: Literal["torchrun", "slurm", "alone"]  # accelerate and deepspeed count as torchrun


def ranks_from_environment(environment: Mapping[str, str]) -> Ranks:
    """Read the launcher's variables. Raises UserError if they are incomplete, inconsistent, or only mpirun's.

    torchrun's come first, so that torchrun inside a Slurm allocation works. Slurm's count only inside a step of srun:
    the batch script and an interactive shell have SLURM_NTASKS too, but run one process.
    """
    step = None
    if "SLURM_STEP_NUM_TASKS" in environment and "SLURM_PROCID" in environment:
        rank, world = _integer(environment, "SLURM_PROCID"), _integer(environment, "SLURM_STEP_NUM_TASKS")
        step = Ranks(rank, world, _integer(environment, "SLURM_LOCALID"), "slurm")
    if "RANK" in environment or "WORLD_SIZE" in environment:
        rank, world = _integer(environment, "RANK"), _integer(environment, "WORLD_SIZE")
        ranks = Ranks(rank, world, _integer(environment, "LOCAL_RANK"), "torchrun")
    else:
        ranks = step or Ranks(0, 1, 0, "alone")
    if not 0 <= ranks.rank < ranks.world_size:
        raise UserError(
            f"rank {ranks.rank} is not below the world size {ranks.world_size}: check the launcher's variables"
        )
    if not any(mark in environment for mark in MARKS):
        if step is not None:
            _check_step(ranks, step)
        _check_mpi(environment, ranks)
    return ranks


def _check_step(ranks: Ranks, step: Ranks) -> None:
    """Raise UserError if RANK and WORLD_SIZE contradict srun's variables: they are left over in the shell."""
    per_task, rest = divmod(ranks.world_size, step.world_size)
    if rest or ranks.rank // per_task != step.rank:
        raise UserError(
            f"RANK {ranks.rank} and WORLD_SIZE {ranks.world_size} contradict srun, whose task this is "
            f"{step.rank} of {step.world_size} (SLURM_PROCID, SLURM_STEP_NUM_TASKS): unset RANK, WORLD_SIZE and "
            "LOCAL_RANK, or start the ranks with torchrun"
        )


def _check_mpi(environment: Mapping[str, str], ranks: Ranks) -> None:
    """Raise UserError if mpirun has started several processes and its numbers differ from ``ranks``.

    srun sets some of mpirun's variables too, and a script started by mpirun may have set RANK and WORLD_SIZE from them.
    """
    for rank, size in MPI:
        if rank not in environment:
            continue
        unknown = "unknown" if ranks.launcher == "alone" else str(ranks.world_size)
        said = environment[rank], environment.get(size, unknown)
        if said[1] != "1" and said != (str(ranks.rank), str(ranks.world_size)):
            raise UserError(
                f"this is process {said[0]} of {said[1]} of an MPI launcher such as mpirun ({rank}), and each would "
                "do all of the work: start the ranks with srun, torchrun or accelerate launch instead "
                f"(or unset {rank} to run one process)"
            )
        return


def _integer(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name)
    if value is None or not value.isdecimal():
        raise UserError(
            f"environment variable {name} is {value!r}, not a number: start the ranks with srun, torchrun or "
            "accelerate launch, or unset RANK and WORLD_SIZE to run on one process"
        )
    return int(value)


def export_variables(ranks: Ranks, environment: Mapping[str, str]) -> dict[str, str]:
    """Set the variables that torch and DeepSpeed read, for any launcher (DeepSpeed falls back to MPI without them).

    A single process takes a free port of its own, unless torchrun's agent listens for it.
    """
    elastic = ranks.launcher == "torchrun" and "TORCHELASTIC_RUN_ID" in environment
    if ranks.world_size == 1 and not elastic:
        address, port = "127.0.0.1", str(free_port())
    else:
        address, port = environment.get("MASTER_ADDR", ""), environment.get("MASTER_PORT", "")
    if not address or not port.isdecimal():
        raise UserError(
            f"MASTER_ADDR {address!r} and MASTER_PORT {port!r} must name rank 0's host and a free port there, the "
            f"same on all {ranks.world_size} ranks: the job scripts set both; before an srun of your own, "
            "export MASTER_ADDR=$(scontrol show hostnames | head -n 1) MASTER_PORT=12345"
        )
    return {
        "RANK": str(ranks.rank),
        "WORLD_SIZE": str(ranks.world_size),
        "LOCAL_RANK": str(ranks.local_rank),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        # else torch would assume that torchrun's agent listens on the port, and not open it
        "TORCHELASTIC_USE_AGENT_STORE": environment.get("TORCHELASTIC_USE_AGENT_STORE", "False")
        if elastic
        else "False",
    }


def variables_of(world_size: int) -> list[dict[str, str]]:
    """For each rank of a new world on this machine: the variables of its process, as torchrun sets them.

    The ranks meet at this machine's loopback address, which needs no name. OMP_NUM_THREADS, unless the user has set
    it, divides the CPUs among them.
    """
    threads = str(max(1, len(os.sched_getaffinity(0)) // world_size))
    every = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
    }
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **every} for rank in range(world_size)]


def node_name(environment: Mapping[str, str]) -> str:
    """This machine, as Slurm calls it, or else its host name."""
    return environment.get("SLURMD_NODENAME") or socket.gethostname()


def spare_devices(world_size: int, environment: Mapping[str, str]) -> int:
    """Devices of the Slurm job's nodes on which no rank runs: spare nodes, or lost ones."""
    nodes, used = (int(environment.get(f"SLURM_{part}_NUM_NODES") or 0) for part in ("JOB", "STEP"))
    return (nodes - used) * world_size // used if used else 0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
