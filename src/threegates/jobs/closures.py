"""Which code decides the numbers of each kind of record and of run: where its digests start and stop.

The names are the present ones; `scripts/rekey_release.py` asks every tree of this package for its own.
"""

from __future__ import annotations

from threegates.boundaries import FILES
from threegates.definitions import Reach
from threegates.digest import value_digest
from threegates.lab import runs
from threegates.lab.trainers import TRAINERS

_MEASURES: dict[str, str] = {
    "pair": "threegates.measures.changes.PairTensors",
    "group": "threegates.measures.agreement.measure_agreement",
    "run": "threegates.measures.emergence.measure_emergence",
    "drift": "threegates.measures.drift.PairDrift",
    "overlap": "threegates.measures.overlap.PairOverlap",
    "lens": "threegates.measures.lens.measure_lens",
    "curvature": "threegates.measures.curvature.measure_curvature",
    "rotation": "threegates.measures.rotation.measure_rotation",
    "frame": "threegates.measures.rotation.measure_frame",
    "fisher": "threegates.measures.fisher.measure_fisher",
    "table": "threegates.measures.tensor_table.PairTable",
}
# What is kept of a base on disk is what would be computed again; what computes it is inside.
_OUTSIDE = ("threegates.measures.base_cache", "threegates.records.store")
_INSIDE = ("threegates.measures.base_cache.decompose_base",)
#: The code that decides the numbers of each kind of record.
RECORDS: dict[str, Reach] = {
    kind: Reach((root,), (*FILES.outside, *_OUTSIDE), (*FILES.inside, *_INSIDE))
    for kind, root in _MEASURES.items()
}


def roots() -> dict[str, dict[str, Reach]]:
    """The same of every kind of record and of every kind of run."""
    return {"record": dict(RECORDS), "run": {kind: runs.reach(kind) for kind in TRAINERS}}


def record_digest(kind: str, inputs: object, code: str, versions: dict[str, str]) -> str:
    """The digest of a record: what it is of, what it was made from, by which code and with which packages."""
    return value_digest({"kind": kind, "inputs": inputs, "code": code, "versions": versions})
