"""How often one pair's changed weights are its principal or its small ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from threegates.jobs.jobs import Cut, Kind
from threegates.jobs.kinds.norm_partners import cut_beside_partners
from threegates.jobs.nulls import founding_nulls
from threegates.jobs.sources import StudyPair
from threegates.measures import overlap


def _cut(pairs: Sequence[StudyPair], options: dict) -> Iterator[Cut]:
    """One job a pair, beside its partner in norm."""
    return cut_beside_partners(pairs, {name: options[name] for name in ("seed", "nulls")})


OVERLAP = Kind(
    name="overlap",
    tables={
        "overlap": overlap.overlap_columns(founding_nulls()),
        "sweep": overlap.sweep_columns(founding_nulls()),
        "direction": overlap.DIRECTION_COLUMNS,
        "direction_sweep": overlap.DIRECTION_SWEEP_COLUMNS,
    },
    root="threegates.measures.overlap.PairOverlap",
    cut=_cut,
    by_tensor=overlap.PairOverlap,
    nulls=True,
    laws=True,
    spectra=True,
)
