"""Asking a tree of this package, by its own code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

# More lines of what went wrong would hide the last ones, which say what it was.
_LINES = 5


def in_tree(tree: Path, code: str, given: object) -> str:
    """What code prints in a process of its own that imports the package from a tree.

    given : what the code finds on its standard input, as JSON.

    Raises
    ------
    RuntimeError : the code fails; with the last lines of what it says.
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        cwd=tree,
        env={"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "THREEGATES_ROOT": str(tree)},
    )
    if done.returncode:
        raise RuntimeError("\n".join(done.stderr.splitlines()[-_LINES:]))
    return done.stdout
