"""Perturbation bounds of the paper's §3.2, each beside what was measured and whether it says anything.

A bound is *vacuous* where it would hold for any pair of matrices, or where it does not exclude that the
measured quantity changed by all of itself. None of them tells an update off the principal directions from one
along them: they bound every small update alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.nulls.noise import Real


@dataclass(frozen=True)
class Bound:
    """A theorem's bound, the quantity it bounds, and whether the bound says nothing."""

    name: str
    bound: float
    measured: float
    vacuous: bool

    @property
    def tightness(self) -> float:
        """measured/bound: above 1 the statement is false here; NaN where both are 0."""
        if self.bound == 0:
            return math.nan if self.measured == 0 else math.inf
        return self.measured / self.bound

    def holds(self, floor: Real = 0.0) -> bool:
        """Whether measured ≤ bound + floor, the floor being the numerical error of both together."""
        return self.measured <= self.bound + floor


def wedin_as_printed(before: Float[Tensor, " n"], spectral_norm: Real, k: int, sine: Real) -> Bound:
    """Thm 3.3 as the paper prints it: max(‖sin Θ(U_k)‖, ‖sin Θ(V_k)‖) ≤ ‖ΔW‖₂/γ_k, γ_k = σ_k − σ_{k+1} of W₀.

    False in general: the gap of W₀ alone does not keep the top k of W₊ apart from the rest. See
    `wedin_corrected`. Bound ∞ where γ_k = 0.

    Parameters
    ----------
    before : singular values of W₀, all of them, descending; spectral_norm : ‖ΔW‖₂.
    k : in 1 … n; sine : the measured larger of both sines, in [0, 1].

    Raises
    ------
    GeometryError : k out of range, values not descending, a negative norm.

    **Source** Zhu et al. (2025), Thm 3.3.
    """
    _check_spectra(before, before)
    return _wedin("Thm 3.3 as printed", _value(before, k) - _value_after(before, k), spectral_norm, sine)


def wedin_corrected(
    before: Float[Tensor, " n"], after: Float[Tensor, " after"], spectral_norm: Real, k: int, sine: Real
) -> Bound:
    """Thm 3.3 with the gap that Wedin's theorem needs: δ_k = σ_k(W₀) − σ_{k+1}(W₊) > 0.

    max(‖sin Θ(U_k)‖₂, ‖sin Θ(V_k)‖₂) ≤ ‖ΔW‖₂/δ_k. Bound ∞, and vacuous, where δ_k ≤ 0. σ_{n+1} counts as 0.

    Parameters
    ----------
    before, after : singular values of W₀ and W₊, descending; the rest as `wedin_as_printed`.

    Raises
    ------
    GeometryError : as `wedin_as_printed`; spectra of different length.

    **Source** Wedin (1972); Stewart and Sun (1990), Thm V.4.4.
    """
    _check_spectra(before, after)
    return _wedin("Thm 3.3, corrected gap", _value(before, k) - _value_after(after, k), spectral_norm, sine)


def _wedin(name: str, gap: float, spectral_norm: Real, sine: Real) -> Bound:
    if spectral_norm < 0 or not 0 <= sine <= 1 + 1e-9:
        raise GeometryError(
            "no sine or no norm", expected="sine in [0, 1], norm ≥ 0", found=(sine, spectral_norm)
        )
    bound = float(spectral_norm) / gap if gap > 0 else math.inf
    return Bound(name, bound, float(sine), bound >= 1)


def weyl(before: Float[Tensor, " n"], after: Float[Tensor, " after"], spectral_norm: Real) -> Bound:
    """Cor. 3.4, each value: max_k |σ_k(W₊) − σ_k(W₀)| ≤ ‖ΔW‖₂.

    Vacuous where ‖ΔW‖₂ ≥ σ₁(W₀): the whole spectrum might have vanished.

    Raises
    ------
    GeometryError : spectra of different length, empty or not descending.

    **Source** Weyl (1912); Zhu et al. (2025), Cor. 3.4.
    """
    _check_spectra(before, after)
    return _bound("Cor. 3.4, each value", spectral_norm, (after - before).abs().max(), before[0])


def mirsky(before: Float[Tensor, " n"], after: Float[Tensor, " after"], frobenius_norm: Real) -> Bound:
    """Cor. 3.4, the sum: Σ_k (σ_k(W₊) − σ_k(W₀))² ≤ ‖ΔW‖²_F.

    Vacuous where ‖ΔW‖²_F ≥ ‖W₀‖²_F.

    Raises
    ------
    GeometryError : as `weyl`.

    **Source** Mirsky (1960); Zhu et al. (2025), Cor. 3.4.
    """
    _check_spectra(before, after)
    measured = (after - before).square().sum()
    return _bound("Cor. 3.4, sum of squares", float(frobenius_norm) ** 2, measured, before.square().sum())


def ky_fan(before: Float[Tensor, " n"], after: Float[Tensor, " after"], spectral_norm: Real, k: int) -> Bound:
    """Cor. 3.5: |Σ_{i≤k} σ_i(W₊) − Σ_{i≤k} σ_i(W₀)| ≤ k ‖ΔW‖₂.

    Vacuous where k ‖ΔW‖₂ is at least the Ky Fan norm of W₀.

    Raises
    ------
    GeometryError : as `weyl`; k out of range.

    **Source** Fan (1951); Zhu et al. (2025), Cor. 3.5.
    """
    _check_spectra(before, after)
    _value(before, k)
    measured = (after[:k] - before[:k]).sum().abs()
    return _bound("Cor. 3.5", k * float(spectral_norm), measured, before[:k].sum())


def nss_bound(before: Float[Tensor, " n"], after: Float[Tensor, " after"], frobenius_norm: Real) -> Bound:
    """Normalised spectral shift: NSS = ‖σ(W₊) − σ(W₀)‖₂/‖σ(W₀)‖₂ ≤ ‖ΔW‖_F/‖W₀‖_F.

    Vacuous at 1 and above. Bound ∞ where W₀ = 0 and ΔW is not.

    Raises
    ------
    GeometryError : as `weyl`.

    **Source** Mirsky (1960), divided; NSS by Zhu et al. (2025), §4.1.
    """
    _check_spectra(before, after)
    base = float(before.norm())
    moved, own = float(frobenius_norm), float((after - before).norm())
    bound, measured = (x / base if base else (math.inf if x else 0.0) for x in (moved, own))
    return Bound("NSS", bound, measured, bound >= 1)


def _bound(name: str, bound: Real, measured: Tensor, whole: Tensor) -> Bound:
    return Bound(name, float(bound), float(measured), bool(float(bound) >= float(whole)))


def _value(values: Tensor, k: int) -> float:
    if not 1 <= k <= len(values):
        raise GeometryError("no such singular value", expected=f"1 … {len(values)}", found=k)
    return float(values[k - 1])


def _value_after(values: Tensor, k: int) -> float:
    return float(values[k]) if k < len(values) else 0.0


def _check_spectra(before: Tensor, after: Tensor) -> None:
    if len(before) != len(after) or not len(before):
        raise GeometryError(
            "spectra to compare have one length",
            expected=len(before) or "at least one value",
            found=len(after),
        )
    for values in (before, after):
        if float(values[-1]) < 0 or bool((values.diff() > 0).any()):
            raise GeometryError("singular values descend and are not negative", found=values[:8].tolist())
