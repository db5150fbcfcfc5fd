"""The manifest: what it refuses, with which line, and that it reads back what it writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from threegates.checkpoints.manifests.licences import is_noncommercial
from threegates.checkpoints.manifests.manifest import (
    Entry,
    Folder,
    Hub,
    Manifest,
    read_manifest,
    write_manifest,
)
from threegates.errors import ManifestError

GOOD = """\
version: 1
profile: mini
checkpoints:
  - name: base
    source: {folder: runs/base}
    method: pretrain
  - name: tuned
    source:
      hub: org/tuned
      revision: 0123456789012345678901234567890123456789
    base: base
    method: rl
    chapters: [update-sparsity]
    labels: {paper_sparsity: "53.8"}
"""


def refusal(tmp_path: Path, text: str) -> str:
    path = tmp_path / "data_manifest.yaml"
    path.write_text(text)
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def quoted() -> str:
    """The manifest above with its commit in quotes: forty decimal digits would be a number in YAML."""
    return GOOD.replace("revision: 0123456789012345678901234567890123456789", "revision: '" + "0a" * 20 + "'")


def test_reads_entries_pairs_and_folders(tmp_path, quoted):
    (tmp_path / "m.yaml").write_text(quoted)
    manifest = read_manifest(tmp_path / "m.yaml")
    assert manifest.profile == "mini"
    assert manifest.entry("tuned").source == Hub(repo="org/tuned", revision="0a" * 20)
    assert manifest.entry("base").folder(manifest) == tmp_path.resolve() / "runs" / "base"
    (pair,) = manifest.pairs("update-sparsity")
    assert (pair.name, pair.base.name, pair.tuned.name) == ("tuned", "base", "tuned")
    assert manifest.pairs("emergence") == []
    assert len(manifest.pairs()) == 1


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        (
            "profile: mini",
            "profil: mini",
            ["line 2, profil", "keys version, profile, checkpoints", "'profile'?"],
        ),
        (
            "method: rl",
            "methud: rl",
            ["line 12, checkpoints[1].methud", "the unknown key 'methud'", "'method'?"],
        ),
        (
            "hub: org/tuned",
            "repo: org/tuned",
            ["line 9, checkpoints[1].source.repo", "keys hub, ref, subfolder, revision"],
        ),
        ("folder: runs/base", "folder: runs/base, x: 1", ["line 5, checkpoints[0].source.x", "keys folder"]),
        ("{folder: runs/base}", "runs/base", ["line 5, checkpoints[0].source", "{folder: PATH} or {hub:"]),
        ("    base: base\n", "    base: bsae\n", ["line 11, checkpoints[1].base", "there is no 'bsae'"]),
        ("name: tuned", "name: base", ["line 7, checkpoints[1].name", "'base' is already an entry"]),
        (
            "    method: pretrain",
            "    method: pretrain\n    base: tuned",
            ["line 7", "not lead back to 'base'"],
        ),
        ("name: tuned", "name: a b", ["line 7, checkpoints[1].name", "without spaces", "'a b'"]),
        ("  - name: tuned\n    source", "  - source", ["line 7, checkpoints[1].name", "add 'name'"]),
        ("method: rl", "method: rlhf", ["line 12, checkpoints[1].method", "'rl'", "'rlhf'"]),
        ('"53.8"', "53.8", ["line 14, checkpoints[1].labels.paper_sparsity", "a text", "53.8", "quotes"]),
        ("'0a0a", "'", ["line 10, checkpoints[1].source.revision", "40 hexadecimal digits"]),
        ("version: 1", "version: 2", ["line 1, version", "found: 2"]),
        ("runs/base", "../base", ["line 5, checkpoints[0].source.folder", "stays inside the folder"]),
        ("runs/base", "/etc", ["line 5, checkpoints[0].source.folder", "stays inside the folder"]),
        ("org/tuned", "tuned", ["line 9, checkpoints[1].source.hub", "ORG/REPO"]),
        (
            "method: rl",
            "method: rl\n    files: {a: b}",
            ["line 13, checkpoints[1].files.a", "64 hexadecimal"],
        ),
        ("method: rl", "method: rl\n    method: sft", ["line 13", "'method' is given twice", "line 12"]),
        ("method: rl", "method: rl\n    step: some", ["line 13, checkpoints[1].step", "integer", "'some'"]),
        ("method: rl", "method: [rl", ["line 1", "not plain YAML"]),
        ("method: rl", "method: !!python/name:os.system x", ["line 12", "not plain YAML"]),
        ("method: rl", "? [a, b]\n    : rl", ["line 12", "no text"]),
        ("method: rl", "method: &m [*m]", ["line 12"]),
    ],
)
def test_what_breaks_the_schema_is_told_with_its_line(tmp_path, quoted, old, new, parts):
    assert old in quoted
    message = refusal(tmp_path, quoted.replace(old, new, 1))
    for part in parts:
        assert part in message


def test_every_broken_line_is_counted(tmp_path, quoted):
    message = refusal(tmp_path, quoted.replace("mini", "[]").replace("method: rl", "method: x"))
    assert "1 more on line 12" in message
    assert "line 2, profile" in message


@pytest.mark.parametrize(("text", "part"), [("", "is empty"), ("[]", "line 1"), ("a: [", "not plain YAML")])
def test_files_that_are_no_manifest(tmp_path, text, part):
    assert part in refusal(tmp_path, text)


def test_no_file(tmp_path):
    with pytest.raises(ManifestError, match="there is no manifest that can be read"):
        read_manifest(tmp_path / "none.yaml")


def test_an_unknown_entry_and_a_folder_that_is_none(tmp_path, quoted):
    (tmp_path / "m.yaml").write_text(quoted)
    manifest = read_manifest(tmp_path / "m.yaml")
    with pytest.raises(ManifestError, match="one of: tuned"):
        manifest.entry("tunde")
    with pytest.raises(ManifestError, match="in a Hub repository"):
        manifest.entry("tuned").folder(manifest)
    built = Manifest(version=1, checkpoints=manifest.checkpoints)
    with pytest.raises(ManifestError, match="relative to nothing"):
        built.entry("base").folder(built)


def test_a_cycle_of_two_is_refused_in_code_too():
    a = Entry(name="a", source=Folder(path="a"), method="rl", base="b")
    b = Entry(name="b", source=Folder(path="b"), method="rl", base="a")
    with pytest.raises(ValidationError, match="must not lead back to 'a' itself"):
        Manifest(version=1, checkpoints=[a, b])


names = st.from_regex(r"[a-z][a-z0-9._-]{0,8}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
revisions = st.none() | st.from_regex("[0-9a-f]{40}", fullmatch=True)
sources = names.map(lambda path: Folder(path=path)) | revisions.map(
    lambda r: Hub(repo="org/repo", revision=r)
)
entries = st.builds(
    Entry,
    name=names,
    source=sources,
    method=st.sampled_from(["pretrain", "rl", "sft"]),
    files=st.dictionaries(names, st.from_regex("[0-9a-f]{64}", fullmatch=True), max_size=2),
    learning_rate=st.none() | st.floats(1e-9, 1, allow_nan=False),
    seed=st.none() | st.integers(0, 2**62),
    labels=st.dictionaries(texts, texts, max_size=3),
    note=st.none() | texts,
    base=st.none(),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(entries, max_size=4, unique_by=lambda entry: entry.name))
def test_what_is_written_reads_back(tmp_path_factory, checkpoints):
    path = tmp_path_factory.getbasetemp() / "round" / "manifest.yaml"
    manifest = Manifest(version=1, profile="x", checkpoints=checkpoints)
    write_manifest(path, manifest)
    again = read_manifest(path)
    assert again.model_dump() == manifest.model_dump()
    assert os.listdir(path.parent) == ["manifest.yaml"]


def test_the_same_manifest_gives_the_same_bytes(tmp_path):
    for file, labels in (("a", {"x": "1", "y": "2"}), ("b", {"y": "2", "x": "1"})):
        entry = Entry(name="n", source=Folder(path="n"), method="rl", labels=labels)
        write_manifest(tmp_path / file, Manifest(version=1, checkpoints=[entry]))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_write_that_fails_leaves_the_old_manifest(tmp_path, monkeypatch):
    path = tmp_path / "manifest.yaml"
    write_manifest(path, Manifest(version=1, checkpoints=[]))
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_manifest(path, Manifest(version=1, profile="new", checkpoints=[]))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["manifest.yaml"]


# The tracked manifest

TRACKED = Path(__file__).parents[3] / "data_manifest.yaml"
# Table 1 of the paper without its two rows that nobody can download: name and sparsity in %.
TABLE_1 = {
    "DS-R1-Distill-Qwen-1.5B": 2.8,
    "DeepScaleR-1.5B-Preview": 53.8,
    "DeepCoder-1.5B-Preview": 45.5,
    "Archer-Code-1.5B": 52.5,
    "NV-ProRL": 38.4,
    "NV-ProRL-v2": 36.3,
    "Klear-Reasoner-8B-SFT": 0.6,
    "Klear-Reasoner-8B": 69.5,
    "GT-Qwen3-8B-Base": 79.9,
    "UniReason-Qwen3-14B-think-SFT": 18.8,
    "UniReason-Qwen3-14B-RL": 68.3,
    "Polaris-4B-Preview": 79.3,
    "Polaris-7B-Preview": 61.7,
}
# Table 3 with each one's base; Figs 13 and 16 to 18 by base.
TABLE_3 = {
    "SkyRL-Agent-WebResearch-8B": "Qwen3-8B",
    "VT-deepsearch-8B": "Qwen3-8B",
    "VT-SWE-8B": "Qwen3-8B",
    "agentflow-planner-7b": "Qwen2.5-7B-Instruct",
    "GiGPO-Qwen2.5-7B-Instruct-WebShop": "Qwen2.5-7B-Instruct",
    "GiGPO-Qwen2.5-7B-Instruct-ALFWorld": "Qwen2.5-7B-Instruct",
    "Llama-3-Instruct-8B-DPO": "Meta-Llama-3-8B-Instruct",
    "Llama-3-Instruct-8B-SimPO": "Meta-Llama-3-8B-Instruct",
}
FIGURES = {
    "Fig. 13": {"Llama-3.1-8B", "Mistral-Small-24B-Base-2501"},
    "16": {"DeepSeek-R1-Distill-Qwen-1.5B"},
    "Fig. 17": {"Qwen3-14B-Base"},
    "Fig. 18": {"Meta-Llama-3-8B-Instruct"},
}


def test_the_papers_checkpoints_are_in_the_tracked_manifest():
    manifest = read_manifest(TRACKED)
    rows = [pair.tuned for pair in manifest.pairs("update-sparsity")]
    assert {e.labels["paper_name"]: float(e.labels["paper_sparsity"]) for e in rows} == TABLE_1
    five = manifest.pairs("stripe-masks")
    assert len(five) == 5
    assert {pair.base.name for pair in five} == {"DeepSeek-R1-Distill-Qwen-1.5B"}
    assert {pair.name: pair.base.name for pair in manifest.pairs("agents-rlhf")} == TABLE_3
    assert {pair.base.name for pair in manifest.pairs("spectral-drift")} >= FIGURES["16"] | FIGURES["Fig. 17"]
    for figure, bases in FIGURES.items():
        places = [(pair.tuned.labels.get("paper_place", ""), pair.base.name) for pair in manifest.pairs()]
        assert {base for place, base in places if place.endswith(figure)} == bases


def test_the_tracked_manifest_marks_what_has_conditions():
    manifest = read_manifest(TRACKED)
    marked = {entry.name for entry in manifest.checkpoints if entry.noncommercial}
    assert marked == {entry.name for entry in manifest.checkpoints if is_noncommercial(entry.licence)}
    assert marked >= {"NV-ProRL", "NV-ProRL-v2"}
    gated = {entry.name for entry in manifest.checkpoints if entry.gated}
    assert gated >= {"Meta-Llama-3-8B-Instruct", "Llama-3.1-8B"}


def test_the_tracked_manifest_knows_what_the_five_runs_are_stored_in_and_whose_they_are():
    entries = {entry.name: entry for entry in read_manifest(TRACKED).checkpoints}
    assert entries["DeepSeek-R1-Distill-Qwen-1.5B"].stored_dtype == "bf16"
    assert entries["DeepScaleR-1.5B-Preview"].stored_dtype == "fp32"
    assert entries["DeepCoder-1.5B-Preview"].stored_dtype == "fp32"
    assert entries["Archer-Code-1.5B"].licence == "Apache-2.0"
    # v2 continues v1: the same repository, other algorithms, so they can never be one commit.
    first, second = entries["NV-ProRL"], entries["NV-ProRL-v2"]
    assert first.source.repo == second.source.repo
    assert first.algorithm != second.algorithm


def test_a_guess_of_the_tracked_manifest_says_so():
    """Ids that nobody has looked up; once an entry is checked its note may go."""
    guessed = {
        "Qwen2.5-Math-1.5B",
        "Mistral-Small-24B-Base-2501",
        "GT-Qwen3-8B-Base",
        "NV-ProRL",
        "NV-ProRL-v2",
        "Llama-3.1-8B-SimpleRL-Zoo",
        "Mistral-Small-24B-SimpleRL-Zoo",
    }
    manifest = read_manifest(TRACKED)
    assert [name for name in guessed if not (manifest.entry(name).checked or manifest.entry(name).note)] == []


def test_runs_with_checkpoints_along_training_are_there_and_say_that_nobody_looked_them_up():
    manifest = read_manifest(TRACKED)
    runs: dict[str, list[int]] = {}
    for one in manifest.members.values():
        assert one.base is not None and not one.checked and "not checked" in one.note and not one.chapters
        assert {one.source.ref, one.source.subfolder} & {f"step_{one.step}", one.source.subfolder} - {None}
        runs.setdefault(one.source.repo + str(one.seed or ""), []).append(one.step)
    relex = {name: steps for name, steps in runs.items() if name.startswith("relex-rlvr/")}
    assert {name.split("RLVR-")[1]: steps for name, steps in relex.items()} == {
        "Qwen2.5-Math-1.5B": list(range(1, 501)),
        "Qwen3-4B-Base": list(range(1, 76)),
        "Qwen3-8B-Base": list(range(1, 101)),
    }
    kinds = {name.rsplit("-", 1)[1] for name in runs if "RL-Zero" in name}
    assert kinds == {"Math", "Code", "IF", "General"}
    assert all(manifest.entry(f"Olmo-3-7B-RL-Zero-{kind}").final for kind in kinds)
    last = manifest.entry("RLPO-seed43-step_500").source
    assert last.subfolder == "checkpoints/rlpo_cosine/seed43/global_step_500"


def test_nothing_in_the_tracked_manifest_claims_more_than_was_done():
    for entry in read_manifest(TRACKED).checkpoints:
        assert isinstance(entry.source, Hub)
        assert not entry.checked or (entry.source.revision and entry.files)
    assert yaml.safe_load(TRACKED.read_text())["profile"] == "paper"
