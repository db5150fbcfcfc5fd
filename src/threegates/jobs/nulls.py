"""Which nulls a job has: jobs know them by name, and what measures is handed the nulls themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from threegates.geometry import nulls
from threegates.geometry.laws import masks
from threegates.geometry.nulls.null import Null
from threegates.geometry.nulls.table import nulls_named

#: A job's own unless others are asked for: the claims name them, and released records hold them. A null that
#: joins the table later is measured where somebody asks for it, so that it changes no job that exists.
FOUNDING = ("bernoulli", "storage_density", "storage_norm", "magnitude")


def asked_for(names: Sequence[str] | None = None) -> list[str]:
    """Names of nulls as jobs have them: once each, in the table's order; the founding ones without any.

    Raises
    ------
    GeometryError : there is no null of such a name.
    """
    return [null.name for null in nulls_named(names or FOUNDING)]


def founding_nulls() -> tuple[Null, ...]:
    """Nulls whose columns every table of nulls has where it is read."""
    return nulls_named(FOUNDING)


def with_nulls(arguments: dict) -> dict:
    """Arguments of a job with the nulls in place of their names, where it has any."""
    named = {key: nulls_named(value) for key, value in arguments.items() if key == "nulls"}
    return {**arguments, **named}


def laws(names: Iterable[str]) -> tuple[str, ...]:
    """Dotted names of the laws of nulls, for jobs that compute them; nothing of a null that has none."""
    named = {id(law): name for name, law in vars(masks).items() if isinstance(law, masks.MaskLaw)}
    found = [null.law for null in nulls_named(names) if null.law]
    return tuple(f"{masks.__name__}.{named[id(law)]}" for law in found)


def samplers(names: Iterable[str]) -> tuple[str, ...]:
    """Dotted names of the samplers of nulls: all of a null's module that decides numbers."""
    return tuple(f"{nulls.__name__}.{name}.masks" for name in names)
