"""Where the project's own code lies: the source tree, or the environment that it is installed in."""

from importlib import resources
from pathlib import Path

PACKAGE = Path(str(resources.files("pipeline"))).resolve()  # the folder pipeline/
SOURCE = PACKAGE.parent  # with jobs/ and data_prep/ beside it
