"""An HTTP server of a folder that knows ranges, and fails in turn: errors, cut answers, silence, wrong bytes."""

import itertools
import re
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

STALL = 6.0  # seconds of silence


class Server:
    """Use as a context manager. ``faults`` come round for requests of shards: '', 'error', 'cut', 'stall', 'wrong'."""

    def __init__(self, folder: Path, faults: Sequence[str] = ("",), *, ranges: bool = True, lengths: bool = True):
        self.folder = folder
        self.lengths = lengths
        self.ranges = ranges
        self.requests: list[tuple[str, str]] = []  # path and fault
        self.logins: set[str] = set()  # that came with requests
        self.faults = itertools.cycle(faults)
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                owner.answer(self, body=False)

            def do_GET(self) -> None:
                owner.answer(self, body=True)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/data"

    def __enter__(self) -> "Server":
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = self.folder / handler.path.removeprefix("/data/")
        with self._lock:
            fault = next(self.faults) if body and path.suffix == ".tar" else ""
            if body:
                self.requests.append((path.name, fault))
            if login := handler.headers.get("Authorization"):
                self.logins.add(login.removeprefix("Basic "))
        if not path.is_file() or fault == "error":
            handler.send_error(503 if fault else 404)
            return
        content = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", "")) if self.ranges else None
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            content = content[first : last + 1]
        else:
            handler.send_response(200)
        if self.lengths:
            handler.send_header("Content-Length", str(len(content)))
        else:
            handler.send_header("Connection", "close")
        handler.end_headers()
        if not body:
            return
        half = content[: len(content) // 2]
        try:
            if fault == "wrong":
                handler.wfile.write(half + bytes(len(content) - len(half)))
            elif fault in ("cut", "stall"):
                handler.wfile.write(half)
                handler.wfile.flush()
                time.sleep(STALL if fault == "stall" else 0)
                handler.close_connection = True
            else:
                handler.wfile.write(content)
        except ConnectionError:  # the client has lost patience
            handler.close_connection = True
