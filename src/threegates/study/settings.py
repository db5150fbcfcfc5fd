"""How tensors are reached and where they are measured: settings that change no number but device and reads.

They stand in the environment, so that kernels that papermill starts and worker processes have them too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from threegates.errors import ThreeGatesError

#: "download" takes a Hub repository whole; "ranged" reads one tensor at a time and keeps nothing but a cache.
READS = "THREEGATES_READS"
DOWNLOAD, RANGED = "download", "ranged"
#: What looks at headers alone takes a download that is there, and else reads ranges.
HEADERS = "headers"
#: "cpu", "cuda" or "cuda:N"; what is measured on a GPU has digests of its own.
DEVICE = "THREEGATES_DEVICE"
CPU = "cpu"
#: "processes" on this machine, or "dask"; and the address of its scheduler.
BACKEND, SCHEDULER = "THREEGATES_BACKEND", "THREEGATES_SCHEDULER"
#: Most memory of all processes that measure together, such as 4GiB.
MEMORY = "THREEGATES_MEMORY"
#: Licences, or names of entries, that the user accepts, with commas between them.
LICENCES = "THREEGATES_ACCEPT_LICENCE"


def reads() -> str:
    """How weights of the Hub are read.

    Raises
    ------
    ThreeGatesError : the environment names no such way.
    """
    found = os.environ.get(READS) or DOWNLOAD
    if found not in (DOWNLOAD, RANGED):
        raise ThreeGatesError(
            "there is no such way to read a checkpoint",
            where=READS,
            expected=f"{DOWNLOAD} or {RANGED}",
            found=found,
            remedy="set it to one of the two, or leave it out",
        )
    return found


def device() -> str:
    """Device that tensors are measured on."""
    return os.environ.get(DEVICE) or CPU


def accepted() -> tuple[str, ...]:
    """Licences, or names of entries, that the user has accepted."""
    return tuple(name.strip() for name in os.environ.get(LICENCES, "").split(",") if name.strip())


def export(
    *,
    ranged: bool = False,
    device: str | None = None,
    backend: str | None = None,
    scheduler: str | None = None,
    memory: str | None = None,
    licences: Sequence[str] = (),
) -> None:
    """Put what a command was given into the environment; what it was not given stays as it is."""
    given = {
        READS: RANGED if ranged else None,
        DEVICE: device,
        BACKEND: backend,
        SCHEDULER: scheduler,
        MEMORY: memory,
        LICENCES: ",".join(dict.fromkeys([*accepted(), *licences])) or None,
    }
    os.environ.update({name: value for name, value in given.items() if value})
