"""Chapters on pairs that a reader chooses: several at once, measured published ones, and no secrets."""

from __future__ import annotations

import json
import re
import shutil

import nbformat
import pandas as pd
import pytest

from tests.planted import planted
from tests.planted.planted_pairs import measured_table, place
from threegates.errors import NotebookError
from threegates.figures.style import PAIR_COLOURS
from threegates.pages.asked import run_chapter, run_page
from threegates.pages.contents import Page
from threegates.pages.opened import Opened
from threegates.register import ANY_PAIR, CHAPTERS

SECRET, PLACE = "hf_ThisIsNoToken0123456789", "someones-own-place"


def source(chapter):
    return str(planted.ROOT / "notebooks" / f"{chapter}.ipynb")


def lab(project):
    """Two runs of one method and seed, which no label but their name keeps apart."""
    base, facts = planted.base_tensors(layers=2), {"algorithm": "grpo", "labels": {}}
    runs = {
        name: (planted.with_noise(base, scale, number), planted.entry(name, "rl", [], **facts))
        for number, (name, scale) in enumerate({"first-run": 2e-4, "second-run": 8e-4}.items())
    }
    planted.write_study(project / "build" / "lab", base, runs)
    return list(runs)


def shown(page):
    """All that an executed page shows."""
    cells = nbformat.read(page, as_version=4).cells
    return json.dumps([cell.get("outputs", []) for cell in cells], ensure_ascii=False)


@pytest.mark.usefixtures("without_a_kernel")
@pytest.mark.slow
@pytest.mark.parametrize("chapter", ANY_PAIR)
def test_several_pairs_stand_beside_each_other_in_colours_of_their_own(chapter, project):
    names = lab(project)
    run = run_chapter(source(chapter), {}, pairs=names)
    figures = list((run.page.parent / "figures" / chapter).glob("*.svg"))
    with_both = [
        path
        for path in figures
        if all(tint.lower() in path.read_text().lower() for tint in PAIR_COLOURS[:2])
        and all(name in path.with_suffix(".csv").read_text() for name in names)
    ]
    assert with_both, [path.name for path in figures]
    assert run.page.parent.parent.name == "runs"


@pytest.mark.usefixtures("without_a_kernel")
@pytest.mark.slow
@pytest.mark.parametrize("chapter", ANY_PAIR)
def test_a_part_of_the_layers_and_matrices_is_enough_for_a_chapter(chapter, project):
    names = lab(project)
    run = run_chapter(source(chapter), {}, pairs=names, choice=([1], ["q", "o", "down"]))
    assert set(run.verdicts["verdict"]) <= {"cannot be tested here", "reproduced", "holds"}
    assert "blocks 1, tensors q, o, down" in run.verdicts["subject"].iloc[0]


@pytest.mark.parametrize(
    ("chapter", "options", "told"),
    [
        ("curvature", {"base": "a", "tuned": "b"}, "trained on"),
        ("sensitivity", {"pairs": ["a"]}, "takes no pair"),
        ("errata", {"pairs": ["a"]}, "looks at no checkpoint"),
        ("agents-rlhf", {"base": "a", "tuned": "b"}, "threegates measure --pair NAME"),
    ],
)
def test_a_chapter_that_cannot_show_a_choice_says_why_before_anything_runs(project, chapter, options, told):
    with pytest.raises(NotebookError, match=f"{chapter} cannot be run with --") as error:
        run_chapter(source(chapter), {}, **options)
    assert told in error.value.what and "spectral-drift" in str(error.value.remedy)


@pytest.mark.parametrize("chapter", ["emergence", "sparse-finetuning"])
def test_a_chapter_that_finds_too_little_in_the_chosen_runs_says_what_it_compares(project, chapter):
    names = lab(project)
    with pytest.raises(NotebookError, match=f"{chapter} cannot show these pairs") as error:
        run_chapter(source(chapter), {}, pairs=names)
    assert CHAPTERS[chapter].why_not in error.value.what and error.value.found


@pytest.mark.parametrize("chapter", ["kl-leash", "lora-vs-pissa", "learning-rate"])
def test_a_chapter_of_the_lab_refuses_pairs_that_the_lab_did_not_train(project, chapter):
    base = planted.base_tensors()
    for name, tensors in (("base", base), ("tuned", planted.with_noise(base, 1e-3, 1))):
        planted.write(project / "mine" / name, tensors)
    (project / "data_manifest.yaml").write_text(
        "version: 1\nprofile: paper\ncheckpoints:\n"
        "  - {name: start, source: {folder: mine/base}, method: pretrain}\n"
        "  - {name: end, source: {folder: mine/tuned}, base: start, method: rl}\n"
    )
    with pytest.raises(NotebookError, match=f"{chapter} cannot show these pairs") as error:
        run_chapter(source(chapter), {}, pairs=["end"])
    assert CHAPTERS[chapter].why_not in error.value.what
    assert not list((project / "build").glob("runs/*"))


@pytest.mark.usefixtures("without_a_kernel")
@pytest.mark.slow
def test_two_pairs_in_folders_of_one_name_are_two_pages(project):
    base = planted.base_tensors()
    pages = []
    for number in (1, 2, 1):
        for name, tensors in (("base", base), ("checkpoint-9", planted.with_noise(base, 1e-3, number))):
            planted.write(project / f"run-{number}" / name, tensors)
        sides = {"base": "base", "tuned": "checkpoint-9"}
        own = {side: str(project / f"run-{number}" / name) for side, name in sides.items()}
        run = run_chapter(source("update-sparsity"), {}, **own)
        pages.append((run.page, run.page.read_text()))
    assert pages[0] == pages[2] and pages[0][0] != pages[1][0] and pages[0][1] != pages[1][1]
    assert pages[0][0].read_text() == pages[0][1]
    assert not re.search(r"\{(val|cite:t|cite:p|doc)\}`", pages[0][1])


def agents(project):
    """The page of the book, in a project with the tracked manifest."""
    shutil.copy(planted.ROOT / "data_manifest.yaml", project)
    shutil.copy(source("agents-rlhf"), project / "notebooks")
    return run_page(Opened.of_page(Page("agents-rlhf", "agents-rlhf")))


@pytest.mark.usefixtures("without_a_kernel")
def test_agents_have_a_page_without_network_checkpoints_or_measurements(project):
    run = agents(project)
    text = shown(run.page)
    assert "Of 8 pairs 0 have been measured." in text and "There is nothing to draw" in text
    assert "threegates measure --pair SkyRL-Agent-WebResearch-8B" in text
    assert not (run.page.parent / "figures" / "agents-rlhf").exists()
    assert run.verdicts["claim"].nunique() == 4 and set(run.verdicts["about"]) == {"lab"}
    assert set(run.verdicts["verdict"]) == {"cannot be tested here"}
    assert run.verdicts["reason"].str.startswith("it awaits measurements").all()
    assert not agents(project).executed


@pytest.mark.usefixtures("without_a_kernel")
@pytest.mark.slow
def test_agents_are_drawn_as_soon_as_they_are_measured_and_the_others_named(project, tmp_path):
    assert agents(project).executed
    measured_table(tmp_path)
    names = ["VT-SWE-8B", "Llama-3-Instruct-8B-DPO"]
    for name in names:
        place(tmp_path / "pair.parquet", project / "build" / "pairs" / f"{name}.parquet")
    (project / "build" / "pairs" / "VT-deepsearch-8B.parquet").write_bytes(b"nothing")
    run = agents(project)
    text = shown(run.page)
    assert run.executed and "Of 8 pairs 2 have been measured." in text
    assert "**Cannot be read**: VT-deepsearch-8B" in text
    left = re.search(r"\*\*Not measured\*\*: ([^.]*)\.", text.replace("\\n", " "))
    assert left is not None and not set(names) & set(left[1].split(", "))
    figures = run.page.parent / "figures" / "agents-rlhf"
    assert {path.stem for path in figures.glob("*.svg")} == {
        "sparsity-by-type",
        "drift-over-layers",
        "overlaps",
    }
    drawn = pd.read_csv(figures / "overlaps.csv")
    assert set(drawn["pair"]) == set(names)
    only = run_chapter("agents-rlhf", {}, pairs=["VT-SWE-8B"])
    assert "Of 1 pairs 1 have been measured." in shown(only.page)


@pytest.mark.slow
@pytest.mark.parametrize("chapter", ["update-sparsity", "spectral-drift"])
def test_no_token_user_or_folder_reaches_page_records_figures_or_sidecar(
    chapter, project, tmp_path, monkeypatch
):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("USER", PLACE)
    home = tmp_path / PLACE
    base = planted.base_tensors()
    planted.write(home / "base", base)
    planted.write(home / "tuned", planted.with_noise(base, 2e-4, seed=3))
    run = run_chapter(source(chapter), {}, base=str(home / "base"), tuned=str(home / "tuned"))
    files = [path for path in (project / "build").rglob("*") if path.is_file()]
    assert run.page in files and run.page.with_suffix(".json") in files
    assert {path.suffix for path in files} >= {".parquet", ".csv", ".svg", ".png", ".ipynb", ".json"}
    for path in files:
        content = path.read_bytes()
        for marker in (SECRET, PLACE, str(tmp_path)):
            assert marker.encode() not in content, (path.name, marker)
        assert PLACE not in path.name


def test_no_token_or_folder_reaches_a_table_of_a_pair(project, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    written = measured_table(tmp_path / PLACE)
    for path in written.files:
        content = path.read_bytes()
        assert SECRET.encode() not in content and PLACE.encode() not in content
    assert SECRET not in written.summary()
