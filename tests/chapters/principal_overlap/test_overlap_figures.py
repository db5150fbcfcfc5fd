"""Views and plots of principal weights, on rows given by hand and on a planted pair."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from tests.planted import planted
from threegates.chapters.principal_overlap import plots, views
from threegates.checkpoints.tensors import Checkpoint
from threegates.geometry.principal import TARGETS
from threegates.jobs.nulls import FOUNDING, founding_nulls
from threegates.measures.overlap import measure_overlap

GRPO, TEACHER, OWN = ("rl", "grpo", "mask"), ("sft", "sft-teacher", "mask"), ("sft", "sft-teacher", "own")


def rows(found: dict, **more) -> pd.DataFrame:
    """One row a target and view for each (facts, pair): overlap v, density .5, every null .4."""
    out = []
    for (facts, pair), value in found.items():
        known = dict(zip(("method", "algorithm", "rate"), facts, strict=True))
        for view in ("bf16", "fp32"):
            for target in TARGETS:
                row = {**known, "pair": pair, "role": "q", "layer": 0, "view": view, "target": target}
                row |= {"variant": "raw", "partner": "", "changed": 60, "size": 100}
                row |= {"overlap": value if view == "bf16" else 0.5, "density": 0.5}
                row |= {f"{null}_{end}": 0.4 for null in FOUNDING for end in ("mean", "low", "high")}
                out.append(row | more)
    return pd.DataFrame(out)


FOUND = {(OWN, "c"): 0.5, (TEACHER, "b"): 0.6, (GRPO, "a1"): 0.2, (GRPO, "a2"): 0.4}


def test_runs_are_grouped_rl_first_and_own_rates_last():
    table = rows(FOUND)
    assert list(dict.fromkeys(views.grouped(table)["group"])) == [
        "RL",
        "SFT (teacher)",
        "SFT (teacher), own rate",
    ]
    assert views.shown_groups(table) == ["RL", "SFT (teacher)"]
    unknown = rows({(("unknown", None, None), "x"): 0.3})
    assert views.shown_groups(unknown) == ["your pair"]
    embedding = rows(FOUND, role="embedding")
    assert views.grouped(embedding).empty


def test_overlaps_are_means_over_runs_with_the_range_of_runs():
    view = views.overlap_view(rows(FOUND)).set_index(["group", "role", "target"])
    found = view.loc["RL", "q", "principal"]
    assert found["overlap"] == pytest.approx(0.3)
    assert (found["overlap_low"], found["overlap_high"]) == pytest.approx((0.2, 0.4))
    assert view.loc["SFT (teacher), own rate", "q", "low"]["overlap"] == 0.5
    fp32 = views.overlap_view(rows(FOUND), "fp32")
    assert (fp32["overlap"] == 0.5).all()


def test_lifts_divide_by_density():
    layers = views.layer_view(rows(FOUND), "RL").set_index(["kind", "target"])
    assert layers.loc[("observed", "principal"), "lift"] == pytest.approx(0.6)
    assert layers.loc[("storage_density", "principal"), "lift"] == pytest.approx(0.8)
    both = views.view_comparison(rows(FOUND)).set_index("group")
    assert both.loc["RL", ["bf16", "fp32", "magnitude"]].tolist() == pytest.approx([0.6, 1.0, 0.8])


def test_the_summary_keeps_groups_together_in_order():
    summary = views.overlap_summary(rows(FOUND))
    assert list(summary["group"].drop_duplicates()) == ["RL", "SFT (teacher)", "SFT (teacher), own rate"]
    assert summary["group"].eq("RL").sum() == 6


def test_the_sweep_names_ranks_by_the_smaller_side():
    table = pd.concat([rows(FOUND, smaller_side=64, k=k, alpha=0.5, lift=k / 8, eta=1e-3) for k in (8, 16)])
    view = views.sweep_view(table, "RL")
    assert set(view["rank"]) == {"n/8", "n/4"}
    assert (view.loc[view["rank"] == "n/4", "lift"] == 2).all()


def swept(ranks: dict[int, tuple[int, ...]]) -> pd.DataFrame:
    """A matrix for each smaller side, swept at these ranks, with the side for its lift."""
    found = {(GRPO, "a1"): 0.2}
    return pd.concat(
        [
            rows(found, smaller_side=side, k=k, alpha=0.5, lift=side, eta=1e-3)
            for side, own in ranks.items()
            for k in own
        ]
    )


@pytest.mark.parametrize(
    ("ranks", "named"),
    [
        ({64: (4, 8, 16), 128: (8, 16, 32)}, ["n/16", "n/8", "n/4"]),
        # As models of billions of parameters have it: the same ranks of every matrix, other parts of each.
        ({1024: (16, 32, 64), 4096: (16, 32, 64)}, ["k = 16", "k = 32", "k = 64"]),
        # Qwen 2.5's smallest: K and V are short enough for parts of their own.
        ({128: (8, 16, 32, 64), 896: (16, 32, 64, 128)}, ["k = 16", "k = 32", "k = 64"]),
        ({100: (6,), 96: (3,)}, ["n/32", "n/17"]),
    ],
)
def test_every_mean_of_the_sweep_is_over_all_matrices(ranks, named):
    view = views.sweep_view(swept(ranks), "RL")
    assert list(view.sort_values("order")["rank"].unique()) == named
    assert set(view["lift"]) == ({np.mean(list(ranks))} if len(named) > 2 else set(ranks))
    drawn = plots.lift_sweep(view).axes[0]
    assert [text.get_text() for text in drawn.get_yticklabels()] == named


def test_directions_are_geometric_means_relative_to_random_frames():
    facts = dict(zip(("method", "algorithm", "rate"), GRPO, strict=True)) | {"role": "q", "stable_rank": 3.0}
    facts |= {"variant": "raw", "view": "fp32"}
    frames = {"rotation_mean": 0.1, "rotation_low": 0.05, "rotation_high": 0.2}
    table = pd.DataFrame(
        [{**facts, "pair": pair, "rho2": rho2, **frames} for pair, rho2 in (("a", 0.2), ("b", 0.8))]
    )
    (row,) = views.direction_view(table).to_dict("records")
    assert (row["ratio"], row["ratio_low"], row["ratio_high"]) == pytest.approx((4, 2, 8))
    assert (row["random_low"], row["random_high"]) == pytest.approx((0.5, 2.0))


def test_rl_stands_beside_what_was_scaled_to_its_norm():
    found = {(OWN, "c"): 0.6, (GRPO, "a1"): 0.2, (("rl", "dapo", "mask"), "a2"): 0.9}
    raw = rows(found, rho2=0.1, expected=0.05)
    scaled = raw[raw["pair"] == "c"].assign(variant="norm-matched", partner="a1", overlap=0.3, changed=30)
    table = pd.concat([raw, scaled.assign(rho2=0.2)])
    view = views.matched_view(table, table[table["target"] == "low"])
    assert list(view["group"]) == ["RL", "SFT (teacher), own rate", "SFT (teacher), own rate"]
    # DAPO's norm was taken by nobody.
    assert list(view["update"]) == ["as trained", "as trained", "at RL's norm"]
    assert view["overlap"].tolist() == pytest.approx([0.2, 0.6, 0.3])
    assert view["density"].tolist() == pytest.approx([0.6, 0.6, 0.3])
    assert view["energy"].tolist() == pytest.approx([2, 2, 4])


def test_a_pair_of_ones_own_stands_beside_nothing():
    unknown = rows({(("unknown", None, None), "x"): 0.3}, rho2=0.1, expected=0.05)
    assert views.matched_view(unknown, unknown).empty


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    base = planted.base_tensors(layers=2)
    planted.write(folder / "base", base)
    planted.write(folder / "tuned", planted.with_noise(base, 3e-4, seed=1))
    sides = (Checkpoint.open(folder / side) for side in ("base", "tuned"))
    measured = measure_overlap(*sides, name="p", nulls=founding_nulls())
    facts = dict(zip(("method", "algorithm", "rate"), GRPO, strict=True))
    return {name: table.assign(**facts) for name, table in measured.items()}


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def test_every_figure_of_a_measured_pair_is_drawn(tables):
    overlap = tables["overlap"]
    figures = [
        plots.overlaps_against_nulls(views.overlap_view(overlap)),
        plots.lifts_by_layer(views.layer_view(overlap, "RL")),
        plots.lift_sweep(views.sweep_view(tables["sweep"], "RL")),
        plots.bf16_beside_fp32(views.view_comparison(overlap)),
        plots.energy_against_random_frames(views.direction_view(tables["direction"])),
    ]
    assert all(isinstance(figure, Figure) for figure in figures)
    assert [len(figure.axes) for figure in figures] == [3, 6, 6, 1, 1]


def test_heat_maps_show_the_frame_and_are_centred_on_one(tables):
    view = views.sweep_view(tables["sweep"], "RL")
    figure = plots.lift_sweep(view)
    cells = figure.axes[0].collections[0]
    drawn = np.ma.getdata(cells.get_array()).reshape(-1)
    shown = view.query("view == 'bf16' and target == 'principal'")
    assert np.allclose(np.sort(drawn), np.sort(shown["lift"]))
    assert sum(cells.get_clim()) == pytest.approx(2)


def test_the_observed_mark_stands_at_the_overlap_and_the_line_at_the_density(tables):
    view = views.overlap_view(tables["overlap"])
    ax = plots.overlaps_against_nulls(view).axes[0]
    row = view.query("role == 'q' and target == 'principal'").iloc[0]
    xs = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert xs[0] == pytest.approx(row["overlap"])
    assert ax.lines[0].get_xdata()[0] == pytest.approx(row["density"])


def test_groups_keep_the_colours_of_their_methods():
    assert plots.group_colour("RL") == "#0072B2"
    assert plots.group_colour("SFT (teacher), own rate") == "#D55E00"
    assert plots.group_colour("your pair") == "#000000"
