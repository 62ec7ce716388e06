"""pyarrow without pandas."""

import sys
from importlib.abc import MetaPathFinder
from types import ModuleType

import pyarrow as pa


class _NoPandas(MetaPathFinder):
    """Answers that there is no pandas."""

    def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> None:  # noqa: ARG002
        if name == "pandas":
            raise ModuleNotFoundError(name)


def without_pandas() -> None:
    """Keep this process's pyarrow from importing pandas: half a second of work that no command here has a use for.

    pyarrow looks for pandas once, when it first converts something, and does without where it finds none; what needs
    pandas later still gets it. For processes of our own only: a library must not change what others see.
    """
    if "pandas" in sys.modules:
        return
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(finder)
