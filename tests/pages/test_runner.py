from __future__ import annotations

import hashlib
import json
import sys

import nbformat
import pytest

from tests.planted import planted
from threegates.errors import ManifestError, NoDrawsError, NotebookError
from threegates.pages import notebooks, runner
from threegates.pages.notebooks import read_notebook
from threegates.pages.opened import Opened
from threegates.pages.runner import results_text, run_notebook

PARAMETERS = "seed: int = 5  # of the nulls\nlabel: str = 'x'  # shown"


DRAWING = """\
import pathlib
pathlib.Path("figures/demo").mkdir(parents=True, exist_ok=True)
pathlib.Path("figures/demo/one.svg").write_text(f"<svg>{label}</svg>")
import sys
print("to " + "stderr", file=sys.stderr)
print(label, seed, len({"a", "b", "c"}))
sorted({"a", "b", "c"}, key=hash)"""


def write_notebook(project, name="demo", *cells, parameters=PARAMETERS):
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    rest = [nbformat.v4.new_code_cell(source) for source in cells]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Demo"), first, *rest])
    path = project / "notebooks" / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def run(path, values=None, page=None, output=None):
    return run_notebook(Opened.of_notebook(path, values, name=page), output=output)


def counting(monkeypatch):
    """Count the executions of the runner."""
    runs, original = [], runner._papermill
    monkeypatch.setattr(
        runner, "_papermill", lambda opened, work: (runs.append(opened.chapter), original(opened, work))[1]
    )
    return runs


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".json"
    }


def test_two_runs_are_byte_identical_and_skip_what_has_not_changed(project, tmp_path, monkeypatch):
    path = write_notebook(project, "demo", DRAWING)
    runs = counting(monkeypatch)
    one, two = (run(path, {"label": "y"}, output=tmp_path / name) for name in ("one", "two"))
    assert files(tmp_path / "one") == files(tmp_path / "two") and one.executed and two.executed
    assert set(files(tmp_path / "one")) == {"demo.ipynb", "figures/demo/one.svg"}
    assert not run(path, {"label": "y"}, output=tmp_path / "one").executed and runs == ["demo"] * 2
    page = nbformat.read(one.page, 4)
    nbformat.validate(page)
    text = one.page.read_text()
    assert "papermill" not in page.metadata and "to stderr" not in text and "y 5 3" in text
    assert [cell["id"] for cell in page.cells] == [f"cell-{n:02d}" for n in range(4)]
    assert all(not {"papermill", "execution"} & set(cell.metadata) for cell in page.cells)
    stated = json.loads(one.page.with_suffix(".json").read_text())
    assert {"digest", "time", "commit", "dirty", "parameters"} <= set(stated)


def test_what_it_rests_on_makes_it_run_again(project, monkeypatch):
    runs = counting(monkeypatch)
    monkeypatch.setattr(runner, "_execute", lambda opened, digest, page, alone: runs.append(digest))
    path = write_notebook(project, "demo", "1 + 1")
    digest = lambda: (run(path), runs[-1])[1]  # noqa: E731
    first = digest()
    assert digest() == first
    write_notebook(project, "demo", "1 + 2")
    assert digest() != first
    write_notebook(project, "demo", "1 + 1", "from threegates.records import store")
    second = digest()
    monkeypatch.setattr(runner, "code_digest", lambda *modules: "+".join(modules))
    assert "threegates.records.store" in notebooks.modules(read_notebook(path)) and digest() != second


def test_the_kernel_is_this_interpreter_on_one_thread(project):
    # A page may not show a path, so that the interpreter is known by its digest.
    shown = "print(os.environ['OMP_NUM_THREADS'], hashlib.sha256(sys.executable.encode()).hexdigest())"
    path = write_notebook(project, "demo", f"import hashlib, os, sys\n{shown}")
    digest = hashlib.sha256(sys.executable.encode()).hexdigest()
    assert f"1 {digest}" in run(path).page.read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"drawn": 3}, "has no parameter 'drawn'"),
        ({"seed": "3"}, "wrong type"),
        ({"draws": 3}, "nulls take no number of draws any more"),
        ({"seed": 3.0}, "expected: int"),
    ],
)
def test_unknown_and_wrong_parameters_are_refused_before_anything_runs(project, monkeypatch, given, message):
    runs = counting(monkeypatch)
    path = write_notebook(project, "demo", DRAWING)
    with pytest.raises((NotebookError, NoDrawsError), match=message):
        run(path, given)
    assert runs == [] and not (project / "build").exists()


def test_a_failing_cell_is_named_and_the_last_good_output_stays(project):
    output = project / "build" / "notebooks"
    run(write_notebook(project, "demo", DRAWING), {"label": "good"})
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    path = write_notebook(project, "demo", DRAWING, "x = 1\nraise ValueError('it broke')\ny = 2")
    with pytest.raises(NotebookError) as caught:
        run(path, {"label": "bad"})
    message = str(caught.value)
    assert "notebooks/demo.ipynb, cell 4, line: raise ValueError('it broke')" in message
    assert "found: ValueError: it broke" in message
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_a_kernel_that_dies_fails_the_run(project):
    path = write_notebook(project, "demo", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(NotebookError, match="kernel"):
        run(path)
    assert not (project / "build" / "notebooks").exists()


def test_a_path_of_this_machine_in_the_output_is_refused(project):
    path = write_notebook(project, "demo", "import os\nprint(os.getcwd())")
    with pytest.raises(NotebookError, match=r"shows a path[\s\S]*cell 3"):
        run(path)


def test_a_changed_page_or_a_lost_sidecar_runs_again(project, monkeypatch):
    runs = counting(monkeypatch)
    path = write_notebook(project, "demo", "1")
    page = run(path).page
    good = page.read_bytes()
    page.write_text("{}")
    run(path)
    assert page.read_bytes() == good
    page.with_suffix(".json").unlink()
    run(path)
    assert len(runs) == 3 and page.read_bytes() == good


SUBJECT = 'subject: str = "lab"  # whose pairs\nseed: int = 1  # of the nulls'


OPENED = """\
import os, pathlib
from threegates.study import Study
study = Study.open("spectral-drift", subject=subject)
page = os.environ["THREEGATES_PAGE"] or "spectral-drift"
pathlib.Path("figures", page).mkdir(parents=True)
pathlib.Path("figures", page, "one.svg").write_text(page)
print(sorted(study.frame["pair"]), study.about.title)"""


def two_subjects(project):
    base = planted.base_tensors()
    labels = {"lab-grpo": {"rate": "mask"}, "encoder-grpo": {"rate": "mask", "subject": "encoder"}}
    entries = [
        planted.entry(name, "rl", ["spectral-drift"], algorithm="grpo", labels=own)
        for name, own in labels.items()
    ]
    runs = {entry.name: (planted.with_noise(base, 1e-3, 1), entry) for entry in entries}
    planted.write_study(project / "build" / "lab", base, runs)
    return write_notebook(project, "spectral-drift", OPENED, parameters=SUBJECT)


def test_one_notebook_gives_a_page_for_each_subject(project, monkeypatch):
    path = two_subjects(project)
    runs = counting(monkeypatch)
    first = run(path)
    second = run(path, {"subject": "encoder"}, page="spectral-drift-encoder")
    assert [one.page.name for one in (first, second)] == [
        "spectral-drift.ipynb",
        "spectral-drift-encoder.ipynb",
    ]
    titles = [nbformat.read(one.page, as_version=4).cells[0].source for one in (first, second)]
    assert titles == ["# Demo (the miniature lab)", "# Demo (the encoder)"]
    assert "['lab-grpo']" in first.page.read_text() and "['encoder-grpo']" in second.page.read_text()
    drawn = {p.parent.name: p.read_text() for p in first.page.parent.rglob("one.svg")}
    assert drawn == {name: name for name in ("spectral-drift", "spectral-drift-encoder")}
    assert set(first.verdicts["about"]) == {"lab"} and set(second.verdicts["about"]) == {"encoder"}
    again = run(path, {"subject": "encoder"}, page="spectral-drift-encoder")
    assert not again.executed and not run(path).executed and len(runs) == 2


@pytest.mark.usefixtures("without_a_kernel")
def test_a_changed_subject_leaves_the_other_page_alone(project, monkeypatch):
    path = two_subjects(project)
    run(path)
    run(path, {"subject": "encoder"}, page="spectral-drift-encoder")
    planted.write(
        project / "build" / "lab" / "encoder-grpo", planted.with_noise(planted.base_tensors(), 1e-3, 8)
    )
    assert not run(path).executed
    assert run(path, {"subject": "encoder"}, page="spectral-drift-encoder").executed


def test_a_subject_that_nobody_has_is_refused(project):
    path = two_subjects(project)
    with pytest.raises(ManifestError, match="no such subject") as failure:
        run(path, {"subject": "encodr"})
    assert "encoder, lab" in str(failure.value)


def test_a_chapter_reads_its_study_and_ends_with_page_records_and_verdict(project, monkeypatch):
    monkeypatch.chdir(project)
    base = planted.base_tensors()
    facts = [{"algorithm": "grpo", "seed": seed} for seed in range(5)]
    entries = [planted.entry(f"grpo-s{one['seed']}", "rl", ["stripe-masks"], **one) for one in facts]
    runs = {entry.name: (planted.with_noise(base, 2e-4, entry.seed), entry) for entry in entries}
    planted.write_study(project / "build" / "lab", base, runs)
    path = write_notebook(
        project,
        "stripe-masks",
        "from threegates.study import Study\nstudy = Study.open('stripe-masks', seed=seed)",
        "assert not study.missing()\nprint(len(study.table('agreement')), seed)",
        "study.verdicts()[['claim', 'verdict']]",
    )
    done = run(path, {"seed": 3})
    assert "70 3" in done.page.read_text()
    text = results_text(done)
    assert "page:    build/notebooks/stripe-masks.ipynb  (made just now)" in text
    assert "records: build/records/agreement/" in text
    assert "verdict: masks-agree-across-runs: explained by storage" in text
    assert not run(path, {"seed": 3}).executed
    planted.write(project / "build" / "lab" / "grpo-s2", planted.with_noise(base, 1e-4, 9))
    monkeypatch.setattr(runner, "_execute", lambda opened, digest, page, alone: None)
    assert run(path, {"seed": 3}).executed
