"""What the Hub says of a repository: its newest commit, and a commit's files with their sizes and sha256."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial

from huggingface_hub import HfApi, constants, get_session
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, fix_hf_endpoint_in_url, hf_raise_for_status

from threegates.checkpoints.hub.transfer import RemoteFile, ask
from threegates.checkpoints.paths import stays_inside
from threegates.errors import CheckpointError

# Seconds without an answer to a question about a repository.
TIMEOUT = 30.0
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
    info = ask(
        where, repo, lambda: HfApi(endpoint=endpoint).model_info(repo, revision=revision, timeout=TIMEOUT)
    )
    return str(info.sha)


def listed(repo: str, commit: str, endpoint: str | None = None) -> Repository:
    """The files of a commit, as the Hub lists them.

    Raises
    ------
    CheckpointError : there is no such repository or commit, or the Hub cannot be asked.
    """

    where, entries = f"{repo}@{commit}", []
    url = f"{endpoint or constants.ENDPOINT}/api/models/{repo}/tree/{commit}?recursive=true"
    while url:
        page, url = ask(where, repo, partial(_page, url))
        entries += [RepoFile(**entry) for entry in page if entry["type"] == "file"]
        url = fix_hf_endpoint_in_url(url, endpoint)
    return Repository(repo, commit, {e.path: _remote(repo, commit, e, endpoint) for e in entries})


def _page(url: str) -> tuple[list[dict], str]:
    """A page of a listing and where the next one is; the client's own listing waits without an end."""
    headers = build_hf_headers(library_name="threegates")
    answer = get_session().get(url, headers=headers, timeout=TIMEOUT)
    hf_raise_for_status(answer)
    return answer.json(), answer.links.get("next", {}).get("url", "")


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
