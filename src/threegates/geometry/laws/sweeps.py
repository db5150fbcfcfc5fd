"""Codes of a base by where its weights lie among principal and small ones, for a whole grid of targets.

At one rank M_princ grows with its share α, and so does M_low: a weight's two places, the first share at
which it is in either, say for every target of the grid whether it is in it. One histogram of codes and places
a rank then serves every mean of a null's overlap, whatever the null and the tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from threegates.geometry.laws.codes import CodeCounts, bit_patterns
from threegates.geometry.masks import unpack
from threegates.geometry.principal import TARGETS, Packed, SweepTargets
from threegates.geometry.thresholds import Selector


def codes_in_targets(
    base: Shaped[Tensor, "m n"], codes: CodeCounts, targets: SweepTargets
) -> dict[tuple[int, float, str], np.ndarray]:
    """How many weights of each code lie in each target of a grid.

    Parameters
    ----------
    base : finite bfloat16 matrix whose codes were counted in `codes`.
    targets : of that base.

    Returns
    -------
    (K,) counts, float64, by rank, α and the name in `TARGETS`.

    **Source** as `threegates.geometry.principal.overlap_sweep`.
    """
    alphas = targets.alphas
    order = np.argsort(alphas, kind="stable")
    places = len(alphas) + 1
    joint = _joint_counts(base, codes, targets, order)
    found = {}
    for rank, table in zip(targets.keys.ranks, joint, strict=True):
        by_place = table.reshape(len(codes.patterns), places, places)
        for place, a in enumerate(order):
            # Place p is that of weights outside the first p shares, and in all further ones.
            principal = by_place[:, : place + 1]
            inside = principal.sum(axis=(1, 2)), by_place[:, :, : place + 1].sum(axis=(1, 2))
            apart = principal[:, :, place + 1 :].sum(axis=(1, 2))
            for target, counts in zip(TARGETS, (*inside, apart), strict=True):
                found[rank, alphas[a], target] = counts
    return found


def _joint_counts(base: Tensor, codes: CodeCounts, targets: SweepTargets, order: np.ndarray) -> np.ndarray:
    """(ranks, K · places²) counts of code, principal place and low place."""
    keys, places = targets.keys, len(order) + 1
    number = _numbers(base, codes) * places**2 + _low_places(targets.lows, order, keys.size)
    joint = np.zeros((keys.layers, len(codes.patterns) * places**2))
    selectors = [[Selector(cuts[a]) for a in order] for cuts in targets.cuts]
    start = 0
    for tile in keys.tiles():
        here = number[start : (start := start + len(tile[0]))]
        for layer, layer_keys in enumerate(tile):
            taken = torch.stack([one.take(layer_keys) for one in selectors[layer]])
            outside = len(order) - taken.sum(dim=0).cpu().numpy()
            joint[layer] += np.bincount(here + places * outside, minlength=joint.shape[1])
    return joint


def _numbers(base: Tensor, codes: CodeCounts) -> np.ndarray:
    """Which of the codes each weight has, flat."""
    return codes.by_pattern(np.arange(len(codes.patterns)))[bit_patterns(base).reshape(-1)]


def _low_places(lows: Sequence[Packed], order: np.ndarray, size: int) -> np.ndarray:
    """Of how many M_low, in the order of their shares, each weight lies outside."""
    outside = np.full(size, len(order), dtype=np.int64)
    for a in order:
        outside -= unpack(lows[a], (size,)).cpu().numpy()
    return outside
