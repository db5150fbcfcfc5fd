"""What bf16 hides of a run's updates, at each of its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import pandas as pd

from threegates.jobs.jobs import STEP, Cut, Kind, opened_at
from threegates.jobs.sources import StudyPair
from threegates.measures import lens


def _cut(pairs: Sequence[StudyPair], options: dict) -> Iterator[Cut]:
    """One job for every run, over those of its checkpoints that there are; one is enough."""

    def place(pair: StudyPair) -> tuple[str, float]:
        facts = pair.facts()
        return facts["run"], facts.get("step") or math.inf

    for run, members in groupby(sorted(pairs, key=place), key=lambda pair: place(pair)[0]):
        kept = list(members)
        facts = [pair.facts() for pair in kept]
        sources = {f"{STEP}{number}": pair.tuned for number, pair in enumerate(kept)}
        named = [[pair.name, fact.get("updates")] for pair, fact in zip(kept, facts, strict=True)]
        known = {"run": run, "named": named, "rate": facts[-1].get("learning_rate"), "seed": options["seed"]}
        yield Cut(run, {"base": kept[0].base, **sources}, known)


def _measure(
    places: dict[str, str], run: str, named: list[list], rate: float | None, seed: int
) -> dict[str, pd.DataFrame]:
    kept = [
        lens.Kept(name, updates, opened_at(places[f"{STEP}{number}"]))
        for number, (name, updates) in enumerate(named)
    ]
    return lens.measure_lens(opened_at(places["base"]), kept, run=run, rate=rate, seed=seed)


LENS = Kind(
    name="lens",
    tables={"lens": lens.LENS_COLUMNS, "lens_bins": lens.BINS_COLUMNS},
    root="threegates.measures.lens.measure_lens",
    cut=_cut,
    measure=_measure,
)
