"""How a checkpoint of the Hub is written: ``ORG/REPO@REVISION:SUBFOLDER``, or less of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from threegates.checkpoints.paths import stays_inside
from threegates.errors import CheckpointError

#: What `parse_address` takes, in an error's or an option's words.
WRITTEN = "ORG/REPO, ORG/REPO@REVISION (branch, tag or commit), ORG/REPO@REVISION:SUBFOLDER"
# Git allows no colon in the name of a branch, so that the first one begins the sub-folder.
_ADDRESS = re.compile(
    r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[^:\s]+))?(?::(?P<subfolder>[^:]+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# What git refuses in the name of a branch or tag; braces and stars stand for several names here.
_NO_REF = re.compile(r"[~^?*\[\]{}\\]|\.\.|@\{|//|^[/.-]|[/.]$|\.lock$")


@dataclass(frozen=True)
class Address:
    """A repository of the Hub, which revision of it, and which folder in it; without them the newest, whole.

    revision : a branch, a tag, or the 40 digits of a commit. subfolder : without a slash at its ends. named :
    of a commit, the branch or tag that it was found by.
    """

    repo: str
    revision: str | None = None
    subfolder: str = ""
    named: str = field(default="", compare=False)

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}{f':{self.subfolder}' * bool(self.subfolder)}"

    @property
    def told(self) -> str:
        """The same for a sentence, which says so where the newest commit is meant."""
        inside = f", {self.subfolder}" if self.subfolder else ""
        return f"{self.repo} at {self.revision or 'its newest commit'}{inside}"

    def at(self, commit: str) -> Address:
        """The same folder of the same repository at a commit, which keeps the name that it was found by."""
        is_commit = bool(_COMMIT.fullmatch(self.revision or ""))
        return replace(self, revision=commit, named=self.named if is_commit else self.revision or "main")


def is_ref(text: str) -> bool:
    """Whether a branch, a tag or a commit may have that name; a file of the client's cache has it too."""
    return bool(re.fullmatch(r"[^:\s]+", text)) and not _NO_REF.search(text)


def parse_address(text: str) -> Address:
    """What a user typed for a checkpoint of the Hub.

    Raises
    ------
    CheckpointError : it is not written as one.
    """
    found = _ADDRESS.fullmatch(text)
    revision, subfolder = (found["revision"], (found["subfolder"] or "").strip("/")) if found else (None, "")
    if found is None or (revision and not is_ref(revision)) or (subfolder and not stays_inside(subfolder)):
        raise CheckpointError(
            f"'{text}' is neither a folder nor a Hub repository",
            where=Path(text).absolute(),
            expected=f"an existing folder, or {WRITTEN}",
            found="no such folder",
            remedy="correct the path",
        )
    return Address(found["repo"], revision, subfolder)
