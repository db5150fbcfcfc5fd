"""Curvature of the loss along one pair's update, and along noise of its norm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from threegates.jobs.jobs import Cut, Kind, opened_at
from threegates.jobs.sources import StudyPair
from threegates.measures import curvature


def _cut(pairs: Sequence[StudyPair], options: dict) -> Iterator[Cut]:
    """One job a pair; the draws of its noise are its own."""
    for pair in pairs:
        sources = {"base": pair.base, "tuned": pair.tuned}
        yield Cut(pair.name, sources, {"name": pair.name, "seed": options["seed"]})


def _measure(places: dict[str, str], name: str, seed: int) -> dict[str, pd.DataFrame]:
    base, tuned = opened_at(places["base"]), opened_at(places["tuned"])
    return curvature.measure_curvature(base, tuned, name=name, seed=seed)


CURVATURE = Kind(
    name="curvature",
    tables={"curvature": curvature.CURVATURE_COLUMNS},
    root="threegates.measures.curvature.measure_curvature",
    cut=_cut,
    measure=_measure,
)
