"""What an adapter changes of a tensor, and what merging it into bfloat16 keeps of that and loses.

Two ways to merge are common. *once*: W₀ and ΔW are added in float32 and the sum is rounded to bfloat16, as
peft's merge does. *safe*: ΔW is rounded to bfloat16 first and then added to W₀ in bfloat16, as peft's merge
does with ``safe_merge``. Of a start that is not zero both are merged into the residual W₀ − s·B₀A₀ in
bfloat16, which is rounded as well: so the merge of an adapter that was never trained changes weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from threegates.checkpoints.adapters.adapted import AdaptedView, Made
from threegates.checkpoints.adapters.factors import SINGLE
from threegates.checkpoints.formats.roles import block, role
from threegates.checkpoints.pairs import row_ranges
from threegates.checkpoints.rounding import round_to_bf16
from threegates.checkpoints.rows import rows_of
from threegates.geometry.low_rank import singular_values_of_product
from threegates.measures.norms import squared_norm

ONCE, SAFE = "once", "safe"
WAYS = (ONCE, SAFE)
#: Singular values below this share of the largest are rounding of the factors, and count for no rank.
_ROUNDING = 1e-10

ADAPTER_COLUMNS = {
    **dict.fromkeys(("pair", "tensor", "role", "stack"), "str"),
    "layer": "Int64",
    "size": "int64",
    "adapter": "str",
    "scaling": "float64",
    "rank_at_most": "Int64",
    "rank": "Int64",
    "singular_values": "object",
    "norm_base": "float64",
    "norm_delta": "float64",
    "along_base": "float64",
    "trained": "boolean",
    **{
        f"merged_{way}_{what}": kind
        for way in WAYS
        for what, kind in (("changed", "Int64"), ("kept", "float64"), ("lost", "float64"))
    },
}


def adapter_rows(view: AdaptedView, tensor: str, pair: str) -> list[dict]:
    """The row of a tensor that an adapter has factors for, none of others.

    rank : of ΔW, singular_values : its own, both from the factors; empty of DoRA, whose scale makes ΔW full,
    and of stacks. along_base : ⟨ΔW, W₀⟩/‖ΔW‖². trained : whether ΔW is more than the rounding of its start.
    merged_…_changed : weights that differ from the base's in bf16 after merging; kept : ⟨D, ΔW⟩/‖ΔW‖² of what
    merging changes, D; lost : ‖D − ΔW‖/‖ΔW‖. Both are 1 and 0 for a merge that loses nothing.
    """
    piece = view.piece(tensor)
    if piece is None or not piece.target.adapted:
        return []
    info, made = view.info(tensor), view.made(tensor)
    stack, number = block(tensor) or ("", None)
    facts = {
        "pair": pair,
        "tensor": tensor,
        "role": role(tensor, info.shape),
        "stack": stack,
        "layer": number,
        "size": info.size,
        "adapter": view.changes.settings.kind,
        "scaling": piece.target.scaling,
    }
    sums = _sums(view, tensor)
    return [facts | _spectrum(made) | sums.numbers() | {"trained": _trained(made, sums)}]


def _spectrum(made: Made | None) -> dict:
    if made is None or made.scale is not None:
        return {"rank_at_most": None if made is None else min(made.trained.shape)}
    update = made.update
    values = singular_values_of_product(update.left, update.right)
    rank = int((values > _ROUNDING * values[0]).sum()) if len(values) else 0
    return {"rank_at_most": update.rank, "rank": rank, "singular_values": values.tolist()}


def _trained(made: Made | None, sums: _Sums) -> bool | None:
    """Whether training left more than rounding; None where it cannot be told, of stacks and magnitudes."""
    if made is None or made.scale is not None:
        return None if made is None else sums.delta > SINGLE**2 * sums.base
    if made.start is None:
        return sums.delta > 0
    begun = singular_values_of_product(made.start.left, made.start.right)
    return math.sqrt(sums.delta) > made.trained.rounding * float(begun.norm())


@dataclass
class _Sums:
    """Squares and products over a tensor, block by block."""

    base: float = 0.0
    delta: float = 0.0
    along: float = 0.0
    changed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WAYS, 0))
    kept: dict[str, float] = field(default_factory=lambda: dict.fromkeys(WAYS, 0.0))
    lost: dict[str, float] = field(default_factory=lambda: dict.fromkeys(WAYS, 0.0))

    def numbers(self) -> dict:
        """Columns of the table."""
        found = {"norm_base": math.sqrt(self.base), "norm_delta": math.sqrt(self.delta)}
        found["along_base"] = self._share(self.along)
        for way in WAYS:
            found |= {
                f"merged_{way}_changed": self.changed[way],
                f"merged_{way}_kept": self._share(self.kept[way]),
                f"merged_{way}_lost": math.sqrt(lost) if (lost := self._share(self.lost[way])) >= 0 else lost,
            }
        return found

    def _share(self, value: float) -> float:
        return value / self.delta if self.delta else math.nan


@dataclass(frozen=True)
class _Block:
    """Some rows: the base's in bf16, ΔW in float64, and what merging makes of them, by way."""

    base: Tensor
    delta: Tensor
    merged: dict[str, Tensor]


def _sums(view: AdaptedView, tensor: str) -> _Sums:
    sums = _Sums()
    for one in _blocks(view, tensor):
        stored, delta = one.base.double(), one.delta
        sums.base += squared_norm(stored)
        sums.delta += squared_norm(delta)
        sums.along += float(torch.dot(stored.reshape(-1), delta.reshape(-1)))
        for way, merged in one.merged.items():
            moved = merged.double().sub_(stored)
            sums.changed[way] += int(moved.count_nonzero())
            sums.kept[way] += float(torch.dot(moved.reshape(-1), delta.reshape(-1)))
            sums.lost[way] += squared_norm(moved.sub_(delta))
    return sums


def _blocks(view: AdaptedView, tensor: str) -> Iterator[_Block]:
    shape = view.info(tensor).shape
    for start, stop in row_ranges(shape):
        base = round_to_bf16(rows_of(view.inner, tensor, start, stop))
        for weight, mine, made in view.parts(tensor, start, stop):
            trained = made.trained.dense()
            plain = made.start is None and made.scale is None
            delta = trained if plain else made.on(weight) - weight.double()
            yield _Block(base[mine], delta, _merged(weight, made, trained))


def _merged(weight: Tensor, made: Made, trained: Tensor) -> dict[str, Tensor]:
    """Both merges into what the adapter is put on, rounded to bf16."""
    scale = made.scale
    held = weight.double() if made.start is None else weight.double() - made.start.dense()
    residual = round_to_bf16(held)
    once = residual.float() + trained.float()
    if scale is None:
        return {ONCE: round_to_bf16(once), SAFE: residual + round_to_bf16(trained)}
    # Of magnitudes peft rounds the product alone, either way.
    return dict.fromkeys(WAYS, round_to_bf16(scale * once))
