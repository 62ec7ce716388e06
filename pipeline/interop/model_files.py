"""Which files a MODEL is or holds. Looks at names only and imports nothing slow: options are checked with it."""

from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.core.files import check_local
from pipeline.core.needs import Need
from pipeline.interop import hub_models

SETTINGS = "config.json"  # of a timm or transformers folder
GRAPHS = ("model.onnx", "model.pt2")  # exports that can run, and nothing else


def check_model(path: Path) -> None:
    """Raises UserError if MODEL is neither a path that exists nor in the form of a name on the Hub. Asks no server."""
    if hub_models.parse(path, "MODEL") is not None:
        return
    check_local(path, "MODEL")
    if not path.exists():
        raise UserError(
            f"MODEL {str(path)!r} does not exist: name a run folder, weights, an export or hf://OWNER/NAME (--help)"
        )


def graph_of(path: Path) -> Path | None:
    """The file of an ONNX or torch.export graph that ``path`` is, or holds."""
    if path.is_file() and path.suffix in (".onnx", ".pt2"):
        return path
    if path.is_dir() and not (path / SETTINGS).exists():
        return next((path / name for name in GRAPHS if (path / name).is_file()), None)
    return None


def _is_archive(options: object) -> bool:
    graph = graph_of(options.model)  # type: ignore[attr-defined]
    return graph is not None and graph.suffix == ".pt2"


# Of the option trust_code of a command that takes a model
ARCHIVE = Need(_is_archive, "unless MODEL is a torch.export archive (.pt2)", "name such a file")
