"""Overlaps and their nulls as marks, as several figures draw them."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from threegates.figures.style import NULLS

#: Targets with their names on the page.
TARGETS: dict[str, str] = {
    "principal": "principal",
    "low": "low magnitude",
    "principal_not_low": "principal, not low",
}


# Nulls that are drawn: Bernoulli's mean is the density itself.
_DRAWN = {name: look for name, look in NULLS.items() if name != "bernoulli"}


def overlap_row(ax: Axes, y: int, row: pd.Series, tint: str) -> None:
    """Draw one overlap, its range where it has one, its density and its nulls, on lines of their own."""
    ax.plot([row["density"]] * 2, [y - 0.4, y + 0.4], color="#000000", lw=1.4)
    for (name, (_, grey, marker)), down in zip(_DRAWN.items(), (0.02, 0.17, 0.32), strict=True):
        ax.plot([row[f"{name}_low"], row[f"{name}_high"]], [y + down] * 2, color=grey, lw=1.6)
        ax.plot([row[f"{name}_mean"]], [y + down], marker, color=grey, ms=4.5, mew=0)
    if "overlap_low" in row:
        ax.plot([row["overlap_low"], row["overlap_high"]], [y - 0.22] * 2, color=tint, lw=2.4)
    ax.plot([row["overlap"]], [y - 0.22], "o", color=tint, ms=7, mec="white")


def beside_overlaps(density: str = "density") -> list[Line2D]:
    """Handles of what stands beside overlaps: the targets' density, under that name, and the nulls."""
    line = Line2D([], [], marker="|", color="#000000", ms=12, mew=1.6, lw=0, label=density)
    nulls = [
        Line2D([], [], marker=marker, color=grey, ms=4.5, mew=0, lw=1.6, label=label)
        for label, grey, marker in _DRAWN.values()
    ]
    return [line, *nulls]
