"""The figures of the precision lens; each takes frames of `lens_views` and draws them."""

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
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator, PercentFormatter

from threegates.chapters.precision_lens.views import SHARES, SIDES, middle
from threegates.figures.style import SEQUENTIAL, colour, style
from threegates.measures.lens import PER_OCTAVE, RANGES

_SIDE_MARKS = {"away from zero": ("#0072B2", "^"), "towards zero": ("#D55E00", "v")}
_PARTS = {"linear": "#0072B2", "embedding and head": "#E69F00", "other": "#009E73"}
_PART_NAMES = {"linear": "linear", "embedding and head": "embedding and head", "other": "norms and others"}
_DARK, _GREY = "#333333", "#7F7F7F"
#: Left end of the bin that holds every larger displacement too.
_LAST_RATIO = 2.0 ** (RANGES["ratio"][1] - 1 / PER_OCTAVE)
_COURSES = {"delta_norm": "‖ΔW‖ of the master", "kl": "KL to the base", "pass_at_1": "pass@1, held out"}
_SHARE_LOOKS = {
    "moved": ("#000000", "-", "o"),
    "changed": ("#0072B2", "-", "o"),
    "noise_changed": (_GREY, "", "^"),
    "aligned_path": ("#009E73", "--", "s"),
    "single_step": ("#D55E00", "--", "v"),
}


def _octaves(ax: Axes, low: float, high: float, every: int = 2) -> None:
    """A logarithmic axis marked in powers of two."""
    ax.set_xscale("log", base=2)
    first, last = np.ceil(np.log2(low) - 1e-9), np.floor(np.log2(high) + 1e-9)
    ax.set_xlim(low, high)
    ax.xaxis.set_major_locator(
        FixedLocator([2.0**e for e in range(int(first), int(last) + 1) if e % every == 0])
    )
    ax.xaxis.set_minor_locator(NullLocator())


def ulp_over_weights(gaps: pd.DataFrame, weights: pd.DataFrame) -> Figure:
    """Draw the half gap over |w| for every bf16 value, above the sizes of the base's weights.

    Columns: those of `views.gap_view` and `views.weight_view`.
    """
    low, high = gaps["weight"].min(), gaps["weight"].max()
    with style():
        fig, (top, bottom) = plt.subplots(
            2, 1, figsize=(8.6, 6.0), sharex=True, gridspec_kw={"height_ratios": [1, 1.05]}
        )
        for edge, name in ((2.0**-9, "$2^{-9}$"), (2.0**-8, "$2^{-8}$")):
            top.axhline(edge, color=_GREY, lw=0.9, ls=":")
            top.text(1.005, edge, name, transform=top.get_yaxis_transform(), va="center", fontsize=10.5)
        for side, rows in gaps.groupby("side", sort=False):
            powers = rows[np.log2(rows["weight"]) % 1 == 0]
            if side == "away from zero":
                top.plot(rows["weight"], rows["relative"], color=_DARK, lw=1.2, zorder=1)
            tint, marker = _SIDE_MARKS[str(side)]
            name = f"power of two, {side}"
            top.plot(
                powers["weight"], powers["relative"], marker, color=tint, ms=6, mec="white", lw=0, label=name
            )
        top.set(ylim=(0, 1.18 * 2.0**-8), ylabel="half gap / |w|", title="How far a stored weight must move")
        top.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
        top.legend(loc="lower left", ncols=2)
        _weight_steps(bottom, weights, low, high)
        _octaves(bottom, low, high)
    return fig


def _weight_steps(ax: Axes, weights: pd.DataFrame, low: float, high: float) -> None:
    for part, rows in weights.groupby("part", sort=False):
        own = rows.sort_values("weight")
        tint, width = _PARTS[str(part)], 2 ** (1 / 4)
        look: dict[str, Any] = {
            "align": "edge",
            "color": tint,
            "alpha": 0.55,
            "lw": 0,
            "label": _PART_NAMES[str(part)],
        }
        ax.bar(own["weight"], own["share"], width=own["weight"] * (width - 1), **look)
    below = weights[weights["weight"] < low].groupby("part")["share"].sum().max()
    ax.set(xlabel="size of a weight |w|", ylabel="share of weights", title="Where the base's weights are")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.legend(
        loc="upper left", title="per quarter octave, of each kind", title_fontsize=9.5, alignment="left"
    )
    if pd.notna(below) and below > 0:
        ax.text(
            0.01,
            0.03,
            f"smaller: at most {below:.1%} of a kind",
            transform=ax.transAxes,
            fontsize=9,
            color=_DARK,
        )


def first_steps(first: pd.DataFrame, ratio: pd.DataFrame, weights: pd.DataFrame, rate: float) -> Figure:
    """Draw the first visible step over |w|, and below it how much a float32 master deviates from exact sums.

    Columns: those of `views.first_step_view`, `float32_over_exact` and `weight_view`.
    """
    low, high = first["weight"].min(), 2 * 2.0 ** np.floor(np.log2(first["weight"].max()))
    band = middle(weights)
    with style():
        fig, (top, bottom) = plt.subplots(
            2, 1, figsize=(8.6, 6.4), sharex=True, gridspec_kw={"height_ratios": [1.7, 1]}
        )
        for ax in (top, bottom):
            ax.axvspan(max(band[0], low), min(band[1], high), color="#0072B2", alpha=0.08, lw=0)
            ax.grid(axis="y")
        for master, rows in first.groupby("master", sort=False):
            exact = master == "float64"
            _up_and_down(top, rows, "step", _DARK if exact else "#D55E00", 3.2 if exact else 1.3, marks=exact)
        top.set(
            yscale="log", ylabel="first visible step", title=f"AdamW, every step the same way, lr {rate:.0e}"
        )
        _up_and_down(bottom, ratio, "ratio", "#D55E00", 1.6, marks=True)
        bottom.axhline(1, color=_DARK, lw=1)
        bottom.set(xlabel="size of the weight |w|", ylabel="float32 / exact")
        bottom.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.2f}"))
        _octaves(bottom, low, high, every=1)
        fig.legend(handles=_first_key(), loc="outside lower center", ncols=4, fontsize=9.5)
    return fig


def _up_and_down(ax: Axes, rows: pd.DataFrame, column: str, tint: str, width: float, marks: bool) -> None:
    """A line for paths away from zero; towards zero differs at powers of two alone, which have a mark."""
    up, down = (rows[rows["side"] == side] for side in SIDES)
    ax.plot(up["weight"], up[column], color=tint, lw=width, drawstyle="steps-post")
    powers = down[np.log2(down["weight"]) % 1 == 0]
    if marks:
        ax.plot(powers["weight"], powers[column], "v", color="#0072B2", ms=6.5, mec="white", lw=0, zorder=4)


def _first_key() -> list[Line2D | Patch]:
    return [
        Line2D([], [], color=_DARK, lw=3.2, label="exact master"),
        Line2D([], [], color="#D55E00", lw=1.5, label="float32 master"),
        Line2D([], [], color="#0072B2", marker="v", ms=7, lw=0, label="power of two, towards zero"),
        Patch(color="#0072B2", alpha=0.12, label="90 % of the base's linear weights"),
    ]


def displacement(frame: pd.DataFrame) -> Figure:
    """Draw how far weights have moved in half gaps at every checkpoint; right of one they show.

    Columns: those of `views.ratio_view`; one curve a number of updates, or a pair where they are named.
    The last bin holds all weights that moved farther, and is a mark of its own.
    """
    with style():
        fig, ax = plt.subplots(figsize=(8.6, 4.4))
        for name, tint, rows in _checkpoints(frame):
            _displaced(ax, rows.sort_values("ratio"), name, tint)
        if (frame["ratio"] >= _LAST_RATIO).any():
            ax.plot([], [], ">", color=_DARK, ms=7, label="all that moved farther")
        ax.axvline(1, color=_DARK, lw=1.2)
        top = ax.get_ylim()[1]
        ax.text(0.93, 0.99 * top, "hidden ", ha="right", va="top", fontsize=10.5, color=_DARK)
        ax.text(1.08, 0.99 * top, " stored", ha="left", va="top", fontsize=10.5, color=_DARK)
        low, high = _drawn_range(frame)
        _octaves(ax, low, high)
        ax.xaxis.set_major_formatter(FuncFormatter(_in_gaps))
        ax.set(
            xlabel="displacement |ΔW| in units of the half gap",
            ylabel="share of weights per quarter octave",
            ylim=(0, top),
        )
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        if "pair" in frame:
            fig.legend(loc="outside lower center", ncols=2)
        else:
            ax.legend(loc="upper left")
    return fig


def _displaced(ax: Axes, rows: pd.DataFrame, name: str, tint: Any) -> None:
    """One curve, shaded where storage shows it."""
    visible, last = rows["shown"].sum(), rows["ratio"] >= _LAST_RATIO
    centre, share = rows["ratio"] * 2 ** (1 / 8), rows["share"]
    ax.plot(centre[~last], share[~last], color=tint, lw=2.2, label=f"{name}: {visible:.0%} visible")
    ax.plot(centre[last], share[last], ">", color=tint, ms=7)
    if (end := centre[~last].max()) > 1:
        right = np.geomspace(1, end, 200)
        height = np.interp(np.log(right), np.log(centre[~last]), share[~last])
        ax.fill_between(right, height, color=tint, alpha=0.13, lw=0)


def _checkpoints(frame: pd.DataFrame) -> list[tuple[str, Any, pd.DataFrame]]:
    """Name, colour and rows of every curve: checkpoints along training, or the pairs that a reader chose."""
    if "pair" in frame:
        return [(str(pair), colour(str(pair)), rows) for pair, rows in frame.groupby("pair", sort=False)]
    steps = sorted(frame["updates"].dropna().unique())
    if not steps:
        return [("tuned", matplotlib.colormaps[SEQUENTIAL](0.88), frame)]
    tints = matplotlib.colormaps[SEQUENTIAL](np.linspace(0.88, 0.0, len(steps)))
    return [
        (f"{int(step)} updates", tint, frame[frame["updates"] == step])
        for step, tint in zip(steps, tints, strict=True)
    ]


def _drawn_range(frame: pd.DataFrame) -> tuple[float, float]:
    """Whole octaves that hold all but one weight in a thousand on either side."""
    tails = frame.groupby("ratio")["share"].sum().sort_index()
    tails = tails.cumsum() / tails.sum()
    inside = tails.index[(tails > 1e-3) & (tails.shift(fill_value=0) < 1 - 1e-3)]
    return 2.0 ** np.floor(np.log2(inside.min())), max(2.0 ** np.ceil(np.log2(inside.max()) + 0.3), 4.0)


def _in_gaps(value: float, _: object) -> str:
    return f"{value:g}" if value >= 1 else f"1/{round(1 / value)}"


def over_training(path: pd.DataFrame, hidden: pd.DataFrame) -> Figure:
    """Draw what moved, what shows and what could, and how much of the update storage hides, over training.

    Columns: those of `views.path_view` and `views.hidden_view`.
    """
    with style():
        fig, axes = plt.subplots(1, 3, figsize=(11.8, 4.6), gridspec_kw={"width_ratios": [1.25, 1, 1]})
        for column, name in SHARES.items():
            tint, line, marker = _SHARE_LOOKS[column]
            rows = path[path["measure"] == name]
            _runs(axes[0], rows, "share", tint, line, marker, name)
        _runs(axes[1], hidden, "number", "#0072B2", "-", "o", "of the weights that moved")
        _runs(axes[1], hidden, "energy", "#D55E00", "-", "D", "of ‖ΔW‖²")
        _runs(axes[1], hidden, "noise_energy", _GREY, "", "^", "of ‖ΔW‖², noise of equal norm")
        _runs(
            axes[2],
            hidden.dropna(subset="later"),
            "later",
            "#0072B2",
            "-",
            "o",
            "hidden now, visible at the end",
        )
        _runs(axes[2], hidden, "cosine", "#009E73", "-", "s", "cosine of stored and float32 ΔW")
        titles = ("Share of weights", "Share hidden", "Fate and direction")
        for ax, title in zip(axes, titles, strict=True):
            ax.set(title=title, xlabel="optimiser updates", ylim=(-0.02, 1.05), xlim=(0, None))
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
            ax.grid(axis="y")
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), fontsize=9.5, handlelength=1.8)
        axes[2].yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.1f}"))
    return fig


def _runs(ax: Axes, rows: pd.DataFrame, column: str, tint: str, line: str, marker: str, name: str) -> None:
    """One mark a run and checkpoint, and a line through their means; nothing of what nobody knows."""
    if rows.empty:
        return
    means = rows.groupby("updates")[column].mean()
    if line:
        ax.plot(means.index, means, ls=line, color=tint, lw=1.6)
    ax.plot(rows["updates"], rows[column], marker, color=tint, ms=4.5, mew=0, lw=0, alpha=0.75)
    ax.plot([], [], ls=line or "none", marker=marker, color=tint, ms=5, lw=1.6, label=name)


def changed_by_size(frame: pd.DataFrame, rate: float | None) -> Figure:
    """Draw the share of weights that changed by their size, with and without float32 masters.

    Columns: those of `views.size_view`. `rate`: learning rate whose single update the band shows.
    """
    # A share of few weights is noise; but of a model of few weights there is nothing else.
    enough = frame["count"] >= 50
    shown = frame[enough] if enough.any() else frame
    with style():
        fig, ax = plt.subplots(figsize=(8.6, 4.4))
        for _, rows in shown.groupby("group", sort=False):
            _size_line(ax, rows.sort_values("weight"))
        low, high = shown["weight"].min(), 2 * shown["weight"].max()
        if rate is not None:
            # In [2^e, 2^(e+1)) half a gap is 2^(e−8), so one update reaches it up to the end of an octave.
            reach = 2.0 ** (np.floor(np.log2(rate) + 8) + 1)
            name = f"from here up one update of {rate:.0e} is below half a gap"
            ax.axvline(reach, color=_DARK, lw=1.2, ls=":", label=name)
        _octaves(ax, max(low, 2.0**-16), high)
        ax.set(
            xlabel="size of the weight in the base |w|",
            ylabel="share that changed in bf16",
            ylim=(-0.02, 1.03),
        )
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.grid(axis="y")
        fig.legend(loc="outside lower center", ncols=2)
    return fig


def _size_line(ax: Axes, rows: pd.DataFrame) -> None:
    pure, own_rate = rows["master"].iloc[0] == "bfloat16", rows["rate"].iloc[0] == "own"
    tint, centre = colour(str(rows["method"].iloc[0])), rows["weight"] * 2 ** (1 / 8)
    look: dict[str, Any] = {
        "ls": (0, (4, 1.5)) if pure else "-",
        "mfc": "white" if pure else tint,
        "alpha": 0.45 if own_rate else 1,
    }
    ax.plot(
        centre,
        rows["share"],
        marker="s" if own_rate else "o",
        color=tint,
        lw=1.8,
        ms=4,
        label=rows["group"].iloc[0],
        **look,
    )


def masters_compared(last: pd.DataFrame, course: pd.DataFrame) -> Figure:
    """Draw sparsity at the end, and norm, KL and pass@1 over training, with and without float32 masters.

    Columns: those of `views.ends` and `views.course_view`.
    """
    groups = list(dict.fromkeys(last["group"]))
    with style():
        fig = plt.figure(figsize=(11.4, 5.4))
        grid = fig.add_gridspec(2, 3, height_ratios=[0.35 + 0.17 * len(groups), 1])
        _sparsity_rows(fig.add_subplot(grid[0, :]), last, groups)
        for number, (column, title) in enumerate(_COURSES.items()):
            ax = fig.add_subplot(grid[1, number])
            _course(ax, course, column)
            ax.set(title=title, xlabel="optimiser updates", xlim=(0, 1.04 * course["updates"].max()))
        fig.legend(handles=_master_key(course), loc="outside lower center", ncols=5)
    return fig


def _course(ax: Axes, course: pd.DataFrame, column: str) -> None:
    for _, rows in course.groupby("run", sort=False):
        pure, tint = rows["master"].iloc[0] == "bfloat16", colour(str(rows["method"].iloc[0]))
        look: dict[str, Any] = {"ls": (0, (4, 1.5)) if pure else "-", "mfc": "white" if pure else None}
        # A divergence of zero has no place on a logarithmic axis.
        values = rows[column].where(rows[column] > 0)
        ax.plot(rows["updates"], values, marker="o", ms=3.5, lw=1.4, color=tint, **look)
    if column == "pass_at_1":
        ax.set_ylim(0, None)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        ax.set_yscale("log")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="y")


def _sparsity_rows(ax: Axes, last: pd.DataFrame, groups: list[str]) -> None:
    for y, group in enumerate(groups):
        rows = last[last["group"] == group]
        tint = colour(str(rows["method"].iloc[0]))
        face = "white" if rows["master"].iloc[0] == "bfloat16" else tint
        ax.plot(rows["sparsity"], [y] * len(rows), "o", mec=tint, mfc=face, ms=8, mew=1.6, lw=0, alpha=0.9)
        bound = 1 - rows["reachable"].mean()
        ax.plot([bound], [y], "|", color="#000000", ms=13, mew=2)
    ax.set(xlim=(-0.02, 1.02), ylim=(len(groups) - 0.5, -0.5), title="Share of weights unchanged in bf16")
    ax.set_yticks(range(len(groups)), groups)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.grid(axis="x")


def _master_key(course: pd.DataFrame) -> list[Line2D]:
    methods = dict.fromkeys(course["method"])
    lines = [Line2D([], [], color=colour(str(name)), lw=2, label=str(name)) for name in methods]
    plain: dict[str, Any] = {"color": _DARK, "marker": "o", "ms": 5}
    return [
        *lines,
        Line2D([], [], lw=1.4, label="float32 masters", **plain),
        Line2D([], [], lw=1.4, ls=(0, (4, 1.5)), mfc="white", label="pure bf16", **plain),
        Line2D([], [], lw=0, marker="|", ms=12, mew=2, color="#000000", label="beyond one update's reach"),
    ]
