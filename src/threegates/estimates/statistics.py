"""How sure a verdict is: p-values of the rules, adjustment for their number, and what could have been found.

A rule asks that a whole interval of confidence c lies beyond a tolerance, which is a one-sided t test at
(1 − c)/2. Everything is computed from an estimate's mean, standard error and number of units, on the scale
that it was averaged on. Units are few: with three seeds only large effects can be shown, and the detectable
effect says how large.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from threegates.estimates.verdict_frame import EFFECT, are_rules, is_rule

POWER = 0.8


def with_statistics(verdicts: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """The verdict table of a whole build with four columns on the rows of the rules, NaN elsewhere.

    Returns
    -------
    p : one-sided p-value of the rule's own test against its tolerance; of an equivalence the larger of two.
    p_holm : the same, adjusted by Holm's step-down for all rules of the build on effects that have a neutral
        value; what holds as arithmetic, as a theorem or by choice is no test.
    holds_holm : whether the rule holds family-wise, at (1 − confidence)/2; None where there is no p_holm.
    detectable : the smallest true value that as many units of this spread would have shown with power .8; NaN
        for an equivalence.

    **Source** Student (1908); Schuirmann (1987) for two one-sided tests; Holm (1979); power of the t test by
    the noncentral t distribution, Cohen (1988).
    """
    frame = verdicts.copy()
    rule = are_rules(frame)
    alpha = (1 - confidence) / 2
    frame["p"] = _of_rules(frame, p_value)
    tested = rule & frame["p"].notna() & frame["neutral"].notna() & (frame["nature"] == EFFECT)
    frame["p_holm"] = np.nan
    frame["holds_holm"] = None
    if tested.any():
        rejected, adjusted, *_ = multipletests(frame.loc[tested, "p"], alpha=alpha, method="holm")
        frame.loc[tested, "p_holm"] = adjusted
        frame.loc[tested, "holds_holm"] = rejected
    frame["detectable"] = _of_rules(frame, partial(detectable, alpha=alpha))
    return frame


def _of_rules(frame: pd.DataFrame, of: Callable[[pd.Series], float]) -> list[float]:
    return [of(row) if is_rule(row) else math.nan for _, row in frame.iterrows()]


def p_value(row: pd.Series) -> float:
    """One-sided p-value of an estimate against its tolerance; NaN for what was not sampled.

    Parameters
    ----------
    row : of the verdict table; at_least, or lower and upper, are on the estimate's own scale.
    """
    if not _sampled(row):
        return math.nan
    if pd.notna(row["at_least"]):
        return _upper(row, row["at_least"])
    above = 1 - _upper(row, row["upper"])
    return above if pd.isna(row["lower"]) else max(_upper(row, row["lower"]), above)


def detectable(row: pd.Series, alpha: float, power: float = POWER) -> float:
    """The smallest true value that would have met the rule with that power, given units and spread."""
    if not _sampled(row) or pd.isna(row["at_least"]):
        return math.nan
    tolerance = _on_scale(row["at_least"], row["scale"])
    effect = TTestPower().solve_power(nobs=row["n"], alpha=alpha, power=power, alternative="larger")
    needed = tolerance + float(effect) * row["error"] * math.sqrt(row["n"])
    return math.exp(needed) if row["scale"] == "log" else needed


def smallest_sign_flip_p(pairs: int) -> float:
    """The smallest one-sided p-value that an exact test by flipping signs of paired differences can give."""
    return 0.5**pairs


def smallest_permutation_p(first: int, second: int) -> float:
    """The smallest two-sided p-value that an exact permutation test of two groups can give."""
    return min(1.0, 2 / math.comb(first + second, first))


def _sampled(row: pd.Series) -> bool:
    return bool(pd.notna(row["error"]) and row["error"] > 0 and row["n"] > 1)


def _upper(row: pd.Series, tolerance: float) -> float:
    distance = _on_scale(row["value"], row["scale"]) - _on_scale(tolerance, row["scale"])
    return float(stats.t.sf(distance / row["error"], row["n"] - 1))


def _on_scale(value: float, scale: str) -> float:
    return math.log(value) if scale == "log" else float(value)
