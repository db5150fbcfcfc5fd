"""Branches, folders and series in a manifest: what an entry stands for, and how each is locked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from tests.hub.loopback import LoopbackHub
from threegates.checkpoints.hub.snapshots import open_entry
from threegates.checkpoints.manifests.locking import lock
from threegates.checkpoints.manifests.manifest import Hub, read_manifest, write_manifest
from threegates.checkpoints.manifests.verifying import verify
from threegates.errors import ManifestError

RUN, FOLDERS = "org/run", "org/folders"
TEXT = """\
# What a person wrote.
version: 1
checkpoints:
  - name: base
    source: {hub: org/run, revision: null}
    method: pretrain
    checked: false
  - name: RUN-step_{9..11}   # three steps
    source: {hub: org/run, ref: "step_{9..11}", revision: null}
    base: base
    method: rl
    data: math
    checked: false
    note: Ids not checked.
  - name: inside-{1,2}
    source:
      hub: org/folders
      subfolder: "runs/seed1/global_step_{10,20}"
    base: base
    method: rl
    run: theirs
"""


@pytest.fixture
def manifest(tmp_path) -> Path:
    path = tmp_path / "study" / "data_manifest.yaml"
    path.parent.mkdir()
    path.write_text(TEXT)
    return path


@pytest.fixture
def hub(qwen2, copy_of, tmp_path, monkeypatch):
    monkeypatch.setenv("THREEGATES_RANGES", str(tmp_path / "ranges"))
    steps = {}
    for step in (9, 10, 11):
        steps[f"step_{step}"] = copy_of(qwen2[0], f"steps/{step}")
        (steps[f"step_{step}"] / "generation_config.json").write_text(f'{{"step": {step}}}')
    folders = [copy_of(qwen2[0], f"folders/runs/seed1/global_step_{step}") for step in (10, 20)]
    with LoopbackHub({RUN: qwen2[0], FOLDERS: folders[0].parents[2]}, branches={RUN: steps}) as hub:
        yield hub


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_series_stands_for_an_entry_a_step(manifest):
    read = read_manifest(manifest)
    assert list(read.members) == [*(f"RUN-step_{step}" for step in (9, 10, 11)), "inside-1", "inside-2"]
    one = read.entry("RUN-step_10")
    assert one.source == Hub(repo=RUN, ref="step_10")
    assert (one.step, one.run, one.final, one.data, one.base) == (10, "RUN", False, "math", "base")
    assert [read.entry(f"RUN-step_{step}").final for step in (9, 10, 11)] == [False, False, True]
    assert read.entry("inside-2").source == Hub(repo=FOLDERS, subfolder="runs/seed1/global_step_20")
    assert (read.entry("inside-2").run, read.entry("inside-2").step) == ("theirs", 2)
    assert read.pair("RUN-step_10").base.name == "base" and read.holds("inside-1")
    assert not read.holds("RUN-step_12") and read.pairs() == []
    with pytest.raises(ManifestError, match="there is no checkpoint 'RUN-step_12'"):
        read.entry("RUN-step_12")
    with pytest.raises(ManifestError, match="names no base"):
        read.pair("base")


def test_a_manifest_with_a_series_is_written_as_it_was_read(manifest, tmp_path):
    read = read_manifest(manifest)
    write_manifest(tmp_path / "again.yaml", read)
    again = read_manifest(tmp_path / "again.yaml")
    assert again.checkpoints == read.checkpoints and again.members == read.members


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("step_{9..11}", "step_{9..11..0}", "a step of 0"),
        ('ref: "step_{9..11}"', 'ref: "step_{9..12}"', "must count as the name does: 3"),
        ('ref: "step_{9..11}"', "ref: main", "must count as the name does: 3"),
        ("data: math", "chapters: [emergence]", "belongs to one checkpoint"),
        ("    data: math", "    files: {a: " + "b" * 64 + "}", "belongs to one checkpoint"),
        ('ref: "step_{9..11}", revision: null', f"revision: '{'0' * 40}'", "belongs to one checkpoint"),
        ("RUN-step_{9..11}", "RUN-step_*", "step_{1..500}"),
        ("RUN-step_{9..11}", "RUN", "both count, or neither"),
        ('ref: "step_{9..11}"', 'ref: "step_*"', "step_{1..500}"),
        ('ref: "step_{9..11}"', 'ref: "../{a,b,c}"', "'../a' is none"),
        ("{hub: org/run, revision: null}", "{hub: org/run, ref: ../../x}", "name of a branch or a tag"),
        ('{hub: org/run, ref: "step_{9..11}", revision: null}', "{folder: runs}", "step_{1..500}"),
    ],
)
def test_a_series_that_is_none_is_refused_with_its_line(manifest, old, new, says):
    manifest.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(ManifestError) as caught:
        read_manifest(manifest)
    assert says in str(caught.value) and "line" in str(caught.value)


def test_members_are_locked_as_entries_of_their_own_and_the_series_keeps_its_bytes(hub, manifest, tmp_path):
    summary = lock(manifest, ["RUN-step_{10,11}"], endpoint=hub.url)
    assert summary.ok and set(summary.locked) == {"RUN-step_10", "RUN-step_11"}
    text = manifest.read_text()
    assert text.startswith(TEXT)
    read, refs = read_manifest(manifest), hub.refs(RUN)["branches"]
    for step in (10, 11):
        entry = read.entry(f"RUN-step_{step}")
        assert entry.source == Hub(repo=RUN, ref=f"step_{step}", revision=refs[f"step_{step}"])
        folder = hub.branches[RUN][f"step_{step}"]
        assert entry.files == {path.name: sha256(path) for path in folder.iterdir()}
        assert (entry.checked, entry.step, entry.run, entry.base) == (True, step, "RUN", "base")
        opened = open_entry(read, entry, tmp_path / "cache", endpoint=hub.url)
        assert opened.revision == refs[f"step_{step}"]
    assert [pair.name for pair in read.pairs()] == ["RUN-step_10", "RUN-step_11"]
    assert "RUN-step_9" in read.members and "RUN-step_10" not in read.members
    # Once more by name: the branch has not moved.
    assert set(lock(manifest, ["RUN-step_{10,11}"], endpoint=hub.url).kept) == {"RUN-step_10", "RUN-step_11"}
    assert manifest.read_text() == text


def test_a_folder_is_locked_opened_and_verified_as_that_folder(hub, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert lock(manifest, ["inside-2"], endpoint=hub.url).ok
    read = read_manifest(manifest)
    entry = read.entry("inside-2")
    folder = hub.repos[FOLDERS] / "runs/seed1/global_step_20"
    assert entry.files == {path.name: sha256(path) for path in folder.iterdir()}
    for ranged in (True, False):
        opened = open_entry(read, entry, endpoint=hub.url, ranged=ranged)
        assert opened.revision == hub.commit(FOLDERS)
    report = verify(manifest, ["inside-2"])
    assert report.ok and "whole" in report.text()


def test_without_names_series_are_left_and_it_is_said_how_they_are_locked(hub, manifest):
    summary = lock(manifest, endpoint=hub.url)
    assert set(summary.locked) == {"base"} and summary.ok
    assert "look at RUN-step_{9..11}: a series" in summary.text() and "RUN-step_9" in summary.text()


def test_a_branch_is_locked_where_it_stands_and_one_that_is_not_there_says_which_are(hub, manifest):
    manifest.write_text(TEXT.replace("{hub: org/run, revision: null}", "{hub: org/run, ref: step_9}", 1))
    assert lock(manifest, ["base"], endpoint=hub.url).ok
    assert yaml.safe_load(manifest.read_text())["checkpoints"][0]["source"] == {
        "hub": RUN,
        "ref": "step_9",
        "revision": hub.refs(RUN)["branches"]["step_9"],
    }
    manifest.write_text(TEXT.replace("{hub: org/run, revision: null}", "{hub: org/run, ref: step_8}", 1))
    told = lock(manifest, ["base"], endpoint=hub.url).text()
    assert "org/run has no branch, tag or commit 'step_8'" in told and "step_9, step_10, step_11" in told
