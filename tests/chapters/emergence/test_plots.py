"""Plots of the emergence of stripes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.planted import frames
from threegates.chapters.emergence import plots as emergence_plots


def test_smoothing_is_a_centred_mean_that_shortens_at_the_ends():
    ratio = np.random.default_rng(0).uniform(size=17)
    expected = pd.Series(ratio).rolling(3, center=True, min_periods=1).mean()
    assert emergence_plots.smoothed(ratio, 3) == pytest.approx(expected.to_numpy())


def test_ratios_stand_in_the_order_of_a_block():
    shuffled = frames.ratios().sample(frac=1, random_state=0)
    titles = [ax.get_title("left") for ax in emergence_plots.ratios_over_training(shuffled).axes]
    assert titles == ["Q: row ratios", "K: row ratios", "V: row ratios", "O: column ratios"]
