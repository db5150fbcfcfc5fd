"""Figures of the chapter about the lab itself."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from threegates.figures.style import colour, style

#: Logged quantities, their axis titles, and whether the axis is logarithmic.
CURVES: dict[str, tuple[str, bool]] = {
    "reward": ("reward", False),
    "pass_at_1": ("pass@1, held out", False),
    "kl": ("KL to the base (nats a token)", False),
    "entropy": ("entropy (nats a token)", False),
    "length": ("response length (tokens)", False),
    "delta_norm": ("‖ΔW‖", False),
}


DIAGNOSTICS: dict[str, tuple[str, bool]] = {
    "clip_fraction": ("clipped tokens (share)", False),
    "resampled_groups": ("groups sampled again", False),
    "advantage_scale": ("advantage scale", False),
}


def learning_curves(
    frame: pd.DataFrame, curves: dict[str, tuple[str, bool]] = CURVES, columns: int = 3
) -> Figure:
    """Draw the training log: one panel a quantity, one colour a method, one line a run.

    Columns: method, run, step, and the keys of `curves`; a missing value draws nothing.
    """
    names = [name for name in curves if name in frame]
    lines = -(-len(names) // columns)
    with style():
        fig, axes = plt.subplots(
            lines, columns, figsize=(1.0 + 2.9 * columns, 0.9 + 2.4 * lines), squeeze=False
        )
        for ax, name in zip(axes.flat, names, strict=False):
            for (method, _), run in frame.groupby(["method", "run"], sort=False):
                points = run[["step", name]].dropna().sort_values("step")
                sparse = len(points) < 0.5 * len(run)
                look = {
                    "color": colour(str(method)),
                    "lw": 1.6,
                    "alpha": 0.85,
                    "marker": "o" if sparse else "",
                }
                ax.plot(points["step"], points[name], ms=4, **look)
            ax.set(
                title=curves[name][0], xlabel="training step", yscale="log" if curves[name][1] else "linear"
            )
            ax.grid(axis="y")
        for ax in axes.flat[len(names) :]:
            ax.set_axis_off()
        methods = list(dict.fromkeys(frame["method"]))
        handles = [Line2D([], [], color=colour(m), lw=2, label=m) for m in methods]
        fig.legend(handles=handles, loc="outside lower center", ncols=min(6, len(methods)))
    return fig


def pass_rates(frame: pd.DataFrame) -> Figure:
    """Draw pass rates with their intervals: one row a checkpoint, one panel a measure.

    Columns: label, method, measure (such as "pass@1"), value, low, high.
    """
    measures, labels = list(dict.fromkeys(frame["measure"])), list(dict.fromkeys(frame["label"]))
    with style():
        fig, axes = plt.subplots(
            1,
            len(measures),
            figsize=(1.8 + 3.2 * len(measures), 1.1 + 0.36 * len(labels)),
            sharey=True,
            squeeze=False,
        )
        for ax, measure in zip(axes[0], measures, strict=True):
            for row in frame[frame["measure"] == measure].itertuples():
                y, tint = labels.index(row.label), colour(row.method)
                ax.plot([row.low, row.high], [y, y], color=tint, lw=2.5, solid_capstyle="butt")
                ax.plot([row.value], [y], "o", color=tint, ms=7, mec="white")
            ax.set(title=measure, xlim=(0, 1.02), ylim=(len(labels) - 0.5, -0.5))
            ax.xaxis.set_major_formatter(PercentFormatter(1.0))
            ax.grid(axis="x")
        axes[0, 0].set_yticks(range(len(labels)), labels)
    return fig
