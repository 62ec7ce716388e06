"""One optimizer step: micro-batches forward and backward, the update, and what every rank learns of it."""

import itertools
import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
import torch.distributed
import torch.nn.functional as F

from pipeline.config.schema import RunConfig, accumulation
from pipeline.distributed.ranks import Ranks
from pipeline.engine.deepspeed_engine import Engine
from pipeline.loader.batches import Ahead, Batch
from pipeline.loader.order import LEDGER_BITS, ledger_hash
from pipeline.loader.transforms import mixup_alpha
from pipeline.model.losses import loss as loss_of
from pipeline.model.preprocess import normalise
from pipeline.train.attention import kernel, may_be_cudnn
from pipeline.train.mixup import NOTHING, draw_mix, mix
from pipeline.train.stopwatch import Stopwatch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Step:
    """What an optimizer step left; the same on every rank but for ``fed``."""

    loss: float  # mean over the global batch
    norm: float  # of the gradient, before clipping
    skipped: bool  # the weights are those before the step
    losses: list[float]  # by rank: the mean over its share of the batch
    own: list[float]  # by rank: seconds of the step before, without waiting for others
    stopping: list[int]  # ranks that were asked to stop
    save: bool  # rank 0 asks for a checkpoint
    fed: list[Batch] = field(repr=False)  # of this rank
    ledger: int = 0  # hash of the global batch's samples (pipeline.runs.sample_ledger)
    damaged: int = 0  # times that a sample didn't decode, on all ranks
    repeated: bool = False  # with flash attention, after a non-finite gradient

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm) and not self.skipped

    @property
    def culprits(self) -> list[int]:
        """Ranks whose own loss is no number; every rank where only the gradient isn't."""
        bad = [rank for rank, loss in enumerate(self.losses) if not math.isfinite(loss)]
        return bad or list(range(len(self.losses)))


def train_step(
    config: RunConfig,
    engine: Engine,
    batches: Ahead[Batch],
    step: int,
    ranks: Ranks,
    device: torch.device,
    clock: Stopwatch,
    *,
    stop: bool,
    save: bool,
    settle: Callable[[], None],
) -> Step:
    """Do the step after ``step`` finished ones; collective. ``stop``, ``save``: what this rank asks of all.

    ``settle`` is called before anything that a checkpoint may still be copied from changes.
    A step whose gradient is no number leaves the weights as they were.
    """
    engine.train()
    passes = accumulation(config.train, ranks.world_size)
    choice = config.train.attention
    fresh = itertools.islice(batches, passes)
    done = _update(config, engine, fresh, batches, step, ranks, device, settle, kernel(choice))
    repeated = done.skipped and _anywhere(may_be_cudnn(choice, device), ranks, device)
    if repeated:
        with engine.uncompiled():  # compiled code keeps the kernel that it was compiled with
            done = replace(
                _update(config, engine, done.fed, batches, step, ranks, device, settle, kernel("flash")),
                waited=done.waited,
            )
    total, norm, waited, fed, marks = done.loss, done.norm, done.waited, done.fed, done.marks
    # Each rank fills its own row: the sum is the table of all.
    table = torch.zeros(ranks.world_size, 6, dtype=torch.float64, device=device)
    samples = sum(ledger_hash(batch.samples_B.numpy()) for batch in fed) % 2**LEDGER_BITS
    broken = sum(len(batch.damaged) for batch in fed)
    row = torch.tensor([0, stop, save, clock.own, samples, broken], dtype=torch.float64)
    table[ranks.rank] = row.to(device, non_blocking=True)
    table[ranks.rank, 0] = total
    if ranks.world_size > 1:
        torch.distributed.all_reduce(table)
    losses, stops, saves, own, ledger, damaged = table.T.tolist()
    if norm is None:
        norm = engine.grad_norm()
    forward = sum(_seconds(start, end) for start, end in zip(marks[::2], marks[1::2], strict=True))
    clock.step(waited, waited + forward)
    return Step(
        loss=sum(losses) / ranks.world_size,
        norm=float("nan") if norm is None else norm,
        skipped=done.skipped,
        losses=losses,
        own=own,
        stopping=[rank for rank, asked in enumerate(stops) if asked],
        save=saves[0] > 0,
        fed=fed,
        ledger=int(sum(ledger)) % 2**LEDGER_BITS,
        damaged=int(sum(damaged)),
        repeated=repeated,
    )


@dataclass(frozen=True)
class _Update:
    """What the forward and backward passes of one rank, and the optimizer's step, left."""

    loss: torch.Tensor  # mean over this rank's share, on the device
    norm: float | None  # of the gradient; None: to be asked of DeepSpeed
    skipped: bool
    waited: float  # seconds for data
    fed: list[Batch]
    marks: list["Mark"]


def _anywhere(here: bool, ranks: Ranks, device: torch.device) -> bool:
    """Whether ``here`` holds on any rank; collective."""
    flag = torch.tensor(float(here), device=device)
    if ranks.world_size > 1:
        torch.distributed.all_reduce(flag)
    return bool(flag.item() > 0)


def _update(
    config: RunConfig,
    engine: Engine,
    source: Iterable[Batch],
    batches: Ahead[Batch],
    step: int,
    ranks: Ranks,
    device: torch.device,
    settle: Callable[[], None],
    attention: AbstractContextManager[None],
) -> _Update:
    """Forward and backward passes over the micro-batches of ``source`` and the optimizer's step; collective."""
    # Dropout is a function of (seed, step, rank), so that a resumed run draws what the uninterrupted one would.
    _seed(device, ((config.train.seed * 1_000_003 + step) * 65_537 + ranks.rank) % 2**63)  # what torch takes
    passes = accumulation(config.train, ranks.world_size)
    source = iter(source)
    how = draw_mix(
        config.train.seed, step, config.model.image_size, mixup=mixup_alpha(config.data), cutmix=config.data.cutmix
    )
    total = torch.zeros((), device=device)
    norm, waited, skipped_before = None, 0.0, engine.skipped_steps
    fed: list[Batch] = []
    marks: list[Mark] = []
    with attention:
        for _ in range(passes):
            asked = time.perf_counter()
            batch = next(source)
            waited += time.perf_counter() - asked
            if batch.step != step:
                raise RuntimeError(f"the loader handed out a batch of step {batch.step} in step {step}")
            fed.append(batch)
            x_BCHW = normalise(
                batch.images_BHWC.to(device, non_blocking=True), DTYPES[config.train.dtype], config.model
            )
            targets = batch.labels_B.to(device, non_blocking=True)
            if how != NOTHING:
                x_BCHW, targets = mix(x_BCHW, F.one_hot(targets, engine.module.classes).float(), how)
            marks.append(_mark(device))
            logits_BC = engine(x_BCHW).float()
            marks.append(_mark(device))
            loss = loss_of(config.train.loss, logits_BC, targets, label_smoothing=config.train.label_smoothing)
            engine.backward(loss)
            asked = time.perf_counter()
            batches.fetch()  # the next one, while a GPU is still busy with this one: so this is at most what it waits
            waited += time.perf_counter() - asked
            if config.train.zero_stage == 0 and engine.at_boundary:
                norm = engine.grad_norm()
            if engine.at_boundary:
                settle()
            if norm is not None and not math.isfinite(norm):
                engine.skip_step()  # DeepSpeed does it by itself under ZeRO
            else:
                engine.step()
            total += loss.detach() / passes
    return _Update(total, norm, engine.skipped_steps > skipped_before, waited, fed, marks)


def _seed(device: torch.device, seed: int) -> None:
    """What torch.manual_seed does, for this rank's devices alone.

    torch would seed those of all makers too, and keep the whole call stack for each that isn't there.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


Mark = torch.cuda.Event | float


def _mark(device: torch.device) -> Mark:
    """A point in the device's time."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _seconds(start: Mark, end: Mark) -> float:
    """Between two marks that the device has passed."""
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    assert isinstance(start, torch.cuda.Event)
    assert isinstance(end, torch.cuda.Event)
    return float(start.elapsed_time(end)) / 1000  # of milliseconds
