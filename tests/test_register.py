"""What every chapter of the register has to keep: a notebook, a folder, kinds of job, estimates, a reason."""

from __future__ import annotations

import importlib

import pytest

from tests.planted.pages import NOTEBOOKS, ROOT
from tests.planted.planted_tables import given
from threegates.checkpoints.manifests.manifest import read_manifest
from threegates.digest import PACKAGE
from threegates.errors import ClaimError
from threegates.jobs.kinds.known import KINDS, tables_of
from threegates.judging.claims import read_claims
from threegates.judging.robustness import _COARSE, HEADLINE
from threegates.lab.plans.plan import STEP_CHAPTERS, plan
from threegates.pages.notebooks import modules, notebook_path, opened_chapters, read_notebook
from threegates.pages.parameters import declared
from threegates.preflight import MEASURE
from threegates.register import (
    _CHAPTERS,
    ANY_PAIR,
    CHAPTERS,
    ESTIMATES,
    EXACT,
    SWEEPS,
    TAKING_PAIRS,
    WITH_JOBS,
    Chapter,
    Shows,
    chapter_of,
    estimate,
)

EVERY = pytest.mark.parametrize("chapter", CHAPTERS.values(), ids=list(CHAPTERS))
CLAIMS = read_claims(ROOT / "claims.yaml").claims
#: Parameters by which a notebook takes a reader's pairs, by whose pairs its chapter shows.
TAKES = {
    Shows.any_pair: {"pairs", "base", "tuned", "layers", "matrices"},
    Shows.by_name: {"pairs"},
    Shows.runs: {"pairs", "base", "tuned", "layers", "matrices"},
    Shows.runs_of_lab: {"pairs"},
    Shows.nothing: set(),
}


def folder(chapter: Chapter):
    return PACKAGE / "chapters" / chapter.name.replace("-", "_")


def named_estimates(awaiting: bool) -> set[str]:
    """Estimates of claims and controls that await their runs, or of the others."""
    rules = [(claim.awaits, claim.rule) for claim in CLAIMS]
    rules += [(claim.awaits or rule.awaits, rule) for claim in CLAIMS for rule in claim.controls]
    return {rule.estimate for awaits, rule in rules if bool(awaits) == awaiting}


# ------------------------------------------------------------------------------------------- all chapters


def test_every_notebook_has_one_entry_and_every_entry_a_notebook():
    assert sorted(one.name for one in _CHAPTERS) == sorted(path.stem for path in NOTEBOOKS)


def test_every_folder_of_the_chapters_is_that_of_one():
    found = {path.parent for path in (PACKAGE / "chapters").glob("*/__init__.py")}
    assert found and found <= {folder(chapter) for chapter in CHAPTERS.values()}


def test_no_two_chapters_have_an_estimate_of_one_name():
    assert len(ESTIMATES) == sum(len(one.estimates) for one in CHAPTERS.values())


def test_chapters_that_share_a_table_sweep_it_alike():
    for one in CHAPTERS.values():
        assert {table: SWEEPS[table] for table in one.sweeps} == one.sweeps


def test_every_kind_of_job_is_some_chapters_or_that_of_measure():
    assert {kind for kinds in WITH_JOBS.values() for kind in kinds} | {"table"} == set(KINDS)
    assert MEASURE not in CHAPTERS


def test_the_lab_keeps_steps_for_the_chapters_that_follow_them():
    assert {name for name, one in CHAPTERS.items() if one.follows_steps} == set(STEP_CHAPTERS)


def test_runs_are_planned_for_chapters_that_take_pairs():
    planned = {chapter for item in plan("mini") for chapter in item.draft.chapters}
    assert planned and planned <= set(TAKING_PAIRS)


def test_published_pairs_are_listed_for_chapters_that_take_pairs():
    listed = {name for e in read_manifest(ROOT / "data_manifest.yaml").checkpoints for name in e.chapters}
    assert listed and listed <= set(TAKING_PAIRS)


def test_the_sweeps_over_eta_alone_are_those_whose_tables_have_no_other_choice():
    tables = tables_of(KINDS)
    alone = {name for name, sweep in SWEEPS.items() if {*HEADLINE} & {*tables[sweep]} == {"eta"}}
    assert alone == set(_COARSE)


def test_every_estimate_of_the_claims_exists_and_no_other():
    assert named_estimates(awaiting=False) == set(ESTIMATES)


def test_estimates_of_runs_that_are_not_made_yet_do_not_exist():
    assert not named_estimates(awaiting=True) & set(ESTIMATES)


def test_every_claim_is_of_a_chapter():
    assert {claim.chapter for claim in CLAIMS} <= set(CHAPTERS)


def test_an_unknown_estimate_is_refused():
    with pytest.raises(ClaimError, match="no such estimate"):
        estimate("guess", given())


def test_a_notebook_of_ones_own_is_as_the_defaults_say():
    own = chapter_of("my-own")
    assert own == Chapter("my-own") and not own.jobs and own.shows is Shows.any_pair
    assert "my-own" not in ANY_PAIR


# -------------------------------------------------------------------------------------------- each chapter


@EVERY
def test_it_says_why_where_it_does_not_show_any_pair(chapter):
    assert bool(chapter.why_not) == (chapter.shows is not Shows.any_pair)
    assert not chapter.why_not.endswith(".")
    assert (chapter.name in ANY_PAIR) == (chapter.shows is Shows.any_pair)


@EVERY
def test_its_notebook_takes_the_pairs_that_it_shows(chapter):
    known = declared(read_notebook(notebook_path(chapter.name)), chapter.name)
    assert set(known) & TAKES[Shows.any_pair] == TAKES[chapter.shows]


@EVERY
def test_its_notebook_opens_its_own_study_and_no_other(chapter):
    notebook = read_notebook(notebook_path(chapter.name))
    opens_study = "threegates.study" in modules(notebook)
    assert opened_chapters(notebook) == [chapter.name] * opens_study
    assert opens_study or not chapter.jobs


@EVERY
def test_its_estimates_are_those_of_its_folder(chapter):
    if not (folder(chapter) / "estimates.py").is_file():
        assert not chapter.estimates
        return
    own = importlib.import_module(f"threegates.chapters.{folder(chapter).name}.estimates")
    assert chapter.estimates is own.ESTIMATES and chapter.estimates
    assert all(ESTIMATES[name] is compute for name, compute in own.ESTIMATES.items())
    assert set(chapter.estimates) <= EXACT if chapter.exact else not set(chapter.estimates) & EXACT


@EVERY
def test_its_claims_name_estimates_that_exist_unless_they_await_runs(chapter):
    for claim in (claim for claim in CLAIMS if claim.chapter == chapter.name):
        awaited = {rule.estimate for rule in claim.controls if rule.awaits}
        missing = {rule.estimate for rule in (claim.rule, *claim.controls)} - set(ESTIMATES)
        assert bool(missing - awaited) == bool(claim.awaits) and awaited <= missing, claim.id


@EVERY
def test_its_kinds_of_job_exist_and_no_two_write_one_table(chapter):
    assert set(chapter.jobs) <= set(KINDS)
    assert len(tables_of(chapter.jobs)) == sum(len(KINDS[kind].tables) for kind in chapter.jobs)


@EVERY
def test_its_sweeps_are_all_that_its_kinds_of_job_write(chapter):
    tables = tables_of(chapter.jobs)
    assert set(chapter.sweeps) <= set(tables)
    assert sorted(chapter.sweeps.values()) == sorted(name for name in tables if name.endswith("sweep"))
    for sweep in chapter.sweeps.values():
        assert {*HEADLINE} & {*tables[sweep]}, sweep
