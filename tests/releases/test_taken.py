"""What a build takes from the release: a subject's runs and records, stale ones too, and it says so."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import yaml

from tests.pages.test_runner import write_notebook
from tests.planted import planted
from tests.planted.planted import DIGEST, STEP
from tests.test_study import noisy_runs
from threegates.book import build as book_build
from threegates.checkpoints.manifests.manifest import read_manifest, write_manifest
from threegates.digest import file_digest
from threegates.jobs import jobs, released
from threegates.jobs.kinds.known import KINDS
from threegates.jobs.released import taken_runs
from threegates.pages.asked import NotRun, run_page
from threegates.pages.contents import Page
from threegates.pages.opened import Opened
from threegates.records.store import Records, record_digest
from threegates.releases.making import RELEASED_PROFILE, RESULTS, release_build
from threegates.releases.taking import forget_taken, take, take_of_bases, taken_note
from threegates.study import Study

CHAPTER, PAGE = "stripe-masks", "stripe-masks-encoder"
SUBJECT = Page(PAGE, CHAPTER, {"subject": "encoder"})
CELL = (
    "from threegates.study import Study\n"
    "study = Study.open('stripe-masks', seed=seed, subject=subject)\n"
    "study.table('agreement')['jaccard'].mean()"
)


def planned(name, digest=DIGEST, subject="encoder"):
    """A run of a plan, as far as taking it looks at it."""
    run = SimpleNamespace(
        name=name,
        folder=f"{name}-{digest}",
        checkpoint=lambda step: f"runs/{name}-{digest}/step-{step:06d}",
        recipe=SimpleNamespace(saved_steps=lambda: (STEP,)),
    )
    return SimpleNamespace(run=run, draft=SimpleNamespace(subject=subject, chapters=()))


def _lay_out(project):
    """A project with five runs of the subject, a page on it, and their release."""
    runs = noisy_runs(planted.base_tensors())
    planted.lay_out_runs(project / "build" / "lab", runs, subject="encoder")
    write_notebook(project, CHAPTER, CELL, parameters="seed: int = 3\nsubject: str = 'lab'  # whose")
    (project / "book").mkdir()
    chapters = [{"file": CHAPTER}, {"file": PAGE}, {"file": "verdicts"}]
    contents = {"root": "intro", "parts": [{"chapters": chapters}]}
    (project / "book" / "_toc.yml").write_text(yaml.safe_dump(contents))
    (project / "book" / "intro.md").write_text("# Title\n\nComputed {val}`origin`.\n")
    pages = {PAGE: {"notebook": CHAPTER, "parameters": {"subject": "encoder"}}}
    (project / "book" / "pages.yaml").write_text(yaml.safe_dump(pages))


@pytest.fixture(scope="module")
def packed_once(tmp_path_factory):
    project = tmp_path_factory.mktemp("taken") / "project"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in planted.make_project(project).items():
            patch.setenv(name, value)
        _lay_out(project)
        release_build()
    return project


@pytest.fixture
def names(packed_once):
    return [entry.name for entry in read_manifest(packed_once / "build/lab/manifest.yaml").checkpoints]


@pytest.fixture
def fresh(project, packed_once, names, monkeypatch):
    """The project with its release and an empty build; the plan has just the released runs."""
    shutil.rmtree(project)
    shutil.copytree(packed_once, project, ignore=shutil.ignore_patterns("build"))
    shutil.copytree(planted.ROOT / "benchmarks", project / "benchmarks")
    (project / "build").mkdir()
    plans(monkeypatch, [planned(name) for name in names])
    yield project
    released.planned.cache_clear()


def plans(monkeypatch, items):
    monkeypatch.setattr("threegates.lab.plans.plan.plan", lambda profile: items)
    released.planned.cache_clear()


def taken(project):
    """Names of the runs that the profile mini takes."""
    return {entry.run or entry.name for entry in take("mini", project / "build")}


def as_trained(project, packed_once):
    """What training does after taking: it writes the manifest of all runs that are there."""
    shutil.copy(packed_once / "build/lab/manifest.yaml", project / "build/lab/manifest.yaml")


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_every_run_and_record_that_the_pages_need_is_laid_out(fresh, packed_once, names, monkeypatch):
    assert taken(fresh) == set(names)
    as_trained(fresh, packed_once)
    study = Study.open(CHAPTER, seed=3, subject="encoder")
    assert len(study.pairs) == 5 and study.missing() == []
    assert all(pair.tuned.checkpoint.kept_digest for pair in study.pairs)
    found = {path.name: record_digest(path) for path in study.files(("tensor", "agreement"))}
    monkeypatch.setenv("THREEGATES_BUILD", str(packed_once / "build"))
    measured = Study.open(CHAPTER, seed=3, subject="encoder").files(("tensor", "agreement"))
    assert found == {path.name: record_digest(path) for path in measured}
    assert not (fresh / "build" / ".taking").exists()


def test_what_was_taken_before_is_left_as_it_is(fresh, packed_once, names):
    take("mini", fresh / "build")
    as_trained(fresh, packed_once)
    before = contents(fresh / "build")
    assert taken(fresh) == set(names)
    assert contents(fresh / "build") == before


def test_a_run_that_was_lost_since_is_taken_again(fresh, packed_once, names):
    take("mini", fresh / "build")
    as_trained(fresh, packed_once)
    lost = fresh / "build" / "lab" / "runs" / f"{names[-1]}-{DIGEST}"
    shutil.rmtree(lost)
    assert taken(fresh) == set(names) and lost.is_dir()


def test_a_profile_that_takes_nothing_trains_everything(fresh):
    assert take("smoke", fresh / "build") == () and not list((fresh / "build").iterdir())


def test_runs_that_were_trained_are_not_replaced(fresh, packed_once):
    shutil.copytree(packed_once / "build", fresh / "build", dirs_exist_ok=True)
    before = contents(fresh / "build")
    assert take("mini", fresh / "build") == () and contents(fresh / "build") == before
    assert taken_note([Opened.of_page(SUBJECT)], "mini", fresh / "build") == ""


def other_recipe(fresh, names, monkeypatch):
    plans(monkeypatch, [*map(planned, names[:-1]), planned(names[-1], "f" * 12)])


def other_code(fresh, names, monkeypatch):
    monkeypatch.setattr(jobs, "_decides", lambda reach, _: ("another", {}))


@pytest.mark.parametrize("changes", [[other_recipe], [other_code], [other_recipe, other_code]])
def test_what_would_be_made_otherwise_by_now_is_taken_and_told_by_name(
    changes, fresh, packed_once, names, monkeypatch
):
    for change in changes:
        change(fresh, names, monkeypatch)
    assert taken(fresh) == set(names)
    as_trained(fresh, packed_once)
    study = Study.open(CHAPTER, seed=3, subject="encoder")
    assert len(study.pairs) == 5 and study.missing() == []
    assert {job.stale for job in study.jobs} == {other_code in changes}
    records, runs = len(study.jobs) * (other_code in changes), int(other_recipe in changes)
    note = taken_note([Opened.of_page(SUBJECT)], "mini", fresh / "build")
    assert f"**Stale: {records} of {len(study.jobs)} records and {runs} of {len(names)} runs**" in note
    assert (f"Runs: `{names[-1]}`." in note) == (other_recipe in changes)
    # A second build leaves it all as it is.
    before = contents(fresh / "build")
    assert taken(fresh) == set(names) and contents(fresh / "build") == before


def test_stale_records_give_the_verdicts_that_they_gave(fresh, packed_once, names, monkeypatch):
    monkeypatch.setenv("THREEGATES_BUILD", str(packed_once / "build"))
    before = Study.open(CHAPTER, seed=3, subject="encoder").table("agreement")
    monkeypatch.setenv("THREEGATES_BUILD", str(fresh / "build"))
    other_code(fresh, names, monkeypatch)
    take("mini", fresh / "build")
    as_trained(fresh, packed_once)
    assert Study.open(CHAPTER, seed=3, subject="encoder", measure=False).table("agreement").equals(before)


def test_a_run_that_the_release_lacks_is_not_trained_either_and_is_told(
    fresh, packed_once, names, monkeypatch
):
    plans(monkeypatch, [planned(name) for name in [*names, "another-seed"]])
    assert taken(fresh) == set(names)
    as_trained(fresh, packed_once)
    note = taken_note([Opened.of_page(SUBJECT)], "mini", fresh / "build")
    assert "Runs that the release lacks: `another-seed`." in note and "Stale" not in note


def test_what_starts_from_a_base_of_another_name_takes_the_base_that_it_had(fresh, names, monkeypatch):
    plans(monkeypatch, [planned("base-of-today"), *(planned(name) for name in names[1:])])
    assert names[0] == "base" and taken(fresh) == set(names)


def test_records_that_no_longer_fit_are_missing_and_their_page_is_not_run(
    fresh, packed_once, names, monkeypatch
):
    """A released record without a column that the chapter reads by now cannot be shown."""
    other_code(fresh, names, monkeypatch)
    tables = KINDS["pair"].tables
    monkeypatch.setitem(tables, "tensor", {**tables["tensor"], "brand_new": "float64"})
    take("mini", fresh / "build")
    as_trained(fresh, packed_once)
    result = run_page(Opened.of_page(SUBJECT))
    assert isinstance(result, NotRun) and "too old for this chapter: tensor/" in result.reason


def damaged(fresh):
    (fresh / "results/full/provenance.json").write_text("{}")


def lost(fresh):
    shutil.rmtree(fresh / "results")


def without_the_subject(fresh):
    plain = {"checkpoints": [], "profile": "full"}
    manifest = read_manifest(fresh / "results/full/manifest.yaml").model_copy(update=plain)
    write_manifest(fresh / "results/full/manifest.yaml", manifest)
    told = json.loads((fresh / "results/full/release.json").read_text())
    told["files"]["manifest.yaml"] = file_digest(fresh / "results/full/manifest.yaml")
    (fresh / "results/full/release.json").write_text(json.dumps(told))


@pytest.mark.parametrize("change", [damaged, lost, without_the_subject])
def test_without_a_whole_release_of_the_subject_nothing_is_taken(change, fresh):
    change(fresh)
    assert taken(fresh) == set()
    assert not [path for path in (fresh / "build").rglob("*") if path.is_file()]


@pytest.mark.parametrize("change", [damaged, lost])
def test_what_was_taken_is_forgotten_with_the_release(change, fresh, packed_once):
    """Its runs are trained now, and no older record stands for one that can be measured."""
    take("mini", fresh / "build")
    as_trained(fresh, packed_once)
    change(fresh)
    assert taken(fresh) == set()
    assert not (fresh / "build" / "release.json").exists() and taken_runs(fresh / "build" / "lab") == {}


def test_what_is_taken_is_known_by_the_folders_of_its_runs(fresh, names):
    assert taken_runs(fresh / "build" / "lab") == {}
    take("mini", fresh / "build")
    assert taken_runs(fresh / "build" / "lab") == {name: f"{name}-{DIGEST}" for name in names}
    forget_taken(fresh / "build")
    assert taken_runs(fresh / "build" / "lab") == {}


def test_a_kill_between_records_and_runs_is_made_good(fresh, packed_once, names):
    take("mini", fresh / "build")
    shutil.rmtree(fresh / "build" / "lab" / "runs" / f"{names[-1]}-{DIGEST}")
    (fresh / "build" / ".taking" / "lab").mkdir(parents=True)
    assert taken(fresh) == set(names)
    assert (fresh / "build" / "lab" / "runs" / f"{names[-1]}-{DIGEST}").is_dir()
    assert not (fresh / "build" / ".taking").exists()


def nothing(fresh, names, monkeypatch):
    pass


@pytest.mark.parametrize(
    ("change", "title"), [(nothing, "Released records"), (other_recipe, "Stale released")]
)
def test_the_book_says_on_which_pages_nothing_was_trained(
    change, title, fresh, packed_once, names, monkeypatch, capsys
):
    change(fresh, names, monkeypatch)
    monkeypatch.setattr(book_build, "render", lambda build, source: source)
    asked = []

    def train(profile, build, workers, *, taken):
        asked.append({entry.run or entry.name for entry in taken})
        as_trained(fresh, packed_once)

    monkeypatch.setattr("threegates.lab.train.train", train)
    source = book_build.build_book("mini", fresh / "build", 1)
    assert asked == [set(names)]
    assert (
        "6 runs of the subject encoder and their records are taken from the release"
        in capsys.readouterr().err
    )
    note = "from records of the profile `full` in the repository"
    page = (source / f"{PAGE}.ipynb").read_text()
    assert note in page and f"{{admonition}} {title}" in page
    assert note not in (source / f"{CHAPTER}.md").read_text()
    verdicts = (source / "verdicts.md").read_text()
    assert f"What {{doc}}`{PAGE}` give is {note}" in verdicts
    values = json.loads((source / "_values.json").read_text())
    assert values["origin"].endswith(
        "trained on the spot; what concerns the encoder is from released records"
    )


def test_records_about_bases_alone_are_taken_by_their_digests_and_others_are_measured(tmp_path):
    """Of the repository's own release: what is known of a base needs no build to measure it again."""
    known = json.loads((planted.ROOT / RESULTS / RELEASED_PROFILE / "provenance.json").read_text())
    wanted = next(iter(known["steepness"].values()))
    about_runs = next(iter(known["drift"].values()))
    records = Records(tmp_path / "build" / "records")

    def job(told, places):
        return SimpleNamespace(digest=told["digest"], arguments={"places": dict.fromkeys(places, "")})

    missing = [job(wanted, ("base",)), job(about_runs, ("base", "tuned")), job({"digest": "none"}, ("base",))]
    take_of_bases(SimpleNamespace(missing=lambda: missing, records=records))
    assert records.exists("steepness", wanted["job"], wanted["digest"])
    found = [path.relative_to(records.folder).parts[0] for path in records.folder.rglob("*.parquet")]
    assert found == ["steepness"]
