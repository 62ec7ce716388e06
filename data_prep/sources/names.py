"""What the name of a file, folder or tar member tells: an image, a class, a tar, or a system file."""

import re
import unicodedata

from pipeline.core.errors import printable
from pipeline.imaging.file_names import DATASET_ENDINGS, ending

_TARS = re.compile(r"\.(tar|tar\.gz|tgz)$", re.IGNORECASE)
_PACKED_TARS = re.compile(r"\.(tar\.\w+|tgz|txz|tbz2?|tzst)$", re.IGNORECASE)
# file managers' and NAS systems' own folders and files, in lower case
_SYSTEM = frozenset(
    (
        *("__macosx", "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot", "$recycle.bin"),
        *("system volume information", "lost+found", "__pycache__", "icon\r"),
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),
    )
)
# Hugging Face's copies of ImageNet append the class: ILSVRC2012_val_00000293_n01440764.JPEG
_WITH_CLASS = re.compile(r"(ILSVRC2012_val_\d{8}|n\d{8}_\d+)_(n\d{8})(\.\w+)")


def is_system(name: str) -> bool:
    """Whether a file or folder belongs to a file manager, a NAS or an editor: hidden names and some others."""
    return name.startswith(".") or name.lower() in _SYSTEM


def is_system_path(path: str) -> bool:
    """Whether any part of a path ("/" between parts) is a system file or folder."""
    return any(is_system(part) for part in path.split("/") if part not in ("", ".", ".."))


def is_image(name: str) -> bool:
    return ending(name) in DATASET_ENDINGS


def is_tar(name: str) -> bool:
    """Whether a file is a tar or gzipped tar by its name: .tar, .tar.gz or .tgz, in small or capital letters."""
    return _TARS.search(name) is not None


def is_packed_tar(name: str) -> bool:
    """Whether a file is a compressed tar by its name, of whatever compression."""
    return _PACKED_TARS.search(name) is not None


def class_name(text: str) -> str:
    """A class's name as stored: in Unicode NFC, as on Linux and in most lists; file names on Macs are in NFD."""
    return text if text.isascii() else unicodedata.normalize("NFC", printable(text))


def class_of_tar(name: str) -> str:
    """``winter21_whole/n01440764.tar`` -> ``n01440764``."""
    return class_name(_TARS.sub("", name.rpartition("/")[2]))


def class_in_name(name: str) -> tuple[str, str] | None:
    """Class and plain name of an image of ImageNet whose file name ends with its class; ``None`` for other names.

    ``ILSVRC2012_val_00000293_n01440764.JPEG`` -> ``("n01440764", "ILSVRC2012_val_00000293.JPEG")``
    """
    match = _WITH_CLASS.fullmatch(name)
    return (match[2], match[1] + match[3]) if match else None
