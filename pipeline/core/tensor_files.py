"""Writing safetensors files, the format of checkpoints, exports and dumps."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from pipeline.core.files import flush, naming, readable_as_folder


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write ``tensors`` (contiguous, not sharing memory) and flush them to disk. Raises OSError that names ``path``.

    ``metadata``: by default {"format": "pt"}, which transformers requires.
    """
    with naming(path):
        save_file(dict(tensors), path, metadata=dict(metadata or {"format": "pt"}))
    readable_as_folder(path)
    flush(path)
