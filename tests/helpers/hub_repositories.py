"""What a Hub keeps: repositories of datasets and models with commits, and who may read and write them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

Content = bytes | Path
LFS_ENDINGS = (".tar", ".parquet", ".safetensors", ".bin", ".npz", ".pt", ".onnx", ".zip")  # as in .gitattributes


@dataclass
class Repository:
    """One dataset or model. Each commit holds all files of its revision."""

    kind: str  # "datasets" or "models"
    name: str  # OWNER/NAME
    gated: bool = False  # everybody sees the file list; files are for those with access
    private: bool = False  # nobody sees anything without access
    readers: set[str] = field(default_factory=set)  # users with access
    commits: dict[str, dict[str, Content]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)  # branch or tag -> commit
    messages: dict[str, str] = field(default_factory=dict)  # commit -> summary

    @property
    def head(self) -> str:
        return self.branches["main"]

    def commit(self, files: Mapping[str, Content], message: str = "", branch: str = "main") -> str:
        """Make ``files`` all of the branch's files; the new commit's id."""
        parts = [f"{path} {blob_id(content)}" for path, content in sorted(files.items())]
        text = "\n".join([self.kind, self.name, str(len(self.commits)), message, *parts])
        commit = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits[commit] = dict(files)
        self.messages[commit] = message
        self.branches[branch] = commit
        return commit

    def revision(self, name: str) -> str | None:
        """The commit of a branch, a tag or a commit id; None if there is no such revision."""
        return self.branches.get(name, name if name in self.commits else None)


def is_lfs(path: str) -> bool:
    """Whether a file is kept in the large file storage, to which the Hub redirects."""
    return path.endswith(LFS_ENDINGS)


def read(content: Content) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


@cache
def _of(content: Content) -> tuple[str, str, int]:
    data = read(content)
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return hashlib.sha256(data).hexdigest(), git, len(data)


def sha256(content: Content) -> str:
    return _of(content)[0]


def blob_id(content: Content) -> str:
    """Git's name of a file's content."""
    return _of(content)[1]


def size(content: Content) -> int:
    return _of(content)[2]
