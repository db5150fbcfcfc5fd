"""Which nulls a frame holds, for views that gather their columns and figures that draw them."""

from __future__ import annotations

import pandas as pd

from threegates.geometry.nulls.null import Null
from threegates.geometry.nulls.table import NULLS


def nulls_in(frame: pd.DataFrame, column: str = "{}_mean", *, uniform: bool = True) -> list[Null]:
    """Nulls that a frame has columns of, in the table's order.

    Parameters
    ----------
    column : name of the column that says so, with the null's name in the place of the braces.
    uniform : whether uniform nulls are among them; their means are known without draws.
    """
    return [
        null for name, null in NULLS.items() if column.format(name) in frame and (uniform or not null.uniform)
    ]


def shown_nulls(frame: pd.DataFrame, column: str = "{}_mean", *, uniform: bool = True) -> list[Null]:
    """Those of `nulls_in` that a frame has a value of, so that there is something to draw."""
    known = nulls_in(frame, column, uniform=uniform)
    return [null for null in known if frame[column.format(null.name)].notna().any()]
