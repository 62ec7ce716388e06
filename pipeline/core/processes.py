"""Worker processes: the location of multiprocessing's files, worker setup, and exit when the parent dies."""

import gc
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager
from multiprocessing import util
from pathlib import Path

from pipeline.core.files import naming

ARENA = 16 << 20  # bytes that a worker may keep for reuse
CHECK_EVERY = 1.0  # seconds between checks that the parent is alive
LONGEST_SOCKET_PATH = 107  # bytes: sun_path of unix(7) without its final zero
_SOCKET_NAME = len("/pymp-xxxxxxxx/listener-xxxxxxxx")  # what multiprocessing appends to the temporary folder
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def short_socket_paths() -> None:
    """Put multiprocessing's sockets into a folder with a short path if TMPDIR is too long for a socket's path.

    Call before the first worker process starts. Everything else stays in TMPDIR. If no such folder is writable,
    nothing changes, and multiprocessing raises OSError ("AF_UNIX path too long").
    """
    if len(os.fsencode(tempfile.gettempdir())) + _SOCKET_NAME <= LONGEST_SOCKET_PATH:
        return
    former = tempfile.tempdir
    try:
        for folder in _SHORT_FOLDERS:
            if os.access(folder, os.W_OK | os.X_OK):
                tempfile.tempdir = folder
                util.get_temp_dir()  # made once, removed at the end, and inherited by worker processes
                return
    finally:
        tempfile.tempdir = former


def naming_shared_memory() -> AbstractContextManager[None]:
    """Name /dev/shm in errors: semaphores are there, but the system's error names no file."""
    return naming(Path("/dev/shm"))


def start_worker(ignoring: Iterable[signal.Signals]) -> None:
    """Set up a worker process; its first call. ``ignoring``: signals that the parent handles."""
    for number in ignoring:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True, name="leave-with-parent").start()
    # glibc returns freed blocks above a threshold (initially 128 KiB) to the kernel. Each image's bytes would then be
    # in fresh pages, which cost more than reading them. Freeing a large block raises the threshold.
    bytes(ARENA)
    gc.freeze()  # objects from before the fork aren't garbage: exclude them from collection


def _leave_with_parent() -> None:
    """Exit when the parent dies: a killed parent can't stop its workers, which may be waiting for a server.

    A pipe to the parent closes when it dies. Workers forked later hold the pipes of earlier ones too, so a forked
    worker also checks whether its parent's process ID has changed.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    forked = os.getppid() == parent.pid  # else forked by multiprocessing's fork server
    while parent.is_alive() and (not forked or os.getppid() == parent.pid):
        parent.join(CHECK_EVERY)
    os._exit(1)
