"""Which file names, written in a file by someone else, stay inside the folder that file is in."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath


def stays_inside(name: str) -> bool:
    """Whether a relative name cannot lead out of the folder it is joined to.

    Only the name is judged. A symbolic link that lies inside is followed, because the Hub's cache is made of
    links to blobs beside the snapshot; whoever placed the link had write access to the folder anyway.
    """
    if not name or "\\" in name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not (path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts or not path.parts)
