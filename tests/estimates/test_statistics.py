"""p-values, adjustment and power, against scipy, arithmetic and simulation."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from threegates.estimates import statistics
from threegates.estimates.intervals import exponential, t_estimate


def row(
    values, *, at_least=None, lower=None, upper=None, log=False, kind="rule", neutral=0.0, nature="effect"
) -> dict:
    found = t_estimate(np.log(values) if log else values, "seeds", 0.95)
    found = exponential(found) if log else found
    rule = {"at_least": at_least, "lower": lower, "upper": upper, "neutral": neutral, "kind": kind}
    rule["nature"] = nature
    return {**vars(found), **rule}


def table(*rows) -> pd.DataFrame:
    return pd.DataFrame(list(rows)).astype({"at_least": float, "lower": float, "upper": float})


VALUES = [0.31, 0.24, 0.4]


def test_p_is_scipys_one_sided_t_test_against_the_tolerance():
    found = statistics.with_statistics(table(row(VALUES, at_least=0.1)))["p"][0]
    assert found == pytest.approx(stats.ttest_1samp(VALUES, 0.1, alternative="greater").pvalue)


def test_a_ratio_is_tested_on_its_logarithm():
    found = statistics.with_statistics(table(row([2.0, 2.5, 3.1], at_least=1.25, log=True, neutral=1.0)))[
        "p"
    ][0]
    expected = stats.ttest_1samp(np.log([2.0, 2.5, 3.1]), math.log(1.25), alternative="greater")
    assert found == pytest.approx(expected.pvalue)


def test_an_equivalence_takes_the_larger_of_two_one_sided_tests():
    found = statistics.with_statistics(table(row(VALUES, lower=-0.5, upper=0.5)))
    sides = [
        stats.ttest_1samp(VALUES, -0.5, alternative="greater").pvalue,
        stats.ttest_1samp(VALUES, 0.5, alternative="less").pvalue,
    ]
    assert found["p"][0] == pytest.approx(max(sides)) and math.isnan(found["detectable"][0])


def test_an_upper_threshold_is_tested_from_above():
    found = statistics.with_statistics(table(row(VALUES, upper=0.5)))
    expected = stats.ttest_1samp(VALUES, 0.5, alternative="less").pvalue
    assert found["p"][0] == pytest.approx(expected)


def test_what_is_no_effect_is_not_among_what_is_adjusted_for():
    rows = [row(VALUES, at_least=0.1), row(VALUES, at_least=0.1, nature="choice")]
    found = statistics.with_statistics(table(*rows))
    assert found["p_holm"][0] == found["p"][0] and math.isnan(found["p_holm"][1])


def test_the_rule_holds_exactly_where_p_is_below_half_of_what_confidence_leaves():
    rng = np.random.default_rng(1)
    for _ in range(200):
        one = row(rng.normal(0.3, 0.1, 4), at_least=0.2)
        p = statistics.p_value(pd.Series(one))
        assert (one["low"] >= 0.2) == (p <= 0.025)


def test_holm_adjusts_tests_and_leaves_checks_and_controls_out():
    rows = [row(np.array(VALUES) + 0.05 * i, at_least=0.1) for i in range(4)]
    check = row(VALUES, at_least=0.1, neutral=None)
    control = row(VALUES, at_least=0.1, kind="storage")
    found = statistics.with_statistics(table(*rows, check, control))
    own = np.sort(found["p"][:4].to_numpy())
    by_hand = np.maximum.accumulate(own * np.array([4, 3, 2, 1]))
    assert np.sort(found["p_holm"][:4].to_numpy()) == pytest.approx(np.minimum(by_hand, 1))
    assert found["p_holm"][4:].isna().all() and found["holds_holm"][4] is None
    assert math.isnan(found["p"][5]) and not math.isnan(found["p"][4])
    assert list(found["holds_holm"][:4]) == [p <= 0.025 for p in found["p_holm"][:4]]


def test_a_true_effect_of_the_detectable_size_is_found_four_times_in_five():
    rng, n, sd = np.random.default_rng(2), 4, 0.1
    spread = {"value": 0.0, "n": n, "error": sd / math.sqrt(n), "scale": "linear", "at_least": 0.2}
    truth = statistics.detectable(pd.Series(spread), alpha=0.025)
    draws = rng.normal(truth, sd, (20_000, n))
    t = (draws.mean(1) - 0.2) / (draws.std(1, ddof=1) / math.sqrt(n))
    assert (t > stats.t.ppf(0.975, n - 1)).mean() == pytest.approx(0.8, abs=0.015)


def test_what_was_computed_or_is_missing_has_no_p():
    computed = {**row(VALUES, at_least=0.1), "error": 0.0}
    absent = {**row([0.1], at_least=0.1)}
    found = statistics.with_statistics(table(computed, absent))
    assert found[["p", "p_holm", "detectable"]].isna().all(axis=None)


@pytest.mark.parametrize(("pairs", "expected"), [(3, 1 / 8), (6, 1 / 64)])
def test_flipping_signs_of_few_pairs_cannot_give_a_small_p(pairs, expected):
    assert statistics.smallest_sign_flip_p(pairs) == expected
    found = stats.permutation_test(
        (np.arange(1.0, pairs + 1),), np.mean, permutation_type="samples", alternative="greater"
    )
    assert found.pvalue == pytest.approx(expected)


def test_permuting_three_against_three_stops_at_a_tenth():
    assert statistics.smallest_permutation_p(3, 3) == pytest.approx(0.1)
    found = stats.permutation_test(
        ([1.0, 2.0, 3.0], [11.0, 12.0, 13.0]), lambda a, b: np.mean(a) - np.mean(b)
    )
    assert found.pvalue == pytest.approx(0.1)
