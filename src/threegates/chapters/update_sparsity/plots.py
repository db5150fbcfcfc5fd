"""Figures of the chapter on sparsity."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from threegates.estimates.intervals import t_interval
from threegates.estimates.paper import sparsity_ranges, table_1
from threegates.figures.style import PAPER, colour, style


def sparsity_by_method(frame: pd.DataFrame) -> Figure:
    """Draw the share of weights left unchanged: one row a label, one point a seed, mean and t interval.

    Columns: label (row), method (colour), seed, sparsity (bf16), sparsity_fp32, sparsity_storage_norm
    (mean of null 1b: Gaussian noise of equal stored norm). Above them stand the pairs of the paper's Table 1.
    """
    labels = list(dict.fromkeys(frame["label"]))
    with style():
        fig, ax = plt.subplots(figsize=(8.2, 1.5 + 0.46 * len(labels)))
        for name, (low, high) in sparsity_ranges().items():
            tint = "#D55E00" if name == "SFT" else "#0072B2"
            ax.axvspan(low, high, color=tint, alpha=0.09, lw=0)
            ax.text(
                (low + high) / 2, -0.75, f"paper: {name}", color=tint, ha="center", va="bottom", fontsize=10
            )
        printed = table_1()["sparsity"]
        ax.plot(printed, [-0.55] * len(printed), **PAPER)
        for y, label in enumerate(labels):
            _sparsity_row(ax, y, frame[frame["label"] == label])
        ax.set(ylim=(len(labels) - 0.4, -0.7), xlim=(-0.02, 1.0), xlabel="share of weights unchanged")
        ax.set_yticks(range(len(labels)), labels)
        ax.xaxis.set_major_formatter(PercentFormatter(1.0))
        ax.grid(axis="x")
        ax.tick_params(axis="y", length=0)
        fig.legend(handles=_sparsity_key(), loc="outside lower center", ncols=3, handletextpad=0.4)
    return fig


def _sparsity_row(ax: Axes, y: int, rows: pd.DataFrame) -> None:
    """Draw one label's seeds, mean, interval, fp32 view and storage null."""
    tint = colour(rows["method"].iloc[0])
    seeds = y + np.linspace(-0.1, 0.1, len(rows)) if len(rows) > 1 else np.array([float(y)])
    ax.scatter(rows["sparsity"], seeds, s=26, color=tint, alpha=0.55, lw=0, zorder=3)
    ax.scatter(rows["sparsity_fp32"], seeds, s=26, facecolors="white", edgecolors=tint, lw=1.2, zorder=3)
    mean, low, high = t_interval(rows["sparsity"])
    ax.plot([low, high], [y, y], color=tint, lw=2.5, solid_capstyle="butt", zorder=4)
    ax.plot([mean], [y], "D", color=tint, ms=8, mec="white", zorder=5)
    null = rows["sparsity_storage_norm"].mean()
    ax.plot([null, null], [y - 0.3, y + 0.3], color="#4D4D4D", lw=2, zorder=2)


def _sparsity_key() -> list[Line2D]:
    """Explain the marks of the sparsity figure."""
    grey = "#4D4D4D"
    return [
        Line2D([], [], marker="D", color=grey, mec="white", ms=8, lw=2.5, label="bf16: mean, 95 % interval"),
        Line2D([], [], marker="o", color=grey, alpha=0.55, ms=5, lw=0, label="one seed"),
        Line2D([], [], marker="o", mfc="white", mec=grey, ms=5, lw=0, label="same run in fp32"),
        Line2D([], [], marker="|", color=grey, ms=13, mew=2, lw=0, label="noise of equal norm (1b)"),
        Line2D([], [], **PAPER, label="the paper: a pair of Table 1"),
    ]
