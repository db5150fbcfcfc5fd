"""Every chapter on models of somebody else's: sides longer than a map's, an adapter, kept steps of a run."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from tests.planted import planted, planted_foreign
from tests.planted.in_process import without_a_kernel
from tests.planted.planted_foreign import LAYERS, NAMED_STEPS, OTHERS, PAIRS, STEPS
from threegates.cli import app
from threegates.errors import NotebookError
from threegates.figures.style import PAIR_COLOURS
from threegates.pages.asked import run_chapter
from threegates.register import ANY_PAIR, CHAPTERS, Shows

#: Chapters that cannot show every pair, with the reason.
WHY_NOT = {name: chapter.why_not for name, chapter in CHAPTERS.items() if chapter.why_not}
#: Chapters that a foreign pair can have, and the pairs of the manifest that each is shown.
SHOWN = {
    "update-sparsity": PAIRS,
    "stripe-masks": ("their-rl", NAMED_STEPS[-1]),
    "spectral-drift": PAIRS,
    "principal-overlap": PAIRS,
    "precision-lens": NAMED_STEPS,
    "emergence": NAMED_STEPS,
    "agents-rlhf": PAIRS,
}
#: Paths of large steps end soon.
QUICK = {"precision-lens": {"rate": "1e-4"}}
#: Blocks that are enough of the chapter that takes longest for a matrix.
PART = {"principal-overlap": [0, 3]}
QUERY, ADAPTED_VALUE = (f"model.layers.2.self_attn.{name}_proj.weight" for name in ("q", "v"))
# The tables hold nine digits.
CLOSE = {"rel": 1e-6}


def source(chapter: str) -> str:
    """The notebook of a chapter, which the project of the models does not hold."""
    return str(planted.ROOT / "notebooks" / f"{chapter}.ipynb")


def prose(page: Path) -> str:
    """What a page's cells say in words that they compute."""
    cells = nbformat.read(page, as_version=4).cells
    shown = [one.get("data", {}) for cell in cells for one in cell.get("outputs", [])]
    return "\n".join(str(data["text/markdown"]) for data in shown if "text/markdown" in data)


@dataclass
class Theirs:
    """A project with the models, and its pages, each made once."""

    root: Path
    base: dict[str, torch.Tensor] = field(default_factory=planted_foreign.base_tensors)
    pages: dict[str, Path] = field(default_factory=dict)

    @cached_property
    def tuned(self) -> dict[str, dict[str, torch.Tensor]]:
        return planted_foreign.tuned_tensors(self.base)

    def page(self, chapter: str) -> Path:
        """The page that a chapter becomes on the pairs of `SHOWN`."""
        if chapter not in self.pages:
            if chapter == "agents-rlhf":
                self.measure(*PAIRS)
            options = {"pairs": SHOWN[chapter], "choice": (PART.get(chapter), None)}
            self.pages[chapter] = run_chapter(source(chapter), QUICK.get(chapter, {}), **options).page
        return self.pages[chapter]

    def measure(self, *pairs: str) -> None:
        """Tables of the pairs, of one block, as the chapter on published pairs asks for them."""
        for pair in pairs:
            told = CliRunner().invoke(app, ["measure", "--pair", pair, "--layers", "2"])
            assert told.exit_code == 0, told.output

    def figures(self, chapter: str) -> Path:
        return self.page(chapter).parent / "figures" / chapter

    def drawn(self, chapter: str, figure: str) -> pd.DataFrame:
        return pd.read_csv(self.figures(chapter) / f"{figure}.csv")

    def mask(self, pair: str, tensor: str) -> np.ndarray:
        """Which stored weights differ, by comparing the bits of two tensors."""
        base, tuned = (side[tensor].to(torch.bfloat16) for side in (self.base, self.tuned[pair]))
        return (base.view(torch.int16) != tuned.view(torch.int16)).numpy()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("foreign")
        for name, value in {**planted.make_project(root), "THREEGATES_SOURCES": "{}"}.items():
            patch.setenv(name, value)
        without_a_kernel(patch)
        made = Theirs(root)
        planted_foreign.write_models(root, made.base, made.tuned)
        yield made


def test_every_chapter_is_either_shown_or_refused():
    notebooks = {path.stem for path in (planted.ROOT / "notebooks").glob("*.ipynb")}
    assert {*SHOWN, *WHY_NOT} == notebooks
    assert set(ANY_PAIR) < set(SHOWN)


@pytest.mark.slow
@pytest.mark.parametrize("chapter", SHOWN)
def test_a_chapter_is_drawn_in_the_colours_of_the_pairs_and_says_no_numbers_that_are_none(chapter, theirs):
    pictures = {path.stem: path.read_text().lower() for path in theirs.figures(chapter).glob("*.svg")}
    tints = [tint.lower() for tint in PAIR_COLOURS[: 1 if chapter == "emergence" else len(SHOWN[chapter])]]
    assert any(all(tint in picture for tint in tints) for picture in pictures.values()), list(pictures)
    assert not re.search(r"\b(nan|inf)\b", prose(theirs.page(chapter)))


@pytest.mark.slow
def test_the_sparsity_is_that_of_the_stored_bits(theirs):
    drawn = theirs.drawn("update-sparsity", "sparsity-by-method").set_index("pair")
    for pair in PAIRS:
        masks = [theirs.mask(pair, name) for name in theirs.base]
        share = 1 - sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks)
        assert drawn.loc[pair, "sparsity"] == pytest.approx(share, **CLOSE)


@pytest.mark.slow
def test_maps_of_long_matrices_are_means_over_squares_and_short_ones_are_whole(theirs):
    maps = theirs.drawn("stripe-masks", "consensus-maps").query("kind == 'observed'").set_index("role")
    assert maps["block"].to_dict() == {"q": 2, "k": 1, "v": 1, "o": 2, "down": 2}
    assert maps[["rows", "columns"]].loc["q"].tolist() == [288, 16]
    both = (theirs.mask("their-rl", QUERY).astype(float) + theirs.mask(NAMED_STEPS[-1], QUERY)) / 2
    shares = np.array(eval(maps.loc["q", "consensus"])).reshape(288, 16)
    # The page writes three digits.
    assert np.allclose(shares, both.reshape(288, 2, 16, 2).mean(axis=(1, 3)), atol=1e-3)


@pytest.mark.slow
def test_spectra_are_those_of_numpy_and_what_the_adapter_left_alone_has_not_moved(theirs):
    drawn = theirs.drawn("spectral-drift", "by-matrix").set_index(["panel", "method", "layer", "role"])
    assert len(drawn.loc["as trained"]) == len(PAIRS) * LAYERS * len(planted_foreign.SHAPES)
    for pair in PAIRS:
        sides = (side[QUERY].double().numpy() for side in (theirs.base, theirs.tuned[pair]))
        before, after = (np.linalg.svd(side, compute_uv=False) for side in sides)
        shift = np.linalg.norm(after - before) / np.linalg.norm(before)
        assert drawn.loc[("as trained", pair, 2, "q"), "nss"] == pytest.approx(shift, rel=1e-4)
    alone = drawn.loc[("as trained", "their-sft")].query("role not in ('q', 'v')")
    assert (alone[["nss", "angle_max"]] == 0).all(axis=None)


@pytest.mark.slow
def test_overlaps_are_of_the_changed_weights_and_missing_where_none_has_changed(theirs):
    drawn = theirs.drawn("principal-overlap", "overlap-by-type").set_index(["group", "role", "target"])
    found = drawn["overlap"]
    of_adapter = found["their-sft"].unstack("target").notna().all(axis=1)
    assert of_adapter[of_adapter].index.tolist() == ["q", "v"] and found["their-rl"].notna().all()
    shares = []
    for number in PART["principal-overlap"]:
        name = ADAPTED_VALUE.replace("layers.2", f"layers.{number}")
        size, mask = theirs.base[name].abs().float().numpy(), theirs.mask("their-sft", name)
        shares.append((size[mask] < np.median(size)).mean())
    # Of equal sizes some are among the smaller half and some are not.
    assert found["their-sft", "v", "low"] == pytest.approx(np.mean(shares), abs=0.01)


@pytest.mark.slow
def test_kept_steps_are_followed_without_a_learning_rate(theirs):
    moved = theirs.drawn("precision-lens", "displacement")
    for step in NAMED_STEPS:
        masks = [theirs.mask(step, name) for name in theirs.base]
        share = sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks)
        assert moved.loc[moved["pair"] == step, "shown"].sum() == pytest.approx(share, **CLOSE)
    told = theirs.drawn("precision-lens", "over-training")
    assert sorted(told["updates"].unique()) == list(STEPS)
    assert not told["measure"].dropna().str.startswith("reachable").any()
    assert "One update could change" not in prose(theirs.page("precision-lens"))


@pytest.mark.slow
def test_ratios_over_training_are_means_of_the_masks(theirs):
    ratios = theirs.drawn("emergence", "ratios").set_index(["role", "step"])["ratio"]
    name = QUERY.replace("layers.2", "layers.1")
    for step, pair in zip(STEPS, NAMED_STEPS, strict=True):
        found = np.array([float(number) for number in re.findall(r"[\d.]+(?:e-\d+)?", ratios["q", step])])
        assert np.allclose(found, theirs.mask(pair, name).mean(axis=1), atol=1e-6)
    assert "their-run" in prose(theirs.page("emergence"))


@pytest.mark.slow
def test_the_chapter_on_published_pairs_shows_what_was_measured(theirs):
    assert "Of 2 pairs 2 have been measured." in prose(theirs.page("agents-rlhf"))
    assert set(theirs.drawn("agents-rlhf", "overlaps")["pair"]) == set(PAIRS)


@pytest.mark.parametrize("chapter", sorted(set(WHY_NOT) - set(SHOWN)))
def test_a_chapter_that_no_foreign_pair_can_have_says_why_at_once(chapter, theirs):
    with pytest.raises(NotebookError) as error:
        run_chapter(source(chapter), {}, PAIRS)
    told = str(error.value)
    assert error.value.what.startswith(f"{chapter} cannot ") and told.count(WHY_NOT[chapter]) == 1
    assert all(any_pair in str(error.value.remedy) for any_pair in ANY_PAIR)


@pytest.mark.parametrize("chapter", WHY_NOT)
def test_two_folders_are_refused_where_a_manifest_or_a_series_is_needed(chapter, theirs):
    sides = {
        side: str(theirs.root / "theirs" / f"their-{name}")
        for side, name in (("base", "base"), ("tuned", "rl"))
    }
    # A run of one's own has both options, and one checkpoint is no run.
    said = "show these pairs" if CHAPTERS[chapter].shows is Shows.runs else "be run with --base and --tuned"
    with pytest.raises(NotebookError, match=f"{chapter} cannot {said}") as error:
        run_chapter(source(chapter), {}, **sides)
    assert WHY_NOT[chapter] in error.value.what


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chapter", "pairs", "matrices", "told"),
    [
        ("stripe-masks", (*PAIRS, OTHERS[0]), ["q"], r"SFT runs on unknown data: −?0\.\d+;"),
        (
            "stripe-masks",
            ("their-sft",),
            ["q", "o"],
            r"heads: in Q, K and V the row ratios vary [\d.]+ times[^,]*\*\*",
        ),
        ("stripe-masks", ("their-rl",), ["gate"], "none of which is among the matrices chosen"),
        ("principal-overlap", OTHERS[1:], ["down"], "No weight has changed, so that there is no lift."),
    ],
    ids=["one RL run beside two of SFT", "matrices without an update", "no mapped matrix", "no update"],
)
def test_a_page_of_few_matrices_says_what_they_show(chapter, pairs, matrices, told, theirs):
    run = run_chapter(source(chapter), {}, pairs, choice=([0], matrices))
    assert re.search(told, prose(run.page))


@pytest.mark.parametrize("chapter", ["stripe-masks", "spectral-drift", "principal-overlap"])
def test_a_choice_without_any_matrix_is_refused_where_a_chapter_looks_at_nothing_else(chapter, theirs):
    with pytest.raises(NotebookError, match=f"{chapter} looks at the matrices of blocks") as error:
        run_chapter(source(chapter), {}, PAIRS, choice=(None, ["norm", "embedding"]))
    assert error.value.found == "norm, embedding" and "update-sparsity" in str(error.value.remedy)
