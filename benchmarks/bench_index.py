"""data_prep.index against `tar tf` on WebDataset tars; and a plan and an index of ImageNet-21K's 14.2 million rows.

python -m benchmarks.bench_index [--samples 500000] [--rounds 3] [--rows 0] [--folder FOLDER]
The tars contain real headers and .cls members; their images are sparse holes of about 107 KB, since they are not read.
`tar tf` reads one tar after another, ours uses one worker per core, startup included. --rows 14200000 (10 GB of disk,
minutes) plans a source of headers only and writes the index of that many samples, and reports each process's memory.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.writing.tar_writer import header
from pipeline.dataset import class_lists
from pipeline.dataset.format import INDEX_SCHEMA

CORES = len(os.sched_getaffinity(0))
TARS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.rows:
            large_plan(Path(folder), arguments.rows)
            large_index(Path(folder), arguments.rows)
        else:
            foreign_tars(Path(folder), arguments.samples, arguments.rounds)


def foreign_tars(folder: Path, samples: int, rounds: int) -> None:
    tars = folder / "tars"
    tars.mkdir()
    sizes = np.random.default_rng(0).integers(20_000, 194_000, samples)
    for number in range(TARS):
        with (tars / f"train-{number:04d}.tar").open("wb") as file:
            for sample in range(number, samples, TARS):
                size = int(sizes[sample])
                file.write(header(f"{sample:09d}.cls", 3) + b"%03d" % (sample % 1000) + bytes(509))
                file.write(header(f"{sample:09d}.jpg", size))
                file.seek(-(-size // 512) * 512, os.SEEK_CUR)
            file.write(bytes(1024))
    seconds: dict[str, list[float]] = {"ours": [], "tar tf": []}
    for _ in range(rounds):
        began = time.perf_counter()
        command = [sys.executable, "-m", "data_prep.index", str(tars), "--force", "--workers", str(CORES)]
        subprocess.run(command, check=True, capture_output=True)
        seconds["ours"].append(time.perf_counter() - began)
        began = time.perf_counter()
        for tar in sorted(tars.glob("*.tar")):
            subprocess.run(["tar", "tf", str(tar)], check=True, stdout=subprocess.DEVNULL)
        seconds["tar tf"].append(time.perf_counter() - began)
    print(f"# {samples} samples in {TARS} tars; seconds of the rounds: ", end="")
    print({name: [round(value, 2) for value in values] for name, values in seconds.items()})
    ours, peer = (samples / min(values) for values in seconds.values())
    show("index of foreign tars against tar tf (target 0.8)", ours, peer, peer, ours / peer, "samples/s")


def large_plan(folder: Path, rows: int) -> None:
    """Scan and plan a tar of class folders whose images have no bytes, in a process of its own."""
    source = folder / "whole.tar"
    wnids = class_lists.listed("fall11") or []
    per_class = -(-rows // len(wnids))
    with source.open("wb") as file:
        left = rows
        for wnid in wnids:
            own = b"".join(header(f"{wnid}_{number}.JPEG", 0) for number in range(min(per_class, left))) + bytes(1024)
            left -= min(per_class, left)
            file.write(header(f"{wnid}.tar", len(own)) + own)
        file.write(bytes(1024))
    program = (
        "import sys; from pathlib import Path; from data_prep import shard_options\n"
        "from data_prep.planning import make_plan; from data_prep.sources import inputs\n"
        "if __name__ == '__main__':\n"
        "    chosen = shard_options.Options(sys.argv[1], Path(sys.argv[2]))\n"
        "    found = inputs.find(chosen.input, 'auto', None, None)\n"
        "    plan = shard_options.plan_options(chosen, shard_options.content_options(chosen))\n"
        "    print(sum(make_plan.planned(chosen.output, found, plan).samples.values()))\n"
    )
    seconds, own, workers, printed = watched([sys.executable, "-c", program, str(source), str(folder / "out")])
    assert int(printed.split()[-1]) == rows
    size = sum(path.stat().st_size for path in (folder / "out").rglob("*") if path.is_file()) / 1e9
    print(f"# plan of {rows} rows: {seconds:.0f} s, {size:.2f} GB on disk")
    show("memory of a plan, main process", own, 300, 300, own / 300, "MiB")
    show("memory of a plan, largest worker", workers, 300, 300, workers / 300, "MiB")
    source.unlink()
    shutil.rmtree(folder / "out")


def watched(command: list[str]) -> tuple[float, float, float, str]:
    """Run a command: seconds, peak memory of its process and of the largest one below it (MiB), and its output.

    The peaks are the kernel's own (VmHWM of /proc/PID/status), looked up every 20 ms.
    """
    own = below = 0.0
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process:
        while process.poll() is None:
            own = max(own, _peak(process.pid))
            try:
                children = psutil.Process(process.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                break
            below = max([below, *(_peak(child.pid) for child in children)])
            time.sleep(0.02)
        assert process.stdout is not None
        printed = process.stdout.read()
    assert process.returncode == 0, f"{command} failed"
    return time.perf_counter() - began, own, below, printed


def _peak(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


def large_index(folder: Path, rows: int) -> None:
    """Write index.parquet of ImageNet-21K's names with random places, hashes and sizes, as finalize does."""
    path = folder / "index.parquet"
    program = (
        "import sys; from pathlib import Path\n"
        "from data_prep.writing import finalize; from pipeline.dataset import format as dataset_format\n"
        "sys.path.insert(0, sys.argv[3]); import bench_index\n"
        "rows = bench_index.shards_rows(int(sys.argv[2]))\n"
        "print(finalize.write_parquet(Path(sys.argv[1]), dataset_format.INDEX_SCHEMA, rows))\n"
    )
    line = [sys.executable, "-c", program, str(path), str(rows), str(Path(__file__).parent)]
    seconds, peak, _, _ = watched(line)
    groups = pq.read_metadata(path).num_row_groups
    print(f"# index of {rows} rows: {seconds:.0f} s with the making of the rows, {groups} row groups")
    size = path.stat().st_size / 1e9
    show("size of the index", size, 1.5, 1.5, size / 1.5, "GB")
    show("memory of writing the index", peak, 300, 300, peak / 300, "MiB")


def shards_rows(rows: int) -> Iterator[pa.Table]:
    """The rows of one shard of 4,096 after another."""
    random = np.random.default_rng(0)
    wnids = class_lists.listed("fall11") or []
    for shard, start in enumerate(range(0, rows, 4096)):
        count = min(4096, rows - start)
        labels = random.integers(0, len(wnids), count)
        sizes = random.integers(20_000, 194_000, count)
        names = [f"{wnids[label]}_{n}" for label, n in zip(labels, random.integers(1, 40_000, count), strict=True)]
        columns = {
            "key": names,
            "split": pa.DictionaryArray.from_arrays(pa.array(np.zeros(count), pa.int8()), pa.array(["train"])),
            "shard": pa.array(np.full(count, shard), pa.int32()),
            "offset": np.cumsum(sizes // 512 * 512 + 2048),
            "size": pa.array(sizes, pa.int32()),
            "label": pa.array(labels, pa.int32()),
            "width": pa.array(random.integers(200, 900, count), pa.int32()),
            "height": pa.array(random.integers(200, 900, count), pa.int32()),
            "orientation": pa.array(np.ones(count), pa.uint8()),
            "recoded": pa.DictionaryArray.from_arrays(pa.array(np.zeros(count), pa.int8()), pa.array([""])),
            "xxh3_64": random.integers(0, 1 << 64, count, np.uint64),
        }
        yield pa.table(columns, schema=INDEX_SCHEMA)


def show(claim: str, ours: float, peer: float, limit: float, ratio: float, unit: str) -> None:
    facts = {"claim": claim, "ours": round(ours, 3), "peer": round(peer, 3), "limit": round(limit, 3)}
    print(json.dumps({**facts, "ratio": round(ratio, 3), "unit": unit, "machine": f"{CORES} cores"}), flush=True)


if __name__ == "__main__":
    main()
