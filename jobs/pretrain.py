"""python -m jobs.pretrain RECIPE --run-dir RUN --data.train DATASET [--any.field value ...]"""

from pipeline.config.recipes import PRETRAIN
from pipeline.core import cli, errors

DESCRIPTION = """Pretrain a Vision Transformer, alone or as one rank of many (srun, torchrun, accelerate launch).

A run folder that holds an unfinished run is resumed. Examples:

  python -m jobs.pretrain tiny --run-dir runs/tiny --data.train shards/digits
  torchrun --nproc-per-node 8 -m jobs.pretrain b16 --run-dir runs/b16 --data.train shards/in21k
  sbatch --nodes=4 slurm/pretrain_l16.sh --optim.lr 3e-4"""


def main() -> int:
    config = cli.parse_recipe(PRETRAIN, prog="python -m jobs.pretrain", description=DESCRIPTION)
    if config.stage != "pretrain":
        raise errors.UserError(f"--stage {config.stage} is another command's: use python -m jobs.{config.stage}")
    from pipeline.train.loop import train  # torch and DeepSpeed take seconds; --help shouldn't

    return train(config)


if __name__ == "__main__":
    cli.run(main)
