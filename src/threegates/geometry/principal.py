"""Principal and low-magnitude weights: their masks, and how much of an update mask lies on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.masks import pack, popcount, unpack
from threegates.geometry.nulls.noise import Real
from threegates.geometry.thresholds import (
    Cut,
    Magnitudes,
    Reconstruction,
    Selector,
    check_marked,
    entry_count,
    find_cuts,
    packed_smallest,
)

HEADLINE_ALPHA = 0.5
HEADLINE_RANK = 64
SMALLEST_FULL_SIDE = 512
TARGETS = ("principal", "low", "principal_not_low")

NORMAL_975 = 1.959963984540054
"""97.5 % point of the standard normal distribution, for intervals of 95 %."""

Packed = Tensor
"""A mask packed by `threegates.geometry.masks.pack`."""


def headline_rank(shape: Sequence[int]) -> int:
    """Rank k fixed before looking: 64 where the smaller side n ≥ 512, else n/8 (at least 1).

    Raises
    ------
    GeometryError : not the shape of a matrix with entries.

    **Source** this study; Zhu et al. (2025) give no k, the follow-up 2606.07082 says 64.
    """
    if len(shape) != 2 or min(shape) < 1:
        raise GeometryError(
            "only matrices have a rank", expected="two sides of at least 1", found=tuple(shape)
        )
    n = min(shape)
    return HEADLINE_RANK if n >= SMALLEST_FULL_SIDE else max(1, n // 8)


def principal_mask(
    u: Float[Tensor, "m k"],
    s: Float[Tensor, " k"],
    v: Float[Tensor, "n columns"],
    alpha: Real = HEADLINE_ALPHA,
) -> Bool[Tensor, "m n"]:
    """Mark the principal weights: the share α of largest |W⁽ᵏ⁾|, W⁽ᵏ⁾ = U diag(s) Vᵀ.

    Exactly round(α · m · n) entries (half up); of equal entries the ones of lowest flat index.

    Parameters
    ----------
    u, v : k singular vectors as columns (V, not Vᵀ); s : their singular values; alpha : in [0, 1].

    Returns
    -------
    bool mask. W⁽ᵏ⁾ is rounded in float64: entries within rounding of the threshold may fall on either side.

    Raises
    ------
    GeometryError : the factors are not finite or do not fit, or α lies outside [0, 1].

    **Source** Zhu et al. (2025), §5.1, after LIFT, Liu et al. (2025), arXiv 2506.00772.
    """
    return unpack(packed_principal_mask(u, s, v, alpha), (len(u), len(v)))


def packed_principal_mask(
    u: Float[Tensor, "m k"],
    s: Float[Tensor, " k"],
    v: Float[Tensor, "n columns"],
    alpha: Real = HEADLINE_ALPHA,
) -> UInt8[Tensor, " bytes"]:
    """`principal_mask`, packed; holds neither W⁽ᵏ⁾ nor the mask as a whole.

    **Source** as `principal_mask`.
    """
    keys = Reconstruction(u, s, v)
    return packed_smallest(keys, entry_count(alpha, keys.size))[0]


def low_magnitude_mask(
    base: Shaped[Tensor, "*shape"], alpha: Real = HEADLINE_ALPHA
) -> Bool[Tensor, "*shape"]:
    """Mark the low-magnitude weights: the share α of smallest |W₀|.

    Exactly round(α · size) entries (half up). Stored weights tie often: the lowest flat index goes first.

    Raises
    ------
    GeometryError : base is not finite, or α lies outside [0, 1].

    **Source** Zhu et al. (2025), §5.1.
    """
    return unpack(packed_low_magnitude_mask(base, alpha), base.shape)


def packed_low_magnitude_mask(
    base: Shaped[Tensor, "*shape"], alpha: Real = HEADLINE_ALPHA
) -> UInt8[Tensor, " bytes"]:
    """`low_magnitude_mask`, packed.

    **Source** as `low_magnitude_mask`.
    """
    return packed_smallest(Magnitudes(base), entry_count(alpha, base.numel()))[0]


def largest_updates(delta: Float[Tensor, "*shape"], count: int) -> Bool[Tensor, "*shape"]:
    """The fp32 view of an update: mark the `count` largest |ΔW|, ΔW from the fp32 master.

    With the count of the bf16 mask in its place, it shows the same share of the update without the rounding
    that favours small weights. Ties by lowest flat index; entries of ΔW = 0 come last.

    Raises
    ------
    GeometryError : ΔW is not finite, or count lies outside [0, size].

    **Source** this study's control beside Zhu et al. (2025), Fig. 5.
    """
    return unpack(packed_smallest(Magnitudes(delta, largest=True), count)[0], delta.shape)


def principal_targets(
    base: Shaped[Tensor, "m n"],
    u: Float[Tensor, "m k"],
    s: Float[Tensor, " k"],
    v: Float[Tensor, "n columns"],
    alpha: Real = HEADLINE_ALPHA,
) -> dict[str, Packed]:
    """Packed M_princ, M_low and M_princ ∩ M_lowᶜ of one matrix, by the names in `TARGETS`.

    Raises
    ------
    GeometryError : as `principal_mask` and `low_magnitude_mask`.

    **Source** Zhu et al. (2025), Fig. 5.
    """
    principal, low = packed_principal_mask(u, s, v, alpha), packed_low_magnitude_mask(base, alpha)
    return {"principal": principal, "low": low, "principal_not_low": principal & ~low}


@dataclass(frozen=True)
class Overlap:
    """Share of an update mask that lies on a target mask, beside what chance would give.

    overlap = |target ∩ M|/|M|; density = |target|/size, the paper's baseline; lift = overlap/density, with
    Wilson's 95 % interval of the overlap divided by the density. That interval takes the changed entries as
    independent draws: it is the noise of counting, not of seeds, and too narrow where updates have stripes.
    All NaN where nothing changed; lift NaN where the target is empty.
    """

    both: int
    changed: int
    target: int
    size: int

    @property
    def overlap(self) -> float:
        """|target ∩ M|/|M|, in [0, 1]."""
        return self.both / self.changed if self.changed else math.nan

    @property
    def density(self) -> float:
        """Density of the target itself, the overlap of a mask that knows nothing of it."""
        return self.target / self.size if self.size else math.nan

    @property
    def lift(self) -> float:
        """overlap/density: below 1 the update avoids the target."""
        return self.overlap / self.density if self.target else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the lift."""
        if not self.target:
            return math.nan, math.nan
        low, high = wilson(self.both, self.changed)
        return low / self.density, high / self.density


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion; NaN without trials.

    (p̂ + z²/2n ± z √(p̂(1−p̂)/n + z²/4n²)) / (1 + z²/n), z = 1.96.

    Raises
    ------
    GeometryError : hits lies outside [0, trials].

    **Source** Wilson (1927).
    """
    if not 0 <= hits <= trials:
        raise GeometryError("more hits than trials", expected=f"0 … {trials}", found=hits)
    if not trials:
        return math.nan, math.nan
    share, z2 = hits / trials, NORMAL_975**2 / trials
    centre = (share + z2 / 2) / (1 + z2)
    reach = math.sqrt(share * (1 - share) * z2 + z2**2 / 4) / (1 + z2)
    # At the ends the interval closes exactly; rounding alone would leave it open by an ulp.
    return (0.0 if hits == 0 else centre - reach), (1.0 if hits == trials else centre + reach)


def overlap(mask: UInt8[Tensor, " mask"], target: UInt8[Tensor, " target"], size: int) -> Overlap:
    """Overlap of a packed update mask with a packed target.

    Parameters
    ----------
    mask, target : packed masks of one tensor; size : its number of entries.

    Raises
    ------
    GeometryError : a mask's length does not fit the size.

    **Source** Zhu et al. (2025), Fig. 5: |M_x ∩ M|/|M|.
    """
    for packed in (mask, target):
        _require_fit(packed, size)
    return Overlap(popcount(mask & target), popcount(mask), popcount(target), size)


def _require_fit(packed: Packed, size: int) -> None:
    if len(packed) != -(-size // 8):
        raise GeometryError(
            "a packed mask does not fit its tensor",
            expected=f"{-(-size // 8)} bytes for {size} entries",
            found=len(packed),
        )


def overlaps(mask: UInt8[Tensor, " bytes"], targets: Mapping[str, Packed], size: int) -> dict[str, Overlap]:
    """`overlap` of one packed update mask with each of several targets, by name.

    **Source** as `overlap`.
    """
    return {name: overlap(mask, target, size) for name, target in targets.items()}


@dataclass(frozen=True)
class SweepCell:
    """Overlaps of one update mask at one rank and one share, by the names in `TARGETS`."""

    mask: int
    rank: int
    alpha: float
    overlaps: dict[str, Overlap]


@dataclass(frozen=True)
class SweepTargets:
    """Every M_princ and M_low of a base over a grid k × α, as thresholds and packed masks.

    keys : W⁽ᵏ⁾ of every rank; cuts : thresholds by (k, α); lows : a packed M_low for each α; counts : entries
    of a target for each α.
    """

    keys: Reconstruction
    alphas: tuple[float, ...]
    counts: list[int]
    lows: list[Packed]
    cuts: list[list[Cut]]


def sweep_targets(
    base: Shaped[Tensor, "m n"],
    u: Float[Tensor, "m r"],
    s: Float[Tensor, " r"],
    v: Float[Tensor, "n columns"],
    *,
    ranks: Sequence[int],
    alphas: Sequence[Real],
) -> SweepTargets:
    """Targets of a base over a grid k × α, found once for all masks: one stream finds every threshold.

    Parameters
    ----------
    u, s, v : at least max(ranks) singular triplets. α is the share of M_princ and of M_low alike.

    Raises
    ------
    GeometryError : as `principal_mask`; ranks do not ascend in 1 … r.

    **Source** as `overlap_sweep`.
    """
    keys = Reconstruction(u, s, v, ranks)
    counts = [entry_count(alpha, keys.size) for alpha in alphas]
    lows = [packed_low_magnitude_mask(base, alpha) for alpha in alphas]
    return SweepTargets(keys, tuple(map(float, alphas)), counts, lows, find_cuts(keys, counts))


def overlap_sweep(targets: SweepTargets, masks: Sequence[Packed]) -> list[SweepCell]:
    """Overlaps over a grid k × α, for several update masks at once.

    One stream over tiles counts for the whole grid. The reconstructions are accumulated over ascending k
    within a tile. Memory: a tile for each k, and a packed M_low for each α.

    Parameters
    ----------
    targets : of the base, from `sweep_targets`; masks : packed masks, observed or drawn from a null.

    Returns
    -------
    a cell for each mask, rank and α, in that order. Masks are as `principal_mask` gives them, up to
    entries within rounding of the threshold (the order of summation differs).

    Raises
    ------
    GeometryError : a mask does not fit the matrix.

    **Source** Zhu et al. (2025), Fig. 5, which gives neither k nor α.
    """
    keys, counts, lows = targets.keys, targets.counts, targets.lows
    kept, both, both_kept = _sweep_counts(targets, masks)
    cells = []
    for i, mask in enumerate(masks):
        changed = popcount(mask)
        for layer, rank in enumerate(keys.ranks):
            for a, alpha in enumerate(targets.alphas):
                on_low = popcount(mask & lows[a])
                found = (
                    Overlap(int(both[i, layer, a]), changed, counts[a], keys.size),
                    Overlap(on_low, changed, counts[a], keys.size),
                    Overlap(int(both_kept[i, layer, a]), changed, int(kept[layer, a]), keys.size),
                )
                cells.append(SweepCell(i, rank, alpha, dict(zip(TARGETS, found, strict=True))))
    return cells


def _sweep_counts(
    targets: SweepTargets, masks: Sequence[Packed]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """|M_princ ∩ M_lowᶜ| by (k, α); |M ∩ M_princ| and |M ∩ M_princ ∩ M_lowᶜ| by (mask, k, α)."""
    keys, counts, lows = targets.keys, targets.counts, targets.lows
    for mask in masks:
        _require_fit(mask, keys.size)
    selectors = [[Selector(cut) for cut in cuts] for cuts in targets.cuts]
    marked, kept = (np.zeros((keys.layers, len(counts)), dtype=np.int64) for _ in range(2))
    both, both_kept = (np.zeros((len(masks), *kept.shape), dtype=np.int64) for _ in range(2))
    start = 0
    for tile in keys.tiles():
        here = slice(start, start := start + -(-len(tile[0]) // 8))
        for layer, a in np.ndindex(kept.shape):
            principal = pack(selectors[layer][a].take(tile[layer]))
            apart = principal & ~lows[a][here]
            marked[layer, a] += popcount(principal)
            kept[layer, a] += popcount(apart)
            for i, mask in enumerate(masks):
                both[i, layer, a] += popcount(mask[here] & principal)
                both_kept[i, layer, a] += popcount(mask[here] & apart)
    for layer, a in np.ndindex(marked.shape):
        check_marked(int(marked[layer, a]), counts[a])
    return kept, both, both_kept


def overlap_draws(
    masks: Iterator[Tensor], targets: Mapping[str, Packed], draws: int
) -> dict[str, np.ndarray]:
    """Overlaps of null masks with each target, for `threegates.geometry.nulls.summaries.summarise`.

    Parameters
    ----------
    masks : bool masks, as from the sampler of a null; targets : packed, by name; draws : how many to take.

    Returns
    -------
    for each target an array of at most `draws` overlaps; NaN where a null mask is empty.

    **Source** Monte-Carlo null of Zhu et al. (2025), Fig. 5; this study.
    """
    out: dict[str, list[float]] = {name: [] for name in targets}
    for mask in islice(masks, draws):
        packed = pack(mask)
        for name, found in overlaps(packed, targets, mask.numel()).items():
            out[name].append(found.overlap)
    return {name: np.array(values) for name, values in out.items()}
