"""Gated and non-commercial checkpoints: refused until accepted, and what counts as accepting."""

from __future__ import annotations

import pytest

from threegates.checkpoints.manifests.licences import (
    VARIABLE,
    LicenceError,
    accept_licences,
    accepted_licences,
    check_allowed,
    check_repository,
    conditions_of,
    is_noncommercial,
    licence_name,
)
from threegates.checkpoints.manifests.manifest import Entry, Folder, Hub, Manifest
from threegates.environment import variable


@pytest.fixture(autouse=True)
def nothing_accepted(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def entry(**known: object) -> Entry:
    return Entry(name="tuned", source=Hub(repo="org/tuned"), method="rl", **known)


LIMITED = entry(licence="CC-BY-NC-4.0")
GATED = entry(gated=True, licence="llama3")


def test_what_has_no_conditions_is_always_allowed():
    for one in (entry(), entry(licence="MIT"), entry(licence="Apache-2.0")):
        assert conditions_of(one) == ()
        check_allowed(one, accepted=())
    check_allowed(Entry(name="a", source=Folder(path="a"), method="rl"), accepted=())


@pytest.mark.parametrize(
    ("one", "conditions", "way"),
    [
        (LIMITED, "is non-commercial,", "--accept-licence CC-BY-NC-4.0"),
        (entry(noncommercial=True), "is non-commercial,", "--accept-licence tuned"),
        (GATED, "is gated,", "--accept-licence tuned"),
        (entry(gated=True, licence="CC-BY-NC-4.0"), "is gated and non-commercial,", "--accept-licence tuned"),
    ],
)
def test_conditions_that_nobody_accepted_are_refused_with_the_way_to_accept_them(one, conditions, way):
    with pytest.raises(LicenceError) as caught:
        check_allowed(one, accepted=["MIT"])
    # A page of the book shows the first line alone.
    assert conditions in caught.value.what
    assert caught.value.what.endswith(way)
    assert way in caught.value.remedy
    assert f"{VARIABLE}={way.split()[-1]}" in caught.value.remedy
    assert ("hf auth login" in caught.value.remedy) == one.gated
    assert "found: MIT" in str(caught.value)


@pytest.mark.parametrize("name", ["CC-BY-NC-4.0", "cc-by-nc-4.0", " tuned ", "Tuned", "org/tuned"])
def test_a_licence_is_accepted_by_its_name_or_the_checkpoint_s(name):
    check_allowed(LIMITED, accepted=[name])


@pytest.mark.parametrize("name", ["CC-BY-NC", "", "org", "tune", "*", "CC-BY-NC-SA-4.0"])
def test_nothing_like_it_counts(name):
    with pytest.raises(LicenceError):
        check_allowed(LIMITED, accepted=[name])


def test_the_environment_accepts_too_and_what_is_started_inherits_it(monkeypatch):
    assert accepted_licences() == frozenset()
    monkeypatch.setenv(VARIABLE, " llama3 ,, tuned")
    assert accepted_licences(["CC-BY-NC-4.0"]) == {"llama3", "tuned", "CC-BY-NC-4.0"}
    accept_licences(["MIT,other", "CC-BY-NC-4.0"])
    assert accepted_licences() == {"llama3", "tuned", "MIT", "other", "CC-BY-NC-4.0"}
    check_allowed(LIMITED, accepted=accepted_licences())


def test_accepting_nothing_leaves_the_environment_alone(monkeypatch):
    import os

    assert accept_licences([]) == frozenset()
    assert VARIABLE not in os.environ and not variable(VARIABLE)


def test_a_repository_that_is_typed_has_the_conditions_of_its_entry():
    known = [Manifest(version=1, checkpoints=[entry(), LIMITED.model_copy(update={"name": "other"})])]
    check_repository("org/another", known, accepted=())
    check_repository("org/tuned", [], accepted=())
    with pytest.raises(LicenceError, match="checkpoint 'other' is non-commercial"):
        check_repository("Org/Tuned", known, accepted=())
    check_repository("org/tuned", known, accepted=["org/tuned"])


@pytest.mark.parametrize(
    ("licence", "limited"),
    [
        ("CC-BY-NC-4.0", True),
        ("cc-by-nc-sa-4.0", True),
        ("CC BY-NC 4.0", True),
        ("Qwen Non-Commercial Research", True),
        ("MIT", False),
        ("Apache-2.0", False),
        ("NCSA", False),
        ("once", False),
        (None, False),
    ],
)
def test_a_licence_s_name_says_whether_it_forbids_commercial_use(licence, limited):
    assert is_noncommercial(licence) == limited


def test_licences_are_written_as_manifests_write_them():
    told = ("mit", "apache-2.0", "cc-by-nc-4.0", "llama3.1", "MIT")
    assert [licence_name(one) for one in told] == ["MIT", "Apache-2.0", "CC-BY-NC-4.0", "llama3.1", "MIT"]
