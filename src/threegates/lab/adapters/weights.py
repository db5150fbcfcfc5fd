"""Weights of which only low-rank factors are trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from threegates.lab.adapters.factors import Start
from threegates.lab.model import device_of
from threegates.lab.weights import TrainedWeights, dtype

_DOWN, _UP = ".A", ".B"


class AdapterWeights(TrainedWeights):
    """W = W_res + s B A with A and B in float32, trained and computed with; everything else is the base's.

    Adapters stand apart from the weights that they correct, as peft runs them: nothing is rounded to bf16
    while they train. What is saved is W₀ + s (BA − B₀A₀), formed in float64 and rounded once: a merged
    residual would differ from the base in many stored weights before the first step.
    """

    def __init__(self, base: Mapping[str, Tensor], starts: Mapping[str, Start]) -> None:
        self.base = dict(base)
        self.starts = {name: start.to(device_of(base)) for name, start in starts.items()}
        downs = {name + _DOWN: start.down for name, start in self.starts.items()}
        ups = {name + _UP: start.up for name, start in self.starts.items()}
        super().__init__(downs | ups, master="float32", storage="float32")

    @property
    def named(self) -> dict[str, Tensor]:
        factors = self._leaves
        adapted = {
            name: torch.addmm(start.residual, factors[name + _UP], factors[name + _DOWN], alpha=start.scaling)
            for name, start in self.starts.items()
        }
        return self.base | adapted

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """A and B of every adapted matrix, as they are now."""
        views = {name: view.detach() for name, view in self._leaves.items()}
        return {name: (views[name + _DOWN], views[name + _UP]) for name in self.starts}

    def effective(self) -> Tensor:
        return torch.cat([change.flatten() for change in self.deltas().values()]).float()

    def deltas(self) -> dict[str, Tensor]:
        """ΔW = s (BA − B₀A₀) of every adapted matrix, float64."""
        return {
            name: self.starts[name].scaling
            * (up.double() @ down.double() - self.starts[name].up.double() @ self.starts[name].down.double())
            for name, (down, up) in self.factors().items()
        }

    def delta_norm(self) -> float:
        return float(self.effective().norm())

    def saved(self, save: str) -> dict[str, Tensor]:
        merged = {name: self.base[name].double() + change for name, change in self.deltas().items()}
        return {
            name: tensor.to("cpu", dtype(save), copy=True) for name, tensor in (self.base | merged).items()
        }
