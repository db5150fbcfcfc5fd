"""A null that joins the table: measured where it is asked for, and drawn wherever nulls are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from tests.planted import planted
from tests.planted.planted_null import FIFTH
from threegates.chapters.principal_overlap import plots as overlap_plots
from threegates.chapters.principal_overlap import views as overlap_views
from threegates.chapters.stripe_masks import plots as stripe_plots
from threegates.chapters.stripe_masks import views as stripe_views
from threegates.checkpoints.tensors import Checkpoint
from threegates.figures import pair_plots, pair_views
from threegates.geometry.nulls import table
from threegates.geometry.nulls.null import Null
from threegates.jobs.nulls import founding_nulls
from threegates.measures.agreement import measure_agreement
from threegates.measures.by_tensor import measure_all
from threegates.measures.overlap import measure_overlap
from threegates.measures.tensor_table import PairTable

FACTS = {"method": "rl", "algorithm": "grpo", "rate": "mask"}
FOUR = founding_nulls()
FIVE = (*FOUR, FIFTH)


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    folder, base = tmp_path_factory.mktemp("runs"), planted.base_tensors()
    tensors = {"base": base} | {f"r{n}": planted.with_noise(base, 5e-4, n) for n in (1, 2, 3)}
    return {name: Checkpoint.open(planted.write(folder / name, one)) for name, one in tensors.items()}


def measured(sides: dict[str, Checkpoint], nulls: tuple[Null, ...]) -> dict[str, pd.DataFrame]:
    """Every table with nulls, by kind and name."""
    base, runs = sides["base"], {name: one for name, one in sides.items() if name != "base"}
    found = {
        "table": measure_all(PairTable(base, runs["r1"], "p", axes=True, nulls=nulls)),
        "overlap": measure_overlap(base, runs["r1"], name="p", nulls=nulls),
        "group": measure_agreement(base, runs, of_layer=0, nulls=nulls),
    }
    return {f"{kind}/{name}": frame for kind, tables in found.items() for name, frame in tables.items()}


@pytest.fixture(scope="module")
def five(sides):
    return measured(sides, FIVE)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(table.NULLS, FIFTH.name, FIFTH)
    yield
    plt.close("all")


def of_fifth(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame if name.startswith(f"{FIFTH.name}_") or f"_{FIFTH.name}_" in name]


def test_a_fifth_null_is_measured_beside_the_four_and_changes_none_of_their_numbers(sides, five):
    four = measured(sides, FOUR)
    assert list(five) == list(four)
    of_nulls = {name for name, frame in four.items() if any("magnitude_mean" in column for column in frame)}
    assert of_nulls == {name for name, frame in five.items() if of_fifth(frame)} and len(of_nulls) == 9
    for name, frame in five.items():
        rows = frame[frame["kind"] != FIFTH.name] if name == "group/map" else frame
        rest = rows.drop(columns=of_fifth(frame)).reset_index(drop=True)
        pd.testing.assert_frame_equal(rest, four[name], check_exact=True)
    for name in of_nulls:
        (mean,) = [column for column in of_fifth(five[name]) if column.endswith("_mean")][:1]
        assert five[name][mean].notna().any()


def test_a_fifth_null_that_is_not_of_storage_is_drawn_in_both_views(five):
    views = five["overlap/overlap"].groupby("view")[[f"{FIFTH.name}_mean", "storage_norm_mean"]].count()
    assert (views[f"{FIFTH.name}_mean"] > 0).all() and views.loc["fp32", "storage_norm_mean"] == 0
    swept = five["overlap/sweep"].groupby("view")[f"{FIFTH.name}_mean"].count()
    assert (swept > 0).all()


def test_in_the_table_of_a_pair_a_null_without_a_law_is_drawn_and_says_so(five):
    matrices = five["table/tensor"].query("spectra == 'measured'")
    assert set(matrices[f"overlap_low_{FIFTH.name}_how"]) == {"drawn"}
    assert set(matrices["overlap_low_bernoulli_how"]) == {"law"}
    # Two tails, and no less than two hundred draws and the observed mask can tell.
    assert (matrices[f"overlap_low_{FIFTH.name}_log10_p"] >= np.log10(2 / 201) - 1e-12).all()
    rows = five["table/axis"].query("axis == 'row'")
    assert np.allclose(rows[f"{FIFTH.name}_mean"], rows["dispersion"])
    assert np.allclose(rows[f"{FIFTH.name}_sd"], 0) and (rows[f"{FIFTH.name}_how"] == "drawn").all()


def drawings(frames: dict[str, pd.DataFrame]) -> dict[str, plt.Figure]:
    """Every figure that lists nulls."""
    overlap = frames["overlap/overlap"].assign(**FACTS)
    agreement, axis = (frames[f"group/{name}"].assign(method="rl") for name in ("agreement", "axis"))
    maps = stripe_views.consensus_view(
        frames["group/map"].assign(method="rl"), kinds=("observed", *table.NULLS)
    )
    return {
        "overlaps": overlap_plots.overlaps_against_nulls(overlap_views.overlap_view(overlap)),
        "lifts": overlap_plots.bf16_beside_fp32(overlap_views.view_comparison(overlap)),
        "pairs": pair_plots.overlaps_by_pair(pair_views.overlap_view(frames["table/tensor"])),
        "jaccards": stripe_plots.jaccard_against_nulls(stripe_views.baseline_view(agreement)),
        "stripes": stripe_plots.stripes_against_nulls(stripe_views.stripe_view(axis)),
        "maps": stripe_plots.consensus_maps(maps),
    }


def told(figure: plt.Figure) -> set[str]:
    """What legends and labels say."""
    legend = {text.get_text() for one in figure.legends for text in one.get_texts()}
    return legend | {ax.get_ylabel() for ax in figure.axes}


def test_every_figure_that_lists_nulls_has_the_fifth_with_its_look(five):
    for name, figure in drawings(five).items():
        assert FIFTH.title in told(figure), name
        lines = [line for ax in figure.axes for line in ax.lines]
        looks = {(line.get_color(), line.get_marker()) for line in lines}
        assert name == "maps" or (FIFTH.colour, FIFTH.marker) in looks, name


def test_a_record_without_a_null_is_drawn_without_it(sides):
    for name, figure in drawings(measured(sides, FOUR)).items():
        assert FIFTH.title not in told(figure), name
    only = measured(sides, FOUR[3:])
    figures = drawings({name: frame.assign(bernoulli=np.nan) for name, frame in only.items()})
    for name, figure in figures.items():
        titles = {null.title for null in FIVE} & told(figure)
        assert titles == {FOUR[3].title}, name


def test_a_summary_has_a_column_of_every_null_in_the_record(five):
    summary = overlap_views.overlap_summary(five["overlap/overlap"].assign(**FACTS))
    assert [name for name in summary if name.endswith("_mean")] == [
        "storage_density_mean",
        "storage_norm_mean",
        "magnitude_mean",
        f"{FIFTH.name}_mean",
    ]
