"""The figure that sums up: which claims it draws, where, and how they look."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from tests.judging.test_cards import CLAIM, CONTROL
from threegates.appendices.verdict_plots import forest, forest_rows
from threegates.judging.verdicts import Judgement

RATIO = CLAIM | {"scale": "log"}
LOST = CLAIM | {
    "claim": "b",
    "title": "B",
    "verdict": "contradicted",
    "value": -0.2,
    "low": -0.3,
    "high": -0.1,
}
LOST |= {"neutral": 0.0, "at_least": 0.1}


def drawn(*rows):
    return forest_rows(pd.DataFrame(list(rows)))


def test_effects_of_the_paper_are_drawn_and_checks_ours_and_computed_ones_are_not():
    check, ours = CLAIM | {"claim": "c", "neutral": None}, CLAIM | {"claim": "d", "made_by": "us"}
    computed = CLAIM | {"claim": "e", "error": 0.0}
    theorem = CLAIM | {"claim": "g", "nature": "theorem"}
    open_ = CLAIM | {"claim": "f", "low": math.nan, "high": math.nan}
    read = CLAIM | {"claim": "h", "made_by": "reading of the paper"}
    found = drawn(RATIO, check, ours, computed, open_, theorem, read)
    assert set(found["claim"]) == {"masks-are-striped", "h"}


def test_a_claim_stands_once_in_its_panel_with_its_controls_in_the_same_row():
    control = CONTROL | {"scale": "log"}
    rows = drawn(RATIO, control, LOST, CLAIM | {"claim": "g", "title": "G", "neutral": 0.0})
    places = rows.groupby(["claim", "scale"])["row"].unique().to_dict()
    assert [len(found) for found in places.values()] == [1, 1, 1]
    # Among differences the reproduced one comes first.
    assert (places["g", "linear"][0], places["b", "linear"][0]) == (0, 1)


def test_a_ratio_that_is_not_above_zero_stands_at_the_left_edge_of_the_ratios():
    """Curvature along noise may be negative, and its ratio has then no logarithm."""
    negative = CLAIM | {
        "claim": "n",
        "title": "N",
        "value": -0.1,
        "low": -0.2,
        "high": 0.4,
        "scale": "linear",
    }
    rows = drawn(RATIO, negative).set_index("claim")
    assert set(rows["scale"]) == {"log"}
    assert rows.loc["n", ["value", "low", "high"]].tolist() == [0.2, 0.2, 0.4]
    assert rows.loc[RATIO["claim"], "value"] == RATIO["value"]


def test_subjects_are_named_where_a_claim_has_several():
    rows = drawn(CLAIM, CLAIM | {"about": "encoder"}, LOST)
    assert set(rows["label"]) == {"Masks are striped (lab)", "Masks are striped (encoder)", "B"}


def test_the_figure_has_a_panel_a_scale_and_a_label_a_row():
    fig = forest(drawn(RATIO, CONTROL | {"scale": "log"}, LOST))
    ratios, differences = fig.axes
    assert (ratios.get_xscale(), differences.get_xscale()) == ("log", "symlog")
    assert [text.get_text() for text in ratios.get_yticklabels()] == ["Masks are striped"]
    assert [text.get_text() for text in differences.get_yticklabels()] == ["B"]
    labels = {text.get_text() for text in fig.legends[0].get_texts()}
    tolerance = "tolerance of the claim's rule (controls have theirs)"
    assert {"reproduced", "contradicted", tolerance, "under a storage null"} == labels
    plt.close(fig)


@pytest.mark.parametrize("judgement", [one for one in Judgement if one is not Judgement.not_run])
def test_every_verdict_that_may_have_numbers_is_drawn(judgement):
    """A rule with an interval may hold though its control cannot be tested."""
    fig = forest(drawn(RATIO | {"verdict": str(judgement)}))
    assert len(fig.axes[0].lines) > 1
    plt.close(fig)
