"""Words and numbers of a page's sentences that a verdict speaks of too: the page may not contradict it.

A sentence and a verdict can take one quantity from the same records by two ways: other means, other runs,
another order of a difference. Where they point to opposite sides of "no effect", one of them misleads, and
the page is refused.
"""

from __future__ import annotations

import math

import pandas as pd

from threegates.errors import ClaimError
from threegates.figures.numbers import interval, number


def side(
    verdicts: pd.DataFrame, estimate: str, above: str, below: str, *, from_neutral: float | None = None
) -> str:
    """The word of the side on which an estimate lies of the value without an effect.

    Parameters
    ----------
    verdicts : the frame of the page's verdicts, `estimates.verdict_frame`.
    estimate : name of an estimate of a rule or of a control there.
    above, below : the two words; `below` is also that of a number which lies on neither side.
    from_neutral : the sentence's own number for the same quantity, less the value without an effect (0 of a
        difference, 1 of a ratio). By default it is the estimate's own.

    Raises
    ------
    ClaimError : no verdict rests on such an estimate, it has no value without an effect, the number is
        missing, or it lies on one side and the whole interval of the estimate on the other.
    """
    row = _row(verdicts, estimate)
    own = row["value"] - row["neutral"] if from_neutral is None else from_neutral
    if math.isnan(own):
        raise ClaimError(
            "A number that is missing lies on no side.",
            where=f"{row['claim']} ({estimate})",
            found=row["missing"],
            remedy="Say in the sentence why there is no number.",
        )
    word = above if own > 0 else below
    if (own > 0 and row["high"] < row["neutral"]) or (own < 0 and row["low"] > row["neutral"]):
        raise _contradiction(row, f"{number(row['neutral'] + own)}, {word!r}")
    return word


def apart(verdicts: pd.DataFrame, estimate: str, above: str, below: str, other: str) -> str:
    """How far something is above or below another, with the interval; or why the two are not compared.

    Parameters
    ----------
    above, below : words between the distance and the other. other : what it is compared with.

    Raises
    ------
    ClaimError : as of `side`.
    """
    row = _row(verdicts, estimate)
    if math.isnan(row["value"]):
        return f"not compared with {other} ({row['missing']})"
    distance = number(abs(row["value"] - row["neutral"]))
    word = side(verdicts, estimate, above, below)
    return f"{distance} {word} {other} {interval(row['low'], row['high'])}"


def agreed(verdicts: pd.DataFrame, estimate: str, value: float) -> float:
    """A number that a sentence gives for an estimate, if it can be one and the same.

    It lies on no other side of "no effect", and inside of the estimate's interval: another mean may differ a
    little, other runs differ by more. A missing number, which prints as a dash, contradicts nothing.

    Raises
    ------
    ClaimError : as of `side`, but for a missing number; or the number lies outside of the interval.
    """
    row = _row(verdicts, estimate)
    if math.isnan(value):
        return value
    side(verdicts, estimate, "above no effect", "below no effect", from_neutral=value - row["neutral"])
    rounding = 1e-9 * max(1.0, abs(value))
    if value < row["low"] - rounding or value > row["high"] + rounding:
        raise _contradiction(row, number(value))
    return value


def _row(verdicts: pd.DataFrame, estimate: str) -> pd.Series:
    """The first row on an estimate: claims that share it have it from the same function."""
    rows = verdicts[verdicts["estimate"] == estimate]
    if rows.empty:
        raise ClaimError(
            "No verdict of this page rests on such an estimate.",
            expected=", ".join(sorted(set(verdicts["estimate"]))),
            found=estimate,
            remedy="Name one of the expected estimates, or let the sentence ask for no verdict.",
        )
    row = rows.iloc[0]
    if pd.isna(row["neutral"]):
        raise ClaimError(
            "This estimate has no value without an effect, so that it lies on no side of one.",
            where=row["claim"],
            found=estimate,
            remedy="Name another estimate, or give its claim in claims.yaml the key `neutral`.",
        )
    return row


def _contradiction(row: pd.Series, said: str) -> ClaimError:
    return ClaimError(
        "A sentence of this page contradicts its verdict.",
        where=f"{row['claim']} ({row['estimate']})",
        expected=f"what agrees with {number(row['value'])} {interval(row['low'], row['high'])}",
        found=said,
        remedy="Say in the sentence what the estimate measures, or measure what the sentence says.",
    )
