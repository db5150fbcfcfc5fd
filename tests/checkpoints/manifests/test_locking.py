"""Locking against a stand-in for the Hub: what is written, what is only told, and what fails."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.hub import loopback
from tests.hub.loopback import Fault, LoopbackHub
from threegates.checkpoints.hub.listing import HubUnreachableError, read_card
from threegates.checkpoints.hub.ranged import open_ranged
from threegates.checkpoints.hub.snapshots import open_entry, resolve
from threegates.checkpoints.manifests.licences import LicenceError
from threegates.checkpoints.manifests.locking import (
    check_listed,
    check_locked,
    check_usable,
    lock,
)
from threegates.checkpoints.manifests.manifest import Entry, Folder, Hub, read_manifest
from threegates.checkpoints.tensors import INDEX
from threegates.errors import CheckpointError, ManifestError

REPO, OLD = "org/llama", "old/llama"
TEXT = """\
# What we study.
version: 1
checkpoints:
  # The base.
  - name: base
    source: {hub: org/qwen, revision: null}   # newest
    method: pretrain
    checked: false
  - name: tuned
    source: {hub: org/llama, revision: null}
    licence: MIT   # as we know
    base: base
    method: rl
    note: kept
"""


class CardHandler(loopback._Handler):
    """Adds cards, older commits and tags, and too many requests, to the stand-in."""

    def _answer(self) -> None:
        for repo, alias in self.hub.older.items():
            commit = self.hub.commit(alias)
            self.path = self.path.replace("/revision/v1", f"/revision/{commit}")
            if commit in self.path:
                self.path = self.path.replace(repo, alias)
        if self.hub.busy:
            self.hub.busy -= 1
            self.send_response(429)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        super()._answer()

    def _info(self, repo: str, revision: str | None) -> None:
        told = {"id": repo, "modelId": repo, "sha": self.hub.commit(repo), "siblings": []}
        self._send_json({**told, **self.hub.cards.get(repo, {})})


class CardHub(LoopbackHub):
    def __init__(self, repos: dict[str, Path]) -> None:
        super().__init__(repos)
        self.cards: dict[str, dict] = {}
        self.older: dict[str, str] = {}
        self.busy = 0


@pytest.fixture
def hub(llama, qwen2, copy_of, monkeypatch):
    monkeypatch.setattr(loopback, "_Handler", CardHandler)
    monkeypatch.setattr("threegates.checkpoints.hub.transfer.time.sleep", lambda _: None)
    repos = {REPO: copy_of(llama[0], "llama"), "org/qwen": copy_of(qwen2[0], "qwen")}
    with CardHub(repos) as hub:
        yield hub


@pytest.fixture
def manifest(tmp_path) -> Path:
    path = tmp_path / "study" / "data_manifest.yaml"
    path.parent.mkdir()
    path.write_text(TEXT)
    return path


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


def with_older(hub: CardHub, copy_of) -> str:
    """Gives the repository an older commit beside its newest; the older one's digits."""
    hub.repos[OLD] = copy_of(hub.repos[REPO], "older")
    (hub.repos[REPO] / "generation_config.json").write_text('{"temperature": 0.6}')
    hub.older[REPO] = OLD
    return hub.commit(OLD)


def files_block(files: dict[str, str]) -> str:
    return "    files:\n" + "".join(f"      {name}: {sha}\n" for name, sha in sorted(files.items()))


def test_every_entry_gets_commit_and_files_and_the_rest_keeps_its_bytes(hub, manifest):
    (hub.repos[REPO] / "modeling_llama.py").write_text("boom")
    (hub.repos[REPO] / "README.md").write_text("# Llama")
    summary = lock(manifest, endpoint=hub.url)
    left, right = digests(hub.repos["org/qwen"]), digests(hub.repos[REPO])
    right = {name: sha for name, sha in right.items() if name not in ("modeling_llama.py", "README.md")}
    commits = {repo: _written(hub.commit(repo)) for repo in hub.repos}
    expected = (
        TEXT.replace(
            "{hub: org/qwen, revision: null}   # newest\n",
            f"{{hub: org/qwen, revision: {commits['org/qwen']}}}   # newest\n"
            f"{files_block(left)}    stored_dtype: fp32\n",
        )
        .replace("checked: false", "checked: true")
        .replace(
            "{hub: org/llama, revision: null}\n",
            f"{{hub: org/llama, revision: {commits[REPO]}}}\n{files_block(right)}    stored_dtype: bf16\n",
        )
        .replace("    note: kept\n", "    checked: true\n    note: kept\n")
    )
    assert manifest.read_text() == expected
    assert summary.ok
    assert summary.changed
    assert list(summary.locked) == ["base", "tuned"]
    assert f"locked  tuned: commit {hub.commit(REPO)[:12]} ({len(right)} files, bf16)" in summary.text()


def _written(commit: str) -> str:
    return json.dumps(commit) if re.fullmatch(r"\d+(e\d+)?", commit) else commit


def test_what_was_locked_is_what_the_download_is_held_against(hub, manifest, tmp_path):
    lock(manifest, endpoint=hub.url)
    read = read_manifest(manifest)
    opened = open_entry(read, read.entry("tuned"), tmp_path / "cache", endpoint=hub.url)
    assert opened.revision == hub.commit(REPO)
    # The downloaded files are all listed: none could change unseen.
    assert set(digests(opened.folder)) == set(read.entry("tuned").files)
    shard = min(name for name in read.entry("tuned").files if name.startswith("model-"))
    hub.faults.append(Fault("flip-bit", shard, at=(hub.repos[REPO] / shard).stat().st_size - 1))
    with pytest.raises(CheckpointError, match="is not the file that"):
        resolve(read.entry("tuned"), tmp_path / "other", endpoint=hub.url)
    hub.faults.clear()
    other = read.entry("tuned").model_copy(update={"files": {shard: "0" * 64}})
    with pytest.raises(CheckpointError, match="is not the file that the manifest lists"):
        resolve(other, tmp_path / "cache", endpoint=hub.url)


def test_no_weights_are_downloaded(hub, manifest, monkeypatch):
    monkeypatch.setattr("threegates.checkpoints.hub.remote_headers.FIRST_BYTES", 64)
    lock(manifest, endpoint=hub.url)
    whole = [path for _, path in hub.requests if path.endswith((".json", ".jinja"))]
    assert whole
    # Two ranges a file of weights: the first bytes, and the rest of its header.
    shards = [path for _, path in hub.requests if path.endswith(".safetensors")]
    assert {shards.count(path) for path in shards} == {2}


def test_a_second_lock_changes_nothing_and_asks_for_no_file(hub, manifest):
    lock(manifest, endpoint=hub.url)
    before, stat = manifest.read_bytes(), manifest.stat()
    hub.requests.clear()
    summary = lock(manifest, endpoint=hub.url)
    assert manifest.read_bytes() == before
    assert manifest.stat().st_mtime_ns == stat.st_mtime_ns
    assert (summary.ok, summary.changed, summary.locked, list(summary.kept)) == (
        True,
        False,
        {},
        ["base", "tuned"],
    )
    assert "0 locked, 2 kept, 0 failed" in summary.text()
    assert "unchanged" in summary.text()
    assert not any("/resolve/" in path for _, path in hub.requests)


def test_only_named_entries_are_locked(hub, manifest):
    lock(manifest, ["tuned"], endpoint=hub.url)
    read = read_manifest(manifest)
    assert read.entry("base").source.revision is None
    assert read.entry("tuned").checked
    assert not any("org/qwen" in path for _, path in hub.requests)


def test_a_locked_entry_stays_where_it_is_until_it_is_named(hub, manifest, copy_of):
    lock(manifest, endpoint=hub.url)
    before = manifest.read_text()
    older = hub.commit(REPO)
    assert with_older(hub, copy_of) != hub.commit(REPO)
    # The older commit is served under another repository's name, whose commit has other digits.
    manifest.write_text(before.replace(older, hub.commit(OLD)))
    before = manifest.read_text()
    summary = lock(manifest, endpoint=hub.url)
    assert manifest.read_text() == before
    assert summary.ok
    assert f"look at tuned: the Hub has a newer commit, {hub.commit(REPO)}" in summary.text()
    assert "`threegates lock tuned` moves to it" in summary.text()
    moved = lock(manifest, ["tuned"], endpoint=hub.url)
    entry = read_manifest(manifest).entry("tuned")
    assert entry.source.revision == hub.commit(REPO)
    assert entry.files == digests(hub.repos[REPO])
    assert list(moved.locked) == ["tuned"]


def test_update_moves_every_entry(hub, manifest, copy_of):
    lock(manifest, endpoint=hub.url)
    (hub.repos["org/qwen"] / "config.json").write_text('{"model_type": "qwen2"}')
    hub.repos[REPO].joinpath("generation_config.json").write_text("{}")
    lock(manifest, update=True, endpoint=hub.url)
    read = read_manifest(manifest)
    for name, repo in (("base", "org/qwen"), ("tuned", REPO)):
        assert read.entry(name).source.revision == hub.commit(repo)
        assert read.entry(name).files == digests(hub.repos[repo])


def test_a_commit_that_a_person_wrote_is_kept_and_gets_its_files(hub, manifest, copy_of):
    older = with_older(hub, copy_of)
    manifest.write_text(
        TEXT.replace("{hub: org/llama, revision: null}", f"{{hub: {REPO}, revision: '{older}'}}")
    )
    summary = lock(manifest, ["tuned"], endpoint=hub.url)
    entry = read_manifest(manifest).entry("tuned")
    assert entry.source.revision == older
    assert entry.files == digests(hub.repos[OLD])
    assert "newer commit" in summary.text()


def test_a_tag_stands_for_its_commit(hub, manifest, copy_of):
    older = with_older(hub, copy_of)
    lock(manifest, ["tuned"], revision="v1", endpoint=hub.url)
    assert read_manifest(manifest).entry("tuned").source.revision == older
    for names in (None, ["tuned", "base"]):
        with pytest.raises(ManifestError, match="a revision is one entry's"):
            lock(manifest, names, revision="v1", endpoint=hub.url)


def two_of_one(trained: str) -> str:
    return TEXT + f"  - name: second\n    source: {{hub: {REPO}}}\n    base: base\n    method: rl\n{trained}"


def test_two_entries_of_one_repository_are_locked_alike_where_nothing_tells_them_apart(hub, manifest):
    manifest.write_text(two_of_one(""))
    assert lock(manifest, endpoint=hub.url).ok
    read = read_manifest(manifest)
    assert read.entry("second").source == read.entry("tuned").source
    assert read.entry("second").files == read.entry("tuned").files


def test_two_entries_trained_apart_cannot_be_one_commit(hub, manifest, copy_of):
    manifest.write_text(two_of_one("    algorithm: REINFORCE++\n"))
    summary = lock(manifest, endpoint=hub.url)
    assert set(summary.failed) == {"tuned", "second"}
    assert "'second' and 'tuned' would be the same weights" in summary.text()
    assert "threegates lock second --revision COMMIT" in summary.text()
    assert read_manifest(manifest).entry("second").source.revision is None
    assert read_manifest(manifest).entry("base").checked
    # By name one of them may have the newest; then the other needs its own.
    older = with_older(hub, copy_of)
    assert lock(manifest, ["second"], endpoint=hub.url).ok
    assert set(lock(manifest, endpoint=hub.url).failed) == {"tuned"}
    assert lock(manifest, ["tuned"], revision="v1", endpoint=hub.url).ok
    read = read_manifest(manifest)
    assert (read.entry("tuned").source.revision, read.entry("second").source.revision) == (
        older,
        hub.commit(REPO),
    )
    assert lock(manifest, endpoint=hub.url).ok


def test_what_the_card_says_fills_gaps_and_contradictions_are_told(hub, manifest):
    hub.cards["org/qwen"] = {"cardData": {"license": "cc-by-nc-sa-4.0"}, "gated": "manual"}
    hub.cards[REPO] = {"cardData": {"license": "cc-by-nc-4.0"}, "gated": False}
    manifest.write_text(
        TEXT.replace("    note: kept\n", "    stored_dtype: fp32\n    gated: true\n    note: kept\n")
    )
    summary = lock(manifest, endpoint=hub.url)
    base, tuned = read_manifest(manifest).checkpoints
    assert (base.licence, base.stored_dtype, base.gated) == ("CC-BY-NC-SA-4.0", "fp32", True)
    assert (tuned.licence, tuned.stored_dtype, tuned.gated) == ("MIT", "fp32", True)
    assert (base.noncommercial, tuned.noncommercial) == (True, False)
    assert summary.remarks == {
        "tuned": [
            "the manifest says licence MIT, the Hub's card cc-by-nc-4.0",
            "the manifest says that it is gated, the Hub that it is not",
            "the manifest says stored as fp32, its files bf16",
        ]
    }
    assert "licence: MIT   # as we know\n" in manifest.read_text()


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ({"license": "apache-2.0", "base_model": 7}, "apache-2.0"),
        ({"license": "other", "license_name": "llama3.1"}, "llama3.1"),
        ({"license": "other"}, None),
        ({"license": ["mit", "gpl"]}, None),
        ({"license": "a\nfiles: {}"}, None),
        ({"license": 7}, None),
        ([], None),
        (None, None),
    ],
)
def test_a_card_of_any_kind_is_read_or_left(hub, card, licence):
    hub.cards[REPO] = {"cardData": card}
    assert read_card(REPO, endpoint=hub.url).licence == licence


def with_shard(folder: Path, name: str) -> None:
    """Adds a shard of another dtype, and names it in the index."""
    save_file({"extra": torch.zeros(3, dtype=torch.float32)}, folder / name)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["extra"] = name
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["layers-0.safetensors", "shards/part_1.safetensors", "model-9.safetensors"])
def test_shards_are_those_that_the_index_names_by_whatever_name(hub, manifest, tmp_path, monkeypatch, name):
    monkeypatch.setenv("THREEGATES_RANGES", str(tmp_path / "ranges"))
    folder = hub.repos[REPO]
    (folder / "shards").mkdir()
    with_shard(folder, name)
    stray = "model-00009-of-00009.safetensors"
    save_file({"stray": torch.zeros(3)}, folder / stray)
    assert lock(manifest, ["tuned"], endpoint=hub.url).ok
    files = read_manifest(manifest).entry("tuned").files
    assert files[name] == hashlib.sha256((folder / name).read_bytes()).hexdigest() and stray not in files
    # Download and ranges read what was locked.
    locked = read_manifest(manifest)
    for ranged in (False, True):
        opened = open_entry(
            locked, locked.entry("tuned"), tmp_path / "cache", endpoint=hub.url, ranged=ranged
        )
        assert "extra" in opened.infos and "stray" not in opened.infos
    # A second lock sees that nothing has changed, and one of other bytes is seen by ranges.
    assert lock(manifest, endpoint=hub.url).kept.keys() >= {"tuned"}
    manifest.write_text(manifest.read_text().replace(files[name], "a" * 64))
    with pytest.raises(CheckpointError, match="is not the file that the manifest lists"):
        other = read_manifest(manifest)
        open_entry(other, other.entry("tuned"), endpoint=hub.url, ranged=True)


def test_files_of_several_dtypes_are_told_and_none_is_written(hub, manifest):
    with_shard(hub.repos[REPO], "model-extra.safetensors")
    summary = lock(manifest, endpoint=hub.url)
    assert read_manifest(manifest).entry("tuned").stored_dtype is None
    assert summary.remarks == {"tuned": ["its files hold several dtypes: bf16, fp32"]}


def test_those_that_fail_stay_as_they_are_and_the_others_are_written(hub, manifest):
    manifest.write_text(TEXT.replace(REPO, "org/none"))
    summary = lock(manifest, endpoint=hub.url)
    assert list(summary.failed) == ["tuned"]
    assert not summary.ok
    text = summary.text()
    assert text.index("locked  base") < text.index(
        "failed  tuned: the Hub repository org/none cannot be downloaded"
    )
    assert "what to do: correct the repository's name" in text
    assert text.endswith(f"1 locked, 0 kept, 1 failed; {manifest} written")
    tail = TEXT[TEXT.index("  - name: tuned") :].replace(REPO, "org/none")
    assert manifest.read_text().endswith(tail)


def test_a_gated_repository_fails_with_what_to_do(hub, manifest):
    hub.faults.append(Fault("gated", times=1))
    summary = lock(manifest, endpoint=hub.url)
    assert list(summary.failed) == ["base"]
    assert "accept the licence on the repository's page, then run `hf auth login`" in summary.text()


def test_a_hub_that_nobody_answers_at_is_asked_once(manifest, monkeypatch):
    monkeypatch.setattr("threegates.checkpoints.hub.transfer.time.sleep", lambda _: None)
    before = manifest.read_bytes()
    tried: list[str] = []
    summary = lock(manifest, endpoint="http://127.0.0.1:9", progress=tried.append)
    assert tried == ["1/2 base"]
    assert all(isinstance(error, HubUnreachableError) for error in summary.failed.values())
    assert list(summary.failed) == ["base", "tuned"]
    assert "check the network, HF_ENDPOINT and HF_HUB_OFFLINE" in summary.text()
    assert manifest.read_bytes() == before


def test_too_many_requests_are_waited_out(hub, manifest):
    hub.busy = 3
    assert lock(manifest, endpoint=hub.url).ok
    hub.busy = 1000
    summary = lock(manifest, endpoint=hub.url)
    hub.busy = 0
    assert set(summary.failed) == {"base", "tuned"}
    assert "found: status 429, 6 times in a row" in summary.text()


def test_a_small_file_that_arrives_damaged_is_taken_again_and_never_locked(hub, manifest):
    hub.faults.append(Fault("flip-bit", "config.json", at=5, times=1))
    assert lock(manifest, ["base"], endpoint=hub.url).ok
    assert read_manifest(manifest).entry("base").files == digests(hub.repos["org/qwen"])
    hub.faults = [Fault("flip-bit", "config.json", at=5)]
    before = manifest.read_bytes()
    summary = lock(manifest, ["tuned"], endpoint=hub.url)
    assert "config.json arrives damaged" in summary.text()
    assert manifest.read_bytes() == before


def test_a_server_without_ranges_costs_the_dtype_alone(hub, manifest, monkeypatch):
    monkeypatch.setattr("threegates.checkpoints.hub.remote_headers.FIRST_BYTES", 64)
    hub.faults.append(Fault("ignore-range"))
    summary = lock(manifest, endpoint=hub.url)
    assert summary.ok
    assert read_manifest(manifest).entry("base").stored_dtype is None
    assert "the stored dtype could not be read: the server sends the whole file" in summary.text()


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ((1 << 40).to_bytes(8, "little") + b"{}", "no readable safetensors header"),
        ((4).to_bytes(8, "little") + b"nope", "does not hold valid JSON"),
        ((8).to_bytes(8, "little") + b'{"a": 1}', "is wrong about tensor 'a'"),
    ],
)
def test_a_broken_header_is_told(hub, manifest, header, part):
    (hub.repos["org/qwen"] / "model.safetensors").write_bytes(header)
    summary = lock(manifest, ["base"], endpoint=hub.url)
    assert part in summary.text()
    assert read_manifest(manifest).entry("base").stored_dtype is None


def test_a_repository_without_safetensors_is_refused_by_its_files(hub, manifest):
    for path in hub.repos[REPO].glob("model*"):
        path.unlink()
    (hub.repos[REPO] / "pytorch_model.bin").write_text("x")
    summary = lock(manifest, endpoint=hub.url)
    assert "has no safetensors weights of a whole model" in summary.text()
    assert "found: pytorch_model.bin" in summary.text()


@pytest.mark.parametrize(
    "path", ["../model.safetensors", "/etc/model.safetensors", "model-\n.safetensors", ""]
)
def test_a_list_of_files_that_leads_elsewhere_is_refused(hub, manifest, monkeypatch, path):
    hostile = {"type": "file", "path": path, "size": 1, "oid": "0" * 40}
    monkeypatch.setattr(CardHandler, "_tree", lambda self, repo, revision: self._send_json([hostile]))
    before = manifest.read_bytes()
    summary = lock(manifest, ["base"], endpoint=hub.url)
    told = summary.text()
    assert "lists a file that cannot be one" in told or "is not one that can be trusted" in told
    assert manifest.read_bytes() == before


@pytest.mark.parametrize("items", [[{}], [7], {"a": 1}, [{"type": "file", "path": 7, "size": 1, "oid": "a"}]])
def test_a_list_that_is_none_fails_that_entry_alone(hub, manifest, monkeypatch, items):
    whole = CardHandler._tree

    def tree(self, repo: str, revision: str) -> None:
        return self._send_json(items) if repo == REPO else whole(self, repo, revision)

    monkeypatch.setattr(CardHandler, "_tree", tree)
    summary = lock(manifest, endpoint=hub.url)
    assert list(summary.failed) == ["tuned"]
    assert list(summary.locked) == ["base"]


def test_a_manifest_with_unknown_keys_or_names_is_refused_before_anything_is_asked(hub, manifest):
    manifest.write_text(TEXT.replace("note: kept", "nota: kept"))
    with pytest.raises(ManifestError, match="did you mean 'note'"):
        lock(manifest, endpoint=hub.url)
    manifest.write_text(TEXT)
    with pytest.raises(ManifestError, match="there is no checkpoint 'tunde'"):
        lock(manifest, ["tunde"], endpoint=hub.url)
    assert hub.requests == []
    assert manifest.read_text() == TEXT


def test_a_folder_is_tied_to_its_files_without_a_request(hub, manifest, llama):
    folder = shutil.copytree(llama[0], manifest.parent / "runs" / "mine")
    text = "version: 1\ncheckpoints:\n  # ours\n  - {name: local, source: {folder: runs/mine}, method: rl}\n"
    manifest.write_text(text)
    summary = lock(manifest, endpoint=hub.url)
    entry = read_manifest(manifest).entry("local")
    held = digests(folder)
    wanted = [name for name in held if name.startswith("model") or name == "config.json"]
    assert len(wanted) > 3 and entry.files == {name: held[name] for name in wanted}
    assert entry.checked and "# ours" in manifest.read_text() and hub.requests == []
    assert f"locked  local: its folder ({len(entry.files)} files" in summary.text()
    assert lock(manifest, endpoint=hub.url).kept.keys() == {"local"}


def test_a_folder_that_changed_is_refused_until_it_is_named(hub, manifest, llama):
    folder = shutil.copytree(llama[0], manifest.parent / "runs" / "mine")
    manifest.write_text(
        "version: 1\ncheckpoints:\n  - {name: local, source: {folder: runs/mine}, method: rl}\n"
    )
    lock(manifest, endpoint=hub.url)
    before = manifest.read_bytes()
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    summary = lock(manifest, endpoint=hub.url)
    assert not summary.ok and manifest.read_bytes() == before
    assert "the folder of 'local' is not what the manifest locked" in summary.text()
    assert f"found: sha256 {digests(folder)['config.json']}" in summary.text()
    assert lock(manifest, ["local"], endpoint=hub.url).ok
    assert read_manifest(manifest).entry("local").files["config.json"] == digests(folder)["config.json"]
    with pytest.raises(ManifestError, match="a folder has no revisions"):
        lock(manifest, ["local"], revision="main", endpoint=hub.url)


def test_a_folder_that_is_no_model_stays_as_it_was(hub, manifest):
    text = TEXT + "  - {name: local, source: {folder: runs}, method: rl}\n"
    manifest.write_text(text)
    summary = lock(manifest, ["local"], endpoint=hub.url)
    assert list(summary.failed) == ["local"] and manifest.read_text() == text


def test_a_token_is_in_no_manifest_and_no_message(hub, manifest, monkeypatch):
    token = "hf_" + "s" * 34
    monkeypatch.setenv("HF_TOKEN", token)
    manifest.write_text(TEXT.replace(REPO, "org/none"))
    summary = lock(manifest, endpoint=hub.url)
    assert token not in summary.text() + manifest.read_text()


# What profile `paper` asks of an entry


def entry(**known: object) -> Entry:
    source = Hub(repo=REPO, revision=known.pop("revision", None))
    return Entry(name="tuned", source=source, method="rl", **known)


def test_an_unlocked_entry_is_refused_with_the_command_that_locks_it():
    weights = {"model.safetensors": "0" * 64}
    for one, found in (
        (entry(), "neither"),
        (entry(files=weights), "neither"),
        (entry(revision="a" * 40), "a commit alone"),
        (entry(revision="a" * 40, files={"config.json": "0" * 64}), "a commit alone"),
    ):
        with pytest.raises(CheckpointError, match="run `threegates lock tuned` first") as caught:
            check_locked(one)
        assert caught.value.found == found
        assert "unlocked" in caught.value.remedy
    check_locked(entry(revision="a" * 40, files=weights))
    check_locked(Entry(name="a", source=Folder(path="a"), method="rl"))


def test_conditions_come_before_the_lock():
    limited = entry(licence="CC-BY-NC-4.0")
    with pytest.raises(LicenceError):
        check_usable(limited, accepted=())
    with pytest.raises(CheckpointError, match="threegates lock tuned"):
        check_usable(limited, accepted=["CC-BY-NC-4.0"])
    whole = entry(revision="a" * 40, files={"model.safetensors": "0" * 64})
    check_usable(whole, accepted=())


@pytest.mark.parametrize(
    ("listed", "parts"),
    [
        ({"model.safetensors": "1" * 64}, ["sha256 " + "0" * 64, "sha256 " + "1" * 64]),
        ({}, ["model.safetensors with", "no such file"]),
        ({"model.safetensors": "0" * 64, "config.json": "4" * 64}, ["config.json with", "sha256 444"]),
        ({"model.safetensors": "0" * 64, "model-2.safetensors": "2" * 64}, ["no file model-2.safetensors"]),
    ],
)
def test_a_repository_whose_files_differ_is_refused(listed, parts):
    locked = entry(revision="a" * 40, files={"model.safetensors": "0" * 64, "config.json": "3" * 64})
    check_listed(locked, {"model.safetensors": "0" * 64})
    check_listed(locked, locked.files)
    with pytest.raises(CheckpointError, match="is not what the manifest locked") as caught:
        check_listed(locked, listed)
    for part in [*parts, "`threegates lock tuned`"]:
        assert part in str(caught.value)


def test_a_ranged_checkpoint_is_held_against_the_lock(hub, manifest, tmp_path):
    lock(manifest, endpoint=hub.url)
    locked = read_manifest(manifest).entry("tuned")
    ranged = open_ranged(REPO, locked.source.revision, endpoint=hub.url, cache=tmp_path / "ranges")
    check_listed(locked, ranged.sha256)
    others = locked.model_copy(update={"files": {**locked.files, "config.json": "0" * 64}})
    with pytest.raises(CheckpointError, match="is not what the manifest locked"):
        check_listed(others, ranged.sha256)


def test_a_repository_that_changed_is_found_by_asking_the_hub(hub, manifest):
    lock(manifest, endpoint=hub.url)
    locked = read_manifest(manifest).entry("tuned")
    assert lock(manifest, endpoint=hub.url).ok
    # The listed files differ: lock leaves the entry alone until it is named.
    name = next(name for name in locked.files if name.endswith("safetensors"))
    manifest.write_text(manifest.read_text().replace(locked.files[name], "f" * 64))
    summary = lock(manifest, endpoint=hub.url)
    assert list(summary.failed) == ["tuned"]
    assert lock(manifest, ["tuned"], endpoint=hub.url).ok
    assert read_manifest(manifest).entry("tuned").files == locked.files
    # And a commit that is gone.
    (hub.repos[REPO] / "config.json").write_text("{}")
    told = lock(manifest, endpoint=hub.url).text()
    assert "failed  tuned: the repository of 'tuned' is not what the manifest locked" in told
    assert "found: no such commit" in told


def test_nothing_but_the_manifest_is_left_in_its_folder(hub, manifest):
    lock(manifest, endpoint=hub.url)
    assert os.listdir(manifest.parent) == ["data_manifest.yaml"]
