"""Figures of measured pairs, one colour a pair; each takes a frame of `pair_views` and draws it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from threegates.figures.names import ROLES
from threegates.figures.nulls import shown_nulls
from threegates.figures.overlap_marks import TARGETS, beside_overlaps, overlap_row
from threegates.figures.pair_views import DRIFT, KINDS
from threegates.figures.ratio_axes import name_ratios
from threegates.figures.style import pair_colours, style
from threegates.geometry.nulls import storage_density

_GREY = "#4D4D4D"


def sparsity_by_role(frame: pd.DataFrame) -> Figure:
    """Draw the share of unchanged weights by kind of tensor, one mark a pair, noise of equal norm as a tick.

    Columns: those of `pair_views.role_view`.
    """
    colours, roles = pair_colours(frame["pair"]), [role for role in KINDS if role in set(frame["role"])]
    offsets = _offsets(len(colours))
    with style():
        height = max(0.34, 0.11 * len(colours))
        fig, ax = plt.subplots(figsize=(8.2, 1.4 + 0.24 * len(colours) + height * len(roles)))
        for (pair, tint), offset in zip(colours.items(), offsets, strict=True):
            own = frame[frame["pair"] == pair]
            places = own["role"].map(roles.index) + offset
            ax.plot(own["noise"], places, "|", color=_GREY, ms=9, mew=1.6, lw=0)
            ax.plot(own["sparsity"], places, "o", color=tint, mec="white", ms=7, lw=0)
        ax.set(xlim=(-0.02, 1.02), ylim=(len(roles) - 0.5, -0.5), xlabel="share of weights unchanged in bf16")
        ax.set_yticks(range(len(roles)), [KINDS[role] for role in roles])
        ax.xaxis.set_major_formatter(PercentFormatter(1.0))
        ax.grid(axis="x")
        null = Line2D([], [], marker="|", color=_GREY, ms=9, mew=1.6, lw=0, label="noise of equal norm (1b)")
        _legend(fig, colours, [null])
    return fig


def drift_over_layers(frame: pd.DataFrame) -> Figure:
    """Draw NSS and the largest angles of both sides over layers, one line a pair.

    Columns: those of `pair_views.layer_view`. Dashed: ‖ΔW‖_F/‖W₀‖_F, which NSS cannot exceed; grey: where
    an angle could be numerical error.
    """
    colours = pair_colours(frame["pair"])
    with style():
        fig, axes = plt.subplots(3, 1, figsize=(8.2, 7.4 + 0.24 * len(colours)), sharex=True)
        for ax, (name, title) in zip(axes, DRIFT.items(), strict=True):
            for pair, tint in colours.items():
                own = frame[frame["pair"] == pair].sort_values("layer")
                # An exact zero has no place on a logarithmic axis.
                ax.plot(own["layer"], own[name].where(own[name] > 0), "o-", color=tint, ms=4, lw=1.4)
                if name == "nss":
                    ax.plot(own["layer"], own["nss_bound"], "--", color=tint, lw=0.9, alpha=0.7)
            if (frame[name] > 0).any():
                ax.set_yscale("log")
            if name != "nss":
                _floor(ax, frame["floor"].max())
            ax.set_title(title)
            ax.grid(axis="y")
        axes[-1].set_xlabel("layer")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        bound = Line2D([], [], color=_GREY, lw=1, ls="--", label="‖ΔW‖ / ‖W₀‖, the bound of NSS")
        _legend(fig, colours, [bound, Patch(color="#BDBDBD", lw=0, label="numerical error")])
    return fig


def stripes_of_pairs(frame: pd.DataFrame) -> Figure:
    """Draw how far row and column ratios of each pair spread, beside noise of equal density on the same base.

    Columns: those of `pair_views.stripes_by_pair`.
    """
    colours, roles = pair_colours(frame["pair"]), [role for role in ROLES if role in set(frame["role"])]
    with style():
        height = max(0.42, 0.11 * len(colours))
        size = (9.6, 1.5 + 0.24 * len(colours) + height * len(roles))
        fig, axes = plt.subplots(1, 2, figsize=size, sharex=True, sharey=True)
        for ax, axis in zip(axes, ("row", "column"), strict=True):
            rows = frame[frame["axis"] == axis]
            for (pair, tint), offset in zip(colours.items(), _offsets(len(colours)), strict=True):
                own = rows[rows["pair"] == pair]
                places = own["role"].map(roles.index) + offset
                ax.plot(own["storage_density_mean"], places, "s", color=_GREY, ms=4, mew=0, lw=0)
                ax.plot(own["dispersion"], places, "o", color=tint, mec="white", ms=7, lw=0)
            ax.set_title(f"{axis} ratios")
        name_ratios(axes, roles, "variance, in units of the binomial one")
        # One null, as pairs take the room of a row: the masks have its density.
        title = storage_density.NULL.title
        null = Line2D([], [], marker="s", color=_GREY, ms=4, mew=0, lw=0, label=title)
        _legend(fig, colours, [null])
    return fig


def overlaps_by_pair(frame: pd.DataFrame) -> Figure:
    """Draw the share of each pair's mask on three targets, beside the targets' density and the nulls.

    Columns: those of `pair_views.overlap_view`.
    """
    colours, nulls = pair_colours(frame["pair"]), shown_nulls(frame, uniform=False)
    with style():
        fig, axes = plt.subplots(
            1, len(TARGETS), figsize=(10.4, 2.2 + 0.6 * len(colours)), sharex=True, sharey=True
        )
        for ax, (target, title) in zip(axes, TARGETS.items(), strict=True):
            rows = frame[frame["target"] == target].set_index("pair")
            for y, (pair, tint) in enumerate(colours.items()):
                overlap_row(ax, y, rows.loc[[pair]].iloc[0], tint, nulls)
            ax.set(title=title, ylim=(len(colours) - 0.4, -0.6), xlabel="share of the mask")
            ax.set_yticks([])
            ax.grid(axis="x")
        _legend(fig, colours, beside_overlaps(nulls))
    return fig


def _floor(ax: Axes, floor: float) -> None:
    """Shade where an angle is no larger than the bound on its own error."""
    if np.isfinite(floor) and floor > 0:
        ax.axhspan(0.1 * floor, floor, color="#BDBDBD", lw=0)


def _offsets(count: int) -> np.ndarray:
    return np.linspace(-0.3, 0.3, count) if count > 1 else np.zeros(1)


def _legend(fig: Figure, colours: dict[str, str], more: list) -> None:
    """The pairs with their colours, then what else is drawn."""
    pairs = [
        Line2D([], [], marker="o", color=tint, mec="white", ms=7, lw=1.4, label=pair)
        for pair, tint in colours.items()
    ]
    fig.legend(handles=[*pairs, *more], loc="outside lower center", ncols=2, handletextpad=0.4)
