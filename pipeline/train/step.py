"""One optimizer step: micro-batches forward and backward, the update, and its result on every rank."""

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
from pipeline.distributed.hangs import Phase
from pipeline.distributed.ranks import Ranks
from pipeline.engine.deepspeed_engine import Engine
from pipeline.loader.batches import Ahead, Batch
from pipeline.loader.order import LEDGER_BITS, ledger_hash
from pipeline.loader.transforms import mixup_alpha
from pipeline.model.losses import loss as loss_of
from pipeline.model.preprocess import DTYPES, normalise
from pipeline.train.attention import kernel, may_be_cudnn
from pipeline.train.mixup import NOTHING, draw_mix, mix
from pipeline.train.stopwatch import Stopwatch


@dataclass(frozen=True)
class Step:
    """The result of an optimizer step; the same on every rank, except ``fed``."""

    loss: float  # mean over the global batch
    norm: float  # of the gradient, before clipping
    skipped: bool  # the weights are unchanged
    losses: list[float]  # per rank: the mean over its share of the batch
    own: list[float]  # per rank: seconds of the previous step, without waiting for others
    stopping: list[int]  # ranks that were asked to stop
    save: bool  # rank 0 asks for a checkpoint
    fed: list[Batch] = field(repr=False)  # this rank's batches
    ledger: int = 0  # hash of the global batch's samples (pipeline.runs.sample_ledger)
    damaged: int = 0  # samples that didn't decode, on all ranks
    repeated: bool = False  # with flash attention, after a non-finite gradient

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm) and not self.skipped

    @property
    def culprits(self) -> list[int]:
        """Ranks whose own loss is non-finite; all ranks if only the gradient is."""
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
    mark: Callable[[Phase], None],
) -> Step:
    """Take the optimizer step after ``step`` finished ones; collective. ``stop``, ``save``: this rank's requests.

    ``settle`` is called before weights or moments change, from which a checkpoint may still be copied; ``mark`` at the
    start of each part of the step.
    A step with a non-finite gradient leaves the weights unchanged.
    """
    engine.train()
    passes = accumulation(config.train, ranks.world_size)
    choice = config.train.attention
    fresh = itertools.islice(batches, passes)
    done = _update(config, engine, fresh, batches, step, ranks, device, settle, mark, kernel(choice))
    repeated = done.skipped and _anywhere(may_be_cudnn(choice, device), ranks, device)
    if repeated:
        with engine.uncompiled():  # compiled code keeps the kernel that it was compiled with
            done = replace(
                _update(config, engine, done.fed, batches, step, ranks, device, settle, mark, kernel("flash")),
                waited=done.waited,
            )
    total, norm, waited, fed, marks = done.loss, done.norm, done.waited, done.fed, done.marks
    # Each rank fills its own row: the sum is the table of all ranks.
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
    """The result of one rank's forward and backward passes and the optimizer's step."""

    loss: torch.Tensor  # mean over this rank's share, on the device
    norm: float | None  # of the gradient; None: DeepSpeed knows it
    skipped: bool
    waited: float  # seconds spent waiting for data
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
    mark: Callable[[Phase], None],
    attention: AbstractContextManager[None],
) -> _Update:
    """Run forward and backward passes over the micro-batches of ``source``, then the optimizer's step; collective."""
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
            mark("data")
            asked = time.perf_counter()
            batch = next(source)
            waited += time.perf_counter() - asked
            mark("forward")
            if batch.step != step:
                raise RuntimeError(f"the loader returned a batch of step {batch.step} in step {step}")
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
            mark("backward")
            engine.backward(loss)
            mark("data")
            asked = time.perf_counter()
            batches.fetch()  # the next one, while a GPU is still busy with this one: an upper bound of the GPU's wait
            waited += time.perf_counter() - asked
            mark("update")
            if config.train.zero_stage == 0 and engine.at_boundary:
                norm = engine.grad_norm()
            if engine.at_boundary:
                settle()
            if norm is not None and not math.isfinite(norm):
                engine.skip_step()  # under ZeRO, DeepSpeed does it
            else:
                engine.step()
            total += loss.detach() / passes
    return _Update(total, norm, engine.skipped_steps > skipped_before, waited, fed, marks)


def _seed(device: torch.device, seed: int) -> None:
    """Seed torch's generators, as torch.manual_seed does, for this rank's devices only.

    torch.manual_seed also seeds all other device types, and keeps the call stack for each that doesn't exist.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


Mark = torch.cuda.Event | float


def _mark(device: torch.device) -> Mark:
    """Mark the current point in the device's work."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _seconds(start: Mark, end: Mark) -> float:
    """Seconds between two marks that the device has passed."""
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    assert isinstance(start, torch.cuda.Event)
    assert isinstance(end, torch.cuda.Event)
    return float(start.elapsed_time(end)) / 1000  # milliseconds -> seconds
