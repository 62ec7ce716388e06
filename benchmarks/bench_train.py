"""Training from JPEG shards against its limits (the loader alone, the step alone) and against timm under accelerate.

python -m benchmarks.bench_train [--variants l16 b16] [--photos TAR_OF_TARS] [--micro-batch 256] [--passes 4] [--eager]
On GPUs the recipes at 224 px in bfloat16; on CPUs tiny in float32, which only shows that it runs.
Each part runs in a separate process, as rank 0 of 1, for --seconds after its warm-up; the parts alternate for
--rounds. timm's model trains the same crops from our loader, in bfloat16 by accelerate's autocast, with fused AdamW.
MFU counts the work that is done; "whole" counts the last block's work for all tokens too, as published figures do.
"""

import argparse
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

os.environ["VIT_MLFLOW"] = "off"  # a separate process that would disturb the measurement

import torch
import torch.nn.functional as F

from benchmarks.bench_learning import timms
from benchmarks.bench_loader import data_set
from benchmarks.peers import import_peer
from pipeline.config.recipes import PRETRAIN
from pipeline.config.schema import RunConfig
from pipeline.config.serialize import flatten, to_dict
from pipeline.distributed.devices import best_flops
from pipeline.loader.batches import Batch, train_batches
from pipeline.loader.transforms import train_transform
from pipeline.model.flops import forward_macs
from pipeline.model.losses import loss as loss_of
from pipeline.model.preprocess import DTYPES, normalise
from pipeline.runs.folder import METRICS
from pipeline.runs.records import Line, read_lines
from pipeline.train.setup import prepare, start

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PARTS = ("train", "step", "loader", "timm")
DATA = "data.train"
LAP = 5  # optimizer steps between logged lines
WARM_UP = 5  # optimizer steps: compilation, allocations, workers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = DEVICE.type == "cuda"
    parser.add_argument("--variants", nargs="+", default=["l16", "b16"] if on_gpu else ["tiny"])
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--micro-batch", type=int, default=256 if on_gpu else 16)
    parser.add_argument("--passes", type=int, default=4, help="micro-batches per optimizer step")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--augment", default="none")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)) if on_gpu else 1)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--parts", nargs="+", default=list(PARTS))
    parser.add_argument("--eager", action="store_true", help="without torch.compile, for both")
    parser.add_argument("--only", nargs=3, metavar=("PART", "VARIANT", "DATA"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        part, variant, data = arguments.only
        measure_part(part, variant, Path(data), arguments)
        return
    with tempfile.TemporaryDirectory() as scratch:
        data = data_set(arguments.photos, Path(scratch))
        for variant in arguments.variants:
            compare(variant, data, arguments)


def compare(variant: str, data: Path, arguments: argparse.Namespace) -> None:
    rates: dict[str, list[float]] = {part: [] for part in arguments.parts}
    for _ in range(arguments.rounds):
        for part in arguments.parts:
            command = [sys.executable, "-m", "benchmarks.bench_train", *sys.argv[1:], "--only", part, variant, data]
            # no pipe: the compiler's helpers would keep it open for a while
            with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
                subprocess.run(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, check=False)
                log.seek(0)
                text = log.read()
            found = [json.loads(line) for line in text.splitlines() if line.startswith('{"rate"')]
            if not found:
                print(f"# {variant} {part} not measured: {text[-3000:]}", flush=True)
                continue
            rates[part].append(found[0]["rate"])
            print(f"# {variant} {part}: {json.dumps(found[0])}", flush=True)
    best = {part: max(values) for part, values in rates.items() if values}
    if "train" not in best:
        return
    ours = best["train"]
    config = configure(variant, data, arguments)
    peak = best_flops(DEVICE)
    for published in (False, True):
        flops = 6 * forward_macs(config.model, 1000, published=published)
        claim(f"MFU of {variant}{', last block counted whole' if published else ''}", ours * flops, peak, 0.6, "FLOP/s")
    slower = min((best[part] for part in ("loader", "step") if part in best), default=0.0)
    if slower:
        claim(f"training {variant} against the slower of loader and step", ours, slower, 0.98, "images/s")
    if "timm" in best:
        claim(f"training {variant} against timm under accelerate", ours, best["timm"], 1.0, "images/s")


def claim(text: str, ours: float, peer: float, limit: float, unit: str) -> None:
    machine = f"{torch.cuda.get_device_name()}" if DEVICE.type == "cuda" else f"{torch.get_num_threads()} threads"
    ratio = round(ours / peer, 4)
    report = {"claim": text, "ours": ours, "peer": peer, "limit": limit, "ratio": ratio, "unit": unit}
    print(json.dumps(report | {"machine": machine}), flush=True)


def measure_part(part: str, variant: str, data: Path, arguments: argparse.Namespace) -> None:
    """Print the part's images per second."""
    with tempfile.TemporaryDirectory() as scratch:
        config = configure(variant, data, arguments, Path(scratch) / "run")
        report = {"train": train_part, "step": step_part, "loader": loader_part, "timm": timm_part}[part](
            config, arguments.seconds
        )
    if DEVICE.type == "cuda" and "memory_gb" not in report:
        report["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    print(json.dumps({key: round(value, 4) for key, value in report.items()}), flush=True)


def configure(variant: str, data: Path, arguments: argparse.Namespace, run_dir: Path = Path()) -> RunConfig:
    recipe = PRETRAIN[variant].config
    micro = arguments.micro_batch
    return dataclasses.replace(
        recipe,
        run_dir=run_dir,
        data=dataclasses.replace(
            recipe.data,
            train=(str(data),),
            eval_split="none",
            augment=arguments.augment,
            workers=arguments.workers,
        ),
        schedule=dataclasses.replace(recipe.schedule, steps=10**6, warmup_steps=10),
        train=dataclasses.replace(
            recipe.train,
            global_batch=micro * arguments.passes,
            micro_batch=micro,
            dtype=arguments.dtype,
            compile="off" if arguments.eager else "on",
            log_every=LAP,
            eval_every=0,
        ),
        checkpoint=dataclasses.replace(recipe.checkpoint, every=0, background=False),
    )


def train_part(config: RunConfig, seconds: float) -> dict[str, float]:
    """Run the command itself, read its metrics, and end it when its time is over."""
    changed = flatten(to_dict(config))
    recipe = flatten(to_dict(PRETRAIN[config.recipe].config))
    options = [(name, str(value)) for name, value in changed.items() if value != recipe[name] and name != DATA]
    command = [sys.executable, "-m", "jobs.pretrain", config.recipe, f"--{DATA}", *config.data.train]
    command += [text for name, value in options for text in (f"--{name}", value)]
    with subprocess.Popen(command, start_new_session=True) as process:
        while len(lines := laps(config)) < 2 or lines[-1].time < lines[0].time + seconds:
            if process.poll() is not None:
                raise RuntimeError(f"jobs.pretrain has ended with exit code {process.returncode}")
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)  # its final checkpoint isn't needed
    steps = lines[-1].step - lines[0].step
    return {
        "rate": steps * config.train.global_batch / (lines[-1].time - lines[0].time),
        "steps": steps,
        "data_wait": statistics.mean(line.metrics["speed/data_wait"] for line in lines[1:]),
        "memory_gb": lines[-1].metrics["memory/peak_gb"],
    }


def laps(config: RunConfig) -> list[Line]:
    """The run's metrics from the end of the warm-up on."""
    path = config.run_dir / METRICS
    lines = read_lines(path)[0] if path.exists() else []
    return [line for line in lines if "speed/step_seconds" in line.metrics and line.step >= WARM_UP]


def step_part(config: RunConfig, seconds: float) -> dict[str, float]:
    """The same engine on one micro-batch on the device: forward, loss, backward, update."""
    run = start(config, prepare(config))
    engine, size, micro = run.engine, config.model.image_size, config.train.micro_batch
    images = torch.randint(256, (micro, size, size, 3), dtype=torch.uint8, device=DEVICE)
    labels = torch.zeros(micro, dtype=torch.int64, device=DEVICE)
    engine.train()

    def step() -> None:
        for _ in range(config.train.global_batch // micro):
            logits_BC = engine(normalise(images, DTYPES[config.train.dtype])).float()
            engine.backward(loss_of(config.train.loss, logits_BC, labels))
            engine.step()

    report = {"rate": config.train.global_batch * rate(step, seconds)}
    if run.tracker is not None:
        run.tracker.close("KILLED")
    run.heartbeat.stop()
    return report


def loader_part(config: RunConfig, seconds: float) -> dict[str, float]:
    batches = loader(config)
    return {"rate": config.train.micro_batch * rate(lambda: next(batches), seconds, warm_up=20)}


def timm_part(config: RunConfig, seconds: float) -> dict[str, float]:
    """accelerate's own loop: prepare, accumulate, backward."""
    accelerate = import_peer("accelerate")
    model = timms(config.model, 1000)
    passes = config.train.global_batch // config.train.micro_batch
    accelerator = accelerate.Accelerator(
        mixed_precision="bf16" if config.train.dtype == "bfloat16" else "no", gradient_accumulation_steps=passes
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    forward = torch.compile(model) if config.train.compile == "on" else model
    batches = loader(config)

    def step() -> None:
        for batch in islice(batches, passes):
            with accelerator.accumulate(model):
                x_BCHW = normalise(batch.images_BHWC.to(DEVICE, non_blocking=True), torch.float32)
                labels = batch.labels_B.to(DEVICE, non_blocking=True)
                accelerator.backward(F.cross_entropy(forward(x_BCHW), labels))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

    return {"rate": config.train.global_batch * rate(step, seconds)}


def loader(config: RunConfig) -> Iterator[Batch]:
    return train_batches(
        prepare(dataclasses.replace(config, run_dir=config.run_dir.with_name("none"))).data,
        train_transform(config),
        seed=0,
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        rank=0,
        world_size=1,
        workers=config.data.workers,
        start_step=0,
        stop_step=10**6,
    )


def rate(step: Callable[[], Any], seconds: float, *, warm_up: int = WARM_UP) -> float:
    """Calls per second after warm-up."""
    for _ in range(warm_up):
        step()
    synchronise()
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        step()
        synchronise()  # as the training loop does
        calls += 1
    return calls / (time.perf_counter() - began)


def synchronise() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
