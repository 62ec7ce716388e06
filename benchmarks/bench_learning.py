"""Does the model learn like timm's? The same loop, data, optimizer and schedule; only the network's code differs.

timm's takes part twice: started as the paper starts its models (our weights), and by its own initialisation.

python benchmarks/bench_learning.py [--data DATASET [--eval DATASET]] [--epochs 10] [--seeds 3]
Without --data: scikit-learn's digits. Prints each seed's held-out top-1, then a JSON line with the means.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.peers import import_peer
from data_prep import shard
from jobs.demo import write_raw
from pipeline.config.recipes import PRETRAIN
from pipeline.config.schedule import learning_rate
from pipeline.config.schema import ModelConfig, Variant
from pipeline.dataset.joined_split import JoinedSplit, open_split
from pipeline.engine import optimizer as optim
from pipeline.evaluation.accuracy import evaluate
from pipeline.loader.batches import train_batches
from pipeline.loader.transforms import TrainTransform
from pipeline.model.losses import loss as loss_of
from pipeline.model.preprocess import normalise
from pipeline.model.vit import ARCHITECTURES, VisionTransformer, initialise

OURS = "ours"
PEERS = ("timm, the same weights", "timm, its own")  # at the start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--eval", type=Path)
    parser.add_argument("--epochs", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", default=[OURS, *PEERS], choices=[OURS, *PEERS])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.data or digits(Path(scratch))
        train, held_out = open_split(folder, "train"), open_split(arguments.eval or folder, "val")
        scores: dict[str, list[float]] = {name: [] for name in arguments.contenders}
        for seed in range(arguments.seeds):
            for name, results in scores.items():
                began = time.perf_counter()
                results.append(learn(name, train, held_out, arguments.epochs, seed, flip=arguments.data is not None))
                print(f"{name} seed {seed}: top-1 {results[-1]:.2%} in {time.perf_counter() - began:.0f} s", flush=True)
    machine = f"{torch.get_num_threads()} thread"
    print(f"# standard deviations: {[round(statistics.stdev(v), 4) if len(v) > 1 else 0.0 for v in scores.values()]}")
    ours = statistics.fmean(scores[OURS])
    for name in arguments.contenders[1:]:
        theirs = statistics.fmean(scores[name])
        report = {
            "claim": f"tiny on {train.info.name}, {arguments.epochs:g} epochs, {arguments.seeds} seeds, against {name}",
            "ours": round(ours, 4),
            "peer": round(theirs, 4),
            "limit": 0.98,
            "ratio": round(ours / theirs, 4),
            "unit": "top-1",
            "machine": machine,
        }
        print(json.dumps(report))


def digits(scratch: Path) -> Path:
    write_raw(scratch / "digits_whole.tar", classes=10)
    command = [scratch / "digits_whole.tar", scratch / "digits", "--val-fraction", 0.25, "--workers", 1]
    assert shard.main([str(argument) for argument in command]) == 0
    return scratch / "digits"


def build(name: str, classes: int, seed: int, size: int) -> torch.nn.Module:
    config = dataclasses.replace(PRETRAIN["tiny"].config.model, image_size=size)
    model = VisionTransformer(config, classes)
    initialise(model, seed)
    if name == OURS:
        return model
    torch.manual_seed(seed)
    theirs = timms("tiny", classes, size)
    if name == PEERS[0]:
        theirs.load_state_dict(model.state_dict())
    return theirs


def timms(variant: Variant, classes: int, size: int) -> torch.nn.Module:
    """timm's network of a variant's sizes, as timm initialises it."""
    sizes = ARCHITECTURES[variant]
    network: torch.nn.Module = import_peer("timm").models.VisionTransformer(
        img_size=size,
        patch_size=sizes.patch,
        embed_dim=sizes.width,
        depth=sizes.depth,
        num_heads=sizes.heads,
        mlp_ratio=sizes.mlp / sizes.width,
        num_classes=classes,
        act_layer="gelu_tanh",
    )
    return network


def learn(name: str, train: JoinedSplit, held_out: JoinedSplit, epochs: float, seed: int, *, flip: bool) -> float:
    """Held-out top-1 after ``epochs``."""
    recipe, size = PRETRAIN["tiny"].config, 32
    model = build(name, train.info.classes, seed, size)
    optimizer = optim.build(recipe.optim, model)
    batch = recipe.train.global_batch
    steps = round(epochs * len(train) / batch)
    transform = TrainTransform(size, recipe.data.augment, min_area=0.5, flip=flip)
    batches = train_batches(
        train, transform, seed=seed, global_batch=batch, micro_batch=batch, rank=0, world_size=1, workers=0,
        start_step=0, stop_step=steps,
    )  # fmt: skip
    model.train()
    for step, item in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe.schedule, recipe.optim.lr, step, steps)
        loss_of("softmax", model(normalise(item.images_BHWC, torch.float32)), item.labels_B).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.clip)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return evaluate(
        model, held_out, model=ModelConfig(image_size=size), batch=100, loss="softmax", workers=0,
        device=torch.device("cpu"), dtype=torch.float32, rank=0, world_size=1, reduce=lambda sums: sums,
    ).top1  # fmt: skip


if __name__ == "__main__":
    main()
