"""data_prep.shard against webdataset.ShardWriter, cp and a bare decode loop: same images, alternating, warm page cache.

python -m benchmarks.bench_shard [--photos TAR|FOLDER] [--gigabytes 1.0] [--rounds 3] [--folder FOLDER]
The images: --photos (JPEGs of a tar, a tar of tars or a folder), else crops of scikit-learn's photographs. They are
repeated to --gigabytes as a tar of tars, like fall11_whole.tar, and as loose files for ShardWriter (links to the same
few files, which is to its advantage, since they stay cached); and to a twentieth of that, to separate the startup of
the commands (Python, imports) from their speed. Each writes until the bytes are on disk: ours does so itself, the
others are followed by a sync of their files. Before each, free memory is filled with the page cache of a sparse file,
as on a busy machine: a virtual machine's host reclaims free memory, and getting it back costs a second per gigabyte,
which the first command would pay. Shards have 1,024 images: a release has thousands of shards, so that no worker is
idle at the end. The fastest round of each counts, as others may use the machine. --folder /dev/shm excludes the disk.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg

from data_prep.writing.tar_writer import header

CORES = len(os.sched_getaffinity(0))
PER_CLASS = 100  # images per class tar
SPARE_MEMORY = 1 << 30  # bytes
HOLES = 1 << 42  # bytes of a sparse file, which is read until memory is full

SHARD_WRITER = """
import sys
import warnings
from pathlib import Path
warnings.simplefilter("ignore")
import webdataset

loose, folder = map(Path, sys.argv[1:])
folder.mkdir()
with webdataset.ShardWriter(str(folder / "train-%05d.tar"), maxcount=1024, verbose=0) as sink:
    for label, own in enumerate(sorted(loose.iterdir())):
        for path in sorted(own.iterdir()):
            sink.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": label})
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        measure(Path(folder), photos(arguments.photos), int(arguments.gigabytes * 1e9), arguments.rounds)


def photos(path: Path | None) -> list[bytes]:
    """JPEGs of a folder, a tar or a tar of tars; without a path, 200 crops of scikit-learn's photographs."""
    if path is None:
        return crops(200)
    if path.is_dir():
        return [file.read_bytes() for file in sorted(path.rglob("*.[jJ][pP]*[gG]"))]
    return list(members(path.read_bytes()))


def members(tar_bytes: bytes) -> Iterator[bytes]:
    with tarfile.open(fileobj=io.BytesIO(tar_bytes)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file:
                yield from members(file.read()) if member.name.endswith(".tar") else [file.read()]


def crops(count: int) -> list[bytes]:
    """Random crops of two photographs, enlarged to the size of ImageNet's files (about 100 KB)."""
    import cv2
    from sklearn.datasets import load_sample_images  # slow to import

    random = np.random.default_rng(0)
    pictures = load_sample_images().images
    encoded = []
    for number in range(count):
        top, left = int(random.integers(427 - 250)), int(random.integers(640 - 330))
        crop = np.ascontiguousarray(pictures[number % 2][top : top + 250, left : left + 330])
        encoded.append(simplejpeg.encode_jpeg(cv2.resize(crop, (500, 375)), 92, "RGB", "420"))
    return encoded


def lay_out(folder: Path, jpegs: list[bytes], size: int) -> tuple[Path, Path, int]:
    """The tar of tars, the loose files, and their number."""
    folder.mkdir()
    whole, loose = folder / "whole.tar", folder / "loose"
    count = -(-size // (sum(map(len, jpegs)) // len(jpegs)))
    first: list[Path] = []
    with whole.open("wb") as file:
        for start in range(0, count, PER_CLASS):
            wnid = f"n{start:08d}"
            (loose / wnid).mkdir(parents=True)
            parts = []
            for number in range(start, min(start + PER_CLASS, count)):
                data, name = jpegs[number % len(jpegs)], f"{wnid}_{number}.JPEG"
                parts += [header(name, len(data)), data, bytes(-len(data) % 512)]
                if number < len(jpegs):
                    first.append(loose / wnid / name)
                    first[number].write_bytes(data)
                else:
                    (loose / wnid / name).hardlink_to(first[number % len(jpegs)])
            inner = b"".join([*parts, bytes(1024)])
            file.write(header(f"{wnid}.tar", len(inner)) + inner)
        file.write(bytes(1024))
    return whole, loose, count


def measure(folder: Path, jpegs: list[bytes], size: int, rounds: int) -> None:
    sources = {"all": lay_out(folder / "all", jpegs, size), "few": lay_out(folder / "few", jpegs, size // 20)}
    subprocess.run(["sync"], check=True)
    seconds: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryFile(dir="/var/tmp", buffering=0) as holes:  # on a disk: in tmpfs, holes take no page cache
        holes.truncate(HOLES)
        for _ in range(rounds):
            for which, (whole, loose, _) in sources.items():
                for name, commands in contenders(whole, loose, folder / "out").items():
                    shutil.rmtree(folder / "out", ignore_errors=True)
                    subprocess.run(["sync"], check=True)
                    fill_memory(holes)
                    run = lambda: [subprocess.run(command, check=True, capture_output=True) for command in commands]  # noqa: B023, E731
                    seconds.setdefault((name, which), []).append(timed(run))
            for name, decode in LOOPS.items():
                seconds.setdefault((name, "all"), []).append(timed(lambda: [decode(jpeg) for jpeg in jpegs]))  # noqa: B023
    megabytes = {which: whole.stat().st_size / 1e6 for which, (whole, _, _) in sources.items()}
    print(f"# {sources['all'][2]} images, {megabytes['all']:.0f} MB, and {megabytes['few']:.0f} MB; seconds: ", end="")
    print({" ".join(key): [round(value, 2) for value in values] for key, values in seconds.items()})
    best = {key: min(values) for key, values in seconds.items()}
    names = dict.fromkeys(name for name, which in best if which == "few")
    command = {name: megabytes["all"] / best[name, "all"] for name in names}
    more = megabytes["all"] - megabytes["few"]
    speed = {name: more / (best[name, "all"] - best[name, "few"]) for name in names}
    if min(speed.values()) < 0:
        print("# too few images to tell the start from the speed")
    for what, rate in (("", speed), (", start included", command)):
        if min(rate.values()) < 0:
            continue
        header, peer, limit = rate["header"], rate["ShardWriter"], rate["cp"]
        show(f"shard --verify header against ShardWriter{what}", header, peer, limit, 6.0, "MB/s", header / peer)
        show(f"shard --verify header against cp{what}", header, limit, limit, 0.6, "MB/s")
        images = rate["decode"] * sources["all"][2] / megabytes["all"]
        for name in LOOPS:
            limit = len(jpegs) / best[name, "all"] * CORES
            show(f"shard --verify decode against {name} x {CORES}{what}", images, limit, limit, 0.9, "images/s")


def fill_memory(holes: BinaryIO) -> None:
    """Read on in the file until almost all memory is used; the kernel would reclaim more at once."""
    for _ in range(max(0, free_memory() - SPARE_MEMORY) >> 20):
        holes.read(1 << 20)


def free_memory() -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    return int(fields["MemFree"].split()[0]) << 10


LOOPS: dict[str, Callable[[bytes], object]] = {
    "a bare decode loop": lambda jpeg: simplejpeg.decode_jpeg(jpeg, "RGB"),
    "a bare decode loop (grey, at 1/8, as we verify)": lambda jpeg: simplejpeg.decode_jpeg(
        jpeg, "GRAY", min_height=1, min_width=1
    ),
}


def contenders(whole: Path, loose: Path, out: Path) -> dict[str, list[list[str]]]:
    """The commands of each, one after another."""
    ours = [sys.executable, "-m", "data_prep.shard", str(whole), str(out)]
    ours += ["--samples-per-shard", "1024", "--workers", str(CORES), "--verify"]
    written = f"sync {out}/*"
    return {
        "header": [[*ours, "header"]],
        "decode": [[*ours, "decode"]],
        "ShardWriter": [[sys.executable, "-c", SHARD_WRITER, str(loose), str(out)], ["sh", "-c", written]],
        "cp": [["mkdir", str(out)], ["cp", str(whole), str(out)], ["sh", "-c", written]],
    }


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def show(
    claim: str, ours: float, peer: float, limit: float, target: float, unit: str, ratio: float | None = None
) -> None:
    facts = {"claim": f"{claim} (target {target})", "ours": round(ours, 1), "peer": round(peer, 1)}
    facts |= {"limit": round(limit, 1), "ratio": round(ratio or ours / limit, 3), "unit": unit}
    print(json.dumps({**facts, "machine": f"{CORES} cores"}), flush=True)


if __name__ == "__main__":
    main()
