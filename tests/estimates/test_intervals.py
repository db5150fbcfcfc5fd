"""Intervals over seeds and runs, against scipy and against the spread of many studies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from threegates.estimates import intervals
from threegates.estimates.intervals import jackknife_estimate, t_estimate


def test_the_t_interval_is_scipys():
    values = [0.2, 0.3, 0.5, 0.1]
    found = t_estimate(values, "seeds", 0.95)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))


def test_one_seed_has_no_interval_and_none_no_value():
    one, none = t_estimate([0.4], "seeds", 0.95), t_estimate([math.nan], "seeds", 0.95)
    assert one.value == 0.4 and not one.has_interval and "one of the seeds" in one.reason
    assert math.isnan(none.value) and not none.has_interval and "no seeds" in none.reason


def test_the_jackknife_of_a_mean_is_the_t_interval_of_the_mean():
    values = {"a": 0.1, "b": 0.5, "c": 0.7, "d": 0.2}
    jack = jackknife_estimate(
        lambda kept: float(np.mean([values[k] for k in kept])), dict.fromkeys(values, 1), "runs", 0.95
    )
    plain = t_estimate(values.values(), "runs", 0.95)
    assert (jack.value, jack.low, jack.high) == pytest.approx((plain.value, plain.low, plain.high))


def test_the_jackknife_of_unequal_units_finds_the_error_of_a_mean_over_runs():
    """Runs of one unit share a random part; the error over 4,000 studies is the truth it has to find."""
    rng, sizes = np.random.default_rng(5), {"a": 3, "b": 1, "c": 1, "d": 1, "e": 2, "f": 2}
    whole, errors, naive = [], [], []
    for _ in range(4000):
        runs = {name: rng.normal() + 0.3 * rng.normal(size=size) for name, size in sizes.items()}
        found = jackknife_estimate(
            lambda kept, of=runs: float(np.concatenate([of[name] for name in sorted(kept)]).mean()),
            sizes,
            "seeds",
            0.95,
        )
        whole.append(found.value)
        errors.append(found.error)
        every = np.concatenate(list(runs.values()))
        naive.append(every.std(ddof=1) / math.sqrt(len(every)))
    truth = np.std(whole)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(truth, rel=0.1)
    # Runs taken as independent would look far surer than they are.
    assert np.sqrt(np.mean(np.square(naive))) < 0.85 * truth


def test_the_interval_is_students():
    x = [0.31, 0.35, 0.42, 0.30]
    expected = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    assert intervals.t_interval([*x, np.nan]) == pytest.approx((np.mean(x), expected.low, expected.high))
    assert intervals.t_interval([0.3])[0] == 0.3
    assert np.isnan(intervals.t_interval([0.3])[1:]).all()
