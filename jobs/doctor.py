"""python -m jobs.doctor [RECIPE]: is this cluster fit to train? One table, a remedy for each fault, exit 0 or 1."""

import datetime
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from pipeline import cli
from pipeline.cli import UserError
from pipeline.config import RunConfig
from pipeline.health import Facts, Need, Verdict, judge
from pipeline.recipes import FINETUNE, PRETRAIN

DESCRIPTION = """Check what training needs, on all ranks: rendezvous, all-reduce, same code and packages, clocks,
GPUs and their speed, CPUs, the shared folder and its speed, free space, and the loader against what the recipe needs.

Job scripts run it before a run's first attempt. It exits with 1 where something must be mended. Examples:

  python -m jobs.doctor
  python -m jobs.doctor l16 --folder work/runs --data work/shards/in21k
  srun --nodes=8 --ntasks-per-node=8 --gpus-per-node=8 python -m jobs.doctor l16   # after slurm/env.sh, in a job"""

RENDEZVOUS_LIMIT = datetime.timedelta(minutes=2)
LOADER_SECONDS = 4.0
CLASSES = {"pretrain": 21_841, "finetune": 1000}  # of ImageNet-21K and ImageNet-2012, where no data set is named


@dataclass(frozen=True)
class DoctorConfig:
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")] = ""
    """Recipe to plan for; empty leaves out what depends on one."""
    stage: Literal["pretrain", "finetune"] = "pretrain"
    """Where RECIPE comes from."""
    folder: Path = Path("work")
    """Where runs go: must be seen by all nodes."""
    data: str = ""
    """Data set to measure the loader on: a folder or a URL."""
    split: str = "train"
    json: bool = False
    """Print JSON, a verdict a line, instead of the table."""


def main() -> int:
    config = cli.parse(DoctorConfig, prog="python -m jobs.doctor", description=DESCRIPTION)
    recipes = PRETRAIN if config.stage == "pretrain" else FINETUNE
    if config.recipe and config.recipe not in recipes:
        raise UserError(f"RECIPE {config.recipe!r} is no {config.stage} recipe: there are {', '.join(recipes)}")
    recipe = recipes[config.recipe]() if config.recipe else None
    facts = measure(config, recipe)
    if facts is None:  # not rank 0
        return cli.EXIT_DONE
    verdicts = judge(facts, needed(config, recipe) if recipe else Need())
    if config.json:
        for verdict in verdicts:
            print(json.dumps(asdict(verdict)))
    else:
        # A job's log is no terminal and has no width of its own
        console = Console() if os.isatty(1) else Console(width=150)
        console.print(table(verdicts))
    faults = [verdict.check for verdict in verdicts if verdict.state == "fail"]
    print(f"to be mended before training: {', '.join(faults)}" if faults else "fit to train", flush=True)
    return 1 if faults else cli.EXIT_DONE


def measure(config: DoctorConfig, recipe: RunConfig | None) -> list[Facts] | None:
    """Every rank's facts, on rank 0; None elsewhere. Collective. Raises UserError where the ranks don't meet."""
    import torch  # noqa: PLC0415  (after the command line is known to be good)

    from pipeline import distributed, probe  # noqa: PLC0415

    ranks = distributed.ranks_from_environment(os.environ)
    began = time.perf_counter()
    try:
        device = distributed.start(ranks, RENDEZVOUS_LIMIT)
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
    skew = probe.clock_skew()
    exact, bus = probe.all_reduce(device)
    seen, fault, write, opening = probe.shared_folder(config.folder, ranks)
    free_bytes, free_inodes = probe.free_space(config.folder)
    gemm = probe.gemm(device)
    facts = Facts(
        rank=ranks.rank,
        host=socket.gethostname(),
        device=device.type,
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        local_ranks=local_ranks,
        cpus=probe.cpus_of_this_rank(local_ranks),
        code=probe.code_digest(),
        packages=probe.package_versions(),
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
        loader=loader_speed(config, recipe, ranks.rank, ranks.world_size) if recipe and config.data else 0.0,
    )
    everyone: list[Any] = [None] * ranks.world_size
    torch.distributed.all_gather_object(everyone, asdict(facts))
    distributed.finish()
    return [Facts(**fact) for fact in everyone] if ranks.rank == 0 else None


def loader_speed(config: DoctorConfig, recipe: RunConfig, rank: int, world_size: int) -> float:
    """Images/s of this rank's loader while all ranks load: reading, decoding and resizing, without augmentation."""
    import torch.distributed  # noqa: PLC0415

    from pipeline.data import eval_batches  # noqa: PLC0415
    from pipeline.split import open_split  # noqa: PLC0415

    split = open_split(config.data, config.split)
    batch = max(1, min(32, len(split) // world_size // max(recipe.data.workers, 1) // 2))
    torch.distributed.barrier()
    batches = eval_batches(
        split,
        image_size=recipe.model.image_size,
        batch=batch,
        rank=rank,
        world_size=world_size,
        workers=recipe.data.workers,
        resize=recipe.data.eval_resize,
    )
    next(batches)  # the workers are up
    images, began = 0, time.perf_counter()
    for loaded in batches:
        images += len(loaded.labels_B)
        if time.perf_counter() - began > LOADER_SECONDS:
            break
    return images / (time.perf_counter() - began)


def needed(config: DoctorConfig, recipe: RunConfig) -> Need:
    """What ``recipe`` asks of a cluster."""
    import torch  # noqa: PLC0415

    from pipeline.model import ARCHITECTURES, VisionTransformer, grid_size  # noqa: PLC0415
    from pipeline.split import open_info  # noqa: PLC0415

    classes = open_info(config.data).classes if config.data else CLASSES[config.stage]
    with torch.device("meta"):
        model = VisionTransformer(recipe.model, classes, loss=recipe.train.loss)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sizes, tokens = ARCHITECTURES[recipe.model.variant], grid_size(recipe.model) ** 2 + 1
    # A multiply-add is 2 FLOPs and the backward pass costs twice the forward: 6 a weight and token; attention's two
    # products of L x L x D add 12 L^2 D a block (arXiv 2204.02311, appendix B)
    flops = 6 * parameters * tokens + 12 * sizes.depth * tokens**2 * sizes.width
    moments = 2 if recipe.optim.kind == "adamw" else 1
    return Need(
        recipe=f"{config.stage} {config.recipe}",
        workers=recipe.data.workers,
        checkpoint_bytes=4 * parameters * (1 + moments),
        checkpoints=recipe.checkpoint.keep_last + 1,
        flops_per_image=float(flops),
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
