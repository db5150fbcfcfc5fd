"""Jobs on the workers of a Dask cluster, where a worker that is killed loses nothing but the tensor in hand.

A task holds names of files and tensors, never tensors; what it finds it writes into a folder that all
machines share. Dask's client is used itself: joblib's way to Dask (1.6) waits for ever for a task whose
workers died, and takes the end of the scheduler for a result.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from threegates.cluster_check import ClusterError, Facts, check_facts, check_workers, facts_of
from threegates.errors import ThreeGatesError
from threegates.workers import progress

#: Seconds until a scheduler has to answer and to have a worker, and that it may be without any later on.
CONNECT_SECONDS = 10.0
WORKERS_SECONDS = 30.0
ALONE_SECONDS = 120.0
#: How often workers on this machine are started before they are given up.
STARTS = 3
#: How often a task is tried again after an error that no user can act on, such as a folder that was away.
RETRIES = 2
_POLL_SECONDS = 0.05
_LOOK_SECONDS = 5.0
AGAIN = "give the same command again: what was measured is kept"
START = "start some with: dask worker SCHEDULER --nworkers CORES --nthreads 1"


def run_on_cluster(
    work: Callable[..., None],
    tasks: Sequence[tuple],
    workers: int,
    label: str | None = None,
    sizes: Sequence[int] | None = None,
    *,
    scheduler: str | None = None,
    shared: Sequence[Path] = (),
    files: Sequence[Path] = (),
) -> None:
    """Call `work(*task)` for every task on the workers of a scheduler, or on `workers` ones started here.

    Every worker has to share the folders `shared` with this process, and to see the same `files`.

    Raises
    ------
    ClusterError : Dask, the scheduler or its workers are missing, or a worker is not fit; nothing was done.
        Or the scheduler or all workers were lost; what tasks had written is kept.
    ThreeGatesError : what a task has raised; tasks that have not begun never do.
    """
    facts = facts_of(_modules(work))
    with _connected(scheduler, min(workers, len(tasks))) as client:
        check_workers(client, facts, shared, files)
        futures = _submitted(client, work, tasks, facts)
        numbers = {future.key: number for number, future in enumerate(futures)}
        with progress(label, len(tasks), sizes) as done:
            for future in _as_they_end(client, futures):
                _settle(future)
                done(numbers[future.key])


def _modules(work: Callable) -> tuple[str, ...]:
    """Modules of ours whose code does the work."""
    ours = {work.__module__} if work.__module__.startswith("threegates.") else set()
    return tuple(sorted({__name__, *ours}))


def _submitted(client: Any, work: Callable[..., None], tasks: Sequence[tuple], facts: Facts) -> list[Any]:
    import cloudpickle

    run = uuid.uuid4().hex
    # As bytes, because Dask would look for tasks of its own among arguments that hold functions.
    return [
        client.submit(
            _in_worker,
            cloudpickle.dumps((work, task)),
            facts,
            key=f"threegates-{run}-{number}",
            pure=False,
        )
        for number, task in enumerate(tasks)
    ]


def _in_worker(payload: bytes, facts: Facts) -> None:
    """One task in a worker. An error that no user can act on is tried again; any other would come again."""
    import cloudpickle

    # This worker may have joined after the others were looked at.
    check_facts("a worker that joined later", facts, facts_of(facts.modules))
    _take_one_thread()
    work, task = cloudpickle.loads(payload)
    for left in reversed(range(RETRIES + 1)):
        try:
            return work(*task)
        except ThreeGatesError:
            raise
        except Exception:
            if not left:
                raise


def _take_one_thread() -> None:
    """One thread for this process from now on: numbers depend on the count, and it does nothing else."""
    import threadpoolctl
    import torch

    torch.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)


@contextmanager
def _connected(scheduler: str | None, workers: int) -> Iterator[Any]:
    """A client of the scheduler at an address, or of one of our own with so many workers of one thread."""
    distributed = _distributed()
    with ExitStack() as stack:
        place: Any = scheduler
        if scheduler is None:
            place = stack.enter_context(_cluster_here(distributed, workers))
        client = _client_of(distributed, place)
        stack.callback(client.close, CONNECT_SECONDS)
        try:
            client.wait_for_workers(workers if scheduler is None else 1, timeout=WORKERS_SECONDS)
        except TimeoutError as error:
            raise _without_workers(client, f"none in {WORKERS_SECONDS:g} s") from error
        yield client


def _distributed() -> ModuleType:
    try:
        import distributed
    except ImportError as error:
        raise ClusterError(
            "Dask is not installed",
            expected="the extra `cluster`",
            found=str(error),
            remedy="pip install 'threegates[cluster]', or leave --backend dask out",
        ) from error
    return distributed


def _cluster_here(distributed: ModuleType, workers: int) -> Any:
    """A scheduler and so many workers on this machine; one that is killed while it starts is started anew."""
    for left in reversed(range(STARTS)):
        try:
            return _local_cluster(distributed, workers)
        except (RuntimeError, OSError, TimeoutError) as error:
            if not left:
                raise ClusterError(
                    "the workers do not start on this machine",
                    expected=f"{workers} processes",
                    found=f"{type(error).__name__}: {error}",
                    remedy="start fewer by --workers, or leave --backend dask out",
                ) from error
    raise AssertionError


def _local_cluster(distributed: ModuleType, workers: int) -> Any:
    # Without a limit of memory, at which Dask would kill a worker in the middle of a matrix. Silent, because
    # what a task raises comes back and is said once, and Dask's report of it would stand above.
    return distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        memory_limit=0,
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
    )


def _client_of(distributed: ModuleType, place: Any) -> Any:
    try:
        return distributed.Client(place, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise ClusterError(
            "the scheduler cannot be reached",
            where=place,
            expected=f"a Dask scheduler that answers within {CONNECT_SECONDS:g} s",
            found=str(error) or type(error).__name__,
            remedy="start it with `dask scheduler`, and give the address that it prints, such as tcp://host:8786",
        ) from error


def _as_they_end(client: Any, futures: list[Any]) -> Iterator[Any]:
    """Each task's future when the task has ended, in any order."""
    from distributed import as_completed

    ended = as_completed(futures, client.loop)
    last_look = last_seen = time.monotonic()
    while not ended.is_empty():
        yield from ended.next_batch(block=False)
        time.sleep(_POLL_SECONDS)
        if time.monotonic() - last_look < _LOOK_SECONDS:
            continue
        last_look = time.monotonic()
        last_seen = last_look if _has_workers(client) else last_seen
        if last_look - last_seen > ALONE_SECONDS:
            raise _without_workers(client, f"none for {ALONE_SECONDS:g} s", remedy=AGAIN)


def _has_workers(client: Any) -> bool:
    try:
        return bool(client.nthreads())
    except OSError:
        # The scheduler itself is gone, as the tasks will say.
        return True


def _settle(future: Any) -> None:
    """Let go of a task that has ended, or raise what it has raised or what became of it.

    Only an error or the end of the scheduler tell against it. That a result is lost, which is what its status
    says once the worker that held it dies, does not: a task has no result but what it has written. It is let
    go because Dask would begin it anew for the sake of that result.
    """
    if future.status == "cancelled":
        raise ClusterError(
            "the scheduler went away before the work was done",
            expected="a Dask scheduler that lives as long as the measurement",
            found="its connection ended",
            remedy=f"start it and its workers anew, and {AGAIN}",
        )
    if future.status == "error":
        _raise(future.exception(), future.traceback())
    future.release()


def _raise(error: Any, trace: Any) -> None:
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        raise ClusterError(
            "several workers ended one after the other while they did the same task",
            expected="a worker that lives until its tensor is measured",
            found=f"the last was {error.last_worker.address}",
            remedy=f"see its log; if the machine's memory ran out, start fewer workers on it; then {AGAIN}",
        ) from error
    raise error.with_traceback(trace)


def _without_workers(client: Any, found: str, remedy: str = "") -> ClusterError:
    return ClusterError(
        "the scheduler has no workers",
        where=client.scheduler.address if client.scheduler else None,
        expected="one or more",
        found=found,
        remedy=START + (remedy and f"; then {remedy}"),
    )
