"""Where the digests of code that measures start and stop, and what a record's digest is made of."""

from __future__ import annotations

from threegates.boundaries import FILES
from threegates.definitions import Reach
from threegates.digest import value_digest

# What is kept of a base on disk is what would be computed again; what computes it is inside.
_OUTSIDE = ("threegates.measures.base_cache", "threegates.records.store")
_INSIDE = tuple(
    f"threegates.measures.base_cache.{name}" for name in ("decompose_base", "decompose_base_beside_spectrum")
)


def measuring(*roots: str) -> Reach:
    """The code that decides the numbers of what these definitions measure."""
    return Reach(roots, (*FILES.outside, *_OUTSIDE), (*FILES.inside, *_INSIDE))


def record_digest(kind: str, inputs: object, code: str, versions: dict[str, str]) -> str:
    """The digest of a record: what it is of, what it was made from, by which code and with which packages."""
    return value_digest({"kind": kind, "inputs": inputs, "code": code, "versions": versions})
