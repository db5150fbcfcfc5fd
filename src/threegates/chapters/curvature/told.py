"""What the page on curvature says in words, computed from its tables."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from threegates.chapters.curvature.estimates import NEUTRAL, RATIOS
from threegates.chapters.curvature.views import (
    JUDGED,
    batch_view,
    block_curvature,
    block_shares,
    lengths,
    ratio_view,
)
from threegates.estimates.intervals import Estimate
from threegates.figures.numbers import interval, number, span

_CONFIDENCE = 0.95
_MOST = 0.5
#: What is said of each ratio of neutral noise.
_MEETS = {
    "steepness_principal_over_noise": "In the principal block noise meets {} the curvature of all noise.",
    "steepness_principal_weights_over_others": "On principal weights it meets {} that on all others.",
}


def gate_ii(curvature: pd.DataFrame, steepness: pd.DataFrame, tolerance: float) -> str:
    """Whether the premise of Gate II and its conclusion hold, by the rules that judge them.

    The premise is that noise meets more curvature in the principal block than anywhere, the conclusion that
    noise meets more than RL's updates do; each by at least `tolerance`, with the whole interval.
    """
    premise = NEUTRAL["steepness_principal_over_noise"](steepness, _CONFIDENCE)
    conclusion = RATIOS["curvature_noise_over_rl"](curvature, _CONFIDENCE)
    walks = _walks(conclusion, tolerance)
    if not premise.has_interval:
        told = f"Whether the premise of Gate II holds cannot be told here: {premise.reason}"
    elif premise.low < tolerance:
        flat = premise.high < 1 / tolerance
        told = "principal directions are flat" if flat else "that principal directions are steep is not shown"
        told = f"The premise of Gate II does not hold: {told}"
    elif conclusion.has_interval and conclusion.high < 1:
        shares = block_shares(curvature)
        there = f"{walks}, off them"
        if shares["update"] > shares["noise"]:
            part = f"{number(100 * block_curvature(curvature))} % of the curvature that it meets"
            elsewhere = (
                f", with most of its squared norm elsewhere; its part in the block gives {part} by itself"
                if shares["update"] < _MOST
                else ""
            )
            there = f"RL walks on them all the same{elsewhere}"
        told = "The premise of Gate II holds, its conclusion does not: principal directions are steep, and "
        return f"{told}{there}."
    else:
        told = "The premise of Gate II holds: principal directions are steep"
    return f"{told}. Of its conclusion: {walks}."


def _walks(conclusion: Estimate, tolerance: float) -> str:
    if not conclusion.has_interval:
        return f"where RL walks cannot be told ({conclusion.reason})"
    if conclusion.low >= tolerance:
        return "RL walks where it is flat"
    if conclusion.high < 1:
        return "RL walks where it is steeper than along noise"
    return "that RL walks where it is flat is not shown"


def neutral_noise(curvature: pd.DataFrame, steepness: pd.DataFrame) -> str:
    """What neutral noise meets in the principal block and on principal weights, by both functions."""
    ratios, batches = ratio_view(curvature, steepness, _CONFIDENCE), batch_view(steepness)
    lines = []
    for estimate, sentence in _MEETS.items():
        own = ratios[ratios["name"] == JUDGED[estimate]].to_dict("records")
        told = [_multiple(row, batches[batches["name"] == row["name"]]) for row in own]
        lines.append(sentence.format(" and ".join(told)))
    return " ".join(lines)


def _multiple(row: Mapping[Hashable, Any], batches: pd.DataFrame) -> str:
    """How many times, by one function, with the interval over draws and the span over batches."""
    function = row["function"]
    if pd.isna(row["value"]):
        return f"a multiple that cannot be told ({function}: {row['reason']})"
    own = batches[batches["function"] == function]["value"]
    told = f"{number(row['value'])} {interval(row['low'], row['high'])} times"
    return f"{told} ({function}, {row['n']} {row['unit']}; batch by batch {span(own)})"


def beside_sft(curvature: pd.DataFrame) -> str:
    """What the ratio of SFT's curvature to RL's holds fixed and what not; nothing without runs of both."""
    known = lengths(curvature)
    rl, sft = known["rl"], known["sft"]
    if math.isnan(rl["norm"] + sft["norm"]):
        return ""
    norm, times = (number(value) for value in (sft["norm"], sft["norm"] / rl["norm"]))
    rate = number(sft["learning_rate"] / rl["learning_rate"])
    return (
        "Per unit of squared norm two updates are compared as if they were equally long, and that is all "
        f"that is held fixed. SFT's are {norm} long, {times} times as long as RL's, and their learning rate "
        f"was {rate} times RL's. Equal norm by scaling is not an equal path: where a long way at a large "
        "rate ends says little about how it begins."
    )
