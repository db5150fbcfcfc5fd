"""How tensors are reached and where they are measured; of these settings only the device changes a number.

A command's options come before the environment's variables (`threegates.environment`); notebooks get both.
Options of the backend are `threegates.backends`'s, accepted licences those of
`threegates.checkpoints.manifests.licences`; whether codes are read as floats asks
`threegates.checkpoints.quantised`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from threegates.backends import choose_backend
from threegates.checkpoints.manifests.licences import accept_licences
from threegates.checkpoints.quantised import DEQUANTISE
from threegates.environment import keep, variable
from threegates.errors import ThreeGatesError
from threegates.records.sizes import parse_size

#: "download" takes a Hub repository whole; "ranged" reads one tensor at a time and keeps nothing but a cache.
READS = "THREEGATES_READS"
DOWNLOAD, RANGED = "download", "ranged"
#: What looks at headers alone takes a download that is there, and else reads ranges.
HEADERS = "headers"
#: "cpu", "cuda" or "cuda:N"; measurements on a GPU have digests of their own.
DEVICE = "THREEGATES_DEVICE"
CPU = "cpu"
#: Most memory of all processes that measure together, such as 4GiB; none stands for as much as it takes.
MEMORY = "THREEGATES_MEMORY"
#: Folder of what an adapter started from, where that is not zero and does not follow from its base.
ADAPTER_START = "THREEGATES_ADAPTER_START"


def reads() -> str:
    """How weights of the Hub are read.

    Raises
    ------
    ThreeGatesError : the environment names no such way.
    """
    found = variable(READS) or DOWNLOAD
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
    return variable(DEVICE) or CPU


def memory_cap() -> int | None:
    """Bytes that all processes which measure may take together, None for no cap.

    Raises
    ------
    ThreeGatesError : the environment names no amount of memory.
    """
    text = variable(MEMORY)
    return parse_size(text) if text else None


def adapter_start() -> Path | None:
    """Folder of an adapter's start, None where none is named.

    Raises
    ------
    ThreeGatesError : there is no such folder.
    """
    text = variable(ADAPTER_START)
    if text and not Path(text).is_dir():
        raise ThreeGatesError(
            "there is no folder of an adapter's start",
            where="--adapter-start",
            expected="a folder that peft's save_pretrained wrote before training",
            found=text,
            remedy="check the path",
        )
    return Path(text) if text else None


def export(
    *,
    ranged: bool = False,
    device: str | None = None,
    backend: str | None = None,
    scheduler: str | None = None,
    memory: str | None = None,
    licences: Sequence[str] | None = None,
    start: Path | None = None,
    dequantise: bool = False,
) -> None:
    """Let what a command was given count for its process and all that it starts; the rest stays as it is.

    Raises
    ------
    ThreeGatesError : there is no such backend, or no such amount of memory.
    """
    if backend or scheduler:
        choose_backend(backend, scheduler)
    if memory:
        parse_size(memory)
    accept_licences(licences or ())
    given = {READS: RANGED if ranged else None, DEVICE: device, MEMORY: memory}
    given |= {ADAPTER_START: str(start.absolute()) if start else None}
    given |= {DEQUANTISE: "1" if dequantise else None}
    keep({name: value for name, value in given.items() if value})
