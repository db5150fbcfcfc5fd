"""The figures of the chapter on the KL leash; each takes frames of `leash_views` and draws them."""

from __future__ import annotations

from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullFormatter, NullLocator

from threegates.chapters.kl_leash.views import LOOSE, STEP_MEASURES, geometric, over_seeds
from threegates.figures.style import SEQUENTIAL, colour, style

_DARK, _GREY, _PALE = "#333333", "#7F7F7F", "#DDDDDD"
_MARKS = {
    "GRPO": "o",
    "DAPO": "s",
    "REINFORCE++": "^",
    "RFT": "D",
    "SFT (teacher)": "v",
    "SFT (same style)": "P",
}
_ESTIMATOR_LOOKS = {"k1": ("o", "#0072B2"), "k2": ("s", "#D55E00"), "k3": ("D", "#000000")}
_BAND = 0.18


def _line(ax: Axes, x: pd.Series, rows: pd.DataFrame, tint: Any, **look: Any) -> None:
    """Geometric means and, where there are several seeds, the band of their intervals."""
    ax.plot(x, rows["value"], color=tint, **look)
    if rows["low"].notna().any():
        ax.fill_between(x, rows["low"], rows["high"], color=tint, alpha=_BAND, lw=0)


def _reach(values: pd.Series) -> tuple[float, float]:
    """Ends of a logarithmic axis: intervals over few seeds may span decades and would hide what is drawn."""
    shown = values[values > 0]
    return float(shown.min()) / 3, float(shown.max()) * 3


def over_training(course: pd.DataFrame) -> Figure:
    """Draw KL to the base over training, one colour a method, geometric means over seeds and their intervals.

    Columns: those of `views.course_view`.
    """
    means = over_seeds(course, ["method", "updates"], "kl")
    with style():
        fig, ax = plt.subplots(figsize=(8.6, 5.0))
        for method, rows in means.groupby("method", sort=False):
            rows = rows.sort_values("updates")
            marked = rows["updates"].diff().median() > 4 or len(rows) < 3
            look = {"marker": _MARKS.get(str(method), "o") if marked else "", "ms": 6}
            _line(ax, rows["updates"], rows, colour(str(method)), label=str(method), **look)
        ax.set(
            yscale="log", xlabel="optimiser updates", ylabel="KL to the base, nats a token", xlim=(0, None)
        )
        ax.set_ylim(_reach(means["value"]))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.grid(axis="y")
        fig.legend(loc="outside lower center", ncols=5, handlelength=1.6)
    return fig


def over_norm(course: pd.DataFrame) -> Figure:
    """Draw KL over ‖ΔW‖ at every evaluation, one line a run; dotted: KL in proportion to ‖ΔW‖².

    Columns: those of `views.norm_view`.
    """
    with style():
        fig, ax = plt.subplots(figsize=(8.6, 5.4))
        for (method, _), run in course.groupby(["method", "run"], sort=False):
            tint, marker = colour(str(method)), _MARKS.get(str(method), "o")
            ax.plot(run["delta_norm"], run["kl"], color=tint, marker=marker, ms=6, lw=1.3, alpha=0.85)
        ax.set(xscale="log", yscale="log")
        _squares(ax, course)
        ax.set(xlabel="‖ΔW‖ over all parameters", ylabel="KL to the base, nats a token")
        _plain_numbers(ax)
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.grid()
        methods = list(dict.fromkeys(course["method"]))
        handles = [Line2D([], [], color=colour(m), marker=_MARKS.get(m, "o"), label=m) for m in methods]
        handles.append(Line2D([], [], color=_GREY, ls=":", lw=1.4, label="KL ∝ ‖ΔW‖²"))
        fig.legend(handles=handles, loc="outside lower center", ncols=3)
    return fig


def _squares(ax: Axes, course: pd.DataFrame) -> None:
    """Lines of slope two, one each through the mean end of RL and of every other method at its own rate."""
    low, high = course["delta_norm"].min() / 1.3, course["delta_norm"].max() * 1.3
    kl = course["kl"].min() / 2, course["kl"].max() * 2
    group = course["method"].where(course["kind"] != "rl", "RL")
    of_own_rate = course[course["rate"] != "mask"]
    for _, own in of_own_rate.groupby(group, sort=False):
        last = own.groupby("run").tail(1)
        norm, level = geometric(last["delta_norm"])["value"], geometric(last["kl"])["value"]
        ends = np.array([low, high])
        ax.plot(ends, level * (ends / norm) ** 2, color=_GREY, ls=":", lw=1.1, zorder=0)
    ax.set(xlim=(low, high), ylim=kl)


def _plain_numbers(ax: Axes) -> None:
    """Norms as 0.5, 1, 2 rather than as powers of ten."""
    low, high = ax.get_xlim()
    marks = [m * 10.0**e for e in range(-4, 4) for m in (1, 2, 5)]
    ax.xaxis.set_major_locator(FixedLocator([mark for mark in marks if low <= mark <= high]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def terms(course: pd.DataFrame, ratios: pd.DataFrame, within: tuple[float, float]) -> Figure:
    """Draw KL of GRPO over training by its KL term, and at the end KL without a term over that with one.

    Columns: those of `views.term_view` and `views.term_ratios`. `within`: the rule's band.
    """
    names = list(dict.fromkeys(course["term"]))
    shades = matplotlib.colormaps[SEQUENTIAL](np.linspace(0.0, 0.85, len(names)))
    tints = dict(zip(names, shades, strict=True))
    with style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.6), gridspec_kw={"width_ratios": [1.5, 1]})
        for name in names:
            rows = over_seeds(course[course["term"] == name], ["updates"], "kl").sort_values("updates")
            dash = (0, (4, 1.5)) if name == "no KL term" else "-"
            _line(left, rows["updates"], rows, tints[name], ls=dash, label=name)
        left.set(
            yscale="log", xlabel="optimiser updates", ylabel="KL to the base, nats a token", xlim=(0, None)
        )
        left.set_title("GRPO over training")
        left.set_ylim(_reach(course["kl"]))
        left.yaxis.set_minor_formatter(NullFormatter())
        left.grid(axis="y")
        left.legend(loc="lower right")
        _term_ratios(right, ratios, tints, within)
    return fig


def _term_ratios(ax: Axes, ratios: pd.DataFrame, tints: dict[str, Any], within: tuple[float, float]) -> None:
    names = list(dict.fromkeys(ratios["term"]))
    ax.axvspan(*within, color=_PALE, alpha=0.6, lw=0)
    ax.axvline(1, color=_DARK, lw=1)
    for y, name in enumerate(names):
        own = ratios[ratios["term"] == name]
        found = geometric(own["ratio"])
        ax.plot(own["ratio"], [y] * len(own), "o", color=tints[name], ms=5, alpha=0.5, lw=0)
        ax.plot([found["low"], found["high"]], [y, y], color=tints[name], lw=2.5)
        ax.plot([found["value"]], [y], "D", color=tints[name], ms=8, mec="white")
    ax.set(xscale="log", ylim=(len(names) - 0.4, -0.6), xlabel="KL without a term / with it")
    marks = [0.25, 0.5, 1, 2, 4, 8, 16]
    spread = [*ratios["ratio"].dropna(), *within]
    shown = [m for m in marks if min(spread) / 1.5 <= m <= max(spread) * 1.5]
    ax.xaxis.set_major_locator(FixedLocator(shown))
    ax.xaxis.set_major_formatter(FixedFormatter([f"{mark:g}" for mark in shown]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(min(spread) / 1.5, max(spread) * 1.5)
    ax.set_yticks(
        range(len(names)), [name.replace(", ", ",\n").replace("as the ", "as the\n") for name in names]
    )
    ax.set_title("At the end (shaded: rule)")
    ax.tick_params(axis="y", length=0)


def one_step(view: pd.DataFrame) -> Figure:
    """Draw the KL of single steps below their bound over training, a panel an algorithm; below, the slack.

    Columns: those of `views.step_view`.
    """
    methods = list(dict.fromkeys(view["method"]))
    with style():
        fig, axes = plt.subplots(
            *(2, len(methods)),
            figsize=(2.4 + 2.9 * len(methods), 5.8),
            sharex=True,
            sharey="row",
            squeeze=False,
            gridspec_kw={"height_ratios": [1.6, 1]},
        )
        for number, method in enumerate(methods):
            _step_column(axes[0, number], axes[1, number], view[view["method"] == method], method)
        axes[0, 0].set(ylabel="KL, nats", ylim=_reach(view["value"]))
        axes[1, 0].set_ylabel("bound / step")
        fig.legend(handles=_step_key(), loc="outside lower center", ncols=2)
    return fig


_STEP_DASHES = dict(zip(STEP_MEASURES, ("-", (0, (4, 1.5)), "-"), strict=True))


def _step_column(top: Axes, bottom: Axes, rows: pd.DataFrame, method: str) -> None:
    of = {
        column: rows[rows["measure"] == name].sort_values("updates").set_index("updates")
        for column, name in STEP_MEASURES.items()
    }
    for column, own in of.items():
        bound = column == "tilt_kl"
        tint, width = (_DARK, 2.6) if bound else (colour(method), 1.6)
        _line(top, own.index.to_series(), own, tint, ls=_STEP_DASHES[column], lw=width)
        if not bound:
            ratio = of["tilt_kl"]["value"] / own["value"]
            bottom.plot(ratio.index, ratio, color=tint, ls=_STEP_DASHES[column], lw=1.6)
    bottom.axhline(1, color=_DARK, lw=1.2)
    bottom.axhspan(LOOSE, 1e9, color=_PALE, alpha=0.45, lw=0)
    top.set(yscale="log", title=method, xlim=(0, None))
    ratios = [of["tilt_kl"]["value"] / of[column]["value"] for column in ("step_kl", "step_kl_response")]
    bottom.set(
        yscale="log", xlabel="optimiser updates", ylim=(0.5, 3 * max(LOOSE, *(r.max() for r in ratios)))
    )
    for ax in (top, bottom):
        ax.grid(axis="y")


def _step_key() -> list[Line2D | Patch]:
    lines: list[Line2D | Patch] = [
        Line2D([], [], color=_DARK if column == "tilt_kl" else _GREY, ls=_STEP_DASHES[column], label=name)
        for column, name in STEP_MEASURES.items()
    ]
    return [*lines, Patch(color=_PALE, alpha=0.6, label=f"bound loose by {LOOSE:g} times or more")]


def fisher_bound(view: pd.DataFrame) -> Figure:
    """Draw the norm of every step over its Fisher bound; what lies below the diagonal holds.

    Columns: those of `views.bound_view`.
    """
    whole = float(view["weights_norm"].max())
    low, high = view["step_norm"].min() / 2, 4 * max(view["bound"].max(), whole, view["step_norm"].max())
    with style():
        fig, ax = plt.subplots(figsize=(8.0, 5.0))
        ax.axvspan(whole, high, color=_PALE, alpha=0.6, lw=0)
        ax.text(whole * 1.08, low * 1.15, "bound > ‖W‖:\nvacuous", fontsize=10, color=_DARK, va="bottom")
        ax.plot([low, high], [low, high], color=_DARK, lw=1.2)
        for method, rows in view.groupby("method", sort=False):
            look: dict[str, Any] = {
                "marker": _MARKS.get(str(method), "o"),
                "ms": 5,
                "lw": 0,
                "alpha": 0.55,
                "mew": 0,
            }
            ax.plot(rows["bound"], rows["step_norm"], color=colour(str(method)), label=str(method), **look)
        top = max(view["step_norm"].max() * 12, low * 100)
        ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, min(high, top)))
        ax.text(
            0.02, 0.95, "above the line: broken", transform=ax.transAxes, va="top", fontsize=10, color=_DARK
        )
        ax.set(xlabel="bound √(2K/μ) in the directions that were seen", ylabel="norm of the step")
        ax.grid()
        fig.legend(loc="outside lower center", ncols=3)
    return fig


def estimators(view: pd.DataFrame) -> Figure:
    """Draw KL at the end by k1, k2 and k3, a row a method, one small mark a run and a large one their mean.

    Columns: those of `views.estimator_view`; values that are not positive are left out.
    """
    methods = list(dict.fromkeys(view["method"]))
    with style():
        fig, ax = plt.subplots(figsize=(8.0, 1.7 + 0.62 * len(methods)))
        for y, method in enumerate(methods):
            for number, (name, (marker, tint)) in enumerate(_ESTIMATOR_LOOKS.items()):
                own = view[(view["method"] == method) & (view["estimator"] == name) & (view["kl"] > 0)]
                height = y + 0.2 * (number - 1)
                found = geometric(own["kl"])
                ax.plot(own["kl"], [height] * len(own), marker, color=tint, ms=4, alpha=0.45, lw=0)
                ax.plot([found["low"], found["high"]], [height] * 2, color=tint, lw=1.8)
                ax.plot([found["value"]], [height], marker, color=tint, ms=8, mec="white")
        ax.set(
            xscale="log", ylim=(len(methods) - 0.4, -0.6), xlabel="KL to the base at the end, nats a token"
        )
        ax.set_yticks(range(len(methods)), methods)
        ax.tick_params(axis="y", length=0)
        ax.set_xlim(_reach(view["kl"]))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.grid(axis="x")
        handles = [
            Line2D([], [], marker=marker, color=tint, ms=8, mec="white", lw=1.8, label=name)
            for name, (marker, tint) in _ESTIMATOR_LOOKS.items()
        ]
        fig.legend(handles=handles, loc="outside lower center", ncols=3)
    return fig
