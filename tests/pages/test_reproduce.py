"""Showing and reproducing a figure on a planted study: the same numbers, from just what it needs."""

from __future__ import annotations

import getpass
import json
import shutil
import socket
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.planted import planted
from threegates.errors import NotebookError
from threegates.lab import train as lab
from threegates.lab.plans.plan import plan
from threegates.pages import reproduce
from threegates.pages.asked import run_page
from threegates.pages.contents import Page
from threegates.pages.opened import Opened
from threegates.records.store import read_parquet, read_provenance, write_parquet

PAGE, FIGURE = "spectral-drift", "spectral-drift/by-method"


@pytest.fixture(scope="module")
def built_once(tmp_path_factory):
    """A project with one executed chapter on planted checkpoints; nothing is trained."""
    project, base, runs = tmp_path_factory.mktemp("built"), planted.base_tensors(layers=1), {}
    for seed in (1, 2):
        for method, algorithm, rate, scale in (
            ("rl", "grpo", "mask", 2e-4),
            ("sft", "sft-teacher", "own", 2e-3),
        ):
            name = f"{algorithm}-{seed}"
            facts = {"algorithm": algorithm, "seed": seed, "labels": {"rate": rate}}
            entry = planted.entry(name, method, [PAGE], **facts, learning_rate=scale / 100)
            runs[name] = (planted.with_noise(base, scale, len(runs)), entry)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in planted.make_project(project).items():
            patch.setenv(name, value)
        planted.write_study(project / "build" / "lab", base, runs)
        shutil.copy(planted.ROOT / "notebooks" / f"{PAGE}.ipynb", project / "notebooks")
        contents = {"format": "jb-book", "root": "intro", "parts": [{"chapters": [{"file": PAGE}]}]}
        (project / "book").mkdir()
        (project / "book" / "_toc.yml").write_text(yaml.safe_dump(contents))
        run_page(Opened.of_page(Page(PAGE, PAGE)))
    return project


@pytest.fixture
def built(built_once, project, monkeypatch):
    """A copy of it for one test."""
    shutil.copytree(built_once, project, dirs_exist_ok=True)
    monkeypatch.setattr(reproduce, "_train", lambda *given: None)
    return project


def test_show_tells_what_a_figure_was_made_from(built):
    told = reproduce.show(FIGURE)
    for word in (
        "notebooks/spectral-drift.ipynb",
        "seed",
        "grpo-1",
        "records",
    ):
        assert word in told
    assert reproduce.show("fig-spectral-drift-by-method") == reproduce.show("by-method") == told
    assert f"{FIGURE:<50} built 20" in reproduce.figure_list()


def test_facts_name_every_model_and_record_with_its_digest_and_no_machine(built):
    made = json.loads((built / "build" / "notebooks" / f"{PAGE}.json").read_text())["figures"][FIGURE]
    assert set(made["models"]) == {"base", "grpo-1", "grpo-2", "sft-teacher-1", "sft-teacher-2"}
    assert all(len(digest) == 64 for digest in [*made["models"].values(), *made["records"].values()])
    assert {name.split("/")[0] for name in made["records"]} == {"drift"} and len(made["records"]) == 4
    assert made["seeds"]["of training"] == [1, 2] and made["threads"] == 1
    text = json.dumps(made)
    for word in (str(built), str(Path.home()), socket.gethostname(), getpass.getuser() + "@"):
        assert word not in text


def test_a_name_that_is_not_known_lists_what_comes_close(built):
    with pytest.raises(NotebookError, match="spectral-drift/by-method"):
        reproduce.show("by-methot")
    (built / "build" / "notebooks" / f"{PAGE}.json").unlink()
    with pytest.raises(NotebookError, match="threegates reproduce spectral-drift/by-method"):
        reproduce.show(FIGURE)


def test_a_reproduced_figure_has_the_same_numbers_and_leaves_the_book_alone(built):
    book = built / "build" / "notebooks" / "figures" / f"{FIGURE}.csv"
    before = (book.read_bytes(), book.stat().st_mtime_ns)
    made = reproduce.reproduce(FIGURE)
    assert made.same and "the same numbers" in made.verdict
    assert made.place == built / "build" / "reproduced" / PAGE / "by-method.svg" and made.place.is_file()
    assert (book.read_bytes(), book.stat().st_mtime_ns) == before
    # Nothing but the one figure was drawn, and nothing is left of the work.
    assert {path.stem for path in made.place.parent.iterdir()} == {"by-method"}
    assert [path.name for path in made.place.parent.parent.iterdir()] == [PAGE]


def test_a_changed_record_is_told_by_the_column_that_differs(built):
    record = sorted((built / "build" / "records" / "drift").glob("grpo-1-*.parquet"))[0]
    frame, provenance = read_parquet(record), read_provenance(record)
    write_parquet(record, frame.assign(nss=frame["nss"] * 2), provenance)
    made = reproduce.reproduce(FIGURE)
    assert not made.same and "nss" in made.verdict


def test_a_record_that_was_deleted_is_measured_again_and_it_alone(built):
    folder = built / "build" / "records" / "drift"
    record = sorted(folder.glob("grpo-1-*.parquet"))[0]
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.parquet") if path != record}
    record.unlink()
    assert reproduce.reproduce(FIGURE).same and record.is_file()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_differences_are_given_in_absolute_and_relative_size(tmp_path):
    one, two = (
        pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}),
        pd.DataFrame({"a": [1.0, 4.0], "b": ["x", "z"]}),
    )
    one.to_csv(tmp_path / "one.csv", index=False)
    two.to_csv(tmp_path / "two.csv", index=False)
    verdict, same = reproduce.compared(tmp_path / "one.csv", tmp_path / "two.csv")
    assert not same and "a by up to 2 (0.5 of its largest)" in verdict and "b in 1 rows" in verdict
    assert reproduce.compared(tmp_path / "one.csv", tmp_path / "none.csv")[1]


@pytest.fixture
def trained(project, monkeypatch):
    """Sets of runs that are trained for a figure, without training them."""
    shutil.copy(planted.ROOT / "notebooks" / f"{PAGE}.ipynb", project / "notebooks")
    found = []
    monkeypatch.setattr(lab, "train", lambda profile, build, workers, only: found.append(set(only)))
    return found


ENCODER = Page(f"{PAGE}-encoder", PAGE, {"subject": "encoder"})


def train_for(page, profile):
    opened = Opened.of_page(page)
    reproduce._train(opened, opened.slice_of(FIGURE), profile, 1)


def test_only_the_runs_of_the_figures_chapter_and_subject_are_trained(project, trained):
    train_for(Page(PAGE, PAGE), "smoke")
    train_for(ENCODER, "smoke")
    assert all(not name.startswith("encoder") for name in trained[0]) and len(trained[0]) > 3
    assert all(name.startswith("encoder") for name in trained[1]) and trained[1]
    assert (project / "build" / "lab" / "manifest.yaml").is_file()


def test_what_was_taken_and_would_be_trained_otherwise_is_not_trained(project, trained):
    """Nothing of it would reach the figure: the manifest has what was taken."""
    runs = {item.run.name: item.run.folder for item in plan("mini") if item.draft.subject == "encoder"}
    fresh = next(name for name in runs if "grpo" in name)
    place = project / "build" / "lab" / "taken.json"
    place.parent.mkdir(parents=True)
    older = {name: f"{name}-{'0' * 12}" for name in runs}
    place.write_text(json.dumps({"runs": older}))
    train_for(ENCODER, "mini")
    assert trained == []
    place.write_text(json.dumps({"runs": older | {fresh: runs[fresh]}}))
    train_for(ENCODER, "mini")
    assert trained == [{fresh}]
    train_for(Page(PAGE, PAGE), "mini")
    assert len(trained[1]) > 3
