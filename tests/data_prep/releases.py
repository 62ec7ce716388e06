"""Miniatures of the raw forms, from the same images: names and nesting as in the real releases."""

import gc
import gzip
import io
import shutil
import tarfile
import warnings
from pathlib import Path

import numpy as np
import scipy.io
import webdataset
from PIL import Image

WNIDS = ("n01440764", "n02119789", "n04557648", "n15075141")
Images = dict[str, dict[str, bytes]]  # wnid -> file name -> bytes


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def unpack(tar: tarfile.TarFile, folder: Path) -> None:
    """As ``filter="data"`` does, which Python has since 3.11.4."""
    tar.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # type: ignore[arg-type]


def class_tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            add(tar, name, content)
    return buffer.getvalue()


def tar_of_tars(images: Images, path: Path) -> Path:
    """fall11_whole.tar; ILSVRC2012's train tar has the same form."""
    with tarfile.open(path, "w") as tar:
        for wnid, files in images.items():
            add(tar, f"{wnid}.tar", class_tar(files))
    return path


def gzipped(images: Images, path: Path) -> Path:
    """winter21_whole.tar.gz: a tar of tars below one folder, compressed."""
    with gzip.open(path, "wb", compresslevel=1) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for wnid, files in images.items():
            add(tar, f"winter21_whole/{wnid}.tar", class_tar(files))
    return path


def folder_of_tars(images: Images, path: Path) -> Path:
    path.mkdir()
    for wnid, files in images.items():
        (path / f"{wnid}.tar").write_bytes(class_tar(files))
    return path


def folder_of_folders(images: Images, path: Path) -> Path:
    for wnid, files in images.items():
        (path / wnid).mkdir(parents=True)
        for name, content in files.items():
            (path / wnid / name).write_bytes(content)
    return path


FORMS = {
    "tar of tars": (tar_of_tars, "whole.tar"),
    "gzip stream": (gzipped, "whole.tar.gz"),
    "folder of tars": (folder_of_tars, "tars"),
    "folder of folders": (folder_of_folders, "folders"),
}


def make(form: str, images: Images, parent: Path) -> Path:
    maker, name = FORMS[form]
    path = parent / name
    if path.exists():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return maker(images, path)


def contents(dataset: Path) -> dict[str, bytes]:
    """File name -> bytes of everything in a finished dataset."""
    return {str(path.relative_to(dataset)): path.read_bytes() for path in sorted(dataset.rglob("*")) if path.is_file()}


def write_webdataset(images: Images, folder: Path, pattern: str = "shard-%03d.tar") -> list[str]:
    """WebDataset tars as webdataset's own writer makes them, class numbers by the sorted wnids."""
    folder.mkdir()
    flat = [(number, name, data) for number, wnid in enumerate(sorted(images)) for name, data in images[wnid].items()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with webdataset.ShardWriter(str(folder / pattern), maxcount=40, verbose=0) as sink:
            for number, name, data in flat:
                sink.write({"__key__": Path(name).stem, "jpg": data, "cls": number})
        gc.collect()
    return sorted(str(path) for path in folder.glob("*.tar"))


def recoded(jpeg: bytes, kind: str, mode: str = "RGB") -> bytes:
    """The same image in another format."""
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(jpeg))
    image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
    image.save(buffer, kind)
    return buffer.getvalue()


def folders(path: Path, photos: list[bytes], *classes: str, each: int = 2) -> Path:
    for place, wnid in enumerate(classes):
        (path / wnid).mkdir(parents=True)
        for number in range(each):
            (path / wnid / f"{number}.jpg").write_bytes(photos[place * each + number])
    return path


def devkit(path: Path, wnids: list[str], truth: list[str]) -> Path:
    """ILSVRC2012_devkit_t12.tar.gz with a real meta.mat: ids are no ranks, and inner nodes follow the leaves."""
    ids = {wnid: number for number, wnid in enumerate(reversed(wnids), 1)}
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("gloss", object)]
    kinds += [("num_children", object), ("children", object), ("wordnet_height", object), ("num_train_images", object)]
    rows = [(ids[wnid], wnid, f"name of {wnid}", "gloss", 0, [], 0, 1300) for wnid in reversed(wnids)]
    rows += [(len(wnids) + 1, "n00001740", "entity", "gloss", 2, [1, 2], 3, 0)]
    synsets = np.array(rows, dtype=kinds).reshape(-1, 1)
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/readme.txt", b"readme")
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        lines = "".join(f"{ids[wnid]}\n" for wnid in truth)
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", lines.encode())
    return path
