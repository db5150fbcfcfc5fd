"""How steep the loss is at a base along an update, along its parts, and along noise.

One table. ``curvature`` has a row for each function (`threegates.measures.losses`), batch and direction: the
Rayleigh quotient vᵀHv/‖v‖² (vᵀFv/‖v‖² of the Fisher matrix), so that directions are compared at equal norm.
Directions lie in the matrices of the blocks:

| direction | what it is |
|---|---|
| update | ΔW |
| principal, off_principal | its part in the block of leading singular directions, U UᵀΔW V Vᵀ, and the rest |
| principal_weights, other_weights | ΔW on M_princ, and on all other entries |
| noise | Gaussian, of ΔW's norm in each matrix |
| masked_noise | the same on the weights alone that ΔW changes in bf16 |
| block_noise | the noise's part in the block of leading singular directions |
| weights_noise | the noise on M_princ |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from threegates.checkpoints.pairs import align, load_pair
from threegates.checkpoints.tensors import Checkpoint
from threegates.geometry.curvature import HessianProducts, fisher_quadratic
from threegates.geometry.decomposition import LeadingSpectrum
from threegates.geometry.masks import update_mask
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.principal import HEADLINE_ALPHA, headline_rank, principal_mask
from threegates.measures.bases import base_of
from threegates.measures.batch import Batch
from threegates.measures.by_tensor import Shared, typed
from threegates.measures.changes import as_stored, matrices
from threegates.measures.losses import base_losses

CURVATURE_COLUMNS = {
    "pair": "str",
    "function": "str",
    "batch": "int64",
    "direction": "str",
    "draw": "int64",
    "curvature": "float64",
    "norm": "float64",
    "share": "float64",
}
FUNCTIONS = ("loss", "fisher", "reward")
PARTS = ("update", "principal", "off_principal", "principal_weights", "other_weights")
NOISE = ("noise", "masked_noise", "block_noise", "weights_noise")
#: Batches, averaged before a ratio is taken, and draws of each noise: every pair has its own.
BATCHES, DRAWS = 2, 1
#: Of the surrogate, whose Hessian is noise for the most part, only these are looked at.
OF_REWARD = ("update", "noise")

Direction = dict[str, Tensor]


@dataclass(frozen=True)
class Named:
    """A direction with its name and the number of its draw."""

    name: str
    draw: int
    tensors: Direction


def measure_curvature(
    base: Checkpoint, tuned: Checkpoint, *, name: str, seed: int = 0
) -> dict[str, pd.DataFrame]:
    """Measure one pair; `seed` is the noise's.

    Raises
    ------
    PairError : the checkpoints cannot be compared, or the base's loss is not known.
    """
    losses = base_losses(base)
    directions = list(update_directions(base, tuned, name, seed))
    energy = squared_norm(directions[0].tensors)
    rows = []
    for number in range(BATCHES):
        batch = losses.batch(number)
        for function, one, value in _along(batch, losses.point, directions):
            size = squared_norm(one.tensors)
            facts = {"pair": name, "function": function, "batch": number, "direction": one.name}
            numbers = {"curvature": value, "norm": size**0.5, "share": size / energy}
            rows.append({**facts, "draw": one.draw, **numbers})
    return {"curvature": typed(rows, CURVATURE_COLUMNS)}


def _along(
    batch: Batch, point: Mapping[str, Tensor], directions: list[Named]
) -> Iterator[tuple[str, Named, float]]:
    """Every function's curvature along every direction; a graph of gradients lives for one function."""
    chosen = {"loss": directions, "reward": [one for one in directions if one.name in OF_REWARD]}
    for function, some in chosen.items():
        products = HessianProducts(getattr(batch, function), point)
        for one in some:
            yield function, one, products.rayleigh(one.tensors)
        del products
    for one in directions:
        yield "fisher", one, fisher_quadratic(batch.log_probs, point, one.tensors) / squared_norm(one.tensors)


def update_directions(base: Checkpoint, tuned: Checkpoint, name: str, seed: int) -> Iterator[Named]:
    """ΔW and its parts, then noise; directions that are zero are left out."""
    found: dict[tuple[str, int], Direction] = {}
    for tensor in matrices(align(base, tuned)):
        for key, part in _matrix_directions(base, tuned, tensor, name, seed):
            if part.any():
                found.setdefault(key, {})[tensor] = part.float()
    for (direction, draw), tensors in found.items():
        yield Named(direction, draw, tensors)


def _matrix_directions(
    base: Checkpoint, tuned: Checkpoint, tensor: str, name: str, seed: int
) -> Iterator[tuple[tuple[str, int], Tensor]]:
    pair = load_pair(base, tuned, tensor)
    before, after = as_stored(pair)
    delta = (after - before).double()
    leading = base_of(pair.base, headline_rank(pair.base.shape), Shared()).leading.leading
    principal = in_block(delta, leading)
    on_principal = principal_mask(leading.left, leading.values, leading.right, HEADLINE_ALPHA)
    parts = (delta, principal, delta - principal, delta * on_principal, delta * ~on_principal)
    yield from zip(((part, 0) for part in PARTS), parts, strict=True)
    mask = update_mask(pair.base, pair.tuned)
    for draw in range(DRAWS):
        generator = noise_generator(seed, "curvature", name, tensor, str(draw))
        noise = torch.randn(delta.shape, generator=generator, dtype=torch.float64).to(delta.device)
        yield ("noise", draw), with_norm(noise, delta)
        yield ("masked_noise", draw), with_norm(noise * mask, delta)
        yield ("block_noise", draw), in_block(with_norm(noise, delta), leading)
        yield ("weights_noise", draw), with_norm(noise, delta) * on_principal


def in_block(delta: Tensor, leading: LeadingSpectrum) -> Tensor:
    """U UᵀΔ V Vᵀ, U and V the leading singular vectors."""
    return leading.left @ (leading.left.T @ delta @ leading.right) @ leading.right.T


def with_norm(noise: Tensor, delta: Tensor) -> Tensor:
    """The noise at ΔW's norm; zero stays zero."""
    size = noise.norm()
    return noise * (delta.norm() / size) if size else noise


def squared_norm(direction: Direction) -> float:
    """Squared norm over all matrices."""
    return sum(float(tensor.double().square().sum()) for tensor in direction.values())
