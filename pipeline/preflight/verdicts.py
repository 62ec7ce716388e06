"""jobs.doctor's measurements of each rank, and verdicts on them. Pure: no torch, no clock, no files."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.imaging import jpeg

# Limits beyond which a run breaks or slows down; the verdict that uses one states it.
SKEW_LIMIT = 1.0  # seconds: beyond it, file times and logs of different nodes can't be compared
SLOW_DEVICE = 0.85  # fraction of the median device's speed: every step waits for the slowest device
BUS_LIMIT = {"cuda": 5e9, "cpu": 5e6}  # bytes/s: less means NCCL fell back to a slow network (25 GbE gives about 3e9)
WRITE_LIMIT = 50e6  # bytes/s per node: below it, a checkpoint of L/16 (3.7 GB) takes over a minute
OPEN_LIMIT = 0.05  # seconds to open and read a small file that another node wrote
INODES = 1000  # upper bound for a run's files besides checkpoints and logs


@dataclass(frozen=True)
class Facts:
    """One rank's measurements. Speeds in bytes/s, FLOP/s or images/s; times in seconds; 0 where not measured."""

    rank: int
    host: str
    device: str  # "cpu" or "cuda"
    device_name: str
    gpus_given: int  # GPUs allocated by Slurm on this host; 0 if none or without Slurm
    local_ranks: int  # ranks on this host
    cpus: int  # CPUs for this rank; an equal share of the host's if Slurm doesn't bind tasks
    code: str  # digest of our source files
    packages: Mapping[str, str]
    skew: float  # this clock minus rank 0's, seconds
    rendezvous: float
    sum_is_right: bool  # result of the all-reduce
    bus: float  # bus bandwidth of the all-reduce, bytes/s
    gemm: float  # FLOP/s
    sees_folder: bool  # whether the file written by rank 0 is visible here with its content
    folder_fault: str  # error when writing; empty if there was none
    write: float
    open: float
    free_bytes: int
    free_inodes: int  # -1 if the file system doesn't count them
    loader: float  # images/s of this rank's loader
    loader_fault: str  # why the dataset can't be read here; empty if it can
    region_decoder: bool  # pipeline/imaging/_jpeg.c was built here


@dataclass(frozen=True)
class Demand:
    """What a plan needs from the cluster; 0 if no recipe was named."""

    recipe: str = ""
    workers: int = 0  # data loader workers per rank
    checkpoint_bytes: int = 0  # one checkpoint
    checkpoints: int = 0  # kept at once, the one being written included
    files: int = 0  # files of those checkpoints, and one log per rank
    flops_per_image: float = 0.0  # forward and backward
    efficiency: float = 0.4  # fraction of a device's measured GEMM speed that training reaches


@dataclass(frozen=True)
class Verdict:
    check: str
    state: Literal["ok", "warn", "fail"]
    figure: str
    remedy: str = ""
    hosts: tuple[str, ...] = field(default=())  # hosts with the fault


def judge(facts: Sequence[Facts], demand: Demand) -> list[Verdict]:
    """All verdicts, in the order in which a run would meet the problems. ``facts``: every rank, in any order."""
    checks: tuple[Callable[[Sequence[Facts], Demand], Verdict], ...] = (
        _ranks, _code, _packages, _clock, _all_reduce, _bandwidth, _devices, _cpus, _folder, _write, _space, _loader,
    )  # fmt: skip
    return [check(sorted(facts, key=lambda fact: fact.rank), demand) for check in checks]


def _ranks(facts: Sequence[Facts], _: Demand) -> Verdict:
    hosts = _by_host(facts)
    figure = f"{len(facts)} rank(s) on {len(hosts)} node(s) connected in {max(fact.rendezvous for fact in facts):.1f} s"
    counts = {len(ranks) for ranks in hosts.values()}
    if len(counts) > 1:
        uneven = ", ".join(f"{host}: {len(ranks)}" for host, ranks in hosts.items())
        return Verdict("ranks", "warn", f"{figure}, unevenly ({uneven})", "give --ntasks-per-node instead of --ntasks")
    return Verdict("ranks", "ok", figure)


def _code(facts: Sequence[Facts], _: Demand) -> Verdict:
    odd = _odd_hosts(facts, lambda fact: fact.code)
    if odd:
        return Verdict("code", "fail", "the nodes run different source files", "install from one shared folder", odd)
    return Verdict("code", "ok", f"the same on all nodes ({facts[0].code[:8]})")


def _packages(facts: Sequence[Facts], _: Demand) -> Verdict:
    names = sorted({name for fact in facts for name in fact.packages})
    different = []
    for name in names:
        versions = {fact.packages.get(name, "missing") for fact in facts}
        if len(versions) > 1:
            different.append(f"{name} {' / '.join(sorted(versions))}")
    if different:
        odd = _odd_hosts(facts, lambda fact: str(sorted(fact.packages.items())))
        return Verdict("packages", "fail", "; ".join(different), "use one environment or image on all nodes", odd)
    return Verdict("packages", "ok", f"{len(names)} with the same versions on all nodes")


def _clock(facts: Sequence[Facts], _: Demand) -> Verdict:
    skew = max(fact.skew for fact in facts) - min(fact.skew for fact in facts)
    if skew > SKEW_LIMIT:
        late = tuple(sorted({fact.host for fact in facts if abs(fact.skew) > SKEW_LIMIT / 2}))
        return Verdict("clocks", "warn", f"{skew:.1f} s apart", "let chrony or ntpd set the clocks", late)
    return Verdict("clocks", "ok", f"at most {1000 * skew:.0f} ms apart")


def _all_reduce(facts: Sequence[Facts], _: Demand) -> Verdict:
    wrong = tuple(sorted({fact.host for fact in facts if not fact.sum_is_right}))
    if wrong:
        remedy = "exclude these nodes (sbatch --exclude=NODE): their network or GPU is broken"
        return Verdict("all-reduce", "fail", "the sum is wrong", remedy, wrong)
    return Verdict("all-reduce", "ok", f"the sum is right on all {len(facts)} rank(s)")


def _bandwidth(facts: Sequence[Facts], _: Demand) -> Verdict:
    if len(facts) == 1:
        return Verdict("bandwidth", "ok", "one rank: nothing to reduce")
    bus = min(fact.bus for fact in facts)
    limit = BUS_LIMIT[facts[0].device]
    if bus < limit:
        remedy = "set NCCL_SOCKET_IFNAME or NCCL_IB_HCA in slurm/env.sh; NCCL_DEBUG=INFO shows the network in use"
        return Verdict("bandwidth", "warn", f"{_speed(bus)} bus bandwidth, below {_speed(limit)}", remedy)
    return Verdict("bandwidth", "ok", f"{_speed(bus)} bus bandwidth")


def _devices(facts: Sequence[Facts], _: Demand) -> Verdict:
    devices = {fact.device for fact in facts}
    blind = tuple(sorted({fact.host for fact in facts if fact.device == "cpu"}))
    if len(devices) > 1:
        return Verdict(
            "devices", "fail", "some ranks see no GPU", "check nvidia-smi there, or exclude these nodes", blind
        )
    if blind and (given := max(fact.gpus_given for fact in facts)):
        remedy = "compare nvidia-smi's CUDA version with torch.version.cuda; for CPUs: vit submit --gpus-per-node 0"
        return Verdict("devices", "fail", f"Slurm gave {given} GPU(s) per node, but torch sees none", remedy, blind)
    median = statistics.median(fact.gemm for fact in facts)
    slow = [fact for fact in facts if fact.gemm < SLOW_DEVICE * median]
    name = facts[0].device_name
    if slow:
        named = ", ".join(f"rank {fact.rank} on {fact.host}: {fact.gemm / median:.0%}" for fact in slow)
        remedy = "exclude these nodes (sbatch --exclude=NODE): they are slowed by clocks, heat or another job"
        state: Literal["warn", "fail"] = "warn" if facts[0].device == "cpu" else "fail"
        hosts = tuple(sorted({fact.host for fact in slow}))
        return Verdict("devices", state, f"{name}, {median / 1e12:.3g} TFLOP/s; slow: {named}", remedy, hosts)
    return Verdict("devices", "ok", f"{name}, {median / 1e12:.3g} TFLOP/s, the slowest within {_spread(facts, median)}")


def _cpus(facts: Sequence[Facts], demand: Demand) -> Verdict:
    wanted = demand.workers + 1  # the rank itself
    poor = [fact for fact in facts if fact.cpus < wanted]
    least = min(fact.cpus for fact in facts)
    if demand.recipe and poor:
        remedy = f"request --cpus-per-task={wanted}, or set --data.workers {max(least - 1, 0)}"
        hosts = tuple(sorted({fact.host for fact in poor}))
        figure = f"{least} per rank for {demand.workers} data loader worker(s) and the rank itself"
        return Verdict("CPUs", "warn", figure, remedy, hosts)
    return Verdict(
        "CPUs", "ok", f"{least} per rank" + (f" for {demand.workers} data loader worker(s)" if demand.recipe else "")
    )


def _folder(facts: Sequence[Facts], _: Demand) -> Verdict:
    for fact in facts:
        if fact.folder_fault:
            hosts = tuple(sorted({fact.host for fact in facts if fact.folder_fault}))
            remedy = "choose a folder that every node can write to"
            return Verdict("shared folder", "fail", fact.folder_fault, remedy, hosts)
    blind = tuple(sorted({fact.host for fact in facts if not fact.sees_folder}))
    if blind:
        remedy = "use a shared file system (not /tmp or a local disk) for the run folder"
        return Verdict("shared folder", "fail", "files written by rank 0 do not appear on other nodes", remedy, blind)
    return Verdict("shared folder", "ok", "all nodes see each other's files")


def _write(facts: Sequence[Facts], _: Demand) -> Verdict:
    writers = [fact for fact in facts if fact.write > 0]
    if not writers:
        return Verdict("storage", "fail", "nothing could be written", "choose a folder that every node can write to")
    slowest, opening = min(fact.write for fact in writers), max(fact.open for fact in facts)
    figure = f"{_speed(slowest)} written per node, {1000 * opening:.1f} ms to open a file"
    if slowest < WRITE_LIMIT or opening > OPEN_LIMIT:
        hosts = tuple(sorted({fact.host for fact in writers if fact.write < WRITE_LIMIT or fact.open > OPEN_LIMIT}))
        remedy = "use a parallel file system: this one would delay checkpoints and logs"
        return Verdict("storage", "warn", figure, remedy, hosts)
    return Verdict("storage", "ok", figure)


def _space(facts: Sequence[Facts], demand: Demand) -> Verdict:
    free, inodes = min(fact.free_bytes for fact in facts), [fact.free_inodes for fact in facts if fact.free_inodes >= 0]
    wanted = demand.checkpoint_bytes * demand.checkpoints
    figure = f"{free / 1e9:.1f} GB free"
    if demand.recipe:
        figure += f", {wanted / 1e9:.1f} GB needed for {demand.checkpoints} checkpoints"
    if free < wanted:
        remedy = f"free {(wanted - free) / 1e9:.1f} GB, lower --checkpoint.keep-last, or name another --run-dir"
        return Verdict("space", "fail", figure, remedy)
    if inodes:
        wanted = demand.files + INODES
        figure += f"; {min(inodes):,} inodes free, {wanted:,} needed"
        if min(inodes) < wanted:
            remedy = f"remove {wanted - min(inodes)} files, or request more quota"
            return Verdict("space", "fail", figure, remedy)
    return Verdict("space", "ok", figure)


def _loader(facts: Sequence[Facts], demand: Demand) -> Verdict:
    if blind := tuple(sorted({fact.host for fact in facts if fact.loader_fault})):
        fault = next(fact.loader_fault for fact in facts if fact.loader_fault)
        return Verdict("loader", "fail", fault, "put the dataset under a path that every node sees", blind)
    measured = [fact for fact in facts if fact.loader > 0]
    figure = f"{min(fact.loader for fact in measured):,.0f} img/s per rank" if measured else "speed not measured"
    if whole := tuple(sorted({fact.host for fact in facts if not fact.region_decoder})):
        figure += "; JPEGs are decoded completely: an extension is missing"
        return Verdict("loader", "warn", figure, jpeg.HOW_TO_BUILD, whole)
    if not measured:
        return Verdict("loader", "ok", "not measured: name RECIPE and --data")
    slowest = min(fact.loader for fact in measured)
    if demand.flops_per_image:
        wanted = min(fact.gemm for fact in facts) * demand.efficiency / demand.flops_per_image
        figure += f", about {wanted:,.0f} needed by {demand.recipe}"
        if slowest < wanted:
            hosts = tuple(sorted({fact.host for fact in measured if fact.loader < wanted}))
            remedy = (
                f"raise --cpus-per-task and --data.workers about {wanted / slowest:.1f} times, or store smaller images"
            )
            return Verdict("loader", "warn", figure, remedy, hosts)
    return Verdict("loader", "ok", figure)


def _by_host(facts: Sequence[Facts]) -> dict[str, list[Facts]]:
    hosts: dict[str, list[Facts]] = defaultdict(list)
    for fact in facts:
        hosts[fact.host].append(fact)
    return dict(hosts)


def _odd_hosts(facts: Sequence[Facts], value: Callable[[Facts], str]) -> tuple[str, ...]:
    """Hosts whose value differs from the most common one (rank 0's in a tie); empty if all agree."""
    values = [value(fact) for fact in facts]
    usual = max(values, key=values.count)
    return tuple(sorted({fact.host for fact, own in zip(facts, values, strict=True) if own != usual}))


def _spread(facts: Sequence[Facts], median: float) -> str:
    return f"{1 - min(fact.gemm for fact in facts) / median:.0%}" if median else "0%"


def _speed(rate: float) -> str:
    return f"{rate / 1e9:.1f} GB/s" if rate >= 1e9 else f"{rate / 1e6:.0f} MB/s"
