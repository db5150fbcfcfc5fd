"""The cache of decomposed bases: the same bits, bounded, and safe against neighbours, kills and damage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from dataclasses import fields

import pytest
import torch
from joblib.externals.loky import get_reusable_executor

from tests.planted import planted
from threegates.errors import GeometryError, RecordError
from threegates.geometry.certificate import Certificate
from threegates.geometry.decomposition import BaseDecomposition, update
from threegates.measures import base_cache
from threegates.measures.base_cache import BaseCache, content_digest, decompose_base
from threegates.study import Study
from threegates.workers import run_parallel

ACCURACIES = ("fast", "certified", "reference")


def weight(seed: int = 0, rows: int = 140, columns: int = 120) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).bfloat16()


def same(a: BaseDecomposition, b: BaseDecomposition) -> bool:
    pairs = [(a.eigenvalues, b.eigenvalues), (a.basis, b.basis)]
    for left, right in ((a.leading, b.leading), (a.leading.certificate, b.leading.certificate)):
        pairs += [(getattr(left, f.name), getattr(right, f.name)) for f in fields(left)]
    return all(_equal(x, y) for x, y in pairs if not isinstance(x, Certificate))


def _equal(x: object, y: object) -> bool:
    if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
        return x.dtype == y.dtype and x.stride() == y.stride() and torch.equal(x, y)
    return x == y


@pytest.fixture
def counted(monkeypatch):
    calls = []
    real = base_cache.decompose
    monkeypatch.setattr(base_cache, "decompose", lambda *a: calls.append(a[1:]) or real(*a))
    return calls


@pytest.mark.parametrize("accuracy", ACCURACIES)
@pytest.mark.parametrize("k", [3, 40, 90, 500])
def test_what_is_read_back_is_the_same_to_the_last_bit(tmp_path, counted, accuracy, k):
    cache, base = BaseCache(tmp_path, 1 << 30), weight()
    first, second = (cache.decompose(base, k, accuracy) for _ in range(2))
    assert len(counted) == 1
    assert second is not first and same(first, second)
    tuned = (base.float() + 1e-3 * weight(1).float()).bfloat16()
    one, other = (update(start, tuned, accuracy) for start in (first, second))
    assert torch.equal(one.left, other.left) and torch.equal(one.values, other.values)
    assert one.path == other.path and second.weight.data_ptr() == base.data_ptr()


def test_everything_that_decides_a_decomposition_is_in_its_name(monkeypatch):
    base = weight()
    changed = base.clone()
    changed.view(torch.int16)[3, 4] ^= 1
    names = {
        content_digest(base, 4, "fast"),
        content_digest(base, 5, "fast"),
        content_digest(base, 4, "certified"),
        content_digest(changed, 4, "fast"),
        content_digest(base.float(), 4, "fast"),
        content_digest(base.reshape(120, 140), 4, "fast"),
        content_digest(base, 4, "fast", beside_spectrum=True),
    }
    monkeypatch.setattr(base_cache, "code_digest", lambda *_: "other code")
    assert len({*names, content_digest(base, 4, "fast")}) == 8
    assert content_digest(base.T.contiguous().T, 4, "fast") == content_digest(base, 4, "fast")


def test_only_a_named_cache_is_used(tmp_path, monkeypatch, counted):
    monkeypatch.delenv("THREEGATES_CACHE", raising=False)
    for _ in range(2):
        decompose_base(weight(), 4, "fast")
    assert len(counted) == 2
    monkeypatch.setenv("THREEGATES_CACHE", str(tmp_path / "new" / "cache"))
    for _ in range(3):
        decompose_base(weight(), 4, "fast")
    assert len(counted) == 3
    with pytest.raises(GeometryError, match="no such accuracy"):
        decompose_base(weight(), 4, "exact")


@pytest.mark.parametrize("text", ["much", "0", "-1", "nan"])
def test_a_limit_that_is_no_size_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.setenv("THREEGATES_CACHE", str(tmp_path))
    monkeypatch.setenv("THREEGATES_CACHE_GIB", text)
    with pytest.raises(RecordError, match="not a size") as caught:
        decompose_base(weight(), 4, "fast")
    assert text in str(caught.value) and "THREEGATES_CACHE_GIB" in str(caught.value)


def test_the_limit_holds_and_the_least_recently_used_go(tmp_path, counted):
    one = BaseCache(tmp_path, 1 << 30)
    one.decompose(weight(0), 4, "fast")
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    cache = BaseCache(tmp_path, int(2.5 * size))
    os.utime(next(tmp_path.iterdir()), (1, 1))
    cache.decompose(weight(1), 4, "fast")
    cache.decompose(weight(0), 4, "fast")  # used again, so that it is no longer the oldest
    os.utime(tmp_path / (content_digest(weight(1), 4, "fast") + ".safetensors"), (2, 2))
    cache.decompose(weight(2), 4, "fast")
    assert len(counted) == 3
    held = {path.name for path in tmp_path.iterdir()}
    assert held == {content_digest(weight(seed), 4, "fast") + ".safetensors" for seed in (0, 2)}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= cache.limit
    BaseCache(tmp_path, 10).decompose(weight(3), 4, "fast")
    assert {path.name for path in tmp_path.iterdir()} == held


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other metadata"])
def test_a_damaged_entry_is_computed_anew(tmp_path, counted, damage):
    cache = BaseCache(tmp_path, 1 << 30)
    first = cache.decompose(weight(), 4, "fast")
    path = next(tmp_path.iterdir())
    raw = bytearray(path.read_bytes())
    if damage == "flipped":
        raw[-1000] ^= 1
    if damage == "other metadata":
        raw = raw.replace(b"checksum", b"checkson")
    path.write_bytes({"truncated": raw[:-5], "empty": b""}.get(damage, bytes(raw)))
    again = cache.decompose(weight(), 4, "fast")
    assert len(counted) == 2 and same(first, again)
    assert same(first, cache.decompose(weight(), 4, "fast")) and len(counted) == 2


def test_an_entry_evicted_while_it_is_opened_is_computed_anew(tmp_path, counted, monkeypatch):
    cache = BaseCache(tmp_path, 1 << 30)
    first = cache.decompose(weight(), 4, "fast")
    path = next(tmp_path.iterdir())

    def evicted_between_two_openings(name, *args, **kwargs):
        path.unlink()
        return torch.UntypedStorage.from_file(str(name), False, 8)  # as safe_open does, second

    with monkeypatch.context() as patch:
        patch.setattr(base_cache, "safe_open", evicted_between_two_openings)
        again = cache.decompose(weight(), 4, "fast")
    assert len(counted) == 2 and same(first, again)
    assert same(first, cache.decompose(weight(), 4, "fast")) and len(counted) == 2


def _fill(folder, limit, seeds):
    for seed in seeds:
        BaseCache(folder, limit).decompose(weight(seed, 60, 50), 4, "fast")


def test_two_processes_share_a_small_cache(tmp_path):
    probe = BaseCache(tmp_path / "probe", 1 << 30)
    probe.decompose(weight(0, 60, 50), 4, "fast")
    entry = next(probe.folder.iterdir()).stat().st_size
    limit = 3 * entry + 4096
    shared = tmp_path / "shared"
    shared.mkdir()
    held: list[int] = []
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(shared, held, done))
    watch.start()
    # Both write, read and evict the same six entries, three of which fit.
    run_parallel(_fill, [(shared, limit, [*range(6)] * 6) for _ in range(2)], 2)
    done.set()
    watch.join()
    found = list(shared.iterdir())
    assert 2 <= len(found) <= 3 and all(path.suffix == ".safetensors" for path in found)
    # At no moment more, half-written files included.
    assert len(held) > 20 and 2 * entry < max(held) <= limit


def _watch(folder, held, done):
    """Note how many bytes a folder holds, as long as the others work."""
    while not done.is_set():
        names = os.listdir(folder)
        sizes = []
        for name in names:
            with suppress(FileNotFoundError):
                sizes.append((folder / name).stat().st_size)
        # Between the two looks one file may have become another.
        if names == os.listdir(folder) and len(sizes) == len(names):
            held.append(sum(sizes))
        time.sleep(0.001)


def test_a_writer_waits_for_the_one_at_work(tmp_path):
    """What is half written has its room already."""
    cache = BaseCache(tmp_path, 1 << 30)
    with cache._alone():
        other = threading.Thread(target=cache.decompose, args=(weight(), 4, "fast"))
        other.start()
        other.join(1)
        assert other.is_alive() and not list(tmp_path.iterdir())
    other.join()
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_where_there_are_no_locks_entries_are_kept_all_the_same(tmp_path, counted, monkeypatch):
    def refused(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(base_cache.fcntl, "flock", refused)
    for _ in range(2):
        BaseCache(tmp_path, 1 << 30).decompose(weight(), 4, "fast")
    assert len(counted) == 1


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["processes", "dask"])
def test_all_runs_from_a_base_share_a_bounded_cache(tmp_path, project, monkeypatch, backend):
    """Three runs, two workers, and room for three of the base's seven matrices."""
    base = planted.base_tensors()
    runs = {
        f"grpo-{seed}": (
            planted.with_noise(base, 1e-3, seed),
            planted.entry(f"grpo-{seed}", "rl", ["principal-overlap"], algorithm="grpo", seed=seed),
        )
        for seed in (1, 2, 3)
    }
    manifest = planted.write_study(project / "lab", base, runs)

    # Workers that wait from an earlier test have its environment.
    get_reusable_executor().shutdown()

    def measured(cache: str, workers: int, **environment: str) -> dict[str, bytes]:
        for name, value in {"THREEGATES_CACHE": str(tmp_path / cache), **environment}.items():
            monkeypatch.setenv(name, value)
        records = tmp_path / f"records of {cache}"
        study = Study.open("principal-overlap", manifest=manifest, records=records).ensure(workers)
        assert len(study.jobs) == 3 and not study.missing()
        return {path.name: path.read_bytes() for path in records.rglob("*.parquet")}

    wanted = measured("whole", 1, THREEGATES_BACKEND="processes", THREEGATES_SCHEDULER="")
    sizes = sorted(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    # Each of the base's matrices once, for all of its runs.
    assert len(sizes) == 7
    limit = 3 * (sizes[-1] + 4096)
    assert limit < sum(sizes)
    found = measured("small", 2, THREEGATES_BACKEND=backend, THREEGATES_CACHE_GIB=str(limit / 2**30))
    held = [path.stat().st_size for path in (tmp_path / "small").iterdir()]
    assert len(held) >= 3 and sum(held) <= limit
    assert found == wanted


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path):
    code = """
        import sys, time
        from pathlib import Path
        import torch
        from threegates.measures import base_cache
        def slow(tensors, path, metadata):
            Path(path).write_bytes(b"half")
            print("writing", flush=True)
            time.sleep(60)
        base_cache.save_file = slow
        base_cache.BaseCache(Path(sys.argv[1]), 1 << 30).decompose(torch.ones(4, 3), 2, "fast")
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    started = time.time()
    BaseCache(tmp_path, 1 << 30).decompose(torch.ones(4, 3), 2, "fast")
    found = list(tmp_path.iterdir())
    assert [path.suffix for path in found] == [".safetensors"]
    assert found[0].stat().st_mtime >= started - 1
