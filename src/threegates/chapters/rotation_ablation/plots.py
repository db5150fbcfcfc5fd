"""The figures of the rotation; each takes a frame of `rotation_views` and draws it."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from threegates.estimates.intervals import t_interval
from threegates.figures.names import ROLES
from threegates.figures.style import style
from threegates.geometry.nulls import storage_density
from threegates.measures.rotation import BACK, RAW, ROTATED, UNTOUCHED

#: Colour, marker and name of each comparison.
LOOKS: dict[str, tuple[str, str, str]] = {
    UNTOUCHED: ("#0072B2", "o", "untouched against untouched"),
    ROTATED: ("#D55E00", "^", "untouched against rotated"),
    RAW: ("#CC79A7", "X", "against rotated, heads left permuted"),
    BACK: ("#009E73", "D", "against rotated, ΔW rotated back"),
}
_BANDS = {"touched": ("#FBE3D0", "rotated"), "permuted": ("#E9E9E9", "heads permuted only")}
# Masks of equal density are compared, and this null has that density.
_NULL, _GREY = storage_density.NULL, "#4D4D4D"
_OFFSETS = (-0.3, -0.1, 0.1, 0.3)


def excess_by_matrix(view: pd.DataFrame) -> Figure:
    """Draw the excess Jaccard index by block and matrix; zero is what storage gives.

    Columns: those of `views.matrix_view`.
    """
    with style():
        fig, axes = _panels(view)
        for ax in axes:
            ax.axvline(0, color=_GREY, lw=1.6)
            ax.set_xlabel("excess Jaccard index")
        _span(axes, view[["value"]])
        null = Line2D([], [], color=_GREY, lw=1.6, label="storage null 1a")
        _key(fig, view, [null])
    return fig


def overlap_by_matrix(view: pd.DataFrame) -> Figure:
    """Draw the paper's overlap |M_A ∩ M_B|/|M_B| by block and matrix, its null and the density of M_A.

    Columns: those of `views.matrix_view`.
    """
    with style():
        fig, axes = _panels(view, nulls=True)
        for ax, (_, rows) in zip(axes, view.groupby("layer"), strict=True):
            for y, role in enumerate(_roles(view)):
                density = rows.loc[rows["role"] == role, "density"].mean()
                ax.plot([density] * 2, [y - 0.42, y + 0.42], color="#000000", lw=1.4, zorder=1)
            ax.set_xlabel("overlap with the other mask")
        _span(axes, view[["value", "null", "density"]])
        chance = Line2D(
            [], [], marker="|", color="#000000", ms=12, mew=1.6, lw=0, label="density, the paper's random"
        )
        _key(fig, view, [_null_mark(), chance])
    return fig


def rates_by_side(view: pd.DataFrame) -> Figure:
    """Draw rank correlations of the ratios of V and O, lines of heads beside lines of the residual stream.

    Columns: those of `views.rates_view`.
    """
    places = list(dict.fromkeys(zip(view["layer"], view["role"], strict=True)))
    titles = {"head": "Along a head's entries", "residual": "Along the residual stream"}
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(10.4, 1.9 + 0.62 * len(places)), sharex=True, sharey=True)
        for ax, (side, title) in zip(axes, titles.items(), strict=True):
            for y, (number, role) in enumerate(places):
                here = view[(view["side"] == side) & (view["layer"] == number) & (view["role"] == role)]
                _band(ax, y, here.assign(permuted=False))
                _row(ax, y, here, _comparisons(view), nulls=True)
            ax.axvline(0, color="#BBBBBB", lw=1)
            ax.set(title=title, xlabel="rank correlation of ratios", ylim=(len(places) - 0.5, -0.5))
            ax.grid(axis="x")
        axes[0].set_yticks(range(len(places)), [f"{ROLES[role]}, block {number}" for number, role in places])
        axes[0].tick_params(axis="y", length=0)
        _span(list(axes), view[["value", "null"]])
        _key(fig, view, [_null_mark()])
    return fig


def spectrum_kept(view: pd.DataFrame) -> Figure:
    """Draw how far the spectrum of each changed matrix moved, before rounding and as stored.

    Columns: those of `views.spectrum_view`.
    """
    places = list(dict.fromkeys(zip(view["layer"], view["role"], view["rotated"], strict=True)))
    looks = {
        "in float64, before rounding": ("#0072B2", "o", -0.14),
        "as stored in bf16": ("#E69F00", "s", 0.14),
    }
    with style():
        fig, ax = plt.subplots(figsize=(8.6, 1.7 + 0.42 * len(places)))
        for stage, (tint, marker, offset) in looks.items():
            rows = view[view["stage"] == stage]
            own = zip(rows["layer"], rows["role"], rows["rotated"], strict=True)
            heights = [places.index(one) + offset for one in own]
            ax.plot(rows["nss"], heights, marker, color=tint, ms=7.5, mec="white", lw=0, label=stage)
        names = [
            f"{ROLES[role]}, block {number}, {'rotated' if turned else 'permuted only'}"
            for number, role, turned in places
        ]
        ax.set_yticks(range(len(places)), names)
        ax.set(xscale="log", xlabel="NSS against the untouched base", ylim=(len(places) - 0.5, -0.5))
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x")
        fig.legend(loc="outside lower center", ncols=2)
    return fig


def _roles(view: pd.DataFrame) -> list[str]:
    return [role for role in ROLES if role in set(view["role"])]


def _comparisons(view: pd.DataFrame) -> list[str]:
    return [name for name in LOOKS if name in set(view["comparison"])]


def _panels(view: pd.DataFrame, nulls: bool = False) -> tuple[Figure, list[Axes]]:
    """One panel a block with a row a matrix: marks of every comparison, bands behind what was changed."""
    roles, layers = _roles(view), sorted(view["layer"].unique())
    size = (min(2.6 + 3.0 * len(layers), 16.0), 2.1 + 0.62 * len(roles))
    fig, grid = plt.subplots(1, len(layers), figsize=size, sharex=True, sharey=True, squeeze=False)
    axes = list(grid[0])
    for ax, number in zip(axes, layers, strict=True):
        rows = view[view["layer"] == number]
        for y, role in enumerate(roles):
            here = rows[rows["role"] == role]
            _band(ax, y, here)
            _row(ax, y, here, _comparisons(view), nulls)
        ax.set(title=f"Block {number}", ylim=(len(roles) - 0.5, -0.5))
        ax.grid(axis="x")
    axes[0].set_yticks(range(len(roles)), [ROLES[role] for role in roles])
    axes[0].tick_params(axis="y", length=0)
    return fig, axes


def _band(ax: Axes, y: int, here: pd.DataFrame) -> None:
    for column, (tint, _) in _BANDS.items():
        if len(here) and here[column].any():
            ax.axhspan(y - 0.48, y + 0.48, color=tint, lw=0, zorder=0)
            return


def _row(ax: Axes, y: int, here: pd.DataFrame, comparisons: Sequence[str], nulls: bool) -> None:
    """Seeds as small marks, their mean with its t interval, and the null, each comparison on its own line."""
    for comparison, offset in zip(comparisons, _OFFSETS, strict=False):
        own = here[here["comparison"] == comparison]
        if own.empty:
            continue
        tint, marker, _ = LOOKS[comparison]
        place = y + offset
        if nulls:
            ax.plot([own["null"].mean()], [place], "s", color=_NULL.colour, ms=4.5, mew=0, zorder=2)
        mean, low, high = t_interval(own["value"])
        if np.isfinite(low):
            ax.plot([low, high], [place] * 2, color=tint, lw=2.0, alpha=0.45, zorder=3)
        ax.plot(own["value"], [place] * len(own), marker, color=tint, ms=4.2, mew=0, lw=0, zorder=4)
        ax.plot([mean], [place], marker, color=tint, ms=7, mec="white", mew=0.8, zorder=5)


def _span(axes: Sequence[Axes], values: pd.DataFrame) -> None:
    """At least from 0 to 1; an interval that reaches farther than all values is cut off."""
    low, high = min(0.0, values.to_numpy().min()), max(1.0, values.to_numpy().max())
    for ax in axes:
        ax.set_xlim(low - 0.06, high + 0.04)


def _null_mark() -> Line2D:
    return Line2D(
        [], [], marker="s", color=_NULL.colour, ms=4.5, mew=0, lw=0, label="storage null 1a of each"
    )


def _key(fig: Figure, view: pd.DataFrame, more: Sequence[Artist]) -> None:
    marks: list[Artist] = [
        Line2D(
            [],
            [],
            marker=LOOKS[name][1],
            color=LOOKS[name][0],
            mec="white",
            ms=7.5,
            lw=2,
            label=LOOKS[name][2],
        )
        for name in _comparisons(view)
    ]
    # V and O are either rotated or untouched. Only Q and K can have heads permuted and no more.
    only = {"touched": view["touched"], "permuted": view["permuted"] & ~view["touched"]}
    bands = [Patch(color=tint, label=name) for column, (tint, name) in _BANDS.items() if only[column].any()]
    fig.legend(handles=[*marks, *more, *bands], loc="outside lower center", ncols=3, handletextpad=0.5)
