"""Whether the workers of a Dask cluster are fit: our code and versions, one thread, our files, our folders.

The digests of records say which code made them. A worker that would make them otherwise is refused by name,
before any work.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from threegates.digest import code_digest, runtime_versions
from threegates.errors import ThreeGatesError

_CODE, _OURS = "code of threegates", "threegates"
_PROBE = ".probe-"
#: Seconds until the scheduler no longer counts a worker whose connection closed, and between two questions.
LEAVING, _AGAIN = 30.0, 0.2


class ClusterError(ThreeGatesError):
    """A cluster cannot be reached, is not fit for the work, or went away; no finished part is lost."""


@dataclass(frozen=True)
class Facts:
    """What a process has imported.

    modules : whose code counts, with all that they import of ours. values : our version, the digest of that
    code, and the versions of Python and of the packages that can change numbers.
    """

    modules: tuple[str, ...]
    values: tuple[tuple[str, str], ...]

    def difference(self, other: Facts) -> tuple[str, str, str] | None:
        """The first value in which another process differs: its name, ours, and the other's."""
        ours, theirs = dict(self.values), dict(other.values)
        for name in sorted({*ours, *theirs}, key=lambda name: (name == _CODE, name)):
            if ours.get(name) != theirs.get(name):
                return name, ours.get(name, "absent"), theirs.get(name, "absent")
        return None


def facts_of(modules: tuple[str, ...]) -> Facts:
    """The facts of this process, which imports these modules if it has not yet."""
    for name in modules:
        importlib.import_module(name)
    return _facts_once(modules)


@cache
def _facts_once(modules: tuple[str, ...]) -> Facts:
    # Once in a process, just after it has imported them: what changes on disk later is not what it runs.
    try:
        version = importlib.metadata.version(_OURS)
    except importlib.metadata.PackageNotFoundError:
        version = "not installed, but on the path"
    values = {_OURS: version, _CODE: code_digest(*modules)[:16], **runtime_versions()}
    return Facts(modules, tuple(values.items()))


def check_workers(client: Any, facts: Facts, shared: Sequence[Path], files: Sequence[Path]) -> None:
    """Refuse a cluster one of whose workers would not do what this process does.

    Raises
    ------
    ClusterError : a worker has several threads, lacks the package, runs other code or versions, does not see
        the same files, or does not write where this process reads.
    """
    for worker, threads in client.nthreads().items():
        if threads != 1:
            raise _of_many_threads(worker, threads)
    for worker, found in _asked(client, facts_of, facts.modules):
        if isinstance(found, BaseException):
            raise _without_us(worker, found)
        check_facts(worker, facts, found)
    for worker, found in _asked(client, unlike, _states(files)):
        if found:
            raise _of_other_files(worker, found)
    for folder in shared:
        _check_shared(client, folder)


def check_facts(worker: str, ours: Facts, theirs: Facts) -> None:
    """Refuse a worker that runs other code or versions.

    Raises
    ------
    ClusterError : it does.
    """
    difference = ours.difference(theirs)
    if difference:
        name, here, there = difference
        raise ClusterError(
            f"a worker runs another version of {name.removeprefix('code of ')}",
            where=worker,
            expected=f"{name} {here}, as here",
            found=there,
            remedy="install the same release and requirements.lock there, and start the workers anew",
        )


def unlike(states: Sequence[tuple[str, int, int]]) -> str:
    """The first of these files that is missing here or is another one; nothing if all are as stated.

    states : path, size in bytes, and time of the last change in seconds, which shared folders keep, and so do
    copies that are told to.
    """
    for path, size, changed in states:
        try:
            found = os.stat(path)
        except OSError:
            return f"{path} is not there"
        if (found.st_size, int(found.st_mtime)) != (size, changed):
            return f"{path} has another size or time"
    return ""


def leave_probe(probe: str) -> str:
    """Leave a file beside the asking process's one, and give its path; nothing where that cannot be seen."""
    if not os.path.isfile(probe):
        return ""
    own = f"{probe}-{uuid.uuid4().hex}"
    Path(own).touch()
    return own


def _check_shared(client: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder.absolute() / f"{_PROBE}{uuid.uuid4().hex}"
    probe.touch()
    try:
        for worker, own in _asked(client, leave_probe, str(probe)):
            if not (isinstance(own, str) and own and os.path.isfile(own)):
                raise _without_folder(worker, folder, own)
    finally:
        for path in folder.glob(probe.name + "*"):
            path.unlink(missing_ok=True)


def _asked(client: Any, question: Callable, *arguments: object) -> Iterator[tuple[str, Any]]:
    """What every worker answers; an exception where it cannot.

    A worker that goes away meanwhile has no answer and needs none: the others are asked again, and with them
    the one that a nanny may have started in its place.
    """
    from distributed.comm import CommClosedError

    deadline = time.monotonic() + LEAVING
    while True:
        answers = client.run(question, *arguments, on_error="return")
        lost = [worker for worker, found in answers.items() if isinstance(found, CommClosedError)]
        if not lost or time.monotonic() > deadline:
            break
        time.sleep(_AGAIN)
    yield from sorted(answers.items())


def _states(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    stats = [(path.absolute(), path.stat()) for path in files]
    return [(str(path), stat.st_size, int(stat.st_mtime)) for path, stat in stats]


def _of_many_threads(worker: str, threads: int) -> ClusterError:
    return ClusterError(
        "a worker has several threads, and numbers depend on their count",
        where=worker,
        expected="one thread a worker, and as many workers as the machine has cores",
        found=threads,
        remedy="start it as: dask worker SCHEDULER --nworkers CORES --nthreads 1",
    )


def _without_us(worker: str, error: BaseException) -> ClusterError:
    return ClusterError(
        "a worker cannot import threegates, or has a version of it without this check",
        where=worker,
        expected="the package that this command belongs to",
        found=f"{type(error).__name__}: {error}",
        remedy="install it where the workers start, with the same requirements.lock, and start them anew",
    )


def _of_other_files(worker: str, found: object) -> ClusterError:
    return ClusterError(
        "a worker does not see the checkpoints that this process sees",
        where=worker,
        expected="the same files under the same paths",
        found=found,
        remedy="put them into a folder that all machines share, or copy them with their times (rsync -t)",
    )


def _without_folder(worker: str, folder: Path, found: object) -> ClusterError:
    return ClusterError(
        "a worker does not write where this process reads",
        where=worker,
        expected=f"{folder} in a file system that all machines share",
        found=found or "it does not see a file that was just put there",
        remedy="name an output in a folder that all machines share under one path",
    )
