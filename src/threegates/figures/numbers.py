"""Numbers and intervals as prose and tables print them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

#: What float64 sums of shares may lack of one.
_ROUNDING = 1e-9


def number(value: float, digits: int = 3) -> str:
    """A measured number with three significant digits, a dash where there is none.

    What falls short of one does not read as one: a share of 0.99959 is 0.9996.
    """
    if value is None or pd.isna(value):
        return "–"
    short = f"{value:.{digits}g}".replace("-", "−")
    return f"{value:.{_decimals(1 - value)}f}" if short == "1" and value < 1 - _ROUNDING else short


def _decimals(distance: float) -> int:
    """Decimals that a distance between zero and one needs to be seen."""
    return math.ceil(-math.log10(distance))


def interval(low: float, high: float) -> str:
    """An interval in brackets, or why there is none in two words."""
    return "no interval" if pd.isna(low) or pd.isna(high) else f"[{number(low)}, {number(high)}]"


def span(values: Iterable[float], digits: int = 3) -> str:
    """Smallest to largest of some numbers, or the one number that they all read as."""
    known = [value for value in values if not pd.isna(value)]
    ends = [number(end, digits) for end in (min(known), max(known))] if known else ["–"]
    return " to ".join(dict.fromkeys(ends))
