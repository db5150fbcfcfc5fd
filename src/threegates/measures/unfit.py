"""Rows of a tensor whose values cannot be compared, which only measuring finds out."""

from __future__ import annotations

from threegates.checkpoints.pairs import Status
from threegates.errors import NotFiniteError
from threegates.measures.by_tensor import ByTensor, Rows, Shared
from threegates.measures.changes import PairTensors
from threegates.measures.tensor_table import PairTable


def rows_or_status(pair: ByTensor, tensor: str, shared: Shared) -> Rows:
    """A tensor's rows; of one with values that are not finite, the row that says so, where a table has one.

    One such tensor costs no other its numbers.
    """
    try:
        return pair.rows(tensor, shared)
    except NotFiniteError as error:
        return _status(pair, tensor, error)


def _status(pair: ByTensor, tensor: str, error: NotFiniteError) -> Rows:
    nothing: Rows = {table: [] for table in pair.tables}
    if not isinstance(pair, PairTable | PairTensors):
        return nothing
    row = pair.facts(tensor) | {"status": str(Status.not_finite)}
    if isinstance(pair, PairTable):
        side = "base" if " of the base " in error.what else "tuned"
        row |= {"spectra": f"not compared: of {error.expected} in the {side}, {error.found}"}
    return nothing | {"tensor": [row]}
