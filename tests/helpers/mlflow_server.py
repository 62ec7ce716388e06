"""A real ``mlflow server`` on sqlite, and a proxy in front of it that can be as bad as a network."""

import http.client
import os
import signal
import subprocess
import sys
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from pipeline.distributed.ranks import free_port


class Server:
    """Started and killed as often as a test likes, on one port and one database.

    On sqlite and the folder's files, unless ``options`` and ``variables`` of ``mlflow server`` say otherwise.
    """

    def __init__(self, folder: Path, *options: str, **variables: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._options = options or (
            "--backend-store-uri", f"sqlite:///{folder / 'server.db'}",
            "--artifacts-destination", str(folder / "artifacts"),
        )  # fmt: skip
        self._variables = variables
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        variables = os.environ | self._variables
        variables |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven processes that no run needs
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", *self._options]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=variables, start_new_session=True)
        limit = time.monotonic() + 200
        while not self._answers():
            assert time.monotonic() < limit, (self.folder / "server.log").read_text()
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=20) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """kill -9 of the server and its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Proxy:
    """Forwards to ``port``. ``mode`` may change while it runs:

    pass: as it comes. down: closes connections. 500: answers so without forwarding. lost: forwards, and the answer is
    lost on the way back. slow: waits ``delay`` seconds first. wrong: HTML where JSON is expected.
    """

    def __init__(self, port: int) -> None:
        self.mode = "pass"
        self.delay = 1.0
        self.calls = 0
        self.authorization: set[str] = set()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def forward(self) -> None:
                proxy.calls += 1
                proxy.authorization.add(self.headers.get("Authorization", ""))
                mode = proxy.mode
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if mode == "down":
                    return
                if mode in ("500", "wrong"):
                    self._answer(500 if mode == "500" else 200, b"<html>Something went wrong</html>", "text/html")
                    return
                if mode == "slow":
                    time.sleep(proxy.delay)
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
                try:
                    headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                    connection.request(self.command, self.path, body, headers)
                    answer = connection.getresponse()
                    content = answer.read()
                finally:
                    connection.close()
                if mode != "lost":
                    self._answer(answer.status, content, answer.getheader("Content-Type") or "")

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward

            def _answer(self, status: int, content: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        class Listener(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # a client that left, a server that was killed: what this is for

        self._listener = Listener(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._listener.server_address[1]}"
        Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()
