"""jobs.doctor's measurements, on one rank among the others. Each takes about a second."""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import socket
import time
from pathlib import Path

import torch
import torch.distributed

from pipeline.config.schema import RunConfig
from pipeline.core.source import SOURCE
from pipeline.dataset.joined_split import JoinedSplit
from pipeline.distributed.devices import _now
from pipeline.distributed.ranks import Ranks
from pipeline.loader.batches import train_batches
from pipeline.loader.transforms import train_transform

REDUCE_BYTES = {"cuda": 256 << 20, "cpu": 8 << 20}
# The ranks sum integers whose total stays below 2^24 for up to 16,384 ranks, so that float32 represents every partial
# sum exactly, in any order
REDUCE_LARGEST, REDUCE_FACTORS = 100, 10
WRITE_BYTES = 64 << 20
LOADER_SECONDS = 3.0
LOADER_BATCH = 16  # images: small, so that batches in flight at the start and the end matter little


def code_digest() -> str:
    """SHA-256 of our Python sources, by name and content: 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for folder in ("pipeline", "jobs", "data_prep"):
        for path in sorted((SOURCE / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(SOURCE)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:32]


def package_versions() -> dict[str, str]:
    """Versions of every installed package, and of Python."""
    versions = {one.name.lower(): one.version for one in importlib.metadata.distributions()}
    return versions | {"python": platform.python_version()}


def cpus_of_this_rank(local_ranks: int) -> int:
    """CPUs for this rank: those it is bound to, or its share of the node's if Slurm doesn't bind tasks."""
    visible = len(os.sched_getaffinity(0))
    asked = int(os.environ.get("SLURM_CPUS_PER_TASK", "0"))
    return min(visible, asked) if asked else max(visible // local_ranks, 1)


def clock_skew(rounds: int = 5) -> float:
    """This clock minus rank 0's, seconds: the smallest of several tries, since a slow barrier only adds to it."""
    if torch.distributed.get_world_size() == 1:
        return 0.0
    best = float("inf")
    for _ in range(rounds):
        torch.distributed.barrier()
        times: list[float] = [0.0] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(times, time.time())
        difference = times[torch.distributed.get_rank()] - times[0]
        best = difference if abs(difference) < abs(best) else best
    return best


def all_reduce(device: torch.device, rounds: int = 3) -> tuple[bool, float]:
    """Whether the sum over all ranks is exact, and the bus bandwidth, bytes/s (size per rank times 2 (n - 1) / n)."""
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    base = torch.arange(REDUCE_BYTES[device.type] // 4, device=device, dtype=torch.float32) % REDUCE_LARGEST
    expected = base * sum(map(reduce_factor, range(world)))
    exact, fastest = True, float("inf")
    for _ in range(rounds):
        values = base * reduce_factor(rank)
        torch.distributed.barrier()
        began = _now(device)
        torch.distributed.all_reduce(values)
        fastest = min(fastest, _now(device) - began)
        exact = exact and bool(torch.equal(values, expected))
    return exact, 2 * (world - 1) / world * base.numel() * 4 / fastest


def reduce_factor(rank: int) -> int:
    return rank % REDUCE_FACTORS + 1


def shared_folder(folder: Path, ranks: Ranks) -> tuple[bool, str, float, float]:
    """Whether rank 0's file is visible here, the error, bytes/s written (first rank of a node), seconds to open.

    Collective. Removes its files.
    """
    fault, seen, rate, opening = "", False, 0.0, 0.0
    mark = folder / ".doctor-mark"
    own = folder / f".doctor-{socket.gethostname()}-{ranks.rank}"
    token = [os.urandom(8).hex()]
    torch.distributed.broadcast_object_list(token)
    try:
        if ranks.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            mark.write_text(token[0], encoding="utf-8")
    except OSError as error:
        fault = f"{folder} cannot be written: {error.strerror}"
    torch.distributed.barrier()
    deadline = time.monotonic() + 5  # NFS clients may cache for seconds that a file doesn't exist
    while not seen and not fault:
        began = time.perf_counter()
        seen = _content(mark) == token[0]
        opening = time.perf_counter() - began
        if time.monotonic() > deadline:
            break
        time.sleep(0 if seen else 0.1)
    if ranks.local_rank == 0 and not fault and seen:
        try:
            rate = _write(own)
        except OSError as error:
            fault = f"{folder} cannot be written: {error.strerror}"
        with contextlib.suppress(OSError):
            own.unlink()
    torch.distributed.barrier()
    if ranks.rank == 0:
        with contextlib.suppress(OSError):  # a file that could not be written
            mark.unlink()
    return seen, fault, rate, opening


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _write(path: Path) -> float:
    block = os.urandom(1 << 20)
    began = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(WRITE_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return WRITE_BYTES / (time.perf_counter() - began)


def loader_speed(split: JoinedSplit, config: RunConfig, ranks: Ranks, seconds: float = LOADER_SECONDS) -> float:
    """Images/s of this rank's loader on ``config``'s training images, from the tars to the batch for the device.

    Measured after each worker has delivered its first batch, so that neither their startup nor prefetched batches
    count.
    """
    batch = min(config.train.micro_batch, LOADER_BATCH)
    batches = train_batches(
        split,
        train_transform(config),
        seed=config.train.seed,
        global_batch=batch * ranks.world_size,
        micro_batch=batch,
        rank=ranks.rank,
        world_size=ranks.world_size,
        workers=config.data.workers,
        start_step=0,
        stop_step=1_000_000,  # not reached in the time
        weights=config.data.weights,
    )
    for _ in range(max(config.data.workers, 1)):
        next(batches)
    images, began, now = 0, time.perf_counter(), 0.0
    while now < seconds:
        images += len(next(batches).labels_B)
        now = time.perf_counter() - began
    return images / now


def free_space(folder: Path) -> tuple[int, int]:
    """Bytes and inodes available to the user on the file system of ``folder``; -1 if inodes aren't counted."""
    while not folder.exists():
        folder = folder.parent
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize, facts.f_favail if facts.f_files else -1
