"""The recipes: name, base (pipeline.config.bases), differences from the base, and source of the settings.

The first part of a name is the model's variant. The number of steps follows from the epochs and the size of the
training split, once. The accuracy that a run should reach is in pipeline.config.published. Only the 512 px recipes
average the weights (train.average), as in the paper's section 4.1. B/32 and L/32 with DeiT III's settings are ours.

    python -m jobs.pretrain b16 --run-dir runs/b16 --data.train shards/in21k
    python -m jobs.finetune b16 --parent runs/b16 --run-dir runs/b16_384 --data.train shards/in1k
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config.bases import AUGREG, DEIT3, DEIT3_224, DEIT3_384, PAPER, TABLE_4, TINY, TINY_48
from pipeline.config.published import target
from pipeline.config.schema import RunConfig
from pipeline.config.serialize import with_values


@dataclass(frozen=True)
class Recipe:
    config: RunConfig
    source: str  # what the recipe is and where its settings come from

    @property
    def summary(self) -> str:
        """One line for --help."""
        return f"{self.source} {target(self.config.stage, self.config.recipe)}"


def _table(*rows: tuple[str, RunConfig, Mapping[str, Any], str]) -> dict[str, Recipe]:
    found = {}
    for name, base, changes, source in rows:
        own = {"recipe": name, "model.variant": name.partition("_")[0], **changes}
        found[name] = Recipe(with_values(base, own), source)
    return found


_DROP = {"model.dropout": 0.1, "model.stochastic_depth": 0.1}
_512 = {"model.image_size": 512, "train.average": 0.9999}

PRETRAIN = _table(
    # name         base    differs                             source
    ("b16",         AUGREG, {"data.augment": "medium1"},
     "AugReg B/16: 300 epochs, medium1, weight decay 0.1, no dropout (AugReg's recommendation)."),
    ("b32",         AUGREG, {"data.augment": "light1"},
     "AugReg B/32: 300 epochs, light1, weight decay 0.1, no dropout (AugReg's recommendation)."),
    # the best of AugReg's L/16, though its README recommends strong1
    ("l16",         AUGREG, {"data.augment": "medium1"} | _DROP,
     "AugReg L/16: 300 epochs, medium1, dropout and stochastic depth 0.1, fine-tuned at lr 0.01."),
    ("l16_strong1", AUGREG, {"data.augment": "strong1"},
     "AugReg L/16: 300 epochs, strong1, no dropout (its README's recommendation)."),
    ("l32",         AUGREG, {"data.augment": "medium1"} | _DROP,
     "L/32 with AugReg's L/16 settings: AugReg has no L/32."),
    ("b16_deit3",   DEIT3,  {"model.stochastic_depth": 0.1}, "DeiT III B/16: 240 epochs, LAMB, CutMix, 3-Augment."),
    ("b32_deit3",   DEIT3,  {"model.stochastic_depth": 0.1}, "B/32 with DeiT III's B/16 settings: ours."),
    ("l16_deit3",   DEIT3,  {"model.stochastic_depth": 0.3}, "DeiT III L/16: 240 epochs, LAMB, CutMix, 3-Augment."),
    ("l32_deit3",   DEIT3,  {"model.stochastic_depth": 0.3}, "L/32 with DeiT III's L/16 settings: ours."),
    ("b16_paper",   PAPER,  {}, "Paper B/16 (Table 3): 90 epochs, linear decay, dropout 0.1."),
    ("b32_paper",   PAPER,  {}, "Paper B/32 (Table 3): 90 epochs, linear decay, dropout 0.1."),
    # Table 3 has a 30-epoch run too: --schedule.epochs 30
    ("l16_paper",   PAPER,  {}, "Paper L/16 (Table 3): 90 epochs, linear decay, dropout 0.1."),
    ("l32_paper",   PAPER,  {}, "Paper L/32 (Table 3): 90 epochs, linear decay, dropout 0.1."),
    ("tiny",        TINY,   {},
     "1.2 M parameters on 32 px images: for the demo and the tests, minutes on a laptop's CPU."),
)  # fmt: skip

FINETUNE_RATES = (0.003, 0.01, 0.03, 0.06)  # Table 4's, for ImageNet
FINETUNE = _table(
    # name           base       differs                                            source
    ("b16",           TABLE_4,   {},                                                "Paper B/16 at 384 px (Table 4)."),
    ("b16_224",       TABLE_4,   {"model.image_size": 224},
     "B/16 at 224 px with the paper's settings (Table 4), which AugReg uses too."),
    ("b16_512",       TABLE_4,   _512,
     "B/16 at 512 px with averaged weights: the L/16 settings of the paper's Table 2 (section 4.1)."),
    ("b32",           TABLE_4,   {},                                                "Paper B/32 at 384 px (Table 4)."),
    ("b32_224",       TABLE_4,   {"model.image_size": 224},
     "B/32 at 224 px with the paper's settings (Table 4), which AugReg uses too."),
    ("b32_512",       TABLE_4,   _512,
     "B/32 at 512 px with averaged weights: the L/16 settings of the paper's Table 2 (section 4.1)."),
    ("l16",           TABLE_4,   {"optim.lr": 0.01},
     "L/16 at 384 px (paper's Table 4, with AugReg's best lr, 0.01)."),
    ("l16_224",       TABLE_4,   {"optim.lr": 0.01, "model.image_size": 224},
     "L/16 at 224 px (paper's Table 4, with AugReg's best lr, 0.01)."),
    ("l16_512",       TABLE_4,   _512,
     "L/16 at 512 px with averaged weights (paper's Table 2, section 4.1)."),
    ("l16_strong1",   TABLE_4,   {},
     "L/16 at 384 px (paper's Table 4), lr 0.03, after pretraining with AugReg's strong1."),
    ("l32",           TABLE_4,   {},                                                "Paper L/32 at 384 px (Table 4)."),
    ("l32_224",       TABLE_4,   {"model.image_size": 224},
     "L/32 at 224 px with the paper's settings (Table 4), which AugReg uses too."),
    ("l32_512",       TABLE_4,   _512,
     "L/32 at 512 px with averaged weights: the L/16 settings of the paper's Table 2 (section 4.1)."),
    ("b16_deit3",     DEIT3_384, {"model.stochastic_depth": 0.15}, "DeiT III B/16 at 384 px after 224 px: 20 epochs."),
    ("b16_deit3_224", DEIT3_224, {"model.stochastic_depth": 0.15}, "DeiT III B/16 at 224 px: 50 epochs."),
    ("b32_deit3",     DEIT3_384, {"model.stochastic_depth": 0.15},
     "B/32 at 384 px after 224 px with DeiT III's B/16 settings: ours."),
    ("b32_deit3_224", DEIT3_224, {"model.stochastic_depth": 0.15},
     "B/32 at 224 px with DeiT III's B/16 settings: ours."),
    ("l16_deit3",     DEIT3_384, {"model.stochastic_depth": 0.4}, "DeiT III L/16 at 384 px after 224 px: 20 epochs."),
    ("l16_deit3_224", DEIT3_224, {"model.stochastic_depth": 0.4}, "DeiT III L/16 at 224 px: 50 epochs."),
    ("l32_deit3",     DEIT3_384, {"model.stochastic_depth": 0.4},
     "L/32 at 384 px after 224 px with DeiT III's L/16 settings: ours."),
    ("l32_deit3_224", DEIT3_224, {"model.stochastic_depth": 0.4},
     "L/32 at 224 px with DeiT III's L/16 settings: ours."),
    ("tiny",          TINY_48,   {}, "The demo's second stage: the tiny model at 48 px."),
)  # fmt: skip
RECIPES: dict[str, dict[str, Recipe]] = {"pretrain": PRETRAIN, "finetune": FINETUNE}  # by stage
