"""What a page on chosen pairs says first: what of them is not compared, and what was made of their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from threegates.checkpoints.hub.ranged import RangedCheckpoint
from threegates.checkpoints.notes import pair_notes
from threegates.checkpoints.pairs import Status, align, check_finite
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.views import as_stored
from threegates.errors import NotFiniteError
from threegates.jobs.sanity import uncovered
from threegates.jobs.sources import StudyPair


def told_of_pairs(pairs: Iterable[StudyPair]) -> str:
    """A paragraph in Markdown, a line a pair; empty where every tensor of every pair is compared as stored.

    From headers, and of checkpoints on this machine from their values too, which have to be finite.

    Raises
    ------
    PairError : the sides of a pair have too little in common.
    """
    lines = [f"- {pair.name}: {'; '.join(told)}." for pair in pairs if (told := _of_pair(pair))]
    return "\n".join(["**What is compared.**", "", *lines]) if lines else ""


def _is_finite(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a tensor's values are finite; of one that is read by ranges none is fetched to look at it."""
    if isinstance(as_stored(checkpoint), RangedCheckpoint):
        return True
    try:
        check_finite(checkpoint, name, "side")
    except NotFiniteError:
        return False
    return True


def _of_pair(pair: StudyPair) -> list[str]:
    base, tuned = pair.base.checkpoint, pair.tuned.checkpoint
    rows = align(base, tuned)
    rest = Counter(row.status for row in rows if row.status is not Status.compared)
    compared = {row.name for row in rows if row.status is Status.compared}
    unfit = {name for name in compared if not (_is_finite(base, name) and _is_finite(tuned, name))}
    rest |= Counter({Status.not_finite: len(unfit)} if unfit else {})
    compared -= unfit
    return [
        *(f"{count} tensors are {status} and not compared" for status, count in sorted(rest.items())),
        *uncovered("base", base, compared),
        *uncovered("tuned", tuned, compared),
        *pair_notes(base, tuned),
    ]
