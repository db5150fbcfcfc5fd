"""The figures of sparse fine-tuning; each takes frames of `mask_views` and draws them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from threegates.chapters.sparse_finetuning.views import ARMS, MEASURES, arms_in
from threegates.figures.style import PAPER, style

#: Colour (Okabe and Ito) and marker of each mask; the nulls, random masks, are grey.
LOOKS = {
    "dense": ("#000000", "D"),
    "principal": ("#D55E00", "^"),
    "off-principal": ("#56B4E9", "v"),
    "low": ("#009E73", "s"),
    "safe": ("#0072B2", "o"),
    "random": ("#7F7F7F", "X"),
    "random-half": ("#A6A6A6", "P"),
}
#: Shares in percent, with as many digits as the ticks need.
PERCENT = FuncFormatter(lambda v, _: f"{100 * v:g} %")
_TITLES = {
    "pass_at_1": "pass@1, held out",
    "kl": "token KL to the base (nats)",
    "log_ratio": "KL over that of the dense run",
}


def accuracy_by_arm(
    accuracy: pd.DataFrame, summary: pd.DataFrame, printed: pd.DataFrame, base: float, margin: float
) -> Figure:
    """Draw pass@1 under every mask, and its paired difference from the dense run of the same seed.

    Columns: those of `views.accuracy_view`, `accuracy_summary` and, of the paper, `printed_differences`.
    `base` is the pass@1 of the base, the floor; `margin` the tolerance within which an arm
    counts as equal to the dense one.
    """
    arms = arms_in(accuracy)
    with style():
        height = 1.6 + 0.48 * len(arms)
        fig, (left, right) = plt.subplots(1, 2, figsize=(9.4, height), sharey=True)
        for row, mask in enumerate(arms):
            for ax, measure in ((left, "pass_at_1"), (right, "over_dense")):
                _arm(ax, row, accuracy[accuracy["mask"] == mask], summary, measure)
            own = printed[printed["mask"] == mask]
            for steps, gaps in own.groupby("steps")["over_dense"]:
                right.plot(gaps, [row - 0.38] * len(gaps), **_printed_look(steps, printed))
        dense = summary[(summary["mask"] == "dense") & (summary["measure"] == "pass_at_1")]["value"]
        if len(dense):
            left.axvline(dense.iloc[0], color="#000000", lw=1, ls="--", zorder=0)
        if not math.isnan(base):
            left.axvline(base, color="#7F7F7F", lw=1.4, ls=":", zorder=0)
        right.axvspan(-margin, margin, color="#BDBDBD", alpha=0.45, lw=0, zorder=0)
        right.axvline(0, color="#000000", lw=1, ls="--", zorder=0)
        left.set(title="pass@1, held out", ylim=(len(arms) - 0.5, -0.5))
        left.set_yticks(range(len(arms)), [ARMS[mask] for mask in arms])
        right.set(title="minus dense, same seed")
        right.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:+g}" if v else "0"))
        left.xaxis.set_major_formatter(PERCENT)
        left.xaxis.set_major_locator(MaxNLocator(5))
        right.set_xlabel("points")
        for ax in (left, right):
            ax.grid(axis="x")
        key = _arm_key(base)
        for steps in sorted(printed["steps"].unique()):
            look = _printed_look(steps, printed)
            key.append(Line2D([], [], **look, label=f"the paper, {steps} steps"))
        fig.legend(handles=key, loc="outside lower center", ncols=3)
    return fig


def _printed_look(steps: object, printed: pd.DataFrame) -> dict[str, Any]:
    """The paper's mark of a table: a star of the first, a diamond of the second."""
    order = sorted(printed["steps"].unique())
    return PAPER if steps == order[0] else PAPER | {"marker": "d", "ms": 6}


def _arm(ax: Axes, row: int, runs: pd.DataFrame, summary: pd.DataFrame, measure: str) -> None:
    """One mask: a point a seed, the mean below them and its interval."""
    mask = str(runs["mask"].iloc[0])
    tint, marker = LOOKS[mask]
    found = summary[(summary["mask"] == mask) & (summary["measure"] == measure)]
    if found.empty:
        return
    own = found.iloc[0]
    ax.plot(runs[measure], [row - 0.17] * len(runs), "o", ms=5, mfc="white", mec=tint, mew=1.3, lw=0)
    if not math.isnan(own["low"]):
        ax.plot([own["low"], own["high"]], [row + 0.15] * 2, color=tint, lw=2.6, solid_capstyle="butt")
    ax.plot([own["value"]], [row + 0.15], marker, color=tint, ms=8, mec="white")


def _arm_key(base: float) -> list[Line2D]:
    dark = "#333333"
    handles = [
        Line2D([], [], marker="o", mfc="white", mec=dark, mew=1.3, ms=5, lw=0, label="one seed"),
        Line2D([], [], marker="o", color=dark, mec="white", ms=8, lw=2.6, label="mean, 95 % t interval"),
        Line2D([], [], color="#000000", lw=1, ls="--", label="dense"),
    ]
    if not math.isnan(base):
        handles.append(Line2D([], [], color="#7F7F7F", lw=1.4, ls=":", label="the base, untrained"))
    return [*handles, Line2D([], [], color="#BDBDBD", lw=9, alpha=0.6, label="counts as equal")]


def over_training(summary: pd.DataFrame) -> Figure:
    """Draw pass@1, token KL and KL over the dense run's along training, one line a mask, with intervals.

    Columns: those of `views.course_summary`. Lines are set apart a little so that intervals can be told.
    """
    arms = arms_in(summary)
    steps = sorted(summary["step"].unique())
    gap = min(b - a for a, b in pairwise([0, *steps]))
    with style():
        fig, axes = plt.subplots(3, 1, figsize=(8.2, 9.6), sharex=True)
        for ax, measure in zip(axes, MEASURES, strict=True):
            rows = summary[(summary["measure"] == measure) & summary["value"].notna()]
            for place, mask in enumerate(arms):
                aside = gap * 0.05 * (place - (len(arms) - 1) / 2)
                _course(ax, rows[rows["mask"] == mask].sort_values("step"), aside)
            _scale(ax, measure)
        axes[-1].set_xlabel("training step")
        axes[-1].set_xticks([0, *steps])
        axes[-1].set_xlim(0, steps[-1] + 0.4 * gap)
        handles = [_line_key(mask) for mask in arms]
        fig.legend(handles=handles, loc="outside lower center", ncols=3)
    return fig


def _course(ax: Axes, rows: pd.DataFrame, aside: float) -> None:
    if rows.empty:
        return
    tint, marker = LOOKS[str(rows["mask"].iloc[0])]
    at = rows["step"] + aside
    ax.plot(at, rows["value"], marker=marker, color=tint, ms=5.5, mec="white", mew=0.6, lw=1.5)
    ax.vlines(at, rows["low"], rows["high"], color=tint, lw=1.6, alpha=0.75)


def _scale(ax: Axes, measure: str) -> None:
    ax.set_title(_TITLES[measure])
    ax.grid(axis="y")
    if measure == "pass_at_1":
        ax.yaxis.set_major_formatter(PERCENT)
        return
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def _line_key(mask: str) -> Line2D:
    tint, marker = LOOKS[mask]
    return Line2D([], [], color=tint, marker=marker, ms=6.5, mec="white", lw=1.5, label=ARMS[mask])
