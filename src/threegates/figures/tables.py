"""Tables as a page shows them."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import pandas as pd


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
