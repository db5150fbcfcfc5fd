"""Releases: what is unpacked reads as what was packed, what is stale says so, damage is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.pages.test_runner import write_notebook
from tests.planted import planted
from tests.test_study import noisy_runs
from threegates.appendices.larger_page import larger_page
from threegates.book import build as book_build
from threegates.book import render
from threegates.checkpoints.manifests.manifest import read_manifest, write_manifest
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import CheckpointError, RecordError
from threegates.estimates.rows import MissingRecordError
from threegates.figures.numbers import number
from threegates.jobs import jobs, released
from threegates.jobs.kinds.known import KINDS
from threegates.jobs.released import stale_runs
from threegates.records.store import record_digest, write_parquet
from threegates.releases.making import release_build
from threegates.releases.notes import freshness, release_note, wider_note
from threegates.releases.packing import _MANTISSA, _rounded, _short, pack, read_release, unpack
from threegates.study import Study

CHAPTER = "stripe-masks"
TABLES = (
    "tensor",
    "axis",
    "agreement",
    "rates",
    "map",
    "axis_sweep",
    "agreement_sweep",
    "tensor_sweep",
    "log",
)


@pytest.fixture(scope="module")
def released_once(tmp_path_factory):
    """A project whose build has five runs, laid out as the lab does it, a notebook, a book, a release."""
    project = tmp_path_factory.mktemp("released") / "project"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in planted.make_project(project).items():
            patch.setenv(name, value)
        _lay_out(project)
        release_build()
    return project


@pytest.fixture(autouse=True)
def planned_anew():
    """Tests put other plans in the place of the lab's."""
    released.planned.cache_clear()
    yield
    released.planned.cache_clear()


@pytest.fixture
def trained(project, released_once):
    shutil.rmtree(project)
    shutil.copytree(released_once, project)
    return project


@pytest.fixture
def packed(trained):
    return read_release(trained / "results" / "full")


def _lay_out(project):
    runs = noisy_runs(planted.base_tensors())
    for order, folder in enumerate(planted.lay_out_runs(project / "build" / "lab", runs)):
        log = pd.DataFrame({"step": [1, 2], "reward": [0.25, np.nan]})
        write_parquet(folder / "log.parquet", log.assign(**{"own": [1.5, 2.5]} if order else {}), {})
    write_notebook(
        project,
        CHAPTER,
        "from threegates.study import Study\nstudy = Study.open('stripe-masks', seed=seed)",
        "study.table('agreement')['jaccard'].mean()",
        parameters="seed: int = 3  # of the nulls",
    )
    (project / "book").mkdir()
    contents = {"root": "intro", "parts": [{"chapters": [{"file": CHAPTER}, {"file": "verdicts"}]}]}
    (project / "book" / "_toc.yml").write_text(yaml.safe_dump(contents))
    (project / "book" / "intro.md").write_text("# Title\n\nComputed {val}`origin`.\n")


def exact(study):
    """Digests of the records that are packed as they are."""
    paths = [path for path in study.files() if path.parent.name not in _MANTISSA]
    return {f"{path.parent.name}/{path.name}": record_digest(path) for path in paths}


def opened(build, monkeypatch, seed=3):
    monkeypatch.setenv("THREEGATES_BUILD", str(build))
    return Study.open(CHAPTER, seed=seed, measure=False)


def test_unpacked_records_logs_and_headers_are_those_that_were_packed(trained, packed, monkeypatch):
    before = Study.open(CHAPTER, seed=3)
    tables = {name: before.table(name) for name in TABLES}
    verdicts, models = before.verdicts(), [pair.tuned.checkpoint.digest() for pair in before.pairs]
    digests = exact(before)
    build = trained / "elsewhere"
    unpack(packed, build)
    shutil.rmtree(trained / "build")
    after = opened(build, monkeypatch)
    assert [pair.tuned.checkpoint.digest() for pair in after.pairs] == models
    assert exact(after) == digests
    for name, table in tables.items():
        tolerance = {"rtol": 2.0**-11} if name in _MANTISSA else {"rtol": 0, "atol": 0}
        pd.testing.assert_frame_equal(after.table(name), table, **tolerance)
    pd.testing.assert_frame_equal(after.verdicts(), verdicts)
    assert not any(job.stale for job in after.jobs) and after.missing() == []
    when = {path.parent.name: json.loads(path.read_text()) for path in build.rglob("when.json")}
    assert when["grpo-s1-0123456789ab"] == {"seconds": 2}


def test_a_column_that_only_some_runs_log_is_not_given_to_the_others(trained, packed, monkeypatch):
    unpack(packed, trained / "elsewhere")
    found = {path.parent.name: pd.read_parquet(path) for path in (trained / "elsewhere").rglob("log.parquet")}
    assert list(found["base-0123456789ab"]) == ["step", "reward"]
    assert list(found["grpo-s0-0123456789ab"]) == ["step", "reward", "own"]


def test_only_the_base_keeps_its_weights_and_the_others_say_so(trained, packed, monkeypatch):
    unpack(packed, trained / "elsewhere")
    study = opened(trained / "elsewhere", monkeypatch)
    base, tuned = study.pairs[0].base.checkpoint, study.pairs[0].tuned.checkpoint
    original = Checkpoint.open(trained / "build" / "lab" / "runs" / "base-0123456789ab" / "step-000002")
    name = next(iter(original.infos))
    assert base.stored(name).equal(original.stored(name))
    assert {n: (i.dtype, i.shape) for n, i in tuned.infos.items()}.keys() == original.infos.keys()
    with pytest.raises(CheckpointError, match="released without its weights"):
        tuned.stored(name)


def test_records_of_other_code_stand_in_and_are_marked(trained, packed, monkeypatch):
    unpack(packed, trained / "elsewhere")
    monkeypatch.setattr(jobs, "_decides", lambda reach, _: ("another", {}))
    study = opened(trained / "elsewhere", monkeypatch)
    assert all(job.stale for job in study.jobs) and study.missing() == []
    assert len(study.table("agreement"))
    monkeypatch.setattr("threegates.releases.notes.stale_runs", lambda *_: ["grpo-s1"])
    found = freshness([study], "full")
    assert (found.records, found.runs) == (len(study.jobs), 6)
    note = release_note(packed, found)
    assert "class: warning" in note and f"{len(study.jobs)} of {len(study.jobs)} records" in note
    assert "1 of 6 runs" in note and "`pair grpo-s0`" in note and "Runs: `grpo-s1`." in note


def test_other_parameters_have_no_released_records(trained, packed, monkeypatch):
    unpack(packed, trained / "elsewhere")
    study = opened(trained / "elsewhere", monkeypatch, seed=4)
    assert {job.kind for job in study.missing()} == {"group"}
    with pytest.raises(MissingRecordError):
        study.table("agreement")


def test_a_stale_record_without_a_column_of_today_is_refused_by_name(trained, packed, monkeypatch):
    unpack(packed, trained / "elsewhere")
    monkeypatch.setattr(jobs, "_decides", lambda reach, _: ("another", {}))
    tables = KINDS["group"].tables
    monkeypatch.setitem(tables, "agreement", {**tables["agreement"], "novel": "float64"})
    with pytest.raises(MissingRecordError, match="too old") as failure:
        opened(trained / "elsewhere", monkeypatch).table("agreement")
    assert failure.value.expected == "the columns novel"


def test_runs_are_stale_where_the_plan_would_train_others(trained, monkeypatch):
    entries = read_manifest(trained / "build" / "lab" / "manifest.yaml").checkpoints

    class Planned:
        def __init__(self, name, digest):
            self.run = self
            self.name, self.folder = name, f"{name}-{digest}"

    same = [Planned(entry.run or entry.name, "0123456789ab") for entry in entries]
    monkeypatch.setattr("threegates.lab.plans.plan.plan", lambda profile: same)
    assert stale_runs(entries, "full") == []
    moved = [Planned("grpo-s3", "ffffffffffff") if one.name == "grpo-s3" else one for one in same]
    monkeypatch.setattr("threegates.lab.plans.plan.plan", lambda profile: moved[:-1])
    released.planned.cache_clear()
    assert stale_runs(entries, "full") == ["grpo-s3", "grpo-s4"]


def test_unpacking_again_does_nothing_until_the_release_changes(trained, packed):
    build = trained / "elsewhere"
    unpack(packed, build)
    first = {path: path.stat().st_mtime_ns for path in build.rglob("*") if path.is_file()}
    unpack(packed, build)
    assert {path: path.stat().st_mtime_ns for path in build.rglob("*") if path.is_file()} == first
    changed = read_release(packed.folder)
    changed.files["manifest.yaml"] = "0" * 64
    unpack(changed, build)
    again = {path: path.stat().st_mtime_ns for path in build.rglob("*") if path.is_file()}
    assert again.keys() == first.keys() and again != first


@pytest.mark.parametrize("name", ["records/agreement.parquet", "provenance.json", "base/config.json"])
def test_a_damaged_file_is_named(packed, name):
    path = packed.folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RecordError, match="not as it was packed") as failure:
        read_release(packed.folder)
    assert failure.value.where == path


def test_without_a_release_and_with_one_of_another_version_it_says_what_to_do(trained, packed):
    with pytest.raises(RecordError, match="no released records") as failure:
        read_release(trained / "nothing")
    assert "threegates release" in failure.value.remedy
    told = json.loads((packed.folder / released.FILE).read_text())
    (packed.folder / released.FILE).write_text(json.dumps(told | {"version": 99}))
    with pytest.raises(RecordError, match="another version"):
        read_release(packed.folder)
    (packed.folder / released.FILE).write_text("{}")
    with pytest.raises(RecordError, match="cannot be read"):
        read_release(packed.folder)


def test_a_release_that_fails_leaves_the_last_one(trained, packed, monkeypatch):
    before = {path: path.read_bytes() for path in packed.folder.rglob("*") if path.is_file()}
    manifest = read_manifest(trained / "build" / "lab" / "manifest.yaml")
    bare = Study.open(CHAPTER, seed=7, measure=False)
    with pytest.raises(MissingRecordError):
        pack([bare], manifest, packed.folder)
    assert {path: path.read_bytes() for path in packed.folder.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in packed.folder.parent.iterdir()) == [packed.folder.name]


@pytest.mark.usefixtures("without_a_kernel")
def test_the_released_book_measures_nothing_and_says_where_its_numbers_come_from(
    trained, packed, monkeypatch
):
    shutil.copytree(planted.ROOT / "benchmarks", trained / "benchmarks")
    shutil.rmtree(trained / "build")
    monkeypatch.setattr(book_build, "render", lambda build, source: source)
    monkeypatch.setattr("threegates.lab.plans.plan.plan", lambda profile: [])
    monkeypatch.setattr("threegates.lab.train.train", None)
    monkeypatch.setattr("threegates.study.run_jobs", None)
    source = book_build.build_book("released", trained / "build", 1)
    assert source == trained / "build" / "released" / "book-src"
    page = (source / f"{CHAPTER}.ipynb").read_text()
    assert "6 of 6 runs" in page and "Stale released records" in page
    assert "Stale released records" in (source / "verdicts.md").read_text()
    values = json.loads((source / "_values.json").read_text())
    assert values["profile"] == "released" and "profile full" in values["origin"]
    assert values["masks-agree-across-runs.verdict"] != "not run"


@pytest.mark.usefixtures("without_a_kernel")
def test_a_second_build_of_the_same_has_the_same_pages(trained, packed, monkeypatch):
    shutil.copytree(planted.ROOT / "benchmarks", trained / "benchmarks")
    monkeypatch.setattr(book_build, "render", lambda build, source: source)
    monkeypatch.setattr("threegates.lab.train.train", lambda *_, **__: None)
    digests = [render._digest(book_build.build_book("full", trained / "build", 1)) for _ in range(2)]
    assert len(set(digests)) == 1
    assert "Where this figure comes from" in (trained / "build" / "book-src" / "verdicts.md").read_text()


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e30, max_value=1e30), st.integers(8, 20))
def test_shortened_numbers_keep_their_leading_bits(value, bits):
    short = float(_short(np.array([value]), bits)[0])
    if abs(value) > 1e-30:
        assert abs(short - value) <= 2.0 ** -(bits + 1) * abs(value) * (1 + 1e-9)
        assert np.frexp(short)[0] * 2 ** (bits + 1) == np.round(np.frexp(short)[0] * 2 ** (bits + 1))


def test_choices_stay_exact_and_measures_are_shortened():
    alpha = np.tile([0.05, 0.1, 0.3], 50)
    measured = np.random.default_rng(0).random(150)
    table = pa.table({"alpha": alpha, "overlap": measured, "name": ["a"] * 150, "missing": [None, 0.7] * 75})
    short = _rounded(table, 10)
    assert short.column("alpha").to_pylist() == alpha.tolist()
    assert short.column("missing").to_pylist() == [None, 0.7] * 75
    found = np.array(short.column("overlap").to_pylist())
    assert 0 < np.abs(found / measured - 1).max() <= 2.0**-11


def test_shortened_numbers_keep_what_is_no_number():
    given_values = np.array([np.nan, np.inf, -np.inf, 0.0, 0.5])
    np.testing.assert_array_equal(_short(given_values, 13), given_values.astype(np.float32))


def test_the_larger_model_is_not_run_until_its_records_are_released(trained, monkeypatch):
    judged = Study.open(CHAPTER, seed=3).verdicts().assign(page=CHAPTER)
    page = larger_page(trained, trained / "build", judged)
    assert "Not run" in page and "23.7 million" in page and "`larger-grpo-arith-8-s101`" in page
    assert "Beside the lab" not in page
    manifest = read_manifest(trained / "build" / "lab" / "manifest.yaml")
    labelled = [
        entry.model_copy(update={"labels": {**entry.labels, "subject": "larger"}})
        for entry in manifest.checkpoints
    ]
    changed = manifest.model_copy(update={"profile": "gpu", "checkpoints": labelled})
    write_manifest(trained / "build" / "lab" / "manifest.yaml", changed)
    release = release_build()
    assert release.folder == trained / "results" / "gpu" and not (release.folder / "base").exists()
    page = larger_page(trained, trained / "build", judged)
    assert "Not run" not in page and "Stale released records" in page and "Beside the lab" in page
    ours = judged[judged["estimate"] == "jaccard_excess_bernoulli"].iloc[0]
    row = next(line for line in page.splitlines() if "`jaccard_excess_bernoulli`" in line)
    assert number(ours["value"]) in row


def test_a_smaller_build_says_which_arms_only_the_released_records_have():
    note = wider_note("learning-rate", "smoke", "full")
    assert "further seeds (102, 103, 104, 105, 106)" in note and "`grpo-sgd-arith-4-0.0006`" in note
    assert "`grpo-sgd-arith-4-0.002`" not in note
    assert wider_note("learning-rate", "full", "full") == "" == wider_note("errata", "mini", "full")


@pytest.mark.usefixtures("without_a_kernel")
def test_the_note_stands_at_the_end_of_the_page_of_a_smaller_build(trained, packed, monkeypatch):
    shutil.copytree(planted.ROOT / "benchmarks", trained / "benchmarks")
    monkeypatch.setattr(book_build, "render", lambda build, source: source)
    monkeypatch.setattr("threegates.lab.train.train", lambda *_, **__: None)
    for profile, shown in (("mini", True), ("full", False)):
        source = book_build.build_book(profile, trained / "build", 1)
        last = json.loads((source / f"{CHAPTER}.ipynb").read_text())["cells"][-1]
        assert ("further seeds" in "".join(last["source"])) == shown
