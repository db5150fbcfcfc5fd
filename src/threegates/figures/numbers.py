"""Numbers and intervals as prose and tables print them."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd


def number(value: float, digits: int = 3) -> str:
    """A measured number with three significant digits, a dash where there is none."""
    return "–" if value is None or pd.isna(value) else f"{value:.{digits}g}".replace("-", "−")


def interval(low: float, high: float) -> str:
    """An interval in brackets, or why there is none in two words."""
    return "no interval" if pd.isna(low) or pd.isna(high) else f"[{number(low)}, {number(high)}]"


def span(values: Iterable[float], digits: int = 3) -> str:
    """Smallest to largest of some numbers, or the one number that they all read as."""
    known = [value for value in values if not pd.isna(value)]
    ends = [number(end, digits) for end in (min(known), max(known))] if known else ["–"]
    return " to ".join(dict.fromkeys(ends))
