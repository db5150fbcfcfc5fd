"""Exact order statistics of matrices too large to copy or sort: a sampled bracket, then a tiled count.

A mask of the `count` smallest keys needs one number, the key of rank `count`. A sample brackets it; one pass
over tiles counts the keys below the bracket and collects the few inside; the wanted key is among those. Where
the sample was unlucky the pass itself says on which side to look, so the result is exact whatever it was.

**Tie rule.** Of equal keys, those of lowest flat (row-major) index go first, in every mask made here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.masks import pack, popcount
from threegates.geometry.nulls.noise import Real
from threegates.geometry.precision import magnitude_bits, require_finite_bf16

TILE = 1 << 17
"""Entries of a dense tensor at a time: keys and comparisons of one tile stay in the cache."""

PIECE = 1 << 15
"""Keys compared with one bracket after the other while they are in the cache."""

PRODUCT_TILE = 1 << 19
"""Entries of a matrix product at a time: enough rows for the product to run at its speed."""

SAMPLE = 1 << 16
"""Entries that bracket a threshold: ± 4 standard errors hold at most 1.6 % of a matrix, rarely missed."""

FEW = 1 << 12
"""Sampled entries whose factors are gathered at a time."""


class Keys(ABC):
    """Keys of a matrix's entries, given tile by tile in row-major order; the smallest key goes first.

    Several `layers` of keys may belong to one matrix (a rank-k reconstruction for each k). Each tile holds a
    multiple of 8 entries, except perhaps the last, so that its packed mask is whole bytes.
    """

    size: int
    layers: int
    device: torch.device

    @abstractmethod
    def tiles(self) -> Iterator[list[Tensor]]:
        """Flat keys of one tile after the other, a tensor for each layer; the same at every call."""

    @abstractmethod
    def at(self, index: Int64[Tensor, " entries"]) -> list[Tensor]:
        """Keys of some entries, a tensor for each layer; may differ from the tiles' by rounding."""


class Magnitudes(Keys):
    """|x| as keys, ascending, or −|x| where the largest go first; bfloat16 is compared by its bits.

    Raises
    ------
    GeometryError : x is not a floating tensor, or holds NaN or infinity.

    **Source** the bits of IEEE 754 order magnitudes, Goldberg (1991).
    """

    def __init__(self, x: Shaped[Tensor, "*shape"], *, largest: bool = False) -> None:
        require_finite(x)
        self.size, self.layers, self.device = x.numel(), 1, x.device
        self._flat, self._largest = x.detach().reshape(-1), largest

    def tiles(self) -> Iterator[list[Tensor]]:
        """Keys of `TILE` entries at a time."""
        for piece in self._flat.split(_at_a_time(TILE, self.device)):
            yield [self._keys(piece)]

    def at(self, index: Int64[Tensor, " entries"]) -> list[Tensor]:
        """Keys of some entries, exactly the keys that the tiles have."""
        return [self._keys(self._flat[index])]

    def _keys(self, x: Tensor) -> Tensor:
        magnitude = magnitude_bits(x) if x.dtype == torch.bfloat16 else x.abs()
        return magnitude.neg_() if self._largest else magnitude


class Reconstruction(Keys):
    """−|W⁽ᵏ⁾| as keys, W⁽ᵏ⁾ = Σ_{i≤k} σ_i u_i v_iᵀ, one layer for each k; never held as a whole.

    The products of ascending k are accumulated within a tile, so that all ranks cost what the last one does.

    Parameters
    ----------
    u : (m, r) and v : (n, r), singular vectors as columns (V, not Vᵀ); s : (r,), their singular values.
    ranks : ascending, each in 1 … r; r alone by default.

    Raises
    ------
    GeometryError : the factors do not fit together or are not finite, or the ranks are not of that kind.

    **Source** Eckart and Young (1936); W⁽ᵏ⁾ as in LIFT, Liu et al. (2025), arXiv 2506.00772. In float64.
    """

    def __init__(
        self,
        u: Float[Tensor, "m r"],
        s: Float[Tensor, " r"],
        v: Float[Tensor, "n columns"],
        ranks: Sequence[int] | None = None,
    ) -> None:
        for factor in (u, s, v):
            require_finite(factor)
        _check_factors(u, s, v)
        self.ranks = list(ranks) if ranks is not None else [len(s)]
        _check_ranks(self.ranks, len(s))
        self._left = u.detach().to(torch.float64) * s.detach().to(torch.float64)
        self._right = v.detach().to(torch.float64)
        self.shape = (len(u), len(v))
        self.size, self.layers, self.device = len(u) * len(v), len(self.ranks), u.device

    def tiles(self) -> Iterator[list[Tensor]]:
        """Keys of about `PRODUCT_TILE` entries at a time: whole rows."""
        for rows in self._left.split(self._rows_per_tile()) if self.size else ():
            products = (left @ right.T for left, right in self._parts(rows))
            yield [keys.reshape(-1) for keys in self._accumulate(products)]

    def at(self, index: Int64[Tensor, " entries"]) -> list[Tensor]:
        """Keys of some entries, up to the rounding of another order of summation."""
        pieces = [self._at_few(few) for few in index.split(FEW)]
        return [torch.cat(layer) for layer in zip(*pieces, strict=True)]

    def _at_few(self, index: Tensor) -> list[Tensor]:
        rows, columns = self._left[index // self.shape[1]], index % self.shape[1]
        products = ((left * right[columns]).sum(1) for left, right in self._parts(rows))
        return list(self._accumulate(products))

    def _rows_per_tile(self) -> int:
        """Rows whose entries fill whole bytes of a packed mask."""
        columns = self.shape[1]
        step = 8 // math.gcd(columns, 8)
        return max(1, _at_a_time(PRODUCT_TILE, self.device) // (columns * step)) * step

    def _parts(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The factors between one rank and the next."""
        for start, stop in zip([0, *self.ranks], self.ranks, strict=False):
            yield rows[:, start:stop], self._right[:, start:stop]

    @staticmethod
    def _accumulate(parts: Iterator[Tensor]) -> Iterator[Tensor]:
        total: Tensor | None = None
        for part in parts:
            total = part if total is None else total + part
            yield total.abs().neg_()


def _at_a_time(entries: int, device: torch.device) -> int:
    """Elsewhere than on the CPU there is no cache to fit, and every call costs a wait."""
    return entries if device.type == "cpu" else entries << 6


@dataclass(frozen=True)
class Cut:
    """Where a mask ends: all keys below `value`, and the first `taken` of the `tied` keys equal to it."""

    value: Real
    taken: int
    tied: int


def entry_count(share: Real, size: int) -> int:
    """Number of entries that a share of a tensor stands for: share · size, rounded to the nearest, half up.

    Raises
    ------
    GeometryError : share lies outside [0, 1].

    **Source** this study; the paper gives α only as a share.
    """
    if not 0 <= share <= 1:
        raise GeometryError("a share lies between 0 and 1", found=share)
    return min(size, math.floor(share * size + 0.5))


def find_cuts(keys: Keys, counts: Sequence[int]) -> list[list[Cut]]:
    """Exact cuts for several counts in every layer, from one stream over the tiles (seldom a second).

    Returns
    -------
    cuts[layer][i] marks exactly counts[i] entries.

    Raises
    ------
    GeometryError : a count lies outside [0, size].

    **Source** selection by sampling, Floyd and Rivest (1975).
    """
    for count in counts:
        if not 0 <= count <= keys.size:
            raise GeometryError(
                "a mask cannot hold that many entries", expected=f"0 … {keys.size}", found=count
            )
    found: dict[tuple[int, int], Cut] = {
        (layer, count): Cut(math.copysign(math.inf, count - 0.5), 0, 0)
        for layer in range(keys.layers)
        for count in {0, keys.size}
    }
    brackets = _sampled_brackets(keys, sorted(set(counts) - {0, keys.size}))
    while brackets:
        tallies = _tally(keys, brackets)
        found |= {cell: tally.cut(cell[1]) for cell, tally in tallies.items() if tally.holds(cell[1])}
        brackets = {cell: tally.elsewhere(cell[1]) for cell, tally in tallies.items() if cell not in found}
    return [[found[layer, count] for count in counts] for layer in range(keys.layers)]


def _sampled_brackets(keys: Keys, counts: Sequence[int]) -> dict[tuple[int, int], tuple[Real, Real]]:
    """Bounds between which the key of rank `count` lies, most probably, for each (layer, count)."""
    if not counts:
        return {}
    # The sample steers the work, never the result, so its seed may be fixed.
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(keys.size, (min(SAMPLE, keys.size),), generator=generator).to(keys.device)
    samples = [layer.sort().values.tolist() for layer in keys.at(index)]
    return {
        (layer, count): _bracket(sample, count / keys.size)
        for layer, sample in enumerate(samples)
        for count in counts
    }


def _bracket(ordered: Sequence[Real], share: float) -> tuple[Real, Real]:
    n = len(ordered)
    reach = 4 * math.sqrt(n * share * (1 - share)) + 2
    low, high = math.floor(n * share - reach), math.ceil(n * share + reach)
    return (ordered[low] if low >= 0 else -math.inf), (ordered[high] if high < n else math.inf)


def _tally(keys: Keys, brackets: dict[tuple[int, int], tuple[Real, Real]]) -> dict[tuple[int, int], _Tally]:
    tallies = {cell: _Tally(*bounds) for cell, bounds in brackets.items()}
    for tile in keys.tiles():
        for layer, layer_keys in enumerate(tile):
            waiting = [tally for cell, tally in tallies.items() if cell[0] == layer]
            for piece in layer_keys.split(_at_a_time(PIECE, keys.device)):
                for tally in waiting:
                    tally.add(piece)
    return tallies


class _Tally:
    """Keys below a bracket, counted, and those inside it, kept."""

    def __init__(self, low: Real, high: Real) -> None:
        self.low, self.high = low, high
        self.below = self.inside = 0
        self._buffer = torch.empty(0)

    def add(self, keys: Tensor) -> None:
        below, kept = (_split_in_numpy if keys.device.type == "cpu" else _split)(keys, self.low, self.high)
        self.below += below
        # Where a bracket holds one value only, zero for instance, its count is enough and no entry is kept.
        if self.low != self.high:
            self._keep(kept)
        self.inside += len(kept)

    def _keep(self, keys: Tensor) -> None:
        """Append to one growing buffer; thousands of small pieces would leave the heap full of holes."""
        stop = self.inside + len(keys)
        if stop > len(self._buffer):
            grown = keys.new_empty(2 * stop)
            grown[: self.inside] = self._buffer[: self.inside]
            self._buffer = grown
        self._buffer[self.inside : stop] = keys

    def holds(self, count: int) -> bool:
        return self.below < count <= self.below + self.inside

    def elsewhere(self, count: int) -> tuple[Real, Real]:
        return (-math.inf, self.low) if count <= self.below else (self.high, math.inf)

    def cut(self, count: int) -> Cut:
        rank = count - self.below
        if self.low == self.high:
            return Cut(self.low, rank, self.inside)
        kept = self._buffer[: self.inside]
        value = kept.kthvalue(rank).values
        return Cut(
            value.item(), rank - int((kept < value).count_nonzero()), int((kept == value).count_nonzero())
        )


def _split(keys: Tensor, low: Real, high: Real) -> tuple[int, Tensor]:
    """How many keys lie below low, and those in [low, high]."""
    under = keys < low
    return int(under.count_nonzero()), keys[(keys <= high) ^ under]


def _split_in_numpy(keys: Tensor, low: Real, high: Real) -> tuple[int, Tensor]:
    """`_split` on the CPU, where numpy compares and picks more than twice as fast as torch."""
    values = keys.numpy()
    under = values < low
    return int(np.count_nonzero(under)), torch.from_numpy(values[(values <= high) != under])


class Selector:
    """Marks, tile by tile and in order, the entries that a cut keeps."""

    def __init__(self, cut: Cut) -> None:
        self._cut, self._left = cut, cut.taken

    def take(self, keys: Shaped[Tensor, " entries"]) -> Bool[Tensor, " entries"]:
        """Mask of the next tile."""
        if self._cut.taken == self._cut.tied:
            return keys <= self._cut.value
        mask = keys < self._cut.value
        tied = torch.nonzero(keys == self._cut.value).reshape(-1)[: self._left]
        mask[tied] = True
        self._left -= len(tied)
        return mask


def packed_smallest(keys: Keys, count: int) -> list[UInt8[Tensor, " bytes"]]:
    """Packed masks of exactly `count` smallest keys, one for each layer; ties by lowest flat index.

    Raises
    ------
    GeometryError : count lies outside [0, size]; or the keys were not the same in both streams.

    **Source** order statistics; packed as by `threegates.geometry.masks.pack`.
    """
    selectors = [Selector(cuts[0]) for cuts in find_cuts(keys, [count])]
    packed: list[list[Tensor]] = [[torch.empty(0, dtype=torch.uint8, device=keys.device)] for _ in selectors]
    for tile in keys.tiles():
        for pieces, selector, layer in zip(packed, selectors, tile, strict=True):
            pieces.append(pack(selector.take(layer)))
    masks = [torch.cat(pieces) for pieces in packed]
    for mask in masks:
        check_marked(popcount(mask), count)
    return masks


def check_marked(marked: int, count: int) -> None:
    """Raise GeometryError unless a mask holds its count.

    A product may round otherwise when it runs again, on more threads say; then the mask would be wrong.
    """
    if marked != count:
        raise GeometryError(
            "the keys changed between the search for a threshold and its use",
            expected=f"{count} entries",
            found=marked,
            remedy="keep the number of threads fixed while it runs",
        )


def packed_undecided(keys: Keys, count: int, tolerance: Real) -> list[UInt8[Tensor, " bytes"]]:
    """Packed masks of the entries whose key lies within `tolerance` of the cut, one for each layer.

    Where keys are known up to `tolerance/2` each, the mask of the `count` smallest is settled everywhere
    else: two methods may disagree here and nowhere but here.

    Parameters
    ----------
    tolerance : ≥ 0, in the units of the keys.

    Raises
    ------
    GeometryError : count lies outside [0, size], or the tolerance is negative.

    **Source** an order statistic moves by at most the largest change of a key.
    """
    if not tolerance >= 0:
        raise GeometryError("a tolerance is not negative", found=tolerance)
    cuts = find_cuts(keys, [count])
    packed: list[list[Tensor]] = [[torch.empty(0, dtype=torch.uint8, device=keys.device)] for _ in cuts]
    for tile in keys.tiles():
        for pieces, (cut,), layer in zip(packed, cuts, tile, strict=True):
            pieces.append(pack((layer - cut.value).abs() <= tolerance))
    return [torch.cat(pieces) for pieces in packed]


def _check_factors(u: Tensor, s: Tensor, v: Tensor) -> None:
    if not u.shape[1] == len(s) == v.shape[1]:
        raise GeometryError(
            "the factors of a reconstruction do not fit",
            expected="u (m, r), s (r,), v (n, r)",
            found=", ".join(str(tuple(factor.shape)) for factor in (u, s, v)),
            remedy="pass singular vectors as columns: V, where torch.linalg.svd gives Vᵀ",
        )


def _check_ranks(ranks: Sequence[int], available: int) -> None:
    if not ranks or ranks[0] < 1 or ranks[-1] > available or list(ranks) != sorted(set(ranks)):
        raise GeometryError(
            "no such ranks", expected=f"ascending ranks in 1 … {available}", found=list(ranks)
        )


def require_finite(x: Shaped[Tensor, "*shape"]) -> None:
    """Raise GeometryError unless x is floating without NaN or infinity."""
    if x.dtype == torch.bfloat16:
        return require_finite_bf16(x, "the tensor")
    if not x.is_floating_point():
        raise GeometryError("only floating tensors have magnitudes here", found=x.dtype)
    if x.numel() and not bool(torch.stack(x.detach().aminmax()).isfinite().all()):
        raise GeometryError(
            "the tensor holds NaN or infinity", expected="none", found=f"shape {tuple(x.shape)}"
        )
