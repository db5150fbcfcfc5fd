"""Figures of the chapter emergence."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from threegates.figures.names import ROLES
from threegates.figures.style import colour, style
from threegates.geometry.stripes import smooth


def ratios_over_training(frame: pd.DataFrame, head_size: int | None = None, window: int = 3) -> Figure:
    """Draw row or column ratios of several matrices at several steps, smoothed over a window.

    Columns: role, axis ("row" or "column"), step, ratio (list of length rows or columns).
    """
    order = list(ROLES)
    panels = sorted(
        set(zip(frame["role"], frame["axis"], strict=True)), key=lambda p: (order.index(p[0]), p[1])
    )
    steps = sorted(frame["step"].unique())
    shades = sns.color_palette("crest", len(steps))
    with style():
        fig, axes = plt.subplots(
            len(panels), 1, figsize=(8.2, 0.8 + 1.75 * len(panels)), sharey=True, squeeze=False
        )
        for ax, (role, axis) in zip(axes[:, 0], panels, strict=True):
            rows = frame[(frame["role"] == role) & (frame["axis"] == axis)].sort_values("step")
            for ratio, step in zip(rows["ratio"], rows["step"], strict=True):
                ax.plot(
                    smoothed(ratio, window), color=shades[steps.index(step)], lw=1.5, label=f"step {step}"
                )
            for border in range(head_size or 10**9, len(ratio), head_size or 10**9):
                ax.axvline(border - 0.5, color="#888888", lw=0.9, ls=(0, (4, 3)))
            ax.set(
                title=f"{ROLES[role]}: {axis} ratios", xlim=(-0.5, len(ratio) - 0.5), ylabel="share changed"
            )
            ax.set_xlabel(f"{axis} of the matrix")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=len(steps))
    return fig


def smoothed(ratio: Sequence[float], window: int = 3) -> np.ndarray:
    """Average over a centred window, shorter at both ends, as the paper's figures do."""
    return smooth(torch.tensor(np.asarray(ratio, dtype=float)), window).numpy()


def emergence_correlation(frame: pd.DataFrame) -> Figure:
    """Draw how soon the ratios look like the final ones, and the same for coordinate-blind walks.

    Columns: role, run, step, spearman, storage_path_mean, storage_path_low, storage_path_high.
    """
    roles = [r for r in ROLES if r in set(frame["role"])]
    with style():
        fig, axes = plt.subplots(
            1, len(roles), figsize=(1.0 + 2.35 * len(roles), 3.4), sharey=True, squeeze=False
        )
        for ax, role in zip(axes[0], roles, strict=True):
            rows = frame[frame["role"] == role].sort_values("step")
            for _, run in rows.groupby("run", sort=True):
                low, high = run["storage_path_low"], run["storage_path_high"]
                ax.fill_between(run["step"], low, high, color="#BDBDBD", alpha=0.45, lw=0)
                ax.plot(run["step"], run["storage_path_mean"], color="#6E6E6E", lw=1.2, ls="--")
                tint = _run_colour(run)
                ax.plot(run["step"], run["spearman"], "o-", color=tint, ms=4.5, lw=1.8)
            ax.axhline(0, color="#444444", lw=0.8)
            ax.set(title=ROLES[role], xlabel="training step", ylim=(-0.25, 1.05))
            ax.grid(axis="y")
        axes[0, 0].set_ylabel("Spearman with the final ratios")
        fig.legend(handles=_emergence_key(frame), loc="outside lower center", ncols=3)
    return fig


def _run_colour(rows: pd.DataFrame) -> str:
    """Colour of a run that stands by itself, RL's blue for any other."""
    return colour(str(rows["run"].iloc[0])) if "alone" in rows else "#0072B2"


def _emergence_key(frame: pd.DataFrame) -> list[Line2D | Patch]:
    """Explain the marks of the emergence figure."""
    runs = {str(run): _run_colour(own) for run, own in frame.groupby("run", sort=True)}
    named = runs if "alone" in frame else {"RL run": "#0072B2"}
    return [
        *(Line2D([], [], marker="o", color=tint, ms=4.5, label=name) for name, tint in named.items()),
        Line2D([], [], color="#6E6E6E", lw=1.2, ls="--", label="Gaussian walk, equal densities: mean"),
        Patch(color="#BDBDBD", alpha=0.45, lw=0, label="its 95 % range"),
    ]
