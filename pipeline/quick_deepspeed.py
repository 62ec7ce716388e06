"""DeepSpeed, imported without what it would only look for: a GPU where there is none, and MLflow.

Its autotuner, which isn't used here, imports MLflow wherever that is installed: 1.5 of the 3.6 CPU-seconds that a
rank's imports take, and 1,349 modules for each rank to find on a shared disk.
"""

import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns where it has to find out

_hidden = "mlflow" not in sys.modules
if _hidden:
    sys.modules["mlflow"] = None  # type: ignore[assignment]  # "import mlflow" raises ImportError

import deepspeed  # noqa: E402

if _hidden:
    del sys.modules["mlflow"]

__all__ = ["deepspeed"]
