"""vit COMMAND ...: every command of the pipeline under one name, ``vit shard`` for ``python -m data_prep.shard``."""

import runpy
import sys

from pipeline.core import arguments, cli, completion, errors
from pipeline.core.errors import UserError
from pipeline.core.version import VERSION

COMMANDS = {  # in the order in which a campaign uses them
    "shard": ("data_prep.shard", "raw images -> shuffled, checked WebDataset shards with an index"),
    "index": ("data_prep.index", "index existing WebDataset tars where they are"),
    "verify": ("data_prep.verify", "check a finished dataset against its hashes"),
    "report": ("data_prep.report", "describe a dataset in one HTML page"),
    "overlap": ("data_prep.overlap", "find images of one dataset that are also in another"),
    "fetch": ("jobs.fetch", "download published weights by name"),
    "doctor": ("jobs.doctor", "check whether this machine or cluster is ready to train"),
    "plan": ("jobs.plan", "estimate a run's steps, memory and hours, without a GPU"),
    "pretrain": ("jobs.pretrain", "pretrain from a recipe"),
    "finetune": ("jobs.finetune", "fine-tune from a run, published weights or scratch"),
    "launch": ("jobs.launch", "start a command on several GPUs of this machine"),
    "sweep": ("jobs.sweep", "fine-tune at several learning rates and pick the best"),
    "submit": ("jobs.submit", "submit a Slurm job with the site's sizes, checked before it queues"),
    "status": ("jobs.status", "show the state of every run"),
    "logs": ("jobs.logs", "print the log of a run's Slurm job"),
    "cancel": ("jobs.cancel", "cancel the Slurm jobs of runs"),
    "evaluate": ("jobs.evaluate", "exact accuracy of a model, on any number of processes"),
    "suite": ("jobs.suite", "evaluate on ReaL, V2, A, R, Sketch, ObjectNet and C, in one table"),
    "compare": ("jobs.compare", "compare runs: table, curves, HTML page"),
    "pick": ("jobs.pick", "pick the best of several runs by the held-out split"),
    "audit": ("jobs.audit", "prove which samples a run was trained on"),
    "sync": ("jobs.sync", "send MLflow what is in a run folder but not in MLflow"),
    "export": ("jobs.export", "export a trained model to timm, transformers, ONNX and other formats"),
    "predict": ("jobs.predict", "classify images"),
    "demo": ("jobs.demo", "run the whole pipeline on a laptop, in minutes"),
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
            print(f"  {command:10}{summary}{'' if module.startswith('jobs.') else ' *'}")
        print("\nEach is also python -m jobs.COMMAND, those marked * python -m data_prep.COMMAND.")
        print("vit COMMAND --help explains each. To complete commands and options with the Tab key:")
        print("""
  vit completion bash > ~/.local/share/bash-completion/completions/vit
  vit completion zsh > ~/.zfunc/_vit    # a folder of your fpath""")
        return errors.EXIT_DONE
    if name == "--version":
        print(f"vit-pipeline {VERSION}")
        return errors.EXIT_DONE
    if name == "completion":
        modules = {command: module for command, (module, _) in COMMANDS.items()}
        print(completion.script(modules, sys.argv[2] if len(sys.argv) > 2 else ""))
        return errors.EXIT_DONE
    if name not in COMMANDS:
        close = arguments.nearest(name, COMMANDS)
        hint = f"did you mean {close}? There are" if close else "there are"
        raise UserError(f"COMMAND {name!r} is unknown: {hint} {', '.join(COMMANDS)}")
    module = COMMANDS[name][0]
    sys.argv = [f"python -m {module}", *sys.argv[2:]]
    with cli.calling({f"python -m {module}": f"vit {command}" for command, (module, _) in COMMANDS.items()}):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return errors.EXIT_DONE


def command() -> None:
    """The entry point of the installed script."""
    cli.run(main)


if __name__ == "__main__":
    command()
