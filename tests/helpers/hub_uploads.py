"""Writing to the tests' Hub: new repositories, the LFS batch, and commits."""

import base64
import json
from collections.abc import Callable
from typing import Any

from tests.helpers.hub_http import Handler
from tests.helpers.hub_repositories import Repository, blob_id, is_lfs, sha256


def create(handler: Handler, repositories: dict[tuple[str, str], Repository], user: str, endpoint: str) -> None:
    """``/api/repos/create``."""
    asked = json.loads(handler.body)
    kind = f"{asked.get('type') or 'model'}s"
    name = f"{asked.get('organization') or user}/{asked['name']}"
    url = f"{endpoint}/{'datasets/' if kind == 'datasets' else ''}{name}"
    if (kind, name) in repositories:
        handler.json({"error": "You already created this repo", "url": url}, status=409)
        return
    made = repositories[kind, name] = Repository(kind, name, private=asked.get("visibility") == "private")
    made.commit({".gitattributes": b""})
    handler.json({"url": url, "name": name})


def preupload(handler: Handler, repository: Repository, commit: str) -> None:
    """``preupload``: which files go to the large file storage, and which are there already."""
    answers, files = [], repository.commits[commit]
    for asked in json.loads(handler.body)["files"]:
        path = asked["path"]
        there = (sha256 if is_lfs(path) else blob_id)(files[path]) if path in files else None
        mode = "lfs" if is_lfs(path) else "regular"
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": there})
    handler.json({"files": answers})


def batch(handler: Handler, storage: dict[str, bytes], signed: Callable[[str], str]) -> None:
    """The LFS batch: where to put what the storage doesn't have."""
    objects: list[dict[str, Any]] = []
    for item in json.loads(handler.body)["objects"]:
        answer = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in storage:
            answer["actions"] = {"upload": {"href": signed(item["oid"])}}
        objects.append(answer)
    handler.json({"transfer": "basic", "objects": objects})


def commit(handler: Handler, repository: Repository, branch: str, storage: dict[str, bytes], endpoint: str) -> None:
    """``commit``: lines of JSON, a header and one operation each."""
    files, message = dict(repository.commits[repository.branches[branch]]), ""
    for line in handler.body.splitlines():
        item = json.loads(line)
        value = item["value"]
        match item["key"]:
            case "header":
                message = value["summary"]
            case "file":
                files[value["path"]] = base64.b64decode(value["content"])
            case "lfsFile":
                files[value["path"]] = storage[value["oid"]]
            case "deletedFile":
                del files[value["path"]]
            case other:
                raise AssertionError(f"the tests' Hub doesn't know the operation {other}")
    with handler.traffic.lock:
        made = repository.commit(files, message, branch)
    url = f"{endpoint}/{repository.name}/commit/{made}"
    handler.json({"success": True, "commitOid": made, "commitUrl": url, "hookOutput": ""})
