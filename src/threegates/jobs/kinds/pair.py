"""What training changed in one pair, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from threegates.jobs.jobs import Cut, Kind
from threegates.jobs.sources import StudyPair
from threegates.measures import changes


def _cut(pairs: Sequence[StudyPair], options: dict) -> Iterator[Cut]:
    """One job a pair; nothing of its tables is drawn."""
    for pair in pairs:
        sources = {"base": pair.base, "tuned": pair.tuned}
        yield Cut(pair.name, sources, {"name": pair.name})


PAIR = Kind(
    name="pair",
    tables={"tensor": changes.TENSOR_COLUMNS, "tensor_sweep": changes.TENSOR_SWEEP_COLUMNS},
    root="threegates.measures.changes.PairTensors",
    cut=_cut,
    by_tensor=changes.PairTensors,
)
