"""Trained weights that are computed with in bfloat16: half the memory, and products in the fast type.

A gradient is taken in the computing type, as `torch.autograd` leaves it, and widened once for the optimiser:
each matrix has one product a mini-batch, summed in float32 before it is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from threegates.lab.weights import TrainedWeights, dtype

# As many weights at a time stay in a processor's cache.
CHUNK = 1 << 18


class MixedWeights(TrainedWeights):
    """Masters in one format, weights of the forward pass in the computing type, as views of flat buffers.

    Parameters
    ----------
    initial : tensors by name; their order fixes the layout, their device is where everything is.
    master, storage : as `TrainedWeights` has them.
    computing : "bfloat16" or "float32", what the forward pass is handed.
    """

    def __init__(self, initial: Mapping[str, Tensor], *, master: str, storage: str, computing: str) -> None:
        self.storage = dtype(storage)
        self.shapes = {name: tensor.shape for name, tensor in initial.items()}
        flat = torch.cat([tensor.detach().flatten() for tensor in initial.values()])
        self.master = torch.nn.Parameter(flat.to(dtype(master), copy=True))
        # In the format it came in: a bf16 base takes half the room.
        self.initial = flat
        self._computing = torch.empty_like(flat, dtype=dtype(computing))
        self._gradient = torch.empty_like(flat, dtype=dtype(master))
        self._leaves = {name: view.requires_grad_() for name, view in self._views(self._computing).items()}
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the master to storage, and give that to the forward pass in the computing type."""
        same = self.storage == self._computing.dtype
        self._computing.copy_(self.master if same else self.master.to(self.storage))

    @torch.no_grad()
    def hand_over_gradient(self, clip: float) -> float:
        """Give the gradient, clipped to norm ``clip``, to the master; return its norm before clipping.

        A weight that no loss reached has gradient zero.
        """
        # Widened twice, a cache's worth at a time: less is moved than by scaling what was widened once.
        pieces = list(self._pieces())
        norm = float(torch.stack([given.float().norm() for _, given in pieces]).norm()) if pieces else 0.0
        scale = min(1.0, clip / (norm + 1e-6))
        if any(leaf.grad is None for leaf in self._leaves.values()):
            self._gradient.zero_()
        for into, given in pieces:
            torch.mul(given.float(), scale, out=into)
        for leaf in self._leaves.values():
            leaf.grad = None
        self.master.grad = self._gradient
        return norm

    def _pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Stretches of the flat gradient, and what autograd left for each; none of weights without one."""
        start = 0
        for leaf in self._leaves.values():
            if leaf.grad is not None:
                flat = self._gradient[start : start + leaf.numel()]
                yield from zip(flat.split(CHUNK), leaf.grad.flatten().split(CHUNK), strict=True)
            start += leaf.numel()

    @torch.no_grad()
    def delta_norm(self) -> float:
        """Frobenius norm of master − initial over all parameters."""
        pairs = zip(self.master.split(CHUNK), self.initial.split(CHUNK), strict=True)
        return float(torch.stack([(before.float() - now.float()).norm() for now, before in pairs]).norm())
