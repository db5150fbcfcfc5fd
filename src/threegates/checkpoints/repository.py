"""What the Hub says of a repository: its newest commit, and a commit's files with their sizes and sha256."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

from threegates.checkpoints.paths import stays_inside
from threegates.checkpoints.transfer import RemoteFile, ask
from threegates.errors import CheckpointError

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Repository:
    """The files of a repository at a commit, by name."""

    repo: str
    revision: str
    files: dict[str, RemoteFile]

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"

    def text(self) -> str:
        """As JSON, without the endpoint, which is not a repository's own."""
        files = {name: {"size": file.size, "blob": file.blob} for name, file in sorted(self.files.items())}
        return json.dumps({"repo": self.repo, "revision": self.revision, "files": files})

    @classmethod
    def parse(cls, text: str | bytes, endpoint: str | None = None) -> Repository:
        """The repository that `text` wrote."""
        told = json.loads(text)
        repo, revision = told["repo"], told["revision"]
        files = {
            name: RemoteFile(repo, revision, name, endpoint=endpoint, **one)
            for name, one in told["files"].items()
        }
        return cls(repo, revision, files)


def commit_of(repo: str, revision: str | None = None, endpoint: str | None = None) -> str:
    """The 40 digits of a commit: of a branch or tag, or of the newest one; no request if they are given.

    Raises
    ------
    CheckpointError : there is no such repository or revision, or the Hub cannot be asked.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    where = f"{repo} at {revision or 'its newest commit'}"
    info = ask(where, repo, lambda: HfApi(endpoint=endpoint).model_info(repo, revision=revision, timeout=30))
    return str(info.sha)


def listed(repo: str, commit: str, endpoint: str | None = None) -> Repository:
    """The files of a commit, as the Hub lists them.

    Raises
    ------
    CheckpointError : there is no such repository or commit, or the Hub cannot be asked.
    """

    def question() -> list[RepoFile]:
        tree = HfApi(endpoint=endpoint).list_repo_tree(repo, recursive=True, revision=commit)
        return [entry for entry in tree if isinstance(entry, RepoFile)]

    entries = ask(f"{repo}@{commit}", repo, question)
    return Repository(repo, commit, {e.path: _remote(repo, commit, e, endpoint) for e in entries})


def _remote(repo: str, commit: str, entry: RepoFile, endpoint: str | None) -> RemoteFile:
    size, blob = (entry.lfs.size, entry.lfs.sha256) if entry.lfs else (entry.size, entry.blob_id)
    whole = isinstance(size, int) and size >= 0 and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", str(blob))
    if not whole or not stays_inside(entry.path):
        raise CheckpointError(
            "the Hub lists a file that cannot be one",
            where=f"{repo}@{commit}, {entry.path!r}",
            expected="a name inside the repository, a size, and a sha256 or git's sha1",
            found=f"{size!r} bytes, {blob!r}",
            remedy="do not use this repository",
        )
    return RemoteFile(repo, commit, entry.path, size, str(blob), endpoint)
