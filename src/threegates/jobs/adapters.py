"""What a measurement says of an adapter beside its numbers: what merging keeps, and what looks wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from threegates.measures.merging import ONCE, SAFE

_WAYS = {ONCE: "added in float32 and rounded once", SAFE: "with safe_merge, which rounds ΔW first"}
#: ⟨ΔW, W₀⟩/‖ΔW‖² of an update that is a part of W₀ itself is 1; none that training made comes near.
_PART_OF_BASE = 0.5


def merging_told(adapter: pd.DataFrame | None) -> list[str]:
    """What merging into bf16 would change, keep and lose, over all adapted matrices."""
    if adapter is None or adapter.empty:
        return []
    return [_told(adapter, way, how) for way, how in _WAYS.items()]


def _told(adapter: pd.DataFrame, way: str, how: str) -> str:
    changed, size = adapter[f"merged_{way}_changed"].sum(), adapter["size"].sum()
    told = f"merged into bf16 ({how}): {changed} of {size} weights would change"
    weights = adapter["norm_delta"] ** 2
    if not weights.sum() > 0:
        return told
    moved = weights > 0
    kept = (adapter[f"merged_{way}_kept"] * weights)[moved].sum() / weights.sum()
    lost = ((adapter[f"merged_{way}_lost"] ** 2 * weights)[moved].sum() / weights.sum()) ** 0.5
    return f"{told}, {kept:.1%} of ΔW kept, off by {lost:.1%} of its norm"


def adapter_sanity(adapter: pd.DataFrame | None) -> Iterator[str]:
    """What a reader should be asked about an adapter."""
    if adapter is None or adapter.empty:
        return
    trained = adapter["trained"].dropna()
    if len(trained) and not trained.any():
        yield (
            "the adapter was never trained: ΔW is no more than its start's rounding in every matrix; what "
            "merging would change is rounding"
        )
    part = adapter["along_base"] > _PART_OF_BASE
    if part.sum() > len(adapter) / 2:
        yield (
            f"ΔW is a part of W₀ itself in {part.sum()} of {len(adapter)} matrices: an adapter that belongs "
            "on a residual (PiSSA)? Give that residual as the base, or --adapter-start"
        )
