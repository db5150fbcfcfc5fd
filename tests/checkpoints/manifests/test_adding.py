"""A new pair in a manifest: what is written, what is used again, and what is refused."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest

from tests.planted import planted
from threegates.checkpoints.manifests.adding import AddedPair, Facts, add_pair
from threegates.checkpoints.manifests.manifest import Folder, Hub, read_manifest
from threegates.errors import CheckpointError, ManifestError

TRACKED = Path(__file__).parents[3] / "data_manifest.yaml"
COMMIT = "0b" * 20
TEXT = """\
# Pairs of ours.
version: 1
checkpoints:
  - name: base   # the base
    source: {hub: org/base, revision: null}
    method: pretrain
  - name: tuned
    source: {hub: org/tuned, revision: null}
    base: base
    method: rl
# The end.
"""


@pytest.fixture
def manifest(tmp_path) -> Path:
    path = tmp_path / "m.yaml"
    path.write_text(TEXT)
    return path


def add(manifest: Path, *sides: str, method: str = "rl", **rest: object) -> AddedPair:
    """Add a pair, of whose keywords some are facts of the tuned checkpoint."""
    facts = {field.name: rest.pop(field.name) for field in fields(Facts) if field.name in rest}
    return add_pair(manifest, *sides, Facts(method, **facts), **rest)


def refusal(manifest: Path, *sides: str, **facts: object) -> str:
    before = manifest.read_bytes()
    with pytest.raises(ManifestError) as caught:
        add(manifest, *sides, **facts)
    assert manifest.read_bytes() == before
    assert manifest.name in os.listdir(manifest.parent)
    assert not list(manifest.parent.glob(".*"))
    return str(caught.value)


def test_a_pair_of_two_new_repositories_makes_two_entries(manifest):
    added = add(manifest, "a/Big-7B", "b/Big-7B-RL", algorithm="GRPO", data="math")
    new = (
        "  - name: Big-7B\n"
        "    source: {hub: a/Big-7B, revision: null}\n"
        "    method: mixed\n"
        "    checked: false\n"
        "  - name: Big-7B-RL\n"
        "    source: {hub: b/Big-7B-RL, revision: null}\n"
        "    base: Big-7B\n"
        "    method: rl\n"
        "    algorithm: GRPO\n"
        "    data: math\n"
        "    checked: false\n"
    )
    assert manifest.read_text() == TEXT.replace("# The end.\n", new + "# The end.\n")
    assert (added.name, added.base, added.written) == ("Big-7B-RL", "Big-7B", ("Big-7B", "Big-7B-RL"))
    assert "`threegates lock Big-7B Big-7B-RL`" in added.text()
    assert "--pair Big-7B-RL" in added.text()
    (pair,) = [pair for pair in read_manifest(manifest).pairs() if pair.name == "Big-7B-RL"]
    assert pair.base.source == Hub(repo="a/Big-7B")


@pytest.mark.parametrize("base", ["base", "org/base", "Org/Base"])
def test_a_base_that_is_there_is_used_again(manifest, base):
    added = add(manifest, base, f"b/new@{COMMIT}", method="dpo", name="mine")
    assert (added.base, added.written) == ("base", ("mine",))
    assert "base: base, which was there already" in added.text()
    entry = read_manifest(manifest).entry("mine")
    assert (entry.base, entry.source) == ("base", Hub(repo="b/new", revision=COMMIT))


def test_a_base_at_another_commit_is_another_base(manifest):
    assert "an entry 'base' already" in refusal(manifest, f"org/base@{COMMIT}", "b/new")
    added = add(manifest, f"org/base@{COMMIT}", "b/new", base_name="base-then")
    assert read_manifest(manifest).entry(added.base).source.revision == COMMIT


def test_everything_that_is_known_is_written(manifest):
    add(
        manifest,
        "base",
        "b/new",
        method="sft",
        algorithm="SFT",
        data="math+code",
        chapters=["update-sparsity", "spectral-drift"],
        licence="CC-BY-NC-4.0",
        learning_rate=1e-6,
        step=70,
        seed=3,
        gated=True,
        labels={"family": "of: ours, {really}"},
        note="# about 5 % of it: 'yes'",
    )
    entry = read_manifest(manifest).entry("new")
    assert entry.chapters == ["update-sparsity", "spectral-drift"]
    assert (entry.learning_rate, entry.step, entry.seed) == (1e-6, 70, 3)
    assert entry.licence == "CC-BY-NC-4.0"
    assert (entry.gated, entry.noncommercial, entry.checked) == (True, True, False)
    assert entry.labels == {"family": "of: ours, {really}"}
    assert entry.note == "# about 5 % of it: 'yes'"


def test_folders_inside_the_manifest_s_own_are_written_relative_to_it(manifest, monkeypatch):
    for name in ("then", "now"):
        planted.write(manifest.parent / "runs" / name, planted.base_tensors())
    monkeypatch.chdir(manifest.parent / "runs")
    added = add(manifest, "runs/then", str(manifest.parent / "runs" / "now"))
    read = read_manifest(manifest)
    assert read.entry(added.base).source == Folder(path="runs/then")
    assert read.entry(added.name).source == Folder(path="runs/now")
    assert str(manifest.parent) not in manifest.read_text()
    # Seen from where one stands, and there already.
    assert add(manifest, "then", "b/new").base == "then"
    assert "has that pair already, as 'now'" in refusal(manifest, "then", "now", name="again")


@pytest.mark.parametrize("held", ["adapter_model.safetensors", "pytorch_model.bin", "notes.txt"])
def test_a_folder_that_is_no_checkpoint_is_refused_before_it_is_written_down(manifest, held):
    (manifest.parent / "mine").mkdir()
    (manifest.parent / "mine" / held).write_text("x")
    before = manifest.read_bytes()
    with pytest.raises(CheckpointError, match="mine|weights|adapter") as caught:
        add(manifest, "base", "mine")
    assert caught.value.remedy and manifest.read_bytes() == before


def test_a_repository_that_may_have_been_meant_as_a_folder_is_told(manifest, monkeypatch):
    planted.write(manifest.parent / "mine" / "base", planted.base_tensors())
    added = add(manifest, "mine/base", "mine/tunde", name="new", base_name="own")
    assert added.remarks == ("new: a repository of the Hub, for there is no folder mine/tunde",)
    assert "\nlook at new: a repository of the Hub" in added.text()
    assert add(manifest, "base", "other/new", name="newer").remarks == ()


def test_folders_elsewhere_are_refused(manifest, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    message = refusal(manifest, "base", str(elsewhere))
    assert "neither a repository of the Hub nor a folder inside the manifest's" in message
    assert "--base and --tuned" in message
    (manifest.parent / "out").symlink_to(elsewhere)
    assert "nor a folder inside" in refusal(manifest, "base", "out")
    assert "nor a folder inside" in refusal(manifest, "base", str(manifest.parent))


@pytest.mark.parametrize(
    "text", ["", "b", "b/c/d", "../x/y", "b/c@a..b", "b/c:../d", "b/c d", "https://hub/b/c", "b/c\n", "-"]
)
def test_what_is_no_repository_is_refused(manifest, text):
    assert "the tuned side is neither a repository" in refusal(manifest, "base", text)
    assert "the base side is neither a repository" in refusal(manifest, text, "b/c")


def test_a_branch_and_a_folder_of_a_repository_are_written_and_tell_pairs_apart(manifest):
    assert add_pair(manifest, "base", "b/c@exp/step_4:d/e", Facts("rl")).name == "c-exp-step_4-d-e"
    add_pair(manifest, "base", "b/c@step_5", Facts("rl"), name="five")
    add_pair(manifest, "base", f"b/c@{'0' * 40}:runs/1", Facts("rl"), name="one")
    add_pair(manifest, "base", "b/c@step_6", Facts("rl"), name="six")
    sources = {name: read_manifest(manifest).entry(name).source for name in ("five", "one", "six")}
    assert sources["five"] == Hub(repo="b/c", ref="step_5")
    assert sources["one"] == Hub(repo="b/c", revision="0" * 40, subfolder="runs/1")
    assert "has that pair already, as 'six'" in refusal(manifest, "base", "b/c@step_6", name="again")
    assert "are one checkpoint" in refusal(manifest, "b/d@main", "b/d@main", name="same", base_name="there")


@pytest.mark.parametrize("name", ["tuned", "Tuned", "base"])
def test_names_that_are_taken_are_refused(manifest, name):
    assert "the manifest has an entry" in refusal(manifest, "base", "b/new", name=name)
    assert "the manifest has an entry" in refusal(manifest, "a/new-base", f"b/{name}")


def test_both_sides_cannot_take_one_name(manifest):
    assert "the manifest has an entry 'model' already" in refusal(manifest, "a/model", "b/model")


@pytest.mark.parametrize("name", ["a b", "a/b", "x\ny", "{a}", "-a", "a:", "é" * 97, "hf_" + "a" * 30])
def test_names_that_are_not_plain_are_refused(manifest, name):
    assert "an entry's name has to be plain" in refusal(manifest, "base", "b/new", name=name)


def test_a_pair_that_is_there_or_of_one_checkpoint_is_refused(manifest):
    assert "has that pair already, as 'tuned'" in refusal(manifest, "base", "org/tuned", name="again")
    assert "base and tuned are one checkpoint" in refusal(manifest, "a/b", "A/b")
    assert "base and tuned are one checkpoint" in refusal(manifest, "base", f"org/base@{COMMIT}", name="x")


def test_an_ambiguous_base_is_asked_for_by_name(manifest):
    second = "  - {name: second, source: {hub: org/base}, method: pretrain}\n"
    manifest.write_text(TEXT.replace("# The end.\n", second))
    assert "expected: the name of one: base, second" in refusal(manifest, "org/base", "b/new")
    assert add(manifest, "second", "b/new").base == "second"


def test_unknown_methods_and_chapters_are_refused_with_those_there_are(manifest):
    message = refusal(manifest, "base", "b/new", method="ppo")
    assert "there is no such method" in message
    assert "expected: one of pretrain, sft, rft, rl, dpo, simpo, mixed" in message
    assert "no such base method" in refusal(manifest, "a/b", "b/new", base_method="x")
    known = {"known_chapters": ["emergence", "kl-leash"]}
    message = refusal(manifest, "base", "b/new", chapters=["emergence", "emergenze"], **known)
    assert "expected: emergence, kl-leash" in message
    assert "no such chapter" in refusal(manifest, "base", "b/new", chapters=["a b"])


@pytest.mark.parametrize("key", ["algorithm", "data", "licence", "note"])
@pytest.mark.parametrize(
    "text",
    [
        "two\nlines",
        "\x1b[31mred",
        "",
        " ",
        "x" * 401,
        "from /home/someone/runs",
        "~/runs",
        "C:\\runs",
        "hf_" + "Q" * 34,
    ],
)
def test_texts_that_no_published_manifest_should_hold_are_refused(manifest, key, text):
    message = refusal(manifest, "base", "b/new", **{key: text})
    assert f"'{key}' is no text for a manifest" in message
    assert "hf_Q" not in message


def test_labels_are_looked_at_too(manifest):
    assert "'family' is no text" in refusal(manifest, "base", "b/new", labels={"family": "a\nb"})
    assert "a label's name has to be plain" in refusal(manifest, "base", "b/new", labels={"a b": "c"})


def test_a_broken_or_missing_manifest_is_refused(manifest):
    manifest.write_text(TEXT + "extra: 1\n")
    assert "the unknown key 'extra'" in refusal(manifest, "base", "b/new")
    with pytest.raises(ManifestError, match="there is no manifest that can be read"):
        add(manifest.parent / "none" / "m.yaml", "a/b", "c/d")
    assert not (manifest.parent / "none").exists()


def test_the_tracked_manifest_takes_a_pair_and_keeps_every_byte_before_it(tmp_path):
    path = tmp_path / "data_manifest.yaml"
    path.write_bytes(TRACKED.read_bytes())
    added = add(path, "Qwen/Qwen3-8B", "some/Qwen3-8B-RL", algorithm="GSPO")
    assert added.base == "Qwen3-8B"
    assert path.read_bytes().startswith(TRACKED.read_bytes().rstrip(b"\n"))
    assert read_manifest(path).entry("Qwen3-8B-RL").algorithm == "GSPO"
