"""python -m jobs.submit KIND ...: submit a Slurm job with the site's sizes, checked before it is queued."""

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs import recipe_options
from pipeline.config.recipes import FINETUNE, PRETRAIN
from pipeline.config.schema import RunConfig
from pipeline.core import cli, errors
from pipeline.core.errors import UserError
from pipeline.runs import folder as run_folder
from pipeline.runs.slurm_queue import jobs_of, read_queue

DESCRIPTION = """Submit a job to Slurm. Partition, GPUs per node, memory, time and nodes come from slurm/env.sh.

KIND is pretrain RECIPE, finetune RECIPE, evaluate MODEL, shard INPUT OUTPUT, command COMMAND..., or campaign RECIPE
(all of them in order: slurm/submit_all.sh). Checked first: the dataset exists and is finished, no other job uses the
run folder (an unfinished run in it is resumed), the parent of a fine-tuning is finished, the number of ranks divides
the global batch, the recipe fits into the GPU's memory (GPU_MODEL in slurm/env.sh), vit shard knows the options.
Examples:

  python -m jobs.submit pretrain l16 --nodes 4 --optim.lr 3e-4
  python -m jobs.submit pretrain l16 --nodes 8 --spares 1
  python -m jobs.submit pretrain b16_deit3 --nodes 8 --dry-run
  python -m jobs.submit finetune l16 --array 0-3
  python -m jobs.submit evaluate work/runs/finetune-l16-lr0.01 --data work/shards/in1k-val
  python -m jobs.submit shard fall11_whole.tar work/shards/in21k --classes google21k --array 0-63
  python -m jobs.submit campaign l16 --raw fall11_whole.tar --in1k ILSVRC2012_img_train.tar

Options of sbatch, anywhere after KIND (for command: before its first word):
  --nodes, --gpus-per-node, --cpus-per-gpu, --mem, --time, --partition, --account, --qos, --reservation, --constraint
  --spares            extra nodes, beyond --nodes, that replace lost ones
  --job-name (also the run folder's name), --array, --dependency, --begin, --nodelist, --exclude, --output
  --mail-type, --mail-user, --hold, --test-only
  --sbatch "OPTIONS"  any others
Also:
  --dry-run           print the sbatch and srun lines; needs no Slurm
  --no-check          submit without the checks, such as when the datasets are not visible from here
Everything else is the job's own command line: fields of the recipe, options of the command."""

KINDS = ("pretrain", "finetune", "evaluate", "shard", "command", "campaign")
SCRIPTS = Path(__file__).resolve().parents[1] / "slurm"


@dataclass(frozen=True)
class Planned:
    """What slurm/submit.sh would submit."""

    sbatch: list[str]
    srun: list[str]

    def number(self, name: str) -> int:
        """The value of sbatch's option ``name``."""
        return int(option(self.sbatch, name))

    def command(self) -> list[str]:
        """The arguments of our module that srun starts, with the module first; empty for another command."""
        modules = ("jobs.", "data_prep.")
        return next((self.srun[place:] for place, word in enumerate(self.srun) if word.startswith(modules)), [])


def main() -> int:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help") or (arguments[0] != "command" and "--help" in arguments):
        print(cli.as_called(f"usage: python -m jobs.submit KIND ... [--dry-run]\n\n{DESCRIPTION}"))
        return errors.EXIT_DONE
    cli.without_local_rank(arguments[:1])  # answers --version
    kind = arguments[0]
    if kind not in KINDS:
        raise UserError(f"KIND {kind!r} is unknown: there are {', '.join(KINDS)} (see python -m jobs.submit --help)")
    if not (SCRIPTS / "submit.sh").is_file():
        raise UserError(f"{SCRIPTS} has no job scripts: install from the repository with pip install -e .")
    own = own_options(arguments) if kind == "command" else arguments[1:]
    checked = "--no-check" not in own
    if kind == "command" and not checked:
        raise UserError("--no-check has no effect with command, which is not checked: leave it out")
    arguments = [kind, *(word for word in own if word != "--no-check"), *arguments[1 + len(own) :]]
    script = [str(SCRIPTS / "submit.sh"), *arguments]
    if kind == "campaign":
        script = [str(SCRIPTS / "submit_all.sh"), *arguments[1:]]
        if checked:
            check_campaign(output([*script, "--dry-run"]).splitlines())
        return subprocess.run(script, check=False).returncode
    dry = "--dry-run" in own
    text = output([*script[:2], "--dry-run", *script[2:]] if kind == "command" else [*script, "--dry-run"])
    lines = text.splitlines()
    planned = Planned(shlex.split(lines[0]), shlex.split(lines[-1]))
    waits = any(word.startswith("--dependency") for word in planned.sbatch)
    if dry:
        print(text, end="")
    if checked:
        try:
            check(kind, planned)
        except UserError as error:
            if not dry and not waits:
                raise
            print(f"warning: {error}", file=sys.stderr)  # the job that it waits for may fix this
    if dry:
        return errors.EXIT_DONE
    code = subprocess.run(script, check=False).returncode
    if code == 0 and kind in ("pretrain", "finetune"):
        run = shlex.quote(option(planned.command(), "--run-dir"))
        print(f"see: vit status {run} · vit logs {run} --follow · vit cancel {run}")
    return code


def own_options(arguments: Sequence[str]) -> list[str]:
    """For ``command``: the words before the command's first."""
    for place, word in enumerate(arguments[1:], 1):
        if word.startswith("-") or ("=" not in arguments[place - 1] and arguments[place - 1].startswith("--")):
            continue
        return list(arguments[1:place])
    return list(arguments[1:])


def output(command: Sequence[str]) -> str:
    """What a command prints. Raises UserError with its last line when it fails."""
    done = subprocess.run(command, encoding="utf-8", errors="replace", capture_output=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise UserError(said.partition("error: ")[2] or said)  # a job script's begins with the time and the job
    sys.stderr.write(done.stderr)
    return done.stdout


def option(arguments: Sequence[str], name: str) -> str:
    """The last value of ``--name VALUE`` or ``--name=VALUE``; empty without one."""
    value = ""
    for place, word in enumerate(arguments):
        key, _, given = word.partition("=")
        if key.replace("_", "-") == name:
            value = given if "=" in word else arguments[place + 1] if place + 1 < len(arguments) else ""
    return value


def check(kind: str, planned: Planned) -> None:
    """Raises UserError for what the job would fail on, as far as this machine can know."""
    if kind in ("pretrain", "finetune"):
        check_training(kind, planned)
    elif kind == "evaluate":
        check_evaluation(planned.command()[1:])
    elif kind == "shard":
        check_sharding(planned.command()[1:])


def check_training(kind: str, planned: Planned) -> None:
    with options_of_sbatch():
        config = read_options(kind, planned.command()[1:])
    run = config.run_dir
    if (status := run_folder.read_status(run)) and status.state == "finished":
        raise UserError(f"--run-dir {str(run)!r} is finished: give another --job-name or --run-dir for another run")
    begun = run_folder.RunFolder(run)
    begun.check_config(begun.as_begun(config))
    queue = read_queue()
    for job, queued in (jobs_of(run.name, queue) | jobs_of(option(planned.sbatch, "--job-name"), queue)).items():
        if f"--dependency=afterany:{job}" not in planned.sbatch:
            raise UserError(
                f"--run-dir {str(run)!r} has job {job} in the queue ({queued.state.lower()}): wait for it, vit cancel "
                f"{shlex.quote(str(run))}, or give another --job-name"
            )
    if kind == "finetune" and not begun.checkpoints:  # else the run reads no other weights than its own
        check_parent(config.parent)
    check_fit(config, train_nodes(planned.sbatch), planned.number("--ntasks-per-node"), site_field("GPU_MODEL"))


def check_campaign(lines: Sequence[str]) -> None:
    """Check what the pretraining and the fine-tuning among a campaign's sbatch lines need; the datasets come later."""
    for words in map(shlex.split, lines):
        for kind in ("pretrain", "finetune"):
            if (script := str(SCRIPTS / f"{kind}.sh")) in words:
                place = words.index(script)
                nodes, ranks = train_nodes(words[:place]), int(option(words[:place], "--ntasks-per-node"))
                check_fit(read_options(kind, words[place + 1 :]), nodes, ranks, site_field("GPU_MODEL"))


def train_nodes(sbatch: Sequence[str]) -> int:
    """How many nodes a job trains on: those that it asks for without its spares (slurm/sbatch_options.sh)."""
    exported = dict(word.partition("=")[::2] for word in option(sbatch, "--export").split(","))
    return int(option(sbatch, "--nodes")) - int(exported.get("SPARE_NODES", 0))


def read_options(kind: str, words: Sequence[str]) -> RunConfig:
    """The run's configuration, from RECIPE and the fields after it."""
    recipes = PRETRAIN if kind == "pretrain" else FINETUNE
    return recipe_options.parse(recipes, prog=f"python -m jobs.{kind}", description="", args=words)[0]


@contextlib.contextmanager
def options_of_sbatch() -> Iterator[None]:
    """Add to the error about an unknown option how to give it to sbatch instead."""
    try:
        yield
    except UserError as error:
        if not str(error).startswith("Unrecognized") or "Perhaps you meant" in str(error):
            raise
        raise UserError(f"{error}; an option of sbatch that is not in vit submit --help: --sbatch 'OPTION'") from None


def check_fit(config: RunConfig, nodes: int, ranks: int, model: str) -> None:
    """Raises UserError for a dataset that isn't ready, a batch that doesn't divide, too little memory on the GPU.

    ``ranks``: per node. ``model``: the GPU's, as jobs.plan knows it; empty: its memory is not checked.
    """
    from pipeline.preflight.plan import make_plan  # torch takes seconds; --help shouldn't

    plan = make_plan(config, nodes=nodes, gpus_per_node=ranks, device=model or "H100", mfu=0.4)
    if not model:
        print("note: the GPU's memory is not checked: set GPU_MODEL in slurm/env.sh", file=sys.stderr)
    elif plan["remedy"]:
        total, size = plan["memory_total_bytes"] / 1e9, plan["device_bytes"] / 1e9
        raise UserError(
            f"{config.recipe} takes {total:.0f} GB per GPU and GPU_MODEL {model} has {size:.0f} GB: "
            f"give {plan['remedy']}"
        )


def check_parent(parent: str) -> None:
    """Raises UserError if ``--parent`` doesn't exist or is an unfinished run. The Hub isn't asked."""
    from pipeline.interop import hub_models

    if parent in ("", "scratch") or hub_models.parse(parent, "--parent") or "://" in parent:
        return
    path = Path(parent)
    if not path.exists():
        raise UserError(f"--parent {parent!r} does not exist: pretrain it first, or wait for its job with --dependency")
    if run_folder.is_run(path) and not run_folder.complete(path):
        raise UserError(f"--parent {parent!r} has no complete checkpoint yet: wait for its job with --dependency")
    if run_folder.is_run(path) and (status := run_folder.read_status(path)) and status.state != "finished":
        raise UserError(
            f"--parent {parent!r} is not finished (step {status.step} of {status.steps}): wait for its job with "
            "--dependency, or name one of its checkpoints"
        )


def check_evaluation(arguments: Sequence[str]) -> None:
    from pipeline.dataset.joined_split import open_split
    from pipeline.interop import hub_models

    if not arguments or arguments[0].startswith("-"):
        raise UserError("MODEL is missing: name it first, as in vit submit evaluate MODEL --data DATASET")
    model, data = arguments[0], option(arguments, "--data")
    if hub_models.parse(model, "MODEL") is None and not Path(model).exists():
        raise UserError(f"MODEL {model!r} does not exist: name a run, a checkpoint or an export")
    if not data:
        raise UserError("--data is missing: name the dataset to evaluate on")
    open_split(data, option(arguments, "--split") or "val", check=False)


def check_sharding(arguments: Sequence[str]) -> None:
    from data_prep import shard_options  # pyarrow

    with options_of_sbatch():
        options = cli.parse(
            shard_options.Options, prog="vit shard", description="", args=arguments, needs=shard_options.NEEDS
        )
    shard_options.check(options)
    source, target = options.input, options.output
    if "://" not in source and not Path(source).exists():
        raise UserError(f"INPUT {source!r} does not exist: name the release as downloaded")
    if (target / "dataset.json").is_file():
        raise UserError(f"OUTPUT {str(target)!r} is finished: nothing to do (vit verify checks it)")


def site_field(name: str) -> str:
    """A field of slurm/env.sh, as the job scripts read it."""
    lines = f'REPO={shlex.quote(str(SCRIPTS.parent))}; source "$REPO/slurm/env.sh" >&2; printf %s "${{{name}:-}}"'
    return output(["bash", "-c", lines]).strip()


if __name__ == "__main__":
    cli.run(main)
