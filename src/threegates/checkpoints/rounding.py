"""Rounding of stored weights to bfloat16, exactly once."""

from __future__ import annotations

import torch
from torch import Tensor


def round_to_bf16(x: Tensor) -> Tensor:
    """Round floats to bfloat16, to nearest, ties to even.

    Rounding float64 to float32 first would round twice, and lands on the wrong side where the first rounding
    creates a tie. Rounding to odd in between keeps the second rounding exact.

    Shapes: any, kept. Values above bfloat16's largest by half a unit become infinite.

    **Source** Boldo and Melquiond (2008), *Emulation of FMA and correctly rounded sums: proved algorithms
    using rounding to odd*, Theorem 2.
    """
    return (_round_to_odd(x) if x.dtype == torch.float64 else x).to(torch.bfloat16)


def _round_to_odd(x: Tensor) -> Tensor:
    """float64 to float32: exact values stay, others go to the neighbour whose last bit is one."""
    nearest = x.to(torch.float32)
    wide = nearest.to(torch.float64)
    # Codes of one sign are ordered by magnitude, so one less is the next float towards zero.
    towards_zero = nearest.view(torch.int32) - (wide.abs() > x.abs()).to(torch.int32)
    odd = (towards_zero | 1).view(torch.float32)
    return torch.where((wide == x) | x.isnan(), nearest, odd)
