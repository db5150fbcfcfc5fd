"""Subjects: whose pairs a study looks at, and in which words."""

from __future__ import annotations

import re

import pytest

from tests.planted import planted
from threegates.checkpoints.manifests.manifest import read_manifest
from threegates.errors import ClaimError, ManifestError
from threegates.jobs.sources import chapter_pairs
from threegates.jobs.subjects import CLAIMED, COMPUTED, SUBJECTS, described, subject_of, taken_by
from threegates.judging.claims import read_claims
from threegates.lab.plans import plan
from threegates.lab.plans.larger import larger_drafts
from threegates.lab.plans.profiles import GPU, PROFILES
from threegates.lab.subjects import LAB
from threegates.pages.contents import book_pages
from threegates.releases.making import RELEASED_PROFILE
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


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_subject_has_words_label_and_colour_of_its_own(name):
    subject = SUBJECTS[name]
    assert subject.name == name == subject.name.lower() and subject.text.startswith("**The subject**")
    assert subject.limits.startswith("**Of this subject.**") and subject.short
    assert subject.label.startswith("the ") and re.fullmatch(r"#[0-9A-F]{6}", subject.colour)
    assert described(name) is subject and "mine" not in SUBJECTS
    for other in SUBJECTS.values():
        for told in ("title", "short", "text", "limits", "label", "colour"):
            assert (getattr(other, told) == getattr(subject, told)) == (other is subject), told


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_subject_is_trained_by_a_profile_and_taken_by_none_that_does_not_have_it(name):
    holders = {profile for profile, subjects in drafted().items() if name in subjects}
    assert holders and set(SUBJECTS[name].taken_by) <= holders
    # What is taken must have been trained by the profile that is released.
    assert RELEASED_PROFILE in holders - set(SUBJECTS[name].taken_by) or not SUBJECTS[name].taken_by
    assert all(name in taken_by(profile) for profile in SUBJECTS[name].taken_by)
    assert taken_by(RELEASED_PROFILE) == ()


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_subject_has_claims_that_name_it_or_those_of_a_subject_that_has(name):
    claims = read_claims(planted.ROOT / "claims.yaml")
    own = [claim.id for claim in claims.claims if name in claim.subjects]
    other = SUBJECTS[name].judged_as
    assert bool(own) != bool(other)
    if other:
        assert not SUBJECTS[other].judged_as
        assert claims.of("stripe-masks", name) == claims.of("stripe-masks", other) != []


def drafted():
    """Names of the subjects that each profile trains."""
    drafts = {name: plan._drafts(known) for name, known in PROFILES.items()}
    drafts[GPU] = larger_drafts(plan._drafts(PROFILES["mini"]))
    return {name: {draft.subject or LAB for draft in own} for name, own in drafts.items()}


def test_whatever_is_planned_or_shown_on_a_page_of_its_own_is_a_subject():
    assert set().union(*drafted().values()) == set(SUBJECTS)
    shown = {page.parameters.get("subject", LAB) for page in book_pages(planted.ROOT)}
    assert shown <= set(SUBJECTS)


def test_what_is_said_of_a_subject_is_what_it_is():
    for word in ("bandit", "frozen", "repackaged"):
        assert word in SUBJECTS["encoder"].limits
    assert "others published" in described("lab", "paper").text
    unknown = described("mine")
    assert unknown.text == "" and unknown.label == "mine" and unknown.colour == "#000000"


def test_a_claim_is_judged_on_the_subjects_that_it_names():
    claims = read_claims(planted.ROOT / "claims.yaml")
    for chapter in ("spectral-drift", "principal-overlap"):
        both = [[claim.id for claim in claims.of(chapter, name)] for name in ("lab", "encoder", "")]
        assert both[0] == both[1] == both[2] != []
    assert claims.of("stripe-masks", "lab") and not claims.of("stripe-masks", "encoder")
    assert {name for claim in claims.claims for name in claim.subjects} == {*CLAIMED}
    assert COMPUTED in CLAIMED


@pytest.mark.parametrize("name", ["encodr", "larger"])
def test_a_claim_cannot_name_what_no_claim_is_judged_on(name, tmp_path):
    text = (planted.ROOT / "claims.yaml").read_text(encoding="utf-8")
    (tmp_path / "claims.yaml").write_text(text.replace("[lab, encoder]", f"[lab, {name}]", 1))
    with pytest.raises(ClaimError, match=f"no claim is judged on a subject '{name}'; known: lab, encoder"):
        read_claims(tmp_path / "claims.yaml")
