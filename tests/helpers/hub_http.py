"""The HTTP of the tests' Hub: requests are recorded, faults are answered, files are sent whole or in ranges."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote


@dataclass(frozen=True)
class Request:
    """One request that came in."""

    part: str  # "api", "resolve" or "storage" (the signed URLs)
    method: str
    path: str
    token: str  # "" without one
    fault: str  # that was answered, "" if none
    range: str  # the Range header, "" without one
    at: float  # time.monotonic()


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: object) -> None:
        pass  # a client that has lost patience


class Traffic:
    """What came in, and what befalls the next requests; of both servers together."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.faults: dict[str, Iterator[str]] = {}
        self.most_at_once = Counter[str]()  # requests in progress at the same time, of "hub" and "storage"
        self.retry_after = 1  # seconds, in answers 429
        self.delay, self.stall = 0.3, 6.0  # seconds
        self.lock = threading.Lock()
        self._now = Counter[str]()

    def enter(self, server: str) -> None:
        with self.lock:
            self._now[server] += 1
            self.most_at_once[server] = max(self.most_at_once[server], self._now[server])

    def leave(self, server: str) -> None:
        with self.lock:
            self._now[server] -= 1


class Handler(BaseHTTPRequestHandler):
    """Reads requests and writes answers; what to answer is the server's matter."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    traffic: Traffic
    token = ""
    body = b""
    last_byte = b""  # of the answer: sent once the request is no longer counted as being in progress

    def begin(self, part: str) -> str:
        """Record the request; its fault."""
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        with self.traffic.lock:
            fault = next(self.traffic.faults.get(part, iter(())), "")
            self.traffic.requests.append(
                Request(
                    part, self.command, self.path, self.token, fault, self.headers.get("Range", ""), time.monotonic()
                )
            )
        if fault == "slow":
            time.sleep(self.traffic.delay)
        return fault

    def refuse(self, fault: str) -> bool:
        """Whether the fault was answered instead of the request."""
        seconds = str(self.traffic.retry_after)
        if fault == "503":
            self.send(503, b"Service Unavailable", {})
        elif fault == "429":
            limits = {"RateLimit": f'"resolvers";r=0;t={seconds}'}
            self.send(429, b"Too Many Requests", limits | {"RateLimit-Policy": '"fixed window";"resolvers";q=5;w=9'})
        elif fault == "429-retry-after":
            self.send(429, b"Too Many Requests", {"Retry-After": seconds})
        else:
            return False
        return True

    def error(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        more = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.json({"error": message}, {**(headers or {}), **more}, status)

    def json(self, value: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def content(self, data: bytes, headers: dict[str, str], fault: str) -> None:
        """A file, or the range of it that was asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            self.send(200, data, headers, fault)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        if first >= len(data):
            self.send(416, b"", headers | {"Content-Range": f"bytes */{len(data)}"})
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self.send(206, data[first : last + 1], headers, fault)

    def send(self, status: int, data: bytes, headers: Mapping[str, str], fault: str = "") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, quote(value, safe=" !\"#$%&'()*+,/:;<=>?@[]^_{|}~"))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "wrong":
            data = bytes(len(data))
        if fault not in ("cut", "stall"):
            self.wfile.write(data[:-1])
            self.last_byte = data[-1:]
            return
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        time.sleep(self.traffic.stall if fault == "stall" else 0)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def handler_of(traffic: Traffic, server: str, answer: Callable[[Handler], None]) -> type[Handler]:
    """The handler of one of the two servers, "hub" or "storage"."""

    class Answering(Handler):
        def _any(self) -> None:
            traffic.enter(server)
            self.last_byte = b""
            try:
                answer(self)
            except ConnectionError:  # the client has lost patience
                self.close_connection = True
            finally:
                traffic.leave(server)
            with suppress(ConnectionError):
                self.wfile.write(self.last_byte)

        do_GET = do_HEAD = do_POST = do_PUT = _any

    Answering.traffic = traffic
    return Answering
