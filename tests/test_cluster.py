"""A Dask cluster: one thread a task, strangers refused by name, and whatever ends early loses nothing."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path

import dask
import distributed
import pytest
import torch
from distributed.comm import CommClosedError

from tests.dask_processes import ROOT, DaskProcesses, wait_for
from tests.planted import planted
from threegates import cluster as module
from threegates import cluster_check
from threegates.backends import run_parallel
from threegates.cluster import _in_worker, run_on_cluster
from threegates.cluster_check import ClusterError, Facts, check_workers, facts_of, leave_probe, unlike
from threegates.errors import RecipeError
from threegates.jobs import batches
from threegates.jobs.batches import keep, measure_parts, run_jobs
from threegates.jobs.kinds.table import table_job
from threegates.jobs.pair_files import measure_to_files
from threegates.jobs.sources import StudyPair, open_source, own_pair
from threegates.measures.by_tensor import Parts
from threegates.records.store import Records, read_provenance

LOCAL = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": "127.0.0.1:0", "silence_logs": 50}


@pytest.fixture(scope="module")
def cluster():
    """Two workers of one thread, which come again when they are killed."""
    with distributed.LocalCluster(n_workers=2, processes=True, **LOCAL) as two:
        yield two


@pytest.fixture
def address(cluster):
    """The address of a scheduler that has both of its workers."""
    with distributed.Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
    return cluster.scheduler_address


def numbers_of(address: str) -> list[int]:
    """The workers' process numbers."""
    with distributed.Client(address, set_as_default=False) as client:
        return list(client.run(os.getpid).values())


# ------------------------------------------------------------------------------- what tasks do in workers


def _note(folder: Path, name: str) -> None:
    limits = [os.getpid(), torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]]
    (folder / name).write_text(" ".join(map(str, limits)))


def _fail(folder: Path, name: str) -> None:
    with (folder / f"{name}.tries").open("a") as log:
        log.write("x")
    if name == "bad":
        raise RecipeError("It broke.", where=name, expected="a good one", found=3, remedy="Mend it.")
    if name == "bug":
        raise ZeroDivisionError("a bug")
    if name == "away" and len((folder / f"{name}.tries").read_text()) == 1:
        raise OSError("the folder was away")
    (folder / name).touch()


def _wait(folder: Path, name: str, seconds: float) -> None:
    with (folder / f"{name}.begun").open("a") as log:
        log.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    (folder / name).touch()


def _die(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_tasks_run_in_the_workers_on_one_thread_each(tmp_path, address):
    run_on_cluster(_note, [(tmp_path, f"{n}") for n in range(6)], 2, scheduler=address)
    facts = [(tmp_path / f"{n}").read_text().split() for n in range(6)]
    assert {int(number) for number, *_ in facts} <= set(numbers_of(address))
    assert {tuple(limits) for _, *limits in facts} == {("1", "1")}


def test_an_error_for_the_user_comes_back_whole_and_is_not_tried_again(tmp_path, address):
    with pytest.raises(RecipeError) as caught:
        run_on_cluster(_fail, [(tmp_path, "bad")], 2, scheduler=address)
    there = RecipeError("It broke.", where="bad", expected="a good one", found=3, remedy="Mend it.")
    assert str(caught.value) == str(there)
    assert (tmp_path / "bad.tries").read_text() == "x"


def test_after_an_error_no_other_task_begins(tmp_path, address):
    tasks = [(_fail, (tmp_path, "bad")), *((_wait, (tmp_path, f"{n}", 0.3)) for n in range(12))]
    with pytest.raises(RecipeError):
        run_on_cluster(_call, tasks, 2, scheduler=address)
    begun = len(list(tmp_path.glob("*.begun")))
    time.sleep(1)
    assert len(list(tmp_path.glob("*.begun"))) <= begun + 1 < 12


def _call(work: Callable, arguments: tuple) -> None:
    work(*arguments)


def test_what_a_user_cannot_mend_is_tried_again_and_a_bug_comes_through(tmp_path, address):
    run_on_cluster(_fail, [(tmp_path, "away")], 2, scheduler=address)
    assert (tmp_path / "away").exists() and (tmp_path / "away.tries").read_text() == "xx"
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run_on_cluster(_fail, [(tmp_path, "bug")], 2, scheduler=address)
    assert (tmp_path / "bug.tries").read_text() == "xxx"


def test_a_killed_worker_s_task_is_done_by_another(tmp_path, address):
    victims = []

    def kill() -> None:
        wait_for(lambda: (tmp_path / "0.begun").exists() and (tmp_path / "0.begun").read_text().strip())
        victims.append(int((tmp_path / "0.begun").read_text()))
        os.kill(victims[0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    run_on_cluster(_wait, [(tmp_path, f"{n}", 0.5) for n in range(5)], 2, scheduler=address)
    killer.join()
    assert all((tmp_path / f"{n}").exists() for n in range(5))
    begun = {n: (tmp_path / f"{n}.begun").read_text().split() for n in range(5)}
    assert begun[0][0] == str(victims[0]) and len(begun[0]) == 2
    assert all(len(begun[n]) == 1 for n in range(1, 5))


@pytest.mark.parametrize("looked", [False, True], ids=["not looked at", "looked at"])
def test_a_task_that_ended_has_ended_though_its_worker_is_killed(tmp_path, monkeypatch, address, looked):
    """Dask calls its result lost, and would do it again for whoever still wants that result."""
    kinds = [("first", 0), ("then", 3)]
    tasks = [(tmp_path, f"{name}-{n}", seconds) for name, seconds in kinds for n in "01"]
    settled, killed = [], threading.Event()

    def settle(future: distributed.Future) -> None:
        if not looked:
            assert killed.wait(60)
        real(future)
        settled.append(future.key)

    def kill_after_the_first() -> None:
        wait_for(lambda: len(list(tmp_path.glob("first-?"))) == 2)
        with distributed.Client(address, set_as_default=False) as client:
            # Either both results are held, or both are let go.
            wait_for(lambda: sum(map(len, client.has_what().values())) == (0 if looked else 2))
            assert len(settled) == (2 if looked else 0)
            worker, number = next(iter(client.run(os.getpid).items()))
            os.kill(number, signal.SIGKILL)
            wait_for(lambda: worker not in client.nthreads())
        killed.set()

    real = module._settle
    monkeypatch.setattr(module, "_settle", settle)
    killer = threading.Thread(target=kill_after_the_first, daemon=True)
    killer.start()
    run_on_cluster(_wait, tasks, 2, scheduler=address)
    killer.join()
    assert killed.is_set() and len(settled) == 4
    begun = {path.stem: len(path.read_text().split()) for path in tmp_path.glob("*.begun")}
    assert sorted(begun) == ["first-0", "first-1", "then-0", "then-1"]
    if looked:
        assert begun["first-0"] == begun["first-1"] == 1


def test_what_a_task_on_workers_started_here_raises_is_said_once(tmp_path, capfd):
    with pytest.raises(RecipeError):
        run_on_cluster(_fail, [(tmp_path, "bad")], 1)
    assert "It broke" not in "".join(capfd.readouterr())


def test_a_task_that_every_worker_dies_of_ends_in_an_error(tmp_path):
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(n_workers=1, processes=True, **LOCAL) as one,
        pytest.raises(ClusterError, match="while they did the same task") as caught,
    ):
        run_on_cluster(_die, [(tmp_path,)], 1, scheduler=one.scheduler_address)
    assert "start fewer workers" in str(caught.value) and "tcp://" in str(caught.value)


def test_the_end_of_the_scheduler_is_an_error_and_another_one_goes_on(tmp_path):
    tasks = [(tmp_path, f"{n}", 0.2) for n in range(40)]
    with DaskProcesses(tmp_path) as processes:
        address, scheduler = processes.scheduler()
        processes.worker(address)

        def kill() -> None:
            wait_for(lambda: (tmp_path / "1").exists())
            scheduler.kill()

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        with pytest.raises(ClusterError, match="scheduler went away") as caught:
            run_on_cluster(_wait, tasks, 1, scheduler=address)
        killer.join()
    assert "what was measured is kept" in str(caught.value)
    assert (tmp_path / "1").exists() and not (tmp_path / "39").exists()


# ----------------------------------------------------------------------------- clusters that are refused


def test_without_dask_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ClusterError, match=r"threegates\[cluster\]"):
        run_on_cluster(_note, [(tmp_path, "0")], 1)


@pytest.mark.parametrize(("failures", "started"), [(0, 1), (2, 3), (9, 3)])
def test_workers_that_do_not_start_are_started_anew_and_then_given_up(failures, started):
    calls = []

    def start(**options: object) -> str:
        calls.append(options)
        if len(calls) <= failures:
            raise RuntimeError("Nanny failed to start.")
        return "a cluster"

    stand_in = types.SimpleNamespace(LocalCluster=start)
    if failures < 3:
        assert module._cluster_here(stand_in, 2) == "a cluster"
    else:
        with pytest.raises(ClusterError, match="do not start on this machine") as caught:
            module._cluster_here(stand_in, 2)
        assert "Nanny failed to start" in str(caught.value)
    assert len(calls) == started
    assert all((one["n_workers"], one["threads_per_worker"]) == (2, 1) for one in calls)


@pytest.mark.parametrize("where", ["tcp://127.0.0.1:9", "nowhere at all", "http://127.0.0.1:9"])
def test_a_scheduler_that_does_not_answer_is_named(monkeypatch, tmp_path, where):
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.5)
    with pytest.raises(ClusterError, match="cannot be reached") as caught:
        run_on_cluster(_note, [(tmp_path, "0")], 1, scheduler=where)
    assert where in str(caught.value) and "dask scheduler" in str(caught.value)


def test_a_scheduler_without_workers_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "WORKERS_SECONDS", 0.2)
    with (
        distributed.LocalCluster(n_workers=0, **LOCAL) as none,
        pytest.raises(ClusterError, match="has no workers") as caught,
    ):
        run_on_cluster(_note, [(tmp_path, "0")], 1, scheduler=none.scheduler_address)
    assert "dask worker" in str(caught.value)


def test_a_worker_of_several_threads_is_refused(tmp_path):
    options = {**LOCAL, "threads_per_worker": 2}
    with (
        distributed.LocalCluster(n_workers=1, processes=False, protocol="tcp", **options) as one,
        pytest.raises(ClusterError, match="several threads") as caught,
    ):
        run_on_cluster(_note, [(tmp_path, "0")], 1, scheduler=one.scheduler_address)
    assert caught.value.found == 2 and "--nthreads 1" in str(caught.value)
    assert not (tmp_path / "0").exists()


def test_another_version_of_a_package_is_refused_by_name(monkeypatch, tmp_path, address):
    real = cluster_check.runtime_versions()
    monkeypatch.setattr(cluster_check, "runtime_versions", lambda: real | {"torch": "1.2.3"})
    cluster_check._facts_once.cache_clear()
    try:
        with pytest.raises(ClusterError, match="another version of torch") as caught:
            run_on_cluster(_note, [(tmp_path, "0")], 2, scheduler=address)
    finally:
        cluster_check._facts_once.cache_clear()
    assert "1.2.3" in str(caught.value.expected) and caught.value.found == real["torch"]
    assert str(caught.value.where).startswith("tcp://") and not (tmp_path / "0").exists()


@pytest.mark.parametrize("strange", ["code", "package"])
def test_a_worker_with_other_code_or_none_of_ours_is_refused(tmp_path, strange):
    """Another number that measuring takes; or a package of that name that has no such module."""
    place = tmp_path / "other"
    if strange == "code":
        shutil.copytree(ROOT / "src" / "threegates", place / "threegates")
        changed = place / "threegates" / "geometry" / "masks.py"
        text = changed.read_text()
        assert text.count("TILE = 1 << 19") == 1
        changed.write_text(text.replace("TILE = 1 << 19", "TILE = 1 << 18"))
    else:
        (place / "threegates").mkdir(parents=True)
        (place / "threegates" / "__init__.py").write_text('"""An old one."""\n')
    with DaskProcesses(tmp_path) as processes:
        address, _ = processes.scheduler()
        processes.worker(address, place)
        with pytest.raises(ClusterError) as caught:
            measure_parts(*_planted(tmp_path), 1, backend="dask", scheduler=address)
    wanted = {"code": "another version of threegates", "package": "cannot import threegates"}
    assert wanted[strange] in str(caught.value) and str(caught.value.where).startswith("tcp://127.0.0.1")
    assert not list((tmp_path / "parts").rglob("*.json"))


def test_a_worker_that_joins_later_refuses_for_itself():
    ours = facts_of(("threegates.cluster",))
    other = Facts(ours.modules, tuple({**dict(ours.values), "code of threegates": "other"}.items()))
    with pytest.raises(ClusterError, match="another version of threegates"):
        _in_worker(b"never read", other)


def test_facts_differ_by_packages_first_and_by_what_only_one_has():
    ours = Facts((), (("code of threegates", "a"), ("torch", "2")))
    assert ours.difference(ours) is None
    assert ours.difference(Facts((), (("code of threegates", "b"), ("torch", "3")))) == ("torch", "2", "3")
    assert (
        ours.difference(Facts((), (("code of threegates", "b"), ("torch", "2"))))[0] == "code of threegates"
    )
    assert ours.difference(Facts((), (("torch", "2"),)))[1:] == ("a", "absent")


def test_facts_are_those_of_the_code_that_was_imported(monkeypatch):
    """A file that changes while a worker waits is not what the worker runs."""
    before = facts_of(("threegates.atomic",))
    monkeypatch.setattr(cluster_check, "code_digest", lambda *_: "changed on disk")
    assert facts_of(("threegates.atomic",)) == before
    assert dict(facts_of(("threegates.errors",)).values)["code of threegates"] == "changed on disk"


class Elsewhere:
    """Stands for a cluster with one worker that sees other files where this process has `here`."""

    def __init__(self, here: Path, there: Path) -> None:
        self.here, self.there = str(here), str(there)

    def nthreads(self) -> dict[str, int]:
        return {"tcp://elsewhere:1": 1}

    def run(self, question: Callable, *arguments: object, on_error: str) -> dict[str, object]:
        assert on_error == "return"
        try:
            return {"tcp://elsewhere:1": question(*map(self._moved, arguments))}
        except Exception as error:
            return {"tcp://elsewhere:1": error}

    def _moved(self, value: object) -> object:
        if isinstance(value, str):
            return value.replace(self.here, self.there)
        if isinstance(value, list):
            return [(self._moved(path), *rest) for path, *rest in value]
        return value


@pytest.mark.parametrize("there", ["missing", "another", "read only"])
def test_a_folder_that_a_worker_does_not_share_is_refused(tmp_path, monkeypatch, there):
    here, other = tmp_path / "here", tmp_path / "there"
    if there != "missing":
        other.mkdir()
    if there == "read only":
        monkeypatch.setattr(Path, "touch", _touch_refused_beside(Path.touch))
    facts = facts_of(("threegates.cluster",))
    client = Elsewhere(here, here if there == "read only" else other)
    with pytest.raises(ClusterError, match="does not write where this process reads") as caught:
        check_workers(client, facts, [here], [])
    assert str(here) in str(caught.value) and caught.value.where == "tcp://elsewhere:1"
    assert not list(tmp_path.rglob(".probe*"))
    monkeypatch.undo()
    check_workers(Elsewhere(here, here), facts, [here], [])
    assert not list(tmp_path.rglob(".probe*"))


def _touch_refused_beside(touch: Callable) -> Callable:
    def refused(path: Path) -> None:
        if path.name.count("-") > 1:
            raise PermissionError("read-only file system")
        touch(path)

    return refused


@pytest.mark.parametrize("there", ["missing", "longer", "later", "same"])
def test_a_worker_has_to_see_the_same_files(tmp_path, there):
    here, other = tmp_path / "here", tmp_path / "there"
    for folder in (here, other):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        os.utime(folder / "model.safetensors", (1000, 1000))
    copy = other / "model.safetensors"
    if there == "missing":
        copy.unlink()
    if there == "longer":
        copy.write_bytes(b"weights!")
        os.utime(copy, (1000, 1000))
    if there == "later":
        os.utime(copy, (1001, 1001))
    facts, files = facts_of(("threegates.cluster",)), [here / "model.safetensors"]
    if there == "same":
        return check_workers(Elsewhere(here, other), facts, [], files)
    with pytest.raises(ClusterError, match="does not see the checkpoints") as caught:
        check_workers(Elsewhere(here, other), facts, [], files)
    assert str(copy) in str(caught.value) and "rsync -t" in str(caught.value)


def test_a_probe_is_left_only_beside_what_is_seen(tmp_path):
    assert leave_probe(str(tmp_path / "probe")) == "" and not list(tmp_path.iterdir())
    (tmp_path / "probe").touch()
    own = leave_probe(str(tmp_path / "probe"))
    assert own.startswith(str(tmp_path / "probe-")) and Path(own).exists()
    assert unlike([]) == ""


# -------------------------------------------------------------------------------- measuring on a cluster


def _pair(folder: Path, layers: int = 1, width: int = 32) -> tuple[str, str]:
    base = planted.base_tensors(width=width, layers=layers)
    for name, tensors in (("base", base), ("tuned", planted.with_noise(base, 1e-3, 1))):
        planted.write(folder / name, tensors)
    return str(folder / "base"), str(folder / "tuned")


def _planted(folder: Path, **shape: int) -> tuple[dict]:
    base, tuned = (open_source(name, []) for name in _pair(folder, **shape))
    options = {"seed": 0, "axes": False, "spectra": True}
    job = table_job(StudyPair("tuned", base, tuned), options)
    return ({job: Parts(folder / "parts", job.digest)},)


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder that is no project, and no choice in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THREEGATES_ROOT", str(tmp_path))
    for name in ("THREEGATES_BACKEND", "THREEGATES_SCHEDULER", "THREEGATES_CACHE"):
        monkeypatch.delenv(name, raising=False)


def _measured(folder: Path, out: str, workers: int = 1) -> bytes:
    options = {"masks": None, "axis": folder / f"axis-{out}", "seed": 0, "workers": workers}
    measure_to_files(own_pair(str(folder / "base"), str(folder / "tuned")), folder / out, **options)
    return (folder / out).read_bytes() + (folder / f"axis-{out}").read_bytes()


@pytest.mark.usefixtures("outside")
def test_dask_gives_the_same_files_as_one_process(tmp_path, monkeypatch, address):
    _pair(tmp_path)
    alone = _measured(tmp_path, "one.parquet")
    monkeypatch.setenv("THREEGATES_SCHEDULER", address)
    assert _measured(tmp_path, "two.parquet") == alone
    assert read_provenance(tmp_path / "one.parquet") == read_provenance(tmp_path / "two.parquet")
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.slow
@pytest.mark.usefixtures("outside")
def test_without_an_address_workers_are_started_here(tmp_path, monkeypatch):
    _pair(tmp_path)
    alone = _measured(tmp_path, "one.parquet")
    monkeypatch.setenv("THREEGATES_BACKEND", "dask")
    assert _measured(tmp_path, "two.parquet", workers=2) == alone


def test_a_worker_killed_in_the_middle_repeats_only_the_tensor_in_hand(tmp_path, address):
    (places,) = _planted(tmp_path, layers=3)
    ((job, parts),) = places.items()
    kept: dict[str, tuple] = {}

    def kill() -> None:
        wait_for(lambda: len(list(parts.folder.glob("*.json"))) >= 4)
        os.kill(numbers_of(address)[0], signal.SIGKILL)
        kept.update(_identities(parts))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    measure_parts(places, 2, backend="dask", scheduler=address)
    killer.join()
    found = _identities(parts)
    names = [*planted.base_tensors(layers=3)]
    assert len(found) == len(names) and 4 <= len(kept) < len(found)
    assert found.items() >= kept.items()
    alone = Parts(tmp_path / "alone", job.digest)
    measure_parts({job: alone}, 1, backend="processes")
    assert [parts.read(name) for name in names] == [alone.read(name) for name in names]


def _identities(parts: Parts) -> dict[str, tuple]:
    """Each part's file: written again it would be another."""
    stats = {path.name: path.stat() for path in parts.folder.glob("*.json")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def test_what_workers_have_to_share_are_the_parts_and_the_checkpoints(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(batches, "run_within", lambda *_, **options: given.update(options))
    (places,) = _planted(tmp_path)
    measure_parts(places, 2, backend="dask", scheduler="tcp://host:1")
    assert given["files"] == [tmp_path / side / "model.safetensors" for side in ("base", "tuned")]
    assert given["shared"] == [parts.folder for parts in places.values()]
    assert (given["backend"], given["scheduler"]) == ("dask", "tcp://host:1")
    run_jobs([*places], Records(tmp_path / "records"), 2, scheduler="tcp://host:2")
    assert given["shared"] == [tmp_path / "records"] and given["scheduler"] == "tcp://host:2"
    assert len(given["files"]) == 2


def test_a_worker_that_outlives_its_run_writes_no_part_for_nobody(tmp_path):
    parts = Parts(tmp_path / "out.parts", "d" * 64)
    keep(parts, "late", {"tensor": []})
    assert not parts.root.exists()
    parts.folder.mkdir(parents=True)
    keep(parts, "late", {"tensor": []})
    assert not list(parts.folder.iterdir())
    (parts.folder / "awaited").touch()
    keep(parts, "in time", {"tensor": []})
    assert parts.read("in time") == {"tensor": []}
    assert {path.suffix for path in parts.folder.iterdir()} == {".json", ""}


# ------------------------------------------------------------------------------------ choosing a backend


def test_no_task_needs_no_cluster(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    run_parallel(_note, [], 2, backend="dask", scheduler="tcp://127.0.0.1:9")


class Leaving:
    """Stands for a cluster of two workers, of which one goes away while it is asked so many times."""

    def __init__(self, times: int) -> None:
        self.left, self.asked = times, 0

    def nthreads(self) -> dict[str, int]:
        return dict.fromkeys(("tcp://stays:1", "tcp://goes:1"), 1)

    def run(self, question: Callable, *arguments: object, on_error: str) -> dict[str, object]:
        self.asked += 1
        answers: dict[str, object] = {"tcp://stays:1": question(*arguments)}
        if self.asked <= self.left:
            answers["tcp://goes:1"] = CommClosedError("Stream is closed")
        return answers


def test_a_worker_that_is_killed_while_it_is_checked_is_no_unfit_one(monkeypatch):
    monkeypatch.setattr(cluster_check, "_AGAIN", 0.0)
    facts, client = facts_of(("threegates.cluster",)), Leaving(2)
    check_workers(client, facts, [], [])
    assert client.asked == 4
    # One that the scheduler goes on to count, and that never answers, is told.
    monkeypatch.setattr(cluster_check, "LEAVING", 0.0)
    with pytest.raises(ClusterError, match="cannot import threegates") as caught:
        check_workers(Leaving(1_000_000), facts, [], [])
    assert caught.value.where == "tcp://goes:1"
