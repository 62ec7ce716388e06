"""slurm/Dockerfile and slurm/vit.def install the same, from files that are there."""

import re
import shlex

from tests.slurm.cluster import REPO

DOCKERFILE = (REPO / "slurm" / "Dockerfile").read_text().replace("\\\n", "")
APPTAINER = (REPO / "slurm" / "vit.def").read_text()


def installs(text: str) -> list[list[str]]:
    """The words of each apt-get install and pip install."""
    return [shlex.split(found) for found in re.findall(r"(?:apt-get|pip) install [^&\n]+", text)]


def copied(text: str) -> set[str]:
    """What each definition puts into the image, by its name in the repository."""
    docker = [word for line in re.findall(r"^COPY (.+)$", text, re.M) for word in line.split()[:-1]]
    section = re.search(r"^%files\n(.*?)^%", text, re.M | re.S)
    return set(docker) | {line.split()[0] for line in (section[1].splitlines() if section else []) if line.split()}


def test_both_images_install_the_same() -> None:
    assert installs(DOCKERFILE) == installs(APPTAINER)
    assert len(installs(DOCKERFILE)) == 3
    assert re.search(r"^FROM (\S+)", DOCKERFILE, re.M)[1] == re.search(r"^From: (\S+)", APPTAINER, re.M)[1]  # type: ignore[index]


def test_both_images_copy_what_a_build_needs_and_is_there() -> None:
    assert copied(DOCKERFILE) == copied(APPTAINER)
    assert all((REPO / name).exists() for name in copied(DOCKERFILE))
    allowed = {line[1:] for line in (REPO / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == copied(DOCKERFILE)
