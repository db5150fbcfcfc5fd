"""Which pairs a chapter can show, and in plain words why it cannot show others."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from threegates.checkpoints.manifests.manifest import Manifest
from threegates.errors import NotebookError, PairError, ThreeGatesError
from threegates.jobs.sources import PAPER
from threegates.register import ANY_PAIR, Shows, chapter_of

# Kinds of tensor that are no matrix of a block.
_NO_MATRICES = frozenset({"embedding", "head", "norm", "bias"})


def refuse_unsuited(
    chapter: str, parameters: Collection[str], pairs: Sequence[str], base: str | None
) -> None:
    """Refuse a choice that a chapter has no parameter for.

    Raises
    ------
    NotebookError : it takes no pairs by name, or none of one's own; says why and which chapters do.
    """
    for option, given, name in (("--pair", pairs, "pairs"), ("--base and --tuned", base, "base")):
        if given and name not in parameters:
            why = chapter_of(chapter).why_not or f"its notebook has no parameter '{name}'"
            raise NotebookError(
                f"{chapter} cannot be run with {option}: {why}",
                remedy=f"take one that shows any pair: {', '.join(ANY_PAIR)}",
            )


def refuse_without_matrices(chapter: str, kinds: Collection[str]) -> None:
    """Refuse a choice of kinds of tensor that leaves a chapter nothing to look at; an empty one takes all.

    Raises
    ------
    NotebookError : the chapter looks at matrices of blocks, and none of the kinds is one.
    """
    if chapter_of(chapter).matrices_alone and kinds and _NO_MATRICES.issuperset(kinds):
        raise NotebookError(
            f"{chapter} looks at the matrices of blocks, and none of them is among those chosen",
            expected="kinds of matrix, such as q, o, down",
            found=", ".join(kinds),
            remedy="choose others by --matrices, or take update-sparsity, which shows every kind of tensor",
        )


def refuse_foreign(chapter: str, manifest: Manifest) -> None:
    """Refuse pairs that others trained where a chapter needs what only runs of the lab have.

    Raises
    ------
    NotebookError : the pairs are of a manifest that is not the lab's; says why and which chapters show them.
    """
    known = chapter_of(chapter)
    if known.shows is Shows.runs_of_lab and manifest.profile in (None, PAPER):
        raise NotebookError(
            f"{chapter} cannot show these pairs: {known.why_not}",
            found="pairs of a manifest that the lab did not write",
            remedy=f"take a chapter that shows any pair: {', '.join(ANY_PAIR)}",
        )


def explained(chapter: str, error: ThreeGatesError) -> ThreeGatesError:
    """The error that a chapter ended with on pairs of a reader's choice, with what it cannot show."""
    known = chapter_of(chapter)
    # A cell that fails is not the choice's fault there; a pair that cannot be measured is.
    if known.shows is Shows.any_pair or (known.shows is Shows.by_name and not isinstance(error, PairError)):
        return error
    return NotebookError(
        f"{chapter} cannot show these pairs: {known.why_not}",
        found=error.what if error.found is None else f"{error.what}: {error.found}",
        remedy=f"choose all runs that it compares, or a chapter for any pair: {', '.join(ANY_PAIR)}",
    )
