"""The numbers that claims are judged by: each a named function from tables to an estimate with an interval.

A name here is the name that a rule or a control in claims.yaml gives. Nothing here reads a file.
"""

from __future__ import annotations

from threegates.errors import ClaimError
from threegates.study.estimates import (
    adapters,
    computed,
    curvature,
    drift,
    leash,
    lens,
    masks,
    nulls,
    overlap,
    published,
    rates,
    rotation,
    sparsity,
    stripes,
)
from threegates.study.estimates.intervals import Estimate
from threegates.study.estimates.rows import Estimator, Tables

ESTIMATES: dict[str, Estimator] = {
    **sparsity.ESTIMATES,
    **stripes.ESTIMATES,
    **drift.ESTIMATES,
    **overlap.ESTIMATES,
    **lens.ESTIMATES,
    **nulls.ESTIMATES,
    **rotation.ESTIMATES,
    **curvature.ESTIMATES,
    **masks.ESTIMATES,
    **adapters.ESTIMATES,
    **leash.ESTIMATES,
    **rates.ESTIMATES,
    **published.ESTIMATES,
    **computed.ESTIMATES,
}
#: Those that read no table: no record can change them.
EXACT = frozenset(computed.ESTIMATES)


def estimate(name: str, tables: Tables, confidence: float = 0.95) -> Estimate:
    """Compute the estimate of that name.

    Raises
    ------
    ClaimError : there is no estimate of that name.
    """
    if name not in ESTIMATES:
        raise ClaimError("there is no such estimate", expected=", ".join(sorted(ESTIMATES)), found=name)
    return ESTIMATES[name](tables, confidence)
