"""Read a file on the Hub, whole or in ranges, across broken connections, refusals and expired addresses.

The Hub redirects to a signed address of a storage host, which is valid for some time: it is kept for the file's
further ranges, and asked for again once it has expired. httpx drops the Authorization header when it follows a redirect
to another host, and the signed address is used without it.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from pipeline.core import hub, hub_pace
from pipeline.core.retry import Patience
from pipeline.core.version import VERSION
from pipeline.dataset import hub_dataset

CHUNK = 1 << 20  # bytes


class HubFile:
    """A file at a pinned URL. Positioned reads reuse the address that the Hub has redirected to."""

    def __init__(self, url: str, patience: Patience):
        self.url, self._patience = url, patience
        self._place = hub_dataset.parse(url)
        self._address = ""  # signed; "" if it must be asked for
        self.digest = ""  # SHA-256 of the whole file, if the Hub has stated it

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from ``start`` to ``end`` in chunks. Raises GoneError and OSError."""
        pace, at = hub_pace.Pace(self.url, self._patience), start
        while at < end:
            pace.wait_for_turn()
            try:
                with self._answer(at, end) as response:
                    skip = at if response.status_code == 200 else 0  # a server without ranges sends the whole file
                    for chunk in response.iter_bytes(CHUNK):
                        piece = chunk[skip : skip + end - at]
                        skip = max(0, skip - len(chunk))
                        if piece:
                            pace.progress()
                            at += len(piece)
                            yield piece
                if at < end:
                    raise OSError(f"it ended after {at} of {end} bytes")
            except Exception as error:  # of httpx and what lies below it
                hub_dataset.refuse(error, self._place)
                pace.failed(error)

    def all(self, size: int) -> Iterator[bytes]:
        """The whole file in chunks. Raises GoneError and OSError, also if the content isn't what the Hub has listed."""
        found = hashlib.sha256()
        with hub_pace.download_turn():
            for chunk in self.read(0, size):
                found.update(chunk)
                yield chunk
        if self.digest and found.hexdigest() != self.digest:
            raise WrongContentError(f"{self.url} has SHA-256 {found.hexdigest()}, the Hub lists {self.digest}")

    @contextmanager
    def _answer(self, start: int, end: int) -> Iterator[Any]:
        """The answer to a request for a range. Raises huggingface_hub's errors, and _StorageError."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, and imported lazily there
            build_hf_headers,
            hf_raise_for_status,
        )

        place, address = self._place, self._address
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        if not address:
            asked = {"repo_type": "dataset", "revision": place.revision, "endpoint": hub.endpoint()}
            address = hf_hub_url(place.repo, place.path, **asked)
            headers |= build_hf_headers(library_name=hub.LIBRARY, library_version=VERSION)
        with get_session().stream(
            "GET", address, headers=headers, timeout=self._patience.stall, follow_redirects=True
        ) as response:
            final = str(response.url)
            stored = urlsplit(final)[:2] != urlsplit(hub.endpoint())[:2]  # on another host than the Hub
            self._address = ""
            if response.status_code in (200, 206):
                self._address = final if stored else ""
                first = response.history[0].headers if response.history else {}
                etag = first.get("X-Linked-Etag", "").strip('"')
                self.digest = etag if len(etag) == 64 else self.digest  # SHA-256; SHA-1 of files that are in git
                yield response
                return
            if stored:
                raise _StorageError(response)
            response.read()
            hf_raise_for_status(response)


class WrongContentError(OSError):
    """All bytes have arrived, and their hash is not the one that the Hub lists."""


class _StorageError(OSError):
    """An error status of a storage host, such as for an expired signature. The signed address isn't shown."""

    def __init__(self, response: Any):
        super().__init__(f"HTTP {response.status_code} of {response.url.host}")
