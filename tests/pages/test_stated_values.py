"""Values that prose states from code: limits of small samples, against scipy's exact tests."""

from __future__ import annotations

import numpy as np
from scipy import stats

from threegates.pages.stated_values import limit_values


def test_limits_of_few_seeds_are_those_of_exact_tests():
    found = limit_values()
    apart = stats.permutation_test(([1.0, 2, 3], [7.0, 8, 9]), lambda a, b: np.mean(a) - np.mean(b))
    assert float(found["limit.permutation"]) == apart.pvalue
    for key, pairs in (("limit.sign_flip", 3), ("limit.sign_flip_of_six", 6)):
        flipped = stats.permutation_test(
            (np.arange(1.0, pairs + 1),), np.mean, permutation_type="samples", alternative="greater"
        )
        assert abs(float(found[key]) - flipped.pvalue) < 1e-3
