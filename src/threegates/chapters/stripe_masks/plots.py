"""The figures of the first chapters: each function takes a tidy frame and gives a figure.

No function reads a file or computes a result; what is drawn is in the frame. Frames are named by their
columns in each docstring. Ratios lie in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D

from threegates.figures.names import ROLES
from threegates.figures.nulls import shown_nulls
from threegates.figures.ratio_axes import name_ratios
from threegates.figures.style import DIVERGING, PAPER, SEQUENTIAL, heatmap, style
from threegates.geometry.nulls.null import Null
from threegates.geometry.nulls.table import NULLS


def consensus_maps(frame: pd.DataFrame, head_size: int | None = None) -> Figure:
    """Draw consensus maps with their row and column ratios, one column a matrix, one line a kind of map.

    Columns: role, kind ("observed" or the name of a null), consensus (2-D array: share of runs that changed
    the entry, or its mean over a square of `block` × `block` entries where there is such a column: long
    matrices have larger ones than short ones). Head borders are dashed on the rows of Q, K and V and on the
    columns of O.
    """
    blocks = dict(zip(frame["role"], frame["block"], strict=True)) if "block" in frame else {}
    roles = [r for r in ROLES if r in set(frame["role"])]
    kinds = list(dict.fromkeys(frame["kind"]))
    maps = {(r, k): np.asarray(a) for r, k, a in frame[["role", "kind", "consensus"]].itertuples(index=False)}
    widths = [1.0 if maps[r, kinds[0]].shape[1] < 256 else 1.5 for r in roles]
    with style():
        fig = plt.figure(figsize=(1.0 + 2.05 * sum(widths), 0.5 + 2.9 * len(kinds)))
        grid = fig.add_gridspec(
            2 * len(kinds),
            2 * len(roles) + 1,
            width_ratios=[x for w in widths for x in (4 * w, 0.9)] + [0.22],
            height_ratios=[0.9, 4] * len(kinds),
        )
        for line, kind in enumerate(kinds):
            for i, role in enumerate(roles):
                body = fig.add_subplot(grid[2 * line + 1, 2 * i])
                top = fig.add_subplot(grid[2 * line, 2 * i], sharex=body)
                side = fig.add_subplot(grid[2 * line + 1, 2 * i + 1], sharey=body)
                image = _map_with_margins(body, top, side, maps[role, kind])
                block, shape = int(blocks.get(role, 1)), maps[role, kind].shape
                _head_borders(body, role, head_size and head_size / block, shape)
                told = f"\nmeans of {block} × {block}" if block > 1 else ""
                top.set_title(f"{ROLES[role]}  {_by(shape)}{told}", fontsize=10.5)
                if i == 0:
                    body.set_ylabel(_kind_title(kind), fontsize=11, weight="bold")
        fig.colorbar(image, cax=fig.add_subplot(grid[1::2, -1]), label="share of runs that changed the entry")
    return fig


def _by(shape: tuple[int, ...]) -> str:
    """Write a shape as people say it."""
    return " × ".join(map(str, shape))


def _kind_title(kind: str) -> str:
    """Name a line of maps."""
    return "observed" if kind == "observed" else NULLS[kind].title


def _map_with_margins(body: Axes, top: Axes, side: Axes, consensus: np.ndarray) -> AxesImage:
    """Draw one map, its column ratios above and its row ratios to the right."""
    image = body.imshow(consensus, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    columns, rows = consensus.mean(axis=0), consensus.mean(axis=1)
    top.fill_between(np.arange(len(columns)), columns, step="mid", color="#4D4D4D", lw=0)
    side.fill_betweenx(np.arange(len(rows)), rows, step="mid", color="#4D4D4D", lw=0)
    top.set(ylim=(0, 1), yticks=[0, 1])
    side.set(xlim=(0, 1), xticks=[0, 1])
    for ax in (body, top, side):
        ax.tick_params(labelsize=8, length=2)
    top.tick_params(labelbottom=False, bottom=False)
    side.tick_params(labelleft=False, left=False)
    body.set(xticks=[], yticks=[])
    return image


def _head_borders(ax: Axes, role: str, head_size: float | None, shape: tuple[int, ...]) -> None:
    """Dash the borders of attention heads: rows of Q, K and V, columns of O."""
    if not head_size or role not in ("q", "k", "v", "o"):
        return
    draw, size = (ax.axvline, shape[1]) if role == "o" else (ax.axhline, shape[0])
    for border in np.arange(head_size, size - 1e-6, head_size):
        draw(border - 0.5, color="#FF6B3D", lw=1.1, ls=(0, (4, 3)))


def stripes_against_nulls(frame: pd.DataFrame) -> Figure:
    """Draw how far row and column ratios spread in each matrix type, beside what the nulls give.

    Columns: role, axis ("row" or "column"), dispersion, and for each null to be drawn ``<null>_mean``.
    """
    roles, nulls = [r for r in ROLES if r in set(frame["role"])], shown_nulls(frame)
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(9.6, 1.3 + 0.42 * len(roles)), sharex=True, sharey=True)
        for ax, axis in zip(axes, ("row", "column"), strict=True):
            rows = frame[frame["axis"] == axis].set_index("role")
            for y, role in enumerate(roles):
                for null in nulls:
                    wide = {"ms": 11, "mew": 2} if null.marker == "|" else {"ms": 5.5, "mew": 0}
                    mean = rows.loc[role, f"{null.name}_mean"]
                    ax.plot([mean], [y], null.marker, color=null.colour, **wide)
                ax.plot([rows.loc[role, "dispersion"]], [y], "o", color="#0072B2", ms=8, mec="white")
            ax.set_title(f"{axis} ratios")
        name_ratios(axes, roles, "variance, in units of the binomial one")
        fig.legend(handles=_jaccard_key(nulls, "observed"), loc="outside lower center", ncols=3)
    return fig


def jaccard_heatmap(frame: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Draw the Jaccard index of every pair of runs, and beside it its excess over the Bernoulli value.

    Columns: run_a, run_b (labels, every ordered pair or one triangle), jaccard, bernoulli.
    `colours` gives the colour of each run's method and the order of the runs.
    """
    runs = list(colours)
    with style():
        side = 0.6 * len(runs)
        fig, axes = plt.subplots(1, 2, figsize=(2 * side + 2.6, side + 1.6), sharey=True)
        value = _symmetric(frame, "jaccard", runs)
        excess = value - _symmetric(frame, "bernoulli", runs)
        limit = max(0.05, float(np.nanmax(np.abs(excess))))
        for ax, cells, title, options in (
            (axes[0], value, "Jaccard", {"cmap": SEQUENTIAL, "vmin": 0, "vmax": 1}),
            (axes[1], excess, "minus Bernoulli", {"cmap": DIVERGING, "vmin": -limit, "vmax": limit}),
        ):
            heatmap(ax, cells, annot=True, fmt=".2f", square=True, annot_kws={"size": 9}, **options)
            ax.set(title=title, xlabel="", ylabel="")
            _tint_ticks(ax, colours)
    return fig


def _symmetric(frame: pd.DataFrame, column: str, runs: list[str]) -> pd.DataFrame:
    """Spread pairs over a square; the diagonal stays empty."""
    swapped = frame.rename(columns={"run_a": "run_b", "run_b": "run_a"})
    both = pd.concat([frame, swapped])[["run_a", "run_b", column]].drop_duplicates(["run_a", "run_b"])
    square = both.pivot(index="run_a", columns="run_b", values=column).reindex(index=runs, columns=runs)
    return square.mask(np.eye(len(runs), dtype=bool))


def _tint_ticks(ax: Axes, colours: dict[str, str]) -> None:
    """Write each run's name in its method's colour."""
    ax.tick_params(axis="x", rotation=40, length=0, labelsize=9.5)
    ax.tick_params(axis="y", rotation=0, length=0, labelsize=9.5)
    plt.setp(ax.get_xticklabels(), ha="right", rotation_mode="anchor")
    for text in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        text.set_color(colours.get(text.get_text(), "#000000"))


def jaccard_against_nulls(frame: pd.DataFrame) -> Figure:
    """Draw the mean Jaccard of each matrix type beside its baselines.

    Columns: group (a panel, such as "RL runs"), role, jaccard, jaccard_low, jaccard_high, and for each null
    to be drawn its mean, with `_low` and `_high` where it has them; of the paper paper_jaccard and
    paper_bernoulli, where it prints them.
    """
    groups, nulls = list(dict.fromkeys(frame["group"])), shown_nulls(frame, "{}")
    with style():
        fig, axes = plt.subplots(
            1, len(groups), figsize=(1.6 + 4.0 * len(groups), 4.6), sharey=True, squeeze=False
        )
        for ax, group in zip(axes[0], groups, strict=True):
            rows = frame[frame["group"] == group]
            roles = [r for r in ROLES if r in set(rows["role"])]
            for y, role in enumerate(roles):
                _jaccard_row(ax, y, rows[rows["role"] == role].iloc[0], nulls)
            ax.set(ylim=(len(roles) - 0.4, -0.6), xlabel="Jaccard index", title=group)
            ax.set_yticks(range(len(roles)), [ROLES[r] for r in roles])
            ax.grid(axis="x")
        key = _jaccard_key(nulls)
        if "paper_jaccard" in frame and frame["paper_jaccard"].notna().any():
            key += [Line2D([], [], **look, label=label) for look, label in _PAPERS.values()]
        fig.legend(handles=key, loc="outside lower center", ncols=3, handletextpad=0.4)
    return fig


#: What the paper prints of a matrix type, as it is drawn.
_PAPERS = {
    "paper_jaccard": (PAPER, "the paper, Table 2"),
    "paper_bernoulli": (PAPER | {"marker": "d", "ms": 6}, "the paper's Bernoulli"),
}


def _jaccard_row(ax: Axes, y: int, row: pd.Series, nulls: Sequence[Null]) -> None:
    """Draw the observed value and its baselines, each on a line of its own within the row."""
    for null, down in zip(nulls, np.linspace(0.3, -0.05, len(nulls)), strict=True):
        ends = [row.get(f"{null.name}_{end}", np.nan) for end in ("low", "high")]
        ax.plot(ends, [y + down] * 2, color=null.colour, lw=2)
        wide = {"ms": 11, "mew": 2} if null.marker == "|" else {"ms": 5.5, "mew": 0}
        ax.plot([row[null.name]], [y + down], null.marker, color=null.colour, **wide)
    ax.plot([row["jaccard_low"], row["jaccard_high"]], [y - 0.25] * 2, color="#0072B2", lw=2.5)
    ax.plot([row["jaccard"]], [y - 0.25], "o", color="#0072B2", ms=8, mec="white")
    for column, (look, _) in _PAPERS.items():
        ax.plot([row.get(column, np.nan)], [y - 0.42], **look)


def _jaccard_key(nulls: Sequence[Null], observed: str = "observed (range of runs)") -> list[Line2D]:
    """Explain the marks of what is observed and of each null."""
    dot = Line2D([], [], marker="o", color="#0072B2", mec="white", ms=8, lw=2.5, label=observed)
    return [dot, *map(_null_handle, nulls)]


def _null_handle(null: Null) -> Line2D:
    size = 11 if null.marker == "|" else 5.5
    return Line2D([], [], marker=null.marker, color=null.colour, ms=size, mew=2, lw=0, label=null.title)


def rate_correlations(frame: pd.DataFrame, colours: dict[str, str]) -> Figure:
    """Draw Spearman correlations of row and column ratios between runs.

    Columns: run_a, run_b, axis ("row" or "column"), spearman. `colours` as for `jaccard_heatmap`.
    """
    runs = list(colours)
    with style():
        cell = 0.5 if len(runs) < 7 else 0.38
        side = cell * len(runs)
        fig, axes = plt.subplots(1, 2, figsize=(2 * side + 2.6, side + 1.6), sharey=True)
        for ax, axis in zip(axes, ("row", "column"), strict=True):
            cells = _symmetric(frame[frame["axis"] == axis], "spearman", runs)
            heatmap(
                ax, cells, annot=True, fmt=".2f", square=True, annot_kws={"size": 17 * cell},
                cmap=DIVERGING, vmin=-1, vmax=1,
            )  # fmt: skip
            ax.set(title=f"{axis} ratios", xlabel="", ylabel="")
            _tint_ticks(ax, colours)
    return fig
