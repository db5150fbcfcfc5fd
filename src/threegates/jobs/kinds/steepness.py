"""Steepness of the loss at a base, along noise: no tuned checkpoint is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from threegates.jobs.jobs import Cut, Kind, opened_at
from threegates.jobs.sources import StudyPair
from threegates.measures import steepness


def _cut(pairs: Sequence[StudyPair], options: dict) -> Iterator[Cut]:
    """One job a base of the pairs."""
    bases = {pair.base.label: pair.base for pair in pairs}
    for name, source in bases.items():
        yield Cut(name, {"base": source}, {"name": name, "seed": options["seed"]})


def _measure(places: dict[str, str], name: str, seed: int) -> dict[str, pd.DataFrame]:
    return steepness.measure_steepness(opened_at(places["base"]), name=name, seed=seed)


STEEPNESS = Kind(
    name="steepness",
    tables={"steepness": steepness.STEEPNESS_COLUMNS},
    root="threegates.measures.steepness.measure_steepness",
    cut=_cut,
    measure=_measure,
)
