"""Pages put into the book's sources."""

from __future__ import annotations

import shutil

import nbformat
import pandas as pd

from tests.judging.test_cards import CLAIM
from tests.pages.test_runner import write_notebook
from tests.planted import planted
from threegates.book import assemble, build
from threegates.pages.asked import NotRun
from threegates.pages.contents import Page
from threegates.pages.opened import Opened
from threegates.pages.runner import NotebookRun


def _finished(folder, page, executed=True):
    folder.mkdir(parents=True, exist_ok=True)
    figures = folder / "figures" / page.name
    figures.mkdir(parents=True)
    (figures / "one.svg").write_text(page.name)
    cells = [nbformat.v4.new_markdown_cell(f"# {page.name}")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{page.name}.ipynb")
    verdicts = pd.DataFrame([CLAIM | {"about": page.given.get("subject", "lab")}])
    return NotebookRun(folder / f"{page.name}.ipynb", [], verdicts, executed)


def test_two_pages_of_one_notebook_stand_side_by_side(project, tmp_path):
    path = write_notebook(project, "drift", parameters="subject: str = 'lab'  # whose")
    shown = [
        Opened.of_notebook(path),
        Opened.of_notebook(path, {"subject": "encoder"}, name="drift-encoder"),
    ]
    runs = {page: _finished(tmp_path / "made", page) for page in shown}
    (tmp_path / "src").mkdir()
    for page, run in runs.items():
        assemble._add_page(tmp_path / "src", page, run)
    for page in shown:
        assert (tmp_path / "src" / f"{page.name}.ipynb").read_text().count(f'# {page.name}"') == 1
        assert (tmp_path / "src" / "figures" / page.name / "one.svg").read_text() == page.name
    table = assemble._verdicts(runs)
    table = table[table["page"].isin([page.name for page in shown])]
    assert table[["about", "page"]].values.tolist() == [["lab", "drift"], ["encoder", "drift-encoder"]]


def test_a_page_without_checkpoints_says_so_and_judges_nothing(project, tmp_path):
    base = planted.base_tensors()
    planted.write_study(project / "build" / "lab", base, {})
    shutil.copy(planted.ROOT / "notebooks" / "spectral-drift.ipynb", project / "notebooks")
    page = Opened.of_page(Page("spectral-drift-encoder", "spectral-drift", {"subject": "encoder"}))
    result = build._run(page)
    assert isinstance(result, NotRun)
    assemble._add_page(tmp_path, page, result)
    shown = (tmp_path / "spectral-drift-encoder.md").read_text()
    assert "Not run: this build has no checkpoints for this page." in shown
    # The verdicts' page links to each claim's card.
    assert all(f'id="verdict-{claim}"' in shown for claim in result.verdicts["claim"])
    verdicts = assemble._verdicts({page: result})
    own = verdicts[verdicts["page"] == page.name]
    assert set(own["verdict"]) == {"not run"} and set(own["about"]) == {"encoder"}
    # What stands on no page of this book awaits its runs.
    assert verdicts.loc[verdicts["page"] != page.name, "awaits"].ne("").all()
