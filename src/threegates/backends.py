"""Where jobs run: in processes of this machine, or on the workers of a Dask cluster.

What runs, and what it writes, is the same. The choice is made once, by a command's options or by the
environment (``THREEGATES_BACKEND``, ``THREEGATES_SCHEDULER``), which notebooks inherit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from threegates.environment import keep, variable
from threegates.errors import ThreeGatesError

BACKEND_VARIABLE = "THREEGATES_BACKEND"
SCHEDULER_VARIABLE = "THREEGATES_SCHEDULER"
PROCESSES, DASK = "processes", "dask"
BACKENDS = (PROCESSES, DASK)


@dataclass(frozen=True)
class Backend:
    """A way to run jobs.

    name : ``processes`` or ``dask``. scheduler : address of a Dask scheduler, such as ``tcp://host:8786``;
    without one, `dask` starts workers on this machine.
    """

    name: str = PROCESSES
    scheduler: str | None = None


def named_backend(backend: str | None = None, scheduler: str | None = None) -> Backend:
    """The backend that is asked for here, else by the environment, else processes.

    A scheduler alone asks for Dask. A backend given here that is not Dask passes over the environment's
    scheduler.

    Raises
    ------
    ThreeGatesError : there is no backend of that name, or a scheduler is given with one that has none.
    """
    name = backend or (None if scheduler else variable(BACKEND_VARIABLE)) or None
    if scheduler is None and name in (None, DASK):
        scheduler = variable(SCHEDULER_VARIABLE) or None
    name = name or (DASK if scheduler else PROCESSES)
    if name not in BACKENDS:
        raise ThreeGatesError(
            "there is no such backend",
            where=f"--backend or {BACKEND_VARIABLE}",
            expected=" or ".join(BACKENDS),
            found=name,
        )
    if scheduler and name != DASK:
        raise ThreeGatesError(
            "a scheduler is an address of Dask's",
            where=f"--scheduler or {SCHEDULER_VARIABLE}",
            expected=f"--backend {DASK} beside it",
            found=f"{name}, {scheduler}",
            remedy="leave the backend or the scheduler out",
        )
    return Backend(name, scheduler)


def choose_backend(backend: str | None = None, scheduler: str | None = None) -> Backend:
    """Make a choice for this process and all that it starts, notebooks among them.

    Raises
    ------
    ThreeGatesError : as `named_backend`; then nothing is chosen.
    """
    chosen = named_backend(backend, scheduler)
    keep({BACKEND_VARIABLE: chosen.name, SCHEDULER_VARIABLE: chosen.scheduler or ""})
    return chosen


def run_parallel(
    work: Callable[..., None],
    tasks: Sequence[tuple],
    workers: int,
    label: str | None = None,
    *,
    sizes: Sequence[int] | None = None,
    backend: str | None = None,
    scheduler: str | None = None,
    shared: Sequence[Path] = (),
    files: Sequence[Path] = (),
) -> None:
    """Call `work(*task)` for every task, each on one thread.

    Parameters
    ----------
    workers : processes; a cluster has as many as it has.
    label : what a terminal shows beside the number of finished tasks, or their share of all bytes.
    sizes : bytes that each task reads.
    backend, scheduler : as in `named_backend`.
    shared : folders that tasks write to, which a cluster's workers have to share with this process.
    files : what tasks read, likewise.

    Raises
    ------
    ThreeGatesError : as `named_backend`; or what a task has raised, whole.
    ClusterError : the cluster cannot do it; what was written before is kept.
    """
    chosen = named_backend(backend, scheduler)
    if not tasks:
        return
    if chosen.name == PROCESSES:
        from threegates.workers import run_parallel as run_in_processes

        return run_in_processes(work, tasks, workers, label, sizes)
    # Each further backend has a branch of its own here; none is taken for another.
    assert chosen.name == DASK, chosen.name
    from threegates.cluster import run_on_cluster

    where = {"shared": shared, "files": files}
    run_on_cluster(work, tasks, workers, label, sizes, scheduler=chosen.scheduler, **where)
