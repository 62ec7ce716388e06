"""ILSVRC2012's development kit: the classes of the validation images.

``ILSVRC2012_validation_ground_truth.txt`` has one ILSVRC2012 id per line, for the validation images in the order of
their names. ``meta.mat`` maps ids to WordNet ids; its first rows, those without children, are the 1,000 classes.
(The kit's readme.txt, sections 2 and 4.)
"""

import io
import re
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError

META = "meta.mat"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.")


@dataclass(frozen=True)
class Devkit:
    """The kit's two tables."""

    wnids: tuple[str, ...]  # of validation image 1, 2, ...
    names: dict[str, str]  # by wnid, of the classes

    def wnid_of(self, name: str) -> str | None:
        """The class of a validation image, by the number in its name; ``None`` for other names."""
        match = _VAL_NAME.match(name)
        number = int(match[1]) if match else 0
        return self.wnids[number - 1] if 1 <= number <= len(self.wnids) else None


def read_devkit(path: Path) -> Devkit:
    """Read the kit's tar (.tar.gz as released) or the folder it was unpacked to. Raises UserError."""
    if not path.exists():
        raise UserError(f"--devkit {str(path)!r} does not exist: give ILSVRC2012_devkit_t12.tar.gz or its folder")
    import scipy.io  # half a second that only this release needs

    try:
        files = _from_folder(path) if path.is_dir() else _from_tar(path)
        synsets = scipy.io.loadmat(io.BytesIO(files[META]), squeeze_me=True)["synsets"]
        ids = [int(line) for line in files[GROUND_TRUTH].split()]
    except KeyError as error:
        raise UserError(f"--devkit {str(path)!r} has no {error}: give ILSVRC2012_devkit_t12.tar.gz") from None
    except (ValueError, TypeError, EOFError, OSError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"--devkit {str(path)!r} can't be read ({error}): download it again") from None
    leaves = [row for row in synsets.reshape(-1) if int(row["num_children"]) == 0]
    wnid_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
    unknown = sorted(set(ids) - set(wnid_of))
    if unknown:
        raise UserError(
            f"--devkit {str(path)!r}: the ground truth has id {unknown[0]}, for which {META} has no class: "
            "download it again"
        )
    names = {str(row["WNID"]): str(row["words"]) for row in leaves}
    return Devkit(tuple(wnid_of[number] for number in ids), names)


def _from_folder(path: Path) -> dict[str, bytes]:
    return {name: found.read_bytes() for name in (META, GROUND_TRUTH) for found in sorted(path.rglob(name))[:1]}


def _from_tar(path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            name = member.name.rpartition("/")[2]
            file: Any = tar.extractfile(member) if name in (META, GROUND_TRUTH) and member.isfile() else None
            if file:
                found[name] = file.read()
    return found
