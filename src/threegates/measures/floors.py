"""What rounding to codes of few bits alone makes of a difference: the floor below which nothing can be told.

A weight that was stored as a code lies within half a gap of where it was, the gap being how far the values of
neighbouring codes lie apart there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from threegates.checkpoints.coded import ERRORS, GAPS, reading
from threegates.checkpoints.pairs import row_ranges
from threegates.checkpoints.rows import rows_of
from threegates.checkpoints.tensors import Checkpoint

#: Empty where neither side is stored as codes.
FLOOR_COLUMNS = {"norm_floor": "float64", "changed_beyond": "Int64"}
# Scales are rounded too, to float16 in GGUF: that moves a value by so much of itself, and of the offset that
# is added to it, which is at most 16 gaps.
_OF_VALUE, _OF_GAP = 2.0**-11, 0.5 + 2.0**-5


@dataclass(frozen=True)
class Floor:
    """norm : see `floor_of`. beyond : entries that moved further than rounding explains."""

    norm: float
    beyond: int


def floor_numbers(base: Checkpoint, tuned: Checkpoint, tensor: str) -> dict:
    """The columns of a tensor; nothing where neither side is stored as codes."""
    found = floor_of(base, tuned, tensor)
    return {} if found is None else {"norm_floor": found.norm, "changed_beyond": found.beyond}


def floor_of(base: Checkpoint, tuned: Checkpoint, tensor: str) -> Floor | None:
    """What of a tensor's difference rounding to codes explains; None where neither side rounds it.

    norm² is the sum of the mean squares of what may have been rounded to each code (`coded.ERRORS`: g² / 12
    for values that are uniform within a gap g), over all entries and both sides. An entry moved beyond
    rounding if |ΔW| > (g_base + g_tuned) / 2, and by more than the rounding of scales adds. Clipped entries
    are beyond, as are some where scales are below the normal numbers of float16.

    **Source** Widrow, Kollár and Liu (1996), *Statistical theory of quantization*, section III, for g² / 12.
    """
    sides = (base, tuned)
    rounded = [bool((codes := side.info(tensor).codes) and codes.rounds) for side in sides]
    if not any(rounded):
        return None
    squares, beyond = [], 0
    for rows in row_ranges(base.info(tensor).shape):
        values = [rows_of(side, tensor, *rows).float() for side in sides]
        gaps = [
            _read(side, GAPS, tensor, rows) if one else None for side, one in zip(sides, rounded, strict=True)
        ]
        for side, one in zip(sides, rounded, strict=True):
            squares += [float(_read(side, ERRORS, tensor, rows).double().square().sum())] if one else []
        beyond += _beyond(values, gaps)
    return Floor(math.sqrt(math.fsum(squares)), beyond)


def _read(side: Checkpoint, what: str, tensor: str, rows: tuple[int, int]) -> Tensor:
    return rows_of(reading(side, what), tensor, *rows)


def _beyond(values: list[Tensor], gaps: list[Tensor | None]) -> int:
    """Entries that moved further than half a gap on either side, and what the rounding of scales adds."""
    moved = (values[1] - values[0]).abs()
    for value, gap in zip(values, gaps, strict=True):
        if gap is not None:
            moved -= _OF_GAP * gap + _OF_VALUE * value.abs()
    return int((moved > 0).count_nonzero())
