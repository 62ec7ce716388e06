"""A server of this machine that speaks the Hugging Face Hub's endpoints, and fails when it is told to.

Follows what huggingface_hub 2.4.0 sends and expects: info (``/api/{datasets,models}/OWNER/NAME[/revision/REV]``),
``tree`` with pages, ``paths-info``, ``resolve`` with HEAD, ranges and redirects to signed URLs of a second server,
``whoami-v2``, and what an upload needs (``repos/create``, ``validate-yaml``, ``preupload``, the LFS batch, ``commit``).
Xet is offered, as by the Hub, but isn't spoken: HF_HUB_DISABLE_XET is in ``environment``.
"""

import hashlib
import hmac
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import pytest
from huggingface_hub import constants

from tests.helpers import hub_uploads
from tests.helpers.hub_http import Handler, Listener, Traffic, handler_of
from tests.helpers.hub_repositories import Content, Repository, blob_id, is_lfs, read, sha256, size

_API = re.compile(r"/api/(?P<kind>datasets|models)/(?P<name>[^/]+/[^/]+)(?:/(?P<what>[a-z-]+)/(?P<rest>.+))?")
_RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_BATCH = re.compile(r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
_WHEN = "2026-01-02T03:04:05.000Z"


class HubServer(Traffic):
    """Use as a context manager; ``requests`` has what came in.

    ``faults[part]`` is an iterator of what befalls the next requests of "api", "resolve" or "storage":

    "" nothing, "503", "429" (with RateLimit headers, as the Hub sends them), "429-retry-after", "cut" (half of the
    bytes), "stall" (half, then silence of ``stall`` seconds), "slow" (waits ``delay`` seconds first), "expired" (of
    storage: 403, as if the signature had expired), "wrong" (the right number of wrong bytes).
    """

    def __init__(self) -> None:
        super().__init__()
        self.users: dict[str, str] = {}  # token -> user
        self.writers: set[str] = set()  # users that may create and change any repository
        self.signature_seconds = 3600.0  # for which a signed URL is good
        self.page = 1000  # entries per page of a tree
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.storage: dict[str, bytes] = {}  # sha256 -> bytes
        self._key = os.urandom(16)
        self._hub = Listener(("127.0.0.1", 0), handler_of(self, "hub", self._answer_hub))
        self._storage = Listener(
            ("127.0.0.2", 0), handler_of(self, "storage", self._answer_storage)
        )  # another host: a CDN's
        self.endpoint = f"http://127.0.0.1:{self._hub.server_address[1]}"
        self.storage_url = f"http://127.0.0.2:{self._storage.server_address[1]}"

    def __enter__(self) -> "HubServer":
        self._threads = [
            threading.Thread(target=listener.serve_forever, args=(0.02,)) for listener in (self._hub, self._storage)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for listener in (self._hub, self._storage):
            listener.shutdown()
            listener.server_close()
        for thread in self._threads:
            thread.join()

    def add(
        self, kind: str, name: str, files: Mapping[str, Content] | Path, *, gated: bool = False, private: bool = False
    ) -> str:
        """A commit of a repository, made if need be, with these files or those of a folder; the commit's id."""
        if isinstance(files, Path):
            files = {
                path.relative_to(files).as_posix(): path
                for path in sorted(files.rglob("*"))
                if path.is_file() and not path.name.startswith(".")
            }
        repository = self.repositories.setdefault((kind, name), Repository(kind, name))
        repository.gated, repository.private = gated, private
        return repository.commit(files)

    def fail(self, part: str, faults: Iterable[str]) -> None:
        self.faults[part] = iter(faults)

    def environment(self, home: Path, token: str = "") -> dict[str, str]:
        """Variables that lead a process's huggingface_hub here, and keep it from the user's own login and cache."""
        variables = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        variables |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1,127.0.0.2", "HF_TOKEN": token}
        return variables

    def lead(self, monkeypatch: pytest.MonkeyPatch, home: Path, token: str = "") -> None:
        """Lead this process's huggingface_hub here, as ``environment`` does others; its files go to ``home``."""
        for name, value in self.environment(home, token).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("VIT_CACHE", str(home / "cache"))
        monkeypatch.setattr(tempfile, "tempdir", str(home))
        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # which asks the server once per process
        template = self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    def count(self, part: str, contains: str = "", method: str = "GET") -> int:
        """Requests of a part whose path contains a text."""
        return sum(
            request.part == part and contains in request.path and request.method == method for request in self.requests
        )

    def _answer_hub(self, handler: Handler) -> None:
        path = unquote(urlsplit(handler.path).path)
        resolve = _RESOLVE.fullmatch(path)
        fault = handler.begin("resolve" if resolve else "api")
        if handler.refuse(fault):
            return
        if handler.token and handler.token not in self.users:
            handler.error(401, "", "Invalid credentials in Authorization header")
        elif resolve:
            self._resolve(handler, fault, resolve)
        elif path == "/api/whoami-v2":
            handler.json({"type": "user", "name": self.users[handler.token], "orgs": [], "auth": {}})
        elif path == "/api/validate-yaml":
            handler.json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            if self._may_write(handler):
                hub_uploads.create(handler, self.repositories, self.users[handler.token], self.endpoint)
        elif batch := _BATCH.fullmatch(path):
            kind = "datasets" if batch["kind"] else "models"
            if self._may_write(handler) and self._repository(handler, kind, batch["name"]):
                hub_uploads.batch(handler, self.storage, self.signed)
        elif api := _API.fullmatch(path):
            self._api(handler, api)
        else:
            handler.error(404, "", f"no such endpoint: {path}")

    def _repository(self, handler: Handler, kind: str, name: str, *, files: bool = False) -> Repository | None:
        """The repository, if the request's user may see it (``files``: may read its files); otherwise answers."""
        repository = self.repositories.get((kind, name))
        user = self.users.get(handler.token, "")
        access = repository is not None and (user in repository.readers or user in self.writers)
        if repository is None or (repository.private and not access):
            handler.error(404 if user else 401, "RepoNotFound", "Repository not found")
            return None
        if files and repository.gated and not access:
            said = "You must be authenticated to access it." if not user else "You are not in the authorized list."
            handler.error(403 if user else 401, "GatedRepo", f"Access to {kind[:-1]} {name} is restricted. {said}")
            return None
        return repository

    def _may_write(self, handler: Handler) -> bool:
        """Whether the request's user may write; otherwise answers."""
        if self.users.get(handler.token) in self.writers:
            return True
        handler.error(403 if handler.token else 401, "", "You don't have the rights to write here")
        return False

    def _commit(self, handler: Handler, repository: Repository, revision: str) -> str | None:
        commit = repository.revision(revision)
        if commit is None:
            handler.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _resolve(self, handler: Handler, fault: str, found: re.Match[str]) -> None:
        kind = "datasets" if found["kind"] else "models"
        repository = self._repository(handler, kind, found["name"], files=True)
        if repository is None:
            return
        commit = self._commit(handler, repository, found["revision"])
        if commit is None:
            return
        if found["path"] not in repository.commits[commit]:
            handler.error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        content = repository.commits[commit][found["path"]]
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not is_lfs(found["path"]):
            handler.content(read(content), headers | {"ETag": f'"{blob_id(content)}"'}, fault)
            return
        with self.lock:
            self.storage.setdefault(sha256(content), read(content))
        headers |= {"X-Linked-Size": str(size(content)), "X-Linked-ETag": f'"{sha256(content)}"'}
        token = f"{self.endpoint}/api/{kind}/{found['name']}/xet-read-token/{commit}"
        headers |= {"X-Xet-Hash": sha256(content), "X-Xet-Refresh-Route": token}
        handler.send(302, b"Found", headers | {"Location": self.signed(sha256(content))})

    def signed(self, digest: str) -> str:
        """A URL of the storage that expires."""
        expires = f"{time.time() + self.signature_seconds:.3f}"
        return (
            f"{self.storage_url}/{digest}?{urlencode({'Expires': expires, 'Signature': self._sign(digest, expires)})}"
        )

    def _sign(self, digest: str, expires: str) -> str:
        return hmac.new(self._key, f"{digest} {expires}".encode(), "sha256").hexdigest()

    def _answer_storage(self, handler: Handler) -> None:
        fault = handler.begin("storage")
        url = urlsplit(handler.path)
        digest, given = url.path[1:], {key: values[0] for key, values in parse_qs(url.query).items()}
        good = hmac.compare_digest(self._sign(digest, given.get("Expires", "")), given.get("Signature", ""))
        if fault == "expired" or not good or float(given["Expires"]) < time.time():
            handler.send(403, b"<Error><Code>AccessDenied</Code></Error>", {"Content-Type": "application/xml"})
        elif handler.refuse(fault):
            return
        elif handler.command == "PUT":
            body = handler.body
            if hashlib.sha256(body).hexdigest() != digest:
                handler.send(400, b"<Error><Code>BadDigest</Code></Error>", {})
                return
            with self.lock:
                self.storage[digest] = body
            handler.send(200, b"", {"ETag": f'"{digest}"'})
        elif digest in self.storage:
            handler.content(self.storage[digest], {"Accept-Ranges": "bytes", "ETag": f'"{digest}"'}, fault)
        else:
            handler.send(404, b"<Error><Code>NoSuchKey</Code></Error>", {})

    def _api(self, handler: Handler, found: re.Match[str]) -> None:
        repository = self._repository(handler, found["kind"], found["name"])
        if repository is None:
            return
        what, rest = found["what"] or "revision", found["rest"] or "main"
        if what in ("preupload", "commit") and not self._may_write(handler):
            return
        revision, _, folder = rest.partition("/")
        commit = self._commit(handler, repository, revision)
        if commit is None:
            return
        files = repository.commits[commit]
        if what == "revision":
            handler.json(_info(repository, commit))
        elif what == "paths-info":
            wanted = parse_qs(handler.body.decode()).get("paths", [])
            handler.json([_entry(path, files) for path in wanted if _is_there(path, files)])
        elif what == "tree":
            self._tree(handler, files, folder)
        elif what == "preupload":
            hub_uploads.preupload(handler, repository, commit)
        elif what == "commit":
            hub_uploads.commit(handler, repository, revision, self.storage, self.endpoint)
        else:
            handler.error(404, "", f"no such endpoint: {handler.path}")

    def _tree(self, handler: Handler, files: Mapping[str, Content], folder: str) -> None:
        query = {key: values[0] for key, values in parse_qs(urlsplit(handler.path).query).items()}
        start = f"{folder}/" if folder else ""
        inside = sorted(path for path in files if path.startswith(start))
        if folder and not inside:
            handler.error(404, "EntryNotFound", f"{folder} does not exist")
            return
        recursive = query.get("recursive", "").lower() == "true"
        paths: dict[str, None] = {}
        for path in inside:
            parts = path.removeprefix(start).split("/")
            paths |= {start + "/".join(parts[:depth]): None for depth in range(1, len(parts) + 1 if recursive else 2)}
        at = int(query.get("cursor", 0))
        page = [_entry(path, files) for path in list(paths)[at : at + self.page]]
        headers = {}
        if at + self.page < len(paths):
            following = urlencode(query | {"cursor": at + self.page})
            headers["Link"] = f'<{self.endpoint}{urlsplit(handler.path).path}?{following}>; rel="next"'
        handler.json(page, headers)


def _is_there(path: str, files: Mapping[str, Content]) -> bool:
    return path in files or any(name.startswith(f"{path}/") for name in files)


def _entry(path: str, files: Mapping[str, Content]) -> dict[str, Any]:
    """A file or folder, as ``tree`` and ``paths-info`` describe it."""
    if path not in files:
        oid = hashlib.sha1(path.encode(), usedforsecurity=False).hexdigest()
        return {"type": "directory", "oid": oid, "size": 0, "path": path}
    content = files[path]
    entry = {"type": "file", "oid": blob_id(content), "size": size(content), "path": path}
    if is_lfs(path):
        entry["lfs"] = {"oid": sha256(content), "size": size(content), "pointerSize": 130}
    return entry


def _info(repository: Repository, commit: str) -> dict[str, Any]:
    return {
        "id": repository.name,
        "author": repository.name.partition("/")[0],
        "sha": commit,
        "createdAt": _WHEN,
        "lastModified": _WHEN,
        "private": repository.private,
        "gated": "manual" if repository.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [{"rfilename": path} for path in sorted(repository.commits[commit])],
    }
