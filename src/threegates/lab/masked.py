"""Sparse fine-tuning: reinforcement learning of weights that a mask, fixed from the base, leaves free.

The masks lie on the linear layers; embedding, head and norms are frozen in every arm, the dense one too, so
that arms differ by their masks alone. Outside its mask a master is never touched: gradients there are zero
before the norm is clipped, so AdamW's moments stay zero, and there is no weight decay.

**Source** Zhu et al. (2025), §5.1, Tables 4 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from threegates.checkpoints.formats.roles import linear_layers
from threegates.geometry.decomposition import decompose
from threegates.geometry.principal import headline_rank, low_magnitude_mask, principal_mask
from threegates.lab.randomness import step_generator
from threegates.lab.recipe import MaskedRLRecipe
from threegates.lab.rl import PolicyTrainer
from threegates.lab.weights import TrainedWeights


class MaskedPolicyTrainer(PolicyTrainer):
    """RL whose every update is zero outside the recipe's mask."""

    recipe: MaskedRLRecipe

    def trained_weights(self, initial: Mapping[str, Tensor]) -> TrainedWeights:
        recipe = self.recipe
        # Masks are those that the study measures: found on the CPU, wherever training is.
        masks = update_masks(recipe, {name: tensor.cpu() for name, tensor in initial.items()})
        return MaskedWeights(initial, masks, master=recipe.master_dtype, storage=recipe.storage_dtype)


class MaskedWeights(TrainedWeights):
    """Weights whose gradient is zero outside masks; a tensor without a mask is frozen."""

    def __init__(
        self, initial: Mapping[str, Tensor], masks: Mapping[str, Tensor], *, master: str, storage: str
    ) -> None:
        super().__init__(initial, master=master, storage=storage)
        closed = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in initial.items()}
        free = torch.cat([mask.flatten() for mask in (closed | dict(masks)).values()])
        self._free = free.to(self._gradient.device)

    def hand_over_gradient(self, clip: float) -> float:
        self._gradient.mul_(self._free)
        return super().hand_over_gradient(clip)


def update_masks(recipe: MaskedRLRecipe, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The recipe's mask of every linear layer of a base, by name; bool, of the matrix's shape."""
    return {name: update_mask(recipe, weight, name) for name, weight in linear_layers(base).items()}


def update_mask(recipe: MaskedRLRecipe, weight: Tensor, name: str) -> Tensor:
    """The recipe's mask of one matrix: what may change."""
    if recipe.mask == "dense":
        return torch.ones_like(weight, dtype=torch.bool)
    if recipe.mask == "low":
        return low_magnitude_mask(weight, recipe.low_share)
    principal = _principal(weight, recipe.share)
    if recipe.mask in ("principal", "off-principal"):
        return principal if recipe.mask == "principal" else ~principal
    safe = low_magnitude_mask(weight, recipe.low_share) | ~principal
    return safe if recipe.mask == "safe" else _shuffled(safe, recipe.seed, name)


def _principal(weight: Tensor, share: float) -> Tensor:
    rank = headline_rank(weight.shape)
    leading = decompose(weight, rank, "certified").leading
    return principal_mask(leading.left, leading.values, leading.right, share)


def _shuffled(mask: Tensor, seed: int, name: str) -> Tensor:
    """As many entries at random places: other ones for every seed and matrix."""
    order = torch.randperm(mask.numel(), generator=step_generator(seed, f"random-mask/{name}", 0))
    return mask.flatten()[order].view_as(mask)
