"""The book's own chapters on a pair that the lab has never seen."""

from __future__ import annotations

import shutil

import nbformat
import pytest
import torch
import yaml

from tests.checkpoints.adapters import by_peft
from tests.pages.test_runner import write_notebook
from tests.planted import planted
from threegates.judging.verdicts import Judgement
from threegates.pages.asked import run_chapter, run_page
from threegates.pages.contents import Page
from threegates.pages.opened import Opened


def test_a_page_that_looks_at_no_checkpoints_runs_without_any(project):
    write_notebook(project, "plain", "print(1 + 1)")
    run = run_page(Opened.of_page(Page("plain", "plain")))
    assert run is not None and run.executed and run.verdicts.empty
    assert nbformat.read(run.page, as_version=4).cells[0].source == "# Demo"


def two_subjects(project):
    """A study whose RL and SFT runs are noise, on two subjects."""
    base, runs = planted.base_tensors(layers=1), {}
    for subject, sft in (("lab", "sft-teacher"), ("encoder", "cross-entropy")):
        for seed in (1, 2):
            for method, algorithm, rate, scale in (
                ("rl", "grpo", "mask", 2e-4),
                ("sft", sft, "own", 2e-3),
                ("sft", sft, "mask", 4e-4),
            ):
                name = f"{subject}-{algorithm}-{rate}-{seed}"
                facts = {"algorithm": algorithm, "seed": seed, "labels": {"rate": rate, "subject": subject}}
                entry = planted.entry(name, method, CHAPTERS, **facts, learning_rate=scale / 100)
                runs[name] = (planted.with_noise(base, scale, len(runs)), entry)
    planted.write_study(project / "build" / "lab", base, runs)


CHAPTERS = ["spectral-drift", "principal-overlap"]


@pytest.mark.usefixtures("without_a_kernel")
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_one_notebook_is_a_page_for_each_subject(chapter, project):
    two_subjects(project)
    notebook = (planted.ROOT / "notebooks" / f"{chapter}.ipynb").read_text(encoding="utf-8")
    (project / "notebooks" / f"{chapter}.ipynb").write_text(notebook, encoding="utf-8")
    (project / "book").mkdir()
    shutil.copy(planted.ROOT / "book" / "pages.yaml", project / "book")
    listed = yaml.safe_load((project / "book" / "pages.yaml").read_text(encoding="utf-8"))
    for other in {page["notebook"] for page in listed.values()} - {chapter}:
        shutil.copy(planted.ROOT / "notebooks" / f"{other}.ipynb", project / "notebooks")
    own, encoder = run_chapter(chapter, {}), run_chapter(chapter, {"subject": "encoder"})
    assert own.page == project / "build" / "notebooks" / f"{chapter}.ipynb"
    assert encoder.page == own.page.with_name(f"{chapter}-encoder.ipynb")
    texts = [own.page.read_text(), encoder.page.read_text()]
    assert "(the miniature lab)" in texts[0] and "(the encoder)" in texts[1]
    assert "SFT (cross-entropy)" in texts[1] and "SFT (cross-entropy)" not in texts[0]
    assert "one-step bandit" in texts[1] and "one-step bandit" not in texts[0]
    assert set(own.verdicts["verdict"]) | set(encoder.verdicts["verdict"]) <= set(map(str, Judgement))
    # Of the panel the encoder has no SFT in the base's own style; it is judged on numbers all the same.
    assert set(encoder.verdicts["verdict"]) - {"cannot be tested here"}
    figures = [
        {p.name for p in (own.page.parent / "figures" / name).glob("*.svg")}
        for name in (chapter, f"{chapter}-encoder")
    ]
    assert figures[0] == figures[1] != set()
    # By the page's name it is the same page, and by its default the notebook's own.
    assert not run_chapter(f"{chapter}-encoder", {}).executed
    assert not run_chapter(chapter, {"subject": "lab"}).executed


@pytest.mark.usefixtures("without_a_kernel")
def test_a_page_on_a_pair_says_what_of_it_is_not_compared(project, tmp_path):
    base = planted.base_tensors()
    tuned = planted.with_noise(base, 2e-4, seed=3)
    tuned["v_head.summary.weight"] = torch.ones(1, 64)
    norm = "model.layers.0.input_layernorm.weight"
    tuned[norm] = tuned[norm] * torch.inf
    planted.write(tmp_path / "base", base)
    folder = planted.write(tmp_path / "tuned", tuned)
    (folder / "adapter_config.json").write_text("{}")
    source = planted.ROOT / "notebooks" / "update-sparsity.ipynb"
    run = run_chapter(str(source), {}, base=str(tmp_path / "base"), tuned=str(folder))
    told = nbformat.read(run.page, as_version=4).cells[1].source
    size = sum(weight.numel() for weight in base.values())
    assert "1 tensors are only-in-tuned and not compared" in told
    assert "1 tensors are not-finite and not compared" in told
    rest = 64 + base[norm].numel()
    assert f"not covered: {rest} of the {size + 64} weights that the tuned side stores" in told
    assert "adapter_config.json beside the weights" in told and str(tmp_path) not in told


@pytest.mark.usefixtures("without_a_kernel")
def test_a_chapter_runs_on_an_adapter_and_says_what_it_is(project, tmp_path):
    saved = by_peft.saved(
        tmp_path, by_peft.model("llama").bfloat16(), trained=0.01, r=2, target_modules=["q_proj"]
    )
    by_peft.edited(saved.adapter, lambda config: config.update({"base_model_name_or_path": str(saved.base)}))
    source = planted.ROOT / "notebooks" / "update-sparsity.ipynb"
    run = run_chapter(str(source), {}, tuned=str(saved.adapter))
    page = run.page.read_text()
    assert "the tuned side is an adapter (LoRA) on the base: rank 2 on 2 tensors" in page
    assert "the adapter names base as the base" in page and str(tmp_path) not in page


@pytest.mark.usefixtures("without_a_kernel")
@pytest.mark.parametrize(
    "chapter", ["update-sparsity", "stripe-masks", "spectral-drift", "principal-overlap", "precision-lens"]
)
def test_a_chapter_of_the_book_runs_on_two_foreign_folders(chapter, project, tmp_path):
    base = planted.base_tensors()
    planted.write(tmp_path / "base", base)
    planted.write(tmp_path / "tuned", planted.with_noise(base, 2e-4, seed=3))
    source = planted.ROOT / "notebooks" / f"{chapter}.ipynb"
    run = run_chapter(str(source), {}, base=str(tmp_path / "base"), tuned=str(tmp_path / "tuned"))
    assert run.executed and run.page.is_file()
    assert list((run.page.parent / "figures" / chapter).glob("*.svg"))
    assert set(run.verdicts["verdict"]) == {"cannot be tested here"}
    assert str(tmp_path) not in run.page.read_text()
    # Everything is compared, so that nothing is said of it.
    assert "What is compared" not in run.page.read_text()
