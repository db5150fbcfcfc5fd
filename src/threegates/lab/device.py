"""Whether the device that a recipe asks for is there."""

from __future__ import annotations

import torch

from threegates.errors import RecipeError


def require_device(device: str, where: str) -> None:
    """Refuse a device that this machine lacks.

    Raises
    ------
    RecipeError : the device is "cuda" and torch finds none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise RecipeError(
            "a recipe asks for a device that is not here",
            where=where,
            expected="a CUDA device and a build of torch that finds it",
            found=f"torch {torch.__version__} without a CUDA device",
            remedy="Train on such a machine, or choose a profile for the CPU.",
        )
