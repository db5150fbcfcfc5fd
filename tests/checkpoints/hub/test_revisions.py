"""Branches, tags and sub-folders, by download and by ranges; what the client takes is the oracle."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, snapshot_download
from safetensors.torch import load_file, save_file

from tests.hub.loopback import Fault, LoopbackHub
from threegates import environment
from threegates.checkpoints.hub import repository
from threegates.checkpoints.hub.addresses import Address, parse_address
from threegates.checkpoints.hub.ranged import RangedCheckpoint, open_ranged
from threegates.checkpoints.hub.repository import commit_of, nearest_names, pin, refs_of
from threegates.checkpoints.hub.snapshots import fetch, open_named
from threegates.checkpoints.places import Place, place_of
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import CheckpointError

REPO = "org/run"
NORM = "model.norm.weight"
NAMED = ("main", "step_9", "step_10", "exp/long@v2", "v1")


def moved(folder: Path, by: float) -> Path:
    """The same checkpoint with one tensor moved, which makes another commit."""
    tensors = load_file(folder / "model.safetensors")
    tensors[NORM] = tensors[NORM] + by
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def hub(qwen2, copy_of, tmp_path, monkeypatch):
    monkeypatch.setenv("THREEGATES_RANGES", str(tmp_path / "ranges"))
    steps = {
        name: moved(copy_of(qwen2[0], name.replace("/", "-")), at) for at, name in enumerate(NAMED[1:], 1)
    }
    folders = copy_of(qwen2[0], "folders/checkpoint-10")
    copy_of(qwen2[0], "folders/runs/seed 1/checkpoint-9")
    (folders.parent / "README.md").write_text("two checkpoints")
    held = LoopbackHub({REPO: qwen2[0], "org/folders": folders.parent}, tags={REPO: {"v1": steps.pop("v1")}})
    held.branches[REPO] = steps
    with held as hub:
        hub.stand_in(monkeypatch)
        yield hub
    environment.forget()


def both(text: str, cache: Path) -> list[Checkpoint]:
    return [open_named(text, cache, ranged=ranged) for ranged in (False, True)]


def refusal(text: str, cache: Path) -> str:
    """What download and ranges say alike."""
    told = []
    for ranged in (False, True):
        with pytest.raises(CheckpointError) as caught:
            open_named(text, cache, ranged=ranged)
        assert caught.value.remedy
        told.append(str(caught.value))
    assert told[0] == told[1]
    return told[0]


def test_the_stand_in_answers_the_client_as_the_hub_does(hub):
    api = HfApi(endpoint=hub.url)
    refs = api.list_repo_refs(REPO)
    assert {one.name for one in refs.branches} == {"main", "step_9", "step_10", "exp/long@v2"}
    assert [(one.name, one.ref) for one in refs.tags] == [("v1", "refs/tags/v1")]
    told = {one.name: one.target_commit for one in [*refs.branches, *refs.tags]}
    assert len(set(told.values())) == len(NAMED) and told == refs_of(REPO, hub.url)
    assert {name: api.model_info(REPO, revision=name).sha for name in NAMED} == told
    assert api.list_repo_files("org/folders", revision="main") == sorted(hub.files("org/folders"))


@pytest.mark.parametrize("name", NAMED)
def test_a_branch_or_tag_is_the_commit_that_the_client_takes(hub, tmp_path, name):
    oracle = Path(snapshot_download(REPO, revision=name, cache_dir=tmp_path / "client", endpoint=hub.url))
    for opened in both(f"{REPO}@{name}", tmp_path / "ours"):
        assert opened.revision == oracle.name == hub.refs(REPO)["tags" if name == "v1" else "branches"][name]
        assert opened.digest() == Checkpoint.open(oracle).digest()
        assert torch.equal(opened.stored(NORM), Checkpoint.open(oracle).stored(NORM))


def test_two_branches_share_the_files_that_they_have_in_common(hub, tmp_path):
    fetch(f"{REPO}@step_9", tmp_path)
    hub.served.clear()
    fetch(f"{REPO}@step_10", tmp_path)
    assert hub.served["model.safetensors"] > 0 and hub.served["config.json"] == 0


def test_a_branch_that_is_whole_in_the_cache_costs_one_question_and_is_there_without_network(hub, tmp_path):
    first = fetch(f"{REPO}@exp/long@v2", tmp_path)
    hub.requests.clear()
    assert fetch(f"{REPO}@exp/long@v2", tmp_path) == first
    assert [path for _, path in hub.requests] == [f"/api/models/{REPO}/revision/exp%2Flong%40v2"]
    assert fetch(f"{REPO}@exp/long@v2", tmp_path, offline=True) == first
    # As the client keeps it, so that both find what the other one has fetched.
    assert snapshot_download(REPO, revision="exp/long@v2", cache_dir=tmp_path, local_files_only=True) == str(
        first.folder
    )


def test_what_was_fetched_by_its_commit_is_there_by_its_branch_once_it_was_asked_for(hub, tmp_path):
    commit = hub.refs(REPO)["branches"]["step_9"]
    first = fetch(f"{REPO}@{commit}", tmp_path)
    with pytest.raises(CheckpointError, match="not whole in the cache"):
        fetch(f"{REPO}@step_9", tmp_path, offline=True)
    assert fetch(f"{REPO}@step_9", tmp_path) == fetch(f"{REPO}@step_9", tmp_path, offline=True) == first
    # As commands have it: the commit is known, and by which name.
    at = parse_address(f"{REPO}@step_10").at(hub.refs(REPO)["branches"]["step_10"])
    assert fetch(at, tmp_path) == fetch(f"{REPO}@step_10", tmp_path, offline=True)


def test_a_commit_that_was_pinned_stands_though_the_branch_moves(hub, tmp_path, copy_of, qwen2):
    before = commit_of(REPO, "step_9")
    pin({(REPO, "step_9"): before})
    hub.tags[REPO]["old"] = hub.branches[REPO]["step_9"]
    hub.branches[REPO]["step_9"] = moved(copy_of(qwen2[0], "later"), 7.0)
    hub.requests.clear()
    assert [one.revision for one in both(f"{REPO}@step_9", tmp_path)] == [before, before]
    assert not any("/revision/" in path for _, path in hub.requests)
    assert before in environment.for_child()[repository.PINNED]
    environment.forget()
    assert commit_of(REPO, "step_9") == hub.refs(REPO)["branches"]["step_9"] != before


@pytest.mark.parametrize(
    ("wanted", "first"),
    [("step_11", "step_10, step_9"), ("exp/long", "exp/long@v2"), ("V1", "v1"), ("Main", "main")],
)
def test_a_revision_that_is_not_there_names_the_nearest_that_are(hub, tmp_path, wanted, first):
    told = refusal(f"{REPO}@{wanted}", tmp_path)
    assert f"{REPO} has no branch, tag or commit '{wanted}'" in told
    assert f"expected: {first}" in told and "step_9" in told


def test_a_commit_cut_short_is_told_so_and_a_hub_that_lists_nothing_hides_no_error(hub, tmp_path):
    assert "give all 40 digits" in refusal(f"{REPO}@{hub.commit(REPO)[:8]}", tmp_path)
    hub.faults.append(Fault("denied", "refs"))
    assert "expected: a branch, a tag, or the 40 digits" in refusal(f"{REPO}@nothing", tmp_path)


def test_names_by_letters_and_then_by_numbers_and_no_more_than_one_reads():
    names = ["main", *(f"step_{number}" for number in range(1, 501))]
    told = nearest_names("step_501", names)
    assert told.startswith("step_500, step_499, step_498") and told.endswith("and 493 more")
    assert nearest_names("mayn", names).startswith("main")


# --- sub-folders


@pytest.mark.parametrize("inside", ["checkpoint-10", "runs/seed 1/checkpoint-9", "checkpoint-10/"])
def test_a_sub_folder_is_the_checkpoint_in_it_and_nothing_else_is_fetched(hub, tmp_path, inside):
    local = Checkpoint.open(hub.repos["org/folders"] / inside)
    for at in ("", "@main", f"@{hub.commit('org/folders')}"):
        for opened in both(f"org/folders{at}:{inside}", tmp_path):
            assert (opened.digest(), opened.revision) == (local.digest(), hub.commit("org/folders"))
            assert torch.equal(opened.stored(NORM), local.stored(NORM))
    fetched = {path.split("/resolve/")[1].split("/", 1)[1] for _, path in hub.requests if "/resolve/" in path}
    assert {name.rpartition("/")[0].replace("%20", " ") for name in fetched} == {inside.rstrip("/")}


def test_all_folders_of_a_commit_share_one_listing(hub, tmp_path):
    commit = hub.commit("org/folders")
    for inside in ("checkpoint-10", "runs/seed 1/checkpoint-9"):
        open_ranged("org/folders", commit, subfolder=inside)
    assert hub.asked(f"/tree/{commit}") == 1


def test_a_place_of_a_sub_folder_opens_it_anew(hub, tmp_path):
    opened = open_ranged("org/folders", subfolder="checkpoint-10")
    assert isinstance(opened, RangedCheckpoint)
    assert str(opened.folder) == f"org/folders@{hub.commit('org/folders')}:checkpoint-10"
    place = place_of(opened)
    assert Place.parse(place.text()) == place and place.subfolder == "checkpoint-10"
    assert place.open().digest() == opened.digest()


def test_a_folder_without_weights_names_those_that_have_some(hub, tmp_path):
    told = refusal("org/folders", tmp_path)
    assert "org/folders has no safetensors weights in its own folder" in told
    commit = hub.commit("org/folders")
    assert f"give org/folders@{commit}:checkpoint-10, say" in told
    told = refusal("org/folders:checkpoint-11", tmp_path)
    assert "checkpoint-10, runs/seed 1/checkpoint-9" in told and "in checkpoint-11" in told
    assert "none: it has weights itself" in refusal(f"{REPO}:checkpoint-1", tmp_path)


# --- how it is written


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("o/r", ("o/r", None, "")),
        ("o/r@main", ("o/r", "main", "")),
        ("o/r@a/b@c:d/e f", ("o/r", "a/b@c", "d/e f")),
        ("o/r:d", ("o/r", None, "d")),
        ("o/r@refs/pr/3", ("o/r", "refs/pr/3", "")),
    ],
)
def test_an_address_is_what_is_written_and_is_written_as_it_was(text, parts):
    address = parse_address(text)
    assert (address.repo, address.revision, address.subfolder) == parts
    assert str(address) == text and parse_address(str(address)) == address == Address(*parts)
