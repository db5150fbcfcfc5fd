"""The figures of the chapter on curvature; each takes a frame of `curvature_views` and draws it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from threegates.chapters.curvature.views import DIRECTIONS, FUNCTIONS
from threegates.figures.style import colour, style
from threegates.measures.curvature import NOISE

_SHOWN = ("loss", "fisher")
_INK = {"Hessian of the loss": ("#0072B2", "o", -0.13), "Fisher matrix": ("#CC79A7", "s", 0.13)}


def along_directions(frame: pd.DataFrame) -> Figure:
    """Draw the curvature along each direction: one row a direction, one mark a run, a panel a function.

    Columns: those of `views.curvature_view`. What is not above zero stands at the left edge.
    """
    names = [name for name in DIRECTIONS.values() if name in set(frame["name"])]
    methods = list(dict.fromkeys(frame["method"]))
    lowest = frame.loc[frame["curvature"] > 0, "curvature"].min() / 3
    with style():
        fig, axes = plt.subplots(1, len(_SHOWN), figsize=(10.5, 1.7 + 0.5 * len(names)), sharey=True)
        for ax, function in zip(axes, _SHOWN, strict=True):
            rows = frame[frame["function"] == function]
            for number, method in enumerate(methods):
                shift = 0.26 * (number - (len(methods) - 1) / 2) / max(1, len(methods) - 1) * 2
                _method(ax, rows[rows["method"] == method], names, shift, lowest)
            ax.axhspan(len(names) - len(NOISE) - 0.5, len(names) - 0.5, color="#F0F0F0", zorder=0, lw=0)
            ax.set(xscale="log", ylim=(len(names) - 0.5, -0.5), title=FUNCTIONS[function])
            ax.set_xlabel("curvature per unit of squared norm")
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.grid(axis="x")
        axes[0].set_yticks(range(len(names)), names)
        fig.legend(handles=[_key(method) for method in methods], loc="outside lower center", ncols=4)
    return fig


def _method(ax: Axes, rows: pd.DataFrame, names: list[str], shift: float, lowest: float) -> None:
    for y, name in enumerate(names):
        values = rows.loc[rows["name"] == name, "curvature"]
        tint = colour(str(rows["method"].iloc[0])) if len(rows) else "#000000"
        above, below = values[values > 0], values[values <= 0]
        ax.plot(above, [y + shift] * len(above), "o", color=tint, ms=6, alpha=0.75, mew=0)
        ax.plot([lowest] * len(below), [y + shift] * len(below), "<", color=tint, ms=6, mfc="white")


def _key(method: str) -> Line2D:
    return Line2D([], [], marker="o", color=colour(method), lw=0, ms=6, label=method)


def ratios(frame: pd.DataFrame, batches: pd.DataFrame, tolerance: float) -> Figure:
    """Draw the ratios with their intervals, beside one and the rules' tolerance.

    Columns: those of `views.ratio_view`, and of `views.batch_view`, whose values are ticks. A ratio without
    an interval is an open mark; of one without a value the figure says so. What no rule judges is shaded.
    """
    names = list(dict.fromkeys(frame["name"]))
    judged = frame.drop_duplicates("name")["judged"].sum()
    known = frame[frame["value"] > 0]
    with style():
        fig, ax = plt.subplots(figsize=(8.4, 1.8 + 0.55 * len(names)))
        ax.axvline(1, color="#000000", lw=1.1)
        ax.axvline(tolerance, color="#009E73", lw=1.4, ls=(0, (4, 2)))
        edge = known["value"].min() / 2 if len(known) else 0.1
        ax.axhspan(judged - 0.5, len(names) - 0.5, color="#F0F0F0", zorder=0, lw=0)
        for row in frame.to_dict("records"):
            _ratio(ax, row, names.index(row["name"]), edge)
        for row in batches[batches["value"] > 0].to_dict("records"):
            tint, _, shift = _INK[row["function"]]
            ax.plot([row["value"]], [names.index(row["name"]) + 1.9 * shift], "|", color=tint, ms=7)
        ax.set(xscale="log", ylim=(len(names) - 0.5, -0.5), xlabel="ratio of curvatures at equal norm")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_yticks(range(len(names)), names)
        ax.grid(axis="x")
        fig.legend(handles=_ratio_key(), loc="outside lower center", ncols=2)
    return fig


def _ratio(ax: Axes, row: dict, y: int, edge: float) -> None:
    tint, marker, shift = _INK[row["function"]]
    place = y + shift
    if np.isnan(row["value"]):
        ax.text(edge, place, "cannot be told", color=tint, fontsize="small", va="center")
        return
    if not row["value"] > 0:
        ax.plot([edge], [place], "<", color=tint, ms=8, mfc="white")
        return
    if np.isfinite(row["low"]):
        ax.plot([max(row["low"], edge), row["high"]], [place, place], color=tint, lw=2.2)
    face = tint if np.isfinite(row["low"]) else "white"
    ax.plot([row["value"]], [place], marker, color=tint, ms=7.5, mfc=face)


def _ratio_key() -> list[Line2D]:
    marks = [
        Line2D([], [], marker=marker, color=tint, lw=2.2, ms=7.5, label=f"{name}, 95 % interval")
        for name, (tint, marker, _) in _INK.items()
    ]
    rule = Line2D([], [], color="#009E73", lw=1.4, ls=(0, (4, 2)), label="what is judged holds from here on")
    return [*marks, Line2D([], [], color="#000000", lw=1.1, label="equally steep"), rule]
