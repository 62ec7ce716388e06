"""python -m jobs.finetune RECIPE --parent RUN|FILE.npz|FOLDER|scratch --run-dir RUN --data.train DATASET ..."""

from jobs import recipe_options
from pipeline.config.recipes import FINETUNE
from pipeline.core import cli

DESCRIPTION = """Fine-tune a Vision Transformer from a pretraining run or published weights, at a higher resolution.

--parent is a run folder, an official .npz file, a timm or transformers folder, or scratch (random weights). Examples:

  python -m jobs.finetune tiny --parent runs/tiny --run-dir runs/tiny-ft --data.train shards/digits
  python -m jobs.launch --ranks 8 finetune b16 --parent runs/b16 --run-dir runs/b16-ft --data.train shards/in1k
  sbatch slurm/finetune_l16.sh --parent L_16.npz --optim.lr 0.01"""


def main() -> int:
    config, given = recipe_options.parse(FINETUNE, prog="python -m jobs.finetune", description=DESCRIPTION)
    from pipeline.train.loop import train  # torch and DeepSpeed take seconds; --help shouldn't

    return train(config, given)


if __name__ == "__main__":
    cli.run(main)
