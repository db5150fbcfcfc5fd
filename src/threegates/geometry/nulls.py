"""Null models of an update mask: what storage, magnitude and chance alone would leave.

Why the nulls have *exactly* as many changed entries as the observed mask. Under the storage null an
update is s·Z with Z i.i.d. Gaussian and an unknown scale s, and entry ij changes once s passes its
critical scale s*_ij = half-gap/|Z_ij|: the mask is {ij : s*_ij < s}. The scale is a nuisance and the count
carries nearly all that the mask says about it, so we compare only masks of the observed count. Drawing Z
and changing the entries of the c smallest critical scales takes away the nuisance without estimating it.
(Given c, the scale of a draw still varies by O(c^-1/2) around the true one, which moves the law of the
mask by as little. The tests plant storage noise and check that p-values are uniform.)

What the other nulls hold fixed. Null 1b holds the norm, so its density differs from the observed one as
soon as an update is not coordinate-blind; a Jaccard, which follows density, is then compared across
densities. The magnitude null holds the count of each bin of |w| and so serves any noise, at the price of a
blur: in a bin that straddles a power of two, weights of unequal gap are exchanged as if they were alike.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.precision import (
    ETA,
    gaps_beyond,
    half_gap_towards,
    magnitude_bits,
    require_finite_bf16,
    sign_word,
    to_bf16,
)

NOISE_DOMAIN = "threegates.geometry.nulls"

# Both are named because the shape checker, unlike mypy, does not take an int for a float.
Real = float | int


def noise_generator(seed: int, *names: str, device: str | torch.device = "cpu") -> torch.Generator:
    """Make a generator for null draws whose stream no weight initialisation shares.

    The state comes from numpy's SeedSequence over a domain string, the seed and the names (run, tensor,
    null…). On the CPU the whole Mersenne Twister state is filled: torch keeps only the lowest 32 bits of a
    seed there, so that a hashed seed could still meet `torch.manual_seed(0)`.

    Parameters
    ----------
    seed : non-negative integer of the study.
    names : what the draws are for; other names, other streams.

    Raises
    ------
    GeometryError : seed is negative.

    **Source** O'Neill (2015) via numpy.random.SeedSequence; Matsumoto and Nishimura (1998).
    """
    if seed < 0:
        raise GeometryError("a seed is not negative", found=seed)
    digest = hashlib.sha256("\0".join([NOISE_DOMAIN, *names]).encode()).digest()
    sequence = np.random.SeedSequence([seed, *np.frombuffer(digest, dtype="<u4").tolist()])
    generator = torch.Generator(device=device)
    generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))
    if generator.device.type == "cpu":
        _fill_twister(generator, sequence.generate_state(624, np.uint32))
    return generator


def _fill_twister(generator: torch.Generator, words: np.ndarray) -> None:
    """Overwrite the 624 state words (each in 8 bytes, after 24 bytes of header) of a fresh CPU generator."""
    state = generator.get_state()
    state[24 : 24 + 624 * 8] = torch.from_numpy(words.astype(np.int64)).view(torch.uint8)
    generator.set_state(state)


def as_generator(generator: torch.Generator | int) -> torch.Generator:
    """Take a generator as it is; turn an integer seed into `noise_generator(seed)`."""
    return noise_generator(generator) if isinstance(generator, int) else generator


def gaussian_noise(shape: Sequence[int], generator: torch.Generator | int) -> Float[Tensor, ...]:
    """Standard normal float32 noise, drawn on the generator's device.

    **Source** the coordinate-blind update: i.i.d. N(0, 1).
    """
    source = as_generator(generator)
    return torch.randn(tuple(shape), generator=source, device=source.device, dtype=torch.float32)


def critical_scale(
    base: Shaped[Tensor, "*shape"], noise: Float[Tensor, "*shape"]
) -> Float64[Tensor, "*shape"]:
    """Smallest scale at which scaled noise changes each stored weight.

    s*_ij = (half-gap of w_ij in the direction of z_ij) / |z_ij|: for s < s* round(w + s z) = w, for
    s > s* it differs. At s = s* itself the sum is a midpoint, and the even code wins: a null event.

    Half-gaps are powers of two, so float64 keeps the order of any two float32 noises exactly.

    Parameters
    ----------
    base : finite bfloat16 tensor; noise : floating tensor of its shape.

    Returns
    -------
    float64 in (0, ∞]; ∞ where z = 0.

    Raises
    ------
    GeometryError : base is not bfloat16 or not finite.

    **Source** Zhu et al. (2025), Lemma E.2, per entry and direction; the null is this study's.
    """
    require_finite_bf16(base, "base")
    noise = noise.to(base.device)
    return half_gap_towards(base, sign_word(noise)) / noise.to(torch.float64).abs()


def scale_to_pass(
    gaps: tuple[Float64[Tensor, "*shape"], Float64[Tensor, "*shape"]], noise: Float[Tensor, "*shape"]
) -> Float64[Tensor, "*shape"]:
    """`critical_scale` for given distances down and up, such as those of `precision.gaps_beyond`.

    In (0, ∞]; ∞ where z = 0. The distances of a base are computed once for all draws.

    **Source** as `critical_scale`.
    """
    down, up = gaps
    return torch.where(noise < 0, down, up) / noise.to(torch.float64).abs()


def rounded_sum(
    base: Shaped[Tensor, "*shape"], noise: Float[Tensor, "*shape"], scale: Real
) -> Shaped[Tensor, "*shape"]:
    """round_bf16(w + s z), the sum taken in float64 and rounded once.

    **Source** the storage null, by its definition.
    """
    return to_bf16(base.to(torch.float64) + scale * noise.to(base.device, torch.float64))


def storage_mask_at_density(
    base: Shaped[Tensor, "*shape"], changed: int, generator: torch.Generator | int
) -> Bool[Tensor, "*shape"]:
    """Null 1a: the mask of scaled Gaussian noise that changes exactly `changed` stored weights.

    M = the `changed` entries of smallest critical scale, ties by lowest flat index; the same mask as rounding
    w + s z at any s between the `changed`-th critical scale and the next.

    Parameters
    ----------
    base : finite bfloat16 tensor; changed : in [0, size]; generator : or an integer seed.

    Raises
    ------
    GeometryError : changed is out of range, or base is not finite bfloat16.

    **Source** this study's null 1a; see the module for why the count is exact.
    """
    noise = gaussian_noise(base.shape, generator)
    return smallest(critical_scale(base, noise), changed)


def smallest(values: Shaped[Tensor, "*shape"], count: int) -> Bool[Tensor, "*shape"]:
    """Mark exactly `count` smallest entries; of equal ones, those of lowest flat (row-major) index.

    Raises
    ------
    GeometryError : count lies outside [0, size].

    **Source** order statistics.
    """
    _check_count(count, values.numel())
    if count in (0, values.numel()):
        return torch.full(values.shape, count > 0, dtype=torch.bool, device=values.device)
    flat = values.reshape(-1)
    threshold = _kth_smallest(flat, count)
    mask = flat <= threshold
    surplus = int(mask.count_nonzero()) - count
    if surplus:
        tied = torch.nonzero(flat == threshold).reshape(-1)
        mask[tied[len(tied) - surplus :]] = False
    return mask.reshape(values.shape)


def _kth_smallest(flat: Tensor, k: int) -> Tensor | float:
    if flat.device.type == "cpu":
        return float(np.partition(flat.numpy(), k - 1)[k - 1])
    return torch.kthvalue(flat, k).values


def _check_count(count: int, size: int) -> None:
    if not 0 <= count <= size:
        raise GeometryError("a mask cannot change that many entries", expected=f"0 … {size}", found=count)


def storage_mask_at_norm(
    base: Shaped[Tensor, "*shape"], scale: Real, generator: torch.Generator | int
) -> Bool[Tensor, "*shape"]:
    """Null 1b: the mask of Gaussian noise of a given scale, by adding and rounding it.

    M_ij = 1[round_bf16(w_ij + s z_ij) ≠ w_ij], with s from `storage_scale_for_norm`.

    Parameters
    ----------
    base : finite bfloat16 tensor; scale : standard deviation of the noise, ≥ 0.

    Raises
    ------
    GeometryError : scale is negative or not finite, or base is not finite bfloat16.

    **Source** this study's null 1b.
    """
    require_finite_bf16(base, "base")
    _check_scale(scale)
    return rounded_sum(base, gaussian_noise(base.shape, generator), scale) != base


def _check_scale(scale: Real) -> None:
    if not 0 <= scale < math.inf:
        raise GeometryError("a noise scale is finite and not negative", found=scale)


def storage_scale_for_norm(
    base: Shaped[Tensor, "*shape"],
    norm: Real,
    generator: torch.Generator | int,
    *,
    draws: int = 4,
    tolerance: Real = 1e-3,
) -> float:
    """Scale of Gaussian noise whose *rounded* update has a given Frobenius norm.

    Solves rms over draws of ‖round(w + s Z) − w‖_F = norm for s, with the same Z at every s (common random
    numbers): each |round(w + s z) − w| grows with s, so the left side does too, and a bracket in log s holds.

    Parameters
    ----------
    base : finite bfloat16 tensor; norm : ≥ 0, the stored ‖ΔW‖_F to match; draws : number of Z.
    tolerance : relative, on the norm. On tiny tensors the left side moves in steps that can jump over the
        target; the search then ends at the step (relative width 1e-9).

    Returns
    -------
    s ≥ 0; 0 where norm is 0. Between draws the norm of one rounded update still varies by O(size^-1/2).

    Raises
    ------
    GeometryError : norm is negative or not finite, base is empty or not finite bfloat16.

    **Source** this study's null 1b.
    """
    require_finite_bf16(base, "base")
    if not 0 <= norm < math.inf or not base.numel():
        raise GeometryError(
            "no noise has that norm", expected="a finite norm ≥ 0 of a tensor with entries", found=norm
        )
    if norm == 0:
        return 0.0
    source = as_generator(generator)
    noises = [gaussian_noise(base.shape, source) for _ in range(draws)]
    return _increasing_root(
        lambda s: _rounded_norm(base, noises, s) / norm - 1, norm / math.sqrt(base.numel()), tolerance
    )


def _rounded_norm(base: Tensor, noises: Sequence[Tensor], scale: float) -> float:
    before = base.to(torch.float64)
    squares = [float((rounded_sum(base, z, scale).to(torch.float64) - before).square().sum()) for z in noises]
    return math.sqrt(sum(squares) / len(squares))


def _increasing_root(excess: Callable[[float], float], guess: Real, tolerance: Real) -> float:
    """Root of an increasing function of s > 0 that goes from −1 to ∞, perhaps in steps."""
    low, high = _bracket(excess, guess)
    below, above = excess(low), excess(high)
    middle, value = (low, below) if abs(below) < abs(above) else (high, above)
    while abs(value) > tolerance and high > low * (1 + 1e-9):
        # Between false position and bisection: as fast as the one, and as sure to end as the other.
        share = min(max(-below / (above - below), 0.25), 0.75)
        middle = low * (high / low) ** share
        value = excess(middle)
        if value < 0:
            low, below = middle, value
        else:
            high, above = middle, value
    return middle


def _bracket(excess: Callable[[float], float], guess: Real) -> tuple[float, float]:
    low = high = float(guess)
    while excess(low) > 0:
        low, high = low / 2, low
    while excess(high) < 0:
        low, high = high, high * 2
    return low, high


def change_probability(
    base: Shaped[Tensor, "*shape"], scale: Real, eta: float = ETA
) -> Float64[Tensor, "*shape"]:
    """Probability that N(0, scale²) noise changes each stored weight, in the sense of Definition 2.1.

    P_ij = Φ(−down_ij/s) + Φ(−up_ij/s), with the gaps of w_ij at η, half those to its neighbours unless η is
    larger than the paper's; in [0, 1], 0 where s = 0.

    Raises
    ------
    GeometryError : scale is negative or not finite, or base is not finite bfloat16.

    **Source** this study; Φ is the standard normal distribution function.
    """
    _check_scale(scale)
    down, up = gaps_beyond(base, eta)
    return torch.special.ndtr(-down / scale) + torch.special.ndtr(-up / scale)


def storage_path(
    base: Shaped[Tensor, "*shape"],
    changed: Sequence[int],
    times: Sequence[Real],
    generator: torch.Generator | int,
    eta: float = ETA,
) -> list[Bool[Tensor, "*shape"]]:
    """Null of emergence: a coordinate-blind Gaussian walk, seen at some times through storage.

    B(t) is Brownian motion in each weight; the mask at time t is the `changed[t]` entries of smallest
    critical scale for B(t). Masks of one path agree more than independent draws, as those of a run do.

    Parameters
    ----------
    base : finite bfloat16 tensor; changed : count at each time; times : positive, ascending.
    eta : relative tolerance of Definition 2.1, by which a weight counts as changed.

    Raises
    ------
    GeometryError : lengths differ, times do not ascend from above 0, a count is out of range.

    **Source** this study's null of emergence; Wiener (1923).
    """
    steps = np.diff([0.0, *times])
    if len(changed) != len(times) or (steps <= 0).any():
        raise GeometryError(
            "each observation needs a count and a later time",
            expected="as many counts as ascending times > 0",
            found=f"{len(changed)} counts at times {list(times)}",
        )
    source = as_generator(generator)
    gaps = gaps_beyond(base, eta)
    walk = torch.zeros(tuple(base.shape), dtype=torch.float64, device=source.device)
    masks = []
    for count, step in zip(changed, steps, strict=True):
        walk = walk + math.sqrt(step) * gaussian_noise(base.shape, source)
        masks.append(smallest(scale_to_pass(gaps, walk), count))
    return masks


def stratified_permutation(
    mask: Bool[Tensor, "*shape"],
    base: Shaped[Tensor, "*shape"],
    bins: int = 64,
    *,
    generator: torch.Generator | int,
) -> Bool[Tensor, "*shape"]:
    """Magnitude null: the mask permuted at random within quantile bins of |w|.

    Keeps how many entries of each magnitude changed, and forgets which. Equal |w| always share a bin.

    Parameters
    ----------
    mask : bool; base : finite bfloat16 tensor of its shape; bins : ≥ 1, at most that many strata.

    Raises
    ------
    GeometryError : bins < 1, or base is not finite bfloat16.

    **Source** stratified permutation test, Good (2005), ch. 3; Fisher (1935).
    """
    return next(stratified_permutations(mask, base, bins, generator=generator))


def stratified_permutations(
    mask: Bool[Tensor, "*shape"],
    base: Shaped[Tensor, "*shape"],
    bins: int = 64,
    *,
    generator: torch.Generator | int,
) -> Iterator[Bool[Tensor, "*shape"]]:
    """Draw `stratified_permutation` without end; the strata are found once, before the first draw.

    **Source** as `stratified_permutation`.
    """
    labels = magnitude_bins(base, bins).reshape(-1)
    sizes = torch.bincount(labels, minlength=bins)
    changed_in_bin = torch.bincount(labels, mask.reshape(-1).to(torch.float64), minlength=bins)
    rank_in_bin = torch.arange(len(labels), device=base.device) - (sizes.cumsum(0) - sizes).repeat_interleave(
        sizes
    )
    chosen = rank_in_bin < changed_in_bin.repeat_interleave(sizes)
    source = as_generator(generator)
    while True:
        out = torch.zeros_like(chosen)
        out[_shuffled_within(labels, bins, source)[chosen]] = True
        yield out.reshape(mask.shape)


def _shuffled_within(labels: Tensor, bins: int, generator: torch.Generator) -> Tensor:
    """Indices in order of label, and at random within a label.

    One sort of integers that hold label, random bits and index from high to low: far cheaper than argsort.
    Some 40 random bits are left for a matrix of 10⁵ entries; where two agree, the lower index goes first.
    """
    index_bits, label_bits = len(labels).bit_length(), bins.bit_length()
    random_bits = 63 - index_bits - label_bits
    noise = torch.randint(1 << random_bits, labels.shape, generator=generator, device=generator.device)
    index = torch.arange(len(labels), device=labels.device)
    keys = (((labels << random_bits) | noise.to(labels.device)) << index_bits) | index
    return _sorted(keys) & ((1 << index_bits) - 1)


def _sorted(keys: Tensor) -> Tensor:
    return torch.from_numpy(np.sort(keys.numpy())) if keys.device.type == "cpu" else keys.sort().values


def magnitude_bins(base: Shaped[Tensor, "*shape"], bins: int) -> Shaped[Tensor, "*shape"]:
    """Quantile bin of |w| for each weight, an integer in [0, bins); equal |w| share a bin.

    The bin of a value is that of its lowest rank among all: ⌊rank · bins / size⌋.

    Raises
    ------
    GeometryError : bins < 1, or base is not finite bfloat16.

    **Source** empirical quantiles.
    """
    require_finite_bf16(base, "base")
    if bins < 1:
        raise GeometryError("strata are counted from one", found=bins)
    bits = magnitude_bits(base).to(torch.int64)
    if not base.numel():
        return bits
    first_of_bin = -(-torch.arange(1, bins, device=base.device) * base.numel() // bins)
    last_before = _sorted(bits.reshape(-1))[first_of_bin - 1]
    borders = torch.bincount(last_before + 1, minlength=0x8000)
    return borders.cumsum(0)[bits]


def bernoulli_mask(shape: Sequence[int], changed: int, generator: torch.Generator | int) -> Bool[Tensor, ...]:
    """The paper's baseline: `changed` entries chosen uniformly among all.

    Independent Bernoulli entries given their total.

    Raises
    ------
    GeometryError : changed lies outside [0, size].

    **Source** Zhu et al. (2025), Table 2, conditioned on the count.
    """
    source = as_generator(generator)
    size = math.prod(shape)
    _check_count(changed, size)
    mask = torch.zeros(size, dtype=torch.bool, device=source.device)
    mask[torch.randperm(size, generator=source, device=source.device)[:changed]] = True
    return mask.reshape(tuple(shape))


def p_value(observed: Real, draws: Sequence[Real] | np.ndarray, tail: str = "upper") -> float:
    """Monte-Carlo p-value of an observed statistic among null draws.

    upper: (1 + #{draw ≥ observed})/(n + 1); two-sided: min(1, 2 · the smaller of both tails). Under the null
    P(p ≤ α) ≤ α exactly; the smallest possible value is 1/(n + 1), twice that for two-sided.

    Returns
    -------
    float in (0, 1]; NaN where the observed value or a draw is NaN.

    Raises
    ------
    GeometryError : no draw, or an unknown tail.

    **Source** Phipson and Smyth (2010), eq. 2; Davison and Hinkley (1997), §4.2.
    """
    values = np.asarray(draws, dtype=np.float64)
    if not values.size or tail not in ("upper", "two-sided"):
        raise GeometryError(
            "no p-value",
            expected="draws, and tail 'upper' or 'two-sided'",
            found=f"{values.size} draws, tail {tail!r}",
        )
    if math.isnan(observed) or np.isnan(values).any():
        return math.nan
    upper = (1 + int((values >= observed).sum())) / (values.size + 1)
    lower = (1 + int((values <= observed).sum())) / (values.size + 1)
    return upper if tail == "upper" else min(1.0, 2 * min(upper, lower))


@dataclass(frozen=True)
class NullSummary:
    """A null's draws in short: mean, sd, 2.5 % and 97.5 % quantiles; the observed value's p and z; draws."""

    mean: float
    sd: float
    low: float
    high: float
    p: float
    z: float
    draws: int


def summarise(observed: Real, draws: Sequence[Real] | np.ndarray, tail: str = "upper") -> NullSummary:
    """Set an observed statistic against its null draws.

    z = (observed − mean)/sd, sd with n − 1; NaN where fewer than two draws or sd = 0.

    Raises
    ------
    GeometryError : as `p_value`.

    **Source** as `p_value`.
    """
    values = np.asarray(draws, dtype=np.float64)
    p = p_value(observed, values, tail)
    sd = float(values.std(ddof=1)) if values.size > 1 else math.nan
    low, high = np.quantile(values, [0.025, 0.975])
    mean = float(values.mean())
    z = (observed - mean) / sd if sd > 0 else math.nan
    return NullSummary(mean, sd, float(low), float(high), p, z, values.size)
