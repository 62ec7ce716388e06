"""Ranks -> devices and process group. One process is one rank and drives one device."""

import contextlib
import dataclasses
import datetime
import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed

from pipeline.core.errors import UserError
from pipeline.distributed.flight_recorder import recorder_variables
from pipeline.distributed.ranks import Ranks, export_variables, ranks_from_environment
from pipeline.model.cpu import keep_freed_memory

if TYPE_CHECKING:
    from accelerate import Accelerator

# accelerate's variables that a shell may export: they would change the computation, or call DeepSpeed
ACCELERATE = (
    "ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_MEGATRON_LM",
)  # fmt: skip
TIMEOUT = datetime.timedelta(minutes=10)  # for one collective: longer than any skew between ranks in evaluation


def start(ranks: Ranks, timeout: datetime.timedelta = TIMEOUT, collectives: Path | None = None) -> torch.device:
    """Join the process group (nccl on GPUs, gloo on CPUs) through DeepSpeed; return this rank's device.

    ``timeout``: for the rendezvous, and for each later collective. ``collectives``: folder to which NCCL writes the
    last collectives of each rank when one times out.
    """
    device = local_device(ranks.local_rank)
    if device.type == "cuda":  # DeepSpeed uses LOCAL_RANK as the device index
        os.environ |= export_variables(dataclasses.replace(ranks, local_rank=device.index), os.environ)
        if collectives is not None:
            collectives.mkdir(parents=True, exist_ok=True)
            os.environ |= recorder_variables(collectives, os.environ)
    else:
        os.environ |= export_variables(ranks, os.environ)
    if device.type == "cpu":
        keep_freed_memory()
    from pipeline.engine import internals  # imported here: evaluation needs this module but not DeepSpeed

    internals.compile_no_operators()
    # DeepSpeed clones the data-parallel group with torch's default timeout of 30 minutes, ignoring the one it is given.
    torch.distributed.distributed_c10d.default_pg_timeout = timeout
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        with _ended_by_signals():
            internals.deepspeed.init_distributed(backend, timeout=timeout, verbose=False)
    except (torch.distributed.DistStoreError, torch.distributed.DistNetworkError) as error:
        raise RuntimeError(
            f"rank {ranks.rank} of {ranks.world_size} could not reach the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} (MASTER_ADDR, MASTER_PORT): they did not start, or the port is taken"
        ) from error
    if device.type == "cuda":
        check_devices(ranks, torch.distributed.distributed_c10d._get_default_store(), identity(device))
    return device


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let signals end the rendezvous: it waits in C++, where no Python handler runs, and there is nothing to save."""
    before = {
        number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not installed by Python
                signal.signal(number, handler)


def local_device(local_rank: int) -> torch.device:
    """The GPU of this rank, or the CPU if there is none.

    A task may see all GPUs of its node, or only its own as device 0 (srun --gpus-per-task, --gpu-bind, cgroups,
    CUDA_VISIBLE_DEVICES). :func:`check_devices` finds ranks that share a GPU.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    index = local_rank % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def identity(device: torch.device) -> str:
    """The GPU's unique identity: its UUID, or that of the MIG slice that CUDA_VISIBLE_DEVICES names."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if device.index < len(named) and named[device.index].startswith("MIG-"):
        return named[device.index]
    return str(torch.cuda.get_device_properties(device).uuid)


def check_devices(ranks: Ranks, store: Any, device: str) -> None:
    """Raise UserError on ranks that share a GPU. Every rank calls it with its own GPU's identity."""
    store.set(f"gpu/{ranks.rank}", device)
    devices = [store.get(f"gpu/{rank}").decode() for rank in range(ranks.world_size)]
    same = [rank for rank, other in enumerate(devices) if other == device]
    if len(same) > 1:
        raise UserError(
            f"ranks {', '.join(map(str, same))} share one GPU ({device}): start one task per GPU "
            "(--ntasks-per-node = --gpus-per-node)"
        )


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

    ranks = ranks_from_environment(os.environ)
    if ranks.launcher == "slurm" and ranks.world_size > 1:
        raise UserError(
            f"srun started {ranks.world_size} tasks, and each would do all of the work: start one task, or use "
            "accelerate launch as slurm/evaluate.sh does"
        )
    alone = ranks.world_size == 1 and "TORCHELASTIC_RUN_ID" not in os.environ
    for name in (*ACCELERATE, *(("RANK", "WORLD_SIZE", "LOCAL_RANK") if alone else ())):
        os.environ.pop(name, None)
    on_cpu = not torch.accelerator.is_available()
    if on_cpu:
        keep_freed_memory()
    # Without cpu=True, CPU processes don't find one another. With a single process it only makes accelerate warn.
    several = ranks.world_size > 1
    return Accelerator(cpu=several and on_cpu)


def sum_over_processes(accelerator: "Accelerator", sums: torch.Tensor) -> torch.Tensor:
    """``sums`` summed over the processes, on this process's device; collective."""
    return accelerator.reduce(sums.to(accelerator.device), reduction="sum")  # type: ignore[no-any-return]
