"""The configuration of a run: frozen dataclasses, one a subject. Imports no torch.

Batch sizes are in samples, times in seconds, sizes of images in pixels. Every field can be overridden on the command
line by its path, such as ``--optim.lr 3e-4``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.core.errors import UserError

Variant = Literal["b16", "b32", "l16", "l32", "tiny"]
Decode = Literal["region", "scaled", "full"]
Resize = Literal["square", "central", "bicubic"]
Attention = Literal["auto", "flash", "cudnn", "efficient", "math"]
Augmentation = Literal[
    "none", "light1", "light2", "medium1", "medium2", "strong1", "strong2", "3-augment", "rand-m9-mstd0.5-inc1"
]


@dataclass(frozen=True)
class ModelConfig:
    variant: Variant = "b16"
    """B = Base, L = Large, the number is the patch size; tiny is for CPUs and tests."""
    image_size: int = 224
    """Side of the square input, pixels; a multiple of the patch size."""
    pre_logits: bool = False
    """A Dense + tanh layer before the head, as in the paper's ImageNet-21K models."""
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    """Drop rate of a residual branch in the last block."""
    stochastic_depth_decay: Literal["linear", "constant"] = "linear"
    """Drop rates of the other blocks. linear: they grow from 0 at the first block. constant: the same (DeiT III)."""
    gelu: Literal["tanh", "exact"] = "tanh"
    """tanh: the approximation that the published models were trained with. exact: as timm and transformers assume."""
    norm_eps: float = 1e-6
    """Epsilon of every LayerNorm."""
    layer_scale: float = 0.0
    """Initial value of LayerScale, a learned factor per channel of each residual branch (arXiv 2103.17239; DeiT III:
    1e-4). 0: no LayerScale."""
    class_position: bool = True
    """The position embedding has an entry for the class token. Off: one per patch only (DeiT III, big_vision)."""
    registers: int = 0
    """Register tokens after the class token, without an entry in the position embedding (arXiv 2309.16588)."""
    initialisation: Literal["vit", "deit3"] = "vit"
    """Random weights. vit: as google-research/vision_transformer draws them. deit3: as facebookresearch/deit, normal of
    standard deviation 0.02."""
    position_resize: Literal["bilinear", "bicubic"] = "bilinear"
    """Resizing of a parent's position embedding to another image size. bilinear: corners aligned, as the paper's code.
    bicubic: corners not aligned, as DeiT and DeiT III."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Mean of the input normalisation (R, G, B; pixels from 0 to 1). ImageNet's: 0.485 0.456 0.406."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Standard deviation of the input normalisation. ImageNet's: 0.229 0.224 0.225."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: about a third more FLOPs, far less memory, the same numbers."""


@dataclass(frozen=True)
class DataConfig:
    train: tuple[str, ...] = ()
    """The training data set, made by data_prep.shard: its folder, or its URL (https://, s3://, ... or a command such as
    'pipe:ssh host cat /data/{}'). Several with the same classes are joined. Required."""
    train_split: str = "train"
    weights: tuple[float, ...] = ()
    """How often the samples of each training data set come, in proportion. Empty: all samples alike, once an epoch."""
    percent: float = 100.0
    """Train on the first samples of the index only, this share of each data set: for quick experiments."""
    classes: Path | None = None
    """Train and evaluate on the samples of some classes only: a text file, one wnid a line. The model keeps all."""
    eval: str = ""
    """The evaluation data set; without it, the (first) training data set's eval split if it has one."""
    eval_split: str = "val"
    """Its split. none: no evaluation, where no data.eval is named."""
    cache: Path | None = None
    """Folder on a disk of the node for shards that come from URLs, shared by its ranks. Default: VIT_CACHE, or
    ~/.cache/vit-pipeline."""
    cache_gb: float = 100.0
    """Size of the cache; the shards used longest ago make room."""
    augment: Augmentation = "none"
    """Augmentation on top of crop and flip. light1 to strong2: RandAugment and mixup by AugReg's names (arXiv
    2106.10270, section 3). 3-augment: greyscale, solarisation or blur (DeiT III, arXiv 2204.07118).
    rand-m9-mstd0.5-inc1: RandAugment by timm's name."""
    color_jitter: float = 0.0
    """Brightness, contrast and saturation each change by a factor uniform in 1 -+ this, after data.augment."""
    mixup: float | None = None
    """Alpha of mixup's Beta distribution; 0 turns mixup off. Default: what data.augment's name includes."""
    cutmix: float = 0.0
    """Alpha of CutMix's Beta distribution; 0 turns CutMix off. With mixup, each step has one or the other."""
    min_area: float = 0.05
    """Smallest fraction of the image's area that a random crop covers (Inception crop: 0.05)."""
    flip: bool = True
    """Mirror half of the training images. Turn off where left and right mean something, as in digits."""
    crop: Literal["inception", "resize", "simple"] = "inception"
    """Crop of training images. inception: random area and aspect. resize: a random square of 7/8 of the short side.
    simple: the short side is resized to the input size, 4 pixels are reflected at each border, and a random square is
    cut out (DeiT III's simple random crop; always bicubic)."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Resizing of training crops. bilinear: from the 2 x 2 nearest pixels, as the published ViT code. bicubic:
    antialiased, as Pillow, timm and torchvision; slower."""
    erasing: float = 0.0
    """Probability of random erasing (arXiv 1708.04896)."""
    decode: Decode = "region"
    """Of training images. region: only the blocks under the crop, the pixels of a whole decode. full: everything.
    scaled: region, at 1/2, 1/4 or 1/8 where the crop is that much larger than the input: for large originals."""
    eval_resize: Resize = "square"
    """Resizing of evaluation images. square: straight to the input size. central: the middle square of 7/8 of the short
    side. Both bilinear. bicubic: the short side to the input size, antialiased bicubic, then the middle square (crop
    ratio 1.0, as DeiT III evaluates)."""
    damage_budget: int = 100
    """Samples of a run that may turn out not to decode; others stand in for them. One more stops the run."""
    workers: int = 2
    """Loader processes a rank. 0 loads in the training process."""


@dataclass(frozen=True)
class OptimConfig:
    kind: Literal["adamw", "lamb", "sgd"] = "adamw"
    """lamb: Adam's update, for each weight matrix scaled to the matrix's norm (arXiv 1904.00962; DeiT III)."""
    lr: float = 1e-3
    """Peak learning rate, at the declared global batch size: never scaled behind your back."""
    weight_decay: float = 0.0
    """Of the kernels: not of biases, norms, class token and position embedding. AdamW's is decoupled, multiplied by the
    current learning rate; SGD's is added to the gradient (L2)."""
    beta1: float = 0.9
    beta2: float = 0.999
    layer_decay: float = 1.0
    """Each layer's learning rate is this times that of the layer above, from the head down (0.65 to 0.75 are usual for
    fine-tuning). 1: the same rate for all."""
    momentum: float = 0.9
    """Of SGD."""
    clip: float = 0.0
    """Largest global gradient norm; 0 turns clipping off."""


@dataclass(frozen=True)
class ScheduleConfig:
    steps: int = 0
    """Optimizer steps. 0: computed once from epochs."""
    epochs: float = 0.0
    """Passes over the training split, used where steps is 0."""
    warmup_steps: int = 0
    warmup_epochs: float = 0.0
    """Warm-up as a share of schedule.epochs, used when warmup_steps is 0."""
    start_lr: float = 0.0
    """Learning rate at the start of the warm-up."""
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    end_lr: float = 0.0
    """Learning rate at the end of a cosine or linear decay."""


@dataclass(frozen=True)
class TrainConfig:
    global_batch: int = 4096
    """Samples an optimizer step, over all ranks."""
    micro_batch: int = 64
    """Samples a rank's forward pass; global_batch / (micro_batch x ranks) passes are accumulated."""
    loss: Literal["sigmoid", "softmax"] = "softmax"
    """sigmoid: binary cross-entropy summed over the classes. softmax: cross-entropy."""
    label_smoothing: float = 0.0
    """s turns a target t into t (1 - s) + s / classes."""
    average: float = 0.0
    """Decay of a running average of the weights (Polyak averaging), such as 0.9999; evaluations and checkpoints then
    hold both. 0: none."""
    seed: int = 0
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO: 1 shards the optimizer state, 2 also the gradients, 3 also the parameters."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Compute type. Master weights and optimizer state are float32 in either case."""
    offload: bool = False
    """Keep and update the optimizer state in the host's memory: slower, for models that don't fit. ZeRO 1 to 3."""
    attention: Attention = "auto"
    """Kernel of the attention. auto: torch chooses; if a gradient is non-finite on a GPU on which torch prefers cuDNN's
    kernel, the step is repeated once with flash. The others, if the GPU has them: flash, cudnn, efficient, math."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile the model for training: about a minute at the start, faster steps. auto: on GPUs, where a C
    compiler is found (Triton needs one), but not under ZeRO-3, which takes the graph apart."""
    skip_nonfinite: int = 0
    """Steps with a non-finite loss or gradient that a run may leave out, each reported; one more goes back or stops."""
    rollback_nonfinite: int = 0
    """Times that a run may go back to its last checkpoint's weights after such a step, and on with the samples that
    follow it; one more stops it."""
    profile: int = 0
    """Steps to record with torch's profiler, from the tenth of an attempt on, into RUN/profile/."""
    log_every: int = 50
    """Steps between logged lines."""
    eval_every: int = 5000
    """Steps between evaluations; there is always one at the end. 0: only at the end."""
    eval_batch: int = 128
    """Samples a rank's evaluation pass."""
    step_timeout: int = 1800
    """Seconds without a finished step (evaluations and checkpoints included) after which a rank prints the stacks of
    its threads and leaves, so that a hung cluster is not paid for."""


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = 1000
    """Steps between checkpoints; there is always one at the end."""
    minutes: float = 0.0
    """Also save where this many minutes have passed since the last checkpoint. 0: steps alone decide."""
    background: bool = True
    """Write while training goes on: it only waits for a copy in the host's memory."""
    keep_last: int = 2
    keep_every: int = 0
    """Also keep each checkpoint whose step is a multiple of this for good. 0: none."""
    keep_best: int = 0
    """Also keep this many with the highest eval/top1, of those saved at a step that was evaluated."""


@dataclass(frozen=True)
class RunConfig:
    run_dir: Path = Path()
    """Folder of the run: config, metrics, checkpoints. One that holds an unfinished run is resumed. Required."""
    recipe: str = ""
    """Name of the recipe this started from. Set by the command."""
    stage: Literal["pretrain", "finetune"] = "pretrain"
    parent: str = ""
    """Fine-tuning: the run folder, or weights, to start from; "scratch": random weights. Required by jobs.finetune."""
    sweep: str = ""
    """Folder of the sweep that this run belongs to, beside the run's: MLflow shows the run under it (jobs.sweep)."""
    experiment: str = "vit"
    """MLflow experiment."""
    name: str = ""
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
