"""All nulls. What lists nulls goes through this table; what measures is handed the nulls that it draws."""

from __future__ import annotations

from collections.abc import Iterable

from threegates.errors import GeometryError
from threegates.geometry.nulls import bernoulli, magnitude, storage_density, storage_norm
from threegates.geometry.nulls.null import Null

#: Every null by its name, in the order of tables and figures: the paper's own baseline first.
NULLS: dict[str, Null] = {
    null.name: null
    for null in (
        bernoulli.NULL,
        storage_density.NULL,
        storage_norm.NULL,
        magnitude.NULL,
    )
}


def nulls_named(names: Iterable[str]) -> tuple[Null, ...]:
    """The nulls of these names, once each, in the table's order.

    Raises
    ------
    GeometryError : there is no null of such a name.
    """
    asked = set(names)
    if unknown := sorted(asked - set(NULLS)):
        raise GeometryError("there is no such null", expected=", ".join(NULLS), found=", ".join(unknown))
    return tuple(null for name, null in NULLS.items() if name in asked)
