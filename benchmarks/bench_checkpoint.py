"""How long training waits for a background checkpoint, compared with a blocking one.

python -m benchmarks.bench_checkpoint [--variant b32] [--batch 4] [--rounds 3]
One rank, ZeRO-1: weights and both moments of AdamW, float32. The step after each save waits for the copy to finish
before it changes the weights; this wait is measured. The copy also slows down the step, which is printed too.
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

from pipeline.checkpoint import format as checkpoint
from pipeline.checkpoint.saver import Saver
from pipeline.config.schema import ModelConfig, RunConfig, TrainConfig
from pipeline.distributed import process_group
from pipeline.distributed.heartbeat import Heartbeat
from pipeline.distributed.ranks import ranks_from_environment
from pipeline.engine import deepspeed_engine as ds
from pipeline.model.vit import VisionTransformer

FACTS = {"classes": 1000, "classes_digest": "", "dataset_digest": ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", default="b32")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        config = RunConfig(
            run_dir=Path(scratch),
            model=ModelConfig(arguments.variant, 224),
            train=TrainConfig(global_batch=arguments.batch, micro_batch=arguments.batch, dtype="float32"),
        )
        device = process_group.start(ranks_from_environment(os.environ))
        heartbeat = Heartbeat(0, 1).start()
        engine = ds.build_engine(config, VisionTransformer(config.model, 1000).to(device), 1)
        images_BCHW = torch.zeros(arguments.batch, 3, 224, 224, device=device)

        def step(saver: Saver | None) -> tuple[float, float]:
            """Seconds of forward and backward, and of waiting before the update."""
            began = time.perf_counter()
            engine.backward(engine(images_BCHW).sum())
            computed = time.perf_counter()
            if saver is not None:
                saver.settle()
            waited = time.perf_counter()
            engine.step()
            return computed - began, waited - computed

        step(None)
        savers = {
            background: Saver(
                dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, background=background)),
                FACTS,
                heartbeat.connect(),
            )
            for background in (True, False)
        }
        waits: list[float] = []
        whole: list[float] = []
        steps: dict[str, list[float]] = {"undisturbed": [], "beside a save": []}
        for turn in range(arguments.rounds + 1):
            steps["undisturbed"].append(step(None)[0])
            began = time.perf_counter()
            savers[True].save(engine, 2 * turn)
            saved = time.perf_counter() - began
            computed, waited = step(savers[True])
            waits.append(saved + waited)
            steps["beside a save"].append(computed)
            savers[True].finish()
            began = time.perf_counter()
            savers[False].save(engine, 2 * turn + 1)
            whole.append(time.perf_counter() - began)
        size = sum(
            entry["bytes"] for entry in checkpoint.read_meta(checkpoint.complete(config.run_dir)[-1]).files.values()
        )
        print(f"# {size / 1e9:.2f} GB; waits {waits}, whole saves {whole}, forward and backward {steps}")
        wait, save = (statistics.median(values[1:]) for values in (waits, whole))  # the first allocates the buffers
        report = {
            "claim": f"training waits for a background checkpoint of {arguments.variant}",
            "ours": round(wait, 3),
            "peer": round(save, 3),
            "limit": 0.05,
            "ratio": round(wait / save, 4),
            "unit": "seconds, against a blocking save",
            "machine": f"{device.type}, 1 rank",
        }
        print(json.dumps(report))


if __name__ == "__main__":
    main()
