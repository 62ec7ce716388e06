"""DeepSpeed, imported without what it would only look for: a GPU where there is none, MLflow, and Muon.

Its autotuner, which isn't used here, imports MLflow wherever that is installed: 1.5 of the 3.6 CPU-seconds that a
rank's imports take, and 1,349 modules for each rank to find on a shared disk.
"""

import contextlib
import importlib
import os
import sys
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns where it has to find out

_hidden = "mlflow" not in sys.modules
if _hidden:
    sys.modules["mlflow"] = None  # type: ignore[assignment]  # "import mlflow" raises ImportError

import deepspeed  # noqa: E402

if _hidden:
    del sys.modules["mlflow"]

# Every engine looks whether its optimizer is Muon, whose functions are compiled where they are defined: that imports
# torch's whole compiler and its kernels' templates, for an optimizer that isn't used here.
_compile = torch.compile


def _as_it_is(function: Any = None, **_: Any) -> Any:
    """What @torch.compile and @torch.compile(...) would do to a function."""
    return _as_it_is if function is None else function


torch.compile = _as_it_is  # type: ignore[assignment]
try:
    with contextlib.suppress(ImportError):  # not every DeepSpeed has Muon there
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
finally:
    torch.compile = _compile

__all__ = ["deepspeed"]
