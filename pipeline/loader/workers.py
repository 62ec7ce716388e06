"""The data loader's worker processes: how they start, prefetch and end, and the error if one dies."""

import atexit
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.core import processes
from pipeline.core.errors import UserError
from pipeline.loader.shared_memory import Slots

Item = TypeVar("Item")
_AHEAD = 2  # batches that each worker prepares in advance; more would not fit into the CPU cache


def slots_for(indices: range, workers: int, batch: int, size: int) -> Slots:
    """Slots for the batches that ``load``'s workers prepare."""
    return Slots(_AHEAD * min(workers, len(indices)), batch, size)


def load(
    batches: Dataset[Item],
    indices: range,
    slots: Slots,
    workers: int,
    *,
    ignoring: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT),
    setting: str = "data.workers",
) -> Iterator[Item]:
    """The items of ``indices``, each with a slot, in order, made in ``workers`` processes that exit with this one.

    With no workers they are made in this process.

    ``ignoring``: signals that only this process handles; by default Slurm's and Ctrl-C, which reach every process of a
    task.
    ``setting``: where the number of workers was set, for the message of the RuntimeError when one of them dies.
    A UserError of a worker is raised as it is.
    """
    if workers:
        processes.short_socket_paths()
        with processes.naming_shared_memory():
            multiprocessing.Lock()
    loader: DataLoader[Any] = DataLoader(
        _UserErrorsToo(batches),
        batch_size=None,
        sampler=slots.claim(indices),
        num_workers=min(workers, len(indices)),
        collate_fn=_same,
        worker_init_fn=partial(_start_worker, ignoring),
        multiprocessing_context="fork" if workers and len(indices) else None,  # what Slots needs
        prefetch_factor=_AHEAD if workers and len(indices) else None,
        generator=torch.Generator(),  # not torch's: starting the loader must not change what dropout draws
    )
    others = multiprocessing.active_children()
    with _deaths_of_workers(setting):
        items = iter(loader)
        _hold_back_deaths()
    own = [child for child in multiprocessing.active_children() if child not in others]
    while True:
        with _deaths_of_workers(setting):
            for worker in own:
                if not worker.is_alive():
                    raise RuntimeError(f"DataLoader worker (pid {worker.pid}) has exit code {worker.exitcode}")
            item = next(items, None)
        if item is None:
            return
        if isinstance(item, UserError):
            try:
                raise item
            finally:
                del item  # else the error and this frame would form a cycle that keeps the workers alive
        yield item


class _UserErrorsToo(Dataset[Any]):
    """A dataset whose UserErrors are returned as items: torch would turn them into tracebacks."""

    def __init__(self, items: Dataset[Any]):
        self._items = items

    def __getitem__(self, index: Any) -> Any:
        try:
            return self._items[index]
        except UserError as error:
            return error


_waiting = False  # whether this process is waiting for a loader worker
_former: Callable[[int, FrameType | None], Any]  # handler of SIGCHLD


@contextmanager
def _deaths_of_workers(setting: str) -> Iterator[None]:
    """Report a worker's death while waiting for one, with its probable cause and the remedy."""
    global _waiting  # noqa: PLW0603
    _waiting = True
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):  # else a worker raised it
            raise
        raise RuntimeError(
            f"a data loader worker died ({error}), most likely because memory ran out: lower {setting} or "
            "request more memory"
        ) from error
    finally:
        _waiting = False


def _hold_back_deaths() -> None:
    """Let torch's SIGCHLD handler, which raises wherever this process is, raise only while a worker is awaited.

    At other times the next wait finds the dead worker. Workers that this process has ended itself are not reported.
    """
    global _former  # noqa: PLW0603
    found = signal.getsignal(signal.SIGCHLD)
    if threading.current_thread() is threading.main_thread() and callable(found) and found is not _on_child:
        _former = found
        signal.signal(signal.SIGCHLD, _on_child)


def _on_child(number: int, frame: FrameType | None) -> None:
    try:
        _former(number, frame)
    except RuntimeError:
        if _waiting:
            raise


def _same(batch: Any) -> Any:
    return batch


def _start_worker(ignoring: Sequence[signal.Signals], worker: int) -> None:  # noqa: ARG001
    processes.start_worker(ignoring)
    cv2.setNumThreads(0)


@atexit.register
def _end_workers() -> None:
    """Runs before multiprocessing's exit handler, which would send SIGTERM to the workers and wait forever."""
    for child in multiprocessing.active_children():
        child.kill()
