"""Download, verification and refusal, against a stand-in for the Hub on the loopback interface."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.checkpoints.made import in_codes
from tests.hub.loopback import Fault, LoopbackHub
from threegates.checkpoints.hub.snapshots import fetch, open_entry, open_named, resolve
from threegates.checkpoints.manifests.manifest import (
    Entry,
    Folder,
    Hub,
    Manifest,
    read_manifest,
    write_manifest,
)
from threegates.checkpoints.tensors import INDEX, Checkpoint
from threegates.errors import CheckpointError

REPO = "org/llama"


@pytest.fixture
def hub(llama):
    with LoopbackHub({REPO: llama[0]}) as hub:
        yield hub


@pytest.fixture
def shard(llama) -> str:
    return min(path.name for path in llama[0].glob("model-*"))


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


def entry(revision: str | None = None, files: dict[str, str] | None = None, repo: str = REPO) -> Entry:
    return Entry(name="tuned", source=Hub(repo=repo, revision=revision), method="rl", files=files or {})


def refusal(wanted: Entry, cache: Path, **settings: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve(wanted, cache, **settings)
    assert caught.value.remedy
    return str(caught.value)


def test_an_unlocked_entry_takes_the_newest_commit_and_says_which(hub, llama, tmp_path):
    snapshot = resolve(entry(), tmp_path, endpoint=hub.url)
    assert snapshot.revision == hub.commit(REPO)
    assert digests(snapshot.folder) == digests(llama[0])


def test_a_locked_entry_is_taken_once_and_then_from_the_cache(hub, llama, tmp_path):
    locked = entry(hub.commit(REPO), digests(llama[0]))
    resolve(locked, tmp_path, endpoint=hub.url)
    hub.requests.clear()
    snapshot = resolve(locked, tmp_path, endpoint=hub.url)
    assert hub.requests == []
    assert resolve(locked, tmp_path, offline=True) == snapshot


def test_only_weights_config_and_tokenizer_are_downloaded(llama, copy_of, tmp_path):
    folder = copy_of(llama[0], "repository")
    for name in (
        "modeling_llama.py",
        "pytorch_model.bin",
        "consolidated.safetensors",
        "README.md",
        "tokenizer.json",
    ):
        (folder / name).write_text("{}")
    with LoopbackHub({REPO: folder}) as hub:
        snapshot = resolve(entry(), tmp_path / "cache", endpoint=hub.url)
    assert set(digests(snapshot.folder)) == set(digests(llama[0])) | {"tokenizer.json"}


@pytest.mark.parametrize("name", ["model-00001-of-00003.safetensors", "config.json"])
def test_a_bit_that_flips_on_the_way_is_found_also_where_the_manifest_lists_nothing(
    hub, llama, name, tmp_path
):
    hub.faults.append(Fault("flip-bit", name, at=100))
    assert f"{name} is not the file that the Hub lists" in refusal(entry(), tmp_path, endpoint=hub.url)
    hub.faults.clear()
    if name == "config.json":
        # The client has kept it.
        for path in tmp_path.glob("models--org--llama/snapshots/*/config.json"):
            path.resolve().unlink()
            path.unlink()
    snapshot = resolve(entry(), tmp_path, endpoint=hub.url)
    assert digests(snapshot.folder) == digests(llama[0])


def test_a_bit_that_flips_on_the_disk_is_found_and_the_message_helps_to_get_rid_of_it(
    hub, llama, shard, tmp_path
):
    locked = entry(hub.commit(REPO), digests(llama[0]))
    link = resolve(locked, tmp_path, endpoint=hub.url).folder / shard
    content = bytearray(link.read_bytes())
    content[-1] ^= 1
    link.resolve().write_bytes(content)
    message = refusal(locked, tmp_path, endpoint=hub.url)
    assert f"{shard} is not the file that the Hub lists" in message
    assert f"where: {link}" in message
    assert f"expected: sha256 {locked.files[shard]}" in message
    assert f"found: sha256 {hashlib.sha256(link.read_bytes()).hexdigest()}" in message
    assert f"delete {link} and {link.resolve()} and run again" in message
    assert "is not the file" in refusal(locked, tmp_path, endpoint=hub.url)
    link.resolve().unlink()
    link.unlink()
    assert resolve(locked, tmp_path, endpoint=hub.url).revision == hub.commit(REPO)


def test_a_manifest_that_lists_another_file(hub, llama, shard, tmp_path):
    locked = entry(hub.commit(REPO), digests(llama[0]) | {shard: "0" * 64})
    message = refusal(locked, tmp_path, endpoint=hub.url)
    assert f"{shard} is not the file that the manifest lists" in message
    assert f"expected: sha256 {'0' * 64}" in message
    assert f"found: sha256 {digests(llama[0])[shard]}" in message


def test_a_listed_file_that_is_not_there(hub, tmp_path):
    wanted = entry(files={"model-9.safetensors": "0" * 64})
    message = refusal(wanted, tmp_path, endpoint=hub.url)
    assert "model-9.safetensors is not the file that the manifest lists" in message
    assert "found: no such file" in message


def test_a_connection_that_breaks_once_is_taken_up_again(hub, llama, shard, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.faults.append(Fault("drop", shard, at=100, times=1))
    snapshot = resolve(entry(files=digests(llama[0])), tmp_path, endpoint=hub.url)
    assert digests(snapshot.folder) == digests(llama[0])
    assert sum(method == "GET" and path.endswith(shard) for method, path in hub.requests) == 2


def test_a_server_that_ignores_ranges_does_not_spoil_the_file(hub, llama, shard, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.faults += [Fault("drop", shard, at=100, times=1), Fault("ignore-range", shard)]
    snapshot = resolve(entry(files=digests(llama[0])), tmp_path, endpoint=hub.url)
    assert digests(snapshot.folder) == digests(llama[0])


def test_a_connection_that_always_breaks(hub, shard, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.faults.append(Fault("drop", shard, at=100))
    message = refusal(entry(), tmp_path, endpoint=hub.url)
    assert f"where: {REPO}@{hub.commit(REPO)}/{shard}" in message
    assert "the connection broke" in message
    assert "check the network" in message
    hub.faults.clear()
    assert resolve(entry(), tmp_path, endpoint=hub.url).revision == hub.commit(REPO)


def test_a_file_that_is_listed_and_not_served(hub, shard, tmp_path):
    hub.faults.append(Fault("not-found", shard))
    message = refusal(entry(), tmp_path, endpoint=hub.url)
    assert shard in message
    assert "does not serve it" in message


def test_gated_unknown_and_unlocked_repositories_each_say_what_to_do(hub, tmp_path):
    assert "correct the repository's name" in refusal(entry(repo="org/none"), tmp_path, endpoint=hub.url)
    assert "no such commit" in refusal(entry("0" * 40), tmp_path, endpoint=hub.url)
    hub.faults.append(Fault("gated"))
    assert "accept the licence" in refusal(entry(), tmp_path, endpoint=hub.url)


def test_offline_with_an_empty_cache(tmp_path):
    assert "run once with the network on" in refusal(entry(), tmp_path, offline=True)


def test_a_repository_of_pickles_is_refused_by_the_names_of_its_files(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("config.json", "pytorch_model.bin", "adapter_model.safetensors"):
        (folder / name).write_text("{}")
    with LoopbackHub({REPO: folder}) as hub:
        message = refusal(entry(), tmp_path / "cache", endpoint=hub.url)
    assert "has no safetensors weights of a whole model" in message
    assert "adapter_model.safetensors, pytorch_model.bin" in message


def test_a_quantised_model_is_refused_before_its_weights_are_fetched(llama, copy_of, tmp_path):
    folder = in_codes(copy_of(llama[0]), "awq")
    with LoopbackHub({REPO: folder}) as hub:
        message = refusal(entry(), tmp_path / "cache", endpoint=hub.url)
    assert "the checkpoint is quantised" in message and "quant_method awq" in message
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_quantization_config_that_was_left_over_refuses_no_download(llama, copy_of, tmp_path):
    folder = copy_of(llama[0])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    with LoopbackHub({REPO: folder}) as hub:
        snapshot = fetch(REPO, tmp_path / "cache", endpoint=hub.url)
    assert Checkpoint.open(snapshot.folder).infos.keys() == Checkpoint.open(folder).infos.keys()


@pytest.mark.parametrize(
    "name", ["model.safetensors-{}-of-2.safetensors", "weights/part{}.safetensors", "{}.safetensors"]
)
def test_the_shards_are_those_that_the_index_names(llama, copy_of, tmp_path, name):
    folder = copy_of(llama[0])
    index = json.loads((folder / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    called = {file: name.format(number) for number, file in enumerate(files)}
    for file, new in called.items():
        (folder / new).parent.mkdir(exist_ok=True)
        (folder / file).rename(folder / new)
    index["weight_map"] = {tensor: called[file] for tensor, file in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "consolidated.safetensors").write_text("not wanted")
    with LoopbackHub({REPO: folder}) as hub:
        snapshot = fetch(f"{REPO}@{hub.commit(REPO)}", tmp_path / "cache", endpoint=hub.url)
        asked = hub.served.total()
        again = fetch(f"{REPO}@{hub.commit(REPO)}", tmp_path / "cache", endpoint=hub.url)
        assert (again.folder, hub.served.total()) == (snapshot.folder, asked)
    checkpoint = Checkpoint.open(snapshot.folder)
    assert all(torch.equal(checkpoint.stored(name), value) for name, value in llama[1].items())
    assert not (snapshot.folder / "consolidated.safetensors").exists()


def test_a_folder_is_no_repository(tmp_path):
    wanted = Entry(name="a", source=Folder(path="a"), method="rl")
    assert "is in a folder, not on the Hub" in refusal(wanted, tmp_path)


def test_open_entry_takes_folders_and_repositories(hub, llama, copy_of, tmp_path):
    copy_of(llama[0], "runs")
    local = Entry(name="base", source=Folder(path="runs"), method="pretrain", files=digests(llama[0]))
    write_manifest(tmp_path / "manifest.yaml", Manifest(version=1, checkpoints=[local, entry()]))
    manifest = read_manifest(tmp_path / "manifest.yaml")
    base = open_entry(manifest, manifest.entry("base"))
    tuned = open_entry(manifest, manifest.entry("tuned"), tmp_path / "cache", endpoint=hub.url)
    assert (base.revision, tuned.revision) == (None, hub.commit(REPO))
    assert base.digest() == tuned.digest()
    (tmp_path / "runs" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="config.json is not the file that the manifest lists"):
        open_entry(manifest, manifest.entry("base"))


def test_open_named_takes_what_a_user_types(hub, llama, tmp_path):
    assert open_named(str(llama[0])).folder == llama[0]
    commit = hub.commit(REPO)
    for text in (REPO, f"{REPO}@{commit}", f"{REPO}@main"):
        assert open_named(text, tmp_path, endpoint=hub.url).revision == commit
    for text in (
        "nowhere",
        "a/b/c",
        f"{REPO}@a b",
        f"{REPO}@a..b",
        f"{REPO}:../x",
        f"{REPO}:",
        "../x",
        "/a/b",
    ):
        with pytest.raises(CheckpointError, match="is neither a folder nor a Hub repository"):
            open_named(text, tmp_path)


def test_ranged_is_the_same_checkpoint_without_a_file_of_it(hub, llama, tmp_path, monkeypatch, shard):
    monkeypatch.setenv("THREEGATES_RANGES", str(tmp_path / "ranges"))
    listed = digests(llama[0]) | {"tokenizer.json": "0" * 64}
    write_manifest(tmp_path / "manifest.yaml", Manifest(version=1, checkpoints=[entry(None, listed)]))
    manifest = read_manifest(tmp_path / "manifest.yaml")
    for opened in (
        open_entry(manifest, manifest.entry("tuned"), tmp_path / "hub", endpoint=hub.url, ranged=True),
        open_named(REPO, tmp_path / "hub", endpoint=hub.url, ranged=True),
    ):
        assert opened.revision == hub.commit(REPO)
        assert opened.digest() == Checkpoint.open(llama[0]).digest()
        assert torch.equal(opened.stored("model.norm.weight"), llama[1]["model.norm.weight"])
    assert not (tmp_path / "hub").exists()
    assert open_named(str(llama[0]), ranged=True).folder == llama[0]


@pytest.mark.parametrize("name", ["model-00001-of-00003.safetensors", "config.json", "model-9.safetensors"])
def test_a_manifest_that_lists_other_files_than_the_hub_is_seen_before_a_tensor_is_read(
    hub, llama, tmp_path, monkeypatch, name
):
    monkeypatch.setenv("THREEGATES_RANGES", str(tmp_path / "ranges"))
    wanted = entry(None, digests(llama[0]) | {name: "0" * 64})
    manifest = Manifest(version=1, checkpoints=[wanted])
    with pytest.raises(CheckpointError) as caught:
        open_entry(manifest, wanted, endpoint=hub.url, ranged=True)
    assert f"{name} of the Hub is not the file that the manifest lists" in str(caught.value)
    assert f"expected: sha256 {'0' * 64}" in str(caught.value)


def test_hf_endpoint_is_honoured_and_no_code_of_the_repository_runs(llama, copy_of, tmp_path):
    folder, marker = copy_of(llama[0], "repository"), tmp_path / "marker"
    (folder / "modeling_own.py").write_text(f"open({str(marker)!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "modeling_own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    script = (
        "import sys; from threegates.checkpoints.hub.snapshots import open_named; "
        "c = open_named(sys.argv[1], sys.argv[2]); print(c.bf16('model.norm.weight').sum().item())"
    )
    source = Path(__file__).parents[3] / "src"
    with LoopbackHub({REPO: folder}) as hub:
        done = subprocess.run(
            [sys.executable, "-c", script, REPO, str(tmp_path / "cache")],
            env=os.environ | {"HF_ENDPOINT": hub.url, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    assert float(done.stdout) == llama[1]["model.norm.weight"].to(torch.bfloat16).sum().item()
    assert not marker.exists()
    assert Checkpoint.open(folder).config["auto_map"]
