"""Stripes and agreement of the masks of runs that share base and method, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import pandas as pd

from threegates.geometry.nulls.null import Null
from threegates.jobs.jobs import Cut, Kind, opened_at
from threegates.jobs.kept import in_bf16
from threegates.jobs.nulls import founding_nulls
from threegates.jobs.sources import StudyPair
from threegates.measures import agreement

#: What the place of a run begins with, before its name.
_RUN = "run:"


def _cut(pairs: Sequence[StudyPair], options: dict) -> Iterator[Cut]:
    """One job for every block of every group of runs that share base and method."""

    def key(pair: StudyPair) -> tuple[str, str]:
        return pair.base.label, pair.facts()["method"]

    for (base, method), members in groupby(sorted(pairs, key=key), key=key):
        runs = list(members)
        sources = {"base": runs[0].base, **{_RUN + pair.name: pair.tuned for pair in runs}}
        numbers = agreement.layers(runs[0].base.checkpoint)
        for number in numbers:
            shown = number == numbers[len(numbers) // 2]
            name = f"{base}-{method}-layer{number:02d}"
            facts = {"base": base, "method": method}
            yield Cut(name, sources, {**options, "of_layer": number, "maps": shown}, facts)


def _measure(
    places: dict[str, str], of_layer: int, seed: int, nulls: Sequence[Null], maps: bool
) -> dict[str, pd.DataFrame]:
    base = opened_at(places["base"])
    tuned = {place.removeprefix(_RUN): text for place, text in places.items() if place != "base"}
    runs = {run: in_bf16(opened_at(text), base) for run, text in tuned.items()}
    return agreement.measure_agreement(base, runs, of_layer=of_layer, nulls=nulls, seed=seed, maps=maps)


GROUP = Kind(
    name="group",
    tables=agreement.columns_of(founding_nulls()),
    root="threegates.measures.agreement.measure_agreement",
    cut=_cut,
    measure=_measure,
    nulls=True,
    laws=True,
)
