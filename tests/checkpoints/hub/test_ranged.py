"""Checkpoints read by ranges: bit for bit what the downloaded folder holds, whatever the line does."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints.made import in_codes
from tests.hub.loopback import Fault, LoopbackHub, shard
from threegates.checkpoints.hub import transfer
from threegates.checkpoints.hub.range_cache import RangeCache
from threegates.checkpoints.hub.ranged import RangedCheckpoint, open_ranged
from threegates.checkpoints.hub.snapshots import fetch
from threegates.checkpoints.pairs import load_pair
from threegates.checkpoints.tensors import INDEX, Checkpoint
from threegates.errors import CheckpointError

REPO, TIED = "org/llama", "org/qwen"
NAME = "model.layers.1.mlp.down_proj.weight"
GIB = 2**30


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """No second is waited where the server asks for none."""
    monkeypatch.setattr(transfer, "FIRST_PAUSE", 0.0)


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Seconds that would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr("threegates.checkpoints.hub.transfer.time.sleep", waited.append)
    return waited


@pytest.fixture
def hub(llama, qwen2):
    with LoopbackHub({REPO: llama[0], TIED: qwen2[0]}) as hub:
        yield hub


@pytest.fixture
def cache(tmp_path) -> RangeCache:
    return RangeCache(tmp_path / "ranges", GIB)


def opened(hub: LoopbackHub, cache: RangeCache, repo: str = REPO, **settings: object) -> RangedCheckpoint:
    return open_ranged(repo, hub.commit(repo), endpoint=hub.url, cache=cache, **settings)


def refusal(hub: LoopbackHub, cache: RangeCache, repo: str = REPO, revision: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_ranged(repo, revision, endpoint=hub.url, cache=cache)
    assert caught.value.remedy
    assert "/tmp" not in str(caught.value).replace(str(cache.folder), "")
    return str(caught.value)


def left_behind(cache: RangeCache) -> list[Path]:
    return [path for path in cache.folder.rglob("*") if "partial" in path.name]


def kept(cache: RangeCache) -> list[Path]:
    return sorted(cache.folder.glob("ranges/*/*.range"))


def file_of(checkpoint: Checkpoint, name: str = NAME) -> str:
    return checkpoint.info(name).file.name


# --- what it gives


@pytest.mark.parametrize("repo", [REPO, TIED])
def test_tensors_digest_and_shapes_are_those_of_the_downloaded_folder(hub, cache, tmp_path, repo):
    local = Checkpoint.open(fetch(repo, tmp_path / "hub", endpoint=hub.url).folder)
    ranged = opened(hub, cache, repo)
    assert ranged.config == local.config
    assert ranged.digest() == local.digest()
    assert list(ranged.infos) == list(local.infos)
    for name, info in local.infos.items():
        twin = ranged.info(name)
        assert (twin.dtype, twin.shape, twin.offsets, twin.alias_of) == (
            info.dtype,
            info.shape,
            info.offsets,
            info.alias_of,
        )
        assert ranged.stored(name).dtype == local.stored(name).dtype
        assert (
            ranged.stored(name)
            .flatten()
            .view(torch.uint8)
            .equal(local.stored(name).flatten().view(torch.uint8))
        )
    pair = load_pair(ranged, local, next(iter(local.infos)))
    assert torch.equal(pair.base, pair.tuned)


def test_a_checkpoint_of_one_file_is_the_same_in_parts(hub, cache, qwen2, tmp_path):
    parts = shard(qwen2[0], tmp_path / "parts", 3)
    with LoopbackHub({REPO: parts}) as other:
        ranged = opened(other, cache)
        assert len(ranged.files()) == 1 + len(list(parts.glob("model-*")))
        assert ranged.digest() == Checkpoint.open(parts).digest()
        for name, tensor in qwen2[1].items():
            assert torch.equal(ranged.stored(name), tensor)


def test_only_headers_and_the_tensors_that_are_asked_for_are_read(hub, cache, llama, monkeypatch):
    monkeypatch.setattr("threegates.checkpoints.hub.remote_headers.FIRST_BYTES", 64)
    ranged = opened(hub, cache)
    read = {name: hub.served[name] for name in hub.files(REPO) if name.endswith("safetensors")}
    for name, count in read.items():
        length = struct.unpack("<Q", (llama[0] / name).read_bytes()[:8])[0]
        assert count == 8 + length
    hub.served.clear()
    tensor = ranged.stored(NAME)
    assert dict(hub.served) == {file_of(ranged): tensor.nbytes}
    assert torch.equal(tensor, llama[1][NAME])


def test_names_and_errors_speak_of_the_repository_and_not_of_this_machine(hub, cache):
    ranged = opened(hub, cache)
    place = f"{REPO}@{hub.commit(REPO)}"
    assert str(ranged.folder) == place
    assert str(ranged.files()[0]) == f"{place}/config.json"
    assert ranged.revision == hub.commit(REPO)
    assert ranged.repo == REPO
    with pytest.raises(CheckpointError, match="there is no tensor 'x'"):
        ranged.stored("x")


def test_rows_of_a_matrix_are_a_range_of_their_own(hub, cache, llama):
    name = "model.embed_tokens.weight"
    ranged, whole = opened(hub, cache), llama[1][name]
    hub.served.clear()
    assert torch.equal(ranged.stored_rows(name, 5, 9), whole[5:9])
    assert dict(hub.served) == {file_of(ranged, name): 4 * whole[0].nbytes}
    assert ranged.stored_rows(name, 3, 3).shape == (0, whole.shape[1])
    ranged.stored(name)
    hub.requests.clear()
    assert torch.equal(ranged.stored_rows(name, 0, 48), whole)
    assert torch.equal(ranged.stored_rows(name, 40, 47), whole[40:47])
    assert hub.requests == []
    for start, stop in ((-1, 2), (3, 2), (0, 49)):
        with pytest.raises(CheckpointError, match="no such rows"):
            ranged.stored_rows(name, start, stop)


def test_the_newest_commit_and_an_older_one(llama, copy_of, cache):
    older = copy_of(llama[0], "older")
    config = json.loads((older / "config.json").read_text())
    (older / "config.json").write_text(json.dumps(config | {"note": "older"}))
    with LoopbackHub({REPO: [older, llama[0]]}) as hub:
        first, last = hub.commits(REPO)
        assert open_ranged(REPO, endpoint=hub.url, cache=cache).revision == last
        assert open_ranged(REPO, "main", endpoint=hub.url, cache=cache).revision == last
        old = open_ranged(REPO, first, endpoint=hub.url, cache=cache)
        assert (old.revision, old.config["note"]) == (first, "older")
        # Both commits hold the same shards: a tensor of one is one of the other.
        old.stored(NAME)
        hub.served.clear()
        open_ranged(REPO, last, endpoint=hub.url, cache=cache).stored(NAME)
        assert file_of(old) not in hub.served


def test_files_that_git_holds_without_lfs(llama, cache, tmp_path):
    with LoopbackHub({REPO: llama[0]}, lfs=False) as hub:
        ranged = opened(hub, cache)
        assert ranged.digest() == Checkpoint.open(llama[0]).digest()
        assert torch.equal(ranged.stored(NAME), llama[1][NAME])
        hub.requests.clear()
        assert opened(hub, cache).digest() == ranged.digest()
        assert hub.requests == []
        assert (
            Checkpoint.open(fetch(REPO, tmp_path / "hub", endpoint=hub.url).folder).digest()
            == ranged.digest()
        )


# --- the cache


def test_a_second_run_makes_no_request(hub, cache, llama):
    for name in llama[1]:
        opened(hub, cache).stored(name)
    hub.requests.clear()
    again = opened(hub, cache)
    assert all(torch.equal(again.stored(name), tensor) for name, tensor in llama[1].items())
    assert again.digest() == Checkpoint.open(llama[0]).digest()
    assert hub.requests == []


def test_offline_it_gives_what_is_kept_and_says_what_is_not(hub, cache, llama):
    with pytest.raises(CheckpointError, match=r"listing.json of a repository is not in the cache"):
        opened(hub, cache, offline=True)
    opened(hub, cache).stored(NAME)
    hub.requests.clear()
    offline = opened(hub, cache, offline=True)
    assert torch.equal(offline.stored(NAME), llama[1][NAME])
    assert (offline.is_cached(NAME), offline.is_cached("model.norm.weight")) == (True, False)
    with pytest.raises(CheckpointError) as caught:
        offline.stored("model.norm.weight")
    assert "tensor 'model.norm.weight' is not in the cache, and the network is switched off" in str(
        caught.value
    )
    with pytest.raises(CheckpointError) as caught:
        open_ranged(REPO, endpoint=hub.url, cache=cache, offline=True)
    assert hub.commit(REPO) in str(caught.value)
    assert hub.requests == []


def test_hf_hub_offline_is_honoured(hub, cache):
    opened(hub, cache).stored(NAME)
    hub.requests.clear()
    script = (
        "import sys; from threegates.checkpoints.hub.ranged import open_ranged;"
        " c = open_ranged(*sys.argv[1:3]);"
        f" print(c.offline, c.stored({NAME!r}).float().sum().item())"
    )
    settings = {"HF_HUB_OFFLINE": "1", "THREEGATES_RANGES": str(cache.folder), "HF_ENDPOINT": hub.url}
    done = in_a_process(script, REPO, hub.commit(REPO), **settings)
    assert done.stdout.split()[0] == "True"
    assert hub.requests == []


def in_a_process(script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess:
    source = Path(__file__).parents[3] / "src"
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"} | settings
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


@pytest.mark.parametrize("damage", ["flip", "cut", "seal"])
def test_a_damaged_range_is_fetched_anew(hub, cache, llama, damage):
    opened(hub, cache).stored(NAME)
    (path,) = kept(cache)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[-1:]
    else:
        content[40 if damage == "flip" else 0] ^= 1
    path.write_bytes(content)
    hub.requests.clear()
    assert torch.equal(opened(hub, cache).stored(NAME), llama[1][NAME])
    assert hub.asked() == 1
    hub.requests.clear()
    assert torch.equal(opened(hub, cache).stored(NAME), llama[1][NAME])
    assert hub.requests == []


def test_damaged_metadata_is_fetched_anew(hub, cache, llama):
    opened(hub, cache)
    small = [path for path in cache.folder.glob("repositories/**/*") if path.is_file()]
    assert len(small) == 3 + len(list(llama[0].glob("model-*.safetensors")))
    for path in small:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        assert opened(hub, cache).digest() == Checkpoint.open(llama[0]).digest()
    hub.requests.clear()
    opened(hub, cache)
    assert hub.requests == []


def test_the_sha256_of_a_tensor_is_remembered_and_another_one_is_refused(hub, cache, llama):
    ranged = opened(hub, cache)
    assert ranged.tensor_sha256(NAME) is None
    ranged.stored(NAME)
    content = llama[1][NAME].flatten().view(torch.uint8).numpy().tobytes()
    assert ranged.tensor_sha256(NAME) == hashlib.sha256(content).hexdigest()
    (path,) = kept(cache)
    path.unlink()
    hub.faults.append(Fault("flip-bit", file_of(ranged), at=ranged.info(NAME).offsets[0] + 3))
    for limit in (cache.limit, 0):
        again = opened(hub, RangeCache(cache.folder, limit))
        with pytest.raises(CheckpointError, match="other bytes than the last time") as caught:
            again.stored(NAME)
        assert ranged.tensor_sha256(NAME) in str(caught.value)
        assert (kept(cache), left_behind(cache)) == ([], [])
    hub.faults.clear()
    assert torch.equal(opened(hub, cache).stored(NAME), llama[1][NAME])


def test_the_bound_is_kept_and_the_least_recently_used_go_first(hub, tmp_path, llama):
    names = [name for name in llama[1] if "mlp" in name]
    one = llama[1][names[0]].nbytes + 32
    cache = RangeCache(tmp_path / "ranges", 3 * one)
    ranged = opened(hub, cache)
    for age, name in enumerate(names[:3]):
        ranged.stored(name)
        path = cache._path(ranged._key(ranged.info(name), ranged.info(name).offsets), ".range")
        os.utime(path, (age, age))
    ranged.stored(names[0])  # used again: the second is the oldest now
    for name in names[3:]:
        assert torch.equal(ranged.stored(name), llama[1][name])
        assert sum(path.stat().st_size for path in kept(cache)) <= cache.limit
    assert len(kept(cache)) == 3
    assert ranged.is_cached(names[0]) == (len(names) == 5)
    assert not ranged.is_cached(names[1])
    assert all(ranged.tensor_sha256(name) for name in names)


@pytest.mark.parametrize("limit", [0, 100])
def test_what_does_not_fit_is_read_and_not_kept(hub, tmp_path, llama, limit):
    cache = RangeCache(tmp_path / "ranges", limit)
    ranged = opened(hub, cache)
    for _ in range(2):
        hub.served.clear()
        assert torch.equal(ranged.stored(NAME), llama[1][NAME])
        assert dict(hub.served) == {file_of(ranged): llama[1][NAME].nbytes}
    assert (kept(cache), left_behind(cache)) == ([], [])


def test_a_cache_that_cannot_be_written_stops_nothing(hub, tmp_path, llama):
    (tmp_path / "file").write_text("no folder")
    cache = RangeCache(tmp_path / "file", GIB)
    assert torch.equal(opened(hub, cache).stored(NAME), llama[1][NAME])


@pytest.mark.parametrize("text", ["much", "-1", "inf", "nan"])
def test_a_limit_that_is_no_size(monkeypatch, text):
    monkeypatch.setenv("THREEGATES_RANGES_GIB", text)
    with pytest.raises(CheckpointError, match="the limit of the cache of ranges is not a size"):
        RangeCache.named()


def test_the_environment_names_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("THREEGATES_RANGES", str(tmp_path))
    monkeypatch.setenv("THREEGATES_RANGES_GIB", "0.5")
    assert RangeCache.named() == RangeCache(tmp_path, GIB // 2)
    monkeypatch.delenv("THREEGATES_RANGES")
    monkeypatch.delenv("THREEGATES_RANGES_GIB")
    assert RangeCache.named().folder.name == "threegates-ranges"
    assert RangeCache.named().limit == 5 * GIB


def test_several_at_once_share_a_cache_and_its_bound(hub, tmp_path, llama):
    """Eight readers of all tensors, in two processes of four threads, in a cache that holds three of them."""
    limit = 3 * (llama[1][NAME].nbytes + 32)
    script = (
        "import sys, threading, hashlib\n"
        "from threegates.checkpoints.hub.ranged import open_ranged\n"
        "from threegates.checkpoints.hub.range_cache import RangeCache\n"
        "folder, limit, url, repo, commit = sys.argv[1:]\n"
        "cache = RangeCache(__import__('pathlib').Path(folder), int(limit))\n"
        "def read():\n"
        "    c = open_ranged(repo, commit, endpoint=url, cache=cache)\n"
        "    for name in c.infos:\n"
        "        t = c.stored(name).clone()\n"
        "        sums.append((name, t.double().sum().item()))\n"
        "sums = []\n"
        "threads = [threading.Thread(target=read) for _ in range(4)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "print(len(sums), len(set(sums)))\n"
    )
    arguments = (str(tmp_path / "ranges"), str(limit), hub.url, REPO, hub.commit(REPO))
    results: list[str] = []
    runs = [
        threading.Thread(target=lambda: results.append(in_a_process(script, *arguments).stdout))
        for _ in range(2)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert results == [f"{4 * len(llama[1])} {len(llama[1])}\n"] * 2
    cache = RangeCache(tmp_path / "ranges", limit)
    assert sum(path.stat().st_size for path in kept(cache)) <= limit
    assert left_behind(cache) == []


def test_what_a_killed_process_left_goes_and_what_is_being_written_stays(hub, cache, llama):
    import fcntl

    opened(hub, cache)
    folder = cache.folder / "ranges" / "ab"
    folder.mkdir(parents=True)
    dead, alive = folder / "abc-0-8.1-ff.partial", folder / "abc-0-8.2-ff.partial"
    dead.write_bytes(b"half")
    alive.write_bytes(b"half")
    with open(alive, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        opened(hub, cache).stored(NAME)
        assert left_behind(cache) == [alive]


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_tensor_repeats_that_tensor_and_no_other(hub, cache, llama):
    script = (
        "import sys; from threegates.checkpoints.hub.ranged import open_ranged\n"
        "c = open_ranged(sys.argv[1], sys.argv[2])\n"
        "for name in c.infos: print(name, flush=True); c.stored(name)"
    )
    source = Path(__file__).parents[3] / "src"
    settings = {"THREEGATES_RANGES": str(cache.folder), "HF_ENDPOINT": hub.url, "PYTHONPATH": str(source)}
    settings |= {"OMP_NUM_THREADS": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "300"}
    ranged = opened(hub, cache)
    names = list(ranged.infos)
    files = [file_of(ranged, name) for name in names]
    hung = files.index(next(file for file in files if file not in files[:2]))
    hub.faults.append(Fault("slow", files[hung], at=100, seconds=300.0))
    run = subprocess.Popen(
        [sys.executable, "-c", script, REPO, hub.commit(REPO)],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        text=True,
    )
    begun = [run.stdout.readline().strip() for _ in range(hung + 1)]
    while not left_behind(cache) and run.poll() is None:
        time.sleep(0.005)
    run.kill()
    run.wait()
    (left,) = left_behind(cache)
    assert begun == names[: hung + 1]
    assert [ranged.is_cached(name) for name in begun] == [True] * hung + [False]
    with LoopbackHub(hub.repos) as other:  # the first may still be sending
        in_a_process(script, REPO, hub.commit(REPO), **settings | {"HF_ENDPOINT": other.url})
        assert not left.exists()
        missing = [name for name in llama[1] if name not in begun[:-1]]
        sent = sum(other.served[path.name] for path in llama[0].glob("*.safetensors"))
        assert sent == sum(llama[1][name].nbytes for name in missing)
    assert all(ranged.is_cached(name) for name in llama[1])
    assert all(torch.equal(ranged.stored(name), tensor) for name, tensor in llama[1].items())


# --- faults of the line


def ranges_of(hub: LoopbackHub, name: str) -> int:
    return sum(method == "GET" and path.endswith(name) for method, path in hub.requests)


def test_a_broken_connection_is_taken_up_behind_the_last_byte(hub, cache, llama):
    name = "model.embed_tokens.weight"
    ranged, whole = opened(hub, cache), llama[1][name]
    hub.served.clear()
    hub.requests.clear()
    hub.faults.append(Fault("hang-up", file_of(ranged, name), at=500, times=3))
    assert torch.equal(ranged.stored(name), whole)
    assert hub.served[file_of(ranged, name)] == whole.nbytes
    assert ranges_of(hub, file_of(ranged, name)) == 1 + min(3, whole.nbytes // 500)
    assert left_behind(cache) == []


@pytest.mark.parametrize("kind", ["broken", "busy"])
def test_a_busy_server_is_asked_again(hub, cache, llama, waits, kind):
    ranged = opened(hub, cache)
    hub.faults.append(Fault(kind, file_of(ranged), times=3))
    assert torch.equal(ranged.stored(NAME), llama[1][NAME])
    assert len(waits) == 3


def test_pauses_grow_and_differ(hub, cache, waits, monkeypatch):
    monkeypatch.setattr(transfer, "FIRST_PAUSE", 1.0)
    ranged = opened(hub, cache)
    hub.faults.append(Fault("broken", file_of(ranged)))
    with pytest.raises(CheckpointError, match="fails again and again") as caught:
        ranged.stored(NAME)
    assert "status 503, 6 times in a row" in str(caught.value)
    assert len(waits) == transfer.ATTEMPTS - 1
    for number, wait in enumerate(waits):
        assert 0.5 * 2**number <= wait <= 2**number
    assert len(set(waits)) == len(waits)
    assert (kept(cache), left_behind(cache)) == ([], [])


def test_a_server_that_asks_to_wait_is_given_that_time(hub, cache, llama, waits):
    ranged = opened(hub, cache)
    hub.faults.append(Fault("busy", file_of(ranged), times=1, wait="7"))
    assert torch.equal(ranged.stored(NAME), llama[1][NAME])
    assert len(waits) == 1
    assert 7 <= waits[0] <= 8
    hub.faults.append(Fault("busy", file_of(ranged), wait="86400"))
    with pytest.raises(CheckpointError) as caught:
        ranged.stored("model.layers.1.mlp.up_proj.weight")
    assert "asks to wait 86400 s" in str(caught.value)
    assert len(waits) == 1


def test_a_date_to_come_back_at(hub, cache, llama, waits):
    from datetime import UTC, datetime, timedelta
    from email.utils import format_datetime

    ranged = opened(hub, cache)
    then = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    hub.faults.append(Fault("busy", file_of(ranged), times=1, wait=then))
    ranged.stored(NAME)
    assert 50 <= waits[0] <= 61


@pytest.mark.parametrize("place", ["info", "tree", "config.json", INDEX])
def test_a_busy_hub_is_asked_again_for_each_kind_of_answer(hub, cache, llama, waits, place):
    hub.faults += [Fault("busy", place, times=1, wait="3"), Fault("broken", place, times=1)]
    ranged = open_ranged(REPO, endpoint=hub.url, cache=cache)
    assert ranged.digest() == Checkpoint.open(llama[0]).digest()
    assert len(waits) == 2


def test_a_server_without_ranges_is_refused_before_its_body_is_read(hub, cache):
    ranged = opened(hub, cache)
    hub.faults.append(Fault("ignore-range", file_of(ranged)))
    with pytest.raises(CheckpointError, match="sends the whole file where a part") as caught:
        ranged.stored(NAME)
    assert "expected: status 206" in str(caught.value)
    assert (kept(cache), left_behind(cache)) == ([], [])


def test_another_range_than_was_asked_for_is_refused(hub, cache):
    ranged = opened(hub, cache)
    hub.faults.append(Fault("other-range", file_of(ranged)))
    first, last = ranged.info(NAME).offsets
    with pytest.raises(CheckpointError, match="does not send the bytes that were asked for") as caught:
        ranged.stored(NAME)
    assert f"expected: bytes {first}-{last - 1}/" in str(caught.value)
    assert f"found: bytes {first + 1}-{last}/" in str(caught.value)
    assert (kept(cache), left_behind(cache)) == ([], [])


def test_a_slow_server_is_waited_for_and_one_that_stalls_is_asked_again(hub, cache, llama, monkeypatch):
    ranged = opened(hub, cache)
    hub.faults.append(Fault("slow", file_of(ranged), at=200, seconds=0.02))
    assert torch.equal(ranged.stored(NAME), llama[1][NAME])
    hub.faults[:] = [Fault("slow", file_of(ranged), at=200, seconds=3.0, times=1)]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 1.0)
    hub.requests.clear()
    other = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(ranged.stored(other), llama[1][other])
    assert hub.asked() >= 2


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("not-found", "lists this file but does not serve it"),
        ("unauthorised", "accept the licence"),
        ("denied", "accept the licence"),
    ],
)
def test_a_refusal_says_what_to_do_and_is_not_repeated(hub, cache, waits, kind, says):
    ranged = opened(hub, cache)
    hub.faults.append(Fault(kind, file_of(ranged)))
    with pytest.raises(CheckpointError) as caught:
        ranged.stored(NAME)
    assert says in str(caught.value)
    assert waits == []
    assert (kept(cache), left_behind(cache)) == ([], [])


def test_gated_unknown_repositories_and_commits(hub, cache, waits):
    assert "correct the repository's name" in refusal(hub, cache, "org/none")
    assert "no such commit" in refusal(hub, cache, REPO, "0" * 40)
    hub.faults.append(Fault("gated"))
    assert "accept the licence" in refusal(hub, cache)
    assert waits == []


def test_a_dead_server(cache, waits):
    with LoopbackHub({}) as gone:
        url = gone.url
    with pytest.raises(CheckpointError, match="fails again and again") as caught:
        open_ranged(REPO, "0" * 40, endpoint=url, cache=cache)
    assert "check the network" in str(caught.value)
    assert len(waits) == transfer.ATTEMPTS - 1


# --- tokens


TOKEN = "hf_" + "abcdefghij" * 3


def test_the_token_goes_to_the_hub_and_not_where_it_redirects_to(hub, cache, llama, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.faults.append(Fault("redirect"))
    assert torch.equal(opened(hub, cache).stored(NAME), llama[1][NAME])
    here, elsewhere = (url.removeprefix("http://") for url in (hub.url, hub.elsewhere))
    tokens = {host: {token for one, token in hub.tokens if one == host} for host in (here, elsewhere)}
    assert tokens == {here: {f"Bearer {TOKEN}"}, elsewhere: {None}}


def test_no_message_holds_the_token_or_a_signature(hub, cache, waits, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    ranged = opened(hub, cache)
    hub.faults.append(Fault("redirect"))
    messages = []
    for kind in (
        "not-found",
        "unauthorised",
        "denied",
        "busy",
        "broken",
        "ignore-range",
        "other-range",
        "drop",
    ):
        hub.faults[1:] = [Fault(kind, file_of(ranged))]
        with pytest.raises(CheckpointError) as caught:
            ranged.stored(NAME)
        messages.append(str(caught.value))
    hub.faults[:] = [Fault("gated")]
    messages.append(refusal(hub, cache))
    messages.append(refusal(hub, cache, "org/none"))
    assert not [message for message in messages if TOKEN in message or "signed" in message]
    assert not [
        path for path in cache.folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()
    ]


def test_messages_of_others_are_scrubbed(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret-of-mine")
    text = f"at https://user:pass@host/file?X-Sig=abc with {TOKEN} and secret-of-mine."
    clean = transfer.scrubbed(text)
    assert clean == "at https://…@host/file?… with hf_… and …."


# --- hostile and unreadable repositories


def test_a_header_of_ten_gigabytes_is_refused_and_not_read(llama, copy_of, cache):
    folder = copy_of(llama[0])
    path = min(folder.glob("model-*"))
    path.write_bytes(struct.pack("<Q", 10**10) + path.read_bytes()[8:])
    with LoopbackHub({REPO: folder}) as hub:
        message = refusal(hub, cache)
        assert f"{path.name} has no readable safetensors header" in message
        assert "found: 10000000000 in a file of" in message
        assert f"where: {REPO}@{hub.commit(REPO)}/{path.name}" in message
        assert hub.served[path.name] <= path.stat().st_size


@pytest.mark.parametrize("size", [0, 5, 8, 100])
def test_a_file_that_ends_in_its_header(llama, copy_of, cache, size):
    folder = copy_of(llama[0])
    path = min(folder.glob("model-*"))
    path.write_bytes(path.read_bytes()[:size])
    with LoopbackHub({REPO: folder}) as hub:
        assert f"{path.name} has no readable safetensors header" in refusal(hub, cache)


def test_a_file_that_ends_in_its_last_tensor(llama, copy_of, cache):
    folder = copy_of(llama[0])
    path = min(folder.glob("model-*"))
    path.write_bytes(path.read_bytes()[:-1])
    with LoopbackHub({REPO: folder}) as hub:
        assert f"{path.name} is truncated: tensor" in refusal(hub, cache)


def test_what_was_refused_is_not_kept(llama, copy_of, cache):
    folder = copy_of(llama[0])
    path = min(folder.glob("model-*"))
    path.write_bytes(path.read_bytes()[:100])
    with LoopbackHub({REPO: folder}) as hub:
        refusal(hub, cache)
    assert [path for path in cache.folder.rglob("*") if path.is_file()] == []


def broken_index(folder: Path, change: dict[str, str]) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= change
    (folder / INDEX).write_text(json.dumps(index))


def test_an_index_that_leads_out_of_the_repository(llama, copy_of, cache):
    folder = copy_of(llama[0])
    broken_index(folder, {NAME: "../../secret.safetensors"})
    with LoopbackHub({REPO: folder}) as hub:
        assert "the index points outside the checkpoint's folder" in refusal(hub, cache)
        assert not [path for _, path in hub.requests if "secret" in path]


def test_a_missing_shard_and_a_tensor_in_two_of_them(llama, copy_of, cache):
    folder = copy_of(llama[0], "missing")
    broken_index(folder, {NAME: "model-9.safetensors"})
    with LoopbackHub({REPO: folder}) as hub:
        assert "shards are missing" in refusal(hub, cache)
    folder = copy_of(llama[0], "twice")
    shards = sorted(folder.glob("model-*.safetensors"))
    save_file({NAME: torch.zeros(2, 2)}, folder / "model-8.safetensors")
    broken_index(folder, {"other": "model-8.safetensors"})
    assert shards
    with LoopbackHub({REPO: folder}) as hub:
        assert f"holds tensor '{NAME}', which the index does not place there" in refusal(hub, cache)


def test_a_name_twice_in_the_index(llama, copy_of, cache):
    folder = copy_of(llama[0])
    text = (folder / INDEX).read_text()
    entry = f'"{NAME}": "model-00001-of-00003.safetensors"'
    (folder / INDEX).write_text(text.replace('"weight_map": {', f'"weight_map": {{ {entry},', 1))
    with LoopbackHub({REPO: folder}) as hub:
        assert f"lists '{NAME}' twice" in refusal(hub, cache)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["adapter_model.safetensors", "adapter_config.json"], "give it as the tuned side"),
        (["model-q4.gguf"], "a quantised GGUF file"),
        (["pytorch_model.bin"], "can run code when read"),
        (["README.md"], "neither"),
    ],
)
def test_repositories_without_weights_are_refused_by_the_names_of_their_files(tmp_path, cache, names, says):
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    with LoopbackHub({REPO: folder}) as hub:
        message = refusal(hub, cache)
        assert "has no safetensors weights" in message
        assert says in message
        assert not hub.served["pytorch_model.bin"]


def test_a_quantised_repository_is_refused_before_a_tensor_is_read(llama, copy_of, cache):
    folder = in_codes(copy_of(llama[0]), "gptq")
    with LoopbackHub({REPO: folder}) as hub:
        message = refusal(hub, cache)
    assert "the checkpoint is quantised" in message
    assert "quant_method gptq" in message
    assert "is stored as I32" in message


def test_a_quantization_config_that_was_left_over_refuses_nothing(llama, copy_of, cache):
    folder = copy_of(llama[0])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq"}})
    )
    with LoopbackHub({REPO: folder}) as hub:
        assert torch.equal(opened(hub, cache).stored(NAME), llama[1][NAME])


def test_quantised_ones_are_refused_by_their_types(tmp_path, cache):
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weight = torch.zeros(4, 4, dtype=torch.int32)
    positions = torch.zeros(1, 4, dtype=torch.int64)
    save_file(
        {"model.layers.0.self_attn.q_proj.qweight": weight, "positions": positions},
        folder / "model.safetensors",
    )
    with LoopbackHub({REPO: folder}) as hub:
        message = refusal(hub, cache)
    assert "the checkpoint is quantised" in message
    assert "q_proj.qweight" in message
    assert "stored as I32" in message


def test_numbers_that_are_no_weights_are_no_quantisation(tmp_path, cache):
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    tensors = {"model.positions": torch.arange(4)[None], "model.norm.weight": torch.tensor(2.5)}
    save_file(tensors, folder / "model.safetensors")
    with LoopbackHub({REPO: folder}) as hub:
        ranged = opened(hub, cache)
        assert torch.equal(ranged.stored("model.positions"), torch.arange(4)[None])
        assert ranged.stored("model.norm.weight").item() == 2.5


def test_a_config_that_is_damaged_on_its_way_is_not_believed(hub, cache):
    hub.faults.append(Fault("flip-bit", "config.json", at=30, times=1))
    assert "config.json is not the file that the Hub lists" in refusal(hub, cache)
    assert opened(hub, cache).config["model_type"] == "llama"
