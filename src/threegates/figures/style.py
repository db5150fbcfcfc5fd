"""One style for every figure, and the one way a figure reaches a page.

A colour belongs to a method, never to a position in a plot, so that GRPO is the same blue in every
chapter. Colours are Okabe and Ito's, which stay apart under the common colour-vision deficiencies;
nulls are grey, with a marker of their own each, as `threegates.geometry.nulls.table` has them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.ticker import MaxNLocator

#: Colour of each training method (Okabe and Ito 2008).
METHOD_COLOURS: dict[str, str] = {
    "SFT (teacher)": "#D55E00",
    # The encoder's SFT has the part that the teacher's has in the lab; no page shows both.
    "SFT (cross-entropy)": "#D55E00",
    "SFT (same style)": "#E69F00",
    "RFT": "#009E73",
    "GRPO": "#0072B2",
    "DAPO": "#56B4E9",
    "REINFORCE++": "#CC79A7",
    "pre-training": "#000000",
}
#: Look of numbers that the paper prints, which are of other models: hollow, beside ours.
PAPER: dict[str, Any] = {"marker": "*", "ms": 9, "mfc": "white", "mec": "#882255", "mew": 1.2, "lw": 0}
#: Colour maps: one-sided quantities, and quantities with a meaningful zero.
SEQUENTIAL, DIVERGING = "cividis", "vlag"

#: Colours of pairs that stand beside each other, in their order (Okabe and Ito 2008, then Tol 2021).
PAIR_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#332288", "#882255", "#999933", "#117733"),
)
# Colours of the pairs that this page shows one by one; a kernel makes one page.
_PAIRS: dict[str, str] = {}

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 2.0,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
    # Letters become outlines: a page must look the same where no font of ours is installed.
    "svg.fonttype": "path",
}


@contextmanager
def style() -> Iterator[None]:
    """Apply the study's look to the figures made inside the block."""
    with sns.axes_style("ticks"), matplotlib.rc_context(_STYLE):
        yield


def colour(method: str) -> str:
    """Give the colour of a method, or of a pair that this page shows by itself; black for any other."""
    return _PAIRS.get(method, METHOD_COLOURS.get(method, "#000000"))


def pair_colours(pairs: Iterable[str]) -> dict[str, str]:
    """Give each pair a colour of its own, in the order they first come in; beyond ten, even in hue."""
    names = list(dict.fromkeys(map(str, pairs)))
    more = sns.color_palette("husl", max(0, len(names) - len(PAIR_COLOURS))).as_hex()
    return dict(zip(names, [*PAIR_COLOURS, *more], strict=False))


def one_colour_each(table: pd.DataFrame, chosen: object = True, name: str = "pair") -> pd.DataFrame:
    """Give the table of pairs that a reader has chosen, each pair as a method of its own with its own colour.

    Then `algorithm` is the pair's name, and neither seeds nor rates put pairs together any more; a column
    `alone` says so. `colour` knows the pairs from then on.

    Parameters
    ----------
    table : rows with a column of names.
    chosen : what the reader has chosen; where that is empty, the table stays as it is.
    name : the column that names what has a colour of its own: pairs, or runs where several pairs are one.
    """
    if not chosen:
        return table
    _PAIRS.update(pair_colours([*_PAIRS, *table[name]]))
    return table.assign(algorithm=table[name], seed=np.nan, rate=np.nan, alone=True)


def log_ticks(low: float, high: float) -> list[float]:
    """Numbers that name a logarithmic axis between two values, three at least and few enough to stand apart.

    Powers of ten with twice and five times them; those alone over two and a half decades and more; even steps
    where these are fewer than three.
    """
    parts = (1, 2, 5) if high / low < 300 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [part * 10.0**decade for decade in decades for part in parts]
    inside = [tick for tick in ticks if low <= tick <= high]
    even = [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    return inside if len(inside) >= 3 else even


def heatmap(ax: Axes, cells: pd.DataFrame, **options: Any) -> None:
    """Draw seaborn's heat map without a bar of colours; options are seaborn's.

    seaborn draws the whole figure after each, only to see whether labels overlap: with many panels that takes
    most of a page's time, and so it gets a canvas that draws nothing.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    canvas = figure.canvas
    FigureCanvasBase(figure)
    try:
        sns.heatmap(cells, ax=ax, cbar=False, **options)
    finally:
        figure.set_canvas(canvas)
