"""Verifying: files in folders and in the Hub's cache against a manifest, without a network."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from tests.hub.loopback import LoopbackHub
from threegates.checkpoints.hub.snapshots import resolve
from threegates.checkpoints.manifests.manifest import Entry, Folder, Hub, Manifest, write_manifest
from threegates.checkpoints.manifests.verifying import verify
from threegates.errors import ManifestError

REPO = "org/llama"


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


@pytest.fixture
def study(llama, copy_of, tmp_path) -> Path:
    """A manifest with a folder, a cached repository, one that is not here, and one that is not locked."""
    local = copy_of(llama[0], "local")
    files = digests(local)
    with LoopbackHub({REPO: llama[0]}) as hub:
        commit = hub.commit(REPO)
        cached = Entry(name="cached", source=Hub(repo=REPO, revision=commit), files=files, method="rl")
        resolve(cached, tmp_path / "cache", endpoint=hub.url)
    entries = [
        Entry(name="local", source=Folder(path="local"), files=files, method="rl"),
        cached,
        Entry(name="absent", source=Hub(repo="org/none", revision="a" * 40), files=files, method="rl"),
        Entry(name="open", source=Hub(repo=REPO), method="rl"),
        Entry(name="bare", source=Folder(path="local"), method="rl"),
    ]
    write_manifest(tmp_path / "manifest.yaml", Manifest(version=1, checkpoints=entries))
    return tmp_path


def statuses(study: Path, names: list[str] | None = None) -> dict[str, str]:
    report = verify(study / "manifest.yaml", names, study / "cache")
    return {one.name: one.status for one in report.entries}


def test_each_entry_is_whole_not_here_or_not_locked(study):
    report = verify(study / "manifest.yaml", cache_dir=study / "cache")
    assert {one.name: one.status for one in report.entries} == {
        "local": "whole",
        "cached": "whole",
        "absent": "not here",
        "open": "not locked",
        "bare": "not locked",
    }
    assert report.ok
    assert "not locked  open: no sha256 is listed; `threegates lock open` lists them" in report.text()
    assert "what to do" not in report.text()


@pytest.mark.parametrize("name", ["local", "cached"])
def test_a_changed_byte_is_told_with_its_file_and_both_digests(study, name):
    folder = {"local": study / "local"}.get(name) or next(study.glob("cache/models--*/snapshots/*"))
    shard = min(folder.glob("model-*.safetensors"))
    content = bytearray(shard.read_bytes())
    expected = hashlib.sha256(content).hexdigest()
    content[-1] ^= 1
    shard.resolve().write_bytes(content)
    report = verify(study / "manifest.yaml", [name], study / "cache")
    assert not report.ok
    text = report.text()
    assert f"differs     {name}: 1 of" in text
    # A link of the Hub's cache has to go with what it leads to.
    places = f"{shard} and {shard.resolve()}" if name == "cached" else str(shard)
    assert f"    {shard.name}: {places}\n      expected: sha256 {expected}\n" in text
    assert f"      found: sha256 {hashlib.sha256(content).hexdigest()}" in text
    assert "what to do: delete the files" in text


def test_missing_files_are_named_and_are_no_fault(study):
    shard = min(study.glob("local/model-*.safetensors"))
    shard.unlink()
    report = verify(study / "manifest.yaml", ["local"])
    assert report.ok
    assert report.entries[0].missing == (shard.name,)
    assert (
        f"partly here local: 1 of {report.entries[0].listed} files are missing: {shard.name}" in report.text()
    )
    shutil.rmtree(study / "local")
    assert statuses(study, ["local"]) == {"local": "not here"}


def test_a_link_of_the_cache_whose_file_is_gone_is_missing(study):
    (shard, *_) = sorted(study.glob("cache/models--*/snapshots/*/model-*.safetensors"))
    shard.resolve().unlink()
    assert statuses(study, ["cached"]) == {"cached": "partly here"}


def test_a_commit_that_is_cached_beside_another_is_no_help(study):
    text = (study / "manifest.yaml").read_text()
    (snapshot,) = study.glob("cache/models--*/snapshots/*")
    (study / "manifest.yaml").write_text(text.replace(snapshot.name, "b" * 40))
    assert statuses(study, ["cached"]) == {"cached": "not here"}


def test_only_what_is_named_is_looked_at(study):
    seen: list[str] = []
    verify(study / "manifest.yaml", ["open", "open"], progress=seen.append)
    assert seen == ["1/1 open"]
    with pytest.raises(ManifestError, match="there is no checkpoint 'opn'"):
        verify(study / "manifest.yaml", ["opn"])
