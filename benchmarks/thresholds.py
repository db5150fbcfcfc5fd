"""Exact thresholds against selection and sorting; overlaps of packed masks against sums of bools."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import Row, interleaved
from threegates.geometry.masks import pack
from threegates.geometry.principal import overlap
from threegates.geometry.thresholds import Magnitudes, entry_count, find_cuts

ENTRIES = 50_000_000
ALPHA = 0.5
ROUNDS = 3


def rows(sizes: Sequence[str]) -> list[Row]:
    """All rows of this file; they know one size, whatever is asked for."""
    return [*thresholds(ENTRIES, ROUNDS), overlapping(ENTRIES, ROUNDS)]


def threshold(weight: Tensor, count: int) -> float:
    """Magnitude of rank `count`, ascending; bits of bfloat16 read as such."""
    value = find_cuts(Magnitudes(weight), [count])[0][0].value
    if weight.dtype == torch.bfloat16:
        return float(torch.tensor(int(value), dtype=torch.int16).view(torch.bfloat16))
    return float(value)


def by_kthvalue(weight: Tensor, count: int) -> float:
    """Selection of the whole."""
    return float(weight.abs().kthvalue(count).values)


def by_topk(weight: Tensor, count: int) -> float:
    """The smallest half, of which the last is the threshold."""
    return float(weight.abs().topk(count, largest=False, sorted=False).values.max())


def thresholds(entries: int, rounds: int) -> list[Row]:
    """The threshold of half of all magnitudes, of weights in float32 and as stored."""
    generator = torch.Generator().manual_seed(0)
    wide = 0.02 * torch.randn(entries, generator=generator)
    count = entry_count(ALPHA, entries)
    return [
        row
        for name, weight in (("float32", wide), ("bfloat16", wide.bfloat16()))
        for row in _thresholds(f"{entries / 1e6:g} M {name}", weight, count, rounds)
    ]


def _thresholds(label: str, weight: Tensor, count: int, rounds: int) -> list[Row]:
    peers = {"kthvalue": by_kthvalue, "topk": by_topk}
    ways = {name: partial(way, weight, count) for name, way in peers.items()}
    times, found = interleaved({"ours": partial(threshold, weight, count), **ways}, rounds)
    return [
        Row(
            "exact threshold",
            label,
            times["ours"],
            name,
            times[name],
            found["ours"] == found[name],
            "same threshold",
            gate=6.0 if name == "kthvalue" else None,
        )
        for name in peers
    ]


def overlapping(entries: int, rounds: int) -> Row:
    """Share of an update mask on a target: packed, against torch's sums of bools."""
    generator = torch.Generator().manual_seed(0)
    mask, target = (torch.rand(entries, generator=generator) < share for share in (0.14, 0.5))
    packed_mask, packed_target = pack(mask), pack(target)

    def packed() -> float:
        return overlap(packed_mask, packed_target, entries).overlap

    def idiom() -> float:
        # The densities, which `packed` counts as well, are what the lift is made of.
        both, changed, size = (mask & target).sum(), mask.sum(), target.sum()
        return int(both) / int(changed) if int(size) else float("nan")

    times, found = interleaved({"ours": packed, "idiom": idiom}, rounds)
    return Row(
        "overlap, packed",
        f"{entries / 1e6:g} M",
        times["ours"],
        "torch bool sums",
        times["idiom"],
        found["ours"] == found["idiom"],
        "same share",
        gate=150.0,
    )
