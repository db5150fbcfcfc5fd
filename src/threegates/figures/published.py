"""Figures with alt text, caption and data, as files beside a page."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from threegates.atomic import atomic_path
from threegates.environment import variable
from threegates.errors import NotebookError
from threegates.figures.style import style

# The page that is being made, where it is not the notebook's own: the first part of its figures' names.
PAGE_VARIABLE = "THREEGATES_PAGE"


_NAME = re.compile(r"[a-z0-9-]+/[a-z0-9-]+")


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
        # The second keeps the layout of the first: to find one takes half of the time of drawing.
        fig.set_layout_engine("none")
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
    page = variable(PAGE_VARIABLE)
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
