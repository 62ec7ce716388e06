"""python -m jobs.doctor [RECIPE]: is this cluster fit to train? One table, a remedy for each fault, exit 0 or 1."""

import contextlib
import datetime
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.table import Table

from jobs.plan import DATA
from pipeline.config.recipes import FINETUNE, PRETRAIN
from pipeline.config.schema import RunConfig
from pipeline.core import cli, errors, terminal
from pipeline.core.errors import UserError
from pipeline.distributed import devices
from pipeline.distributed.ranks import ranks_from_environment
from pipeline.preflight.verdicts import Facts, Need, Verdict, judge

if TYPE_CHECKING:
    from pipeline.dataset.joined_split import JoinedSplit

DESCRIPTION = """Check what training needs, on all ranks: rendezvous, all-reduce, same code and packages, clocks,
GPUs and their speed, CPUs, the shared folder and its speed, free space, and the loader against what the recipe needs.

What follows "--" are fields of the recipe, as the training job gets them: then that job's own loader and space are
looked at. Job scripts run it so before a run's first attempt. It exits with 1 where something must be mended. Examples:

  python -m jobs.doctor
  python -m jobs.doctor l16 --folder work/runs --data work/shards/in21k -- --data.workers 12 --data.augment medium2
  srun --nodes=8 --ntasks-per-node=8 --gpus-per-node=8 python -m jobs.doctor l16   # after slurm/env.sh, in a job"""

RENDEZVOUS_LIMIT = datetime.timedelta(minutes=2)


@dataclass(frozen=True)
class DoctorConfig:
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")] = ""
    """Recipe to plan for; empty leaves out what depends on one."""
    stage: Literal["pretrain", "finetune"] = "pretrain"
    """Where RECIPE comes from."""
    folder: Path = Path("work")
    """Where runs go: must be seen by all nodes."""
    data: str = ""
    """Data set to measure the loader on, a folder or a URL: short for -- --data.train."""
    split: str = "train"
    """Its split: short for -- --data.train-split."""
    json: bool = False
    """Print JSON, a verdict a line, instead of the table."""


def main() -> int:
    config, plan = parse(sys.argv[1:])
    facts = measure(config, plan)
    if facts is None:  # not rank 0
        return errors.EXIT_DONE
    verdicts = judge(facts, needed(plan, len(facts)) if plan else Need())
    if config.json:
        for verdict in verdicts:
            print(json.dumps(asdict(verdict)))
    else:
        # A job's log is no terminal and has no width of its own
        console = terminal.console(width=None if os.isatty(1) else 150)
        console.print(table(verdicts))
    faults = [verdict.check for verdict in verdicts if verdict.state == "fail"]
    print(f"to be mended before training: {', '.join(faults)}" if faults else "fit to train", flush=True)
    return 1 if faults else errors.EXIT_DONE


def parse(arguments: list[str]) -> tuple[DoctorConfig, RunConfig | None]:
    """Our own options, and the run that is planned; None without a recipe."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    own, fields = arguments[:at], arguments[at + 1 :]
    config = cli.parse(DoctorConfig, prog="python -m jobs.doctor", description=DESCRIPTION, args=own)
    if not config.recipe:
        if fields or config.data:
            raise UserError("RECIPE is missing: --data and the fields after -- are those of a recipe, so name it first")
        return config, None
    recipes = PRETRAIN if config.stage == "pretrain" else FINETUNE
    if config.data:
        fields += ["--data.train", config.data, "--data.train-split", config.split]
    prog = f"python -m jobs.{config.stage}"
    return config, cli.parse_recipe(recipes, prog=prog, description="", args=[config.recipe, *fields])


def measure(config: DoctorConfig, plan: RunConfig | None) -> list[Facts] | None:
    """Every rank's facts, on rank 0; None elsewhere. Collective. Raises UserError where the ranks don't meet."""
    import torch  # after the command line is known to be good

    from pipeline.distributed import process_group
    from pipeline.imaging import jpeg
    from pipeline.preflight import measurements

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
            f"rank {ranks.rank} on {socket.gethostname()} did not meet the other {ranks.world_size - 1} rank(s) at "
            f"{place} ({str(error).splitlines()[0]}): see that all nodes reach that address, by GLOO_SOCKET_IFNAME or "
            "NCCL_SOCKET_IFNAME in slurm/env.sh, and that no firewall is between them"
        ) from error
    rendezvous = time.perf_counter() - began

    hosts: list[str] = [""] * ranks.world_size
    torch.distributed.all_gather_object(hosts, socket.gethostname())
    local_ranks = hosts.count(socket.gethostname())
    skew = measurements.clock_skew()
    exact, bus = measurements.all_reduce(device)
    seen, fault, write, opening = measurements.shared_folder(config.folder, ranks)
    free_bytes, free_inodes = measurements.free_space(config.folder)
    gemm = devices.gemm(device)
    torch.distributed.barrier()  # the loaders are measured while all of them load
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


def open_data(plan: RunConfig) -> "JoinedSplit | UserError":
    """The training data as this rank sees it, or why it doesn't: the other ranks wait for it in either case."""
    from pipeline.dataset.joined_split import chosen, make_cache, open_split

    try:
        cache = make_cache(plan.data.cache, plan.data.cache_gb)
        return open_split(plan.data.train, plan.data.train_split, choice=chosen(plan.data), cache=cache)
    except UserError as error:
        return error


def needed(plan: RunConfig, ranks: int) -> Need:
    """What a run on ``ranks`` ranks asks of a cluster."""
    from pipeline.dataset.joined_split import open_info
    from pipeline.model.flops import train_flops
    from pipeline.preflight import estimates

    _, classes = DATA[plan.stage]
    with contextlib.suppress(UserError):  # rank 0 doesn't see the data set: the loader's verdict says so
        classes = open_info(plan.data.train[0]).classes if plan.data.train else classes
    kept = plan.checkpoint.keep_last + plan.checkpoint.keep_best + 1
    return Need(
        recipe=f"{plan.stage} {plan.recipe}",
        workers=plan.data.workers,
        checkpoint_bytes=estimates.checkpoint_bytes(plan, classes),
        checkpoints=kept,
        files=kept * (ranks + 2) + ranks,  # a checkpoint: a folder, meta.json and a file a rank
        flops_per_image=train_flops(plan.model, classes),
    )


def table(verdicts: Sequence[Verdict]) -> Table:
    result = Table(title="Is this cluster fit to train?")
    for column in ("check", "", "found", "nodes", "remedy"):
        result.add_column(column, overflow="fold")
    for verdict in verdicts:
        colour = {"ok": "green", "warn": "yellow", "fail": "red"}[verdict.state]
        nodes = ", ".join(verdict.hosts)
        result.add_row(verdict.check, f"[{colour}]{verdict.state}[/]", verdict.figure, nodes, verdict.remedy)
    return result


if __name__ == "__main__":
    cli.run(main)
