"""Who am I among the ranks: Slurm's, torchrun's or accelerate's variables -> ranks, device, process group.

One process is one rank and drives one device. Without a launcher around it a process is alone: rank 0 of 1.
"""

import datetime
import gc
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed

from pipeline.core.cli import UserError
from pipeline.distributed.malloc import keep_freed_memory

if TYPE_CHECKING:
    from accelerate import Accelerator

TIMEOUT = datetime.timedelta(minutes=10)  # of one collective: longer than any evaluation's skew between ranks


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


def start(ranks: Ranks, timeout: datetime.timedelta = TIMEOUT) -> torch.device:
    """Join the process group (nccl on GPUs, gloo on CPUs) through DeepSpeed; return this rank's device.

    ``timeout``: of the ranks' meeting, and of each collective after it.
    """
    os.environ.update(export_variables(ranks, os.environ))
    device = local_device(ranks.local_rank)
    if device.type == "cpu":
        keep_freed_memory()
    from pipeline.engine.import_deepspeed import deepspeed  # evaluation needs this module, but no DeepSpeed

    # DeepSpeed compiles a shared-memory all-reduce for CPU ranks at the first start: half a minute, and a failure
    # where there is no compiler. gloo does the same work. Asking for the table of all such operators would try each
    # one's compiler first, and no other entry is read.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False, "deepspeed_not_implemented": False}
    # DeepSpeed clones the data-parallel group with torch's default of 30 minutes, whatever timeout it is given.
    torch.distributed.distributed_c10d.default_pg_timeout = timeout
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", timeout=timeout, verbose=False)
    return device


def local_device(local_rank: int) -> torch.device:
    """The GPU of this rank, or the CPU where there is none. Raises UserError where a node has too few GPUs."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    # srun --gpus-per-task shows each task its own GPU alone, as device 0
    index = 0 if count == 1 and "SLURM_GPUS_PER_TASK" in os.environ else local_rank
    if index >= count:
        raise UserError(
            f"local rank {local_rank} has no GPU: this node shows {count}; start one task a GPU "
            "(--ntasks-per-node = --gpus-per-node)"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def finish() -> None:
    """Leave the process group. Call after the engine is destroyed and unreferenced.

    The barrier and the collection keep gloo's threads from aborting at exit.
    """
    gc.collect()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def make_accelerator() -> "Accelerator":
    """accelerate's view of the processes, for jobs that only evaluate."""
    from accelerate import Accelerator  # training does without

    on_cpu = not torch.accelerator.is_available()
    if on_cpu:
        keep_freed_memory()
    # Without cpu=True, processes on CPUs don't find one another; alone, it only makes accelerate warn about threads.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Accelerator(cpu=several and on_cpu)
