"""Errors that say what is wrong, where, what was expected, what was found, and what to do next."""

from __future__ import annotations

import re


class ThreeGatesError(Exception):
    """An error a user can act on.

    Parameters
    ----------
    what : one sentence that names the problem.
    where : file, tensor, cell or key.
    expected, found : the rule and what broke it.
    remedy : what to do next.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        remedy: str | None = None,
    ) -> None:
        self.what, self.where, self.expected, self.found, self.remedy = what, where, expected, found, remedy
        super().__init__(what)

    def __str__(self) -> str:
        labelled = (
            ("where", self.where),
            ("expected", self.expected),
            ("found", self.found),
            ("what to do", self.remedy),
        )
        lines = [f"  {label}: {value}" for label, value in labelled if value is not None]
        return "\n".join([self.what, *lines])

    def __reduce__(self) -> tuple:
        # The default drops keyword arguments, and errors must survive the way back from worker processes.
        return _rebuild, (type(self), self.what, self.where, self.expected, self.found, self.remedy)


def _rebuild(
    kind: type[ThreeGatesError], what: str, where: object, expected: object, found: object, remedy: str | None
) -> ThreeGatesError:
    return kind(what, where=where, expected=expected, found=found, remedy=remedy)


class ManifestError(ThreeGatesError):
    """data_manifest.yaml, or a manifest written by the lab, breaks its schema."""


class CheckpointError(ThreeGatesError):
    """A checkpoint's files are missing, damaged, unsafe or not of a kind we read."""


class PairError(ThreeGatesError):
    """Two checkpoints cannot be compared."""


class NotFiniteError(PairError):
    """A tensor of a pair holds values that are not finite, as stored or in bfloat16."""

    @property
    def tensor(self) -> str | None:
        """Its name, if `where` says it as errors about tensors do."""
        found = re.search(r"tensor '(.*)'$", str(self.where), re.DOTALL)
        return found[1] if found else None


class GeometryError(ThreeGatesError):
    """Tensors break the precondition of a geometric quantity."""


class RecipeError(ThreeGatesError):
    """A training recipe or profile is impossible."""


class RecordError(ThreeGatesError):
    """A record is missing, damaged or of another schema."""


class ClaimError(ThreeGatesError):
    """claims.yaml breaks its schema, or names an estimate that does not exist."""


class NotebookError(ThreeGatesError):
    """A notebook got parameters it does not have, or a cell failed."""


class NoDrawsError(ThreeGatesError):
    """A number of draws was asked for, of nulls whose laws are computed."""


def refuse_draws(draws: object, where: str, it: str = "it") -> None:
    """Refuse a number of draws under nulls, which nothing takes any more; None is no number.

    Parameters
    ----------
    where : the number was given. it : what has to be left out, as it was typed.

    Raises
    ------
    NoDrawsError : there is a number.
    """
    if draws is None:
        return
    raise NoDrawsError(
        "nulls take no number of draws any more: their laws are computed",
        where=where,
        found=draws,
        remedy=f"leave {it} out; columns keep their names, but for _log10_p in place of _p",
    )
