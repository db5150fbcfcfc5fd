"""One table with everything that is measured of a pair: what `threegates measure` writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from threegates.jobs.jobs import Cut, Job, Kind
from threegates.jobs.nulls import founding_nulls
from threegates.jobs.sources import StudyPair
from threegates.measures import tensor_table


def table_job(pair: StudyPair, options: dict) -> Job:
    """The job of one table with everything that is measured of a pair."""
    return next(TABLE.jobs([pair], options))


def _cut(pairs: Sequence[StudyPair], options: dict) -> Iterator[Cut]:
    """One job a pair."""
    for pair in pairs:
        yield Cut(pair.name, {"base": pair.base, "tuned": pair.tuned}, {**options, "name": pair.name})


TABLE = Kind(
    name="table",
    tables={
        "tensor": tensor_table.table_columns(founding_nulls()),
        "axis": tensor_table.axis_columns(founding_nulls()),
    },
    root="threegates.measures.tensor_table.PairTable",
    cut=_cut,
    by_tensor=tensor_table.PairTable,
    nulls=True,
    laws=True,
    spectra=True,
)
