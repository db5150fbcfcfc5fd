"""Grouped-query attention over stretches of keys that many queries share.

Queries lie in batches of equal length. Each stretch of keys belongs to all of them, to some batches side by
side, or to one: the few-shot prefix to all, a prompt to its samples, a sample's own tokens to itself. Scores
over all stretches share one softmax, so the result is attention over their concatenation, which is never
formed. Sampling and training call the same function, in float32.

Source: Vaswani et al. (2017), arXiv 1706.03762, eq. 1; grouped queries after Ainslie et al. (2023),
arXiv 2305.13245; rotary positions after Su et al. (2021), arXiv 2104.09864.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stretch:
    """Keys and values, (kv_heads, batches, length, head_dim), with a bias on their scores.

    ``batches`` divides those of the queries: each belongs to as many query batches side by side.
    bias : broadcastable to (query batches, queries, 1, length), −∞ where a query may not look; None is 0.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None = None

    def biased(self, bias: Tensor) -> Stretch:
        """The same keys with this bias."""
        return Stretch(self.keys, self.values, bias)


def attend(query: Tensor, stretches: Sequence[Stretch]) -> Tensor:
    """softmax(q kᵀ/√head_dim + bias) v over all stretches.

    query : (batches, length, heads, head_dim) float32; heads are a multiple of kv_heads.
    Returns the same shape.
    """
    batches, length, heads, dim = query.shape
    kv_heads = len(stretches[0].keys)
    group = heads // kv_heads
    # Heads come first: then every sharing of keys is a view of the same queries.
    folded = (query / math.sqrt(dim)).view(batches, length, kv_heads, group, dim).permute(2, 0, 1, 3, 4)
    folded = folded.contiguous().view(kv_heads, batches, length * group, dim)
    scores = [_scores(folded, stretch, length) for stretch in stretches]
    weights = torch.cat(scores, -1).softmax(-1) if len(scores) > 1 else scores[0].softmax(-1)
    parts = weights.split([stretch.keys.shape[2] for stretch in stretches], -1)
    mixed = [_mixed(part, stretch.values) for part, stretch in zip(parts, stretches, strict=True)]
    total = sum(mixed[1:], mixed[0]).view(kv_heads, batches, length, group, dim)
    return total.permute(1, 2, 0, 3, 4).reshape(batches, length, heads, dim)


def _scores(query: Tensor, stretch: Stretch, length: int) -> Tensor:
    """q kᵀ + bias, (kv_heads, batches, length × group, keys)."""
    kv_heads, batches, rows, dim = query.shape
    shared = query.view(kv_heads, stretch.keys.shape[1], -1, dim)
    scores = (shared @ stretch.keys.transpose(-1, -2)).view(kv_heads, batches, rows, -1)
    if stretch.bias is None:
        return scores
    by_head = scores.view(kv_heads, batches, length, rows // length, -1)
    return (by_head + stretch.bias).view_as(scores)


def _mixed(weights: Tensor, values: Tensor) -> Tensor:
    kv_heads, batches, rows, keys = weights.shape
    shared = weights.reshape(kv_heads, values.shape[1], -1, keys)
    return (shared @ values).view(kv_heads, batches, rows, -1)


def causal_bias(length: int, device: torch.device | str = "cpu") -> Tensor:
    """0 up to a query's own place and −∞ after it, (length, 1, length)."""
    return torch.full((length, length), -torch.inf, device=device).triu(1)[:, None]


def padding_bias(lengths: Tensor, longest: int) -> Tensor:
    """0 on the first ``lengths`` (batches,) keys and −∞ after them, (batches, 1, 1, longest)."""
    beyond = torch.arange(longest, device=lengths.device) >= lengths[:, None]
    return torch.zeros(beyond.shape, device=lengths.device).masked_fill_(beyond, -torch.inf)[:, None, None]


def rotary_tables(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of the angles position · θ^(−2i/head_dim), (tokens, 1, head_dim/2) float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions.float()[:, None, None] * (1.0 / theta**exponents)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of (tokens, heads, head_dim), in transformers' convention of split halves."""
    cos, sin = tables
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
