"""The configuration of a run: frozen dataclasses, one per subject. Imports no torch.

Batch sizes are in samples, times in seconds, sizes of images in pixels. Every field can be overridden on the command
line by its path, such as ``--optim.lr 3e-4``. Each field is a ``setting`` (pipeline.config.facts): its default, whether
a resumed run may change it, the range of a number, and further facts. The docstring below a field is its --help.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config import needs
from pipeline.config.facts import (
    BETWEEN_0_AND_1,
    DEVIATION,
    EPSILON,
    FIXED,
    FREE,
    INHERITED,
    LESS_THAN_ONE,
    MEAN,
    NONE_OR_MORE,
    NOT_ZERO,
    ONE_OR_MORE,
    ONE_TO_MANY,
    PIXELS,
    POSITIVE,
    RETUNED,
    SCALE,
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
    """Size of the model. B = Base, L = Large; the number is the patch size in pixels. tiny is for CPUs and tests."""
    image_size: int = setting(224, FIXED, PIXELS)
    """Side of the square input in pixels; a multiple of the patch size."""
    pre_logits: bool = setting(False, FIXED)
    """Add a Dense + tanh layer before the head, as in the paper's ImageNet-21K models."""
    dropout: float = setting(0.0, FIXED, LESS_THAN_ONE)
    """Dropout rate."""
    stochastic_depth: float = setting(0.0, FIXED, LESS_THAN_ONE)
    """Stochastic depth: drop rate of the residual branches of the last block."""
    stochastic_depth_decay: Literal["linear", "constant"] = setting("linear", FIXED, needs=needs.STOCHASTIC_DEPTH)
    """Drop rates of the other blocks. linear: growing from 0 at the first block. constant: the same rate in all blocks
    (DeiT III)."""
    gelu: Literal["tanh", "exact"] = setting("tanh", FIXED)
    """GELU. tanh: the approximation that the published models were trained with. exact: what timm and transformers
    assume."""
    norm_eps: float = setting(1e-6, FIXED, EPSILON)
    """Epsilon of every LayerNorm."""
    layer_scale: float = setting(0.0, FIXED, SCALE)
    """Initial value of LayerScale, a learned factor per channel of each residual branch (arXiv 2103.17239; DeiT III
    uses 1e-4). 0: no LayerScale."""
    class_position: bool = setting(True, FIXED)
    """Give the class token a position embedding. Off: only the patches have one (DeiT III, big_vision)."""
    registers: int = setting(0, FIXED, Range(0, 64))
    """Number of register tokens after the class token; they have no position embedding (arXiv 2309.16588)."""
    initialisation: Literal["vit", "deit3"] = setting("vit", FIXED)
    """Random initialisation. vit: as in google-research/vision_transformer. deit3: as in facebookresearch/deit, normal
    with standard deviation 0.02."""
    position_resize: Literal["bilinear", "bicubic"] = setting("bilinear", FIXED, needs=needs.PARENT)
    """How a parent's position embedding is resized to another image size. bilinear: corners aligned, as in the paper's
    code. bicubic: corners not aligned, as in DeiT and DeiT III."""
    mean: tuple[float, float, float] = setting((0.5, 0.5, 0.5), INHERITED, MEAN)
    """Mean for the input normalisation (R, G, B; pixel values from 0 to 1). ImageNet's: 0.485 0.456 0.406."""
    std: tuple[float, float, float] = setting((0.5, 0.5, 0.5), INHERITED, DEVIATION)
    """Standard deviation for the input normalisation. ImageNet's: 0.229 0.224 0.225."""
    activation_checkpointing: bool = setting(False, FIXED)
    """Recompute each block in the backward pass: about a third more FLOPs, far less memory, the same results."""


@dataclass(frozen=True)
class DataConfig:
    train: tuple[str, ...] = setting((), FREE, seeds=True, hidden=True, path=True)
    """Training dataset made by data_prep.shard: its folder, or its URL (https://, s3://, ... or a command such as
    'pipe:ssh host cat /data/{}'). Several datasets with the same classes are joined. Required."""
    train_split: str = setting("train", FIXED)
    """Split of the training dataset to train on."""
    weights: tuple[float, ...] = setting((), FIXED, POSITIVE, needs=needs.SEVERAL_DATASETS)
    """Sampling weight of each training dataset, in proportion. Empty: each sample comes once per epoch."""
    percent: float = setting(100.0, FIXED, Range(0, 100, above=True))
    """Train on this percentage of each dataset only, the first samples of its index: for quick experiments."""
    classes: Path | None = setting(None, FIXED, path=True)
    """Train and evaluate on the samples of some classes only: a text file with one wnid per line. The head keeps all
    classes."""
    eval: str = setting("", FREE, seeds=True, hidden=True, path=True)
    """Evaluation dataset. Default: the (first) training dataset, if it has the split data.eval_split."""
    eval_split: str = setting("val", FIXED)
    """Split to evaluate on. none: no evaluation, unless data.eval is given."""
    cache: Path | None = setting(None, FREE, seeds=True, hidden=True, path=True, needs=needs.REMOTE_DATA)
    """Folder on a local disk for shards downloaded from URLs, shared by the node's ranks. Default: VIT_CACHE, or
    ~/.cache/vit-pipeline."""
    cache_gb: float = setting(100.0, FREE, POSITIVE, seeds=True, hidden=True, needs=needs.REMOTE_DATA)
    """Size of the cache in GB; the least recently used shards are removed first."""
    augment: Augmentation = setting("none", FIXED)
    """Augmentation on top of crop and flip. light1 to strong2: RandAugment and mixup under AugReg's names (arXiv
    2106.10270, section 3). 3-augment: greyscale, solarisation or blur (DeiT III, arXiv 2204.07118).
    rand-m9-mstd0.5-inc1: RandAugment under timm's name."""
    color_jitter: float = setting(0.0, FIXED, SHARE)
    """Scale brightness, contrast and saturation, each by a factor drawn uniformly from 1 - x to 1 + x, after
    data.augment."""
    mixup: float | None = setting(None, FIXED, NONE_OR_MORE)
    """Alpha of mixup's Beta distribution; 0 turns mixup off. Default: the mixup that data.augment includes."""
    cutmix: float = setting(0.0, FIXED, NONE_OR_MORE)
    """Alpha of CutMix's Beta distribution; 0 turns CutMix off. With mixup on too, each step uses one of the two."""
    min_area: float = setting(0.05, FIXED, NOT_ZERO, needs=needs.INCEPTION_CROP)
    """Smallest fraction of the image's area that a random crop covers (Inception crop: 0.05)."""
    flip: bool = setting(True, FIXED)
    """Mirror half of the training images. Turn off if left and right matter, as for digits."""
    crop: Literal["inception", "resize", "simple"] = setting("inception", FIXED)
    """Crop of training images. inception: random area and aspect ratio. resize: a random square of 7/8 of the short
    side. simple: resize the short side to the input size, pad 4 reflected pixels at each border, cut out a random
    square (DeiT III's simple random crop; always bicubic)."""
    interpolation: Literal["bilinear", "bicubic"] = setting("bilinear", FIXED, needs=needs.NOT_SIMPLE_CROP)
    """How training crops are resized. bilinear: from the nearest 2 x 2 pixels, as in the published ViT code. bicubic:
    antialiased, as in Pillow, timm and torchvision; slower."""
    erasing: float = setting(0.0, FIXED, SHARE)
    """Probability of random erasing (arXiv 1708.04896)."""
    decode: Decode = setting("region", FIXED, needs=needs.DECODED_REGION)
    """How training images are decoded. region: only the JPEG blocks under the crop, with the pixels of a full decode.
    full: the whole image. scaled: region, at 1/2, 1/4 or 1/8 of the size if the crop is that much larger than the
    input: for large originals."""
    eval_resize: Resize = setting("square", FIXED)
    """How evaluation images are resized. square: the whole image to the square input, bilinear. central: the central
    square of 7/8 of the short side, bilinear. bicubic: the short side to the input size, antialiased bicubic, then the
    central square (crop ratio 1.0, as DeiT III evaluates)."""
    damage_budget: int = setting(100, FREE, NONE_OR_MORE)
    """Number of samples that may fail to decode during a run; other samples replace them. One more stops the run."""
    workers: int = setting(2, FREE, NONE_OR_MORE)
    """Data loader workers (processes) per rank. 0: load in the training process."""


@dataclass(frozen=True)
class OptimConfig:
    kind: Literal["adamw", "lamb", "sgd"] = setting("adamw", FIXED)
    """Optimizer. lamb: Adam's update, scaled per weight matrix to the matrix's norm (arXiv 1904.00962; DeiT III)."""
    lr: float = setting(1e-3, RETUNED, NONE_OR_MORE)
    """Peak learning rate. It is used as given, not scaled by the batch size."""
    weight_decay: float = setting(0.0, FIXED, NONE_OR_MORE)
    """Weight decay of the kernels; biases, norms, class token and position embedding have none. AdamW's is decoupled
    and multiplied by the current learning rate; SGD's is added to the gradient (L2)."""
    beta1: float = setting(0.9, FIXED, LESS_THAN_ONE, needs=needs.ADAM)
    beta2: float = setting(0.999, FIXED, LESS_THAN_ONE, needs=needs.ADAM)
    layer_decay: float = setting(1.0, FIXED, NOT_ZERO)
    """Layer-wise learning-rate decay: each layer's rate is this times that of the layer above, from the head down (0.65
    to 0.75 are usual for fine-tuning). 1: the same rate for all layers."""
    momentum: float = setting(0.9, FIXED, BETWEEN_0_AND_1, needs=needs.SGD)
    """SGD momentum."""
    clip: float = setting(0.0, RETUNED, NONE_OR_MORE)
    """Largest global gradient norm; larger gradients are scaled down to it. 0 turns clipping off."""


@dataclass(frozen=True)
class ScheduleConfig:
    steps: int = setting(0, FIXED, UP_TO_MANY)
    """Optimizer steps of the run. 0: computed once from schedule.epochs."""
    epochs: float = setting(0.0, FIXED, UP_TO_MANY)
    """Passes over the training split, used if schedule.steps is 0. If you give one of the two, it replaces the recipe's
    other one."""
    warmup_steps: int = setting(0, FIXED, NONE_OR_MORE)
    """Optimizer steps of linear warm-up."""
    warmup_epochs: float = setting(0.0, FIXED, UP_TO_MANY)
    """Epochs of linear warm-up, used if schedule.warmup_steps is 0; needs schedule.epochs."""
    start_lr: float = setting(0.0, FIXED, NONE_OR_MORE, needs=needs.WARM_UP)
    """Learning rate at the start of the warm-up."""
    decay: Literal["cosine", "linear", "constant"] = setting("cosine", FIXED)
    """Shape of the learning-rate decay after the warm-up."""
    end_lr: float = setting(0.0, FIXED, NONE_OR_MORE, needs=needs.DECAY)
    """Learning rate at the end of a cosine or linear decay."""


@dataclass(frozen=True)
class TrainConfig:
    global_batch: int = setting(4096, FIXED, ONE_TO_MANY)
    """Samples per optimizer step, over all ranks."""
    micro_batch: int = setting(64, FREE, ONE_OR_MORE)
    """Samples per forward pass on each rank; the gradients of global_batch / (micro_batch x ranks) passes are
    accumulated."""
    loss: Literal["sigmoid", "softmax"] = setting("softmax", FIXED)
    """Loss. sigmoid: binary cross-entropy summed over the classes. softmax: cross-entropy."""
    label_smoothing: float = setting(0.0, FIXED, LESS_THAN_ONE)
    """Label smoothing s: a target t becomes t (1 - s) + s / classes."""
    average: float = setting(0.0, FIXED, LESS_THAN_ONE)
    """Decay per step of a running average of the weights (Polyak averaging), such as 0.9999; the average is then
    evaluated and saved beside the weights. 0: none."""
    seed: int = setting(0, FIXED, SEED, seeds=True)
    """Seed of the initial weights, the sample order and the augmentation."""
    zero_stage: Literal[0, 1, 2, 3] = setting(1, FREE)
    """DeepSpeed ZeRO: 1 shards the optimizer state, 2 also the gradients, 3 also the parameters."""
    dtype: Literal["float32", "bfloat16"] = setting("bfloat16", FIXED)
    """Compute type. Master weights and optimizer state are always float32."""
    offload: bool = setting(False, FREE)
    """Keep and update the optimizer state in host memory (ZeRO 1 to 3): slower, for models that don't fit the GPU."""
    attention: Attention = setting("auto", FIXED)
    """Attention kernel. auto: torch chooses; if a gradient is non-finite on a GPU on which torch prefers cuDNN's
    kernel, the step is repeated once with flash. flash, cudnn, efficient, math: this one, if the GPU supports it."""
    compile: Literal["auto", "on", "off"] = setting("auto", FREE)
    """torch.compile the model for training: about a minute at the start, then faster steps. auto: on, if there are
    GPUs, a C compiler and Python's headers (which Triton needs), but off under ZeRO-3, which breaks the graph."""
    skip_nonfinite: int = setting(0, FREE, NONE_OR_MORE)
    """Number of steps with a non-finite loss or gradient that a run may skip; each is logged. One more rolls back (see
    rollback_nonfinite) or stops the run."""
    rollback_nonfinite: int = setting(0, FREE, NONE_OR_MORE, needs=needs.CHECKPOINTS)
    """Number of times that a run may return to its last checkpoint's weights after a non-finite step and continue with
    the samples after that step. One more stops the run."""
    profile: int = setting(0, FREE, NONE_OR_MORE)
    """Number of steps to record with torch's profiler in RUN/profile/, from the tenth step of an attempt on."""
    log_every: int = setting(50, FREE, ONE_OR_MORE)
    """Steps between log lines."""
    eval_every: int = setting(5000, FREE, NONE_OR_MORE, needs=needs.EVALUATION)
    """Steps between evaluations; there is always one at the end. 0: only at the end."""
    eval_batch: int = setting(128, FREE, ONE_OR_MORE, needs=needs.EVALUATION)
    """Samples per evaluation pass on each rank."""
    hang_timeout: int = setting(50, FREE, SECONDS)
    """Seconds for which the other ranks wait for one that makes no progress in a step. It is named at most 6 s later,
    with its stack, and all ranks exit, so that a restart can continue. Nine times as long for what may be slow on one
    rank alone: the first step (torch.compile), the data loader, an evaluation, a checkpoint; a warning comes first."""
    step_timeout: int = setting(1800, FREE, SECONDS)
    """Seconds without a finished step (evaluations and checkpoints included) after which a rank prints the stacks of
    its threads and exits, so that a hung job doesn't hold its nodes."""


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = setting(1000, FREE, NONE_OR_MORE)
    """Steps between checkpoints; there is always one at the end."""
    minutes: float | None = setting(None, FREE, NONE_OR_MORE)
    """Also save when this many minutes have passed since the last checkpoint, unless one is still being written. 0:
    only checkpoint.every counts. Default: 5, so that a lost node costs no more; 0 with checkpoint.every 0, and with
    train.rollback_nonfinite, whose roll-backs are then the same whenever the run is repeated."""
    background: bool = setting(True, FREE)
    """Write checkpoints while training continues; it only waits for the copy to host memory."""
    keep_last: int = setting(2, FREE, ONE_OR_MORE, needs=needs.CHECKPOINTS)
    """Number of newest checkpoints to keep."""
    keep_every: int = setting(0, FREE, NONE_OR_MORE, needs=needs.CHECKPOINTS)
    """Also keep, for good, each checkpoint whose step is a multiple of this. 0: none."""
    keep_best: int = setting(0, FREE, NONE_OR_MORE, needs=needs.SCORED_CHECKPOINTS)
    """Also keep this many checkpoints with the highest eval/top1; only those saved at an evaluated step count."""


@dataclass(frozen=True)
class RunConfig:
    run_dir: Path = setting(Path(), FREE, seeds=True, hidden=True, own=True, path=True)
    """Folder of the run: config, metrics, checkpoints. An unfinished run in it is resumed. Required."""
    recipe: str = setting("", FIXED, hidden=True)
    """Name of the recipe that the run started from. Set by the command."""
    stage: Literal["pretrain", "finetune"] = setting("pretrain", FIXED)
    """Kind of run. Set by the command; jobs.plan takes it as an option."""
    parent: str = setting("", FREE, seeds=True, hidden=True, path=True)
    """For fine-tuning: the run folder or weights to start from, hf://OWNER/NAME[@REVISION] on the Hugging Face Hub
    (or timm's hf-hub:OWNER/NAME), or scratch: random weights. Required by jobs.finetune."""
    sweep: str = setting("", FREE, seeds=True, hidden=True, path=True)
    """Folder of the sweep that this run belongs to, beside the run folder: MLflow groups its runs (jobs.sweep)."""
    experiment: str = setting("vit", FREE, seeds=True, hidden=True)
    """MLflow experiment."""
    name: str = setting("", FREE, seeds=True, hidden=True, own=True)
    """Name of the run in MLflow. Default: the run folder's name."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()


def accumulation(train: TrainConfig, world_size: int) -> int:
    """Forward passes per optimizer step. Raises UserError if the batch sizes don't divide."""
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


SAVE_MINUTES = 5.0


def save_minutes(run: RunConfig) -> float:
    """Longest time between two checkpoints, in minutes; 0: no limit."""
    if run.checkpoint.minutes is not None:
        return run.checkpoint.minutes
    return SAVE_MINUTES if run.checkpoint.every > 0 and not run.train.rollback_nonfinite else 0.0


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
