"""python -m jobs.pretrain RECIPE --run-dir RUN --data.train DATASET [--any.field value ...]"""

from jobs import recipe_options
from pipeline.config.recipes import PRETRAIN
from pipeline.core import cli

DESCRIPTION = """Pretrain a Vision Transformer, as a single process or as one rank of many (vit launch, srun).

An unfinished run in the run folder is resumed. Examples:

  python -m jobs.pretrain tiny --run-dir runs/tiny --data.train shards/digits
  python -m jobs.launch --ranks 8 pretrain b16 --run-dir runs/b16 --data.train shards/in21k
  python -m jobs.pretrain --config runs/tiny/config.json --run-dir runs/tiny-2 --train.seed 1
  sbatch --nodes=4 slurm/pretrain_l16.sh --optim.lr 3e-4"""


def main() -> int:
    config, given = recipe_options.parse(PRETRAIN, prog="python -m jobs.pretrain", description=DESCRIPTION)
    from pipeline.train.loop import train  # torch and DeepSpeed take seconds; --help shouldn't

    return train(config, given)


if __name__ == "__main__":
    cli.run(main)
