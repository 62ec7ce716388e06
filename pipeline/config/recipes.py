"""The published recipes, as functions that return a whole configuration.

Sources: "paper" is arXiv 2010.11929 with the released checkpoints of github.com/google-research/vision_transformer;
"AugReg" is arXiv 2106.10270. Targets are ImageNet-2012 validation top-1, per cent, after fine-tuning at 384 px, as
their authors measured them (the images resized to the square); "timm" is timm's evaluation of the same weights (results
of August 2026: bicubic, the whole image for 384 px). DeiT III's recipes are in pipeline.config.recipes_deit3. The
number of steps follows from the epochs and the size of the training split, once; all batch sizes are global. Only the
512 px recipes average the weights (train.average), as the Paper's section 4.1.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from pipeline.config import recipes_deit3
from pipeline.config.schema import (
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
    Variant,
)


def b16() -> RunConfig:
    """AugReg B/16: 300 epochs, medium1, weight decay 0.1, no dropout (AugReg's recommendation). Target: 85.49.

    python -m jobs.pretrain b16 --run-dir runs/b16 --data.train shards/in21k
    """
    return _augreg("b16", "medium1")


def b32() -> RunConfig:
    """AugReg B/32: 300 epochs, light1, weight decay 0.1, no dropout (AugReg's recommendation). Target: 83.59.

    python -m jobs.pretrain b32 --run-dir runs/b32 --data.train shards/in21k
    """
    return _augreg("b32", "light1")


def l16() -> RunConfig:
    """AugReg L/16: 300 epochs, medium1, dropout and stochastic depth 0.1. Target: 87.10 (timm; fine-tuned at lr 0.01).

    The best of AugReg's L/16, though its README recommends strong1: the recipe l16_strong1.

    python -m jobs.pretrain l16 --run-dir runs/l16 --data.train shards/in21k
    """
    return _augreg("l16", "medium1", drop=0.1)


def l16_strong1() -> RunConfig:
    """AugReg L/16: 300 epochs, strong1, no dropout (its README's recommendation). Target: 85.59 (its README).

    python -m jobs.pretrain l16_strong1 --run-dir runs/l16_strong1 --data.train shards/in21k
    """
    return replace(_augreg("l16", "strong1"), recipe="l16_strong1")


def l32() -> RunConfig:
    """L/32 with AugReg's L/16 settings: AugReg has no L/32, so there is no published target; the paper's is 80.99.

    python -m jobs.pretrain l32 --run-dir runs/l32 --data.train shards/in21k
    """
    return _augreg("l32", "medium1", drop=0.1)


def b16_paper() -> RunConfig:
    """Paper B/16 (Table 3): 90 epochs, linear decay, dropout 0.1. Targets: 83.97 (Table 5); 47.88 upstream (prec@1).

    python -m jobs.pretrain b16_paper --run-dir runs/b16_paper --data.train shards/in21k
    """
    return _paper("b16")


def b32_paper() -> RunConfig:
    """Paper B/32 (Table 3): 90 epochs, linear decay, dropout 0.1. Targets: 81.28 (Table 5); 44.04 upstream (prec@1).

    python -m jobs.pretrain b32_paper --run-dir runs/b32_paper --data.train shards/in21k
    """
    return _paper("b32")


def l16_paper() -> RunConfig:
    """Paper L/16 (Table 3): 90 epochs, linear decay, dropout 0.1. Targets: 85.15 (Table 5); 49.90 upstream (prec@1).

    Table 3 has a 30-epoch run too: --schedule.epochs 30.

    python -m jobs.pretrain l16_paper --run-dir runs/l16_paper --data.train shards/in21k
    """
    return _paper("l16")


def l32_paper() -> RunConfig:
    """Paper L/32 (Table 3): 90 epochs, linear decay, dropout 0.1. Targets: 80.99 (Table 5); 45.42 upstream (prec@1).

    python -m jobs.pretrain l32_paper --run-dir runs/l32_paper --data.train shards/in21k
    """
    return _paper("l32")


def tiny() -> RunConfig:
    """1.2 M parameters on 32 px images: for the demo and the tests, minutes on a laptop's CPU. No published target.

    python -m jobs.pretrain tiny --run-dir runs/tiny --data.train shards/digits
    """
    return RunConfig(
        stage="pretrain",
        recipe="tiny",
        model=ModelConfig(variant="tiny", image_size=32),
        optim=OptimConfig(kind="adamw", lr=1e-3, weight_decay=0.1, clip=1.0),
        schedule=ScheduleConfig(epochs=20.0, warmup_steps=20, decay="cosine"),
        train=TrainConfig(global_batch=64, micro_batch=32, loss="softmax", dtype="float32", log_every=10, eval_every=0),
        checkpoint=CheckpointConfig(every=100),
    )


def finetune_b16() -> RunConfig:
    """Paper B/16 at 384 px (Table 4). Target: 83.97 from the paper's checkpoint, 85.49 from AugReg's (its README).

    AugReg's own lr 0.01 gives 86.01 in timm's evaluation: --optim.lr 0.01.

    python -m jobs.finetune b16 --parent runs/b16 --run-dir runs/b16_384 --data.train shards/in1k
    """
    return _finetune("b16", 384)


def finetune_b32() -> RunConfig:
    """Paper B/32 at 384 px (Table 4). Target: 81.28 from the paper's checkpoint, 83.59 from AugReg's (its README).

    python -m jobs.finetune b32 --parent runs/b32 --run-dir runs/b32_384 --data.train shards/in1k
    """
    return _finetune("b32", 384)


def finetune_l16() -> RunConfig:
    """L/16 at 384 px (Paper's Table 4, lr 0.01 as AugReg's best). Target: 87.10 from AugReg's medium1 (timm's figure).

    From the paper's checkpoint 85.15 (Table 5), at the best of its four learning rates.

    python -m jobs.finetune l16 --parent runs/l16 --run-dir runs/l16_384 --data.train shards/in1k
    """
    return _finetune("l16", 384, lr=0.01)


def finetune_l16_strong1() -> RunConfig:
    """L/16 at 384 px (Paper's Table 4), lr 0.03, after AugReg's strong1. Target: 85.59 (AugReg's README).

    python -m jobs.finetune l16_strong1 --parent runs/l16_strong1 --run-dir runs/l16s_384 --data.train shards/in1k
    """
    return replace(_finetune("l16", 384), recipe="l16_strong1")


def finetune_l32() -> RunConfig:
    """Paper L/32 at 384 px (Table 4). Target: 80.99 from the paper's checkpoint; 81.51 in timm's evaluation.

    python -m jobs.finetune l32 --parent runs/l32 --run-dir runs/l32_384 --data.train shards/in1k
    """
    return _finetune("l32", 384)


def finetune_b16_224() -> RunConfig:
    """B/16 at 224 px with the Paper's settings (Table 4), as AugReg has it too. Target: none in the Paper.

    python -m jobs.finetune b16_224 --parent runs/b16 --run-dir runs/b16_224 --data.train shards/in1k
    """
    return _finetune("b16", 224)


def finetune_b32_224() -> RunConfig:
    """B/32 at 224 px with the Paper's settings (Table 4), as AugReg has it too. Target: none in the Paper.

    python -m jobs.finetune b32_224 --parent runs/b32 --run-dir runs/b32_224 --data.train shards/in1k
    """
    return _finetune("b32", 224)


def finetune_l16_224() -> RunConfig:
    """L/16 at 224 px (Paper's Table 4, lr 0.01 as AugReg's best). Target: 85.86 from AugReg's medium1 (timm's figure).

    python -m jobs.finetune l16_224 --parent runs/l16 --run-dir runs/l16_224 --data.train shards/in1k
    """
    return _finetune("l16", 224, lr=0.01)


def finetune_l32_224() -> RunConfig:
    """L/32 at 224 px with the Paper's settings (Table 4), as AugReg has it too. Target: none in the Paper.

    python -m jobs.finetune l32_224 --parent runs/l32 --run-dir runs/l32_224 --data.train shards/in1k
    """
    return _finetune("l32", 224)


def finetune_b16_512() -> RunConfig:
    """B/16 at 512 px with averaged weights, as the Paper's Table 2 has L/16 (section 4.1). No target of its own.

    python -m jobs.finetune b16_512 --parent runs/b16 --run-dir runs/b16_512 --data.train shards/in1k
    """
    return _finetune("b16", 512, average=0.9999)


def finetune_b32_512() -> RunConfig:
    """B/32 at 512 px with averaged weights, as the Paper's Table 2 has L/16 (section 4.1). No target of its own.

    python -m jobs.finetune b32_512 --parent runs/b32 --run-dir runs/b32_512 --data.train shards/in1k
    """
    return _finetune("b32", 512, average=0.9999)


def finetune_l16_512() -> RunConfig:
    """L/16 at 512 px with averaged weights, as the Paper's Table 2 (section 4.1) has L/16. Target: 85.30 (Table 2).

    python -m jobs.finetune l16_512 --parent runs/l16 --run-dir runs/l16_512 --data.train shards/in1k
    """
    return _finetune("l16", 512, average=0.9999)


def finetune_l32_512() -> RunConfig:
    """L/32 at 512 px with averaged weights, as the Paper's Table 2 has L/16 (section 4.1). No target of its own.

    python -m jobs.finetune l32_512 --parent runs/l32 --run-dir runs/l32_512 --data.train shards/in1k
    """
    return _finetune("l32", 512, average=0.9999)


def finetune_tiny() -> RunConfig:
    """The demo's second stage: the tiny model at 48 px. No published target.

    python -m jobs.finetune tiny --parent runs/tiny --run-dir runs/tiny_48 --data.train shards/digits
    """
    return RunConfig(
        stage="finetune",
        recipe="tiny",
        model=ModelConfig(variant="tiny", image_size=48),
        optim=OptimConfig(kind="sgd", lr=0.03, clip=1.0),
        schedule=ScheduleConfig(steps=200, warmup_steps=20, decay="cosine"),
        train=TrainConfig(global_batch=64, micro_batch=32, loss="softmax", dtype="float32", log_every=10, eval_every=0),
        checkpoint=CheckpointConfig(every=100),
    )


PRETRAIN: dict[str, Callable[[], RunConfig]] = {
    "b16": b16,
    "b32": b32,
    "l16": l16,
    "l16_strong1": l16_strong1,
    "l32": l32,
    "b16_deit3": recipes_deit3.b16_deit3,
    "b32_deit3": recipes_deit3.b32_deit3,
    "l16_deit3": recipes_deit3.l16_deit3,
    "l32_deit3": recipes_deit3.l32_deit3,
    "b16_paper": b16_paper,
    "b32_paper": b32_paper,
    "l16_paper": l16_paper,
    "l32_paper": l32_paper,
    "tiny": tiny,
}
FINETUNE_RATES = (0.003, 0.01, 0.03, 0.06)  # Table 4's, for ImageNet
FINETUNE: dict[str, Callable[[], RunConfig]] = {
    "b16": finetune_b16,
    "b16_224": finetune_b16_224,
    "b16_512": finetune_b16_512,
    "b32": finetune_b32,
    "b32_224": finetune_b32_224,
    "b32_512": finetune_b32_512,
    "l16": finetune_l16,
    "l16_224": finetune_l16_224,
    "l16_512": finetune_l16_512,
    "l16_strong1": finetune_l16_strong1,
    "l32": finetune_l32,
    "l32_224": finetune_l32_224,
    "l32_512": finetune_l32_512,
    "b16_deit3": recipes_deit3.finetune_b16_deit3,
    "b16_deit3_224": recipes_deit3.finetune_b16_deit3_224,
    "b32_deit3": recipes_deit3.finetune_b32_deit3,
    "b32_deit3_224": recipes_deit3.finetune_b32_deit3_224,
    "l16_deit3": recipes_deit3.finetune_l16_deit3,
    "l16_deit3_224": recipes_deit3.finetune_l16_deit3_224,
    "l32_deit3": recipes_deit3.finetune_l32_deit3,
    "l32_deit3_224": recipes_deit3.finetune_l32_deit3_224,
    "tiny": finetune_tiny,
}


def _paper(variant: Variant) -> RunConfig:
    """Table 3's ImageNet-21K row; loss, head bias and pre_logits as in the released checkpoints."""
    return RunConfig(
        stage="pretrain",
        recipe=f"{variant}_paper",
        model=ModelConfig(variant=variant, image_size=224, pre_logits=True, dropout=0.1),
        optim=OptimConfig(kind="adamw", lr=1e-3, weight_decay=0.03),
        schedule=ScheduleConfig(epochs=90.0, warmup_steps=10_000, decay="linear", end_lr=1e-5),
        train=TrainConfig(global_batch=4096, micro_batch=64, loss="sigmoid"),
    )


def _augreg(variant: Variant, augment: Literal["light1", "medium1", "strong1"], *, drop: float = 0.0) -> RunConfig:
    """AugReg's ImageNet-21K runs; weight decay times the scheduled learning rate, as torch's AdamW has it."""
    return RunConfig(
        stage="pretrain",
        recipe=variant,
        model=ModelConfig(variant=variant, image_size=224, dropout=drop, stochastic_depth=drop),
        data=DataConfig(augment=augment),
        optim=OptimConfig(kind="adamw", lr=1e-3, weight_decay=0.1, clip=1.0),
        schedule=ScheduleConfig(epochs=300.0, warmup_steps=10_000, decay="cosine"),
        train=TrainConfig(global_batch=4096, micro_batch=64, loss="sigmoid"),
    )


def _finetune(variant: Variant, image_size: int, *, lr: float = 0.03, average: float = 0.0) -> RunConfig:
    """Table 4's ImageNet row. 0.03 is one of its four learning rates: python -m jobs.sweep tries all.

    The repository's re-runs used dropout 0 or 0.1; 0.1 was better for L/16 only (--model.dropout 0.1).
    """
    recipe = RunConfig(
        stage="finetune",
        recipe=variant if image_size == 384 else f"{variant}_{image_size}",
        model=ModelConfig(variant=variant, image_size=image_size),
        optim=OptimConfig(kind="sgd", lr=lr, momentum=0.9, clip=1.0),
        schedule=ScheduleConfig(steps=20_000, warmup_steps=500, decay="cosine"),
        train=TrainConfig(global_batch=512, micro_batch=8, loss="softmax", average=average),
    )
    return replace(recipe, train=replace(recipe.train, eval_every=1000))
