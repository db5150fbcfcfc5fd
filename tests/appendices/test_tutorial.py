"""The tutorial's workbench: real commands on a small pair of the lab, and plain words where there is none."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from tests.planted import planted
from threegates.appendices import tutorial
from threegates.errors import NotebookError
from threegates.study import Study


@pytest.fixture
def study(project):
    base = planted.base_tensors()
    runs = {
        name: (planted.with_noise(base, 2e-4, seed), planted.entry(name, method, ["update-sparsity"]))
        for seed, (name, method) in enumerate({"fine-tuned": "sft", "reinforced": "rl"}.items())
    }
    planted.write_study(project / "build" / "lab", base, runs)
    return Study.open("update-sparsity")


def test_rl_stands_in_first_and_only_what_is_small_and_has_its_weights(study, monkeypatch):
    found = tutorial.stand_in([study])
    assert found is not None and found.name == "reinforced"
    assert tutorial.stand_in([]) is None
    monkeypatch.setattr(tutorial, "_LARGEST", 1000)
    assert tutorial.stand_in([study]) is None


def test_what_was_released_without_weights_does_not_stand_in(study):
    object.__setattr__(study.pairs[0].base.checkpoint, "kept_digest", "0" * 64)
    assert tutorial.stand_in([study]) is None


def test_a_command_runs_on_copies_and_shows_what_it_printed(study, project):
    bench = tutorial.Workbench.of([study])
    shown = bench.run("measure --base base --tuned tuned --out pair.parquet")
    assert shown.text().startswith("$ threegates measure --base base --tuned tuned")
    assert "written: pair.parquet" in shown.output and str(project) not in shown.text()
    markdown = shown._repr_mimebundle_()["text/markdown"]
    assert markdown.startswith("````console\n$ threegates measure")
    table = bench.table("pair.parquet")
    assert table is not None and set(table["pair"]) == {"tuned"}
    scratch = Path(bench.scratch.name)
    assert scratch.is_dir() and not (project / "build" / "records").exists()
    del bench
    assert not scratch.exists()


def test_a_command_that_fails_ends_the_page(study):
    bench = tutorial.Workbench.of([study])
    with pytest.raises(NotebookError, match="tutorial failed") as error:
        bench.run("measure --base base --tuned nothing --out pair.parquet")
    assert "threegates measure --base base --tuned nothing" in str(error.value)
    assert "nothing" in str(error.value.found)


def test_without_a_pair_nothing_runs_and_the_page_says_so():
    bench = tutorial.Workbench.of([])
    shown = bench.run("measure --base base --tuned tuned --out pair.parquet")
    assert shown.text().endswith("(not run: this build has no small checkpoints with their weights)")
    assert bench.table("pair.parquet") is None
    assert "no block that begins with `$` was run" in bench.told


def test_the_page_says_that_its_commands_were_run_only_where_they_were(study):
    assert "was run when this page was made" in tutorial.Workbench.of([study]).told
    assert "was run when this page was made" not in tutorial.Workbench.of([]).told
    cells = nbformat.read(planted.ROOT / "notebooks" / "your-own-model.ipynb", as_version=4).cells
    typed = " ".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert "was run" not in typed and "were run" not in typed
    shown = [number for number, cell in enumerate(cells) if "{bench.told}" in cell.source]
    first = next(number for number, cell in enumerate(cells) if "bench.run(" in cell.source)
    assert len(shown) == 1 and shown[0] < first
