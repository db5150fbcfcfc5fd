"""Subjects: whose pairs a study looks at, and in which words."""

from __future__ import annotations

import pytest

from tests.planted import planted
from threegates.checkpoints.manifests.manifest import read_manifest
from threegates.errors import ManifestError
from threegates.jobs.sources import chapter_pairs
from threegates.jobs.subjects import COMPUTED, JUDGED_AS, SUBJECTS, described, subject_of
from threegates.judging.claims import read_claims
from threegates.study import Study

CHAPTER = "spectral-drift"


@pytest.fixture
def manifest(project):
    base = planted.base_tensors()
    labels = {"plain": {"rate": "mask"}, "named": {"rate": "mask", "subject": "lab"}}
    labels |= {"other": {"rate": "mask", "subject": "encoder"}, "third": {"subject": "mine"}}
    entries = [planted.entry(name, "rl", [CHAPTER], labels=own) for name, own in labels.items()]
    runs = {entry.name: (planted.with_noise(base, 1e-3, 1), entry) for entry in entries}
    return planted.write_study(project / "build" / "lab", base, runs)


def names(study):
    return [pair.name for pair in study.pairs]


def test_entries_without_the_label_belong_to_the_lab(manifest):
    assert names(Study.open(CHAPTER, manifest=manifest)) == ["plain", "named"]
    assert names(Study.open(CHAPTER, manifest=manifest, subject="encoder")) == ["other"]
    assert names(Study.open(CHAPTER, manifest=manifest, subject="mine")) == ["third"]
    assert subject_of(read_manifest(manifest).entry("base")) == "lab"


def test_an_unknown_subject_is_refused_and_a_known_one_without_pairs_is_not(manifest, project):
    with pytest.raises(ManifestError, match="no such subject") as failure:
        chapter_pairs(CHAPTER, read_manifest(manifest), "encodr")
    assert "encoder, lab, larger, mine" in str(failure.value)
    bare = planted.write_study(project / "bare", planted.base_tensors(), {})
    study = Study.open(CHAPTER, manifest=bare, subject="encoder")
    assert study.pairs == [] and set(study.verdicts()["verdict"]) == {"not run"}


def test_a_study_says_plainly_what_it_is_about(manifest):
    encoder = Study.open(CHAPTER, manifest=manifest, subject="encoder").subject
    assert "one-step bandit" in encoder and "third party" in encoder
    assert "1 checkpoint of profile planted" in encoder
    assert Study.open(CHAPTER, manifest=manifest).subject.startswith("the miniature lab: 2 checkpoints")


def test_chosen_pairs_have_the_subject_that_they_share(manifest):
    def about(*pairs):
        return Study.open(CHAPTER, manifest=manifest, pairs=list(pairs), subject="lab").about.name

    assert (about("other"), about("plain", "named"), about("plain", "other")) == ("encoder", "lab", "")


def test_a_pair_of_ones_own_is_named_and_nothing_else_is_said(manifest, project):
    lab = project / "build" / "lab"
    about = Study.open(CHAPTER, base=str(lab / "base"), tuned=str(lab / "other"), subject="encoder").about
    assert about.name == "" and about.limits == "" and "pair of your own" in about.text


def test_every_subject_has_words_and_limits_of_its_own():
    for name, subject in SUBJECTS.items():
        assert subject.name == name and subject.title and subject.text and subject.limits
    texts = [getattr(s, kind) for s in SUBJECTS.values() for kind in ("title", "short", "text", "limits")]
    lab = SUBJECTS["lab"]
    assert len(set(texts)) == len(texts) - (lab.title == lab.short)
    for word in ("bandit", "frozen", "repackaged"):
        assert word in SUBJECTS["encoder"].limits
    assert "others published" in described("lab", "paper").text
    assert described("mine", None).text == ""


def test_a_claim_is_judged_on_the_subjects_that_it_names():
    claims = read_claims(planted.ROOT / "claims.yaml")
    for chapter in ("spectral-drift", "principal-overlap"):
        both = [[claim.id for claim in claims.of(chapter, name)] for name in ("lab", "encoder", "")]
        assert both[0] == both[1] == both[2] != []
    assert claims.of("stripe-masks", "lab") and not claims.of("stripe-masks", "encoder")
    assert {name for claim in claims.claims for name in claim.subjects} == {*SUBJECTS, COMPUTED} - {
        *JUDGED_AS
    }
    for name, other in JUDGED_AS.items():
        assert name in SUBJECTS and claims.of("stripe-masks", name) == claims.of("stripe-masks", other) != []
