"""Writing safetensors files, the format of checkpoints, exports and dumps."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from pipeline.core.files import flush, naming, readable_as_folder


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write ``tensors`` (contiguous, none shares memory) so that they are on the disk. Raises OSError, naming ``path``.

    ``metadata``: {"format": "pt"}, which transformers asks for, unless given.
    """
    with naming(path):
        save_file(dict(tensors), path, metadata=dict(metadata or {"format": "pt"}))
    readable_as_folder(path)
    flush(path)
