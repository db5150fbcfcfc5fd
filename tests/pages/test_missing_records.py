"""Records that were changed or removed: verdict, prose and page follow, and never an old number."""

from __future__ import annotations

import json
import re
import shutil

import nbformat
import pytest
import yaml

from tests.pages.test_runner import write_notebook
from tests.planted import planted
from tests.test_study import noisy_runs, verdict_of
from threegates.book import build as book_build
from threegates.book.values import FILE
from threegates.errors import CheckpointError
from threegates.estimates.rows import MissingRecordError
from threegates.pages.asked import NotRun, run_page
from threegates.pages.contents import Page
from threegates.pages.opened import Opened
from threegates.records.store import read_provenance
from threegates.study import Study

AGREE, STRIPED = "masks-agree-across-runs", "masks-are-striped"
PAGE = Page("stripe-masks", "stripe-masks")
pytestmark = pytest.mark.usefixtures("without_a_kernel")
SHOWN = "study.table('agreement')['jaccard'].mean()"


@pytest.fixture
def measured(project):
    """A small project whose only chapter is measured: five runs of pure storage noise."""
    base = planted.base_tensors()
    planted.write_study(project / "build" / "lab", base, noisy_runs(base))
    write_notebook(
        project,
        "stripe-masks",
        "from threegates.study import Study\nstudy = Study.open('stripe-masks', seed=seed)",
        SHOWN,
        parameters="seed: int = 3  # of the nulls",
    )
    return project


@pytest.fixture
def small_book(measured, monkeypatch):
    """Assembles the project's book from its records, without rendering; gives the folder of its pages."""
    folder = measured / "book"
    folder.mkdir()
    shutil.copytree(planted.ROOT / "benchmarks", measured / "benchmarks")
    contents = {"root": "intro", "parts": [{"chapters": [{"file": PAGE.name}, {"file": "verdicts"}]}]}
    (folder / "_toc.yml").write_text(yaml.safe_dump(contents))
    (folder / "intro.md").write_text(f"# Title\n\nIt is {{val}}`{AGREE}.verdict`.\n")
    monkeypatch.setattr(book_build, "render", lambda build, source: source)

    def build(measure=False):
        return book_build.build_book("mini", measured / "build", 1, measure)

    monkeypatch.setattr("threegates.lab.train.train", lambda *_, **__: None)
    build(measure=True)
    return build


#: What a claim whose number lies below its rule may be called.
NEGATIVE = ("contradicted", "not reproduced", "no effect of the size asked for", "cannot be told")


def record(project, table):
    study = Study.open("stripe-masks", seed=3, measure=False)
    job = next(job for job in study.jobs if table in job.tables)
    return study.records, job, study.records.path(table, job.name, job.digest)


def rewrite(project, table, **columns):
    """Put other numbers into a record, in its own place and under its own digest."""
    records, job, path = record(project, table)
    frame, made = records.read(table, job.name, job.digest), read_provenance(path)
    facts = {key: made[key] for key in made if key not in ("table", "job", "digest")}
    changed = frame.assign(**{name: change(frame) for name, change in columns.items()})
    records.write(table, job.name, job.digest, changed, facts)


def seen(source):
    """What the book says of a claim: in prose, in the verdicts' table, and the number in the chapter."""
    values = json.loads((source / FILE).read_text())
    rows = re.split(r"<tr\b", (source / "verdicts.md").read_text())
    line = next(row for row in rows if f"#verdict-{AGREE}" in row and row.count("<td>") > 3)
    return values[f"{AGREE}.verdict"], values[f"{AGREE}.value"], line


def shown_number(source):
    cells = nbformat.read(source / "stripe-masks.ipynb", as_version=4).cells
    outputs = [one for cell in cells if cell.source == SHOWN for one in cell.outputs]
    return float(outputs[0]["data"]["text/plain"].removeprefix("np.float64(").removesuffix(")"))


def test_a_changed_record_changes_verdict_prose_and_table(small_book, measured):
    source = small_book()
    verdict, value, line = seen(source)
    before = shown_number(source)
    assert (
        verdict.startswith(("reproduced", "explained")) and f">{verdict}</strong>" in line and value in line
    )
    rewrite(measured, "agreement", jaccard=lambda frame: frame["bernoulli"] - 0.125)
    source = small_book()
    changed, other, line = seen(source)
    assert changed in NEGATIVE and other == "−0.125"
    assert f">{changed}</strong>" in line and "−0.125" in line
    assert shown_number(source) < before


def test_without_a_record_its_claims_are_not_run_and_the_others_are_as_before(small_book, measured, capsys):
    _, _, path = record(measured, "agreement")
    before = Study.open("stripe-masks", seed=3).verdicts().set_index("claim")["verdict"]
    content = path.read_bytes()
    path.unlink()
    verdict, value, line = seen(small_book())
    assert (verdict, value) == ("not run", "–") and ">not run</strong>" in line
    assert "stripe-masks not run: a record is missing: agreement/" in capsys.readouterr().err
    page = (measured / "build" / "book-src" / "stripe-masks.md").read_text()
    assert "Not run: a record is missing: agreement/" in page and f'id="verdict-{AGREE}"' in page
    assert not (measured / "build" / "book-src" / "stripe-masks.ipynb").exists()
    verdicts = Study.open("stripe-masks", seed=3, measure=False).verdicts()
    assert verdict_of(verdicts, STRIPED) == before[before.index == STRIPED].iloc[0] != "not run"
    lost = verdicts[(verdicts["claim"] == AGREE)]
    assert set(lost["holds"]) == {None} and lost["value"].isna().all() and lost["n"].eq(0).all()
    small_book(measure=True)
    assert path.read_bytes() == content
    assert seen(measured / "build" / "book-src")[0] == before[before.index == AGREE].iloc[0]


def test_a_missing_record_is_named_with_its_table_and_pair(measured):
    study = Study.open("stripe-masks", seed=3).ensure()
    first, second = [job for job in study.jobs if job.kind == "pair"][:2]
    for job in (first, second):
        study.records.path("tensor", job.name, job.digest).unlink()
    bare = Study.open("stripe-masks", seed=3, measure=False)
    with pytest.raises(MissingRecordError, match="a record is missing") as failure:
        bare.table("tensor")
    assert failure.value.where == f"tensor/{first.name} and 1 more"
    assert len(bare.table("agreement")) and bare.ensure().missing() != []


def test_without_a_checkpoint_the_page_is_not_run_and_says_which(measured):
    assert not isinstance(run_page(Opened.of_page(PAGE)), NotRun)
    shutil.rmtree(measured / "build" / "lab" / "grpo-s2")
    with pytest.raises(CheckpointError):
        Study.open("stripe-masks")
    result = run_page(Opened.of_page(PAGE))
    assert isinstance(result, NotRun) and "lab/grpo-s2" in result.reason
    assert str(measured) not in result.reason
    assert set(result.verdicts["verdict"]) == {"not run"}
    assert result.verdicts["reason"].str.contains("grpo-s2").any()


def test_a_claim_that_awaits_its_runs_says_that_before_it_looks_for_records(measured):
    verdicts = Study.open("stripe-masks", seed=3, measure=False).verdicts()
    awaiting = verdicts[verdicts["awaits"] != ""]
    assert not awaiting["reason"].str.contains("record").any()
    judged = verdicts[verdicts["awaits"] == ""]
    assert judged["reason"].str.startswith("a record is missing: ").all()
    assert set(judged["verdict"]) == {"not run"}
