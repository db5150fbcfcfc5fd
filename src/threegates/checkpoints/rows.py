"""Some rows of a tensor of any kind of checkpoint."""

from __future__ import annotations

from torch import Tensor

from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import CheckpointError


def rows_of(checkpoint: Checkpoint, name: str, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` - 1 of a tensor as stored, of any kind of checkpoint.

    A checkpoint with a `stored_rows` of its own reads no more than these; a local file is mapped, and its
    bytes are read as they are used. Rows are along the first axis.

    Raises
    ------
    CheckpointError : there is no such tensor, it has no such rows, or it cannot be read.
    """
    info = checkpoint.info(name)
    if not info.shape or not 0 <= start <= stop <= info.shape[0]:
        raise CheckpointError(
            f"tensor '{name}' has no rows {start} to {stop}",
            where=f"{info.file}, tensor '{name}'",
            expected=f"rows from 0 to {info.shape[0]}" if info.shape else "a tensor with rows",
            found=f"{start} to {stop} of shape {list(info.shape)}",
            remedy="ask for rows inside the tensor's shape, which is in Checkpoint.infos",
        )
    own = getattr(checkpoint, "stored_rows", None)
    return own(name, start, stop) if own is not None else checkpoint.stored(name)[start:stop]
