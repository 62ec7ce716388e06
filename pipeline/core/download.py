"""Download one large file: resumed where an earlier attempt ended, checked against what the server states about it."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.core import hub, hub_pace
from pipeline.core.errors import UserError
from pipeline.core.files import flush, hashed, put_in_place, readable_as_folder
from pipeline.core.retry import Patience

logger = logging.getLogger(__name__)

PAUSE, LONGEST_PAUSE, GIVE_UP_AFTER = 0.5, 30.0, 120.0  # seconds; the last without a byte
STALL = 30.0  # seconds without a byte after which a request has failed
_BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class Stated:
    """What a server states about a file before it is downloaded."""

    url: str
    bytes: int
    algorithm: Literal["sha256", "md5", ""]  # "": no hash is stated
    digest: str  # hexadecimal

    @property
    def part(self) -> str:
        """Part of the unfinished file's name, so that changed content at the same address isn't continued."""
        return (self.digest or f"{self.bytes}")[:16]


class UnreachableError(OSError):
    """The server gave no answer."""


class _BrokenError(OSError):
    """A request brought less than was asked for. ``response``: an error that a retry may change."""

    def __init__(self, message: str, response: Any = None):
        super().__init__(message)
        self.response = response


def download(stated: Stated, target: Path, advance: Callable[[int], None], *, token: str = "") -> str:
    """Download a file to ``target``, which appears whole and checked; return its sha256.

    ``advance`` is called with the number of new bytes. An unfinished file stays beside the target, and the next call
    continues from its end. ``token`` is sent only to the address, not to where it redirects. Raises UserError for a
    refusal and for wrong bytes, which are removed; UnreachableError.
    """
    part = target.with_name(f".{target.name}.{stated.part}.part")
    for other in target.parent.glob(f".{target.name}.*.part"):
        if other != part:
            other.unlink()
    part.touch()
    if (size := part.stat().st_size) > stated.bytes:
        os.truncate(part, size := 0)
    advance(size)
    pace = hub_pace.Pace(stated.url, Patience(GIVE_UP_AFTER, PAUSE, LONGEST_PAUSE, STALL))
    while (before := part.stat().st_size) < stated.bytes:
        pace.wait_for_turn()
        try:
            _continue(stated, part, advance, token)
        except (hub.http_error(), _BrokenError) as error:
            logger.debug("%s: %s", target.name, error)
            if part.stat().st_size > before:
                pace.progress()
            try:
                pace.failed(error)
            except hub_pace.GaveUpError:
                said = str(error) or type(error).__name__
                raise UnreachableError(f"{said}, tried for {GIVE_UP_AFTER:g} s") from error
    found = hashed(part, stated.algorithm or "sha256")
    if stated.algorithm and found != stated.digest:
        part.unlink()
        raise UserError(
            f"{stated.url} arrived with {stated.algorithm} {found}, its server states {stated.digest}: the file was "
            "removed, run the same command again"
        )
    readable_as_folder(part)
    flush(part)
    put_in_place(part, target)
    return found if stated.algorithm != "md5" else hashed(target)


def _continue(stated: Stated, part: Path, advance: Callable[[int], None], token: str) -> None:
    """Append to ``part`` what one request brings.

    Raises _BrokenError and the HTTP client's errors, after which a retry may help; UserError for an answer that a
    retry won't change.
    """
    from huggingface_hub import get_session

    at = part.stat().st_size
    headers = {"Range": f"bytes={at}-", "Accept-Encoding": "identity"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    with get_session().stream("GET", stated.url, headers=headers, timeout=STALL) as answer:
        status = answer.status_code
        if hub_pace.is_busy(status):
            raise _BrokenError(f"status {status}", answer)
        if status not in (200, 206):
            raise UserError(f"{stated.url} can't be downloaded (status {status}): check its page in a browser")
        with part.open("r+b") as file:
            if status == 200 and at:  # the server sends the whole file each time
                file.truncate(0)
                advance(-at)
            file.seek(0, os.SEEK_END)
            for block in answer.iter_raw(_BLOCK):
                file.write(block)
                advance(len(block))
    if part.stat().st_size < stated.bytes:
        raise _BrokenError("the response was cut off")
