"""Read files behind URLs in blocks, retry each with growing pauses, and check size and hash.

A dataset's source is a folder, a URL that fsspec opens (https://, http://, s3://, ...), ``hf://datasets/...`` (read by
hub_reader.py), or ``pipe:COMMAND``: COMMAND writes a file to its standard output, and ``{}`` in it is replaced by the
file's name.
"""

import contextlib
import errno
import os
import select
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit

import xxhash

from pipeline.core import retry
from pipeline.core.errors import UserError
from pipeline.core.retry import GoneError, Patience
from pipeline.core.secrets import secrets_in, without_secrets
from pipeline.dataset import hub_dataset
from pipeline.dataset.hub_reader import HubFile, WrongContentError

BLOCK = 1 << 24  # bytes per request: a failure costs at most this much
_PIPED = 1 << 20  # most bytes read from a command at a time
REFUSED = (401, 403, 404, 410)  # HTTP statuses that a retry doesn't change
BAD_REQUEST = errno.EINVAL  # s3fs's word for HTTP's 400, with which S3 answers expired keys


def check_source(source: str) -> None:
    """Raises UserError if a URL can't be a dataset's."""
    if source.startswith("pipe:"):
        if "{}" not in source:
            raise UserError(
                f"dataset {source!r} has no {{}} for the file's name: give it as in 'pipe:ssh host cat /data/{{}}'"
            )
        if any(not word.lstrip("\"'").startswith(("$", "/", "~")) for word in secrets_in(source)):
            raise UserError(
                f"dataset {without_secrets(source)!r} is a command with a login in it, which config.json and MLflow "
                "would show: use a variable ($PASSWORD), or a file that the command reads it from"
            )
        return
    if hub_dataset.is_hub(source):
        hub_dataset.parse(source)
    url = urlsplit(source)
    if url.username or url.password or url.query or url.fragment:
        raise UserError(
            f"dataset '{url.scheme}://...{url.path}' is a URL with a login, a query or a fragment, which config.json "
            "and MLflow would show: put logins into ~/.netrc (https) or the AWS variables (s3)"
        )


def join(source: str, name: str) -> str:
    """The URL (or pipe command) of one of a dataset's files."""
    if source.startswith("pipe:"):
        return source.replace("{}", shlex.quote(name))
    return f"{source.rstrip('/')}/{quote(name) if source.startswith('http') else name}"


def read_blocks(url: str, size: int, patience: Patience) -> Iterator[bytes]:
    """The file's ``size`` bytes; in one block from a pipe, or if the size is unknown (-1). Raises GoneError and
    OSError."""
    at = 0
    if url.startswith("pipe:"):
        yield _again(lambda: _piped(url, size, patience), url, patience)
        return
    if hub_dataset.is_hub(url):
        yield from HubFile(url, patience).all(size)
        return
    if size < 0:
        yield _again(lambda: _ask(url, patience, "cat_file"), url, patience)
    while at < size:
        wanted = min(BLOCK, size - at)
        block: bytes = _again(partial(_block, url, at, wanted, size, patience), url, patience)
        yield block
        at += len(block)


def download(url: str, file: int, size: int, digest: str, patience: Patience) -> None:
    """Write the file to the descriptor ``file``. Raises GoneError if its bytes don't match ``digest``."""
    for last in (False, True):
        hashed = xxhash.xxh3_128()
        os.lseek(file, 0, os.SEEK_SET)
        try:
            for block in read_blocks(url, size, patience):
                hashed.update(block)
                _write(file, block)
        except WrongContentError:
            if last:
                raise
            continue
        if not digest or hashed.hexdigest() == digest:
            return
    raise GoneError(
        f"{url} has xxh3_128 {hashed.hexdigest()}, dataset.json says {digest}: upload the dataset's file again"
    )


def size_of(url: str, patience: Patience) -> int:
    """Bytes of a file; -1 if only reading it would tell: a pipe, or a server that sends no Content-Length."""
    if url.startswith("pipe:"):
        return -1
    if hub_dataset.is_hub(url):
        return hub_dataset.size_of(url)
    for missed in range(3):
        try:
            size = _again(lambda: _ask(url, patience, "info")["size"], url, patience)
            return -1 if size is None else int(size)
        except GoneError:  # fsspec's https raises it for every error status
            if missed == 2:
                raise
            time.sleep(patience.pause)
    raise AssertionError


def _again(read: Callable[[], Any], url: str, patience: Patience) -> Any:
    """``read`` until it succeeds. Raises GoneError at once, and OSError when the patience ends."""
    backoff = retry.Backoff(patience.pause, patience.longest_pause, patience.seconds)
    while True:
        try:
            return read()
        except UserError:
            raise
        except Exception as error:  # each of fsspec's file systems has its own
            said = f"{type(error).__name__}: {error}"  # aiohttp's repr shows the request's headers: the login
            refused = getattr(error, "status", 0) in REFUSED or getattr(error, "errno", 0) == BAD_REQUEST
            if refused or isinstance(error, FileNotFoundError | PermissionError):
                raise GoneError(f"{url} is missing or may not be read ({said}): check address and keys") from error
            if not backoff.wait():
                raise OSError(f"{url}: gave up after {patience.seconds:.0f} s: {said}") from error


def _block(url: str, at: int, wanted: int, size: int, patience: Patience) -> bytes:
    """One block of a file. Raises OSError if fewer bytes arrive."""
    content: bytes = _ask(url, patience, "cat_file", start=at, end=at + wanted)
    if len(content) == size > wanted:  # the server doesn't support ranges and sends the whole file each time
        return content[at:]
    if len(content) != wanted:
        raise OSError(f"{len(content)} bytes arrived instead of {wanted}")
    return content


def _ask(url: str, patience: Patience, what: str, **options: Any) -> Any:
    """Call a method of the URL's file system. Raises UserError if its package is not installed."""
    import fsspec  # most runs need no network

    scheme = url.partition("://")[0]
    try:
        system = fsspec.filesystem(scheme, **_options(scheme, patience))
    except (ImportError, ValueError) as error:
        raise UserError(
            f"dataset {url!r}: {error}: pip install 'vit-pipeline[remote]', or fsspec's package for {scheme}"
        ) from error
    return getattr(system, what)(url, **options)


def _options(scheme: str, patience: Patience) -> dict[str, Any]:
    """Time limits, as each file system takes them."""
    if scheme in ("http", "https"):
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=patience.stall, sock_read=patience.stall)
        return {"client_kwargs": {"timeout": limits, "trust_env": True}, "use_listings_cache": False}
    if scheme == "s3":
        return {
            "config_kwargs": {"connect_timeout": patience.stall, "read_timeout": patience.stall},
            "use_listings_cache": False,
        }
    return {}


# Runs $1 in a process group that is killed when standard input closes: when its parent has died for whatever reason.
_GUARDED = 'exec 3<&0 </dev/null; { read _; kill -9 0; } <&3 >/dev/null 2>&1 & exec 3<&-; exec /bin/sh -c "$1"'


def _piped(url: str, size: int, patience: Patience) -> bytes:
    """What the command writes. Raises OSError if it fails or stalls, after killing it and all that it started."""
    content = bytearray()
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            ["/bin/sh", "-c", _GUARDED, "sh", url.removeprefix("pipe:")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        try:
            while True:
                if not poll.poll(1000 * patience.stall):
                    raise OSError(f"no byte in {patience.stall:g} s, after {len(content)} bytes")
                block = os.read(process.stdout.fileno(), _PIPED)
                if not block:
                    break
                content += block
            code = process.wait(patience.stall)
        except subprocess.TimeoutExpired:
            raise OSError(f"still running {patience.stall:g} s after its last byte") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if code or (size >= 0 and len(content) != size):
            said.seek(0)
            last = said.read().decode(errors="replace").strip().splitlines()[-1:]
            raise OSError(f"exit code {code} after {len(content)} bytes {last}")
    return bytes(content)


def _write(file: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(file, view) :]
