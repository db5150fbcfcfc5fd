"""Plots of sparsity by method."""

from __future__ import annotations

import numpy as np
import pytest

from tests.planted import frames
from threegates.chapters.update_sparsity import plots as update_sparsity_plots
from threegates.estimates.paper import table_1
from threegates.figures.style import PAPER


def test_sparsity_draws_each_seed_its_null_and_the_papers_ranges():
    frame = frames.sparsity()
    ax = update_sparsity_plots.sparsity_by_method(frame).axes[0]
    dots = np.concatenate([c.get_offsets()[:, 0] for c in ax.collections])
    assert sorted(dots) == pytest.approx(sorted([*frame["sparsity"], *frame["sparsity_fp32"]]))
    lines = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2]
    upright = [x[0] for x in lines if x[0] == x[1]]
    assert sorted(upright) == pytest.approx(sorted(frame.groupby("label")["sparsity_storage_norm"].mean()))
    assert [t.get_text() for t in ax.get_yticklabels()] == list(dict.fromkeys(frame["label"]))
    assert {t.get_text() for t in ax.texts} == {"paper: SFT", "paper: RL"}
    (stars,) = [line for line in ax.lines if line.get_marker() == PAPER["marker"]]
    assert sorted(stars.get_xdata()) == pytest.approx(sorted(table_1()["sparsity"]))
    legend = {text.get_text() for text in ax.figure.legends[0].get_texts()}
    assert "the paper: a pair of Table 1" in legend
