"""ObjectNet's classes in ImageNet's, by the tables that come with it (its folder "mappings").

- folder_to_objectnet_label.json: folder -> ObjectNet's class.
- objectnet_to_imagenet_1k.json: the 113 classes that ImageNet has too -> ImageNet's classes, "; " between them.
- imagenet_to_label_2012_v2: a line per ImageNet class.
- pytorch_to_imagenet_2012_id.json: position in the sorted wnids -> number of that line, from 0.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.test_sets.catalogue import MAPPINGS
from pipeline.core.errors import UserError
from pipeline.dataset.class_lists import listed


def classes_of_folders(files: Mapping[str, bytes], source: Path) -> dict[str, tuple[str, ...]]:
    """The wnids of the ImageNet classes of each folder of images, by its name; folders without any are skipped.

    ``files``: the content of MAPPINGS, by name. Raises UserError.
    """
    missing = [name for name in MAPPINGS if name not in files]
    if missing:
        raise UserError(
            f"{str(source)!r} has no mappings/{missing[0]}: download ObjectNet again, with its folder mappings"
        )
    try:
        folders: dict[str, str] = json.loads(files["folder_to_objectnet_label.json"])
        overlapping: dict[str, str] = json.loads(files["objectnet_to_imagenet_1k.json"])
        line_of: dict[str, Any] = json.loads(files["pytorch_to_imagenet_2012_id.json"])
        lines = files["imagenet_to_label_2012_v2"].decode().splitlines()
        wnids = listed("imagenet1k") or []
        wnid_of = {lines[int(line)].strip(): wnids[int(position)] for position, line in line_of.items()}
        return {
            folder: tuple(wnid_of[name.strip()] for name in overlapping[label].split(";"))
            for folder, label in folders.items()
            if label in overlapping
        }
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise UserError(f"the mappings of {str(source)!r} are inconsistent ({error!r}): download them again") from None
