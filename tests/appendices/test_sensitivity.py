"""Frames and figures of the appendix on sensitivity."""

from __future__ import annotations

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from threegates.appendices import sensitivity_plots, sensitivity_views
from threegates.errors import NotebookError
from threegates.judging.verdicts import NO_LETTER
from threegates.measures.overlap import ALPHAS, ETAS
from threegates.pages.opened import studies_of


class Found:
    """A study's verdicts and cells; what the views ask of one."""

    def __init__(self, verdicts, cells):
        self.kept = verdicts, cells

    def verdicts(self):
        return self.kept[0]

    def cells(self):
        return self.kept[1]


def study(claim, free, about="lab", verdict="reproduced", scale="linear", other=None):
    """A claim judged over its free choices; `other` is its verdict at the largest share or tolerance."""
    tried = {"k": (0.5, 1.0, 2.0), "alpha": ALPHAS, "eta": ETAS}
    head = {"k": 1.0, "alpha": 0.5, "eta": 1e-3}
    names = list(tried)
    values = [tried[name] if name in free else (head[name],) for name in names]
    cells = pd.DataFrame(list(product(*values)), columns=names)
    last = cells[free[-1]] == cells[free[-1]].max()
    moved = last & (other is not None)
    cells = cells.assign(claim=claim, about=about, value=0.1 + cells["alpha"], low=0.05, high=0.9)
    cells["verdict"] = np.where(moved, other or verdict, verdict)
    cells = cells.assign(headline=False, scale=scale)
    rule = {
        "claim": claim,
        "title": f"Title of {claim}",
        "about": about,
        "free": ", ".join(free),
        "kind": "rule",
        "verdict": verdict,
        "at_least": 0.3,
        "lower": None,
        "upper": None,
        "neutral": 0.0,
        "scale": scale,
        "cells": len(cells),
        "cells_same": int((cells["verdict"] == verdict).sum()),
    }
    return Found(pd.DataFrame([rule, rule | {"kind": "matched", "cells": 0, "cells_same": 0}]), cells)


@pytest.fixture
def several():
    return [
        study("a", ["k", "alpha", "eta"], other="contradicted"),
        study("a", ["k", "alpha", "eta"], about="encoder"),
        study("b", ["alpha", "eta"], other="not reproduced"),
        study("c", ["k"], scale="log"),
        study("d", ["eta"], other="contradicted"),
    ]


def frames(studies):
    verdicts = sensitivity_views.all_verdicts(studies)
    return verdicts, sensitivity_views.all_cells(studies, verdicts)


def test_cells_take_their_claims_rule_and_tell_how_far_they_are_from_it(several):
    verdicts, cells = frames(several)
    assert len(verdicts) == 5 and set(verdicts["kind"]) == {"rule"}
    assert len(cells) == verdicts["cells"].sum() and set(cells["letter"]) == {"R", "N", "C"}
    own = cells[cells["claim"] == "b"]
    assert np.allclose(own["margin"], own["value"] - 0.3)
    ratio = cells[cells["claim"] == "c"]
    assert np.allclose(ratio["margin"], np.log(ratio["value"] / 0.3))


def test_claims_that_move_come_first(several):
    moved = sensitivity_views.moved(frames(several)[0])
    share = moved["cells_same"] / moved["cells"]
    assert share.is_monotonic_increasing and (share < 1).sum() == 3


def test_claims_that_were_judged_nowhere_else_are_left_out():
    one = study("a", ["k"])
    one.kept = one.kept[0].assign(cells=0), one.kept[1][:0]
    verdicts, cells = frames([one])
    assert verdicts.empty and cells.empty
    assert sensitivity_views.all_verdicts([Found(one.kept[0].drop(columns=["cells"]), None)]).empty


def test_every_panel_shows_its_cells_and_frames_the_headline(several):
    cells = frames(several)[1]
    every = cells[cells["free"] == "k, alpha, eta"]
    figure = sensitivity_plots.over_every_choice(every)
    assert len(figure.axes) == 2 * len(ETAS)
    letters = ["".join(text.get_text() for text in ax.texts) for ax in figure.axes]
    # The lab's verdict moves at the largest tolerance alone, the encoder's nowhere.
    assert [set(one) for one in letters] == [{"R"}, {"R"}, {"C"}, {"R"}, {"R"}, {"R"}]
    framed = [patch for ax in figure.axes for patch in ax.patches]
    assert len(framed) == 2 and framed[0].get_xy() == (ALPHAS.index(0.5), 1)
    plt.close(figure)


def test_two_choices_have_their_estimate_in_every_cell(several):
    cells = frames(several)[1]
    figure = sensitivity_plots.over_two_choices(cells[cells["claim"] == "b"])
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert len(shown) == len(ALPHAS) * len(ETAS) and shown[0] == "0.150 R" and shown[-1] == "0.800 N"
    plt.close(figure)


@pytest.mark.parametrize(("claim", "choice"), [("c", "k"), ("d", "eta")])
def test_one_choice_is_an_axis_with_interval_and_tolerance(several, claim, choice):
    rows = frames(several)[1].query("claim == @claim")
    figure = sensitivity_plots.over_one_choice(rows, choice)
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == [f"{v:g}" for v in sorted(rows[choice])]
    assert any(np.allclose(line.get_ydata(), 0.3) for line in ax.lines)
    assert ax.get_yscale() == ("log" if claim == "c" else "linear")
    plt.close(figure)


def test_letters_of_cells_stand_for_the_first_verdict_that_has_them():
    named = sensitivity_plots._BY_LETTER
    assert (*"RHXSLDZ?ENCFA", NO_LETTER) == sensitivity_plots._LETTERS
    assert named[NO_LETTER].word == "cannot be tested here"
    assert named[NO_LETTER].cell_marker == "_" and named["R"].cell_marker == "o"


def test_rates_and_steps_take_one_row_a_run_and_checkpoint():
    facts = {"role": "q", "algorithm": "grpo", "seed": 1}
    tensor = pd.DataFrame(
        [
            facts | {"pair": f"p{rate}", "rate": "mask", "learning_rate": rate, "updates": 9, "size": 10}
            | {"status": "compared", "changed": changed, "sparsity": 1 - changed / 10, "sparsity_fp32": 0.0,
               "sparsity_storage_norm": 0.5}
            for rate, changed in ((1e-4, 9), (1e-6, 2))
        ]
    )  # fmt: skip
    rates = sensitivity_views.rate_view(tensor)
    assert rates["learning_rate"].tolist() == [1e-6, 1e-4] and rates["sparsity"].tolist() == [
        0.8,
        pytest.approx(0.1),
    ]
    lens = pd.DataFrame(
        [
            facts
            | {
                "run": run,
                "updates": updates,
                "size": 10,
                "changed": updates,
                "noise_changed": 5,
                "energy": 4.0,
            }
            for run, updates in (("r", 1), ("r", 3), ("alone", 2))
        ]
    )
    steps = sensitivity_views.step_view(lens)
    assert steps["run"].tolist() == ["r", "r"] and steps["sparsity"].tolist() == [0.9, 0.7]
    assert (steps["norm"] == 2).all()
    for figure in (sensitivity_plots.sparsity_over_rates(rates), sensitivity_plots.along_steps(steps)):
        assert figure.axes
        plt.close(figure)


def test_a_page_that_the_book_does_not_have_is_refused():
    with pytest.raises(NotebookError, match=r"(?s)no such page.*principal-overlap.*found: nowhere"):
        studies_of(["nowhere"])
