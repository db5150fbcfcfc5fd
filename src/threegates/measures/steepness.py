"""How steep the loss is at a base along noise that knows of no training: in principal places, and anywhere.

One table. ``steepness`` has a row for each function (the loss and the Fisher matrix of
`threegates.measures.losses`), batch, draw and direction: the Rayleigh quotient vᵀHv/‖v‖², or vᵀFv/‖v‖². A
draw is one Gaussian Z in the matrices of the blocks, of which each direction is made:

| direction | what it is |
|---|---|
| noise | Z |
| block | its part in the block of leading singular directions, U UᵀZ V Vᵀ |
| principal_weights, other_weights | Z on M_princ, and on all other entries |

Each of them has Z's norm in every matrix, so that the directions of a draw differ in where they lie within
matrices, and in nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from threegates.checkpoints.pairs import align, load_finite
from threegates.checkpoints.tensors import Checkpoint
from threegates.geometry.curvature import HessianProducts, fisher_quadratic
from threegates.geometry.decomposition import LeadingSpectrum
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.principal import HEADLINE_ALPHA, headline_rank, principal_mask
from threegates.measures.bases import base_of
from threegates.measures.batch import Batch, Losses
from threegates.measures.by_tensor import Shared, typed
from threegates.measures.changes import matrices
from threegates.measures.curvature import Direction, in_block, squared_norm, with_norm
from threegates.measures.losses import base_losses

STEEPNESS_COLUMNS = {
    "base": "str",
    "function": "str",
    "batch": "int64",
    "direction": "str",
    "draw": "int64",
    "curvature": "float64",
    "norm": "float64",
}
DIRECTIONS = ("noise", "block", "principal_weights", "other_weights")
#: Batches, averaged before a ratio is taken, and draws, which are the units of its interval.
BATCHES, DRAWS = 3, 20


@dataclass(frozen=True)
class PrincipalPlaces:
    """Where a base matrix is principal: its leading singular vectors, and its principal weights as a mask."""

    leading: LeadingSpectrum
    weights: Tensor


def measure_steepness(base: Checkpoint, *, name: str, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Measure one base on `BATCHES` batches along the directions of `DRAWS` draws.

    Parameters
    ----------
    name : of the base. seed : of the noise, whose draws are the same on every batch.

    Raises
    ------
    PairError : the base's loss is not known, or a value of it is not finite.
    """
    places = principal_places(base)
    rows = list(_rows(base_losses(base), places, name, seed))
    return {"steepness": typed([{"base": name, **row} for row in rows], STEEPNESS_COLUMNS)}


def principal_places(base: Checkpoint) -> dict[str, PrincipalPlaces]:
    """Principal places of every matrix in the base's blocks, at the headline's rank and share."""
    # What can be compared with itself is a matrix that a pair with this base could have.
    names = matrices(align(base, base))
    return {tensor: _places_of(load_finite(base, tensor, "base")[0]) for tensor in names}


def _places_of(weight: Tensor) -> PrincipalPlaces:
    leading = base_of(weight, headline_rank(weight.shape), Shared()).leading.leading
    return PrincipalPlaces(
        leading, principal_mask(leading.left, leading.values, leading.right, HEADLINE_ALPHA)
    )


def neutral_directions(
    places: Mapping[str, PrincipalPlaces], name: str, seed: int, draw: int
) -> dict[str, Direction]:
    """The directions of one draw, by name; each has the norm of the noise in every matrix."""
    found: dict[str, Direction] = {direction: {} for direction in DIRECTIONS}
    for tensor, place in places.items():
        mask = place.weights
        generator = noise_generator(seed, "steepness", name, tensor, str(draw))
        noise = torch.randn(mask.shape, generator=generator, dtype=torch.float64).to(mask.device)
        parts = (noise, in_block(noise, place.leading), noise * mask, noise * ~mask)
        for direction, part in zip(DIRECTIONS, parts, strict=True):
            found[direction][tensor] = with_norm(part, noise).float()
    return found


def _rows(
    losses: Losses, places: Mapping[str, PrincipalPlaces], name: str, seed: int
) -> Iterator[dict[str, object]]:
    for number in range(BATCHES):
        batch = losses.batch(number)
        products = HessianProducts(batch.loss, losses.point)
        for draw in range(DRAWS):
            # Drawn anew on each batch: a graph of gradients and one draw fit into memory, all draws may not.
            for direction, tensors in neutral_directions(places, name, seed, draw).items():
                facts = {"batch": number, "direction": direction, "draw": draw}
                yield from ({**facts, **row} for row in _along(batch, products, losses.point, tensors))
        del products


def _along(
    batch: Batch, products: HessianProducts, point: Mapping[str, Tensor], tensors: Direction
) -> Iterator[dict[str, object]]:
    """The curvature of both functions along one direction."""
    size = squared_norm(tensors)
    yield {"function": "loss", "curvature": products.rayleigh(tensors), "norm": size**0.5}
    fisher = fisher_quadratic(batch.log_probs, point, tensors) / size
    yield {"function": "fisher", "curvature": fisher, "norm": size**0.5}
