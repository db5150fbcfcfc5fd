"""Update masks of two bfloat16 tensors: exact, streamed, packed; their ratios and agreements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Shaped, UInt8
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.precision import (
    ETA,
    INFINITY_CODE,
    SIGN_BIT,
    magnitude_bits,
    require_bf16,
    unchanged_by_definition,
)

TILE = 1 << 19
"""Entries compared at a time: half a MiB of mask, and few enough tiles that calls cost nothing."""


@dataclass(frozen=True)
class MaskCounts:
    """How many entries changed, in all and along each row and column (None unless the tensor is 2-D)."""

    changed: int
    size: int
    rows: Tensor | None
    columns: Tensor | None
    shape: tuple[int, ...]

    @property
    def sparsity(self) -> float:
        """Share of unchanged entries; NaN for an empty tensor."""
        return sparsity(self.changed, self.size)


def update_mask(
    base: Shaped[Tensor, "*base"], tuned: Shaped[Tensor, "*tuned"], eta: float = ETA
) -> Bool[Tensor, "*base"]:
    """Mark the weights whose stored value changed.

    M_ij = 1[ŵ_ij ≠ w_ij], the two zeros being equal. On bfloat16 values this *is* Definition 2.1, for every
    η < 2⁻⁹; a larger η leaves out changes by one code or a few.

    Parameters
    ----------
    base, tuned : bfloat16 tensors of one shape; infinities are values like any other.
    eta : relative tolerance of Definition 2.1.

    Raises
    ------
    GeometryError : another dtype, different shapes, or a NaN (which no comparison can judge).

    **Source** Zhu et al. (2025), Definition 2.1.
    """
    _check_pair(base, tuned)
    _refuse_nan(base, "base")
    _refuse_nan(tuned, "tuned")
    return base != tuned if eta < 2.0**-9 else ~unchanged_by_definition(base, tuned, eta)


def count_changes(
    base: Shaped[Tensor, "*base"], tuned: Shaped[Tensor, "*tuned"], *, tile: int = TILE
) -> MaskCounts:
    """Count changed entries in all, per row and per column, without ever holding the mask.

    changed = Σ_ij M_ij, rows_i = Σ_j M_ij, columns_j = Σ_i M_ij with M the `update_mask`. Exact.

    Parameters
    ----------
    base, tuned : bfloat16 tensors of one shape, contiguous or not; any number of dimensions.
    tile : entries compared at a time; one byte of scratch memory each, four in a tile with −0.

    Returns
    -------
    MaskCounts with int64 counts; rows and columns are None unless the tensors are matrices.

    Raises
    ------
    GeometryError : as `update_mask`.

    **Source** Zhu et al. (2025), Definitions 2.1 and 2.2.
    """
    _check_pair(base, tuned)
    if tile < 1:
        raise GeometryError("a tile holds at least one entry", found=tile)
    before, after = (_as_matrix(x.detach()) for x in (base, tuned))
    count = _count_in_numpy if base.device.type == "cpu" else _count_anywhere
    rows, columns = count(before, after, tile)
    matrix = base.dim() == 2
    return MaskCounts(
        changed=int(rows.sum()),
        size=base.numel(),
        rows=rows if matrix else None,
        columns=columns if matrix else None,
        shape=tuple(base.shape),
    )


def _as_matrix(x: Tensor) -> Tensor:
    if x.dim() == 2:
        return x
    return x.reshape(x.shape[0], -1) if x.dim() > 2 and x.numel() else x.reshape(1, -1)


def _tiles(shape: Sequence[int], tile: int) -> Iterator[tuple[slice, slice]]:
    """Cut a matrix into blocks of at most `tile` entries, as wide as row counts in 16 bits allow."""
    width = max(1, min(shape[1], tile, 0xFFFF))
    height = max(1, tile // width)
    for top in range(0, shape[0], height):
        for left in range(0, shape[1], width):
            yield slice(top, top + height), slice(left, left + width)


def _count_in_numpy(base: Tensor, tuned: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """Count on the CPU, where numpy's integer loops are several times as fast as torch's."""
    before, after = base.view(torch.int16).numpy(), tuned.view(torch.int16).numpy()
    rows, columns = (np.zeros(n, dtype=np.int64) for n in base.shape)
    scratch = _Scratch(min(tile, base.numel()))
    for block in _tiles(base.shape, tile):
        a, b = before[block], after[block]
        if _has_nan(a) or _has_nan(b):
            _refuse_nan(base, "base")
            _refuse_nan(tuned, "tuned")
        mask = scratch.differ(a, b)
        rows[block[0]] += np.add.reduce(mask, axis=1, dtype=np.uint16)
        # A byte per column holds the sum of 255 rows, and many bytes are added at once.
        for top in range(0, len(mask), 255):
            columns[block[1]] += np.add.reduce(mask[top : top + 255], axis=0, dtype=np.uint8)
    return torch.from_numpy(rows), torch.from_numpy(columns)


class _Scratch:
    """Buffers for one tile, made once; what no tile needs is never touched and takes no memory."""

    def __init__(self, size: int) -> None:
        self._mask, self._other = np.empty(size, dtype=np.bool_), np.empty(size, dtype=np.bool_)
        self._bits = np.empty(size, dtype=np.int16)

    def differ(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Mask of two tiles of bfloat16 bit patterns, as bytes; −0 equals +0."""
        mask, other, bits = (x[: a.size].reshape(a.shape) for x in (self._mask, self._other, self._bits))
        np.not_equal(a, b, out=mask)
        if a.min() == SIGN_BIT or b.min() == SIGN_BIT:
            # Only of two zeros, one of them −0, is the union of bits the sign bit alone.
            np.not_equal(np.bitwise_or(a, b, out=bits), SIGN_BIT, out=other)
            np.logical_and(mask, other, out=mask)
        return mask.view(np.uint8)


def _has_nan(bits: np.ndarray) -> bool:
    """Whether bfloat16 bit patterns hold a NaN of either sign; two reductions, nothing written."""
    return bool(bits.max() > INFINITY_CODE or bits.view(np.uint16).max() > (INFINITY_CODE | 0x8000))


def _count_anywhere(base: Tensor, tuned: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """Count on any device, by torch."""
    rows, columns = (torch.zeros(n, dtype=torch.int64, device=base.device) for n in base.shape)
    for block in _tiles(base.shape, tile):
        mask = update_mask(base[block], tuned[block])
        rows[block[0]] += mask.count_nonzero(dim=1)
        columns[block[1]] += mask.count_nonzero(dim=0)
    return rows, columns


def sparsity(changed: int, size: int) -> float:
    """Share of unchanged entries, 1 − changed/size, in [0, 1]; NaN when size is 0.

    Raises
    ------
    GeometryError : changed lies outside [0, size].

    **Source** Zhu et al. (2025), Definition 2.2.
    """
    if not 0 <= changed <= size:
        raise GeometryError("more entries changed than there are", expected=f"0 … {size}", found=changed)
    return 1 - changed / size if size else float("nan")


def row_ratio(mask: Bool[Tensor, "m n"] | MaskCounts) -> Float64[Tensor, " m"]:
    """Share of changed entries in each row, ρ_i = (1/n) Σ_j M_ij, in [0, 1]; NaN when n = 0.

    Raises
    ------
    GeometryError : the counts are not a matrix's.

    **Source** Zhu et al. (2025), §3 and Fig. 3.
    """
    counts, (_, columns) = _axis_counts(mask, 1)
    return counts.to(torch.float64) / columns


def column_ratio(mask: Bool[Tensor, "m n"] | MaskCounts) -> Float64[Tensor, " n"]:
    """Share of changed entries in each column, κ_j = (1/m) Σ_i M_ij, in [0, 1]; NaN when m = 0.

    Raises
    ------
    GeometryError : the counts are not a matrix's.

    **Source** Zhu et al. (2025), §3 and Fig. 3.
    """
    counts, (rows, _) = _axis_counts(mask, 0)
    return counts.to(torch.float64) / rows


def _axis_counts(mask: Tensor | MaskCounts, summed: int) -> tuple[Tensor, tuple[int, int]]:
    if len(mask.shape) != 2:
        raise GeometryError(
            "only matrices have rows and columns", expected="2 dimensions", found=tuple(mask.shape)
        )
    if isinstance(mask, MaskCounts):
        counts = mask.rows if summed == 1 else mask.columns
        assert counts is not None
    else:
        counts = mask.count_nonzero(dim=summed)
    return counts, (mask.shape[0], mask.shape[1])


def pack(mask: Bool[Tensor, "*shape"]) -> UInt8[Tensor, " bytes"]:
    """Pack a mask into bits: row-major, little bit order, padded with zeros to whole bytes.

    Byte b holds entries 8b … 8b+7, the first in its lowest bit; ⌈size/8⌉ bytes.

    **Source** numpy.packbits(bitorder="little").
    """
    flat = mask.reshape(-1)
    if flat.device.type == "cpu":
        return torch.from_numpy(np.packbits(flat.numpy(), bitorder="little"))
    padded = torch.nn.functional.pad(flat.to(torch.uint8), (0, -flat.numel() % 8)).reshape(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def unpack(packed: UInt8[Tensor, " bytes"], shape: Sequence[int]) -> Bool[Tensor, ...]:
    """Undo `pack` for a mask of the given shape.

    Raises
    ------
    GeometryError : the number of bytes does not fit the shape, or padding bits are set.

    **Source** as `pack`.
    """
    size = int(np.prod(shape, dtype=np.int64))
    if packed.numel() != -(-size // 8):
        raise GeometryError(
            "packed mask does not fit its shape",
            expected=f"{-(-size // 8)} bytes for {tuple(shape)}",
            found=packed.numel(),
        )
    bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1).reshape(-1)
    if bits[size:].any():
        raise GeometryError("packed mask has bits set behind its end", expected=f"{size} bits, then zeros")
    return bits[:size].to(torch.bool).reshape(tuple(shape))


def popcount(packed: UInt8[Tensor, " bytes"]) -> int:
    """Number of set bits in a packed mask.

    **Source** population count, Warren (2012), §5-1.
    """
    if packed.device.type == "cpu":
        return _popcount(packed.contiguous().numpy())
    return int(_BYTE_POPCOUNT.to(packed.device)[packed.to(torch.int64)].sum())


_BYTE_POPCOUNT = torch.from_numpy(np.bitwise_count(np.arange(256, dtype=np.uint8)).astype(np.int64))


def _popcount(packed: np.ndarray) -> int:
    whole = packed.size // 8 * 8
    words = np.bitwise_count(packed[:whole].view(np.uint64)).sum(dtype=np.int64)
    return int(words) + int(np.bitwise_count(packed[whole:]).sum(dtype=np.int64))


def jaccard(a: Shaped[Tensor, "*a"], b: Shaped[Tensor, "*b"]) -> float:
    """Agreement of two masks: J = |A ∩ B| / |A ∪ B|.

    Parameters
    ----------
    a, b : both bool of one shape, or both packed by `pack`.

    Returns
    -------
    float in [0, 1]; NaN when both masks are empty.

    Raises
    ------
    GeometryError : shapes or kinds differ, or the tensors are neither bool nor uint8.

    **Source** Jaccard (1912); Zhu et al. (2025), Table 2.
    """
    _check_masks([a, b])
    if a.dtype == torch.bool:
        both, either = int((a & b).count_nonzero()), int((a | b).count_nonzero())
    else:
        both, either = popcount(a & b), popcount(a | b)
    return both / either if either else float("nan")


def expected_jaccard(p: float | int, q: float | int) -> float:
    """Jaccard of independent Bernoulli masks of densities p and q, to first order: pq/(p + q − pq).

    The paper's baseline. In [0, min(p, q)]; NaN when p = q = 0. It is the ratio of expectations, which
    differs from the expected ratio by O(1/size).

    Raises
    ------
    GeometryError : p or q lies outside [0, 1].

    **Source** Zhu et al. (2025), Table 2.
    """
    if not (0 <= p <= 1 and 0 <= q <= 1):
        raise GeometryError("a density lies between 0 and 1", found=(p, q))
    union = p + q - p * q
    return p * q / union if union else float("nan")


def jaccard_matrix(masks: Sequence[Shaped[Tensor, ...]]) -> Float64[Tensor, "r r"]:
    """Jaccard of every two of R masks; symmetric (R, R), diagonal 1 (NaN for an empty mask).

    Raises
    ------
    GeometryError : as `jaccard`.

    **Source** Zhu et al. (2025), Fig. 12.
    """
    _check_masks(masks)
    packed = [pack(m) if m.dtype == torch.bool else m for m in masks]
    out = torch.empty(len(masks), len(masks), dtype=torch.float64)
    for i, a in enumerate(packed):
        for j, b in enumerate(packed[: i + 1]):
            out[i, j] = out[j, i] = jaccard(a, b)
    return out


def consensus(masks: Sequence[Bool[Tensor, "*shape"]]) -> Float32[Tensor, "*shape"]:
    """Share of runs that changed each weight, C_ij = (1/R) Σ_r M_ij⁽ʳ⁾, in [0, 1].

    Raises
    ------
    GeometryError : no mask, or shapes differ.

    **Source** Zhu et al. (2025), Fig. 2.
    """
    _check_masks(masks)
    total = torch.zeros(masks[0].shape, dtype=torch.float32, device=masks[0].device)
    for mask in masks:
        total += mask
    return total / len(masks)


def _check_pair(base: Tensor, tuned: Tensor) -> None:
    require_bf16(base, "base")
    require_bf16(tuned, "tuned")
    if base.shape != tuned.shape:
        raise GeometryError(
            "tensors of different shape have no update mask",
            expected=tuple(base.shape),
            found=tuple(tuned.shape),
        )


def _refuse_nan(x: Tensor, name: str) -> None:
    bad = magnitude_bits(x) > INFINITY_CODE
    if count := int(bad.count_nonzero()):
        first = tuple(int(i) for i in torch.nonzero(bad)[0])
        raise GeometryError(
            f"{name} holds NaN, which is neither changed nor unchanged",
            expected="no NaN",
            found=f"{count} of {x.numel()} entries, first at {first}",
            remedy="look at how the checkpoint was written; it cannot be measured",
        )


def _check_masks(masks: Sequence[Tensor]) -> None:
    if not masks:
        raise GeometryError("no mask given", expected="at least one")
    kinds = {(m.dtype, tuple(m.shape)) for m in masks}
    if len(kinds) > 1 or next(iter(kinds))[0] not in (torch.bool, torch.uint8):
        raise GeometryError(
            "masks must be alike",
            expected="bool masks of one shape, or packed masks of one length",
            found=sorted(map(str, kinds)),
        )
