"""The Fisher matrix of a base of the lab on the data that its RL runs were trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from threegates.jobs.jobs import Cut, Kind, folder_at
from threegates.jobs.sources import StudyPair
from threegates.measures import fisher


def _cut(pairs: Sequence[StudyPair], options: dict) -> Iterator[Cut]:
    """One job for every base of the lab's RL runs and the data they were trained on."""
    bases = {
        (pair.base.label, pair.facts()["data"]): pair.base
        for pair in pairs
        if pair.facts()["method"] == "rl" and pair.tuned.run_folder is not None
    }
    for (base, data), source in bases.items():
        known = {"base": base, "data": data, "seed": options["seed"], "responses": fisher.RESPONSES}
        yield Cut(f"{base}-{data}", {"base": source}, known)


def _measure(
    places: dict[str, str], base: str, data: str, seed: int, responses: int
) -> dict[str, pd.DataFrame]:
    folder = folder_at(places["base"])
    return fisher.measure_fisher(folder, base=base, data=data, seed=seed, responses=responses)


FISHER = Kind(
    name="fisher",
    tables={"fisher": fisher.FISHER_COLUMNS},
    root="threegates.measures.fisher.measure_fisher",
    cut=_cut,
    measure=_measure,
)
