"""Base matrices, decomposed once for all tuned ones that are held against them.

This is the one place where the study decomposes a base, whatever is measured of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from threegates.geometry.decomposition import BaseDecomposition
from threegates.geometry.spectra import FullSpectrum, singular_values
from threegates.measures.base_cache import decompose_base, decompose_base_beside_spectrum
from threegates.measures.by_tensor import Shared

#: Up to this smaller side everything is found by float64 SVDs, beyond it by the certified engine.
REFERENCE_SIDE = 256


@dataclass(frozen=True)
class Base:
    """A base matrix in the type that it is measured in, its leading triplets, and all its singular values."""

    weight: Tensor
    leading: BaseDecomposition
    accuracy: str

    @cached_property
    def spectrum(self) -> FullSpectrum:
        """All singular values."""
        return singular_values(self.leading.operator, self.accuracy)


def accuracy_of(shape: Sequence[int]) -> str:
    """How exactly a matrix of that shape is measured: 'reference' or 'certified'."""
    return "reference" if min(shape) <= REFERENCE_SIDE else "certified"


def working_type(weight: Tensor) -> torch.dtype:
    """Type that a matrix is measured in: float64 for float64 SVDs and float64 weights, else float32."""
    wide = accuracy_of(weight.shape) == "reference" or weight.dtype == torch.float64
    return torch.float64 if wide else torch.float32


def base_of(weight: Tensor, k: int, shared: Shared, *, spectrum: bool = False) -> Base:
    """A base matrix with its k leading triplets, found once for each content among what is shared.

    spectrum : whether all singular values will be asked for. They are found at once then, from the Gram
    matrix of the certificate, which is kept for nothing else.
    """
    exact, accuracy = weight.to(working_type(weight)), accuracy_of(weight.shape)
    found = shared.of(
        ("base", k, accuracy), exact, lambda: Base(exact, decompose_base(exact, k, accuracy), accuracy)
    )
    if spectrum:
        _ = found.spectrum
    found.leading.operator.release()
    return found


def accuracy_within(shape: Sequence[int], asked: str) -> str:
    """How exactly a matrix is measured where an accuracy is asked for: small ones by float64 SVDs always."""
    return "reference" if accuracy_of(shape) == "reference" else asked


def base_beside_spectrum(weight: Tensor, k: int, shared: Shared, asked: str) -> Base:
    """`base_of` with all singular values as well, at an accuracy that is asked for; its Gram matrix is gone.

    asked : 'fast', 'certified' or 'reference'.

    Raises
    ------
    GeometryError : as `threegates.geometry.decomposition.decompose`.
    """
    accuracy = accuracy_within(weight.shape, asked)
    wide = accuracy == "reference" or working_type(weight) == torch.float64
    exact = weight.to(torch.float64 if wide else torch.float32)

    def compute() -> Base:
        base = Base(exact, decompose_base_beside_spectrum(exact, k, accuracy), accuracy)
        _ = base.spectrum
        base.leading.operator.release()
        return base

    return shared.of(("base beside spectrum", k, accuracy), exact, compute)
