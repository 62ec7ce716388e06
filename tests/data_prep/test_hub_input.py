"""WebDataset tars on the Hub: indexed by ranges, sharded, refused in one line. The commands run as users start them."""

import gc
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset

from data_prep import index, shard
from pipeline.dataset import format as dataset_format
from tests.data_prep.releases import Images, contents
from tests.helpers.hub_server import HubServer

TOKEN = "hf_s3cretT0ken"


@pytest.fixture(scope="module")
def timm_like(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tars as timm writes them: KEY.cls, KEY.jpg and KEY.json, and ``_info.json``. Read only."""
    folder = tmp_path_factory.mktemp("timm") / "mini-wds"
    folder.mkdir()
    files = [(number, wnid, name) for number, wnid in enumerate(sorted(images)) for name in sorted(images[wnid])]
    splits = {"train": files[: len(files) * 3 // 4], "validation": files[len(files) * 3 // 4 :]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for split, samples in splits.items():
            with webdataset.ShardWriter(str(folder / f"mini-{split}-%04d.tar"), maxcount=20, verbose=0) as sink:
                for number, wnid, name in samples:
                    more = {"label": number, "class_name": wnid, "width": 40, "height": 30}
                    sink.write({"__key__": Path(name).stem, "jpg": images[wnid][name], "cls": number, "json": more})
        gc.collect()
    names = sorted(path.name for path in folder.glob("*.tar"))
    (folder / "_info.json").write_text(json.dumps({"name": "mini", "splits": {"train": {"filenames": names}}}))
    return folder


@pytest.fixture(scope="module")
def server(timm_like: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        server.users[TOKEN] = "someone"
        server.add("datasets", "timm/mini-wds", timm_like)
        yield server


def command(module: str, server: HubServer, home: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, **server.environment(home, TOKEN), "VIT_CACHE": str(home / "cache")}
    line = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_the_index_is_that_of_the_same_folder(
    server: HubServer, timm_like: Path, images: Images, tmp_path: Path
) -> None:
    local = tmp_path / "local"
    local.mkdir()
    for path in timm_like.glob("*.tar"):
        (local / path.name).hardlink_to(path)
    assert index.main([str(local), "--workers", "1"]) == 0
    commit = server.repositories["datasets", "timm/mini-wds"].head
    server.fail("storage", ["", "503", "expired"])
    server.requests.clear()
    run = command("data_prep.index", server, tmp_path, "hf://datasets/timm/mini-wds", "--workers", 2)
    assert run.returncode == 0, run.stderr
    (made,) = (tmp_path / "cache" / "hub").glob(f"timm--mini-wds-*/{commit}/index")
    assert str(made) in run.stdout
    tables = ("index.parquet", "classes.parquet", "rejects.parquet")
    assert [(made / name).read_bytes() for name in tables] == [(local / name).read_bytes() for name in tables]
    info, own = dataset_format.read_info(made), dataset_format.read_info(local)
    assert info.options.pop("tars") == f"hf://datasets/timm/mini-wds@{commit}"
    assert info.options == own.options
    assert (info.samples, info.shards, info.classes_digest) == (own.samples, own.shards, own.classes_digest)
    assert set(info.samples) == {"train", "val"}
    assert dataset_format.read_classes(made)["wnid"].to_pylist() == sorted(images), "recognized by the images' names"
    tars = len(info.shards)
    ranges = [request.range for request in server.requests if request.part == "storage"]
    assert all(ranges), "a tar was downloaded"
    assert len(ranges) <= sum(info.samples.values()) + 4 * tars
    assert server.count("resolve") <= tars + 2, "one address per tar, and one per fault"
    assert server.count("api") == 2, "the commit and the list"
    again = command("data_prep.index", server, tmp_path, f"hf://datasets/timm/mini-wds@{commit}")
    assert again.returncode == 2
    assert "already has a dataset.json" in again.stderr


def test_shards_of_the_tars_are_those_of_the_same_folder(server: HubServer, timm_like: Path, tmp_path: Path) -> None:
    options = ("--samples-per-shard", 16, "--name", "mini", "--workers", 1, "--val-fraction", 0.25)
    assert shard.main([str(timm_like / "mini-train-000{0..2}.tar"), str(tmp_path / "a"), *map(str, options)]) == 0
    source = "hf://datasets/timm/mini-wds/mini-train-000{0..2}.tar"
    server.fail("storage", ["cut", "", "503"])
    run = command("data_prep.shard", server, tmp_path, source, tmp_path / "b", *options)
    assert run.returncode == 0, run.stderr
    found, expected = contents(tmp_path / "b"), contents(tmp_path / "a")
    commit = server.repositories["datasets", "timm/mini-wds"].head
    info = dataset_format.read_info(tmp_path / "b")
    assert info.options.pop("input") == source.replace("-wds/", f"-wds@{commit}/")
    assert info.options == dataset_format.read_info(tmp_path / "a").options
    for name in ("dataset.json",):
        del found[name], expected[name]
    assert found == expected


@pytest.mark.parametrize("module", ["data_prep.index", "data_prep.shard"])
def test_what_cant_be_read_is_one_line(server: HubServer, module: str, tmp_path: Path) -> None:
    server.add("datasets", "timm/closed", {"a.tar": b"x" * 1024}, gated=True)
    server.add("datasets", "timm/deep", {"data/train-0.tar": b"x" * 1024, "README.md": b""})
    page = f"{server.endpoint}/datasets/timm/closed"
    cases = [("timm/closed", f"ask for it at {page}"), ("timm/none", "doesn't exist or is private")]
    cases += [("timm/deep", "data: add the folder" if module.endswith("index") else "neither a file nor a folder")]
    for name, said in cases:
        output = (tmp_path / "out",) if module.endswith("shard") else ()
        run = command(module, server, tmp_path, f"hf://datasets/{name}", *output)
        assert run.returncode == 2, run.stdout
        (line,) = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
        assert said in line
        assert TOKEN not in run.stderr + run.stdout
