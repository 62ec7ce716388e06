"""matplotlib set up so that names of runs, classes and files are drawn as plain text, whatever characters they have."""

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import matplotlib as mpl
from matplotlib.figure import Figure

from pipeline.core.files import naming

mpl.rcParams["text.parse_math"] = False  # a $ in a name is no TeX, which would be refused at its first mistake


UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # the same figure gives the same file


def save(figure: Figure, out: Path | IO[str], **options: Any) -> None:
    """As ``figure.savefig``. A letter that the font lacks is a box, without a warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        if isinstance(out, Path):
            options.setdefault("metadata", UNDATED.get(out.suffix))
        with mpl.rc_context({"svg.hashsalt": "plot"}), naming(out) if isinstance(out, Path) else nullcontext():
            figure.savefig(out, **options)
