"""How long training waits for a checkpoint in the background, against one that it waits for to the end.

python benchmarks/bench_checkpoint.py [--variant b32] [--rounds 3]
One rank, ZeRO-1: weights and both moments of AdamW, float32.
"""

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from pipeline import checkpoint, distributed
from pipeline import engine as ds
from pipeline.config import ModelConfig, RunConfig, TrainConfig
from pipeline.model import VisionTransformer
from pipeline.saver import Saver

FACTS = {"classes": 1000, "classes_digest": "", "dataset_digest": ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", default="b32")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        config = RunConfig(
            run_dir=Path(scratch),
            model=ModelConfig(arguments.variant, 32),
            train=TrainConfig(global_batch=1, micro_batch=1, dtype="float32"),
        )
        device = distributed.start(distributed.ranks_from_environment(os.environ))
        engine = ds.build_engine(config, VisionTransformer(config.model, 1000).to(device), 1)
        engine.backward(engine(torch.zeros(1, 3, 32, 32, device=device)).sum())
        engine.step()
        savers = {
            background: Saver(
                dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, background=background)),
                FACTS,
            )
            for background in (True, False)
        }
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(arguments.rounds + 1):
            for background, saver in savers.items():
                began = time.perf_counter()
                saver.save(engine, 2 * turn + background)
                seconds[background].append(time.perf_counter() - began)
                saver.finish()
        size = sum(
            entry["bytes"] for entry in checkpoint.read_meta(checkpoint.complete(config.run_dir)[-1]).files.values()
        )
        waits, whole = (statistics.median(values[1:]) for values in seconds.values())  # the first makes the buffers
        print(f"# {size / 1e9:.2f} GB; waits {seconds[True]}, whole saves {seconds[False]}")
        report = {
            "claim": f"training waits for a background checkpoint of {arguments.variant}",
            "ours": round(waits, 3),
            "peer": round(whole, 3),
            "limit": 0.05,
            "ratio": round(waits / whole, 4),
            "unit": "seconds, against a save that is waited for",
            "machine": f"{device.type}, 1 rank",
        }
        print(json.dumps(report))


if __name__ == "__main__":
    main()
