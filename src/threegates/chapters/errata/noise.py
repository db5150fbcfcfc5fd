"""Storage alone, on weights that were never trained: what rounded noise does to the paper's measures.

A matrix with a known spectrum, independent Gaussian updates, rounding to bf16, and nothing else: whatever the
paper's measures show here needs neither training nor the model's geometry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor

from threegates.geometry.masks import expected_jaccard, jaccard, pack
from threegates.geometry.nulls.noise import gaussian_noise, noise_generator
from threegates.geometry.nulls.storage_density import storage_mask_at_density
from threegates.geometry.precision import to_bf16
from threegates.geometry.principal import headline_rank, overlaps, principal_targets

#: Side of the matrices, exponent of their spectrum, density of the masks, and draws.
SIDE, EXPONENT, DENSITY, DRAWS = 512, 0.5, 0.61, 10
#: Densities of the figure.
DENSITIES = (0.06, 0.2, 0.4, DENSITY, 0.8, 0.96)


def power_law_matrix(side: int, exponent: float, seed: int) -> Tensor:
    """A square bf16 matrix with Haar singular vectors and σ_i ∝ i^(−exponent), of root mean square 1/√side.

    An exponent of zero gives independent Gaussian entries instead, which have no structure at all.
    """
    generator = noise_generator(seed, "power law")
    gaussian = gaussian_noise((side, side), generator).double()
    if exponent == 0:
        return to_bf16(gaussian / side**0.5)
    left, _ = torch.linalg.qr(gaussian)
    right, _ = torch.linalg.qr(gaussian_noise((side, side), generator).double())
    values = torch.arange(1, side + 1, dtype=torch.float64) ** -exponent
    values *= (side / (values**2).sum()) ** 0.5
    return to_bf16((left * values) @ right.T)


def storage_alone(
    side: int = SIDE,
    exponent: float = EXPONENT,
    densities: Sequence[float] = (DENSITY,),
    draws: int = DRAWS,
) -> pd.DataFrame:
    """The paper's measures on rounded Gaussian noise: one row a draw of matrix and noises, and a density.

    Columns: draw; density of the masks; jaccard of two noises' masks; bernoulli, its expectation; for each
    target of Fig. 5 (at the headline rank and share) its density ``…_density`` and the share ``…_overlap`` of
    the first mask on it.
    """
    rows = [row for draw in range(draws) for row in _draw(side, exponent, densities, draw)]
    return pd.DataFrame(rows)


def _draw(side: int, exponent: float, densities: Sequence[float], draw: int) -> Iterator[dict[str, float]]:
    weight = power_law_matrix(side, exponent, draw)
    targets = _targets(weight)
    for density in densities:
        first, second = (
            storage_mask_at_density(
                weight, round(density * weight.numel()), noise_generator(draw, "storage alone", one)
            )
            for one in ("first", "second")
        )
        row = {"draw": draw, "density": density, "jaccard": jaccard(first, second)}
        row["bernoulli"] = expected_jaccard(density, density)
        for target, found in overlaps(pack(first), targets, weight.numel()).items():
            row |= {f"{target}_overlap": found.overlap, f"{target}_density": found.density}
        yield row


def _targets(weight: Tensor) -> dict:
    k = headline_rank(tuple(weight.shape))
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return principal_targets(weight, u[:, :k], s[:k], vh[:k].T)
