"""The figure of storage noise on made weights: what the paper's measures show without any training."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from threegates.figures.style import style

_TARGETS = {
    "low": ("of low magnitude", "#0072B2", "s"),
    "principal": ("principal", "#D55E00", "o"),
    "principal_not_low": ("principal, not low", "#009E73", "^"),
}


def noise_figure(found: pd.DataFrame) -> Figure:
    """Draw Jaccard index and overlaps of rounded noise over the density of its mask.

    Columns: those of `noise.storage_alone`; lines are means over draws, bars their smallest and largest.
    """
    with style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.4))
        _agreement(left, found)
        _overlaps(right, found)
    return fig


def _agreement(ax: Axes, found: pd.DataFrame) -> None:
    means = found.groupby("density")[["jaccard", "bernoulli"]].mean()
    ax.fill_between(means.index, means["bernoulli"], means["jaccard"], color="#0072B2", alpha=0.12, lw=0)
    ax.plot(means.index, means["jaccard"], "o-", color="#0072B2", label="two rounded noises")
    ax.plot(means.index, means["bernoulli"], "--", color="#000000", lw=1.4, label="Bernoulli (the paper's)")
    ax.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="share of weights that changed", ylabel="Jaccard index")
    ax.set_title("Masks agree above chance")
    ax.legend(loc="upper left")
    ax.grid()


def _overlaps(ax: Axes, found: pd.DataFrame) -> None:
    for target, (label, colour, marker) in _TARGETS.items():
        shares = found.groupby("density")[f"{target}_overlap"].agg(["mean", "min", "max"])
        spread = [shares["mean"] - shares["min"], shares["max"] - shares["mean"]]
        ax.errorbar(shares.index, shares["mean"], spread, color=colour, marker=marker, label=label, capsize=2)
        ax.axhline(found[f"{target}_density"].mean(), color=colour, ls=":", lw=1.6)
    ax.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="share of weights that changed", ylabel="share of the mask on target"
    )
    ax.set_title("They avoid principal weights")
    ax.legend(loc="upper right", title="dotted: density of the target", title_fontsize=10)
    ax.grid()
