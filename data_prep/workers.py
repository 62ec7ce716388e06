"""Work spread over processes, with reports on the way and no process left behind."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing.queues import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Report = dict[str, int]  # counts since the last report

_reports: "SimpleQueue[Report] | None" = None


def report(counts: Report) -> None:
    """Called in a worker: pass counts on to the process that started it."""
    if _reports is not None:
        _reports.put(counts)


def run(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    on_report: Callable[[Report], None] = lambda _: None,
) -> Iterator[Result]:
    """``work(item)`` for each item in ``workers`` processes; results in the order of ``items``.

    The first exception of any item stops everything and is raised here.
    """
    # Not fork: it copies this process with its threads (the progress bar's, Arrow's). The server that is forked
    # instead has imported what the work needs, once for all.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_prep.build"])
    queue: SimpleQueue[Report] = context.SimpleQueue()
    source = iter(items)
    pool = ProcessPoolExecutor(workers, context, _start, (queue,))
    pending: list[Future[Result]] = []
    try:
        while True:
            pending += [pool.submit(work, item) for item in islice(source, 4 * workers - len(pending))]
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
    except BaseException:
        for process in list((pool._processes or {}).values()):  # there is no public way to stop running work
            process.terminate()
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        queue.close()


def _drain(queue: "SimpleQueue[Report]", on_report: Callable[[Report], None]) -> None:
    while not queue.empty():
        on_report(queue.get())


def _start(queue: "SimpleQueue[Report]") -> None:
    global _reports  # noqa: PLW0603 what a process pool has instead of arguments
    _reports = queue
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops us
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A killed parent can't stop its workers: each watches it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
