"""Noise of nulls: its generators, and which stored weights a scale of it changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.precision import (
    gaps_beyond,
    half_gap_towards,
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


def scales_to_pass(
    base: Shaped[Tensor, "*shape"], eta: Real, generator: torch.Generator
) -> Iterator[Float64[Tensor, "*shape"]]:
    """`scale_to_pass` of one Gaussian noise after another, for changes in the sense of Definition 2.1 at η.

    In (0, ∞]; on the base's device.

    **Source** as `critical_scale`.
    """
    gaps = gaps_beyond(base, eta)
    while True:
        yield scale_to_pass(gaps, gaussian_noise(base.shape, generator).to(base.device))


def rounded_sum(
    base: Shaped[Tensor, "*shape"], noise: Float[Tensor, "*shape"], scale: Real
) -> Shaped[Tensor, "*shape"]:
    """round_bf16(w + s z), the sum taken in float64 and rounded once.

    **Source** the storage null, by its definition.
    """
    return to_bf16(base.to(torch.float64) + scale * noise.to(base.device, torch.float64))


def smallest(values: Shaped[Tensor, "*shape"], count: int) -> Bool[Tensor, "*shape"]:
    """Mark exactly `count` smallest entries; of equal ones, those of lowest flat (row-major) index.

    Raises
    ------
    GeometryError : count lies outside [0, size].

    **Source** order statistics.
    """
    check_count(count, values.numel())
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


def check_count(count: int, size: int) -> None:
    """Refuse a count of changed entries that lies outside [0, size].

    Raises
    ------
    GeometryError : it does.
    """
    if not 0 <= count <= size:
        raise GeometryError("a mask cannot change that many entries", expected=f"0 … {size}", found=count)
