"""Pairs that a reader chooses stand one by one, each with a colour of its own, wherever pairs are drawn."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from tests.planted import frames, lens_frames
from threegates.chapters.emergence import plots as emergence_plots
from threegates.chapters.precision_lens import plots as precision_lens_plots
from threegates.chapters.precision_lens import views as precision_lens_views
from threegates.chapters.precision_lens.estimates import lens_totals
from threegates.chapters.principal_overlap import plots as principal_overlap_plots
from threegates.chapters.principal_overlap import views as principal_overlap_views
from threegates.chapters.spectral_drift import plots as spectral_drift_plots
from threegates.chapters.spectral_drift import views as spectral_drift_views
from threegates.chapters.stripe_masks import views as stripe_masks_views
from threegates.chapters.update_sparsity import plots as update_sparsity_plots
from threegates.chapters.update_sparsity import views as update_sparsity_views
from threegates.figures import names, pair_plots, style
from threegates.figures.style import METHOD_COLOURS, PAIR_COLOURS, colour, one_colour_each


@pytest.fixture(autouse=True)
def a_page_of_its_own(monkeypatch):
    monkeypatch.setattr(style, "_PAIRS", {})
    yield
    plt.close("all")


def drawn(fig, number=0):
    return {to_hex(line.get_color()) for line in fig.axes[number].lines if len(line.get_xdata())}


def names_in_legend(fig):
    return [text.get_text() for text in fig.legends[0].get_texts()]


def hexes(count):
    return {tint.lower() for tint in PAIR_COLOURS[:count]}


def test_without_a_choice_a_table_stays_as_it_is():
    table = frames.drift()
    assert one_colour_each(table, []) is table and one_colour_each(table, "") is table
    assert style._PAIRS == {} and colour("grpo-1") == "#000000"


def test_chosen_pairs_have_colours_in_their_order_and_methods_keep_theirs():
    table = pd.DataFrame({"pair": ["b", "a", "b"], "algorithm": "grpo", "seed": [1, 2, 1], "rate": "own"})
    found = one_colour_each(table, ["b", "a"])
    assert [colour(name) for name in ("b", "a")] == list(PAIR_COLOURS[:2])
    assert found["algorithm"].to_list() == ["b", "a", "b"]
    assert found[["seed", "rate"]].isna().all(axis=None) and found["alone"].all()
    assert colour("SFT (teacher)") == METHOD_COLOURS["SFT (teacher)"]
    # A second table of the page that lacks a pair shifts no colour.
    one_colour_each(table[table["pair"] == "a"], "a")
    assert colour("a") == PAIR_COLOURS[1]


def test_sparsity_has_a_row_and_a_colour_for_each_of_two_seeds_of_one_method():
    facts = {"algorithm": "grpo", "method": "rl", "seed": 1, "learning_rate": 1e-5, "rate": "mask"}
    tensors = pd.DataFrame([{"pair": name, **facts} for name in ("one", "two")]).assign(
        tensor="q", role="q", status="compared", size=10, changed=4, sparsity=0.6
    )
    tensors = tensors.assign(sparsity_fp32=0.0, sparsity_storage_norm=0.5, base="b", data="d")
    together = update_sparsity_views.sparsity_view(tensors)
    assert together["label"].to_list() == ["GRPO, lr 1e-05"] * 2
    alone = update_sparsity_views.sparsity_view(one_colour_each(tensors))
    assert alone["label"].to_list() == ["one", "two"]
    fig = update_sparsity_plots.sparsity_by_method(alone)
    diamonds = [line for line in fig.axes[0].lines if line.get_marker() == "D"]
    assert {to_hex(line.get_color()) for line in diamonds} == hexes(2)


def test_drift_shows_every_chosen_pair_with_its_matched_partner():
    drift, spectrum = (one_colour_each(table) for table in (frames.drift(), frames.spectrum()))
    view = spectral_drift_views.drift_view(drift)
    assert set(view["label"]) == set(frames.drift()["pair"])
    fig = spectral_drift_plots.drift_by_method(view)
    assert len(fig.axes[0].get_yticklabels()) == 6
    matrices = spectral_drift_views.matrix_view(drift)
    assert set(matrices.loc[matrices["panel"] == "as trained", "method"]) == set(drift["pair"])
    assert "grpo-1" in set(matrices.loc[matrices["panel"] == "at equal ‖ΔW‖", "method"])
    fig = spectral_drift_plots.drift_by_matrix(matrices)
    assert names_in_legend(fig)[:6] == list(dict.fromkeys(matrices["method"]))
    assert drawn(fig) >= hexes(6)
    # As methods only the first seed's matrix is shown; chosen pairs are all shown.
    example = spectral_drift_views.example_view(spectrum, drift)
    assert set(example["label"]) == set(frames.drift()["pair"])


def overlaps():
    rows = []
    for pair, method, algorithm in (("one", "rl", "grpo"), ("two", "rl", "dapo"), ("three", "rft", "rft")):
        for target in ("principal", "low", "principal_not_low"):
            nulls = {
                f"{null}_{end}": 0.4
                for null in ("bernoulli", "storage_density", "storage_norm", "magnitude")
                for end in ("mean", "low", "high")
            }
            facts = {"pair": pair, "method": method, "algorithm": algorithm, "rate": "own", "variant": "raw"}
            named = {"role": "q", "layer": 0, "view": "bf16", "target": target, "partner": ""}
            rows.append({**facts, **named, "overlap": 0.45, "density": 0.5, **nulls})
    return pd.DataFrame(rows)


def test_overlaps_have_a_group_for_every_chosen_pair():
    assert principal_overlap_views.shown_groups(overlaps()) == ["RL, own rate"]
    assert principal_overlap_views.shown_groups(overlaps()) == ["RL, own rate"]
    alone = one_colour_each(overlaps())
    assert principal_overlap_views.shown_groups(alone) == ["one", "two", "three"]
    view = principal_overlap_views.overlap_view(alone)
    fig = principal_overlap_plots.overlaps_against_nulls(view)
    handles = dict(zip(names_in_legend(fig), fig.legends[0].legend_handles, strict=True))
    tints = [to_hex(handles[f"{name}, range of runs"].get_color()) for name in ("one", "two", "three")]
    assert tints == [tint.lower() for tint in PAIR_COLOURS[:3]]
    assert principal_overlap_plots.group_colour("RL") == "#0072B2"


def test_the_lens_draws_a_curve_for_every_chosen_pair_and_knows_steps_of_one_run():
    lens, bins = lens_frames.lens(), lens_frames.bins()
    ends = lens[lens["pair"].isin(["grpo-1", "grpo-2"])]
    totals = one_colour_each(lens_totals(ends))
    shown = precision_lens_views.followed(totals)
    assert not precision_lens_views.along_training(shown) and precision_lens_views.along_training(
        lens_totals(lens)
    )
    moved = precision_lens_views.ratio_view(bins, shown)
    assert moved.groupby("pair")["share"].sum().to_list() == pytest.approx([1.0, 1.0])
    fig = precision_lens_plots.displacement(moved)
    assert hexes(2) <= drawn(fig)
    assert [name.partition(":")[0] for name in names_in_legend(fig)] == ["grpo-1", "grpo-2"]
    # Of one method both would be one curve.
    together = precision_lens_views.ratio_view(bins, lens_totals(ends))
    assert "pair" not in together and len(together) == len(moved) / 2


def test_emergence_has_a_colour_for_every_run():
    view = frames.emergence()
    assert names_in_legend(emergence_plots.emergence_correlation(view))[0] == "RL run"
    fig = emergence_plots.emergence_correlation(one_colour_each(view, "steps", "run"))
    runs = sorted(view["run"].unique())
    assert names_in_legend(fig)[: len(runs)] == runs
    assert hexes(len(runs)) <= drawn(fig)


def test_stripes_of_every_pair_stand_beside_its_own_null():
    axis = pd.concat(
        [
            frames.stripes().assign(pair=name, method=method, bernoulli_mean=1.0, layer=0)
            for name, method in (("one", "rl"), ("two", "sft"))
        ]
    )
    view = stripe_masks_views.stripes_by_pair(axis)
    assert list(dict.fromkeys(view["pair"])) == ["one", "two"]
    own = frames.stripes().set_index(["role", "axis"])["dispersion"]
    found = view[view["pair"] == "two"].set_index(["role", "axis"])["dispersion"]
    assert np.allclose(found, own.loc[found.index])
    fig = pair_plots.stripes_of_pairs(view)
    assert hexes(2) <= drawn(fig) and names_in_legend(fig)[:2] == ["one", "two"]


def test_labels_of_chosen_runs_are_their_names():
    frame = lens_frames.frame()
    assert set(names.run_labels(one_colour_each(frame)).values()) == set(frame["pair"])
    colours = names.run_colours(one_colour_each(frame))
    assert len(set(colours.values())) == len(colours) == len(frame)
