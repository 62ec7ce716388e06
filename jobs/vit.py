"""vit COMMAND ...: every command of the pipeline under one name, ``vit shard`` for ``python -m data_prep.shard``."""

import runpy
import sys

from pipeline.core import cli, errors
from pipeline.core.errors import UserError

COMMANDS = {  # in the order in which a campaign meets them
    "shard": ("data_prep.shard", "raw images -> a shuffled, checked data set of WebDataset tars"),
    "index": ("data_prep.index", "make WebDataset tars that somebody else wrote a data set, where they lie"),
    "verify": ("data_prep.verify", "is the data set on this disk the one that was made?"),
    "report": ("data_prep.report", "one HTML page that shows what a data set holds"),
    "overlap": ("data_prep.overlap", "which images of one data set are also in another?"),
    "doctor": ("jobs.doctor", "is this machine or cluster fit to train?"),
    "plan": ("jobs.plan", "what a run takes, without a GPU"),
    "pretrain": ("jobs.pretrain", "pretrain from a recipe"),
    "finetune": ("jobs.finetune", "fine-tune from a run, published weights or scratch"),
    "sweep": ("jobs.sweep", "fine-tune by several learning rates, and pick the best by the held-out split"),
    "status": ("jobs.status", "where every run stands"),
    "evaluate": ("jobs.evaluate", "exact accuracy on any number of processes"),
    "suite": ("jobs.suite", "ReaL, V2, A, R, Sketch, ObjectNet and C in one table"),
    "compare": ("jobs.compare", "runs side by side: table, curves, HTML page"),
    "pick": ("jobs.pick", "the best of several runs by the held-out split"),
    "audit": ("jobs.audit", "prove which samples a run has trained on"),
    "sync": ("jobs.sync", "send to MLflow what a run folder holds and MLflow lacks"),
    "export": ("jobs.export", "a trained model in the form that others load"),
    "predict": ("jobs.predict", "what a model sees in pictures"),
    "demo": ("jobs.demo", "the whole path on a laptop"),
}

DESCRIPTION = """From raw ImageNet tars to fine-tuned Vision Transformers. Examples:

  vit shard photos/ shards/photos --val-fraction 0.1
  vit finetune b16 --parent B_16.npz --run-dir runs/photos --data.train shards/photos
  vit predict runs/photos holiday/ --csv holiday.csv"""


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(f"usage: vit COMMAND ...\n\n{DESCRIPTION}\n\nCommands:")
        for command, (module, summary) in COMMANDS.items():
            print(f"  {command:10}{summary} ({module})")
        print("\nvit COMMAND --help explains each.")
        return errors.EXIT_DONE
    if name not in COMMANDS:
        raise UserError(f"COMMAND {name!r} is unknown: there are {', '.join(COMMANDS)}")
    module = COMMANDS[name][0]
    sys.argv = [f"python -m {module}", *sys.argv[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return errors.EXIT_DONE


def command() -> None:
    """The entry point of the installed script."""
    cli.run(main)


if __name__ == "__main__":
    command()
