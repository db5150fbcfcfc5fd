"""Overlaps and their nulls as marks, as several figures draw them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from threegates.geometry.nulls.null import Null

#: Targets with their names on the page.
TARGETS: dict[str, str] = {
    "principal": "principal",
    "low": "low magnitude",
    "principal_not_low": "principal, not low",
}


def overlap_row(ax: Axes, y: int, row: pd.Series, tint: str, nulls: Sequence[Null]) -> None:
    """Draw one overlap, its range where it has one, its density and these nulls, on lines of their own.

    The line of the density is the mean of a uniform null, so `nulls` are the others.
    """
    ax.plot([row["density"]] * 2, [y - 0.4, y + 0.4], color="#000000", lw=1.4)
    for null, down in zip(nulls, np.linspace(0.02, 0.32, len(nulls)), strict=True):
        ends = [row[f"{null.name}_low"], row[f"{null.name}_high"]]
        ax.plot(ends, [y + down] * 2, color=null.colour, lw=1.6)
        ax.plot([row[f"{null.name}_mean"]], [y + down], null.marker, color=null.colour, ms=4.5, mew=0)
    if "overlap_low" in row:
        ax.plot([row["overlap_low"], row["overlap_high"]], [y - 0.22] * 2, color=tint, lw=2.4)
    ax.plot([row["overlap"]], [y - 0.22], "o", color=tint, ms=7, mec="white")


def beside_overlaps(nulls: Sequence[Null], density: str = "density") -> list[Line2D]:
    """Handles of what stands beside overlaps: the targets' density, under that name, and these nulls."""
    line = Line2D([], [], marker="|", color="#000000", ms=12, mew=1.6, lw=0, label=density)
    drawn = [
        Line2D([], [], marker=null.marker, color=null.colour, ms=4.5, mew=0, lw=1.6, label=null.title)
        for null in nulls
    ]
    return [line, *drawn]
