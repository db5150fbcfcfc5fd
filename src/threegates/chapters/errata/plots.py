"""Figures of the errata: Theorem 3.3 as printed and as it holds; what rounded noise shows untrained."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from threegates.figures.style import style
from threegates.geometry.nulls import bernoulli

_SINE, _PRINTED, _CORRECTED, _GREY = "#000000", "#D55E00", "#0072B2", "#7F7F7F"


def wedin_figure(curve: pd.DataFrame, sizes: pd.DataFrame) -> Figure:
    """Draw the counterexample over its angle, and beside it how a sine grows with the update.

    Columns: those of `errata.counterexample_curve` and `errata.rotation_by_size`.
    """
    with style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.3), gridspec_kw={"width_ratios": [1.25, 1]})
        _counterexample(left, curve)
        _growth(right, sizes)
    return fig


def _counterexample(ax: Axes, curve: pd.DataFrame) -> None:
    angle = curve["degrees"]
    broken = (curve["sine"] > curve["printed"]).to_numpy()
    ax.fill_between(angle, curve["printed"], curve["sine"], where=broken, color=_PRINTED, alpha=0.14, lw=0)
    ax.plot(angle, curve["sine"], color=_SINE, lw=2.6, label="sine of the rotation")
    ax.plot(angle, curve["printed"], color=_PRINTED, ls="--", label="bound as printed")
    ax.plot(angle, curve["corrected"], color=_CORRECTED, ls="-.", label="bound with Wedin's gap")
    ax.axhline(1, color=_GREY, lw=0.9, ls=":")
    ax.text(1, 1.005, "no sine exceeds one", fontsize=9, color="#444444", va="bottom")
    ax.set(xlim=(0, 90), ylim=(0, 1.17), xlabel="angle of the turn", title="The printed bound is broken")
    ax.xaxis.set_major_locator(FixedLocator(range(0, 91, 15)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}°"))
    ax.legend(loc="lower right")
    ax.grid(axis="y")


def _growth(ax: Axes, sizes: pd.DataFrame) -> None:
    size, sine = sizes["size"], sizes["sine"]
    # Both reference lines pass through the largest update.
    unit = float(sine.iloc[-1] / size.iloc[-1])
    ax.plot(size, unit * size, color=_CORRECTED, lw=1.4, label="linear")
    ax.plot(size, unit * size**2 / size.iloc[-1], color=_PRINTED, lw=1.4, ls="--", label="quadratic")
    ax.plot(size, sine, "o", color=_SINE, ms=6, label="sine of the rotation")
    ax.set(xscale="log", yscale="log", xlabel="‖ΔW‖₂", title="It is linear in the update")
    ax.legend(loc="lower right")
    ax.grid()


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
    ax.plot(means.index, means["bernoulli"], "--", color="#000000", lw=1.4, label=bernoulli.NULL.title)
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
