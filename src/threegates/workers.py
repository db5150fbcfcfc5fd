"""Jobs over processes of one thread each, which end with the process that started them."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import joblib
import torch
from tqdm import tqdm

POLL_SECONDS = 1.0
#: Bytes of tensors that are measured sooner than another process has started, which takes it some seconds.
WORTH_A_PROCESS = 16 << 20


def cores() -> int:
    """Cores that this process may use, which on a shared machine may be fewer than it has."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def fitting(size: int) -> int:
    """Workers for so many bytes: as many as there are cores, or one where more would not pay."""
    return cores() if size >= WORTH_A_PROCESS else 1


def run_parallel(
    work: Callable[..., None],
    tasks: Sequence[tuple],
    workers: int,
    label: str | None = None,
    sizes: Sequence[int] | None = None,
) -> None:
    """Call `work(*task)` for every task; one worker, or one task, runs in this process.

    Numbers depend on the thread count, so that every task runs on one thread, wherever it runs. With a
    label, a terminal shows how much is done: of `sizes`, the bytes that each task reads, else of tasks.
    """
    if not tasks:
        return
    with progress(label, len(tasks), sizes) as done:
        if min(workers, len(tasks)) <= 1:
            for number, task in enumerate(tasks):
                _on_one_thread(work, task)
                done(number)
            return
        with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
            pool = joblib.Parallel(n_jobs=min(workers, len(tasks)), return_as="generator_unordered")
            calls = (joblib.delayed(_in_worker)(work, task, os.getpid(), n) for n, task in enumerate(tasks))
            for number in pool(calls):
                done(number)


@contextmanager
def progress(label: str | None, tasks: int, sizes: Sequence[int] | None) -> Iterator[Callable[[int], None]]:
    """What tells a terminal that the task of a number is done, how fast it goes and the time left."""
    hidden = label is None or not sys.stderr.isatty()
    if sizes is None or not all(sizes):
        with tqdm(total=tasks, desc=label, unit="job", disable=hidden) as bar:
            yield lambda number: bar.update() and None
        return
    with tqdm(total=sum(sizes), desc=label, unit="B", unit_scale=True, disable=hidden) as bar:
        yield lambda number: bar.update(sizes[number]) and None


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread: numbers depend on the count, and others keep the cores busy.

    The count is the process's. What runs in several threads enters this once, before they start.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _on_one_thread(work: Callable[..., None], task: tuple) -> None:
    with one_thread():
        work(*task)


def _in_worker(work: Callable[..., Any], task: tuple, parent: int, number: int) -> int:
    _end_with(parent)
    _on_one_thread(work, task)
    return number


def _end_with(parent: int) -> None:
    """End this process when `parent` is gone, so that a killed build leaves no worker behind."""

    def watch() -> None:
        # An orphan gets another parent at once, while the dead one may stay a zombie that answers signals.
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    if os.getpid() != parent and all(thread.name != "ends-with-parent" for thread in threading.enumerate()):
        threading.Thread(target=watch, name="ends-with-parent", daemon=True).start()


def is_running(process: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
