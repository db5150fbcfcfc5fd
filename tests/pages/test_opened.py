"""A page is read once, opens its studies once and in one way, and never keeps which records there are."""

from __future__ import annotations

import json
import os
import threading

import nbformat
import pytest
import yaml

from tests.pages.test_runner import write_notebook
from tests.planted import planted
from tests.test_study import noisy_runs
from threegates.book import build
from threegates.errors import NotebookError
from threegates.pages import runner
from threegates.pages.contents import Page
from threegates.pages.opened import (
    STUDY_PARAMETERS,
    Opened,
    every_rate,
    of_several_rates,
    open_book,
    studies_of,
)
from threegates.records.places import Places
from threegates.study import Study

CHAPTER = "stripe-masks"
CELL = "from threegates.study import Study\nstudy = Study.open('stripe-masks', seed=seed)"
PARAMETERS = "seed: int = 0  # of the nulls\npairs: list = []  # chosen ones"
LOOKS = "from threegates.pages.opened import studies_of\nstudies = studies_of(pages)"


@pytest.fixture
def book(project):
    """A chapter, itself once more with another seed, and a page that looks at both."""
    base = planted.base_tensors(layers=1)
    planted.write_study(project / "build" / "lab", base, noisy_runs(base))
    write_notebook(project, CHAPTER, CELL, parameters=PARAMETERS)
    write_notebook(project, "looking", LOOKS, parameters="pages: list = []  # looked at")
    (project / "book").mkdir()
    names = [CHAPTER, "again", "looking"]
    contents = {"root": "intro", "parts": [{"chapters": [{"file": name} for name in names]}]}
    (project / "book" / "_toc.yml").write_text(yaml.safe_dump(contents))
    listed = {"again": {"notebook": CHAPTER, "parameters": {"seed": 5}}}
    (project / "book" / "pages.yaml").write_text(yaml.safe_dump(listed))
    return project


@pytest.fixture
def counted(monkeypatch):
    """Counts the notebooks that are read and the studies that are opened."""
    read, opened, seen = nbformat.read, Study.open.__func__, []

    def reading(path, *arguments, **options):
        seen.append(path.stem)
        return read(path, *arguments, **options)

    monkeypatch.setattr(nbformat, "read", reading)
    monkeypatch.setattr(
        Study, "open", classmethod(lambda *given, **more: (seen.append(opened), opened(*given, **more))[1])
    )
    return lambda: (sum(one is not opened for one in seen), sum(one is opened for one in seen))


def test_a_build_reads_each_page_once_and_opens_each_study_once(book, counted, monkeypatch):
    monkeypatch.setattr(runner, "_papermill", lambda opened, work: opened.notebook)
    pages = open_book(Places.here())
    assert counted() == (3, 0)
    runs = build._run_all(pages, 2)
    assert [page.name for page in runs] == [CHAPTER, "again", "looking"]
    # Two pages of a chapter; no two of these runs differ in their rate, so the third looks at nothing else.
    assert counted() == (3, 2)
    chapter, again, looking = pages
    assert looking.studies == [chapter.study, again.study] and looking.study is None
    assert [run.executed for run in build._run_all(pages, 2).values()] == [False] * 3
    assert counted() == (3, 2)


def test_what_is_measured_after_a_page_was_opened_is_there_for_it(book):
    page = Opened.of_page(Page(CHAPTER, CHAPTER), measure=False)
    (study,) = page.studies
    jobs = study.jobs
    assert len(study.missing()) == len(jobs) > 0
    verdicts, digest = study.verdicts(), study.digest()
    assert set(verdicts["verdict"]) == {"not run"}
    Opened.of_page(Page(CHAPTER, CHAPTER)).study.ensure()
    assert page.study is study and study.missing() == [] and study.digest() != digest
    assert {"reproduced", "explained by storage"} & set(study.verdicts()["verdict"])
    study.records.path(jobs[0].tables[0], jobs[0].name, jobs[0].digest).unlink()
    assert study.missing() == [jobs[0]]


def test_a_study_that_measures_nothing_shares_what_was_opened(book):
    study = Opened.of_page(Page(CHAPTER, CHAPTER)).study
    bare = study.unmeasured()
    assert bare.pairs is study.pairs and not bare.measure and study.measure
    assert bare.unmeasured() is bare and bare.ensure().missing()


def test_a_page_s_values_are_given_or_the_notebook_s_own_and_decide_its_study(book):
    page = Opened.of_page(Page("again", CHAPTER, {"seed": 5}))
    assert page.given == {"seed": 5} and page.values == {"seed": 5, "pairs": []}
    assert (page.name, page.chapter, page.study.seed) == ("again", CHAPTER, 5)
    chosen = page.with_values({"seed": 4, "pairs": ["grpo-s1"]}, name="chosen")
    assert (chosen.study.seed, chosen.name) == (4, "chosen")
    assert [pair.name for pair in chosen.study.pairs] == ["grpo-s1"] and page.study.seed == 5
    with pytest.raises(NotebookError, match="has no parameter 'drawn'"):
        page.with_values({"drawn": 4})


def test_every_option_of_a_study_that_a_notebook_declares_is_handed_on(project, monkeypatch):
    types = {"seed": "int", "base": "str", "tuned": "str", "subject": "str"}
    defaults = {"int": 7, "str": "x", "list": ["x"]}
    of = {name: types.get(name, "list") for name in STUDY_PARAMETERS}
    lines = [f"{name}: {kind} = {defaults[kind]!r}" for name, kind in of.items()]
    path = write_notebook(project, CHAPTER, CELL, parameters="\n".join([*lines, "other: int = 1"]))
    asked = []
    monkeypatch.setattr(Study, "open", lambda chapter, **options: asked.append((chapter, options)))
    places = Places(project / "elsewhere")
    assert Opened.of_notebook(path, {"seed": 9}, places=places, measure=False).studies == [None]
    wanted = {name: defaults[kind] for name, kind in of.items()} | {"seed": 9}
    assert asked == [(CHAPTER, {**wanted, "places": places, "measure": False})]


def test_a_study_has_the_places_of_its_page_not_those_of_the_environment(book, tmp_path):
    base = planted.base_tensors(layers=1)
    planted.write_study(tmp_path / "other" / "lab", base, dict(list(noisy_runs(base).items())[:2]))
    places = Places(tmp_path / "other")
    page, here = (Opened.of_page(Page(CHAPTER, CHAPTER), places=one) for one in (places, Places.here()))
    assert (len(page.study.pairs), len(here.study.pairs)) == (2, 5)
    assert page.study.records.folder == places.records != here.study.records.folder


def test_what_opens_no_study_has_none_and_cells_say_which_figures_there_are(project):
    figure = "publish(draw(x), 'plain/one', alt='a', caption='c', data=d)"
    path = write_notebook(project, "plain", "x = 1", figure, "y = 2")
    page = Opened.of_notebook(path)
    assert page.studies == [] and page.study is None and not page.looks_at_pages
    assert page.figures == {"plain/one": 3} and page.studies_for(page.slice_of("plain/one")) == []
    few = page.with_cells([1, 3])
    assert [cell.source for cell in few.notebook.cells] == [page.notebook.cells[1].source, figure]
    assert len(page.notebook.cells) == 5 and few.figures == {"plain/one": 1}


def test_a_page_without_a_study_that_another_is_to_look_at_is_refused(book):
    with pytest.raises(NotebookError, match=r"(?s)no study of its own.*found: looking"):
        studies_of(["looking"])
    assert set(studies_of([])) == {CHAPTER, "again"}


def test_a_book_with_a_notebook_that_cannot_be_read_is_refused_before_anything_is_trained(book, monkeypatch):
    monkeypatch.setattr(build, "_train", lambda *_: pytest.fail("trained"))
    (book / "notebooks" / "looking.ipynb").write_text("{")
    with pytest.raises(NotebookError, match="cannot be read"):
        build.build_book("smoke", book / "build", 1)


SHOWS = """\
import json, os
from pathlib import Path
from threegates.records.places import Places
names = ("THREEGATES_PAGE", "OMP_NUM_THREADS")
facts = {name: os.environ.get(name) for name in names}
facts |= {"sources": dict(Places.here().sources), "manifest": Places.here().manifest.name}
Path(os.environ["THREEGATES_BUILD"], name + ".json").write_text(json.dumps(facts))"""


def test_kernels_beside_each_other_are_told_their_own_places_and_the_process_keeps_its_own(
    project, tmp_path, monkeypatch
):
    monkeypatch.setenv("THREEGATES_SOURCES", '{"before": "/before"}')
    before = dict(os.environ)
    path = write_notebook(project, "plain", SHOWS, parameters="name: str = 'x'  # of the file")
    pages = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        places = Places(tmp_path / name, tmp_path / f"{name}.yaml", {name: f"/{name}"})
        pages.append(Opened.of_notebook(path, {"name": name}, name=name, places=places))
    threads = [threading.Thread(target=runner.run_notebook, args=(page,)) for page in pages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    for page in pages:
        told = json.loads((page.places.build / f"{page.name}.json").read_text())
        assert told["THREEGATES_PAGE"] == page.name and told["OMP_NUM_THREADS"] == "1"
        assert told["sources"] == {page.name: f"/{page.name}"} and told["manifest"] == f"{page.name}.yaml"
        assert (page.places.notebooks / f"{page.name}.ipynb").is_file()
    assert dict(os.environ) == before


#: Labels of runs that differ from the plain ones in more than the rate, and what else does.
OTHER_RUNS = {
    "masked": {"labels": {"rate": "1e-05", "mask": "safe", "share": "0.5"}},
    "unmasked": {"labels": {"rate": "1e-05", "mask": "dense", "share": "0.5"}},
    "adapter": {"labels": {"rate": "1e-05", "init": "lora", "rank": "8"}},
    "sgd": {"labels": {"rate": "1e-05", "optimiser": "sgd"}},
    "with a KL term": {"labels": {"rate": "reward", "kl": "0.04", "estimator": "k3"}},
    "rotated": {"base": "turned", "labels": {"rate": "mask", "frame": "haar"}},
    "in another frame of the base": {"labels": {"rate": "mask", "frame": "haar"}},
    "from another base": {"base": "turned"},
    "without masters": {"labels": {"rate": "mask", "master": "bfloat16"}},
    "shorter": {"updates": 8},
    "on other data": {"data": "elsewhere"},
    "of another method": {"method": "sft", "algorithm": "sft-teacher"},
    "of another algorithm": {"algorithm": "dapo"},
    "of another seed": {"seed": 2},
}


def run_at(rate, name="", **facts):
    """An entry of a plain GRPO run at a learning rate, but for what is given."""
    plain = {"algorithm": "grpo", "updates": 96, "labels": {"rate": f"{rate:g}"}}
    facts = {"method": "rl", **plain, **facts}
    return planted.entry(name or f"grpo-{rate:g}", facts.pop("method"), [], learning_rate=rate, **facts)


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_a_run_that_differs_in_more_than_its_rate_is_not_drawn_over_the_rates(name):
    plain = [run_at(rate) for rate in (1e-6, 1e-5)]
    # At a rate that no plain run has, where it would be taken if only rates were looked at.
    other = run_at(1e-3, name.replace(" ", "-"), **OTHER_RUNS[name])
    assert of_several_rates([*plain, other]) == plain
    assert of_several_rates([plain[0], other]) == []


def test_runs_that_differ_in_their_rate_alone_are_drawn_whatever_the_rate_is_for():
    named = run_at(1e-4, labels={"rate": "5e-05", "optimiser": "adamw"})
    plain = [run_at(1e-6, labels={"rate": "mask"}), named]
    others = [run_at(rate, f"sft-{rate:g}", method="sft", algorithm="sft") for rate in (1e-6, 1e-5)]
    assert of_several_rates([*others, *plain]) == [*others, *plain]


def test_masked_and_other_runs_stand_in_no_study_of_rates(project):
    base = planted.base_tensors(layers=1)
    runs = [
        run_at(1e-6),
        run_at(1e-5),
        *(
            run_at(1e-4, f"other-{number}", **facts)
            for number, facts in enumerate(facts for facts in OTHER_RUNS.values() if "base" not in facts)
        ),
    ]
    lab = project / "build" / "lab"
    planted.write_study(lab, base, {one.name: (planted.with_noise(base, 2e-4, 1), one) for one in runs})
    assert [pair.name for pair in every_rate().pairs] == ["grpo-1e-06", "grpo-1e-05"]
    planted.write_study(lab, base, {one.name: (planted.with_noise(base, 2e-4, 1), one) for one in runs[1:]})
    assert every_rate() is None
