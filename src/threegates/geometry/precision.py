"""bfloat16 as the set of numbers that storage can hold: codes, gaps, and Def. 2.1."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import BFloat16, Bool, Float, Float64, Int16, Int32, Shaped
from torch import Tensor

from threegates.errors import GeometryError

SIGN_BIT = -0x8000
LARGEST_FINITE_CODE = 0x7F7F
INFINITY_CODE = 0x7F80
#: Relative tolerance of Definition 2.1; below 2⁻⁹, so that on stored values it means equality.
ETA = 1e-3


def to_bf16(x: Float[Tensor, "*shape"]) -> BFloat16[Tensor, "*shape"]:
    """Round to the nearest bfloat16, ties to the even code.

    float64 is first rounded *to odd* in float32, because float64 → float32 → bfloat16 by nearest
    alone rounds twice and lands on the wrong side of some midpoints.

    Parameters
    ----------
    x : floating tensor of any shape; NaN stays NaN, |x| ≥ 2¹²⁸ − 2¹¹⁹ becomes an infinity.

    Returns
    -------
    bfloat16 tensor of the same shape; |x − result| ≤ ½ ULP.

    **Source** IEEE 754-2019 §4.3.1; rounding to odd: Boldo and Melquiond (2008), Theorem 3.
    """
    return (_float32_to_odd(x) if x.dtype == torch.float64 else x).to(torch.bfloat16)


def _float32_to_odd(x: Float64[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    nearest = x.to(torch.float32)
    back = nearest.to(torch.float64)
    too_far = (back.abs() > x.abs()).to(torch.int32)
    truncated = nearest.view(torch.int32) - too_far
    return (truncated | (back != x).to(torch.int32)).view(torch.float32)


def bf16_codes(x: Shaped[Tensor, "*shape"]) -> Int32[Tensor, "*shape"]:
    """Number the bfloat16 values in their order, so that neighbours differ by one.

    code(x) = sign(x) · (bits(x) without the sign); −0 and +0 are both 0, ±∞ are ±0x7F80.

    Parameters
    ----------
    x : bfloat16 tensor of any shape.

    Returns
    -------
    int32 codes in [−0x7F80, 0x7F80]; x < y exactly when code(x) < code(y).

    Raises
    ------
    GeometryError : x is not bfloat16, or holds a NaN, which has no place in an order.

    **Source** the order of IEEE 754 bit patterns, Goldberg (1991), §"Relative Error and Ulps".
    """
    require_bf16(x, "x")
    bits = x.contiguous().view(torch.int16).to(torch.int32)
    codes = torch.where(bits < 0, -(bits - SIGN_BIT), bits)
    _refuse(codes.abs() > INFINITY_CODE, "NaN")
    return codes


def bf16_from_codes(codes: Int32[Tensor, "*shape"]) -> BFloat16[Tensor, "*shape"]:
    """Give back the bfloat16 values of ordered codes; the inverse of `bf16_codes`, up to −0 → +0.

    Parameters
    ----------
    codes : int32 tensor with entries in [−0x7F80, 0x7F80].

    Raises
    ------
    GeometryError : a code lies outside that range.

    **Source** as `bf16_codes`.
    """
    _refuse(codes.abs() > INFINITY_CODE, "a code beyond infinity")
    bits = torch.where(codes < 0, -codes + SIGN_BIT, codes)
    return bits.to(torch.int16).view(torch.bfloat16)


def unchanged_by_definition(
    w: Float[Tensor, "*shape"], w_hat: Float[Tensor, "*shape"], eta: float | int = ETA
) -> Bool[Tensor, "*shape"]:
    """Say entry by entry whether a weight is unchanged in the sense of the paper.

    |ŵ − w| ≤ η · max(|w|, |ŵ|), evaluated in float64.

    On bfloat16 values with η < 2⁻⁹ this is equality of codes (−0 = +0): two different neighbours lie at
    least 2⁻⁸ of the larger one apart. On float32 masters it is another, looser relation: say which is meant.

    Parameters
    ----------
    w, w_hat : floating tensors of one shape, before and after.
    eta : relative tolerance, the paper's 1e-3.

    Returns
    -------
    bool tensor. NaN counts as changed. An infinity is unchanged only where it stays what it was, though
    the formula itself would say ∞ ≤ η · ∞.

    **Source** Zhu et al. (2025), arXiv 2511.08567, Definition 2.1.
    """
    before, after = w.to(torch.float64), w_hat.to(torch.float64)
    distance = (after - before).abs()
    near = (distance <= eta * torch.maximum(before.abs(), after.abs())) & distance.isfinite()
    return near | (before == after)


def ulp(x: Shaped[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """Spacing of bfloat16 at x: the distance from |x| to the next larger value.

    ULP(x) = 2^(max(⌊log₂|x|⌋, −126) − 7); for normal x, ULP(x)/|x| ∈ (2⁻⁸, 2⁻⁷].

    Parameters
    ----------
    x : finite bfloat16 tensor of any shape.

    Returns
    -------
    float64 tensor, in [2⁻¹³³, 2¹²⁰].

    Raises
    ------
    GeometryError : x is not bfloat16 or not finite.

    **Source** Zhu et al. (2025), Lemma E.1 (with ≤ where it prints <: powers of two reach 2⁻⁷).
    """
    require_finite_bf16(x, "x")
    return _binade(magnitude_bits(x)) * 2.0**-7


def half_gaps(
    w: Shaped[Tensor, "*shape"],
) -> tuple[Float64[Tensor, "*shape"], Float64[Tensor, "*shape"]]:
    """Distances from a bfloat16 value down and up to the midpoints where rounding leaves it.

    (w − prev(w))/2 and (next(w) − w)/2. At a power of two the gap towards zero is half the other one;
    beyond the largest finite value, 2¹²⁸ stands in for infinity, as in IEEE rounding.

    Exactly *at* a midpoint, ties-to-even keeps w when its code is even and leaves it when odd. For a
    continuous displacement that event has probability zero.

    Parameters
    ----------
    w : finite bfloat16 tensor of any shape.

    Returns
    -------
    (down, up) : float64 tensors, exact powers of two in [2⁻¹³⁴, 2¹¹⁹].

    Raises
    ------
    GeometryError : w is not bfloat16 or not finite.

    **Source** Zhu et al. (2025), Cor. 3.6 and Lemma E.2 (½ ULP), with the borders that they leave out.
    """
    require_finite_bf16(w, "w")
    up = torch.zeros((), dtype=torch.int16, device=w.device)
    return half_gap_towards(w, ~up), half_gap_towards(w, up)


def gaps_beyond(
    w: Shaped[Tensor, "*shape"], eta: float | int = ETA
) -> tuple[Float64[Tensor, "*shape"], Float64[Tensor, "*shape"]]:
    """Distances from a bfloat16 value down and up to where storage holds a value that η calls changed.

    Let ŵ be the nearest bfloat16 value on a side with |ŵ − w| > η · max(|w|, |ŵ|). The distance reaches to
    the midpoint between ŵ and the value before it, beyond which rounding gives ŵ or a farther one. For
    η < 2⁻⁹ the value ŵ is the neighbour, and the distances equal `half_gaps`.

    Parameters
    ----------
    w : finite bfloat16 tensor; eta : relative tolerance of Definition 2.1, in [0, 1/2].

    Returns
    -------
    (down, up) : float64 tensors, positive; infinite where no value of that side is called changed.

    Raises
    ------
    GeometryError : w is not bfloat16 or not finite, or eta is out of range.

    **Source** Zhu et al. (2025), Definition 2.1 and Lemma E.2, for any η.
    """
    if not 0 <= eta <= 0.5:
        raise GeometryError("a relative tolerance lies in [0, 1/2]", found=eta)
    if eta < 2.0**-9:
        return half_gaps(w)
    require_finite_bf16(w, "w")
    # A weight is one of 2¹⁶ codes, and its distances are looked up: sooner than found anew for every entry.
    codes = w.contiguous().view(torch.int16).to(torch.int64) & 0xFFFF
    down, up = (table.to(w.device)[codes] for table in _gaps_of_codes(float(eta)))
    return down, up


@lru_cache(maxsize=8)
def _gaps_of_codes(eta: float) -> tuple[Tensor, Tensor]:
    """Distances down and up by the 16 bits of a value; NaN for what is not finite."""
    values = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    finite = values.isfinite()
    tables = []
    for side in (-1, 1):
        table = torch.full(values.shape, math.nan, dtype=torch.float64)
        table[finite] = _gap_beyond(values[finite], eta, side)
        tables.append(table)
    return tables[0], tables[1]


def _gap_beyond(w: Tensor, eta: float, side: int) -> Tensor:
    codes, value = bf16_codes(w), w.double()
    distance = torch.full_like(value, math.inf)
    pending = torch.ones_like(w, dtype=torch.bool)
    before, steps = value, 0
    # Neighbours lie at least 2⁻⁸ of the larger one apart, so that few steps are enough.
    while pending.any():
        steps += 1
        after = _value_of(codes + side * steps)
        changed = (after - value).abs() > eta * torch.maximum(value.abs(), after.abs())
        now = pending & changed
        distance = torch.where(now, ((before + after) / 2 - value).abs(), distance)
        # Beyond the largest value there is nothing that could be called changed.
        inside = (codes + side * steps).abs() < INFINITY_CODE
        pending, before = pending & ~changed & inside, after
    return distance


def _value_of(codes: Tensor) -> Tensor:
    """Values of ordered codes in float64; beyond the largest finite one, 2¹²⁸ stands in for infinity."""
    values = bf16_from_codes(codes.clamp(-INFINITY_CODE, INFINITY_CODE)).double()
    return torch.where(values.isinf(), values.sign() * 2.0**128, values)


def half_gap_towards(
    w: Shaped[Tensor, "*shape"], direction: Int16[Tensor, "*direction"]
) -> Float64[Tensor, "*shape"]:
    """Pick the lower half-gap where `direction` is −1, the upper where it is 0; w is finite bfloat16.

    The gap away from zero is the ULP of w, the gap towards zero the ULP of the value before it. Bits order
    magnitudes, so the value before is one less in bits. Half the work of `half_gaps`, for every draw of a
    null.

    **Source** as `half_gaps`.
    """
    bits = w.contiguous().view(torch.int16)
    towards_zero = (bits >> 15) ^ direction
    return _binade(((bits & 0x7FFF) + towards_zero).clamp(min=0)) * 2.0**-8


def sign_word(x: Float[Tensor, "*shape"]) -> Int16[Tensor, "*shape"]:
    """−1 where the sign bit is set, 0 elsewhere, as `half_gap_towards` takes it."""
    return (x.to(torch.float32).view(torch.int32) >> 31).to(torch.int16)


def _binade(magnitude: Shaped[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """Largest power of two not above each value, from its bits; subnormals have the least normal's."""
    return (magnitude & 0x7F80).clamp(min=0x80).view(torch.bfloat16).to(torch.float64)


def magnitude_bits(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """int16 bit patterns of |x|, for bfloat16 x; they order |x|."""
    return x.contiguous().view(torch.int16) & 0x7FFF


def require_bf16(x: Shaped[Tensor, "*shape"], name: str) -> None:
    """Raise GeometryError unless x is stored in bfloat16."""
    if x.dtype != torch.bfloat16:
        raise GeometryError(
            f"{name} is not stored in bfloat16",
            expected=torch.bfloat16,
            found=x.dtype,
            remedy="round it first with threegates.geometry.precision.to_bf16",
        )


def require_finite_bf16(x: Shaped[Tensor, "*shape"], name: str) -> None:
    """Raise GeometryError unless x is bfloat16 without NaN or infinity."""
    require_bf16(x, name)
    magnitude = magnitude_bits(x)
    # One maximum is far cheaper than a comparison of every entry, and every null draw asks.
    if x.numel() and int(magnitude.max()) >= INFINITY_CODE:
        _refuse(magnitude >= INFINITY_CODE, "NaN or infinity", name)


def _refuse(bad: Bool[Tensor, "*shape"], kind: str, name: str = "the tensor") -> None:
    count = int(bad.count_nonzero())
    if count:
        first = [int(i) for i in torch.nonzero(bad)[0]]
        raise GeometryError(
            f"{name} holds {kind}",
            expected="none",
            found=f"{count} of {bad.numel()} entries, first at {first}",
        )
