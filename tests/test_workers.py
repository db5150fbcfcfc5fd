"""Jobs over processes: one thread each, errors that come back whole, nobody left when the build is killed."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import pytest
import torch

from threegates import workers as module
from threegates.errors import RecipeError
from threegates.workers import cores, is_running, progress, run_parallel

SOURCE = Path(module.__file__).parents[1]


def _gone(process: int) -> bool:
    """Whether a process has ended, even if nobody has reaped it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _note_threads(folder: Path, name: str) -> None:
    facts = [os.getpid(), torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")]
    (folder / name).write_text(" ".join(map(str, facts)))


def _fail(folder: Path, name: str) -> None:
    if name == "bad":
        raise RecipeError("It broke.", where=name, expected="a good one", found=3, remedy="Mend it.")
    (folder / name).touch()


# --------------------------------------------------------------------------------------- in this process


def test_no_tasks_start_nothing(monkeypatch):
    monkeypatch.setattr(joblib, "Parallel", None)
    run_parallel(_fail, [], 2)


@pytest.mark.parametrize(("workers", "tasks"), [(1, 3), (2, 1)])
def test_one_worker_or_one_task_needs_no_other_process(monkeypatch, tmp_path, workers, tasks):
    monkeypatch.setattr(joblib, "Parallel", None)
    run_parallel(_note_threads, [(tmp_path, f"{n}") for n in range(tasks)], workers)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n}" for n in range(tasks)]
    for path in tmp_path.iterdir():
        assert path.read_text().split()[0] == str(os.getpid())


@pytest.mark.parametrize("name", ["good", "bad"])
def test_a_task_in_this_process_has_one_thread_and_gives_the_others_back(tmp_path, name):
    seen: list[int] = []

    def work(folder: Path, name: str) -> None:
        seen.append(torch.get_num_threads())
        _fail(folder, name)

    torch.set_num_threads(3)
    try:
        if name == "bad":
            with pytest.raises(RecipeError, match="It broke"):
                run_parallel(work, [(tmp_path, name)], 1)
        else:
            run_parallel(work, [(tmp_path, name)], 1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert seen == [1]


def test_a_process_is_running_until_it_has_ended():
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
    child.start()
    assert child.pid is not None
    assert is_running(os.getpid())
    assert is_running(child.pid)
    child.kill()
    child.join()
    assert not is_running(child.pid)
    # Somebody else's process exists, whether we may signal it or not.
    assert is_running(1)


# ------------------------------------------------------------------------------------ in other processes


def test_workers_are_other_processes_of_one_thread_and_errors_come_back_whole(tmp_path):
    """One pool for both, because starting workers is what takes the time."""
    names = [f"{n}" for n in range(5)]
    run_parallel(_note_threads, [(tmp_path, name) for name in names], 2)
    facts = [(tmp_path / name).read_text().split() for name in names]
    assert 1 <= len({process for process, _, _ in facts}) <= 2
    assert str(os.getpid()) not in {process for process, _, _ in facts}
    assert {(threads, variable) for _, threads, variable in facts} == {("1", "1")}

    with pytest.raises(RecipeError) as caught:
        run_parallel(_fail, [(tmp_path, name) for name in ("first", "bad")], 2)
    there = RecipeError("It broke.", where="bad", expected="a good one", found=3, remedy="Mend it.")
    assert str(caught.value) == str(there)
    assert (caught.value.where, caught.value.found) == ("bad", 3)


# ------------------------------------------------------------------------------ workers of a killed build


BUILDER = """
import os, sys, time
from pathlib import Path
from threegates.workers import run_parallel

def work(folder, name):
    (folder / f".{name}").write_text(str(os.getpid()))
    os.replace(folder / f".{name}", folder / name)
    time.sleep(60)

run_parallel(work, [(Path(sys.argv[1]), f"{n}") for n in range(4)], 2)
"""
# Stands for torch in the three processes, because importing torch would take most of the test's time.
NO_TORCH = """
def get_num_threads(): return 1
def set_num_threads(count): pass
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_a_build_killed_in_the_middle_leaves_no_worker_behind(tmp_path):
    """Nobody reaps the killed build before its workers have left: a zombie still answers signals."""
    (tmp_path / "torch.py").write_text(NO_TORCH)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(SOURCE)])}
    builder = subprocess.Popen([sys.executable, "-c", BUILDER, str(tmp_path)], env=environment)
    deadline = time.monotonic() + 60
    while not all((tmp_path / name).exists() for name in "01"):
        assert builder.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    processes = [int((tmp_path / name).read_text()) for name in "01"]
    assert not any(_gone(process) for process in processes)
    builder.send_signal(signal.SIGKILL)
    try:
        while not all(_gone(process) for process in processes):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert Path(f"/proc/{builder.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    finally:
        builder.wait()
        for process in processes:
            if not _gone(process):
                os.kill(process, signal.SIGKILL)
    assert not (tmp_path / "2").exists()


def _worker(parent: int) -> None:
    module._end_with(parent)
    time.sleep(30)


def _builder(number) -> None:
    child = multiprocessing.get_context("fork").Process(target=_worker, args=(os.getpid(),))
    child.start()
    number.value = child.pid
    child.join()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_a_worker_leaves_with_its_parent_and_not_before(monkeypatch, reaped):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    context = multiprocessing.get_context("fork")
    number = context.Value("i", 0)
    builder = context.Process(target=_builder, args=(number,))
    builder.start()
    deadline = time.monotonic() + 20
    while number.value == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    worker = number.value
    time.sleep(0.2)
    assert not _gone(worker)
    assert builder.pid is not None
    os.kill(builder.pid, signal.SIGKILL)
    if reaped:
        builder.join()
    while not _gone(worker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert _gone(worker)
    builder.join()


def test_the_process_that_starts_the_work_watches_nobody(monkeypatch):
    """One worker runs here, and this process must outlive whatever started it."""
    monkeypatch.setattr(module.threading, "Thread", None)
    module._end_with(os.getpid())


# ------------------------------------------------------------------------------------- what a terminal shows


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_bytes_with_their_rate_where_tasks_have_sizes_and_else_tasks(monkeypatch):
    shown = {}
    for name, sizes in (("bytes", [3_000_000, 1_000_000]), ("tasks", None), ("unknown", [1, 0])):
        monkeypatch.setattr(sys, "stderr", _Terminal())
        with progress("measure", 2, sizes) as done:
            done(0)
            done(1)
        shown[name] = sys.stderr.getvalue()
    assert "4.00M/4.00M" in shown["bytes"] and "B/s]" in shown["bytes"]
    assert "2/2" in shown["tasks"] and "job/s]" in shown["tasks"] and "2/2" in shown["unknown"]
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress("measure", 1, [5]) as done:
        done(0)
    assert not sys.stderr.getvalue()


def test_small_work_has_one_worker_and_other_work_all_cores(monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 5)
    assert [module.fitting(size) for size in (0, module.WORTH_A_PROCESS - 1)] == [1, 1]
    assert module.fitting(module.WORTH_A_PROCESS) == 5


def test_cores_are_those_that_the_process_may_use():
    assert cores() == len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores() >= 1
