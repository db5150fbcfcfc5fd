"""How far one pair's spectrum and singular subspaces moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from threegates.jobs.jobs import Cut, Kind
from threegates.jobs.kinds.norm_partners import cut_beside_partners
from threegates.jobs.sources import StudyPair
from threegates.measures import drift


def _cut(pairs: Sequence[StudyPair], options: dict) -> Iterator[Cut]:
    """One job a pair; its noise is drawn a fixed number of times, so that of the options the seed is left."""
    return cut_beside_partners(pairs, {"seed": options["seed"]})


DRIFT = Kind(
    name="drift",
    tables={
        "drift": drift.DRIFT_COLUMNS,
        "spectrum": drift.SPECTRUM_COLUMNS,
        "drift_sweep": drift.SWEEP_COLUMNS,
    },
    root="threegates.measures.drift.PairDrift",
    cut=_cut,
    by_tensor=drift.PairDrift,
    spectra=True,
)
