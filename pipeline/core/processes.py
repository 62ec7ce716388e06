"""Worker processes: where multiprocessing's files lie, how a worker starts, and that it leaves with its parent."""

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
CHECK_EVERY = 1.0  # seconds between looks whether the parent is there
LONGEST_SOCKET_PATH = 107  # bytes: sun_path of unix(7) without its final zero
_SOCKET_NAME = len("/pymp-xxxxxxxx/listener-xxxxxxxx")  # what multiprocessing appends to the temporary folder
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def short_socket_paths() -> None:
    """Let multiprocessing's sockets lie in a folder with a short path if TMPDIR's is too long for a socket.

    Call before the first worker process starts. Everything else stays in TMPDIR. If no folder with a short path can be
    written to, nothing changes, and multiprocessing raises OSError ("AF_UNIX path too long").
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
    """Name /dev/shm in errors: semaphores lie there, though the system's refusal names no file."""
    return naming(Path("/dev/shm"))


def start_worker(ignoring: Iterable[signal.Signals]) -> None:
    """Set up a worker process; call in it first. ``ignoring``: signals that the parent answers."""
    for number in ignoring:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True, name="leave-with-parent").start()
    # glibc hands freed memory back to the kernel above a threshold, 128 KiB at first, so that each image's bytes would
    # come from fresh pages, which costs more than reading them. Freeing a large block raises the threshold.
    bytes(ARENA)
    gc.freeze()  # what was there before isn't garbage: no need to look at it again and again


def _leave_with_parent() -> None:
    """A killed parent can't stop its workers, which may be waiting for a server: each looks if the parent is there.

    A pipe to the parent tells. Workers forked later hold the pipe of earlier ones, too, so a forked worker also looks
    whether its parent process is another one by now.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    forked = os.getppid() == parent.pid  # else a server has forked this process
    while parent.is_alive() and (not forked or os.getppid() == parent.pid):
        parent.join(CHECK_EVERY)
    os._exit(1)
