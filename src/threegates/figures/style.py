"""One style for every figure, and the one way a figure reaches a page.

A colour belongs to a method, never to a position in a plot, so that GRPO is the same blue in every
chapter. Colours are Okabe and Ito's, which stay apart under the common colour-vision deficiencies;
nulls are grey, with a marker of their own each.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from threegates.atomic import atomic_path
from threegates.errors import NotebookError
from threegates.pages.contents import PAGE_VARIABLE

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
#: Name, grey and marker of each null (paper's own baseline first).
NULLS: dict[str, tuple[str, str, str]] = {
    "bernoulli": ("Bernoulli (the paper's)", "#000000", "|"),
    "storage_density": ("storage 1a, equal density", "#4D4D4D", "s"),
    "storage_norm": ("storage 1b, equal norm", "#7F7F7F", "^"),
    "magnitude": ("permuted within |W₀| bins", "#A6A6A6", "D"),
}
#: Colour maps: one-sided quantities, and quantities with a meaningful zero.
SEQUENTIAL, DIVERGING = "cividis", "vlag"

#: Colours of pairs that stand beside each other, in their order (Okabe and Ito 2008, then Tol 2021).
PAIR_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#332288", "#882255", "#999933", "#117733"),
)
# Colours of the pairs that this page shows one by one; a kernel makes one page.
_PAIRS: dict[str, str] = {}

_NAME = re.compile(r"[a-z0-9-]+/[a-z0-9-]+")
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


@dataclass(frozen=True)
class Published:
    """A figure that was written to disk; what a notebook cell returns to show it.

    Jupyter shows the image through `text/html`; the book takes `text/markdown`, a MyST figure with number,
    caption and links; a terminal gets the alt text.
    """

    name: str
    alt: str
    caption: str

    @property
    def label(self) -> str:
        """Give the target for numbered references, such as `fig-emergence-ratios`."""
        return "fig-" + self.name.replace("/", "-")

    def markdown(self) -> str:
        """Write the figure as a MyST directive."""
        links = " · ".join(
            f"{{download}}`{e.upper()} <figures/{self.name}.{e}>`" for e in ("csv", "svg", "png")
        )
        return (
            f"````{{figure}} figures/{self.name}.svg\n:name: {self.label}\n:alt: {self.alt}\n:width: 100%\n"
            f":figclass: tg-figure\n\n{self.caption}\n\nDownload: {links}\n````\n"
        )

    def html(self) -> str:
        """Write the figure for Jupyter, relative to the notebook."""
        alt, caption = escape(self.alt, quote=True), escape(self.caption)
        image = f'<img src="figures/{self.name}.svg" alt="{alt}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return {"text/markdown": self.markdown(), "text/html": self.html(), "text/plain": self.alt}


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


def publish(
    fig: Figure,
    name: str,
    *,
    alt: str,
    caption: str,
    data: pd.DataFrame,
    folder: Path | str = "figures",
) -> Published:
    """Write a figure as SVG and PNG, its data as CSV, and return what shows it on the page.

    Parameters
    ----------
    fig : the figure; it is closed afterwards.
    name : "chapter/figure", in small letters, digits and hyphens; also the file names and the label. On a
        page that is not the notebook's own, the page's name stands for the chapter.
    alt : what the figure shows, for those who cannot see it. Required, one line.
    caption : MyST text under the figure, one paragraph.
    data : the numbers drawn, one row a mark.
    folder : where figures go, relative to the notebook.

    Raises
    ------
    NotebookError : the name is malformed, alt text or caption is empty, or there are no data.
    """
    _check(name, alt, caption, data)
    name = _on_page(name)
    target = Path(folder) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    _replace(target.with_suffix(".csv"), _csv(data))
    for kind in ("svg", "png"):
        _replace(target.with_suffix(f".{kind}"), _render(fig, kind, name))
    plt.close(fig)
    return Published(name, " ".join(alt.split()), " ".join(caption.split()))


def _check(name: str, alt: str, caption: str, data: pd.DataFrame) -> None:
    """Refuse a figure that a reader could not find, hear or recompute."""
    if not _NAME.fullmatch(name):
        raise NotebookError(
            "a figure's name is malformed", where=name, expected="chapter/figure, as in a URL"
        )
    for what, text in (("alt text", alt), ("caption", caption)):
        if not text.strip():
            raise NotebookError(
                f"a figure has no {what}", where=name, remedy=f"say in {what} what the figure shows"
            )
    if data.empty:
        raise NotebookError("a figure has no data", where=name, remedy="pass the frame that was drawn")


def _on_page(name: str) -> str:
    """The figure's name on the page that is being made: two pages of a notebook keep their figures apart."""
    page = os.environ.get(PAGE_VARIABLE)
    return f"{page}/{name.partition('/')[2]}" if page else name


def _render(fig: Figure, kind: str, name: str) -> bytes:
    """Draw the figure to bytes that depend on nothing but the figure."""
    metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[kind]
    buffer = io.BytesIO()
    with style(), matplotlib.rc_context({"svg.hashsalt": name}):
        fig.savefig(buffer, format=kind, metadata=metadata, facecolor="white")
    return buffer.getvalue()


def _csv(data: pd.DataFrame) -> bytes:
    """Write the data with nine significant digits, the same on every machine."""
    return data.to_csv(index=False, float_format="%.9g", lineterminator="\n").encode()


def _replace(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def table(frame: pd.DataFrame, caption: str, formats: dict[str, str] | None = None) -> ShownTable:
    """Show a frame as a table that scrolls inside itself on a narrow screen.

    Parameters
    ----------
    frame : the rows; column names become the head.
    caption : what the table shows.
    formats : format of a column's numbers, as for `str.format`; others print as they are.
    """
    return ShownTable(frame.reset_index(drop=True), caption, formats or {})


@dataclass(frozen=True)
class ShownTable:
    """A table that a notebook cell returns."""

    frame: pd.DataFrame
    caption: str
    formats: dict[str, str]

    def text(self) -> pd.DataFrame:
        """Give the cells as text, a dash where there is no value; names lose their underscores."""
        return pd.DataFrame(
            {
                c.replace("_", " "): [_cell(v, self.formats.get(c, "{}")) for v in self.frame[c]]
                for c in self.frame.columns
            }
        )

    def html(self) -> str:
        """Write the table in a container of its own, which a screen reader and a keyboard can reach."""
        body = self.text().to_html(index=False, border=0, classes="tg-table", justify="left")
        label = escape(self.caption, quote=True)
        body = body.replace(">\n  <thead>", f">\n  <caption>{escape(self.caption)}</caption>\n  <thead>", 1)
        return f'<div class="tg-scroll" role="region" aria-label="{label}" tabindex="0">\n{body}\n</div>'

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return {
            "text/html": self.html(),
            "text/plain": f"{self.caption}\n{self.text().to_string(index=False)}",
        }


def _cell(value: object, form: str) -> str:
    """Format one cell, a dash for what is missing: None, NaN or pandas' NA."""
    missing = pd.api.types.is_scalar(value) and bool(pd.isna(value))  # type: ignore[call-overload]
    return "–" if missing else form.format(value)
