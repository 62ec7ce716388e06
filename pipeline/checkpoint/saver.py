"""Writing checkpoints while training continues: copy the state to memory before it changes, then write files.

A step only reads the weights and moments until its end, where it calls :meth:`Saver.settle`. Each rank's thread writes
its share and reports success or the error in the store that the ranks share; rank 0's thread waits for all reports,
writes ``meta.json`` and renames the folder. So threads need no collectives, and a folder with its final name is
complete.
"""

import dataclasses
import json
import logging
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch._C._distributed_c10d import Store  # torch.distributed.Store, where mypy finds it

from pipeline.checkpoint.format import FORMAT_VERSION, Meta, complete, folder_name, read_meta
from pipeline.config.schema import CheckpointConfig, RunConfig, save_minutes
from pipeline.config.serialize import to_dict
from pipeline.core.errors import UserError
from pipeline.core.files import flush, write_json, xxh3_128
from pipeline.core.tensor_files import save_tensors
from pipeline.engine.deepspeed_engine import Engine
from pipeline.runs.folder import CHECKPOINTS, META, step_of
from pipeline.runs.ownership import Fence

logger = logging.getLogger(__name__)

PATIENCE = timedelta(minutes=30)  # time that rank 0 waits for the other ranks' files
BEST = "eval/top1"  # the metric of keep_best


class Saver:
    """Saves one attempt's checkpoints, on one rank. The next save waits for the previous one to finish.

    ``store``: a separate connection to the store that all ranks share.
    """

    def __init__(self, config: RunConfig, facts: Mapping[str, Any], store: Store, fence: Fence | None = None) -> None:
        self.config, self.facts, self.fence = config, facts, fence
        self._store = store
        self.rank, self.world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.last = time.monotonic()  # start of the latest save
        self._buffers: dict[str, torch.Tensor] = {}  # memory of the copy, reused by the next save
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._told = True  # whether the other ranks know of the error
        self._settled = threading.Event()
        self._settled.set()
        self._folder = config.run_dir / CHECKPOINTS

    def due(self, step: int, steps: int) -> bool:
        """Whether a checkpoint is due by this rank's clock or by the step.

        The clock waits for a checkpoint that is being written: a slow disk must not hold up the training.
        """
        rule, minutes = self.config.checkpoint, save_minutes(self.config)
        writing = self._thread is not None and self._thread.is_alive()
        by_clock = minutes > 0 and not writing and time.monotonic() - self.last >= 60 * minutes
        return step == steps or by_clock or (rule.every > 0 and step % rule.every == 0)

    def save(
        self,
        engine: Engine,
        step: int,
        *,
        counts: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> Path:
        """Start writing the checkpoint of ``step``; collective. ``metrics``: from an evaluation at exactly this step;
        ``counts``: Meta's skipped, rollbacks and undone.

        Tensors are distributed over the ranks by size, so that each writes about the same number of bytes. Raises the
        previous checkpoint's error: FencedError if a later attempt owns the run folder, OSError or RuntimeError.
        """
        self.finish()
        self.last = time.monotonic()
        final = self._folder / folder_name(step)
        aside = final.with_name(f".{final.name}.tmp")
        if self.rank == 0:
            if self.fence is not None:
                self.fence.check()
            for left in self._folder.glob(".step-*.tmp"):  # left by attempts that died while saving
                shutil.rmtree(left)
            aside.mkdir(parents=True)
        torch.distributed.barrier()  # wait until the folder exists
        mine, source = self._own_share(engine)
        meta = Meta(
            format_version=FORMAT_VERSION,
            step=step,
            samples=step * self.config.train.global_batch,
            optimizer_steps=engine.optimizer_steps(),
            config=to_dict(self.config),
            world_size=self.world,
            files={},
            metrics=dict(metrics or {}),
            **(counts or {}),
            **self.facts,
        )
        self._settled.clear()
        self._thread = threading.Thread(target=self._write, args=(aside, final, mine, source, meta), name="saver")
        self._thread.start()
        if not self.config.checkpoint.background:
            self.finish()
        return final

    def settle(self) -> None:
        """Wait until the weights and moments may change. Call before each optimizer step.

        Raises errors of this rank's thread, so that no rank continues to train without checkpoints.
        """
        self._settled.wait()
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Wait until the checkpoint that is being written is complete, if there is one; collective."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._error is not None and not self._told:  # rank 0 still waits for our part: it will see our exit
            raise self._error
        failed: list[str] = [""] * self.world
        torch.distributed.all_gather_object(failed, repr(self._error) if self._error else "")
        if self._error is not None:
            raise self._error
        for rank, fault in enumerate(failed):
            if fault:
                raise RuntimeError(f"rank {rank} could not write its part of a checkpoint: {fault}")

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add an evaluation's metrics to the complete checkpoint of ``step``. Rank 0 only."""
        path = self._folder / folder_name(step)
        write_json(path / META, dataclasses.asdict(dataclasses.replace(read_meta(path), metrics=dict(metrics))))

    def _own_share(self, engine: Engine) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """This rank's share: float32 buffers in host memory, and the tensors still to be copied into them."""
        load = [0] * self.world
        mine, source = {}, {}
        for key, holder, size, tensor in engine.gather_state():
            owner = load.index(min(load)) if holder is None else holder
            load[owner] += size
            if owner == self.rank:
                assert tensor is not None, key
                if key not in self._buffers:
                    self._buffers[key] = torch.empty(tensor.shape, pin_memory=tensor.is_cuda)
                mine[key] = self._buffers[key]
                if holder is None:  # a temporary that would accumulate
                    mine[key].copy_(tensor, non_blocking=tensor.is_cuda)
                else:
                    source[key] = tensor
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return mine, source

    def _copy(self, mine: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor]) -> None:
        """Copy and write in the thread. On a GPU, copy in a separate stream, concurrently with the computation."""
        on_gpu = any(tensor.is_cuda for tensor in source.values())
        stream = torch.cuda.Stream(next(iter(source.values())).device) if on_gpu else None  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            for key, tensor in source.items():
                mine[key].copy_(tensor, non_blocking=tensor.is_cuda)
        if stream is not None:
            stream.synchronize()

    def _write(
        self,
        aside: Path,
        final: Path,
        mine: dict[str, torch.Tensor],
        source: dict[str, torch.Tensor],
        meta: Meta,
    ) -> None:
        try:
            try:
                self._copy(mine, source)
            finally:
                self._settled.set()
            name = f"state-{self.rank:03d}.safetensors"
            entry = {}
            if mine:
                save_tensors(mine, aside / name)
                entry = {name: {"bytes": (aside / name).stat().st_size, "xxh3_128": xxh3_128(aside / name)}}
            flush(aside)
            report(self._store, meta.step, Report(self.rank, entry))
            if self.rank == 0:
                files = wait_for_all(self._store, meta.step, self.world, aside)
                write_json(aside / META, dataclasses.asdict(dataclasses.replace(meta, files=files)))
                if self.fence is not None:
                    self.fence.check()
                shutil.rmtree(final, ignore_errors=True)  # a broken checkpoint of this step, skipped at startup
                aside.rename(final)
                flush(final.parent)
                delete_old(self.config.run_dir, self.config.checkpoint, meta.step)
        except BaseException as error:
            if self.rank > 0:
                self._told = False
                with suppress(OSError):
                    (aside / f"state-{self.rank:03d}.safetensors").unlink(missing_ok=True)  # room for other files
                with suppress(RuntimeError):  # torch's error if rank 0, which has the store, has exited
                    report(self._store, meta.step, Report(self.rank, fault=repr(error)))
                    self._told = True
            self._error = error


@dataclass(frozen=True)
class Report:
    """A rank's report to rank 0: the entries of meta.json's files, or the error."""

    rank: int
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    fault: str = ""


def report(store: Store, step: int, what: Report) -> None:
    """Report to rank 0, once per rank and step. Afterwards this rank must not use the folder: rank 0 renames it."""
    number = store.add(f"saved/{step}", 1)
    store.set(f"saved/{step}/{number}", json.dumps(dataclasses.asdict(what)))


def wait_for_all(
    store: Store, step: int, world: int, folder: Path, patience: timedelta = PATIENCE
) -> dict[str, dict[str, Any]]:
    """The entries of all ranks' files, as soon as all are written.

    Raises RuntimeError at the first reported error, TimeoutError if reports are missing after ``patience``. The
    heartbeat detects ranks that are gone.
    """
    limit = time.monotonic() + patience.total_seconds()
    missing = set(range(world))
    files: dict[str, dict[str, Any]] = {}
    for number in range(1, world + 1):  # in the order in which they come
        key = f"saved/{step}/{number}"
        left = max(limit - time.monotonic(), 0.001)  # 0 would wait forever
        try:
            store.wait([key], timedelta(seconds=left))
        except torch.distributed.DistStoreError as error:
            raise TimeoutError(
                f"{str(folder)!r}: rank(s) {', '.join(map(str, sorted(missing)))} have not written their part within "
                f"{patience.total_seconds():.0f} s"
            ) from error
        said = Report(**json.loads(store.get(key)))
        if said.fault:
            raise RuntimeError(f"rank {said.rank} could not write its part of {folder}: {said.fault}")
        missing.remove(said.rank)
        files |= said.files
        store.delete_key(key)
    store.delete_key(f"saved/{step}")
    return files


def delete_old(run_dir: Path, rule: CheckpointConfig, step: int) -> None:
    """Keep the newest ``keep_last``, the multiples of ``keep_every`` and the ``keep_best`` best, and delete the others.

    ``step`` was just saved: checkpoints above it are broken ones that this attempt skipped, and are not touched.
    """
    paths = [path for path in complete(run_dir) if step_of(path) <= step]
    scores: dict[Path, float | None] = {}
    for path in paths if rule.keep_best else ():
        with suppress(UserError):  # a broken checkpoint has no score
            scores[path] = read_meta(path).metrics.get(BEST)
    ranked = sorted((path for path in paths if scores.get(path) is not None), key=lambda path: scores[path] or 0.0)
    best = ranked[-rule.keep_best :] if rule.keep_best else []
    for path in paths[: -max(rule.keep_last, 1)]:
        if path not in best and (not rule.keep_every or step_of(path) % rule.keep_every):
            (path / META).unlink()  # first, so that a partly deleted checkpoint doesn't count as complete
            try:
                shutil.rmtree(path)
            except OSError as error:  # on NFS, a file that another process of this node has open stays in its folder
                logger.warning("old checkpoint %s can't be deleted (%s): delete it by hand", path, error.strerror)
