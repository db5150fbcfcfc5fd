"""How a verdict stands when the choices are made otherwise that the paper leaves open: k, α and η.

A cell is one value of each choice. Its tables are the sweep's rows there, in the columns of the headline
tables, so that the very estimates, rules and controls of a claim judge it. Cells share runs and weights: they
are not independent tests, and their number is not evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import product

import pandas as pd

from threegates.estimates.rows import MissingRecordError, Tables
from threegates.estimates.verdict_frame import are_rules
from threegates.geometry.precision import ETA
from threegates.geometry.principal import HEADLINE_ALPHA, headline_rank
from threegates.judging.claims import Claim, judge
from threegates.judging.verdicts import VERDICTS
from threegates.register import SWEEPS

#: Sweeps over η alone, which leave out the paper's own η: there the headline table stands.
_COARSE = ("tensor", "axis", "agreement", "emergence")
#: The choices of the headline, fixed before any number was seen; ranks are in units of the headline rank.
HEADLINE = {"k": 1.0, "alpha": HEADLINE_ALPHA, "eta": ETA}
#: Columns of a frame of cells, with their types.
COLUMNS = {
    "claim": "str",
    "k": "float64",
    "alpha": "float64",
    "eta": "float64",
    "headline": "bool",
    "value": "float64",
    "low": "float64",
    "high": "float64",
    "scale": "str",
    "verdict": "str",
}


@dataclass(frozen=True)
class Cell:
    """One value of each choice, NaN-free: None where a choice plays no part. k is over the headline rank."""

    k: float | None = None
    alpha: float | None = None
    eta: float | None = None


@dataclass(frozen=True)
class CellTables:
    """The study's tables as one cell has them."""

    chosen: Callable[[str, Cell], pd.DataFrame]
    cell: Cell

    def table(self, name: str) -> pd.DataFrame:
        """The rows that belong to the cell; of a table without a sweep, all of them."""
        return self.chosen(name, self.cell)


@dataclass(frozen=True)
class _Asked:
    """Tables that remember which of them were asked for."""

    tables: Tables
    names: list[str] = field(default_factory=list)

    def table(self, name: str) -> pd.DataFrame:
        """As the tables have it."""
        self.names.append(name)
        return self.tables.table(name)


def cells(claims: Iterable[Claim], tables: Tables, confidence: float) -> pd.DataFrame:
    """Every claim that leaves a choice open, judged in every cell of its sweeps.

    Returns
    -------
    one row a claim and cell: claim; k over the headline rank, alpha, eta, NaN where it plays no part;
    headline, whether the cell is the claim's own; value, low, high, scale; verdict. Empty without sweeps.
    """
    sweep = _sweeps(tables)
    chosen = _chosen(tables, sweep)
    rows = [row for claim in claims for row in _rows(claim, tables, sweep, chosen, confidence)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def counted(verdicts: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """The verdict table with `cells`, how many were judged, and `cells_same`, in how many the verdict stands.

    Both are zero beside controls, and where nothing was swept.
    """
    if verdicts.empty:
        return verdicts.assign(cells=0, cells_same=0)
    rule = are_rules(verdicts)
    own = found["claim"].map(verdicts[rule].set_index("claim")["verdict"])
    same = (found["verdict"] == own).groupby(found["claim"]).agg(["size", "sum"])
    counts = {
        name: verdicts["claim"].map(same[of]).where(rule).fillna(0).astype(int)
        for name, of in (("cells", "size"), ("cells_same", "sum"))
    }
    return verdicts.assign(**counts)


def _sweeps(tables: Tables) -> Callable[[str], pd.DataFrame]:
    """Sweeps by the name of their headline table, each read once, ranks over the headline's."""

    @cache
    def sweep(name: str) -> pd.DataFrame:
        rows = tables.table(SWEEPS[name])
        if "smaller_side" not in rows:
            return rows
        headline = {side: headline_rank((side, side)) for side in rows["smaller_side"].unique().tolist()}
        return rows.assign(k=rows["k"] / rows["smaller_side"].map(headline))

    return sweep


def _chosen(tables: Tables, sweep: Callable[[str], pd.DataFrame]) -> Callable[[str, Cell], pd.DataFrame]:
    """Rows of a table in a cell, each found once."""

    @cache
    def chosen(name: str, cell: Cell) -> pd.DataFrame:
        if name not in SWEEPS or (name in _COARSE and cell.eta in (None, ETA)):
            return tables.table(name)
        rows = sweep(name)
        for choice in ("k", "alpha", "eta"):
            value = getattr(cell, choice)
            value = HEADLINE[choice] if value is None else value
            # The mask of the largest float32 changes depends on no tolerance: its rows have none, and stay.
            rows = rows[(rows[choice] == value) | rows[choice].isna()] if choice in rows else rows
        return rows

    return chosen


def _rows(
    claim: Claim,
    tables: Tables,
    sweep: Callable[[str], pd.DataFrame],
    chosen: Callable[[str, Cell], pd.DataFrame],
    confidence: float,
) -> Iterator[dict]:
    if claim.awaits or not claim.free:
        return
    asked = _Asked(tables)
    if VERDICTS[judge(claim, asked, "", confidence).judgement].open:
        # There is nothing that could stand in cells.
        return
    own = _headline(claim)
    try:
        grid = list(_grid(claim, {name for name in asked.names if name in SWEEPS}, sweep))
    except MissingRecordError:
        # Without the sweep's records the headline stands alone.
        return
    for cell in grid:
        verdict = judge(claim, CellTables(chosen, cell), "", confidence)
        found = verdict.estimate
        place = {"claim": claim.id, "k": cell.k, "alpha": cell.alpha, "eta": cell.eta}
        numbers = {"value": found.value, "low": found.low, "high": found.high, "scale": found.scale}
        yield {**place, "headline": cell == own, **numbers, "verdict": str(verdict.judgement)}


def _headline(claim: Claim) -> Cell:
    return Cell(*(HEADLINE[choice] if choice in claim.free else None for choice in ("k", "alpha", "eta")))


def _grid(claim: Claim, swept: set[str], sweep: Callable[[str], pd.DataFrame]) -> Iterator[Cell]:
    """Every combination of the values that the sweeps have for the claim's choices."""
    values: dict[str, list] = {"k": [None], "alpha": [None], "eta": [None]}
    for choice in claim.free:
        found = {value for name in swept for value in _values(sweep(name), choice, name in _COARSE)}
        values[choice] = sorted(found) or [None]
    yield from (Cell(*chosen) for chosen in product(*values.values()))


def _values(rows: pd.DataFrame, choice: str, coarse: bool) -> set[float]:
    found = {float(value) for value in rows[choice].dropna()} if choice in rows else set()
    return found | ({ETA} if coarse and choice == "eta" and found else set())
