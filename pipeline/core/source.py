"""The location of the project's own code: the source tree, or the environment it is installed in."""

from importlib import resources
from pathlib import Path

PACKAGE = Path(str(resources.files("pipeline"))).resolve()  # the folder pipeline/
SOURCE = PACKAGE.parent  # contains jobs/ and data_prep/ too
