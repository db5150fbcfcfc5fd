"""Weights with a planted truth, held in memory: a base like a trained one, and updates whose law is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from threegates.checkpoints.formats.headers import TensorInfo
from threegates.checkpoints.tensors import DTYPES, Checkpoint
from threegates.geometry.nulls.noise import gaussian_noise, noise_generator
from threegates.geometry.precision import to_bf16
from threegates.geometry.principal import headline_rank, principal_mask

#: One block; every smaller side is 64, so that the headline rank is 8.
SHAPES = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (64, 64),
    "self_attn.v_proj": (64, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (96, 64),
    "mlp.up_proj": (96, 64),
    "mlp.down_proj": (64, 96),
}
#: Standard deviation of an update over the median |W|: about half of the stored weights change.
SCALE = 0.003
#: SFT's update over RL's where they differ in norm alone.
LARGER = 10.0
#: The planted avoidance: updates of principal weights are this much smaller than the others. The bf16 mask's
#: overlap with them then lies .04 below that of storage noise of equal density, of equal norm, and of the
#: magnitude null.
DAMPING = 0.75
#: The planted stripes: every fourth line's updates are this much larger than the others, and this share of
#: the update's energy is the same in every run.
LOUDER, COMMON = 4.0, 0.8
#: Share of the energy of a turning update that turns leading directions into the others, and its size over
#: RL's at SFT's own rate.
TURNING, TURNING_LARGER = 0.9, 3.0
#: What is left, in a keeping update, of the parts that turn leading directions into the others.
KEEPING = 0.5

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Held(Checkpoint):
    """A checkpoint whose tensors lie in memory; all else is as for one on disk."""

    tensors: dict[str, Tensor] = field(default_factory=dict)

    def stored(self, name: str) -> Tensor:
        return self.tensors[self.info(name).name]


def held(name: str, tensors: dict[str, Tensor]) -> Held:
    """Tensors as the checkpoint of that name."""
    infos = {
        key: TensorInfo(key, _NAMES[x.dtype], tuple(x.shape), Path(name), (0, x.nbytes))
        for key, x in sorted(tensors.items())
    }
    return Held(Path(name), {"model_type": "llama"}, infos, tensors=tensors)


@dataclass(frozen=True)
class Matrix:
    """A base matrix in bf16, its principal weights and singular vectors, and the scale of updates on it.

    `common` is noise that runs may have in common.
    """

    name: str
    weight: Tensor
    principal: Tensor
    frames: tuple[Tensor, Tensor]
    scale: float
    common: Tensor


def base_matrices(number: int) -> list[Matrix]:
    """One block whose singular values fall as i^-½, with log-normal scales of rows and of columns."""
    return [
        _matrix(f"model.layers.0.{place}.weight", SHAPES[place], noise_generator(number, "base", place))
        for place in sorted(SHAPES)
    ]


def _matrix(name: str, shape: tuple[int, int], generator: torch.Generator) -> Matrix:
    rank = min(shape)
    left, right = (torch.linalg.qr(_gaussian((side, rank), generator)).Q for side in shape)
    plain = (left * torch.arange(1, rank + 1, dtype=torch.float64) ** -0.5) @ right.T
    rows, columns = (torch.exp(0.5 * _gaussian((side,), generator)) for side in shape)
    weight = to_bf16(0.3 * rows[:, None] * plain * columns)
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    k = headline_rank(shape)
    principal = principal_mask(u[:, :k].contiguous(), s[:k], vh[:k].T.contiguous())
    scale = SCALE * float(weight.double().abs().median())
    return Matrix(name, weight, principal, (u, vh.T), scale, _gaussian(shape, generator))


def _gaussian(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return gaussian_noise(shape, generator).double()


def _noise(matrix: Matrix, generator: torch.Generator) -> Tensor:
    return _gaussian(matrix.weight.shape, generator)


def _avoiding(matrix: Matrix, generator: torch.Generator) -> Tensor:
    damped = torch.where(matrix.principal, DAMPING, 1.0)
    return _of_unit_scale(damped * _noise(matrix, generator))


def _striped(matrix: Matrix, generator: torch.Generator) -> Tensor:
    """Loud rows, or columns of O; they and part of the update are the same in every run."""
    mixed = COMMON**0.5 * matrix.common + (1 - COMMON) ** 0.5 * _noise(matrix, generator)
    along = 1 if "o_proj" in matrix.name else 0
    loud = torch.ones(matrix.weight.shape[along], dtype=torch.float64)
    loud[::4] = LOUDER
    return _of_unit_scale(mixed * (loud if along else loud[:, None]))


def _turning(matrix: Matrix, generator: torch.Generator) -> Tensor:
    """Noise, and a part that carries leading directions of either side into the space of the others."""
    u, v = matrix.frames
    k = headline_rank(matrix.weight.shape)
    left, right = (_gaussian((u.shape[1] - k, k), generator) for _ in range(2))
    turned = _of_unit_scale(u[:, k:] @ left @ v[:, :k].T + u[:, :k] @ right.T @ v[:, k:].T)
    return TURNING**0.5 * turned + (1 - TURNING) ** 0.5 * _noise(matrix, generator)


def _keeping(matrix: Matrix, generator: torch.Generator) -> Tensor:
    """Noise with less of the parts that carry leading directions into the space of the others."""
    u, v = matrix.frames
    k, noise = headline_rank(matrix.weight.shape), _noise(matrix, generator)
    inner = u.T @ noise @ v
    inner[:k, k:] *= KEEPING
    inner[k:, :k] *= KEEPING
    return _of_unit_scale(noise + u @ (inner - u.T @ noise @ v) @ v.T)


def _of_unit_scale(update: Tensor) -> Tensor:
    """Scaled to a root mean square of one, so that plants differ in where they lie and not in their norm."""
    return update / update.square().mean().sqrt()


#: Laws of an update of unit scale; `large` is noise of a larger norm.
PLANTS: dict[str, Callable[[Matrix, torch.Generator], Tensor]] = {
    "noise": _noise,
    "large": lambda matrix, generator: LARGER * _noise(matrix, generator),
    "avoiding": _avoiding,
    "striped": _striped,
    "turning": _turning,
    "keeping": _keeping,
    "large keeping": lambda matrix, generator: LARGER * _keeping(matrix, generator),
    "large turning": lambda matrix, generator: TURNING_LARGER * _turning(matrix, generator),
}


def tuned(matrices: list[Matrix], plant: str, run: str, number: int) -> Held:
    """A run in float32: the base and an update of that law."""
    tensors = {}
    for matrix in matrices:
        generator = noise_generator(number, "update", plant, run, matrix.name)
        update = matrix.scale * PLANTS[plant](matrix, generator)
        tensors[matrix.name] = (matrix.weight.double() + update).float()
    return held(run, tensors)
