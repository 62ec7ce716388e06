"""The configuration of a run: frozen dataclasses, one a subject. Imports no torch.

Batch sizes are in samples, times in seconds, sizes of images in pixels. Every field can be overridden on the command
line by its path, such as ``--optim.lr 3e-4``. Each field is a ``setting`` (pipeline.config.facts): its default, whether
a resumed run may change it, the range of a number, and what else is known of it. The docstring below is its --help.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config import needs
from pipeline.config.facts import (
    BETWEEN_0_AND_1,
    FIXED,
    FREE,
    INHERITED,
    LESS_THAN_ONE,
    NONE_OR_MORE,
    NOT_ZERO,
    ONE_OR_MORE,
    ONE_TO_MANY,
    PIXELS,
    POSITIVE,
    RETUNED,
    SECONDS,
    SEED,
    SHARE,
    UP_TO_MANY,
    Range,
    setting,
)
from pipeline.core.errors import UserError

Variant = Literal["b16", "b32", "l16", "l32", "tiny"]
Decode = Literal["region", "scaled", "full"]
Resize = Literal["square", "central", "bicubic"]
Attention = Literal["auto", "flash", "cudnn", "efficient", "math"]
Augmentation = Literal[
    "none", "light1", "light2", "medium1", "medium2", "strong1", "strong2", "3-augment", "rand-m9-mstd0.5-inc1"
]

USUAL_MFU = 0.4  # fraction of a device's peak FLOP/s that training is expected to reach


@dataclass(frozen=True)
class ModelConfig:
    variant: Variant = setting("b16", FIXED)
    """B = Base, L = Large, the number is the patch size; tiny is for CPUs and tests."""
    image_size: int = setting(224, FIXED, PIXELS)
    """Side of the square input, pixels; a multiple of the patch size."""
    pre_logits: bool = setting(False, FIXED)
    """A Dense + tanh layer before the head, as in the paper's ImageNet-21K models."""
    dropout: float = setting(0.0, FIXED, LESS_THAN_ONE)
    stochastic_depth: float = setting(0.0, FIXED, LESS_THAN_ONE)
    """Drop rate of a residual branch in the last block."""
    stochastic_depth_decay: Literal["linear", "constant"] = setting("linear", FIXED, needs=needs.STOCHASTIC_DEPTH)
    """Drop rates of the other blocks. linear: they grow from 0 at the first block. constant: the same (DeiT III)."""
    gelu: Literal["tanh", "exact"] = setting("tanh", FIXED)
    """tanh: the approximation that the published models were trained with. exact: as timm and transformers assume."""
    norm_eps: float = setting(1e-6, FIXED, NONE_OR_MORE)
    """Epsilon of every LayerNorm."""
    layer_scale: float = setting(0.0, FIXED, NONE_OR_MORE)
    """Initial value of LayerScale, a learned factor per channel of each residual branch (arXiv 2103.17239; DeiT III:
    1e-4). 0: no LayerScale."""
    class_position: bool = setting(True, FIXED)
    """The position embedding has an entry for the class token. Off: one per patch only (DeiT III, big_vision)."""
    registers: int = setting(0, FIXED, Range(0, 64))
    """Register tokens after the class token, without an entry in the position embedding (arXiv 2309.16588)."""
    initialisation: Literal["vit", "deit3"] = setting("vit", FIXED)
    """Random weights. vit: as google-research/vision_transformer draws them. deit3: as facebookresearch/deit, normal of
    standard deviation 0.02."""
    position_resize: Literal["bilinear", "bicubic"] = setting("bilinear", FIXED, needs=needs.PARENT)
    """Resizing of a parent's position embedding to another image size. bilinear: corners aligned, as the paper's code.
    bicubic: corners not aligned, as DeiT and DeiT III."""
    mean: tuple[float, float, float] = setting((0.5, 0.5, 0.5), INHERITED)
    """Mean of the input normalisation (R, G, B; pixels from 0 to 1). ImageNet's: 0.485 0.456 0.406."""
    std: tuple[float, float, float] = setting((0.5, 0.5, 0.5), INHERITED)
    """Standard deviation of the input normalisation. ImageNet's: 0.229 0.224 0.225."""
    activation_checkpointing: bool = setting(False, FIXED)
    """Recompute each block in the backward pass: about a third more FLOPs, far less memory, the same numbers."""


@dataclass(frozen=True)
class DataConfig:
    train: tuple[str, ...] = setting((), FREE, seeds=True, hidden=True, path=True)
    """The training data set, made by data_prep.shard: its folder, or its URL (https://, s3://, ... or a command such as
    'pipe:ssh host cat /data/{}'). Several with the same classes are joined. Required."""
    train_split: str = setting("train", FIXED)
    weights: tuple[float, ...] = setting((), FIXED, needs=needs.SEVERAL_DATASETS)
    """How often the samples of each training data set come, in proportion. Empty: all samples alike, once an epoch."""
    percent: float = setting(100.0, FIXED, Range(0, 100, above=True))
    """Train on the first samples of the index only, this share of each data set: for quick experiments."""
    classes: Path | None = setting(None, FIXED, path=True)
    """Train and evaluate on the samples of some classes only: a text file, one wnid a line. The model keeps all."""
    eval: str = setting("", FREE, seeds=True, hidden=True, path=True)
    """The evaluation data set; without it, the (first) training data set's eval split if it has one."""
    eval_split: str = setting("val", FIXED)
    """Its split. none: no evaluation, where no data.eval is named."""
    cache: Path | None = setting(None, FREE, seeds=True, hidden=True, path=True, needs=needs.REMOTE_DATA)
    """Folder on a disk of the node for shards that come from URLs, shared by its ranks. Default: VIT_CACHE, or
    ~/.cache/vit-pipeline."""
    cache_gb: float = setting(100.0, FREE, POSITIVE, seeds=True, hidden=True, needs=needs.REMOTE_DATA)
    """Size of the cache; the shards used longest ago make room."""
    augment: Augmentation = setting("none", FIXED)
    """Augmentation on top of crop and flip. light1 to strong2: RandAugment and mixup by AugReg's names (arXiv
    2106.10270, section 3). 3-augment: greyscale, solarisation or blur (DeiT III, arXiv 2204.07118).
    rand-m9-mstd0.5-inc1: RandAugment by timm's name."""
    color_jitter: float = setting(0.0, FIXED, SHARE)
    """Brightness, contrast and saturation each change by a factor uniform in 1 -+ this, after data.augment."""
    mixup: float | None = setting(None, FIXED, NONE_OR_MORE)
    """Alpha of mixup's Beta distribution; 0 turns mixup off. Default: what data.augment's name includes."""
    cutmix: float = setting(0.0, FIXED, NONE_OR_MORE)
    """Alpha of CutMix's Beta distribution; 0 turns CutMix off. With mixup, each step has one or the other."""
    min_area: float = setting(0.05, FIXED, NOT_ZERO, needs=needs.INCEPTION_CROP)
    """Smallest fraction of the image's area that a random crop covers (Inception crop: 0.05)."""
    flip: bool = setting(True, FIXED)
    """Mirror half of the training images. Turn off where left and right mean something, as in digits."""
    crop: Literal["inception", "resize", "simple"] = setting("inception", FIXED)
    """Crop of training images. inception: random area and aspect. resize: a random square of 7/8 of the short side.
    simple: the short side is resized to the input size, 4 pixels are reflected at each border, and a random square is
    cut out (DeiT III's simple random crop; always bicubic)."""
    interpolation: Literal["bilinear", "bicubic"] = setting("bilinear", FIXED, needs=needs.NOT_SIMPLE_CROP)
    """Resizing of training crops. bilinear: from the 2 x 2 nearest pixels, as the published ViT code. bicubic:
    antialiased, as Pillow, timm and torchvision; slower."""
    erasing: float = setting(0.0, FIXED, SHARE)
    """Probability of random erasing (arXiv 1708.04896)."""
    decode: Decode = setting("region", FIXED, needs=needs.DECODED_REGION)
    """Of training images. region: only the blocks under the crop, the pixels of a whole decode. full: everything.
    scaled: region, at 1/2, 1/4 or 1/8 where the crop is that much larger than the input: for large originals."""
    eval_resize: Resize = setting("square", FIXED)
    """Resizing of evaluation images. square: straight to the input size. central: the middle square of 7/8 of the short
    side. Both bilinear. bicubic: the short side to the input size, antialiased bicubic, then the middle square (crop
    ratio 1.0, as DeiT III evaluates)."""
    damage_budget: int = setting(100, FREE, NONE_OR_MORE)
    """Samples of a run that may turn out not to decode; others stand in for them. One more stops the run."""
    workers: int = setting(2, FREE, NONE_OR_MORE)
    """Loader processes a rank. 0 loads in the training process."""


@dataclass(frozen=True)
class OptimConfig:
    kind: Literal["adamw", "lamb", "sgd"] = setting("adamw", FIXED)
    """lamb: Adam's update, for each weight matrix scaled to the matrix's norm (arXiv 1904.00962; DeiT III)."""
    lr: float = setting(1e-3, RETUNED, NONE_OR_MORE)
    """Peak learning rate, at the declared global batch size: never scaled behind your back."""
    weight_decay: float = setting(0.0, FIXED, NONE_OR_MORE)
    """Of the kernels: not of biases, norms, class token and position embedding. AdamW's is decoupled, multiplied by the
    current learning rate; SGD's is added to the gradient (L2)."""
    beta1: float = setting(0.9, FIXED, LESS_THAN_ONE, needs=needs.ADAM)
    beta2: float = setting(0.999, FIXED, LESS_THAN_ONE, needs=needs.ADAM)
    layer_decay: float = setting(1.0, FIXED, NOT_ZERO)
    """Each layer's learning rate is this times that of the layer above, from the head down (0.65 to 0.75 are usual for
    fine-tuning). 1: the same rate for all."""
    momentum: float = setting(0.9, FIXED, BETWEEN_0_AND_1, needs=needs.SGD)
    """Of SGD."""
    clip: float = setting(0.0, RETUNED, NONE_OR_MORE)
    """Largest global gradient norm; 0 turns clipping off."""


@dataclass(frozen=True)
class ScheduleConfig:
    steps: int = setting(0, FIXED, UP_TO_MANY)
    """Optimizer steps. 0: computed once from epochs."""
    epochs: float = setting(0.0, FIXED, UP_TO_MANY)
    """Passes over the training split, used where steps is 0: given, they replace a recipe's steps, and the reverse."""
    warmup_steps: int = setting(0, FIXED, NONE_OR_MORE)
    warmup_epochs: float = setting(0.0, FIXED, UP_TO_MANY)
    """Warm-up as a share of schedule.epochs, used when warmup_steps is 0."""
    start_lr: float = setting(0.0, FIXED, NONE_OR_MORE, needs=needs.WARM_UP)
    """Learning rate at the start of the warm-up."""
    decay: Literal["cosine", "linear", "constant"] = setting("cosine", FIXED)
    end_lr: float = setting(0.0, FIXED, NONE_OR_MORE, needs=needs.DECAY)
    """Learning rate at the end of a cosine or linear decay."""


@dataclass(frozen=True)
class TrainConfig:
    global_batch: int = setting(4096, FIXED, ONE_TO_MANY)
    """Samples an optimizer step, over all ranks."""
    micro_batch: int = setting(64, FREE, ONE_OR_MORE)
    """Samples a rank's forward pass; global_batch / (micro_batch x ranks) passes are accumulated."""
    loss: Literal["sigmoid", "softmax"] = setting("softmax", FIXED)
    """sigmoid: binary cross-entropy summed over the classes. softmax: cross-entropy."""
    label_smoothing: float = setting(0.0, FIXED, LESS_THAN_ONE)
    """s turns a target t into t (1 - s) + s / classes."""
    average: float = setting(0.0, FIXED, LESS_THAN_ONE)
    """Decay of a running average of the weights (Polyak averaging), such as 0.9999; evaluations and checkpoints then
    hold both. 0: none."""
    seed: int = setting(0, FIXED, SEED, seeds=True)
    zero_stage: Literal[0, 1, 2, 3] = setting(1, FREE)
    """DeepSpeed ZeRO: 1 shards the optimizer state, 2 also the gradients, 3 also the parameters."""
    dtype: Literal["float32", "bfloat16"] = setting("bfloat16", FIXED)
    """Compute type. Master weights and optimizer state are float32 in either case."""
    offload: bool = setting(False, FREE)
    """Keep and update the optimizer state in the host's memory: slower, for models that don't fit. ZeRO 1 to 3."""
    attention: Attention = setting("auto", FIXED)
    """Kernel of the attention. auto: torch chooses; if a gradient is non-finite on a GPU on which torch prefers cuDNN's
    kernel, the step is repeated once with flash. The others, if the GPU has them: flash, cudnn, efficient, math."""
    compile: Literal["auto", "on", "off"] = setting("auto", FREE)
    """torch.compile the model for training: about a minute at the start, faster steps. auto: on GPUs with a
    C compiler and Python's headers, which Triton needs, but not under ZeRO-3, which takes the graph apart."""
    skip_nonfinite: int = setting(0, FREE, NONE_OR_MORE)
    """Steps with a non-finite loss or gradient that a run may leave out, each reported; one more goes back or stops."""
    rollback_nonfinite: int = setting(0, FREE, NONE_OR_MORE, needs=needs.CHECKPOINTS)
    """Times that a run may go back to its last checkpoint's weights after such a step, and on with the samples that
    follow it; one more stops it."""
    profile: int = setting(0, FREE, NONE_OR_MORE)
    """Steps to record with torch's profiler, from the tenth of an attempt on, into RUN/profile/."""
    log_every: int = setting(50, FREE, ONE_OR_MORE)
    """Steps between logged lines."""
    eval_every: int = setting(5000, FREE, NONE_OR_MORE, needs=needs.EVALUATION)
    """Steps between evaluations; there is always one at the end. 0: only at the end."""
    eval_batch: int = setting(128, FREE, ONE_OR_MORE, needs=needs.EVALUATION)
    """Samples a rank's evaluation pass."""
    step_timeout: int = setting(1800, FREE, SECONDS)
    """Seconds without a finished step (evaluations and checkpoints included) after which a rank prints the stacks of
    its threads and leaves, so that a hung cluster is not paid for."""


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = setting(1000, FREE, NONE_OR_MORE)
    """Steps between checkpoints; there is always one at the end."""
    minutes: float = setting(0.0, FREE, NONE_OR_MORE)
    """Also save where this many minutes have passed since the last checkpoint. 0: steps alone decide."""
    background: bool = setting(True, FREE)
    """Write while training goes on: it only waits for a copy in the host's memory."""
    keep_last: int = setting(2, FREE, ONE_OR_MORE, needs=needs.CHECKPOINTS)
    keep_every: int = setting(0, FREE, NONE_OR_MORE, needs=needs.CHECKPOINTS)
    """Also keep each checkpoint whose step is a multiple of this for good. 0: none."""
    keep_best: int = setting(0, FREE, NONE_OR_MORE, needs=needs.SCORED_CHECKPOINTS)
    """Also keep this many with the highest eval/top1, of those saved at a step that was evaluated."""


@dataclass(frozen=True)
class RunConfig:
    run_dir: Path = setting(Path(), FREE, seeds=True, hidden=True, own=True, path=True)
    """Folder of the run: config, metrics, checkpoints. One that holds an unfinished run is resumed. Required."""
    recipe: str = setting("", FIXED, hidden=True)
    """Name of the recipe this started from. Set by the command."""
    stage: Literal["pretrain", "finetune"] = setting("pretrain", FIXED)
    parent: str = setting("", FREE, seeds=True, hidden=True, path=True)
    """Fine-tuning: the run folder, or weights, to start from; "scratch": random weights. Required by jobs.finetune."""
    sweep: str = setting("", FREE, seeds=True, hidden=True, path=True)
    """Folder of the sweep that this run belongs to, beside the run's: MLflow shows the run under it (jobs.sweep)."""
    experiment: str = setting("vit", FREE, seeds=True, hidden=True)
    """MLflow experiment."""
    name: str = setting("", FREE, seeds=True, hidden=True, own=True)
    """Name of the run in MLflow; the run folder's name where empty."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()


def accumulation(train: TrainConfig, world_size: int) -> int:
    """Forward passes an optimizer step. Raises UserError where the batch sizes don't divide."""
    samples = train.micro_batch * world_size
    if samples <= 0 or train.global_batch % samples:
        raise UserError(
            f"train.global_batch {train.global_batch} is not a multiple of train.micro_batch {train.micro_batch} x "
            f"{world_size} rank(s) = {samples}: {_batch_remedy(train.global_batch, train.micro_batch, world_size)}"
        )
    return train.global_batch // samples


def _batch_remedy(global_batch: int, micro_batch: int, world_size: int) -> str:
    if global_batch % world_size:
        lower, upper = global_batch // world_size * world_size, -(-global_batch // world_size) * world_size
        sizes = f"{lower} or {upper}" if lower else f"{upper}"
        return f"choose a train.global_batch that the number of ranks divides, such as {sizes}"
    share = global_batch // world_size
    fitting = max(size for size in range(1, min(micro_batch, share) + 1) if share % size == 0)
    return f"set train.micro_batch to a divisor of {share}, such as {fitting}"


def total_steps(schedule: ScheduleConfig, samples: int, global_batch: int) -> int:
    """Optimizer steps of the run: ``schedule.steps``, or its epochs over ``samples``, rounded to the nearest step."""
    if schedule.steps > 0:
        return schedule.steps
    if schedule.epochs <= 0:
        raise UserError(
            f"schedule.steps {schedule.steps} and schedule.epochs {schedule.epochs} give no steps: set one of them"
        )
    return max(1, round(schedule.epochs * samples / global_batch))


def warmup_steps(schedule: ScheduleConfig, steps: int) -> int:
    """Optimizer steps of the warm-up in a run of ``steps``: ``schedule.warmup_steps``, or its epochs' share."""
    if schedule.warmup_steps or not schedule.warmup_epochs:
        return schedule.warmup_steps
    if schedule.epochs <= 0:
        raise UserError(
            f"schedule.warmup_epochs {schedule.warmup_epochs} needs schedule.epochs, which is {schedule.epochs}: set "
            "schedule.epochs, or schedule.warmup_steps instead"
        )
    return round(steps * schedule.warmup_epochs / schedule.epochs)
