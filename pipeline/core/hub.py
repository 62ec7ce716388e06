"""What every use of the Hugging Face Hub shares: its client, its pages, and its errors as one line with the remedy.

HF_ENDPOINT, HF_TOKEN (or ``hf auth login``), HF_HUB_OFFLINE and HF_HOME are read by huggingface_hub itself. It is
imported when a function is called: it loads an HTTP client, which most commands don't need.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeVar

from pipeline.core import hub_pace
from pipeline.core.errors import UserError
from pipeline.core.version import VERSION

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Item = TypeVar("Item")
Kind = Literal["model", "dataset"]
LIBRARY = "vit-pipeline"  # how requests name this project to the server


def client() -> "HfApi":
    """The Hub's client, which names this project to the server.

    huggingface_hub's own warnings are off: those of a broken download show its signed URL, which opens the file.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return HfApi(endpoint(), library_name=LIBRARY, library_version=VERSION)


def endpoint() -> str:
    """The Hub's address: HF_ENDPOINT, or https://huggingface.co.

    The variable is read at each call: a fork of a process that has imported huggingface_hub may have its own.
    """
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def page(repository: str, kind: Kind = "model") -> str:
    """The page of a repository OWNER/NAME."""
    return f"{endpoint()}/{'datasets/' if kind == 'dataset' else ''}{repository}"


def ask(question: Callable[[], Item], url: str) -> Item:
    """What a request returns; it is repeated while the server is busy or asks us to wait (429).

    Raises the last error; that of an unreachable server at once, so that a cache can be used. ``url``: for the log.
    """
    from huggingface_hub.errors import HfHubHTTPError

    def is_final(error: Exception) -> bool:
        return not isinstance(error, HfHubHTTPError) or hub_pace.is_refusal(error)

    try:
        return hub_pace.ask(question, url, hub_pace.QUESTION, is_final)
    except hub_pace.GaveUpError as given_up:
        raise given_up.error from None


@contextmanager
def one_line(what: str, repository: str, kind: Kind = "model") -> Iterator[None]:
    """Raise UserError for the Hub's errors in the block. ``what``: the option and value that named the repository."""
    from huggingface_hub import errors

    try:
        yield
    except (
        http_error(), errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, errors.FileMetadataError,
        errors.HFValidationError,
    ) as error:  # fmt: skip
        raise UserError(f"{what}: {remedy(error, repository, kind)}") from error


@contextmanager
def plain_http() -> Iterator[None]:
    """Make huggingface_hub transfer files over plain HTTP in the block, even if hf-xet is installed.

    Xet's client doesn't know of the Hub's pauses, takes minutes to report that its servers are blocked, and
    uploads a folder in several commits.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


def unreachable(error: BaseException) -> bool:
    """Whether an error of huggingface_hub means that there is no network, or HF_HUB_OFFLINE is set."""
    from huggingface_hub import errors

    return isinstance(error, errors.OfflineModeIsEnabled) or (
        isinstance(error, http_error()) and not isinstance(error, errors.HfHubHTTPError)
    )


def http_error() -> type[Exception]:
    """The base of the HTTP client's errors: httpx's or httpx2's, by huggingface_hub's version."""
    from huggingface_hub import errors

    return errors.HTTPError  # type: ignore[attr-defined]


def reason(error: BaseException, server: str = "") -> str:
    """Why a server, by default the Hub, is unreachable."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    return f"{server or endpoint()} can't be reached ({str(error) or type(error).__name__})"


def remedy(error: Exception, repository: str, kind: Kind = "model") -> str:
    """What an error of huggingface_hub means and what to do, without its URLs, which may be signed."""
    from huggingface_hub import errors, get_token

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the request's own error, before the cache was searched
    at, token = page(repository, kind), get_token()
    login = f"{endpoint()}/settings/tokens, then 'hf auth login' or HF_TOKEN"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{reason(error)}: unset it to reach the Hub"
    if isinstance(error, errors.HFValidationError):
        return f"{repository} is not a valid name on the Hub: check it"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.FileMetadataError):
        return f"{endpoint()} doesn't answer like the Hub: check HF_ENDPOINT and HTTPS_PROXY"
    if isinstance(error, errors.GatedRepoError):
        if token is None:
            return f"{repository} is gated: accept its terms at {at} and log in with a token of {login}"
        return f"{repository} is gated and your token has no access: ask for it at {at}, and check the token's rights"
    if isinstance(error, errors.RepositoryNotFoundError):
        private = f"log in with a token of {login}" if token is None else "use a token of an account that may read it"
        return f"{kind} {repository} doesn't exist or is private: check the name at {at}; if it is private, {private}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no such revision: choose a branch, tag or commit of {at}/commits/main"
    if not isinstance(error, errors.HfHubHTTPError):
        return f"{reason(error)}: check the network, HTTPS_PROXY and HF_ENDPOINT"
    status = error.response.status_code
    if status == 401:
        return f"your token is not valid: make another one at {login}"
    if status == 403:
        return f"your token may not do this in {repository}: make one that may at {login}"
    if status == 429:
        return f"{endpoint()} answers 429 (too many requests): try again in a few minutes, logged in if you are not"
    if status >= 500:
        return f"{endpoint()} answers {status}: try again later"
    return f"{endpoint()} answers {status} ({error.server_message or 'no reason given'}): look at {at}"
