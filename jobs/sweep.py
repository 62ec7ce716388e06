"""python -m jobs.sweep RECIPE --run-dir SWEEP --parent ... --data.train ...: fine-tune at several rates, and pick."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jobs import recipe_options
from pipeline.compare.select import publish, select
from pipeline.config.given import settle
from pipeline.config.recipes import FINETUNE, FINETUNE_RATES
from pipeline.config.schema import RunConfig
from pipeline.config.serialize import flatten, to_dict
from pipeline.core import arguments, children, cli, errors
from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.dataset.joined_split import open_info
from pipeline.runs.folder import CONFIG, read_status

DESCRIPTION = """Fine-tune at several learning rates, one after another on this machine, and pick the best by the
held-out split of the training dataset (data_prep.shard --val-fraction), as the paper does.

Takes the options of jobs.finetune. The runs are SWEEP-lr0.003 and so on, SWEEP/best is a link to the best one, and
SWEEP/sweep.csv is the table; MLflow groups the runs under one run for the sweep. Run again, it continues where it
stopped. A rate that fails (diverges) is skipped. On Slurm, slurm/submit_all.sh does the same as a job array. Examples:

  python -m jobs.sweep tiny --run-dir runs/tiny-ft --parent runs/tiny --data.train shards/digits
  python -m jobs.sweep b16 --ranks 8 --run-dir runs/b16-ft --parent B_16.npz --data.train shards/in1k
  python -m jobs.sweep b32 --rates 0.001 0.003 --run-dir runs/b32-ft --parent runs/b32 --data.train shards/photos"""


@dataclass(frozen=True)
class SweepConfig:
    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    rates: tuple[float, ...] = FINETUNE_RATES
    """Peak learning rates to try."""
    ranks: int = 1
    """Number of ranks on this machine, one per GPU (started by jobs.launch)."""
    by: str = "eval/top1"
    """Metric of the held-out split to compare: the highest value is best, for a loss the lowest."""


def main() -> int:
    config = parse()
    folder = config.run.run_dir
    runs = [folder.with_name(f"{folder.name}-lr{rate:g}") for rate in config.rates]
    check_parents(config, runs)
    for rate, run in zip(config.rates, runs, strict=True):
        words = command(config, rate, run)
        print("+ " + " ".join(words), flush=True)
        code = children.run([words]).code
        status = read_status(run)
        if code in (errors.EXIT_INTERRUPTED, errors.EXIT_REQUEUE):
            print(f"stopped; run the same command to resume with {run}", flush=True)
            return code
        if code == errors.EXIT_USER:
            raise UserError(f"--optim.lr {rate:g}: the run was refused, see above")
        if status is None or status.state == "running" or (code and status.state != "failed"):
            print(f"error: {run} failed with exit code {code}: see above; the same command resumes", file=sys.stderr)
            return 1
    selection = select(runs, config.by)
    print(selection, flush=True)
    publish(selection, link=folder / "best", sweep=folder)
    return errors.EXIT_DONE


def parse() -> SweepConfig:
    config, given = recipe_options.parse_into(
        SweepConfig, FINETUNE, prog="python -m jobs.sweep", description=DESCRIPTION
    )
    if "optim.lr" in given:
        raise UserError(f"--optim.lr {config.run.optim.lr:g} has no effect in a sweep: give the rates by --rates")
    config = dataclasses.replace(config, run=settle(config.run, given))
    check(config)
    return config


def check(config: SweepConfig) -> None:
    """Refuse options that no single run would refuse, and those that each run would. Raises UserError."""
    if config.run.run_dir == Path():
        raise UserError("--run-dir is missing or the current folder: name the folder of a sweep, a new one or begun")
    if not config.run.data.train:
        raise UserError("--data.train is missing: name the training dataset's folder, made by data_prep.shard")
    for data in config.run.data.train:
        if "://" not in data and not data.startswith("pipe:") and not Path(data).is_dir():
            raise UserError(f"--data.train {data!r} does not exist: name a folder made by data_prep.shard, or a URL")
    if config.run.sweep:
        raise UserError(
            f"--sweep {config.run.sweep!r} is set by jobs.sweep (--run-dir is the sweep's folder): leave it out"
        )
    arguments.check_least(config, ranks=1)
    if not config.rates or min(config.rates) <= 0 or len(set(config.rates)) < len(config.rates):
        rates = " ".join(f"{rate:g}" for rate in config.rates)
        raise UserError(f"--rates {rates or '(none)'} must be different numbers above 0, such as --rates 0.003 0.01")
    check_score(config)


def check_score(config: SweepConfig) -> None:
    """Raises UserError, before any training, if no evaluation will give the score that decides."""
    data = config.run.data
    names = [f"eval/{name}" for name in ("top1", "top5", "loss")]
    names += [name.replace("eval/", "eval_average/") for name in names] if config.run.train.average else []
    if config.by not in names:
        averages = "" if config.run.train.average else " (metrics of the averaged weights need --train.average)"
        raise UserError(
            f"--by {config.by!r} is not a metric of the held-out split: name one of {', '.join(names)}{averages}"
        )
    source = data.eval or data.train[0]
    samples = open_info(source).samples
    if data.eval_split not in samples:
        raise UserError(
            f"--data.eval-split {data.eval_split!r} is not in dataset {source!r} (it has {', '.join(samples)}), so no "
            "score tells which rate is best: shard it with --val-fraction, or name another split or --data.eval"
        )


def check_parents(config: SweepConfig, runs: Sequence[Path]) -> None:
    """Raises UserError if a run of this sweep began from another parent: its results would pass for new ones."""
    for run in runs:
        if not (run / CONFIG).is_file():
            continue
        old = read_json(run / CONFIG).get("parent", "")
        if Path(old).resolve() != Path(config.run.parent).resolve():
            raise UserError(
                f"--parent {config.run.parent!r} is not the parent of {str(run)!r} of this sweep, {old!r}: give that "
                "again (or make a link at its old path, if it was moved), or another --run-dir"
            )


def command(config: SweepConfig, rate: float, run: Path) -> list[str]:
    """The arguments of one run: the recipe's name, and each setting that differs from the recipe."""
    optim = dataclasses.replace(config.run.optim, lr=rate)
    name = f"{config.run.name}-lr{rate:g}" if config.run.name else ""
    own = dataclasses.replace(config.run, run_dir=run, name=name, sweep=str(config.run.run_dir), optim=optim)
    recipe = flatten(to_dict(FINETUNE[own.recipe].config))
    start = ["jobs.finetune"] if config.ranks == 1 else ["jobs.launch", "--ranks", str(config.ranks), "finetune"]
    words = [sys.executable, "-m", *start, own.recipe]
    for field, value in flatten(to_dict(own)).items():
        if value != recipe[field]:
            words += [f"--{field}", *map(str, value if isinstance(value, list) else [value])]
    return words


if __name__ == "__main__":
    cli.run(main)
