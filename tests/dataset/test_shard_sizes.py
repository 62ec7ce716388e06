"""Asking a server for the sizes of a dataset's shards."""

import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.core.retry import Patience
from pipeline.dataset import remote
from pipeline.dataset.format import ShardInfo


@pytest.mark.timeout(60)
def test_ctrl_c_does_not_wait_for_a_server_that_does_not_answer(tmp_path: Path) -> None:
    asked, released = threading.Event(), threading.Event()

    class Silent(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.set()
            released.wait(100)
            self.send_error(404)

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            pass

    def press_ctrl_c() -> None:
        if asked.wait(50):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    threading.Thread(target=press_ctrl_c, daemon=True).start()
    shards = [ShardInfo("train", number, 1, 10, "0" * 32) for number in range(100)]
    try:
        with pytest.raises(KeyboardInterrupt):
            remote.check_shards(
                f"http://127.0.0.1:{server.server_address[1]}", tmp_path, shards, Patience(30, 0.01, 0.05, stall=30)
            )
        assert not list(tmp_path.glob(".found-*"))
    finally:
        signal.signal(signal.SIGINT, before)
        released.set()
        server.shutdown()
        server.server_close()
