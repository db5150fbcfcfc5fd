"""The figures of the chapter on learning rates; each takes a frame of `rate_views` and draws it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator, PercentFormatter

from threegates.chapters.learning_rate.views import GROUPS
from threegates.figures.style import colour, style
from threegates.geometry.nulls import storage_norm

# The chapter asks what sparsity owes to the norm of an update, which this null holds.
_NULL = storage_norm.NULL
#: All runs are GRPO's; a second optimiser needs a colour that no method has.
_TINTS = {"AdamW": colour("GRPO"), "SGD": "#8C510A", "AdamW, pure bf16": colour("GRPO")}
_MARKS = {"AdamW": "o", "SGD": "s", "AdamW, pure bf16": "o"}
_OPEN = "AdamW, pure bf16"
_DARK = "#333333"
#: Optimisers with axes of their own: what a learning rate means differs between them.
_PANELS = ("AdamW", "SGD")


def _look(group: str) -> dict[str, Any]:
    tint = _TINTS.get(group, _DARK)
    face = "white" if group == _OPEN else tint
    edge = 1.6 if group == _OPEN else 0
    return {"marker": _MARKS.get(group, "D"), "mec": tint, "mfc": face, "mew": edge, "lw": 0}


def by_rate(runs: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Draw sparsity over the learning rate, a panel for each optimiser; runs in pure bf16 stand apart.

    Columns: those of `views.run_view` and `views.rate_summary`.
    """
    panels = [name for name in _PANELS if name in set(runs["group"])] or ["AdamW"]
    with style():
        fig, axes = plt.subplots(
            1, len(panels), figsize=(1.4 + 3.6 * len(panels), 4.9), sharey=True, squeeze=False
        )
        for ax, panel in zip(axes[0], panels, strict=True):
            groups = [g for g in GROUPS.values() if g.startswith(panel)]
            for group in groups:
                _rate_line(ax, runs[runs["group"] == group], summary[summary["group"] == group], group)
            _rate_axis(ax, summary.loc[summary["group"].isin(groups), "learning_rate"])
            ax.set(title=f"GRPO with {panel}", xlabel="learning rate", ylim=(-0.03, 1.05))
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
            ax.grid(axis="y")
        axes[0, 0].set_ylabel("share of weights unchanged")
        fig.legend(handles=_rate_key(runs), loc="outside lower center", ncols=2)
    return fig


def _rate_line(ax: Axes, runs: pd.DataFrame, summary: pd.DataFrame, group: str) -> None:
    tint, masters = _TINTS[group], group != _OPEN
    if masters:
        fp32: dict[str, Any] = {"marker": _MARKS[group], "mec": tint, "mfc": "white", "lw": 0, "ms": 5}
        ax.plot(runs["learning_rate"], runs["sparsity_fp32"], **fp32)
        null = summary["learning_rate"], summary["sparsity_storage_norm"]
        ax.plot(*null, _NULL.marker, color=_NULL.colour, ms=12, lw=0, zorder=2)
        ax.plot(summary["learning_rate"], summary["sparsity"], color=tint, lw=1.4, zorder=1)
    ax.vlines(summary["learning_rate"], summary["low"], summary["high"], color=tint, lw=2.6, zorder=3)
    ax.plot(runs["learning_rate"], runs["sparsity"], ms=8, alpha=0.85, zorder=4, **_look(group))


def _rate_axis(ax: Axes, rates: pd.Series) -> None:
    """A logarithmic axis marked at the rates that were trained."""
    ax.set_xscale("log")
    trained = sorted(rates.dropna().unique())
    if trained:
        ax.set_xticks(trained, [f"{rate:g}" for rate in trained])
        ax.set_xlim(trained[0] / 2, trained[-1] * 2)
    ax.xaxis.set_minor_locator(NullLocator())


def _rate_key(runs: pd.DataFrame) -> list[Line2D]:
    keys = [Line2D([], [], color=_DARK, marker="o", ms=8, lw=2.4, label="bf16, a mark a seed; bar: 95 %")]
    keys += [Line2D([], [], marker="o", mec=_DARK, mfc="white", ms=5, lw=0, label="same runs in float32")]
    keys += [_null_key()]
    return keys + _pure_key(runs)


def _null_key() -> Line2D:
    return Line2D([], [], marker=_NULL.marker, color=_NULL.colour, ms=9, lw=0, label=f"noise: {_NULL.title}")


def _pure_key(runs: pd.DataFrame) -> list[Line2D]:
    if _OPEN not in set(runs["group"]):
        return []
    return [Line2D([], [], ms=8, label="no float32 master: not comparable", **_look(_OPEN))]


def by_norm(runs: pd.DataFrame) -> Figure:
    """Draw sparsity over ‖ΔW‖, each run joined to noise of its norm.

    Columns: those of `views.run_view`.
    """
    with style():
        fig, ax = plt.subplots(figsize=(8.0, 5.0))
        ends = runs["sparsity_storage_norm"], runs["sparsity"]
        ax.vlines(runs["norm"], *ends, color=_NULL.colour, lw=1, zorder=1)
        ax.plot(runs["norm"], ends[0], _NULL.marker, color=_NULL.colour, ms=12, lw=0, zorder=2)
        for group in _present(runs):
            rows = runs[runs["group"] == group]
            ax.plot(rows["norm"], rows["sparsity"], ms=8, alpha=0.85, zorder=3, **_look(group))
        ax.set(xscale="log", xlabel="‖ΔW‖ over all parameters", ylabel="share of weights unchanged in bf16")
        ax.set_ylim(-0.03, 1.05)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.grid(axis="y")
        fig.legend(handles=[*_group_key(runs), _null_key()], loc="outside lower center", ncols=2)
    return fig


def by_pass(runs: pd.DataFrame, base: float) -> Figure:
    """Draw sparsity over pass@1 at the end, with float32 masters; the base's pass@1 is a line.

    Columns: those of `views.run_view`; thin lines are one standard error of pass@1 to either side.
    `base`: pass@1 of the base, NaN draws no line.
    """
    shown = runs[runs["master"] == "float32"]
    with style():
        fig, ax = plt.subplots(figsize=(8.0, 4.8))
        if base == base:
            ax.axvline(base, color=_DARK, lw=1.2, ls=":")
            ax.text(base, 1.07, " base", fontsize=10.5, color=_DARK, va="bottom", ha="center")
        for group in _present(shown):
            rows = shown[shown["group"] == group]
            ends = rows["pass_at_1"] - rows["pass_error"], rows["pass_at_1"] + rows["pass_error"]
            ax.hlines(rows["sparsity"], *ends, color=_TINTS.get(group, _DARK), lw=1, alpha=0.6)
            ax.plot(rows["pass_at_1"], rows["sparsity"], ms=8, alpha=0.85, zorder=3, **_look(group))
            _name_rates(ax, rows)
        ax.set(xlabel="pass@1 at the end, held out", ylabel="share of weights unchanged in bf16")
        ax.set_ylim(-0.03, 1.05)
        ax.margins(x=0.12)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.grid(axis="y")
        fig.legend(handles=_group_key(shown), loc="outside lower center", ncols=2)
    return fig


def _name_rates(ax: Axes, rows: pd.DataFrame) -> None:
    """The learning rate beside the means of its runs."""
    for rate, own in rows.groupby("learning_rate"):
        place = own["pass_at_1"].mean(), own["sparsity"].mean()
        ax.annotate(f"{rate:g}", place, (0, 9), textcoords="offset points", ha="center", fontsize=9.5)


def _present(runs: pd.DataFrame) -> Sequence[str]:
    return list(dict.fromkeys(runs["group"]))


def _group_key(runs: pd.DataFrame) -> list[Line2D]:
    names = {_OPEN: "AdamW without float32 master: not comparable"}
    return [Line2D([], [], ms=8, label=names.get(group, group), **_look(group)) for group in _present(runs)]
