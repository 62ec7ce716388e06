"""Accuracy against timm: the same loop, dataset and schedule, with single parts replaced by timm's.

python -m benchmarks.bench_learning [--recipe tiny] [--data DATASET [--eval DATASET]] [--epochs 10] [--seeds 3]
Without --data: scikit-learn's digits. Prints each seed's held-out top-1, then a JSON line per contender with the means.

--recipe tiny: only the model is timm's, initialised as in the paper (our weights) or by timm.
--recipe deit3: DeiT III's ingredients on the tiny model, from the same weights: LayerScale and no position for the
class token, CutMix, 3-Augment with colour jitter, LAMB; each is replaced in turn, then all. Without stochastic depth.
timm's 3-Augment runs after our crop and flip. It and Mixup need torchvision, whose colour jitter timm uses.
"""

import argparse
import dataclasses
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as Pillow
from torch import Tensor

from benchmarks.peers import import_peer
from data_prep import shard
from jobs.demo import write_raw
from pipeline.config.bases import DEIT3, TINY
from pipeline.config.schedule import learning_rate
from pipeline.config.schema import ModelConfig, RunConfig
from pipeline.config.serialize import with_values
from pipeline.dataset.joined_split import JoinedSplit, open_split
from pipeline.engine import optimizer as optim
from pipeline.evaluation.accuracy import evaluate
from pipeline.imaging.jpeg import Image
from pipeline.loader.batches import train_batches
from pipeline.loader.transforms import TrainTransform, mixup_alpha, train_transform
from pipeline.model.initialisation import initialise
from pipeline.model.losses import loss as loss_of
from pipeline.model.preprocess import normalise
from pipeline.model.vit import ARCHITECTURES, VisionTransformer
from pipeline.train.mixup import NOTHING, draw_mix, mix

OURS = "ours"
RECIPES = {
    "tiny": with_values(TINY, {"model.variant": "tiny", "data.min_area": 0.5}),
    "deit3": with_values(DEIT3, {
        "model.variant": "tiny", "model.image_size": 32, "optim.lr": 3e-3, "schedule.warmup_epochs": 0.0,
        "schedule.warmup_steps": 40, "train.global_batch": 64,
    }),
}  # fmt: skip
# By recipe: contender -> which parts are timm's; start: its own initial weights
CONTENDERS: dict[str, dict[str, set[str]]] = {
    "tiny": {OURS: set(), "timm, the same weights": {"model"}, "timm, its own": {"model", "start"}},
    "deit3": {
        OURS: set(),
        "timm's model": {"model"},
        "timm's Mixup": {"mix"},
        "timm's 3-Augment": {"augment"},
        "timm's Lamb": {"optimizer"},
        "timm's all": {"model", "mix", "augment", "optimizer"},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=list(RECIPES), default="tiny")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--eval", type=Path)
    parser.add_argument("--epochs", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", help="beside ours; default: all of the recipe")
    arguments = parser.parse_args()
    known = CONTENDERS[arguments.recipe]
    if unknown := set(arguments.contenders or ()) - known.keys():
        parser.error(f"--contenders {sorted(unknown)} unknown: choose from {list(known)}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.data or digits(Path(scratch))
        train, held_out = open_split(folder, "train"), open_split(arguments.eval or folder, "val")
        recipe = with_values(RECIPES[arguments.recipe], {"data.flip": arguments.data is not None})
        scores: dict[str, list[float]] = {
            name: [] for name in known if name == OURS or name in (arguments.contenders or known)
        }
        for seed in range(arguments.seeds):
            for name, results in scores.items():
                began = time.perf_counter()
                results.append(learn(recipe, known[name], train, held_out, arguments.epochs, seed))
                print(f"{name} seed {seed}: top-1 {results[-1]:.2%} in {time.perf_counter() - began:.0f} s", flush=True)
    spreads = {name: statistics.stdev(found) if len(found) > 1 else math.nan for name, found in scores.items()}
    for name, found in scores.items():
        print(f"# {name}: {statistics.fmean(found):.2%}, standard deviation {spreads[name]:.2%} (n={len(found)})")
    ours = statistics.fmean(scores.pop(OURS))
    for name, found in scores.items():
        theirs = statistics.fmean(found)
        error = math.hypot(spreads[OURS], spreads[name]) / math.sqrt(len(found))
        print(f"# ours - {name}: {ours - theirs:+.2%}, standard error {error:.2%}")
        report = {
            "claim": f"{arguments.recipe} on {train.info.name}, {arguments.epochs:g} epochs, {arguments.seeds} seeds, "
            f"against {name}",
            "ours": round(ours, 4),
            "peer": round(theirs, 4),
            "limit": 0.98,
            "ratio": round(ours / theirs, 4),
            "unit": "top-1",
            "machine": f"{torch.get_num_threads()} thread",
        }
        print(json.dumps(report))


def digits(scratch: Path) -> Path:
    write_raw(scratch / "digits_whole.tar", classes=10)
    command = [scratch / "digits_whole.tar", scratch / "digits", "--val-fraction", 0.25, "--workers", 1]
    assert shard.main([str(argument) for argument in command]) == 0
    return scratch / "digits"


def build(recipe: RunConfig, parts: set[str], classes: int, seed: int) -> torch.nn.Module:
    model = VisionTransformer(recipe.model, classes)
    initialise(model, seed)
    if "model" not in parts:
        return model
    torch.manual_seed(seed)
    theirs = timms(recipe.model, classes)
    if "start" not in parts:
        theirs.load_state_dict(model.state_dict())
    return theirs


def timms(model: ModelConfig, classes: int) -> torch.nn.Module:
    """timm's network of the same structure, as timm initialises it."""
    sizes = ARCHITECTURES[model.variant]
    network: torch.nn.Module = import_peer("timm").models.VisionTransformer(
        img_size=model.image_size,
        patch_size=sizes.patch,
        embed_dim=sizes.width,
        depth=sizes.depth,
        num_heads=sizes.heads,
        mlp_ratio=sizes.mlp / sizes.width,
        num_classes=classes,
        act_layer="gelu_tanh" if model.gelu == "tanh" else "gelu",
        init_values=model.layer_scale or None,
        no_embed_class=not model.class_position,
    )
    return network


@dataclasses.dataclass(frozen=True)
class TimmAugment(TrainTransform):
    """Our crop and flip, then 3-Augment and colour jitter of 0.3 as timm's create_transform chains them."""

    def __call__(self, jpeg: bytes, seed: int, out: Image) -> None:
        import_peer("timm")
        super().__call__(jpeg, seed, out)
        random.seed(seed)
        torch.manual_seed(seed)
        image = import_peer("timm.data.auto_augment").auto_augment_transform("3a")(Pillow.fromarray(out))
        strength = DEIT3.data.color_jitter
        out[:] = np.asarray(import_peer("torchvision.transforms").ColorJitter(strength, strength, strength)(image))


def transform_of(recipe: RunConfig, parts: set[str]) -> TrainTransform:
    ours = train_transform(recipe)
    if "augment" not in parts:
        return ours
    return TimmAugment(**dataclasses.asdict(dataclasses.replace(ours, augment="none", color_jitter=0.0)))


def optimizer_of(recipe: RunConfig, parts: set[str], model: torch.nn.Module) -> torch.optim.Optimizer:
    if "optimizer" not in parts:
        return optim.build(recipe.optim, model)
    groups = optim.parameter_groups(model, recipe.optim.weight_decay)
    lamb: torch.optim.Optimizer = import_peer("timm.optim").Lamb(groups, lr=recipe.optim.lr, max_grad_norm=None)
    return lamb


def mixer_of(
    recipe: RunConfig, parts: set[str], classes: int, seed: int
) -> tuple[Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]], float]:
    """A function of (step, x_BCHW, labels_B) that mixes a batch, and the label smoothing that it leaves to the loss."""
    smoothing = recipe.train.label_smoothing
    if "mix" in parts:
        np.random.seed(seed)  # noqa: NPY002 - what timm draws from
        import_peer("timm")
        theirs = import_peer("timm.data").Mixup(0.0, recipe.data.cutmix, label_smoothing=smoothing, num_classes=classes)
        return lambda _, x_BCHW, labels_B: theirs(x_BCHW, labels_B), 0.0

    def ours(step: int, x_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        how = draw_mix(seed, step, recipe.model.image_size, mixup=mixup_alpha(recipe.data), cutmix=recipe.data.cutmix)
        return (x_BCHW, labels_B) if how == NOTHING else mix(x_BCHW, F.one_hot(labels_B, classes).float(), how)

    return ours, smoothing


def learn(
    recipe: RunConfig, parts: set[str], train: JoinedSplit, held_out: JoinedSplit, epochs: float, seed: int
) -> float:
    """Held-out top-1 after ``epochs``. ``parts``: those that are timm's (CONTENDERS)."""
    classes = train.info.classes
    model = build(recipe, parts, classes, seed)
    optimizer = optimizer_of(recipe, parts, model)
    mixed, smoothing = mixer_of(recipe, parts, classes, seed)
    batch = recipe.train.global_batch
    steps = round(epochs * len(train) / batch)
    batches = train_batches(
        train, transform_of(recipe, parts), seed=seed, global_batch=batch, micro_batch=batch, rank=0, world_size=1,
        workers=0, start_step=0, stop_step=steps,
    )  # fmt: skip
    model.train()
    for step, item in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe.schedule, recipe.optim.lr, step, steps)
        x_BCHW, targets = mixed(step, normalise(item.images_BHWC, torch.float32, recipe.model), item.labels_B)
        loss_of("softmax", model(x_BCHW), targets, label_smoothing=smoothing).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.clip)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return evaluate(
        model, held_out, model=recipe.model, batch=100, loss="softmax", workers=0, resize=recipe.data.eval_resize,
        device=torch.device("cpu"), dtype=torch.float32, rank=0, world_size=1, reduce=lambda sums: sums,
    ).top1  # fmt: skip


if __name__ == "__main__":
    main()
