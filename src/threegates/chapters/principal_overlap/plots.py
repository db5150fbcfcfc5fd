"""The figures of principal weights: each function takes a frame of `overlap_views` and gives a figure."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from threegates.chapters.principal_overlap.views import beside_lifts
from threegates.figures.names import ROLES
from threegates.figures.nulls import shown_nulls
from threegates.figures.overlap_marks import TARGETS, beside_overlaps, overlap_row
from threegates.figures.ratio_axes import name_ratios
from threegates.figures.style import DIVERGING, colour, heatmap, style
from threegates.geometry.nulls.null import Null

_RL = "#0072B2"


def group_colour(group: str) -> str:
    """Colour of a group: RL's blue, its method's colour, or the colour of a pair shown by itself."""
    return _RL if group == "RL" else colour(group.removesuffix(", own rate"))


def overlaps_against_nulls(frame: pd.DataFrame) -> Figure:
    """Draw overlap by matrix type beside density and nulls: one line of panels a group, one column a target.

    Columns: group, role, target, overlap, overlap_low, overlap_high, density, and for each null
    to be drawn ``_mean``, ``_low`` and ``_high``.
    """
    groups, nulls = list(dict.fromkeys(frame["group"])), shown_nulls(frame, uniform=False)
    roles = [role for role in ROLES if role in set(frame["role"])]
    with style():
        fig, axes = plt.subplots(
            len(groups),
            len(TARGETS),
            figsize=(10.4, 1.2 + len(groups) * (0.8 + 0.34 * len(roles))),
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        for line, group in zip(axes, groups, strict=True):
            for ax, (target, title) in zip(line, TARGETS.items(), strict=True):
                rows = frame[(frame["group"] == group) & (frame["target"] == target)].set_index("role")
                for y, role in enumerate(roles):
                    overlap_row(ax, y, rows.loc[role], group_colour(group), nulls)
                ax.set_title(f"{title}\n{group}", fontsize=10.5)
                ax.set_ylim(len(roles) - 0.4, -0.6)
                ax.grid(axis="x")
        for ax in axes[-1]:
            ax.set_xlabel("share of the update on them")
        axes[0, 0].set_yticks(range(len(roles)), [ROLES[role] for role in roles])
        fig.legend(
            handles=_overlap_key(groups, nulls), loc="outside lower center", ncols=3, handletextpad=0.4
        )
    return fig


def _overlap_key(groups: list[str], nulls: list[Null]) -> list[Line2D]:
    observed = [
        Line2D(
            [], [], marker="o", color=group_colour(g), mec="white", ms=7, lw=2.4, label=f"{g}, range of runs"
        )
        for g in groups
    ]
    return [*observed, *beside_overlaps(nulls, "density (the paper's)")]


def lifts_by_layer(frame: pd.DataFrame) -> Figure:
    """Draw lift by block and matrix type as heat maps: observed above, storage null 1a below.

    One null has room here: null 1a's masks have the density of the observed ones.

    Columns: kind ("observed" or "storage_density"), target, role, layer, lift.
    """
    kinds = {"observed": "observed", "storage_density": "null 1a"}
    roles = [role for role in ROLES if role in set(frame["role"])]
    spread = _spread(frame["lift"])
    width = min(12.0, 3.2 + 0.62 * len(TARGETS) * frame["layer"].nunique())
    with style():
        fig, axes = plt.subplots(2, len(TARGETS), figsize=(width, 6.6), sharex=True, sharey=True)
        for line, (kind, name) in zip(axes, kinds.items(), strict=True):
            for ax, (target, title) in zip(line, TARGETS.items(), strict=True):
                rows = frame[(frame["kind"] == kind) & (frame["target"] == target)]
                cells = rows.pivot(index="role", columns="layer", values="lift").reindex(roles)
                _lift_map(ax, cells.rename(index=ROLES), spread)
                ax.set_title(f"{title}\n{name}", fontsize=10.5)
                ax.set_xlabel("block" if kind == "storage_density" else "")
    return fig


def lift_sweep(frame: pd.DataFrame) -> Figure:
    """Draw lift over rank and share as heat maps: bf16 above, fp32 below, one column a target.

    Columns: view, target, rank (as text), order (of the ranks), alpha, lift.
    """
    views = {"bf16": "bf16 mask", "fp32": "largest changes in fp32"}
    spread = _spread(frame["lift"])
    with style():
        fig, axes = plt.subplots(2, len(TARGETS), figsize=(10.4, 6.4), sharex=True, sharey=True)
        for line, (view, name) in zip(axes, views.items(), strict=True):
            for ax, (target, title) in zip(line, TARGETS.items(), strict=True):
                rows = frame[(frame["view"] == view) & (frame["target"] == target)]
                rows = rows.sort_values("order")
                cells = rows.pivot(index="rank", columns="alpha", values="lift")
                _lift_map(ax, cells.reindex(rows["rank"].drop_duplicates()), spread)
                ax.set_title(f"{title}\n{name}", fontsize=10.5)
                ax.set_xlabel("share α" if view == "fp32" else "")
        for ax in axes[:, 0]:
            ax.set_ylabel("rank k")
    return fig


def _spread(lift: pd.Series) -> float:
    return max(0.05, float((lift - 1).abs().max(skipna=True)))


def _lift_map(ax: Axes, cells: pd.DataFrame, spread: float) -> None:
    """One heat map of lift, its colours centred on one."""
    heatmap(
        ax,
        cells,
        annot=True,
        fmt=".2f",
        annot_kws={"size": 9},
        cmap=DIVERGING,
        vmin=1 - spread,
        vmax=1 + spread,
    )
    ax.set(xlabel="", ylabel="")
    ax.tick_params(length=0)
    ax.tick_params(axis="y", rotation=0)


def bf16_beside_fp32(frame: pd.DataFrame) -> Figure:
    """Draw the lift of the bf16 mask beside the lift of the largest fp32 changes, one panel a group.

    Columns: group, role, bf16, fp32, and by their names the nulls of the bf16 mask; all are lifts.
    """
    groups, nulls = list(dict.fromkeys(frame["group"])), beside_lifts(shown_nulls(frame, "{}"))
    roles = [role for role in ROLES if role in set(frame["role"])]
    with style():
        fig, axes = plt.subplots(
            1, len(groups), figsize=(1.6 + 3.1 * len(groups), 4.4), sharex=True, sharey=True, squeeze=False
        )
        for ax, group in zip(axes[0], groups, strict=True):
            rows = frame[frame["group"] == group].set_index("role").reindex(roles)
            y, tint = np.arange(len(roles)), group_colour(group)
            for null, down in zip(nulls, np.linspace(0.12, 0.26, len(nulls)), strict=True):
                ax.plot(rows[null.name], y + down, null.marker, color=null.colour, ms=5.5, mew=0)
            ax.plot(rows["fp32"], y - 0.12, "o", mfc="white", mec=tint, ms=7, mew=1.5)
            ax.plot(rows["bf16"], y - 0.12, "o", color=tint, ms=7, mec="white")
            ax.axvline(1, color="#000000", lw=0.9, ls=":")
            ax.set(title=group, xlabel="lift on principal weights", ylim=(len(roles) - 0.5, -0.5))
            ax.grid(axis="x")
        axes[0, 0].set_yticks(range(len(roles)), [ROLES[role] for role in roles])
        fig.legend(handles=_view_key(nulls), loc="outside lower center", ncols=2, handletextpad=0.4)
    return fig


def _view_key(nulls: list[Null]) -> list[Line2D]:
    drawn = [
        Line2D([], [], marker=null.marker, color=null.colour, ms=5.5, mew=0, lw=0, label=null.title)
        for null in nulls
    ]
    return [
        Line2D([], [], marker="o", color="#4D4D4D", mec="white", ms=7, lw=0, label="bf16 mask"),
        Line2D([], [], marker="o", mfc="white", mec="#4D4D4D", ms=7, lw=0, label="largest changes in fp32"),
        *drawn,
    ]


def energy_against_random_frames(frame: pd.DataFrame) -> Figure:
    """Draw an update's energy in the principal block over that in random frames, by matrix type.

    Columns: group, role, ratio, ratio_low, ratio_high, random_low, random_high.
    """
    groups = list(dict.fromkeys(frame["group"]))
    roles = [role for role in ROLES if role in set(frame["role"])]
    offsets = np.linspace(-0.28, 0.28, len(groups)) if len(groups) > 1 else [0.0]
    with style():
        fig, ax = plt.subplots(figsize=(8.2, 1.6 + 0.52 * len(roles)))
        for y, role in enumerate(roles):
            here = frame[frame["role"] == role]
            ax.fill_betweenx(
                [y - 0.42, y + 0.42],
                here["random_low"].min(),
                here["random_high"].max(),
                color="#D9D9D9",
                lw=0,
            )
            for group, offset in zip(groups, offsets, strict=True):
                for row in here[here["group"] == group].itertuples():
                    ends, place = [row.ratio_low, row.ratio_high], y + offset
                    ax.plot(ends, [place] * 2, lw=2.4, color=group_colour(group))
                    ax.plot([row.ratio], [place], "o", ms=7, mec="white", color=group_colour(group))
        name_ratios([ax], roles, "energy in the principal k × k block, random frames = 1")
        handles: list = [
            Line2D([], [], marker="o", color=group_colour(g), mec="white", ms=7, lw=2.4, label=g)
            for g in groups
        ]
        handles.append(Patch(color="#D9D9D9", label="random frames, 95 %"))
        fig.legend(handles=handles, loc="outside lower center", ncols=4)
    return fig
