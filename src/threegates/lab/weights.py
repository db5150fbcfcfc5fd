"""Weights in three explicit formats: the master that is optimised, the storage that computes, the save.

A step changes the master; the forward pass and the rollouts see the master rounded to the storage
format; gradients taken there are applied to the master (straight-through). With float32 masters and
bfloat16 storage this is mixed-precision training as the paper's runs did it; with a bfloat16 master
it is pure-bf16 training, a different thing whose sparsity must never be compared with the former.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from threegates.errors import RecipeError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def dtype(name: str) -> torch.dtype:
    """The torch dtype of a recipe's word; raises RecipeError for others."""
    if name not in DTYPES:
        raise RecipeError(
            f"There is no storage format {name!r}.", expected=" | ".join(DTYPES), found=name,
            remedy="Use one of the expected names in the recipe.",
        )  # fmt: skip
    return DTYPES[name]


class TrainedWeights:
    """Named parameters as views of one flat buffer, so that one optimiser call moves them all.

    Parameters
    ----------
    initial : tensors by name; their order fixes the layout, their device is where everything is.
    master : format in which steps accumulate.
    storage : format to which the weights are rounded before every forward pass.
    """

    def __init__(self, initial: Mapping[str, Tensor], *, master: str, storage: str) -> None:
        self.storage = dtype(storage)
        self.shapes = {name: tensor.shape for name, tensor in initial.items()}
        flat = torch.cat([tensor.detach().float().flatten() for tensor in initial.values()])
        self.master = torch.nn.Parameter(flat.to(dtype(master)))
        self.initial = self.master.detach().float().clone()
        self._computing = torch.empty_like(self.initial)
        self._gradient = torch.zeros_like(self.initial)
        self._leaves = {name: view.requires_grad_() for name, view in self._views(self._computing).items()}
        gradients = self._views(self._gradient)
        for parameter, gradient in zip(self._leaves.values(), gradients.values(), strict=True):
            parameter.grad = gradient
        self.refresh()

    @property
    def named(self) -> dict[str, Tensor]:
        """What the forward pass computes with, by name; gradients flow from it to the master's."""
        return self._leaves

    def effective(self) -> Tensor:
        """A float32 copy of all that training moves, as weights, flat: what norms of steps are taken of."""
        return self.master.detach().float().clone()

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        views, start = {}, 0
        for name, shape in self.shapes.items():
            views[name] = flat[start : start + shape.numel()].view(shape)
            start += shape.numel()
        return views

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the master to storage; the forward pass computes with these values in float32."""
        self._computing.copy_(self.master.to(self.storage))

    @torch.no_grad()
    def hand_over_gradient(self, clip: float) -> float:
        """Give the gradient, clipped to norm ``clip``, to the master; return its norm before clipping."""
        norm = float(self._gradient.norm())
        scaled = self._gradient * min(1.0, clip / (norm + 1e-6))
        self.master.grad = scaled.to(self.master.dtype)
        self._gradient.zero_()
        return norm

    def delta_norm(self) -> float:
        """Frobenius norm of master − initial over all parameters."""
        return float((self.master.detach().float() - self.initial).norm())

    def saved(self, save: str) -> dict[str, Tensor]:
        """Copies of the master in the format ``save``, by name, on the CPU."""
        flat = self.master.detach().to(dtype(save)).cpu()
        return {name: view.clone() for name, view in self._views(flat).items()}
