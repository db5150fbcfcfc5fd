"""Figures of measured pairs: one colour a pair, nulls beside it, nothing that was not measured."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from tests.planted.planted_pairs import FLIPS, measured_table
from threegates.figures import pair_plots, pair_views
from threegates.figures.style import PAIR_COLOURS, pair_colours
from threegates.jobs import measured_pairs


@pytest.fixture(scope="module")
def tensors(tmp_path_factory):
    """Two pairs with the same table: whatever differs between them in a figure is the figure's own doing."""
    frame = measured_table(tmp_path_factory.mktemp("pairs")).tensor
    return pd.concat([frame.assign(pair=name) for name in ("first", "second")], ignore_index=True)


def drawn(ax, marker):
    return [line for line in ax.lines if line.get_marker() == marker]


def legend_of(fig):
    found = fig.legends[0]
    return dict(zip((t.get_text() for t in found.get_texts()), found.legend_handles, strict=True))


def check_colours(fig):
    known = legend_of(fig)
    assert [to_hex(known[name].get_color()) for name in ("first", "second")] == [
        colour.lower() for colour in PAIR_COLOURS[:2]
    ]
    plt.close(fig)


def test_sparsity_by_kind_is_that_of_the_flipped_weights(tensors):
    view = pair_views.role_view(tensors).set_index(["pair", "role"])
    size = 2 * 32 * 32
    q = FLIPS["model.layers.0.self_attn.q_proj.weight"]
    assert view.loc[("first", "q"), "sparsity"] == 1 - q / size
    assert view.loc[("first", "k"), "sparsity"] == 1 and view.loc[("first", "q"), "size"] == size
    own = tensors[(tensors["pair"] == "first") & (tensors["role"] == "q")]
    assert view.loc[("second", "q"), "noise"] == pytest.approx(own["sparsity_storage_norm"].mean())
    fig = pair_plots.sparsity_by_role(view.reset_index())
    assert len(drawn(fig.axes[0], "o")) == len(drawn(fig.axes[0], "|")) == 2
    check_colours(fig)


def test_layers_have_medians_over_their_matrices_and_bounds(tensors):
    view = pair_views.layer_view(tensors)
    assert view["layer"].to_list() == [0, 1, 0, 1]
    own = tensors[(tensors["pair"] == "first") & (tensors["layer"] == 0) & tensors["nss"].notna()]
    assert view.loc[0, "nss"] == np.median(own["nss"])
    assert view.loc[0, "angle_left"] == pytest.approx(np.degrees(np.median(own["angle_left_max"])))
    assert (view["nss"] <= view["nss_bound"] + 1e-12).all()
    fig = pair_plots.drift_over_layers(view)
    assert all(len(drawn(ax, "o")) == 2 for ax in fig.axes)
    assert len(fig.axes[0].lines) == 4 and len(fig.axes[1].patches) == 1
    check_colours(fig)


def test_overlaps_stand_beside_density_and_nulls(tensors):
    view = pair_views.overlap_view(tensors).set_index(["pair", "target"])
    matrices = tensors[(tensors["pair"] == "first") & (tensors["spectra"] == "measured")]
    for target in ("principal", "low", "principal_not_low"):
        row = view.loc[("first", target)]
        assert row["overlap"] == pytest.approx(matrices[f"overlap_{target}"].mean())
        assert row["storage_norm_mean"] == pytest.approx(
            matrices[f"overlap_{target}_storage_norm_mean"].mean()
        )
    fig = pair_plots.overlaps_by_pair(view.reset_index())
    assert [ax.get_title(loc="left") for ax in fig.axes] == [
        "principal",
        "low magnitude",
        "principal, not low",
    ]
    assert all(len(drawn(ax, "o")) == 2 for ax in fig.axes)
    check_colours(fig)


def test_nothing_measured_is_nothing_to_draw():
    empty = measured_pairs.measured_tensors([])
    for view in (pair_views.role_view, pair_views.layer_view, pair_views.overlap_view):
        assert len(view(empty)) == 0


def test_many_pairs_have_as_many_colours_and_order_decides():
    names = [f"pair {number}" for number in range(14)]
    found = pair_colours([*names, "pair 3"])
    assert list(found) == names and len(set(found.values())) == 14
    assert list(found.values())[:10] == list(PAIR_COLOURS)
