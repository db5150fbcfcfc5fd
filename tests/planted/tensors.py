"""Small bf16 tensors of many kinds that laws of nulls are proved on, and targets that favour some weights."""

from __future__ import annotations

import math

import numpy as np
import torch

from threegates.geometry.nulls.noise import noise_generator


def _power_law(source):
    left, right = (torch.linalg.qr(torch.randn(n, 32, generator=source))[0] for n in (64, 96))
    return (left * torch.arange(1, 33) ** -0.7) @ right.T + 1e-3 * torch.randn(64, 96, generator=source)


def _row_scaled(source):
    return 0.02 * torch.randn(64, 96, generator=source) * (0.2 + torch.rand(64, 1, generator=source))


def _clustered(source):
    values = torch.tensor([0.0, 0.015625, 0.0156, -0.02, 0.5])
    return values[torch.randint(0, 5, (64, 96), generator=source)]


def _one_row(source):
    return 0.02 * torch.randn(1, 4000, generator=source)


def _subnormal(source):
    scale = torch.where(torch.rand(64, 96, generator=source) < 0.7, 2.0**-128, 2.0**-124)
    return scale * torch.randn(64, 96, generator=source)


#: By name, what makes them.
FAMILIES = {
    "power-law": _power_law,
    "row-scaled": _row_scaled,
    "clustered": _clustered,
    "one-row": _one_row,
    "subnormal": _subnormal,
}


def family(name):
    """The tensor of that name."""
    return FAMILIES[name](noise_generator(0, "family", name)).bfloat16()


def target(name):
    """A mask that holds most small weights and every third of the others."""
    base = family(name)
    mask = base.abs() < base.abs().median()
    mask.reshape(-1)[::3] = True
    return mask & (torch.rand(base.shape, generator=noise_generator(0, "target", name)) < 0.8)


def assert_agrees(law, drawn, own_draws=2000):
    """A law's mean lies within 4.5 standard errors of draws, its sd within 5 % and four errors of its own.

    own_draws : those that a drawn law is of.
    """
    drawn = drawn[np.isfinite(drawn)]
    mean, sd = float(drawn.mean()), float(drawn.std(ddof=1))
    if sd < 1e-12:
        assert law.sd < 1e-12 and abs(law.mean - mean) <= 0.01 * max(1.0, abs(mean))
        return
    own = law.sd / math.sqrt(own_draws) if law.how == "drawn" else 0.0
    assert abs(law.mean - mean) <= 4.5 * math.hypot(sd / math.sqrt(len(drawn)), own), (law, mean, sd)
    fourth = float(((drawn - mean) ** 4).mean()) / sd**4
    error = math.sqrt(max(fourth - 1, 0.1) / (4 * len(drawn)))
    spread = error * (math.sqrt(1 + len(drawn) / own_draws) if law.how == "drawn" else 1)
    assert abs(law.sd / sd - 1) <= 0.05 + 4 * spread, (law, mean, sd)


def filled_p(law, values, even):
    """Upper-tailed p-values; a discrete one is uniform once its step is filled at random, by `even`."""
    tails = np.exp([law.tail(float(value)) for value in values])
    steps = np.maximum(tails.sum(axis=1) - 1, 0.0)
    return tails[:, 0] - steps * even.random(len(tails))
