"""jobs.doctor's facts: the ranks connect, each takes the measurements, and rank 0 gathers them."""

import datetime
import os
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from pipeline.config.schema import RunConfig
from pipeline.core.errors import UserError
from pipeline.dataset.joined_split import JoinedSplit, chosen, make_cache, open_split
from pipeline.distributed import devices, process_group
from pipeline.distributed.ranks import ranks_from_environment
from pipeline.imaging import jpeg
from pipeline.preflight import measurements
from pipeline.preflight.verdicts import Facts

RENDEZVOUS_LIMIT = datetime.timedelta(minutes=2)


def measure(folder: Path, plan: RunConfig | None) -> list[Facts] | None:
    """Every rank's facts, on rank 0; None elsewhere. Collective.

    ``folder``: where runs go; ``plan``: the run whose loader is measured. Raises UserError if the ranks can't connect.
    """
    ranks = ranks_from_environment(os.environ)
    data = open_data(plan) if plan and plan.data.train else ""
    if isinstance(data, UserError):
        if ranks.world_size == 1:
            raise data
        data = str(data)
    began = time.perf_counter()
    try:
        device = process_group.start(ranks, RENDEZVOUS_LIMIT)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"rank {ranks.rank} on {socket.gethostname()} could not connect to the other {ranks.world_size - 1} rank(s)"
            f" at {place} ({str(error).splitlines()[0]}): check that all nodes can reach this address "
            "(GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME in slurm/env.sh), and that no firewall is in between"
        ) from error
    rendezvous = time.perf_counter() - began

    hosts: list[str] = [""] * ranks.world_size
    torch.distributed.all_gather_object(hosts, socket.gethostname())
    local_ranks = hosts.count(socket.gethostname())
    skew = measurements.clock_skew()
    exact, bus = measurements.all_reduce(device)
    seen, fault, write, opening = measurements.shared_folder(folder, ranks)
    free_bytes, free_inodes = measurements.free_space(folder)
    gemm = devices.gemm(device)
    torch.distributed.barrier()  # measure all loaders at the same time
    facts = Facts(
        rank=ranks.rank,
        host=socket.gethostname(),
        device=device.type,
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        gpus_given=int(os.environ.get("SLURM_GPUS_ON_NODE", "0")),
        local_ranks=local_ranks,
        cpus=measurements.cpus_of_this_rank(local_ranks),
        code=measurements.code_digest(),
        packages=measurements.package_versions(),
        skew=skew,
        rendezvous=rendezvous,
        sum_is_right=exact,
        bus=bus,
        gemm=gemm,
        sees_folder=seen,
        folder_fault=fault,
        write=write,
        open=opening,
        free_bytes=free_bytes,
        free_inodes=free_inodes,
        loader=measurements.loader_speed(data, plan, ranks) if plan and not isinstance(data, str) else 0.0,
        loader_fault=data if isinstance(data, str) else "",
        region_decoder=jpeg.HAS_REGION_DECODER,
    )
    everyone: list[Any] = [None] * ranks.world_size
    torch.distributed.all_gather_object(everyone, asdict(facts))
    process_group.finish()
    return [Facts(**fact) for fact in everyone] if ranks.rank == 0 else None


def open_data(plan: RunConfig) -> JoinedSplit | UserError:
    """The training data as this rank sees them, or the error, which must not stop the collective."""
    try:
        cache = make_cache(plan.data.cache, plan.data.cache_gb)
        return open_split(plan.data.train, plan.data.train_split, choice=chosen(plan.data), cache=cache)
    except UserError as error:
        return error
