"""Committing a release as soon as it is made: that folder and nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from threegates.errors import RecordError
from threegates.releases.packing import Release


def check_committable(folder: Path) -> None:
    """Refuse, before anything is measured, where a commit of that folder alone could not be made.

    Raises
    ------
    RecordError : it lies outside git, or other changes are staged.
    """
    root = next(parent for parent in [folder, *folder.parents] if parent.is_dir())
    if _git(root, "rev-parse", "--is-inside-work-tree").stdout.strip() != "true":
        raise RecordError(
            "a release cannot be committed outside git",
            where=folder,
            expected="a folder in a clone of the project",
            remedy="leave --commit out, or work in a clone",
        )
    staged = _git(root, "diff", "--cached", "--name-only").stdout.split()
    if staged:
        raise RecordError(
            "a release is committed alone, and other changes are staged",
            where=folder,
            expected="nothing staged",
            found=", ".join(staged[:5]) + (f" and {len(staged) - 5} more" if len(staged) > 5 else ""),
            remedy="commit them, or unstage them: `git restore --staged .`",
        )


def commit(release: Release) -> str:
    """Commit a release's folder with a message about its last part; gives the commit.

    Raises
    ------
    RecordError : git refuses; the release stays in the folder.
    """
    for arguments in (
        ("add", "--all", "--", str(release.folder)),
        ("commit", "--quiet", "--message", message(release.profile, release.parts[-1])),
    ):
        done = _git(release.folder, *arguments)
        if done.returncode:
            raise RecordError(
                "git did not commit the release, which is made and lies in its folder",
                where=release.folder,
                found=(done.stderr or done.stdout).strip(),
                remedy="do what git says, then commit the folder by hand",
            )
    return _git(release.folder, "rev-parse", "HEAD").stdout.strip()


def message(profile: str, part: Mapping[str, Any]) -> str:
    """Message of a commit: which part, what is in it, and from which state of the code it was made."""
    counts, made = part["counts"], part["made"]
    state = {True: "with uncommitted changes", False: "without uncommitted changes"}.get(
        made.get("dirty"), "in an unknown state"
    )
    told = [f"{key}: {', '.join(map(str, part[key]))}" for key in ("bases", "subjects", "chapters", "seeds")]
    return "\n".join(
        [
            f"Released records of {profile}: part {part['name']}",
            "",
            f"{counts['runs']} runs with {counts['checkpoints']} checkpoints, {counts['records']} records, "
            f"{counts['updates']} kept updates.",
            *told,
            f"Made at {made.get('time')} from {made.get('commit') or 'no commit'}, {state}.",
        ]
    )


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
