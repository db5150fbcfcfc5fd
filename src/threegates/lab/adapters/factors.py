"""How an adapter starts: W₀ = W_res + s B₀A₀ for every linear layer, s = alpha/rank.

| init | A₀, B₀ | W_res |
|---|---|---|
| lora | A₀ Kaiming-uniform, B₀ = 0 (peft) | W₀ |
| orthonormal | rows of A₀ orthonormal, B₀ = 0 | W₀ |
| pissa | √Σ Vᵀ and U √Σ of the leading triplets, over √s (peft, by a full SVD) | W₀ − s B₀A₀ |
| milora | the same of the trailing triplets | W₀ − s B₀A₀ |

LoRA and PiSSA are peft's own starts, so that what is compared is what people use.

**Source** LoRA: Hu et al. (2021), arXiv 2106.09685; PiSSA: Meng et al. (2024), arXiv 2404.02948; MiLoRA: Wang
et al. (2024), arXiv 2406.09044.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from threegates.checkpoints.formats.roles import linear_layers
from threegates.errors import RecipeError
from threegates.lab.recipe import Init

IDENTITY = 1e-5
"""Largest ‖W_res + s B₀A₀ − W₀‖_F/‖W₀‖_F that rounding in float32 explains."""


@dataclass(frozen=True)
class Start:
    """The start of one matrix: down A₀ (rank, columns), up B₀ (rows, rank), residual W_res, scaling s."""

    down: Tensor
    up: Tensor
    residual: Tensor
    scaling: float

    def effective(self) -> Tensor:
        """W_res + s B₀A₀, in float64."""
        return self.residual.double() + self.scaling * self.up.double() @ self.down.double()

    def to(self, device: torch.device) -> Start:
        """The same start on a device."""
        return Start(self.down.to(device), self.up.to(device), self.residual.to(device), self.scaling)


def starts(
    weights: Mapping[str, Tensor], init: Init, rank: int, alpha: float, generator: torch.Generator
) -> dict[str, Start]:
    """Start every linear layer's adapter, with the step-0 identity checked.

    Raises
    ------
    RecipeError : the rank exceeds a matrix's smaller side, or W_res + s B₀A₀ is not W₀.
    """
    found = {}
    for name, weight in linear_layers(weights).items():
        if rank > min(weight.shape):
            raise RecipeError(
                "an adapter's rank exceeds its matrix",
                where=name,
                expected=f"at most {min(weight.shape)}",
                found=rank,
                remedy="choose a smaller rank",
            )
        start = _STARTS[init](weight.float(), rank, alpha, generator)
        found[name] = _checked(start, weight, name)
    return found


def _checked(start: Start, weight: Tensor, name: str) -> Start:
    distance, size = float((start.effective() - weight.double()).norm()), float(weight.double().norm())
    if not distance <= IDENTITY * size:
        raise RecipeError(
            "an adapter does not start at its base",
            where=name,
            expected=f"‖W_res + s B₀A₀ − W₀‖/‖W₀‖ at most {IDENTITY:g}",
            found=f"{distance:g} over {size:g}",
            remedy="check the start's scaling and residual",
        )
    return start


def _by_peft(word: bool | str) -> Callable[[Tensor, int, float, torch.Generator], Start]:
    def start(weight: Tensor, rank: int, alpha: float, generator: torch.Generator) -> Start:
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["matrix"], init_lora_weights=word)  # type: ignore[arg-type]
        # Modules and peft draw from the global generator: it is seeded here and put back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            layer = nn.ModuleDict({"matrix": nn.utils.skip_init(nn.Linear, *weight.T.shape, bias=False)})
            layer["matrix"].weight.data = weight.clone()
            model: Any = get_peft_model(layer, config)  # type: ignore[arg-type]
        adapted = model.base_model.model["matrix"]
        down, up = (side["default"].weight.detach().clone() for side in (adapted.lora_A, adapted.lora_B))
        return Start(down, up, adapted.base_layer.weight.detach().clone(), adapted.scaling["default"])

    return start


def _orthonormal(weight: Tensor, rank: int, alpha: float, generator: torch.Generator) -> Start:
    rows, columns = weight.shape
    basis, _ = torch.linalg.qr(torch.randn(columns, rank, generator=generator, dtype=torch.float64))
    return Start(basis.T.float().contiguous(), torch.zeros(rows, rank), weight.clone(), alpha / rank)


def _minor(weight: Tensor, rank: int, alpha: float, generator: torch.Generator) -> Start:
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    scaling = alpha / rank
    root = (s[-rank:] / scaling).sqrt()
    down, up = (root[:, None] * vt[-rank:]).float(), (u[:, -rank:] * root).float()
    residual = weight.double() - scaling * up.double() @ down.double()
    return Start(down.contiguous(), up.contiguous(), residual.float(), scaling)


_STARTS: dict[Init, Callable[[Tensor, int, float, torch.Generator], Start]] = {
    "lora": _by_peft(True),
    "pissa": _by_peft("pissa"),
    "milora": _minor,
    "orthonormal": _orthonormal,
}
