"""What a process was asked for: by its environment's variables, and by options of the command it runs.

Nothing of ours writes into `os.environ`: threads would read each other's values there, and whoever called
would find them changed. What a command was given is kept here, once, before anything is opened or started,
and a child process gets it in an environment that is handed to it (`for_child`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

_kept: Mapping[str, str] = {}


def variable(name: str) -> str:
    """What was kept under a variable's name, else its value in the environment, else nothing."""
    return _kept.get(name, os.environ.get(name, ""))


def keep(values: Mapping[str, str]) -> None:
    """Let values stand before the environment's, for this process and the children that it starts.

    For the edge alone: a command calls it once, before anything is opened. What one build or one page of
    several in a process has for itself is passed on in arguments.
    """
    global _kept
    _kept = {**_kept, **values}


def forget() -> None:
    """Let the environment alone count again."""
    global _kept
    _kept = {}


def for_child(values: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child process: this process's, what was kept, and values for the child alone."""
    return {**os.environ, **_kept, **(values or {})}
