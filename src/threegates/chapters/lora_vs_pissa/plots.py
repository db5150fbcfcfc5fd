"""The figures of adapters; each takes frames of `adapter_views` and draws them."""

from __future__ import annotations

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from threegates.chapters.lora_vs_pissa.estimates import COLLAPSE_KL, FULL
from threegates.chapters.lora_vs_pissa.views import MEASURES, STARTS, starts_in
from threegates.figures.style import style

#: Colour (Okabe and Ito) of each start; the reference is black.
TINTS = {
    "lora": "#0072B2",
    "pissa": "#D55E00",
    "milora": "#009E73",
    "orthonormal": "#CC79A7",
    FULL: "#000000",
}
_MARKERS = ("o", "s", "^", "v", "P")
_GREY = "#7F7F7F"
_PANELS = {"learning_rate": "learning rate", "kl": "token KL to the base (nats)", "delta_norm": "‖ΔW‖"}
_TITLES = {"pass_at_1": "pass@1, held out", "kl": "token KL to the base (nats)"}
_PERCENT = FuncFormatter(lambda v, _: f"{100 * v:g} %")


def markers(rows: pd.DataFrame) -> dict[Any, str]:
    """Marker of each rank; training in full has a diamond."""
    ranks = sorted(rows["rank"].dropna().unique())
    return {rank: _MARKERS[place % len(_MARKERS)] for place, rank in enumerate(ranks)} | {FULL: "D"}


def over_the_grid(runs: pd.DataFrame, grid: pd.DataFrame, base: float) -> Figure:
    """Draw pass@1 of every run over learning rate, over KL and over ‖ΔW‖; collapsed runs are hollow.

    Columns: those of `views.runs_view` and `grid_view`; `base` is the pass@1 of the base.
    """
    looks = markers(runs)
    with style():
        fig, axes = plt.subplots(1, 3, figsize=(11.6, 5.0), sharey=True)
        for ax, (column, title) in zip(axes, _PANELS.items(), strict=True):
            for _, own in grid.groupby(["init", "rank"], dropna=False, sort=False):
                _means(ax, own.sort_values("learning_rate"), column)
            for _, run in runs.iterrows():
                _point(ax, run, column, looks)
            _log_axis(ax, runs[column], every=column == "learning_rate")
            ax.set_xlabel(title)
            ax.grid(axis="y")
            if not math.isnan(base):
                ax.axhline(base, color=_GREY, lw=1.4, ls=":", zorder=0)
        if _drawn(runs["kl"]).max() > COLLAPSE_KL / 10:
            axes[1].axvline(COLLAPSE_KL, color=_GREY, lw=1.2, ls="--", zorder=0)
        axes[0].set_ylabel("pass@1, held out")
        axes[0].yaxis.set_major_formatter(_PERCENT)
        fig.legend(handles=_grid_key(runs, looks, base), loc="outside lower center", ncols=4)
    return fig


def _drawn(values: pd.Series) -> pd.Series:
    return values.where(values > 0).replace(np.inf, np.nan).dropna()


def _marker(row: pd.Series, looks: dict[Any, str]) -> str:
    return looks[FULL] if row["init"] == FULL else looks[row["rank"]]


def _point(ax: Axes, run: pd.Series, column: str, looks: dict[Any, str]) -> None:
    tint = TINTS[str(run["init"])]
    fill = "white" if run["collapsed"] else tint
    at = run[column] * _aside(str(run["init"]), column)
    ax.plot([at], [run["pass_at_1"]], _marker(run, looks), ms=6, mfc=fill, mec=tint, mew=1.3, lw=0)


def _aside(init: str, column: str) -> float:
    """Starts share their learning rates: there their marks are set apart a little."""
    return 1.05 ** (list(TINTS).index(init) - 2) if column == "learning_rate" else 1.0


def _means(ax: Axes, own: pd.DataFrame, column: str) -> None:
    """A line through the means over seeds; over the learning rate with their intervals."""
    tint = TINTS[str(own["init"].iloc[0])]
    at = own[column] * _aside(str(own["init"].iloc[0]), column)
    if column == "learning_rate":
        ax.vlines(at, own["low"], own["high"], color=tint, lw=1.8, alpha=0.6)
    ax.plot(at, own["pass_at_1"], color=tint, lw=1.3, alpha=0.75)


def _log_axis(ax: Axes, values: pd.Series, every: bool) -> None:
    """A logarithmic axis with a tick for every value, or with some between the powers of ten."""
    ax.set_xscale("log")
    known = _drawn(values)
    few = known.empty or known.max() / known.min() < 30
    some = LogLocator(subs=(1, 2, 5) if few else (1, 3))
    ax.xaxis.set_major_locator(FixedLocator(sorted(values.unique())) if every else some)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.tick_params(axis="x", labelsize=9.5)


def _grid_key(runs: pd.DataFrame, looks: dict[Any, str], base: float) -> list[Line2D]:
    starts = [Line2D([], [], color=TINTS[one], lw=2.2, label=STARTS[one]) for one in starts_in(runs)]
    ranks = [
        Line2D([], [], marker=marker, color="#333333", ms=6, lw=0, label=f"rank {rank}")
        for rank, marker in looks.items()
        if rank != FULL
    ]
    hollow = Line2D([], [], marker="o", mfc="white", mec="#333333", mew=1.3, ms=6, lw=0, label="collapsed")
    lines = [Line2D([], [], color=_GREY, lw=1.2, ls="--", label="KL that counts as collapse")]
    if not math.isnan(base):
        lines.append(Line2D([], [], color=_GREY, lw=1.4, ls=":", label="the base, untrained"))
    return [*starts, *ranks, hollow, *lines]


def learning_curves(summary: pd.DataFrame, full_rate: str | None) -> Figure:
    """Draw pass@1 and KL along training, a column a learning rate, one line a start, with intervals.

    Columns: those of `views.course_summary`. Training of all weights has learning rates of its own:
    the one named stands in every column, dashed.
    """
    adapters = summary[summary["init"] != FULL]
    rates = sorted(adapters["learning_rate"].unique())
    full = summary[(summary["init"] == FULL) & (summary["learning_rate"].map("{:g}".format) == full_rate)]
    with style():
        size = (1.6 + 3.3 * max(2, len(rates)), 6.4)
        fig, axes = plt.subplots(2, len(rates), figsize=size, sharex=True, sharey="row", squeeze=False)
        for column, rate in enumerate(rates):
            own = adapters[adapters["learning_rate"] == rate]
            for row, measure in enumerate(MEASURES):
                _curves(axes[row, column], pd.concat([own, full]), measure)
            axes[0, column].set_title(f"learning rate {rate:g}")
            axes[1, column].set_xlabel("training step")
        for row, measure in enumerate(MEASURES):
            axes[row, 0].set_ylabel(_TITLES[measure])
        fig.legend(handles=_curve_key(summary, full_rate), loc="outside lower center", ncols=3)
    return fig


def _curves(ax: Axes, summary: pd.DataFrame, measure: str) -> None:
    rows = summary[(summary["measure"] == measure) & summary["value"].notna()]
    starts = starts_in(rows)
    for place, init in enumerate(starts):
        own = rows[rows["init"] == init].sort_values("step")
        at = own["step"] + 0.3 * (place - (len(starts) - 1) / 2)
        look: dict[str, Any] = {"ls": "--", "marker": "D"} if init == FULL else {"ls": "-", "marker": "o"}
        ax.plot(at, own["value"], color=TINTS[init], ms=4, lw=1.6, **look)
        ax.vlines(at, own["low"], own["high"], color=TINTS[init], lw=1.6, alpha=0.6)
    ax.set_xlim(0, summary["step"].max() + 1)
    ax.grid(axis="y")
    if measure == "pass_at_1":
        ax.yaxis.set_major_formatter(_PERCENT)
        return
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.axhline(COLLAPSE_KL, color=_GREY, lw=1.2, ls="--", zorder=0)


def _curve_key(summary: pd.DataFrame, full_rate: str | None) -> list[Line2D]:
    handles = [
        Line2D([], [], color=TINTS[one], marker="o", ms=5, lw=1.6, label=STARTS[one])
        for one in starts_in(summary)
        if one != FULL
    ]
    if full_rate is not None and FULL in set(summary["init"]):
        label = f"{STARTS[FULL]}, lr {full_rate}"
        handles.append(Line2D([], [], color=TINTS[FULL], marker="D", ms=5, ls="--", lw=1.6, label=label))
    return [*handles, Line2D([], [], color=_GREY, lw=1.2, ls="--", label="KL that counts as collapse")]
