"""How often one pair's changed weights are its principal or its small ones."""

from __future__ import annotations

from threegates.jobs.jobs import Kind
from threegates.jobs.kinds.norm_partners import cut_beside_partners
from threegates.jobs.nulls import founding_nulls
from threegates.measures import overlap

OVERLAP = Kind(
    name="overlap",
    tables={
        "overlap": overlap.overlap_columns(founding_nulls()),
        "sweep": overlap.sweep_columns(founding_nulls()),
        "direction": overlap.DIRECTION_COLUMNS,
        "direction_sweep": overlap.DIRECTION_SWEEP_COLUMNS,
    },
    root="threegates.measures.overlap.PairOverlap",
    cut=cut_beside_partners,
    by_tensor=overlap.PairOverlap,
    nulls=True,
    laws=True,
    spectra=True,
)
