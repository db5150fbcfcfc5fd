"""Whether a finished table looks like what its reader takes it for: sentences, from the table alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import pandas as pd

from threegates.checkpoints.preflight import stored_tensors
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.views import as_stored
from threegates.measures.tensor_table import MEASURED

#: Spectra that moved at most this many times as far as those of the other matrices count as unmoved.
_AS_CLOSE = 3.0
#: Shift of singular values below which they are the same, where there is no other matrix to compare with.
_SAME = 1e-6
#: Between these, as multiples of the norm of rounding, a difference is what rounding makes it: that is a sum
#: over very many entries, and spreads little.
_LESS, _AS_LARGE = 0.9, 1.05


def sanity(tensor: pd.DataFrame) -> list[str]:
    """What is odd about a pair: nothing is compared or changed, or matrices share nothing."""
    compared = tensor[(tensor["status"] == "compared") & (tensor["size"] > 0)]
    if compared.empty:
        return ["no weight is compared"]
    return [*_unchanged(compared), *_unrelated(compared)]


def floors(tensor: pd.DataFrame) -> list[str]:
    """What of the difference rounding to codes explains, where a side is stored as codes."""
    rows = tensor[tensor["norm_floor"].notna()] if "norm_floor" in tensor else tensor.head(0)
    if rows.empty:
        return []
    floor, delta, base = (math.hypot(*rows[name]) for name in ("norm_floor", "norm_delta", "norm_base"))
    size, beyond = int(rows["size"].sum()), int(rows["changed_beyond"].sum())
    return [
        f"floor: {len(rows)} tensors are read from codes, whose rounding alone gives ‖ΔW‖ / ‖W‖ = "
        f"{floor / (base or 1):.2e}; theirs is {delta / (base or 1):.2e}, {_beside(delta / (floor or 1))}",
        f"floor: {beyond} of their {size} weights moved further than rounding explains "
        f"({beyond / max(size, 1):.2%})",
    ]


def _beside(ratio: float) -> str:
    """What a difference is, so many times as long as rounding makes it."""
    if ratio < _LESS:
        return "which is less: the other side stems from these very codes, and what differs is no rounding"
    if ratio <= _AS_LARGE:
        return "which is no more: sparsity, masks, angles and overlaps of these say nothing of training"
    return "which is more: sparsity, masks, angles and overlaps of these are rounding's in part"


def coverage(tensor: pd.DataFrame, sides: Mapping[str, Checkpoint]) -> list[str]:
    """How much of what each side stores the comparison leaves out, where it leaves out anything.

    sides : the checkpoints that were compared, by what they are called.
    """
    compared = set(tensor.loc[tensor["status"] == "compared", "tensor"])
    return [told for name, one in sides.items() for told in uncovered(name, one, compared)]


def uncovered(name: str, checkpoint: Checkpoint, compared: Collection[str]) -> Iterator[str]:
    """How many of the weights that a side stores are in none of the compared tensors; nothing if all are."""
    covered = sum(info.size for info in stored_tensors(checkpoint) if info.name in compared)
    stored = sum(info.size for info in stored_tensors(as_stored(checkpoint)))
    if covered < stored:
        rest = stored - covered
        yield f"not covered: {rest} of the {stored} weights that the {name} side stores ({rest / stored:.2%})"


def _unchanged(compared: pd.DataFrame) -> Iterator[str]:
    changed, as_stored = compared["changed"].sum(), compared["changed_stored"].sum()
    if changed == 0 and as_stored == 0:
        yield (
            "nothing changed in what is compared: if the tuned model was an adapter, was it merged? Is it "
            "the right folder?"
        )
    elif changed == 0:
        yield f"nothing changed in bf16; as stored {int(as_stored)} weights did"


def _unrelated(compared: pd.DataFrame) -> Iterator[str]:
    """Matrices whose update is larger than they are: unrelated, or the same with rows in another order."""
    several = compared["shape"].map(len) > 1
    matrices = compared[several & (compared["norm_base"] > 0)]
    far = matrices["norm_delta"] > matrices["norm_base"]
    if not far.any():
        return
    found, others = matrices[far], matrices[~far]
    roles = ", ".join(dict.fromkeys(found["role"]))
    told = f"‖ΔW‖ > ‖W‖ in {len(found)} of {len(matrices)} matrices ({roles})"
    if _spectra_stay(found, others):
        yield f"{told}, whose singular values stay: their rows or columns are in another order"
    else:
        yield f"{told}: these are unrelated, or their rows or columns are in another order"


def _spectra_stay(found: pd.DataFrame, others: pd.DataFrame) -> bool:
    """Whether singular values moved no further than those of matrices that did not turn over."""
    shifts, beside = (rows.loc[rows["spectra"] == MEASURED, "nss"].dropna() for rows in (found, others))
    if shifts.empty:
        return False
    limit = _AS_CLOSE * float(beside.median()) if len(beside) else 0.0
    return float(shifts.median()) <= max(limit, _SAME)
