"""python -m jobs.launch [--ranks N] COMMAND ...: start a command's processes on this machine, one per GPU."""

import os
import signal
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from pipeline.core import arguments, children, cli
from pipeline.core.errors import UserError
from pipeline.distributed.ranks import variables_of

COMMANDS = ("pretrain", "finetune", "evaluate", "suite", "predict", "doctor")
DESCRIPTION = f"""Start COMMAND on several GPUs (or as several CPU processes) of this machine, one process per GPU.

COMMAND is one of {", ".join(COMMANDS)}; the words after it are its own. An error
that all processes have is printed once, and the exit code is the command's. Ctrl-C reaches each process once: training
saves before it ends, however long that takes. On several nodes use Slurm (vit submit). torchrun and accelerate launch
work too. Examples:

  python -m jobs.launch --ranks 8 pretrain b16 --run-dir runs/b16 --data.train shards/in21k
  python -m jobs.launch evaluate runs/b16-ft --data shards/in1k
  python -m jobs.launch --ranks 2 predict B_16.npz photos/ --csv photos.csv"""


@dataclass(frozen=True)
class LaunchConfig:
    command: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="COMMAND ...")]
    """Command to start, and its own words."""
    ranks: int | None = None
    """Number of processes. Default: one for each GPU of this machine."""


def main() -> int:
    words = sys.argv[1:]
    of_options = {place + 1 for place, word in enumerate(words) if word == "--ranks"}
    at = next((n for n, word in enumerate(words) if word[:1] != "-" and n not in of_options), len(words))
    config = cli.parse(LaunchConfig, prog="python -m jobs.launch", description=DESCRIPTION, args=words[:at])
    if at == len(words) or words[at] not in COMMANDS:
        what = "is missing" if at == len(words) else f"{words[at]!r} is not one that runs on several GPUs"
        raise UserError(f"COMMAND {what}: name one of {', '.join(COMMANDS)} (see python -m jobs.launch --help)")
    ranks = 1 if {"-h", "--help"} & set(words[at:]) else number_of(config)
    command = [sys.executable, "-m", f"jobs.{words[at]}", *words[at + 1 :]]
    ended = children.run([command] * ranks, [os.environ | own for own in variables_of(ranks)])
    if ended.failed is not None and (code := ended.codes[ended.failed]) < 0 and -code not in children.PASSED_ON:
        hint = ", most likely because memory ran out" if -code == signal.SIGKILL else ""
        print(f"error: rank {ended.failed} was killed by {signal.Signals(-code).name}{hint}", file=sys.stderr)
    return ended.code


def number_of(config: LaunchConfig) -> int:
    """The number of processes to start. Raises UserError."""
    if config.ranks is not None:
        arguments.check_least(config, ranks=1)
        return config.ranks
    import torch  # takes seconds, and is not needed otherwise

    if not torch.cuda.is_available():
        raise UserError("--ranks is missing, and this machine has no GPU: give the number of processes to start")
    return torch.cuda.device_count()


if __name__ == "__main__":
    cli.run(main)
