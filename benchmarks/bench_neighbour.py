"""What a checkpoint of L/16 costs as files, against a copy in the memory of a neighbour node.

python -m benchmarks.bench_neighbour [--gigabytes 3.7] [--rounds 3] [--folder FOLDER]
Both begin with the same copy into host memory, beside the next step (bench_checkpoint.py). Then the one writes its part
to a disk and flushes it; the other sends it to another process (gloo over the loopback interface, faster than a network
and without its latency). Neither is on the training's path; what counts is how often each can be done.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing

from pipeline.core.tensor_files import save_tensors
from pipeline.distributed.ranks import free_port

PIECE = 64 << 20  # bytes of a message


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.7, help="L/16: float32 weights and two moments")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; default: the temporary folder")
    arguments = parser.parse_args()
    elements = int(arguments.gigabytes * 1e9 / 4)
    port = free_port()
    state = torch.ones(elements)
    copy = torch.empty_like(state)
    receiver = torch.multiprocessing.get_context("spawn").Process(
        target=receive, args=(elements, port, arguments.rounds)
    )
    receiver.start()
    join(0, port)
    seconds: dict[str, list[float]] = {"copy": [], "write": [], "send": []}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        for _ in range(arguments.rounds):
            began = time.perf_counter()
            copy.copy_(state)
            copied = time.perf_counter()
            save_tensors({"state": copy}, Path(scratch) / "state.safetensors")
            written = time.perf_counter()
            for piece in copy.split(PIECE // 4):
                torch.distributed.send(piece, 1)
            torch.distributed.barrier()
            sent = time.perf_counter()
            for name, value in (("copy", copied - began), ("write", written - copied), ("send", sent - written)):
                seconds[name].append(round(value, 2))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    receiver.join()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"# {arguments.gigabytes} GB, seconds of each round: {seconds}")
    report = {
        "claim": f"writing {arguments.gigabytes} GB to a disk, against sending it to a neighbour's memory",
        "ours": medians["write"],
        "peer": medians["send"],
        "limit": 60.0,  # a fifth of checkpoint.minutes
        "ratio": round(medians["write"] / medians["send"], 2),
        "unit": "seconds, off the training's path; the limit is for the disk",
        "machine": "1 process per node",
    }
    print(json.dumps(report))


def join(rank: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)


def receive(elements: int, port: int, rounds: int) -> None:
    join(1, port)
    held = torch.empty(elements)
    for _ in range(rounds):
        for piece in held.split(PIECE // 4):
            torch.distributed.recv(piece, 0)
        torch.distributed.barrier()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
