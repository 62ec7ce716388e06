"""Who am I among the ranks: Slurm's, torchrun's or accelerate's variables -> ranks, device, process group.

One process is one rank and drives one device. Without a launcher around it a process is alone: rank 0 of 1.
"""

import datetime
import gc
import os
from typing import TYPE_CHECKING

import torch
import torch.distributed

from pipeline.core.errors import UserError
from pipeline.distributed.malloc import keep_freed_memory
from pipeline.distributed.ranks import Ranks, export_variables

if TYPE_CHECKING:
    from accelerate import Accelerator

TIMEOUT = datetime.timedelta(minutes=10)  # of one collective: longer than any evaluation's skew between ranks


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
