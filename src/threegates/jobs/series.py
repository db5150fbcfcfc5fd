"""Checkpoints of a series, each found and tied to a commit before any of them is opened or downloaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from glob import escape, glob
from pathlib import Path

from huggingface_hub import is_offline_mode

from threegates.checkpoints.hub.addresses import Address, parse_address
from threegates.checkpoints.hub.repository import (
    commit_of,
    known_commit,
    listed,
    nearest_names,
    pin,
    pinned,
    refs_of,
    unpin,
)
from threegates.checkpoints.hub.subfolders import with_weights
from threegates.checkpoints.series import Member, is_series, members, natural, patterns
from threegates.errors import CheckpointError

#: Names that an error lists.
_LISTED = 10
#: Commits that a command prints.
_SHOWN = 20


def is_folder(name: str) -> bool:
    """Whether a folder of this machine has that name, which may be too long to be one."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


def local_members(text: str) -> list[Member]:
    """Members of a series of folders; none where no folder of this machine is meant by it.

    Raises
    ------
    CheckpointError : braces are wrong, or some of the folders are there and others are not.
    """
    if not is_series(text) or is_folder(text):
        return []
    if "*" in text and not any(map(_folders, patterns(text))):
        return []
    found = members(text, _folders)
    missing = [one.text for one in found if not is_folder(one.text)]
    if len(missing) == len(found):
        return []
    _refuse_missing(text, missing, [one.text for one in found if one.text not in missing], len(found))
    return found


def remote_members(text: str) -> list[Member]:
    """Members of a series of entries, repositories, their revisions or their folders.

    Raises
    ------
    CheckpointError : braces are wrong, nothing fits a star, or a star stands for a repository's name.
    """
    return members(text, _on_the_hub)


def settled(texts: Sequence[str], keep: bool = False) -> dict[str, Address]:
    """Where each checkpoint of the Hub is, at a commit; what is no address, such as an entry, is left out.

    Branches and tags of one repository take one request together. Without network each stays as it is.

    keep : whether these commits stand for this process and all that it starts, until it asks so again.

    Raises
    ------
    CheckpointError : a branch, tag or sub-folder is not there, by name, with those that are.
    """
    addresses = {text: parse_address(text) for text in texts if "/" in text}
    if is_offline_mode():
        return addresses
    if keep:
        unpin((one.repo, one.revision) for one in addresses.values())
    commits = _commits(addresses.values())
    if keep:
        pin(commits)
    found = {text: one.at(commits[one.repo, one.revision]) for text, one in addresses.items()}
    _check_subfolders(found)
    return found


def told_pinned() -> list[str]:
    """A line for each repository's revision that is tied to a commit, in their order; of many the first."""
    lines = [f"commit:  {name} is {commit}" for name, commit in pinned().items()]
    more = len(lines) - _SHOWN
    return [*lines[:_SHOWN], *([f"commit:  and {more} more, which the records state"] if more > 0 else [])]


def _commits(addresses: Iterable[Address]) -> dict[tuple[str, str | None], str]:
    """The commit of each revision of each repository."""
    asked: dict[str, dict[str | None, str | None]] = {}
    for one in addresses:
        asked.setdefault(one.repo, {})[one.revision] = known_commit(one.repo, one.revision)
    found: dict[tuple[str, str | None], str] = {}
    for repo, revisions in asked.items():
        open_ones = [revision for revision, commit in revisions.items() if commit is None]
        refs = refs_of(repo) if len(open_ones) > 1 else {}
        missing = [one for one in open_ones if one and refs and one not in refs and "/pr/" not in one]
        _refuse_missing(repo, missing, sorted(refs, key=natural), len(revisions))
        for revision, commit in revisions.items():
            found[repo, revision] = commit or refs.get(str(revision)) or commit_of(repo, revision)
    return found


def _check_subfolders(found: Mapping[str, Address]) -> None:
    inside = {text: one for text, one in found.items() if one.subfolder}
    if len(inside) < 2:
        # Of a single one opening says the same.
        return
    held = cache(lambda repo, commit: with_weights(listed(repo, commit).files))
    missing = [text for text, one in inside.items() if one.subfolder not in held(one.repo, one.revision)]
    first = next(iter(inside.values()))
    there = sorted(held(first.repo, first.revision), key=natural)
    _refuse_missing(first.repo, missing, there, len(inside))


def _refuse_missing(where: str, missing: Sequence[str], there: Sequence[str], count: int) -> None:
    if missing:
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise CheckpointError(
            f"{len(missing)} of the series' {count} checkpoints {'is' if len(missing) == 1 else 'are'} not "
            "there, and nothing was fetched",
            where=where,
            expected=f"all of them; there are {nearest_names(missing[0], there) or 'none'}",
            found=f"not there: {', '.join(missing[:_LISTED])}{more}",
            remedy="leave these out, by another range or by naming each: {5,10,20}",
        )


def _folders(pattern: str) -> list[str]:
    return [found for found in glob("*".join(map(escape, pattern.split("*")))) if is_folder(found)]


def _on_the_hub(pattern: str) -> list[str]:
    """Names of branches, tags or folders of a repository that a star may stand for."""
    repo, at, rest = pattern.partition("@")
    revision, colon, subfolder = rest.partition(":") if at else ("", "", "")
    if not at:
        repo, colon, subfolder = pattern.partition(":")
    if "*" in repo or ("*" in revision and "*" in subfolder):
        raise CheckpointError(
            "a star stands for folders of this machine, or for branches, tags or folders of a repository",
            where=pattern,
            expected="RUN/checkpoint-*, ORG/REPO@step_*, or ORG/REPO:checkpoint-*",
            found="no folder that fits",
            remedy="correct the name, or write its repositories out: ORG/{A,B}",
        )
    address = parse_address(repo + (f"@{revision}" if at and "*" not in revision else ""))
    if "*" in revision:
        return [f"{repo}@{name}{colon}{subfolder}" for name in refs_of(address.repo)]
    commit = commit_of(address.repo, address.revision)
    return [
        f"{repo}{at}{revision}:{name}" for name in with_weights(listed(address.repo, commit).files) if name
    ]
