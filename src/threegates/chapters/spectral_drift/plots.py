"""The figures of the chapter on spectral drift; each takes a frame of `drift_views` and draws it."""

from __future__ import annotations

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from threegates.figures.style import colour, log_ticks, style

#: Measured quantities, their axis titles, and the column of their theoretical limit.
MEASURES: dict[str, tuple[str, str]] = {
    "angle_mean": ("mean angle (degrees)", "angle_limit"),
    "angle_max": ("largest angle (degrees)", "angle_limit"),
    "nss": ("NSS", "nss_bound"),
}
#: Marker, fill and vertical place of each variant within its row.
_MARKS = {
    "raw": ("o", True, -0.22),
    "norm-matched": ("o", False, 0.02),
    "noise": ("^", True, 0.24),
}
_GREY = "#7F7F7F"


def drift_by_method(frame: pd.DataFrame) -> Figure:
    """Draw mean and largest angle and NSS of every method: one row a method and rate, one mark a seed.

    Columns: those of `views.drift_view`. Bounds are ticks: ‖ΔW‖_F/‖W₀‖_F for NSS, Thm 3.3 with the
    corrected gap for the largest angle (90° where it is vacuous).
    """
    labels = list(dict.fromkeys(frame["label"]))
    with style():
        fig, axes = plt.subplots(1, 3, figsize=(11.5, 1.9 + 0.52 * len(labels)), sharey=True)
        for ax, (name, (title, limit)) in zip(axes, MEASURES.items(), strict=True):
            for y, label in enumerate(labels):
                _method_row(ax, y, frame[frame["label"] == label], name, limit)
            ax.set(xscale="log", ylim=(len(labels) - 0.45, -0.55), xlabel=title)
            _few_ticks(ax)
            ax.grid(axis="x")
            if name != "nss":
                _note_floor(ax, frame["floor"].max())
        axes[0].set_yticks(range(len(labels)), labels)
        fig.legend(handles=_variant_key(), loc="outside lower center", ncols=4)
    return fig


def _method_row(ax: Axes, y: int, rows: pd.DataFrame, name: str, limit: str) -> None:
    tint = colour(str(rows["method"].iloc[0]))
    for variant, (marker, filled, down) in _MARKS.items():
        values = rows.loc[rows["variant"] == variant, name]
        shade = _GREY if variant == "noise" else tint
        face = shade if filled else "white"
        ax.plot(values, [y + down] * len(values), marker, mec=shade, mfc=face, ms=6, mew=1.4, lw=0)
    if name != "angle_mean":
        own = rows[rows["variant"] == "raw"]
        ax.plot([own[limit].mean()], [y - 0.22], "|", color="#000000", ms=12, mew=2)


def _few_ticks(ax: Axes) -> None:
    """Name powers of ten where the axis has two or more, else numbers between them: names never touch."""
    low, high = ax.get_xlim()
    if math.floor(math.log10(high)) - math.ceil(math.log10(low)) < 1:
        ax.xaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _note_floor(ax: Axes, floor: float) -> None:
    """Say where the numerical floor lies: far to the left of what is drawn."""
    ax.text(
        0.02, 0.02, f"← numerical error < {floor:.0e}°", transform=ax.transAxes, fontsize=8.5, color="#444444"
    )


def _variant_key() -> list[Line2D]:
    plain: dict[str, Any] = {"color": "#444444", "lw": 0, "ms": 6}
    return [
        Line2D([], [], marker="o", label="as trained", **plain),
        Line2D([], [], marker="o", mfc="white", mew=1.4, label="ΔW scaled to GRPO's norm", **plain),
        Line2D([], [], marker="^", label="noise of the trained norm", **{**plain, "color": _GREY}),
        Line2D([], [], marker="|", color="#000000", lw=0, ms=12, mew=2, label="bound, as trained"),
    ]


def drift_by_matrix(frame: pd.DataFrame) -> Figure:
    """Draw every matrix of the model, as trained beside equal norms; dashed: the bounds.

    Columns: those of `views.matrix_view`.
    """
    panels, methods = list(dict.fromkeys(frame["panel"])), list(dict.fromkeys(frame["method"]))
    ticks = frame.drop_duplicates("position").sort_values("position")
    # Names of matrices stand beside each other: a deeper model needs a wider panel.
    width = min(7.4, max(5.2, 0.17 * len(ticks)))
    with style():
        fig, axes = plt.subplots(
            3, len(panels), figsize=(1.2 + width * len(panels), 8.4), sharex=True, sharey="row", squeeze=False
        )
        for line, (name, (title, limit)) in zip(axes, MEASURES.items(), strict=True):
            for ax, panel in zip(line, panels, strict=True):
                rows = frame[frame["panel"] == panel].sort_values("position")
                for method, own in rows.groupby("method", sort=False):
                    _matrix_line(ax, own, str(method), name, limit)
                ax.set(yscale="log", title=panel)
                ax.grid(axis="y")
                ax.set_xticks(ticks["position"], ticks["tick"], rotation=90, fontsize=8.5)
            line[0].set_ylabel(title)
        axes[-1, 0].set_xlabel("matrix and block")
        handles = [Line2D([], [], color=colour(m), marker="o", ms=4, lw=1.2, label=m) for m in methods]
        handles.append(Line2D([], [], color="#444444", lw=1, ls="--", label="bound (below 90°)"))
        fig.legend(handles=handles, loc="outside lower center", ncols=4)
    return fig


def _matrix_line(ax: Axes, rows: pd.DataFrame, method: str, name: str, limit: str) -> None:
    tint = colour(method)
    # A matrix that training left alone has no place on a logarithmic axis.
    ax.plot(rows["position"], rows[name].where(rows[name] > 0), "o-", color=tint, ms=3.5, lw=1.1)
    if name != "angle_mean":
        bound = rows[limit].where((rows[limit] > 0) & ((rows[limit] < 90 - 1e-9) | (name == "nss")))
        ax.plot(rows["position"], bound, "--", color=tint, lw=0.9, alpha=0.7)


def example_spectrum(frame: pd.DataFrame) -> Figure:
    """Draw one matrix in full: singular values, how far each moved beside ‖ΔW‖₂, angles above their floor.

    Columns: those of `views.example_view`.
    """
    panels = list(dict.fromkeys(frame["panel"]))
    with style():
        fig, axes = plt.subplots(
            3, len(panels), figsize=(1.2 + 5.0 * len(panels), 9.0), sharey="row", squeeze=False
        )
        for column, panel in zip(axes.T, panels, strict=True):
            rows = frame[frame["panel"] == panel]
            _values(column[0], rows)
            _shifts(column[1], rows)
            _angles(column[2], rows)
            column[0].set_title(panel)
        for ax, title in zip(axes[:, 0], ("singular value", "|shift|", "angle (degrees)"), strict=True):
            ax.set_ylabel(title)
        methods = frame.drop_duplicates("label")
        handles = [
            Line2D([], [], color=colour(method), lw=2, label=label)
            for method, label in zip(methods["method"], methods["label"], strict=True)
        ]
        fig.legend(handles=[*handles, *_example_key()], loc="outside lower center", ncols=3)
    return fig


def _quantity(rows: pd.DataFrame, quantity: str) -> list[tuple[str, pd.DataFrame]]:
    found = rows[rows["quantity"] == quantity]
    return [(colour(str(own["method"].iloc[0])), own) for _, own in found.groupby("label", sort=False)]


def _values(ax: Axes, rows: pd.DataFrame) -> None:
    _, base = _quantity(rows, "base")[0]
    ax.plot(base["index"], base["number"], color="#000000", lw=3.5, alpha=0.25)
    for tint, own in _quantity(rows, "value"):
        ax.plot(own["index"], own["number"], color=tint, lw=1.3)
    ax.axvline(rows["k"].iloc[0] + 0.5, color="#444444", lw=0.8, ls=":")
    ax.set_xlabel("index of the singular value")


def _shifts(ax: Axes, rows: pd.DataFrame) -> None:
    for tint, own in _quantity(rows, "shift"):
        # An exact zero has no place on a logarithmic axis.
        ax.plot(own["index"], own["number"].where(own["number"] > 0), ".", color=tint, ms=5)
        if own["limit"].iloc[0] > 0:
            ax.axhline(own["limit"].iloc[0], color=tint, lw=1, ls="--")
    if (rows.loc[rows["quantity"] == "shift", "number"] > 0).any():
        ax.set_yscale("log")
    ax.set_xlabel("index of the singular value")


def _angles(ax: Axes, rows: pd.DataFrame) -> None:
    for side, look in (("left", "o-"), ("right", "s--")):
        for tint, own in _quantity(rows, side):
            ax.plot(own["index"], own["number"].where(own["number"] > 0), look, color=tint, ms=3.5, lw=1.1)
            _unresolved(ax, own[~own["resolved"].astype(bool)], tint)
    floor = rows["floor"].max()
    if np.isfinite(floor) and floor > 0:
        ax.set_yscale("log")
        ax.axhspan(0.1 * floor, floor, color="#BDBDBD", lw=0)
    ax.set_xlabel("index of the principal angle")


def _unresolved(ax: Axes, rows: pd.DataFrame, tint: str) -> None:
    """Cross out the angles that could be zero; a zero itself stands on the floor."""
    heights = rows["number"].where(rows["number"] > 0, rows["floor"])
    ax.plot(rows["index"], heights.where(heights > 0), "x", color=tint, ms=8, mew=1.6, lw=0)


def _example_key() -> list[Line2D]:
    return [
        Line2D([], [], color="#000000", lw=3.5, alpha=0.25, label="base"),
        Line2D([], [], color="#444444", lw=1, ls="--", label="‖ΔW‖₂ (middle row)"),
        Line2D([], [], color="#444444", marker="o", ms=4, lw=1.1, label="angle, left"),
        Line2D([], [], color="#444444", marker="s", ms=4, lw=1.1, ls="--", label="angle, right"),
        Line2D([], [], color="#444444", marker="x", ms=8, mew=1.6, lw=0, label="unresolved angle"),
        Line2D([], [], color="#BDBDBD", lw=5, label="numerical floor"),
    ]
