"""Spread work over worker processes that report progress, and leave no process behind."""

import importlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from multiprocessing.queues import SimpleQueue
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

from pipeline.core import processes
from pipeline.core.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
REPORT_EVERY = 0.1  # seconds
PRELOADED = ("pipeline.core.progress", "pipeline.core.cli")  # what every command's workers import
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # what a terminal and Slurm send
BUILDS_TABLES = "pandas"  # half a second: pyarrow looks for it when it first makes an array
Report = dict[str, int]  # counts since the last report

_reports: "SimpleQueue[Report] | None" = None
_waiting: Report = {}  # counts not yet passed on
_passed_on = 0.0  # time of the latest pass


def report(counts: Report) -> None:
    """Pass counts from a worker to its parent, at most every REPORT_EVERY seconds; cheap enough to call per image."""
    if _reports is None:
        return
    for name, count in counts.items():
        _waiting[name] = _waiting.get(name, 0) + count
    if time.monotonic() - _passed_on >= REPORT_EVERY:
        _pass_on()


def _pass_on() -> None:
    global _passed_on  # noqa: PLW0603
    if _reports is not None and _waiting:
        _reports.put(_waiting)
        _waiting.clear()
        _passed_on = time.monotonic()


def _reported(work: Callable[[Item], Result], item: Item) -> Result:
    """``work(item)`` in a worker; then pass on all of its counts."""
    try:
        return work(item)
    finally:
        _pass_on()


def start_server(*modules: str) -> ForkServerContext:
    """Start the process that workers are forked from, unless it is running. Doesn't wait for it: that takes 0.5 s.

    ``modules``: what this command and its workers need in addition to PRELOADED. BUILDS_TABLES if they make Arrow
    arrays; workers that only read tables, such as those of verify, start half a second sooner without it. This process
    imports them while the server does, rather than at their first use, when nothing else runs.

    Workers are not forked from this process, because it has threads (the progress bar's, Arrow's). The server preloads
    what the work needs and what the command's module imports, since each worker imports that module again (preloading
    the module itself would make runpy warn).
    """
    processes.short_socket_paths()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *modules])
    resource_tracker.ensure_running()  # first, because it unblocks SIGINT at its end
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # inherited by the server: the parent handles Ctrl-C
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    for module in modules:
        importlib.import_module(module)
    return context


def run(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    on_report: Callable[[Report], None] = lambda _: None,
) -> Iterator[Result]:
    """``work(item)`` for each item in ``workers`` processes; results in the order of ``items``.

    The first exception raised for any item stops all work and is raised here. So is what the handlers of STOPPING
    raise, at most 0.25 s after the signal.
    """
    context = start_server()
    source = iter(items)
    with processes.naming_shared_memory():
        queue: SimpleQueue[Report] = context.SimpleQueue()
    with Postponed() as postponed:
        pool = ProcessPoolExecutor(workers, context, _start, (queue,))
        pending: list[Future[Result]] = []
        try:
            while True:
                postponed.handle()
                pending += [pool.submit(_reported, work, item) for item in islice(source, 4 * workers - len(pending))]
                if not pending:
                    break
                wait([future for future in pending if not future.done()], 0.25, FIRST_COMPLETED)
                _drain(queue, on_report)
                for future in pending:
                    if future.done() and future.exception():
                        raise future.exception()  # type: ignore[misc]
                while pending and pending[0].done():
                    yield pending.pop(0).result()
            _drain(queue, on_report)
            pool.shutdown()
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, most likely because memory ran out: run again with fewer --workers"
            ) from None
        except BaseException:
            for process in list((pool._processes or {}).values()):  # there is no public way to stop running work
                process.terminate()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            queue.close()


class Postponed:
    """While open, the handlers of STOPPING run in :meth:`handle` alone. A context manager for the main thread.

    They raise wherever the main thread is. In the middle of ``Condition.__enter__``, this leaves a future's lock locked
    for ever, and the pool's shutdown waits for it: one Ctrl-C in 200 didn't end the command.
    """

    def __init__(self) -> None:
        self._arrived: list[int] = []
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def __enter__(self) -> Self:
        for number in STOPPING:
            handler = signal.getsignal(number)
            if callable(handler):  # else the signal is ignored, or ends the process by itself
                self._handlers[number] = handler
                signal.signal(number, lambda number, _: self._arrived.append(number))
        return self

    def handle(self) -> None:
        """Call the handler of a signal that has arrived. From then on, Ctrl-C ends the process at once."""
        if self._arrived:
            if signal.SIGINT in self._handlers:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
            number = self._arrived.pop(0)
            self._handlers[number](number, None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if kind is None:
            self.handle()


def _drain(queue: "SimpleQueue[Report]", on_report: Callable[[Report], None]) -> None:
    while not queue.empty():
        on_report(queue.get())


def _start(queue: "SimpleQueue[Report]") -> None:
    global _reports  # noqa: PLW0603 a process pool can't pass it as an argument
    _reports = queue
    processes.start_worker([signal.SIGINT])  # the parent stops us
