"""Logarithmic axes of ratios by matrix type, as several figures draw them."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, ScalarFormatter

from threegates.figures.names import ROLES
from threegates.figures.style import log_ticks


def name_ratios(axes: Sequence[Axes], roles: Sequence[str], label: str) -> None:
    """Name axes that share both scales and on which ratios are drawn, a row a role, with a line at 1.

    label : what the ratios are, and of which unit.
    """
    for ax in axes:
        ax.axvline(1, color="#000000", lw=0.8, ls=":")
        ax.set(xscale="log", ylim=(len(roles) - 0.5, -0.5), xlabel=label)
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.grid(axis="x")
    axes[0].set_xticks(log_ticks(*axes[0].get_xlim()))
    axes[0].set_yticks(range(len(roles)), [ROLES[role] for role in roles])
