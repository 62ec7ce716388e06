"""Uploading an export to the Hugging Face Hub: one commit of exactly the folder's files.

The login, the right to write and the repository's contents are checked before the model is exported.
"""

import logging
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core import hub
from pipeline.core.errors import UserError
from pipeline.core.units import size as in_words

logger = logging.getLogger(__name__)

FORMS = ("timm", "huggingface")  # formats that others can load by name from the Hub
_REPOSITORY = re.compile(r"(?P<owner>\w[\w.-]{0,95})/\w[\w.-]{0,95}")
_HUBS = {".gitattributes"}  # what the Hub itself puts into a new repository
WRITTEN = ("README.md", "config.json", "model.json", "model.safetensors", "preprocessor_config.json")


@dataclass(frozen=True)
class Target:
    """A repository to upload to."""

    repository: str  # OWNER/NAME
    new: bool
    private: bool


def check(repository: str, form: str, *, private: bool) -> Target:
    """Ask the Hub whether a model may be uploaded to ``repository``. Raises UserError; changes nothing."""
    what = f"--push {repository!r}"
    found = _REPOSITORY.fullmatch(repository)
    if found is None:
        raise UserError(f"{what} is not a repository name: write OWNER/NAME, such as me/vit-b16-birds")
    if form not in FORMS:
        raise UserError(
            f"--format {form} can't be loaded by its name on the Hub: choose --format {' or '.join(FORMS)} for --push, "
            "or leave out --push"
        )
    client = hub.client()
    with hub.one_line(what, repository):
        check_account(what, found["owner"], _account(client, what))
    try:
        info = hub.ask(lambda: client.model_info(repository), what)
    except Exception as error:
        from huggingface_hub.errors import RepositoryNotFoundError

        if isinstance(error, RepositoryNotFoundError):
            return Target(repository, True, private)
        with hub.one_line(what, repository):
            raise
    check_contents(what, [file.rfilename for file in info.siblings or []], hub.page(repository))
    if private and not info.private:
        raise UserError(
            f"{what} exists and is public, so --private has no effect: make it private at {hub.page(repository)}"
            "/settings, or leave out --private"
        )
    return Target(repository, False, bool(info.private))


def check_account(what: str, owner: str, account: Mapping[str, Any]) -> None:
    """Raises UserError if the account, as whoami answers, may not write to ``owner``'s repositories. Pure."""
    role = ((account.get("auth") or {}).get("accessToken") or {}).get("role")
    tokens = f"{hub.endpoint()}/settings/tokens"
    if role == "read":
        raise UserError(f"{what}: your token may only read: make one with write access at {tokens}")
    owners = [str(account.get("name")), *(str(one.get("name")) for one in account.get("orgs") or [])]
    if owner not in owners:
        raise UserError(
            f"{what}: {owner} is neither you nor an organization of yours: write one of {', '.join(owners)}, or log in "
            "with another token"
        )


def check_contents(what: str, files: Collection[str], page: str) -> None:
    """Raises UserError if a repository holds files that this upload would leave beside its own. Pure."""
    others = sorted(set(files) - _HUBS - set(WRITTEN))
    if others:
        named = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise UserError(
            f"{what} holds other files ({named}): name a new repository, or delete them at {page}/tree/main"
        )


def push(folder: Path, target: Target, message: str) -> str:
    """Upload the folder's files in one commit; return its URL. Raises UserError, after which nothing has changed."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    what = f"--push {target.repository!r}"
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    assert set(files) <= set(WRITTEN), "check_contents would refuse what this writes"
    logger.info(
        "uploading to %s (%s, %s): %s",
        hub.page(target.repository),
        "new" if target.new else "a new commit",
        "private" if target.private else "public",
        ", ".join(f"{name} ({in_words(size)})" for name, size in files.items()),
    )
    if not sys.stderr.isatty():
        disable_progress_bars()  # huggingface_hub's own, which only clutter a log
    client = hub.client()
    with hub.one_line(what, target.repository), hub.plain_http():
        if target.new:
            client.create_repo(target.repository, private=target.private, exist_ok=True)
        try:
            done = client.upload_folder(repo_id=target.repository, folder_path=folder, commit_message=message)
        except RuntimeError as error:  # which wraps the error of a large file
            raise (error.__cause__ or error) from error
    return str(done.commit_url)


def _account(client: Any, what: str) -> Mapping[str, Any]:
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    tokens = f"{hub.endpoint()}/settings/tokens"
    try:
        return hub.ask(client.whoami, what)
    except LocalTokenNotFoundError as error:
        raise UserError(
            f"{what} needs a login: make a token with write access at {tokens}, then run 'hf auth login' or set "
            "HF_TOKEN"
        ) from error
    except HfHubHTTPError as error:
        if error.response.status_code != 401:
            raise
        raise UserError(f"{what}: your token is not valid: make another one at {tokens}") from error
