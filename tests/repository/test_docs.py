"""The commands of the tutorials, as they stand there, on digits; and that what the documents name exists."""

import csv
import json
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.vit import COMMANDS
from pipeline.config.recipes import FINETUNE
from pipeline.interop import timm
from pipeline.interop.published_weights import WEIGHTS
from tests.data_prep import releases
from tests.helpers.hub_server import HubServer
from tests.helpers.launch import environment
from tests.helpers.models import random_model
from tests.helpers.quick_python import executable

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
# what a reader with the tests' little time and no photographs sets instead of the page's first block
SETTINGS = "RECIPE=tiny\nPARENT=$(vit fetch b16)\nSTEPS=60\nBATCH=32\nMICRO=16\nGPUS=2\n"
PER_CLASS = 40
RUN_ON_SLURM = {"srun vit doctor l16 --folder work/runs --data work/shards/in21k"}  # by tests/slurm/test_steps.py


def script_of(page: str, settings: str) -> str:
    """The page's commands in order, with ``settings`` in place of its first block, which sets the same variables."""
    text = (REPOSITORY / "docs" / "tutorials" / page).read_text()
    first, *commands = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    assert [line.split("=")[0] for line in first.splitlines()] == [line.split("=")[0] for line in settings.splitlines()]
    shown = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    commands_shown = re.findall(r"^    (?:vit|python|torchrun|sbatch|srun) .*$", shown, re.M)
    assert {line.strip() for line in commands_shown} <= RUN_ON_SLURM, "commands that no test runs"
    return "set -eu\n" + settings + "".join(commands)


def run_script(script: str, folder: Path, *, timeout: int = 240, **variables: str) -> str:
    """Run a page's script in ``folder`` as in an activated environment; its standard output."""
    programs = folder / "bin"
    programs.mkdir()
    # the workers of overlap end by a signal when they are forked from quick_python's process
    slow = f'[ "$1" != overlap ] || exec {sys.executable} -m jobs.vit "$@"'
    (programs / "vit").write_text(f'#!/bin/sh\n{slow}\nexec python -m jobs.vit "$@"\n')
    (programs / "vit").chmod(0o755)
    file = folder / "commands.sh"  # a file, since the rehearsal's pkill looks at command lines
    file.write_text(script)
    # python starts quickly; torchrun is in the second folder
    path = f"{programs}:{executable().parent}:{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", str(file)], cwd=folder, env=environment(PATH=path, PYTHONPATH=str(REPOSITORY), **variables),
        capture_output=True, text=True, check=False, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def desk(tmp_path: Path, raw_digits: Path) -> Path:
    """A folder with what the page starts from: photos/<class>/ and new/."""
    with tarfile.open(raw_digits) as whole:
        for outer in whole:
            folder = tmp_path / "photos" / outer.name.removesuffix(".tar")
            folder.mkdir(parents=True)
            with tarfile.open(fileobj=whole.extractfile(outer)) as inner:
                for number, member in enumerate(inner):
                    place = folder if number < PER_CLASS else tmp_path / "new"
                    place.mkdir(exist_ok=True)
                    if number < PER_CLASS + 1:
                        (place / member.name).write_bytes(inner.extractfile(member).read())  # type: ignore[union-attr]
    return tmp_path


@pytest.fixture
def weights_server(tmp_path: Path) -> Iterator[HubServer]:
    """A Hub with the smallest model under the name of the published B/16."""
    folder = tmp_path / "published"
    model = random_model(FINETUNE["tiny"].config.model, 1000)
    timm.write(folder, model.config, model.state_dict(), [str(index) for index in range(1000)])
    with HubServer() as server:
        server.add("models", WEIGHTS["b16"].source, folder)
        yield server


def test_the_tutorial_on_own_images_does_what_it_says(desk: Path, weights_server: HubServer) -> None:
    variables = weights_server.environment(desk / "home") | {"VIT_CACHE": str(desk / "cache")}
    output = run_script(script_of("own_images.md", SETTINGS), desk, **variables)
    assert weights_server.count("storage") == 1, "the weights are downloaded"
    assert (desk / "shards" / "photos" / "report.html").stat().st_size > 10_000
    assert (desk / "evaluation" / "confusion.png").is_file()
    results = [json.loads(line) for line in output.splitlines() if line.startswith('{"')]
    (evaluated,) = [result for result in results if "top1" in result]
    samples = json.loads((desk / "shards" / "photos" / "dataset.json").read_text())["samples"]
    assert samples["train"] + samples["val"] == 10 * PER_CLASS
    assert evaluated["samples"] == samples["val"]
    assert evaluated["top1"] > 0.2, "it has learned nothing: a guess is right in a tenth of all cases"
    one, two = ((desk / name).read_text().splitlines() for name in ("new.csv", "again.csv"))
    assert len(one) == len(two) == 1 + 10
    likeliest = [[row["name_1"] for row in csv.DictReader(rows)] for rows in (one, two)]
    assert likeliest[0] == likeliest[1]
    assert set(likeliest[0]) <= {f"digit{digit}" for digit in range(10)}
    assert len(list((desk / "looks").glob("*.png"))) == 10
    again = json.loads((desk / "runs" / "photos-2" / "run.json").read_text())
    assert Path(again["parent"]["run_dir"]).name == "photos"
    assert "photos-2" in output


def test_the_rehearsal_does_what_it_says(tmp_path: Path, raw_digits: Path) -> None:
    settings = "RAW=raw\nSTEPS=40\nFINETUNE_STEPS=12\nWAIT=9\n"
    (tmp_path / "raw").mkdir()
    for name in ("seven", "ten"):
        (tmp_path / "raw" / f"{name}_whole.tar").symlink_to(raw_digits)
    run_script(script_of("rehearse_campaign.md", settings), tmp_path, timeout=280)
    runs = tmp_path / "work" / "rehearsal" / "runs"
    assert json.loads((runs / "pretrain" / "status.json").read_text())["state"] == "finished"
    assert (runs / "finetune" / "best").is_symlink()
    assert (tmp_path / "work" / "rehearsal" / "compare" / "compare.html").is_file()
    assert (tmp_path / "work" / "rehearsal" / "model" / "model.json").is_file()


def test_the_cluster_tutorial_does_what_it_says(digits: Path, raw_digits: Path, trained: Path, tmp_path: Path) -> None:
    """The jobs with --dry-run; the commands between them on small datasets and finished runs in the jobs' places."""
    work = tmp_path / "work"
    for name in ("in21k", "in1k"):
        shutil.copytree(digits, work / "shards" / name)
    for name in ("pretrain-tiny", "finetune-tiny-lr0.01"):
        shutil.copytree(trained, work / "runs" / name)
    (work / "campaigns" / "tiny").mkdir(parents=True)
    (work / "campaigns" / "tiny" / "best").symlink_to("../../runs/finetune-tiny-lr0.01")
    with tarfile.open(raw_digits) as whole, tarfile.open(fileobj=whole.extractfile(whole.getmembers()[0])) as inner:
        jpegs = [inner.extractfile(member).read() for member in inner.getmembers()[:4]]  # type: ignore[union-attr]
    with tarfile.open(tmp_path / "val.tar", "w") as val:
        for number, jpeg in enumerate(jpegs, 1):
            releases.add(val, f"ILSVRC2012_val_{number:08d}.JPEG", jpeg)
    releases.devkit(tmp_path / "devkit.tar.gz", wnids := list(releases.WNIDS[:2]), wnids * 2)
    settings = f"RECIPE=tiny\nRAW_21K={raw_digits}\nRAW_1K={raw_digits}\nRAW_VAL=val.tar\nDEVKIT=devkit.tar.gz\n"
    script = script_of("tars_to_table.md", settings + "NODES=1\nLOOK=--dry-run\n")
    output = run_script(script, tmp_path, VIT_WORK=str(work), VIT_MLFLOW="off", GPUS_PER_NODE="2")
    submitted = [line for line in output.splitlines() if line.startswith("sbatch ")]
    jobs = [Path(word).stem for line in submitted for word in line.split() if word.endswith(".sh")]
    assert jobs[:5] == ["shard", "shard", "pretrain", "finetune", "evaluate"]
    assert jobs[-1] == "evaluate"
    assert len(jobs) > 6, "and those of the campaign"
    assert json.loads((work / "shards" / "in1k-val" / "dataset.json").read_text())["samples"] == {"val": 4}
    assert (work / "compare" / "compare.html").is_file()
    assert (work / "model" / "model.json").is_file()


def test_the_reference_names_every_environment_variable_of_ours() -> None:
    code = [*REPOSITORY.glob("pipeline/**/*.py"), *REPOSITORY.glob("jobs/*.py"), *REPOSITORY.glob("data_prep/**/*.py")]
    ours = {name for path in code for name in re.findall(r"\bVIT_[A-Z_]+\b", path.read_text())}
    site = set(re.findall(r"^([A-Z_0-9]+)=\$\{", (REPOSITORY / "slurm" / "env.sh").read_text(), re.M)) - {"WORK"}
    page = (REPOSITORY / "docs" / "reference" / "environment.md").read_text()
    assert ours
    assert site
    assert {name for name in ours | site if f"`{name}`" not in page} == set()


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_what_a_document_names_exists(page: Path) -> None:
    text = page.read_text()
    modules = set(re.findall(r"python3? -m ((?:jobs|data_prep)\.\w+)", text))
    assert modules <= {module for module, _ in COMMANDS.values()} | {"jobs.vit"}
    for link in re.findall(
        r"\]\(([^)#:]+)\)", text if page.parent == REPOSITORY else ""
    ):  # make docs checks the site's
        assert (page.parent / link).exists(), f"{page.name} links to {link}"
    for script in re.findall(r"sbatch (?:-\S+ )*(slurm/\w+\.sh)", text):
        assert (REPOSITORY / script).exists(), f"{page.name} names {script}"


def test_the_figure_names_commands_that_are_there() -> None:
    boxes = runpy.run_path(str(REPOSITORY / "docs" / "pictures" / "pipeline_figure.py"))["BOXES"]
    drawn = (REPOSITORY / "docs" / "pictures" / "pipeline.svg").read_text()
    known = {module for module, _ in COMMANDS.values()}
    for title, commands, *_ in boxes.values():
        assert f">{title}<" in drawn, "python docs/pictures/pipeline_figure.py draws it anew"
        for command in filter(None, commands.removeprefix("vit ").split(" · ")):
            assert known & {command, f"jobs.{command}", f"data_prep.{command}"}, command
