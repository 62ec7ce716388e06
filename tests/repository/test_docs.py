"""The commands of the tutorials, as they stand there, on digits; and that what the documents name exists."""

import csv
import json
import re
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from jobs.vit import COMMANDS
from pipeline.config.recipes import FINETUNE
from pipeline.interop import npz
from tests.helpers.launch import environment
from tests.helpers.models import random_model
from tests.helpers.quick_python import executable

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
# what a reader with the tests' little time and no photographs sets instead of the page's first block
SETTINGS = "RECIPE=tiny\nPARENT=tiny.npz\nSTEPS=60\nBATCH=32\nMICRO=32\n"
PER_CLASS = 40


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.M | re.S)


@pytest.fixture
def desk(tmp_path: Path, raw_digits: Path) -> Path:
    """A folder with what the page starts from: photos/<class>/, new/, and published weights."""
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
    model = random_model(FINETUNE["tiny"].config.model, 1000)
    npz.write(tmp_path / "tiny.npz", model.config, model.state_dict())
    return tmp_path


def test_the_tutorial_on_own_images_does_what_it_says(desk: Path) -> None:
    first, *rest = blocks(REPOSITORY / "docs" / "tutorials" / "own_images.md")
    assert [line.split("=")[0] for line in first.splitlines()] == [line.split("=")[0] for line in SETTINGS.split()]
    script = "set -eu\n" + SETTINGS + "".join(rest)
    path = f"{executable().parent}:/usr/bin:/bin"  # python is ours, as in an activated environment
    done = subprocess.run(
        ["bash", "-c", script], cwd=desk, env=environment(PATH=path, PYTHONPATH=str(REPOSITORY)),
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (desk / "shards" / "photos" / "report.html").stat().st_size > 10_000
    assert (desk / "evaluation" / "confusion.png").is_file()
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
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
    assert "photos-2" in done.stdout


def test_the_rehearsal_does_what_it_says(tmp_path: Path, raw_digits: Path) -> None:
    first, *rest = blocks(REPOSITORY / "docs" / "tutorials" / "rehearse_campaign.md")
    settings = "RAW=raw\nSTEPS=40\nFINETUNE_STEPS=12\nWAIT=9\n"
    assert [line.split("=")[0] for line in first.splitlines()] == [line.split("=")[0] for line in settings.split()]
    (tmp_path / "raw").mkdir()
    for name in ("seven", "ten"):
        (tmp_path / "raw" / f"{name}_whole.tar").symlink_to(raw_digits)
    script = tmp_path / "commands.sh"  # a file: the page's pkill looks at command lines
    path = f"{executable().parent}:{Path(sys.executable).parent}:/usr/bin:/bin"  # torchrun's place is the second
    script.write_text("set -eu\n" + settings + "".join(rest))
    done = subprocess.run(
        ["bash", str(script)], cwd=tmp_path, env=environment(PATH=path, PYTHONPATH=str(REPOSITORY)),
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    runs = tmp_path / "work" / "rehearsal" / "runs"
    assert json.loads((runs / "pretrain" / "status.json").read_text())["state"] == "finished"
    assert (runs / "finetune" / "best").is_symlink()
    assert (tmp_path / "work" / "rehearsal" / "compare" / "compare.html").is_file()
    assert (tmp_path / "work" / "rehearsal" / "model" / "model.json").is_file()


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
        for command in filter(None, commands.split(" · ")):
            assert known & {command, f"jobs.{command}", f"data_prep.{command}"}, command
