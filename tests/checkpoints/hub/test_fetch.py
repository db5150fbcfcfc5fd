"""Whole downloads: what they check, how they go on after a kill, that the client accepts them as its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
from safetensors.torch import save_file

from tests.hub.loopback import Fault, LoopbackHub
from threegates.checkpoints.hub import download, transfer
from threegates.checkpoints.hub.snapshots import PATTERNS, fetch
from threegates.checkpoints.manifests.manifest import Hub
from threegates.checkpoints.tensors import Checkpoint, sha256_of
from threegates.errors import CheckpointError

REPO = "org/llama"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(transfer, "FIRST_PAUSE", 0.0)


@pytest.fixture
def hub(llama):
    with LoopbackHub({REPO: llama[0]}) as hub:
        yield hub


@pytest.fixture
def shard_name(llama) -> str:
    return max(llama[0].glob("model-*.safetensors"), key=lambda path: path.stat().st_size).name


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Two shards of 6 MB each, so that a kill can fall into the middle of one."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": False}))
    weight_map = {}
    for number in (1, 2):
        name, file = f"model.layers.{number}.mlp.up_proj.weight", f"model-0000{number}-of-00002.safetensors"
        values = torch.arange(1500 * 1000).reshape(1500, 1000) * number
        save_file({name: values.float()}, folder / file, {"format": "pt"})
        weight_map[name] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def refusal(cache: Path, hub: LoopbackHub, repo: str = REPO) -> str:
    with pytest.raises(CheckpointError) as caught:
        fetch(repo, cache, endpoint=hub.url)
    assert caught.value.remedy
    return str(caught.value)


def partial(cache: Path) -> list[Path]:
    return sorted(cache.glob("models--*/blobs/*.incomplete"))


def same(folder: Path, other: Path) -> bool:
    names = sorted(path.name for path in other.iterdir())
    return names == sorted(path.name for path in folder.iterdir()) and all(
        (folder / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def test_the_client_finds_what_was_fetched_and_asks_for_nothing(hub, llama, tmp_path):
    snapshot = fetch(REPO, tmp_path, endpoint=hub.url)
    assert same(snapshot.folder, llama[0])
    hub.requests.clear()
    settings = {"revision": snapshot.revision, "cache_dir": tmp_path, "endpoint": hub.url}
    patterns = list(PATTERNS)
    assert snapshot_download(REPO, allow_patterns=patterns, **settings) == str(snapshot.folder)
    for name in hub.files(REPO):
        assert hf_hub_download(REPO, name, **settings) == str(snapshot.folder / name)
    assert hub.requests == []
    report = scan_cache_dir(tmp_path)
    assert not report.warnings
    (repo,) = report.repos
    (revision,) = repo.revisions
    assert {file.file_name for file in revision.files} == set(hub.files(REPO))
    assert revision.refs == {"main"}


def test_a_text_and_an_entry_s_source_are_the_same(hub, tmp_path):
    commit = hub.commit(REPO)
    first = fetch(f"{REPO}@{commit}", tmp_path, endpoint=hub.url)
    hub.requests.clear()
    assert fetch(Hub(repo=REPO, revision=commit), tmp_path, endpoint=hub.url) == first
    assert hub.requests == []
    assert fetch(REPO, tmp_path, endpoint=hub.url) == first
    assert [path for _, path in hub.requests if "resolve" in path] == []
    hub.requests.clear()
    assert fetch(REPO, tmp_path, offline=True) == fetch(f"{REPO}@{commit}", tmp_path, offline=True) == first
    assert hub.requests == []


def test_transformers_reads_it_without_network(hub, llama, tmp_path):
    fetch(REPO, tmp_path / "hub", endpoint=hub.url)
    hub.requests.clear()
    script = (
        "import sys; from transformers import AutoModelForCausalLM as A\n"
        "model = A.from_pretrained(sys.argv[1], dtype='bfloat16')\n"
        "print(model.state_dict()[sys.argv[2]].float().sum().item())"
    )
    settings = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_ENDPOINT": hub.url}
    name = "model.layers.0.self_attn.q_proj.weight"
    done = subprocess.run(
        [sys.executable, "-c", script, REPO, name],
        env=os.environ | settings | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert float(done.stdout) == llama[1][name].float().sum().item()
    assert hub.requests == []


def test_a_blob_that_another_repository_s_client_fetched_is_not_fetched_again(hub, tmp_path, shard_name):
    settings = {"cache_dir": tmp_path, "endpoint": hub.url}
    hf_hub_download(REPO, shard_name, **settings)
    hub.served.clear()
    fetch(REPO, tmp_path, endpoint=hub.url)
    assert shard_name not in hub.served


def test_a_snapshot_of_which_a_file_was_deleted_is_completed(hub, llama, tmp_path, shard_name):
    locked = f"{REPO}@{hub.commit(REPO)}"
    link = fetch(locked, tmp_path, endpoint=hub.url).folder / shard_name
    link.resolve().unlink()
    hub.served.clear()
    assert same(fetch(locked, tmp_path, endpoint=hub.url).folder, llama[0])
    assert dict(hub.served) == {"": hub.served[""], shard_name: link.stat().st_size}
    link.unlink()
    hub.served.clear()
    assert same(fetch(locked, tmp_path, endpoint=hub.url).folder, llama[0])
    assert shard_name not in hub.served


# --- going on


def test_a_broken_download_goes_on_in_another_run(hub, llama, tmp_path, shard_name):
    size = (llama[0] / shard_name).stat().st_size
    hub.faults.append(Fault("drop", shard_name, at=size // 2))
    assert "fails again and again" in refusal(tmp_path, hub)
    # Of the others, which stopped with it, something may be left too.
    left = tmp_path / f"models--org--llama/blobs/{sha256_of(llama[0] / shard_name)}.incomplete"
    assert left.stat().st_size == size // 2
    hub.faults.clear()
    hub.served.clear()
    assert same(fetch(REPO, tmp_path, endpoint=hub.url).folder, llama[0])
    assert hub.served[shard_name] == size - size // 2
    assert partial(tmp_path) == []


def test_a_server_that_ignores_ranges_makes_it_begin_anew_but_not_for_ever(hub, llama, tmp_path, shard_name):
    hub.faults += [Fault("drop", shard_name, at=100), Fault("ignore-range", shard_name)]
    assert "sends the whole file" in refusal(tmp_path, hub)
    assert sha256_of(llama[0] / shard_name) not in [path.stem for path in partial(tmp_path)]
    hub.faults[0] = Fault("drop", shard_name, at=100, times=1)
    hub.requests.clear()
    assert same(fetch(REPO, tmp_path, endpoint=hub.url).folder, llama[0])
    assert hub.asked(shard_name) == 3  # the one that broke, the one that was ignored, the whole


@pytest.mark.parametrize("junk", [b"x" * 50, b"x" * 10**6])
def test_a_damaged_beginning_is_found_and_removed(hub, llama, tmp_path, shard_name, junk):
    blob = sha256_of(llama[0] / shard_name)
    folder = tmp_path / "models--org--llama" / "blobs"
    folder.mkdir(parents=True)
    (folder / f"{blob}.incomplete").write_bytes(junk)
    if len(junk) < (llama[0] / shard_name).stat().st_size:
        message = refusal(tmp_path, hub)
        assert f"{shard_name} is not the file that the Hub lists" in message
        assert f"expected: sha256 {blob}" in message
    assert same(fetch(REPO, tmp_path, endpoint=hub.url).folder, llama[0])
    assert partial(tmp_path) == []


@pytest.mark.slow
def test_a_kill_in_the_middle_repeats_nothing_but_the_piece_at_hand(large, tmp_path):
    script = (
        "import sys; from threegates.checkpoints.hub.snapshots import fetch; fetch(sys.argv[1], sys.argv[2])"
    )
    sizes = {path.name: path.stat().st_size for path in large.glob("model-*.safetensors")}
    with LoopbackHub({REPO: large}) as hub:
        command = [sys.executable, "-c", script, f"{REPO}@{hub.commit(REPO)}", str(tmp_path)]
        source = Path(__file__).parents[3] / "src"
        settings = {"HF_ENDPOINT": hub.url, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        hub.faults.append(Fault("slow", max(sizes), at=1 << 18, seconds=1.0))
        run = subprocess.Popen(command, env=os.environ | settings)
        while (hub.served[max(sizes)] < 2**20 or len(partial(tmp_path)) != 1) and run.poll() is None:
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    (left,) = partial(tmp_path)
    held = left.stat().st_size
    assert 2**19 <= held < sizes[max(sizes)]
    with LoopbackHub({REPO: large}) as hub:  # the first may still be sending
        subprocess.run(command, env=os.environ | settings | {"HF_ENDPOINT": hub.url}, check=True, timeout=300)
        assert {name: hub.served[name] for name in sizes} == {
            min(sizes): 0,
            max(sizes): sizes[max(sizes)] - held,
        }
        assert partial(tmp_path) == []
        hub.requests.clear()
        snapshot = fetch(f"{REPO}@{hub.commit(REPO)}", tmp_path, endpoint=hub.url)
        assert hub.requests == []
    assert same(snapshot.folder, large)
    assert Checkpoint.open(snapshot.folder).digest() == Checkpoint.open(large).digest()


def test_two_at_once_fetch_once(hub, llama, tmp_path, shard_name):
    hub.faults.append(Fault("slow", shard_name, at=200, seconds=0.05))
    script = (
        "import sys; from threegates.checkpoints.hub.snapshots import fetch; fetch(sys.argv[1], sys.argv[2])"
    )
    source = Path(__file__).parents[3] / "src"
    settings = {"HF_ENDPOINT": hub.url, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, REPO, str(tmp_path)]
    runs = [subprocess.Popen(command, env=os.environ | settings) for _ in range(2)]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    assert hub.served[shard_name] == (llama[0] / shard_name).stat().st_size
    assert same(fetch(REPO, tmp_path, offline=True).folder, llama[0])


def test_where_one_file_fails_the_others_stop_and_keep_what_they_have(large, tmp_path):
    first, second = sorted(path.name for path in large.glob("model-*.safetensors"))
    with LoopbackHub({REPO: large}) as hub:
        hub.faults += [
            Fault("slow", first, at=1 << 16, seconds=0.1),
            Fault("slow", second, at=1 << 20, seconds=0.1),
            Fault("flip-bit", second, at=5000),
        ]
        assert f"{second} is not the file that the Hub lists" in refusal(tmp_path, hub)
        (left,) = partial(tmp_path)
        held = left.stat().st_size
        assert 0 < held < (large / first).stat().st_size
    with LoopbackHub({REPO: large}) as hub:  # the first may still be sending
        assert same(fetch(REPO, tmp_path, endpoint=hub.url).folder, large)
        assert hub.served[first] == (large / first).stat().st_size - held


# --- the disk, the line, what is shown


def test_a_small_disk_is_seen_before_anything_is_fetched(hub, tmp_path, monkeypatch, llama, shard_name):
    needed = sum(path.stat().st_size for path in llama[0].glob("*.safetensors"))
    usage = type("Usage", (), {"free": download.SPARE + needed - 1})
    monkeypatch.setattr("threegates.checkpoints.hub.download.shutil.disk_usage", lambda _: usage)
    message = refusal(tmp_path, hub)
    assert "the disk has too little space" in message
    assert "nothing was fetched" in message
    assert not any(name.endswith("safetensors") for name in hub.served)
    # What a broken run left counts as fetched.
    monkeypatch.undo()
    monkeypatch.setattr(transfer, "FIRST_PAUSE", 0.0)
    hub.faults.append(Fault("drop", shard_name, at=100))
    refusal(tmp_path, hub)
    hub.faults.clear()
    monkeypatch.setattr("threegates.checkpoints.hub.download.shutil.disk_usage", lambda _: usage)
    assert same(fetch(REPO, tmp_path, endpoint=hub.url).folder, llama[0])


def test_a_file_goes_where_the_hub_redirects_to_without_the_token(hub, llama, tmp_path, monkeypatch):
    token = "hf_" + "klmnopqrst" * 3
    monkeypatch.setenv("HF_TOKEN", token)
    hub.faults.append(Fault("redirect"))
    assert same(fetch(REPO, tmp_path, endpoint=hub.url).folder, llama[0])
    here, elsewhere = (url.removeprefix("http://") for url in (hub.url, hub.elsewhere))
    tokens = {host: {value for one, value in hub.tokens if one == host} for host in (here, elsewhere)}
    assert tokens == {here: {f"Bearer {token}"}, elsewhere: {None}}
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and token.encode() in p.read_bytes()]


@pytest.mark.parametrize("kind", ["not-found", "unauthorised", "denied", "other-range", "gated", "flip-bit"])
def test_no_message_holds_the_token_and_nothing_half_written_has_a_name(
    hub, tmp_path, monkeypatch, shard_name, kind
):
    token = "hf_" + "klmnopqrst" * 3
    monkeypatch.setenv("HF_TOKEN", token)
    hub.faults.append(Fault(kind, "" if kind == "gated" else shard_name, at=300))
    message = refusal(tmp_path, hub)
    assert token not in message
    for path in tmp_path.glob("models--*/blobs/*"):
        if path.suffix != ".incomplete" and len(path.name) == 64:
            assert sha256_of(path) == path.name


def test_a_busy_hub_is_given_the_time_it_asks_for(hub, llama, tmp_path, monkeypatch, shard_name):
    waits: list[float] = []
    monkeypatch.setattr("threegates.checkpoints.hub.transfer.time.sleep", waits.append)
    hub.faults += [Fault("busy", shard_name, times=1, wait="7"), Fault("busy", "tree", times=1, wait="9")]
    assert same(fetch(REPO, tmp_path, endpoint=hub.url).folder, llama[0])
    assert [round(wait // 1) for wait in waits] == [9, 7]


def test_progress_is_shown_on_a_terminal_and_nowhere_else(hub, tmp_path, monkeypatch, capsys):
    fetch(REPO, tmp_path / "quiet", endpoint=hub.url)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    fetch(REPO, tmp_path / "shown", endpoint=hub.url)
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "3 files" in shown
    fetch(REPO, tmp_path / "shown", endpoint=hub.url)
    assert capsys.readouterr().err == ""
