"""Weights that nulls are tried on."""

from __future__ import annotations

import numpy as np
import torch

from threegates.geometry.precision import to_bf16


def weights(m: int = 48, n: int = 64, seed: int = 0) -> torch.Tensor:
    """Weights over several binades, a few of them zero."""
    generator = np.random.default_rng([seed, m, n])
    scales = np.exp(generator.standard_normal((m, 1)))
    w = 0.05 * scales * generator.standard_normal((m, n))
    w[generator.random((m, n)) < 0.01] = 0
    return to_bf16(torch.from_numpy(w))
