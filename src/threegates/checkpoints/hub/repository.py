"""What the Hub says of a repository: its newest commit, and a commit's files with their sizes and sha256."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import partial
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants, get_session
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, fix_hf_endpoint_in_url, hf_raise_for_status

from threegates.checkpoints.hub.transfer import REVISION, RemoteFile, ask
from threegates.checkpoints.paths import stays_inside
from threegates.environment import keep, variable
from threegates.errors import CheckpointError

# Seconds without an answer to a question about a repository.
TIMEOUT = 30.0
COMMIT = re.compile(r"[0-9a-f]{40}")
#: Commits of repositories' revisions, as JSON, that stand for this process and its children.
PINNED = "THREEGATES_PINNED"
# Longer values are no variable of an environment any more.
_LONGEST_PINNED = 100_000
# Names of branches and tags that an error lists.
_LISTED = 8


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

    def below(self, subfolder: str = "") -> dict[str, RemoteFile]:
        """The files of one of its folders by their names in there; all of them without one."""
        prefix = f"{subfolder}/" if subfolder else ""
        return {
            name.removeprefix(prefix): file for name, file in self.files.items() if name.startswith(prefix)
        }

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
    CheckpointError : there is no such repository; no such revision, with the names that are nearest; or the
        Hub cannot be asked.
    """
    if known := known_commit(repo, revision):
        return known
    where = f"{repo} at {revision or 'its newest commit'}"
    api = HfApi(endpoint=endpoint)
    try:
        info = ask(where, repo, lambda: api.model_info(repo, revision=revision, timeout=TIMEOUT))
    except CheckpointError as error:
        raise unknown_revision(repo, revision, endpoint) if error.remedy == REVISION else error from None
    return str(info.sha)


def known_commit(repo: str, revision: str | None = None) -> str | None:
    """The commit of a revision that needs no question: 40 digits, or one that was pinned."""
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    return pinned().get(_at(repo, revision))


def pin(commits: Mapping[tuple[str, str | None], str]) -> None:
    """Let revisions of repositories stand for these commits, here and in processes that are started later.

    What a command asks the Hub for once stays what it is, though a branch moves meanwhile.
    """
    found = {_at(*place): commit for place, commit in commits.items() if place[1] != commit}
    told = json.dumps({**pinned(), **found})
    if len(told) <= _LONGEST_PINNED:
        keep({PINNED: told})


def unpin(places: Iterable[tuple[str, str | None]]) -> None:
    """Let the Hub be asked again for revisions that were pinned before."""
    names = {_at(*place) for place in places}
    if names & pinned().keys():
        keep({PINNED: json.dumps({name: one for name, one in pinned().items() if name not in names})})


def pinned() -> dict[str, str]:
    """Commits that were pinned, by ORG/REPO or ORG/REPO@REVISION."""
    return json.loads(variable(PINNED) or "{}")


def _at(repo: str, revision: str | None) -> str:
    return f"{repo}@{revision}" if revision else repo


def refs_of(repo: str, endpoint: str | None = None) -> dict[str, str]:
    """Commits of a repository's branches and tags by name.

    A name that a branch and a tag have at two commits is left out: what it stands for is the Hub's to say.

    Raises
    ------
    CheckpointError : there is no such repository, or the Hub cannot be asked.
    """
    url = f"{endpoint or constants.ENDPOINT}/api/models/{repo}/refs"
    told = ask(f"branches and tags of {repo}", repo, partial(_json, url))
    found = [(one["name"], one["targetCommit"]) for kind in ("branches", "tags") for one in told[kind]]
    commits: dict[str, set[str]] = {}
    for name, commit in found:
        commits.setdefault(name, set()).add(commit)
    return {name: each.pop() for name, each in commits.items() if len(each) == 1}


def unknown_revision(repo: str, revision: str | None, endpoint: str | None = None) -> CheckpointError:
    """The error of a repository without that branch, tag or commit: it lists those there are."""
    try:
        names = list(refs_of(repo, endpoint))
    except (CheckpointError, KeyError, TypeError):
        names = []
    short = re.fullmatch(r"[0-9a-f]{6,39}", revision or "")
    return CheckpointError(
        f"{repo} has no branch, tag or commit '{revision}': the Hub has no such commit",
        where=f"{repo}@{revision}",
        expected=nearest_names(str(revision), names) or "a branch, a tag, or the 40 digits of a commit",
        found=revision,
        remedy="give all 40 digits of a commit" if short else "take one of these, or ORG/REPO alone for main",
    )


def nearest_names(wanted: str, names: Sequence[str]) -> str:
    """The names that are nearest to one, by letters and then by numbers, and how many more there are."""
    own = [int(number) for number in re.findall(r"\d+", wanted)]

    def far(name: str) -> tuple:
        numbers = [int(number) for number in re.findall(r"\d+", name)]
        like = SequenceMatcher(None, re.sub(r"\d+", "", wanted), re.sub(r"\d+", "", name)).ratio()
        return -like, len(numbers) != len(own), [abs(a - b) for a, b in zip(own, numbers, strict=False)], name

    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(sorted(names, key=far)[:_LISTED]) + more


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
    answer = _got(url)
    return answer.json(), answer.links.get("next", {}).get("url", "")


def _json(url: str) -> Any:
    return _got(url).json()


def _got(url: str) -> httpx2.Response:
    headers = build_hf_headers(library_name="threegates")
    answer = get_session().get(url, headers=headers, timeout=TIMEOUT)
    hf_raise_for_status(answer)
    return answer


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
